"""What an audit has found: as figures for the set's card, as a table of its classes, and as a page."""

import shlex

import pages
from Audit.quality import SUBSETS, K
from Experiment.files import write_csv
from Experiment.paths import REPOSITORY
from Experiment.predictions import no_better_than_largest
from Experiment.records import short
from Experiment.results import all_doubts, interval_of

METRICS = ("precision", "recall", "density", "coverage")
FOOT = "Made by audit_dataset.py. Formulas, sources and what the numbers cannot say: Audit/README.md."


def figures(found):
    """{figure: value} for the card and for programs: every name says the extractor, n and k that its value depends on."""
    told = {part["name"]: part["words"] for part in found["quality"].values()}
    shares = ", classes as frequent as in training" if found["frequencies"]["drawn"] else ""
    for part in found["quality"].values():
        for kind, who in (("all", "generated"), ("held_out", "real held-out images in their place")):
            of = part[kind]
            if "missing" in of:
                continue
            where = f"{who}, {part['name']}, n {of['generated']}{shares}"
            told[f"KID, {where}, subsets of {of['kid_subset']}"] = rounded(of["kid"])
            told[f"KID deviation over subsets, {where}"] = rounded(of["kid_spread"])
            told |= {f"{name}, {where}, k {K}": rounded(of[name]) for name in METRICS}
            told |= {f"FID, {where}": rounded(of["fid"])} if "fid" in of else {}
    of = found["copies"]
    told |= {f"images with the pixels of another one, {who}": count for who, count in of["exact"].items()}
    told |= {f"near duplicates, {who}": count for who, count in of["near"].items()}
    for field, shares in of["nearer"].items():
        for who, share in shares.items():
            where = f"{who}, {found['quality'][field]['name']}, n {share['images']}, references of {share['reference']}"
            told[f"share nearer to training than to validation images, {where}"] = rounded(share["share"])
            told[f"nearer to training, 95 % of what chance gives, {where}"] = rounded(*share["chance"])
            told[f"nearer to training, probability of as much by chance, {where}"] = rounded(share["p"])
    for name, attack in attacks(found).items():
        told[f"membership, {name}, AUC"] = rounded(attack["auc"])
        told[f"membership, {name}, AUC, 95 % interval"] = rounded(*attack["auc_interval"])
        told[f"membership, {name}, true positives at 1 % false ones"] = rounded(attack["tpr"])
        told[f"membership, {name}, true positives at 1 % false ones, 95 % interval"] = rounded(*attack["tpr_interval"])
        told[f"membership, {name}, true positives at 1 % false ones, by chance"] = rounded(attack["chance"])
        told[f"membership, {name}, probability of so many true positives by chance"] = rounded(attack["p"])
    told |= {"how frequent classes are": found["frequencies"]["told"]} if found["frequencies"]["told"] else {}
    return told | ({"not done": found["missing"]} if found["missing"] else {})


def attacks(found):
    """{name: `strength`} of all attacks that were made."""
    model = {"denoising loss of the adapted model": found["denoising"]} if found["denoising"] else {}
    learnt = {"real": "the real images", "teacher": "the real images (the teacher)"} | found["learnt"]
    named = {f"likelihood ratio, classifier that has learnt {learnt[name]}": of for name, of in found["classifiers"].items()}
    return model | named


def rounded(*values):
    """A number, or several as a list, with as many digits as they are worth."""
    values = [float(f"{value:.4g}") for value in values]
    return values if len(values) > 1 else values[0]


def class_rows(found, classes):
    """Quality of each class, a row for each extractor."""
    fid = ["fid"] if found["fid"] else []
    empty = dict.fromkeys(("kid", "kid_spread", "kid_subset", *METRICS, *fid, "missing"), "")
    return [
        {"extractor": part["name"], "class": name, **empty, **of_class}
        for part in found["quality"].values() for name, of_class in zip(classes, part["classes"])
    ]  # fmt: skip


def accuracy_over_privacy(accuracy, auc):
    """Accuracy over privacy, CAS / (2 AUC)^2, as the group's follow-up work has it; an AUC below 0.5 counts as 0.5."""
    return accuracy / (2 * max(auc, 0.5)) ** 2


