"""An audit in brief, for a set's card and the page of an experiment: the figures that answer is it good, and does it copy."""

from Audit.quality import K
from Audit.report import METRICS, attacks

GENERATED, REAL = "generated images", "real ones in their place"


def brief(found):
    """Tables of what matters most: [{"header", "rows"}], text. Every figure is in `figures`.

    Args:
        found: What the parts of the audit have found.
    """
    tables = [{"header": ["figure", GENERATED, REAL], "rows": [*quality_rows(found), *nearer_rows(found)]}]
    if told := found["frequencies"]["told"]:
        tables.append({"header": ["how frequent classes are"], "rows": [[told]]})
    shared = {"exactly": found["copies"]["exact"], "nearly": found["copies"]["near"]}
    rows = [
        [f"images that stand in the training images too, {how}", str(of["the set and train"])] for how, of in shared.items()
    ]
    tables.append({"header": ["copies", "images"], "rows": rows})
    if made := attacks(found):
        header = ["membership, by", "AUC (95 % interval)", "true positives at 1 % false ones", "the same by chance", "p"]
        tables.append({"header": header, "rows": [attack_row(*attack) for attack in made.items()]})
    if found["missing"]:
        tables.append({"header": ["not done"], "rows": [[reason] for reason in found["missing"]]})
    return tables


def quality_rows(found):
    for part in found["quality"].values():
        both = [part[kind] for kind in ("all", "held_out")]
        yield [f"images, {part['name']}", *(of.get("missing", f"{of['generated']:,}") for of in both)]
        if any("missing" in of for of in both):
            continue
        yield ["KID", *(f"{of['kid']:.4f} (subsets of {of['kid_subset']}: +- {of['kid_spread']:.4f})" for of in both)]
        yield from ([f"{name}, k {K}", *(f"{of[name]:.3f}" for of in both)] for name in METRICS)


def nearer_rows(found):
    for field, shares in found["copies"]["nearer"].items():
        name = f"share nearer to training than to validation images (p by chance), {found['quality'][field]['name']}"
        yield [name, *(f"{share['share']:.3f} ({share['p']:.2g})" for share in shares.values())]


def attack_row(name, attack):
    low, high = attack["auc_interval"]
    # Not the interval of the share: whether that holds the chance says nothing, p does (Audit/README.md).
    rates = [f"{attack[key]:.3f}" for key in ("tpr", "chance", "p")]
    return [name, f"{attack['auc']:.3f} ({low:.3f} to {high:.3f})", *rates]
