"""What the study of the levers has found, as text: each variant with its intervals and differences, and on what it was measured."""

from collections import defaultdict

import numpy as np

from bench.variants import VARIANTS
from Experiment.intervals import accuracy_interval, difference_interval, reserve, verdict


def hits(rows, by_seed):
    """Hits (R, N) of rows of one dataset: a row for each repeat of the one seed, or for each seed the mean of its repeats.

    Repeats of a seed share an adapted model and a set: as trainings of the whole recipe they count once.
    """
    of_seeds = [np.array([[h == "1" for h in text] for text in row["hits"]]) for row in rows]
    return np.array([of_seed.mean(axis=0) for of_seed in of_seeds]) if by_seed else of_seeds[0]


def table(rows):
    """Lines of a Markdown table: each variant of each dataset against plain of its size, and against real."""
    of = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row["dataset"], row["seed"])):
        of[row["dataset"], row["variant"]].append(row)
    lines = ["| dataset | variant | seeds x repeats | passes | validation | test | 95 % | against plain | against real |",
             "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for dataset, name in sorted(of, key=lambda key: (key[0], list(VARIANTS).index(key[1]))):
        mine = of[dataset, name]
        ours = hits(mine, by_seed=len(mine) > 1)
        low, high = accuracy_interval(ours)
        plain, real = (of.get((dataset, other)) for other in compared_with(name))
        shown = [
            dataset, f"`{name}`", f"{len(mine)} x {len(mine[0]['test'])}", mine[0]["passes"] or "",
            f"{np.mean([v for row in mine for v in row['val']]):.3f}", f"{ours.mean():.3f}", f"{low:.3f} to {high:.3f}",
            difference(mine, plain), difference(mine, real),
        ]  # fmt: skip
        lines.append("| " + " | ".join(map(str, shown)) + " |")
    return lines


def compared_with(name):
    """Names of the plain and the real variant that a variant is compared with: those of its size and of its optimizer."""
    if name.endswith("plateau"):
        return "plateau", "real_plateau"
    return "plain_4x" if VARIANTS[name].size == 4 else "plain", "real"


def machines(rows):
    """Lines that say on what the variants of each dataset were measured: accuracies of several machines differ a little."""
    of = defaultdict(set)
    for row in rows:
        hardware = row.get("machine")  # rows of earlier studies do not say
        names = [each["name"] for each in hardware["gpus"] or [hardware["processor"]]] if hardware else ["not recorded"]
        of[row["dataset"], ", ".join(filter(None, [*names, row.get("precision")]))].add(row["variant"])
    return [f"{dataset}, {where}: {', '.join(sorted(of[dataset, where], key=list(VARIANTS).index))}"
            for dataset, where in sorted(of)]  # fmt: skip


def two_adaptations(one, other):
    """Whether the sets of two rows of a seed are of two adapted models, as far as is known; real images are of none."""
    both = [VARIANTS[row["variant"]] for row in (one, other)]
    if any(variant.real for variant in both):
        return False
    if len({(variant.enc, variant.dif, variant.tuned) for variant in both}) > 1:
        return True
    hashes = {row["adapted"] for row in (one, other) if "adapted" in row}  # rows of earlier versions do not say
    return len(hashes) > 1


def difference(mine, others):
    """A difference of accuracies in points with its interval; empty where there is nothing to compare with.

    No word stands beside those of two adapted models of one seed each: the interval is of repeats on the two sets alone. Nor
    beside those of one adapted model and several seeds: nobody knows how much others would vary, classifiers of real images
    less.
    """
    if not others or others is mine:
        return ""
    by_seed = max(len(mine), len(others)) > 1
    two_models = not by_seed and two_adaptations(mine[0], others[0])
    ours, theirs = hits(mine, by_seed), hits(others, by_seed)
    interval = difference_interval(ours, theirs)
    low, high = (100 * x for x in interval)
    one_model = by_seed and any(len(rows) == 1 and not VARIANTS[rows[0]["variant"]].real for rows in (mine, others))
    limit = reserve(ours, theirs)
    found = verdict(interval, limit)
    said = f"{100 * (ours.mean() - theirs.mean()):+.1f} ({low:+.1f} to {high:+.1f})"
    if two_models or one_model or found.startswith("no"):
        return said
    return f"{said} {found}" if limit else f"{said} **{found}**"