def points(found, entries):
    """Classifiers of which accuracy and AUC are known, for the table and the picture of both."""
    told = []
    for name, attack in found["classifiers"].items():
        if entry := entries.get(name):
            words = "real" if name == "real" else f"synthetic {name[1:]}x"
            told.append({
                "name": words, "real": name == "real", "accuracy": entry["top_1_accuracy"], "auc": attack["auc"],
                "accuracy_interval": interval_of(entry, "top_1_accuracy"), "auc_interval": attack["auc_interval"],
                "score": accuracy_over_privacy(entry["top_1_accuracy"], attack["auc"]), "repeats": entry.get("repeats", 1),
            })  # fmt: skip
    return told


def write_report(path, args, known, found, record):
    """Write the page, and the table of the classes beside its pictures.

    Args:
        path: Of the page.
        args, known: The script's arguments and `Plan`.
        found: What the parts have found.
        record: The run's, of `describe_run`.
    """
    write_csv(known.folder / "classes.csv", class_rows(found, known.inputs["classes"]))
    source, spec = known.source, known.spec
    parts = [
        glance(found, known),
        doubts_part(known),
        missing_part(found),
        set_part(found, known),
        quality_part(found, known.inputs["classes"]),
        copies_part(found),
        membership_part(found),
        trade_part(found, known),
        again_part(args, known, record),
    ]
    lead = f"{source.total:,} generated images of {spec.name} in {spec.num_classes} classes, beside the real images that they stand for"
    pages.write_page(path, pages.page(f"What the set {source.folder.name} is worth", lead, filter(None, parts), FOOT))


def glance(found, known):
    """The most important figures, each with a word on how to read it."""
    quality, nearer = found["quality"]["pixels"]["all"], found["copies"]["nearer"]["pixels"]
    told = {"generated images": f"{known.source.total:,}"}
    for size, entry in known.entries.items():
        if size != "real":
            ends = interval_of(entry, "top_1_accuracy")
            sure = f" ({ends[0]:.3f} to {ends[1]:.3f})" if ends else ""
            told[f"accuracy of a classifier that has learnt {found['learnt'][size]}{sure}"] = f"{entry['top_1_accuracy']:.3f}"
    if "missing" not in quality:
        told["coverage: share of real images with a generated one near by (pixels)"] = f"{quality['coverage']:.2f}"
        told["precision: share of generated images among the real ones (pixels)"] = f"{quality['precision']:.2f}"
    told["generated images with the very pixels of a training image"] = found["copies"]["exact"]["the set and train"]
    share, usual = (nearer[who]["share"] for who in ("generated", "real test images"))
    told[f"share nearer to training than to validation images; of real test images {usual:.2f} (pixels)"] = f"{share:.2f}"
    if found["denoising"]:
        of = "AUC of telling training images by the model's denoising loss; 0.5 is chance"
        told[of] = f"{found['denoising']['auc']:.2f}"
    return pages.cards([(value, of) for of, value in told.items()])


def doubts_part(known):
    """Why the accuracies on this page may be too good, or say nothing."""
    lines = [f"The accuracies may be too good: {text}." for text in all_doubts(known.entries.values())]
    lines += [f"{size}: {words}." for size, words in no_better_than_largest(known.entries)]
    return pages.box(*lines, warning=True) if lines else ""


def missing_part(found):
    lines = list(found["missing"])
    if found["unread"]:
        lines.append(f"{found['unread']:,} images of the set: they cannot be read, and are left out everywhere below")
    for part in found["quality"].values():
        small = sum("missing" in of_class for of_class in part["classes"])
        if small:
            lines.append(f"Quality of {small} of {len(part['classes'])} classes by {part['name']}: too few images")
    return pages.section("What could not be done", pages.box(*lines, warning=True)) if lines else ""


def set_part(found, known):
    settings = {key: value for key, value in known.source.recipe.items() if value is not None}
    weights = settings.pop("weights", None)
    rows = [[key.replace("_", " "), short(value)] for key, value in settings.items()]
    rows += [[f"weights, {part}", value] for part, value in weights.items()] if isinstance(weights, dict) else []
    rows.append(["content, SHA-256", known.source.sha256[:16]])
    words = "Real training images beside generated ones of each class, the first of each"
    picture = pages.figure(found["samples"], words) if found["samples"] else ""
    return pages.section("The set", picture, pages.table(["setting", "value"], rows))


def quality_row(who, of, fid):
    if "missing" in of:
        return [who, of["generated"], of["missing"], *[""] * (len(METRICS) + fid)]
    kid = f"{of['kid']:.4f} \N{PLUS-MINUS SIGN} {of['kid_spread']:.4f}"
    row = [who, f"{of['generated']:,}", kid, *(f"{of[name]:.3f}" for name in METRICS)]
    return row + ([f"{of['fid']:.4f}"] if fid else [])


def quality_part(found, classes):
    parts = [pages.paragraph(
        "Each number compares generated images with as many real training images in a feature space. Its value belongs to that "
        "space, to n and to k, and is not to be compared with values of other papers. The second line of each table puts real "
        "held-out images in the place of the generated ones: about as good as can be."
    )]  # fmt: skip
    if told := found["frequencies"]["told"]:
        parts.append(pages.box(f"{told[0].upper()}{told[1:]}.", warning=not found["frequencies"]["drawn"]))
    fid = found["fid"]
    for part in found["quality"].values():
        header = ["images", "n", f"KID, {SUBSETS} subsets", *METRICS] + (["FID"] if fid else [])
        rows = [quality_row("generated", part["all"], fid), quality_row("real, held out", part["held_out"], fid)]
        sizes = dict.fromkeys(str(of["kid_subset"]) for of in (part["all"], part["held_out"]) if "kid_subset" in of)
        parts += [
            pages.heading(f"By {part['name']}: {part['words']}"),
            pages.table(header, rows, f"k = {K}; KID of subsets of {' and '.join(sizes) or 'no'} images"),
        ]
        if len(classes) > 1:
            rows = [quality_row(name, of_class, fid) for name, of_class in zip(classes, part["classes"])]
            told = f"by class, k = {K}; KID of subsets of half of n images, at most 1,000"
            parts.append(pages.table(["class", *header[1:]], rows, told))
    if fid:
        parts.append(pages.box(
            "FID falls with the number of images by itself, and the more so the more features there are: compare it only "
            "between lines of the same n and the same extractor. KID has no such bias.", warning=True))  # fmt: skip
    parts.append(pages.items([
        "KID: distance of two distributions, 0 for equal ones; it may be slightly negative. After \N{PLUS-MINUS SIGN} stands its deviation over subsets.",
        "Precision: share of generated images that lie where real ones do. Density: the same, less moved by outliers; it may be above 1.",
        "Recall: share of real images that lie where generated ones do. Coverage: share of real images that have a generated one nearer than their kth real neighbour.",
    ]))  # fmt: skip
    return pages.section("Quality", *parts)


def copies_part(found):
    of, parts = found["copies"], []
    rows = [[who, f"{count:,}", f"{of['near'][who]:,}"] for who, count in of["exact"].items()]
    parts.append(pages.table(["between", "same pixels", "near duplicates"], rows,
                             "images, as a classifier sees them, that have a twin; of two splits: images of the first; near "
                             "duplicates within the set: of the same class"))  # fmt: skip
    parts.append(
        pages.paragraph(
            "Near duplicates differ from their nearest image by less than 5 grey levels of 255 (root mean square of the pixels)."
        )
    )
    rows = [
        [found["quality"][field]["name"], who, f"{share['share']:.3f}", "{:.3f} to {:.3f}".format(*share["chance"]), f"{share['p']:.2g}",
         f"{share['images']:,}", f"{share['reference']:,}"]
        for field, shares in of["nearer"].items() for who, share in shares.items()
    ]  # fmt: skip
    parts += [
        pages.heading("Nearer to training than to validation images"),
        pages.table(["by", "images", "share", "by chance (95 %)", "p", "n", "images of each reference"], rows),
        pages.paragraph("A share above what chance gives (a small p), and above that of real test images, which nobody has trained on, is a "
                        "sign of copying; one below is none: images that lie elsewhere than real ones may be nearer to either side. "
                        "Chance: training and validation images swap places. Both references have the same number of images, since "
                        "the larger one would win by its size."),
        pages.heading("The generated images that are nearest to a training image"),
        *(pages.figure(path, f"Of all {of['counted']:,} generated images the nearest ones by {found['quality'][field]['name']}: the generated "
                       "image, its nearest training image, and its nearest held-out image") for field, path in found["sheets"].items()),
        pages.box("Nearness is no measure of privacy: a set without any copy can still tell what was trained on. Look at the "
                  "pairs; where the middle row is as like as the bottom row, the class is that narrow."),
    ]  # fmt: skip
    return pages.section("Copies", *parts)


def attack_row(name, of):
    return [name, f"{of['members']:,} / {of['others']:,}", f"{of['auc']:.3f}", "{:.3f} to {:.3f}".format(*of["auc_interval"]),
            f"{100 * of['tpr']:.1f} %", "{:.1f} to {:.1f} %".format(*(100 * end for end in of["tpr_interval"])),
            f"{100 * of['chance']:.1f} %", f"{of['p']:.3f}"]  # fmt: skip


def membership_part(found):
    header = ["attack", "members / others", "AUC", "95 % interval", "found at 1 % false alarms", "95 % interval",
              "by chance", "p"]  # fmt: skip
    rows = [attack_row(name, of) for name, of in attacks(found).items()]
    told = [
        "Members are real training images. Others are validation images for the diffusion model, and test images for classifiers.",
        "Of a classifier that has seen generated images alone, members are the images that the generator has learnt from.",
        "An AUC of 0.5 is chance. What counts for a patient is the share that is found for certain, at 1 % false alarms. By chance it is "
        "1 % of many others; of fewer than 100 no false alarm is allowed at all, and chance finds more: the last but one column says how much.",
        "p is the exact probability that scores of pure chance find as many, or more: that, and not whether the interval beside it holds "
        "the chance, says whether so many mean anything. Of several attacks one may have a small p by luck.",
        "Where training and test images come from different places, a classifier attack may tell the places apart: its AUC is then above "
        "0.5 though nothing was memorised.",
        "These attacks are what this page tries. A stronger one may find more: a low figure shows no privacy, a high one shows its lack.",
        "The attack needs the model or the classifier. From the images alone less may be found, or more: that was not tried.",
    ]
    return pages.section("Membership", pages.table(header, rows), pages.items(told)) if rows else ""


def trade_part(found, known):
    from Audit.pictures import trade_off

    told = points(found, known.entries)
    if not told:
        return ""
    of = [p["name"] + (f" (accuracy: mean of {p['repeats']}; AUC of the first)" if p["repeats"] > 1 else "") for p in told]
    rows = [[name, f"{p['accuracy']:.3f}", f"{p['auc']:.3f}", f"{p['score']:.3f}"] for name, p in zip(of, told)]
    picture = trade_off(told, known.folder / "accuracy_and_privacy.png")
    return pages.section(
        "Accuracy against privacy",
        pages.figure(picture, "Up is more accurate, left gives less away; lines are 95 % intervals"),
        pages.table(["trained on", "accuracy on real test images", "AUC", "accuracy / (2 AUC)\N{SUPERSCRIPT TWO}"], rows),
        pages.paragraph("The last column is the combined score of the group's later work: accuracy divided by the square of twice the "
                        "AUC, which is accuracy itself where the attack is at chance, or below it: an AUC under 0.5 counts as 0.5."),
    )  # fmt: skip


VALUES = (
    "dataset exp root synthetic_dir weights_dir classifier data_dir resolution background "
    "precision sample losses shadows shadow_epochs seed to"
).split()
SWITCHES = ("fid", "skip_broken", "deterministic", "tf32")


def again_part(args, known, record):
    given = {name: getattr(args, name) for name in VALUES}
    words = [f"--{name} {shlex.quote(str(value))}" for name, value in given.items() if value not in (None, REPOSITORY)]
    versions = ", ".join(f"{name} {value}" for name, value in record["versions"].items())
    data = [[name, short(value)] for name, value in known.inputs["data"].items()]
    return pages.section(
        "How it was made",
        pages.code(["python audit_dataset.py " + " ".join([*words, *(f"--{name}" for name in SWITCHES if getattr(args, name))])]),
        pages.table(["real data", "content"], data),
        pages.paragraph(f"{versions}; {record['seconds']:.0f} s on {record['machine']['cores']} cores."),
    )  # fmt: skip
