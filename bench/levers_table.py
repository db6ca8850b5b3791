"""What the study of the levers has found, as text: each variant with its intervals and differences, and on what it was measured."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from bench.variants import DPMPP, VARIANTS
from Experiment.intervals import accuracy_interval, difference_interval, reserve, verdict


@dataclass
class Measured:
    """A variant of a dataset: its rows, one a seed, and those that it is compared with: plain, and real; each may be None."""

    dataset: str
    name: str
    rows: list
    plain: list | None
    real: list | None


def measured(rows):
    """A `Measured` of each variant of each dataset, in the order of the variants."""
    of = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row["dataset"], row["seed"])):
        of[row["dataset"], row["variant"]].append(row)
    return [
        Measured(dataset, name, of[dataset, name], plain_of(of, dataset, name), of.get((dataset, real_name(name))))
        for dataset, name in sorted(of, key=lambda key: (key[0], list(VARIANTS).index(key[1])))
    ]


def plain_of(of, dataset, name):
    """Rows that a variant is compared with, of the seeds that both have, which share an adapted model; None where none is there.

    Of the plain ones, the nearest first, it is that which has the most seeds of the variant.
    """
    seeds = {row["seed"] for row in of[dataset, name]}
    there = [of[dataset, other] for other in plain_names(name) if (dataset, other) in of]
    shared = [[row for row in rows if row["seed"] in seeds] for rows in there]
    return max(shared, key=len, default=None) or None


def plain_names(name):
    """Names of the plain variants that a variant may be compared with, the nearest first.

    A set four times as large is compared with a plain one that is so, if there is one; what DPM-Solver++ has made with what it
    has made with the published classifier.
    """
    variant = VARIANTS[name]
    if variant.real or name == "plateau":
        return []
    if name.endswith("plateau"):
        return ["plateau"]
    names = ["plain_4x"] * (variant.size == 4) + ["plain", "dpmpp_8"]
    if variant.made.startswith(DPMPP) and name != "dpmpp_8":
        names[-2:] = ["dpmpp_8", "plain"]
    return names[: names.index(name)] if name in names else names


def real_name(name):
    """The name of the variant of real images that a variant is compared with, which learns by the same rate."""
    real = "real_plateau" if name.endswith("plateau") else "real"
    return None if name == real else real


def hits(rows, by_seed):
    """Hits (R, N) of rows of one dataset: a row for each repeat of the one seed, or for each seed the mean of its repeats.

    Repeats of a seed share an adapted model and a set: as trainings of the whole recipe they count once.
    """
    of_seeds = [np.array([[h == "1" for h in text] for text in row["hits"]]) for row in rows]
    return np.array([of_seed.mean(axis=0) for of_seed in of_seeds]) if by_seed else of_seeds[0]


def table(rows):
    """Lines of a Markdown table: each variant of each dataset against a plain one, which is named, and against real images."""
    lines = ["| dataset | variant | seeds x repeats | passes | validation | test | 95 % | each | compared with | by points | "
             "by points with real |", "|---|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for one in measured(rows):
        ours = hits(one.rows, by_seed=len(one.rows) > 1)
        low, high = accuracy_interval(ours)
        each = [f"{mean:.3f}" for mean in ours.mean(axis=1)] if len(ours) > 1 else []
        shown = [
            one.dataset, f"`{one.name}`", f"{len(one.rows)} x {len(one.rows[0]['test'])}", one.rows[0]["passes"] or "",
            f"{np.mean([v for row in one.rows for v in row['val']]):.3f}", f"{ours.mean():.3f}", f"{low:.3f} to {high:.3f}",
            ", ".join(each), f"`{one.plain[0]['variant']}`" if one.plain else "", difference(one.rows, one.plain),
            difference(one.rows, one.real),
        ]  # fmt: skip
        lines.append("| " + " | ".join(map(str, shown)) + " |")
    return lines


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
    return one.get("adapted") != other.get("adapted")  # rows of earlier versions do not say: two of them may share one


def points(mine, others):
    """A difference of accuracies and its interval, in points, and the word beside it: that of `verdict`, or none.

    No word stands beside those of two adapted models of one seed each: the interval is of repeats on the two sets alone. Nor
    beside those of one adapted model and several seeds: nobody knows how much others would vary, classifiers of real images
    less.
    """
    by_seed = max(len(mine), len(others)) > 1
    two_models = not by_seed and two_adaptations(mine[0], others[0])
    ours, theirs = hits(mine, by_seed), hits(others, by_seed)
    interval = difference_interval(ours, theirs)
    one_model = by_seed and any(len(rows) == 1 and not VARIANTS[rows[0]["variant"]].real for rows in (mine, others))
    limit = reserve(ours, theirs)
    found = verdict(interval, limit)
    word = "" if two_models or one_model or found.startswith("no") else found if limit else f"**{found}**"
    return 100 * float(ours.mean() - theirs.mean()), [100 * x for x in interval], word


def difference(mine, others):
    """A difference of accuracies in points with its interval; empty where there is nothing to compare with."""
    if not others:
        return ""
    mean, (low, high), word = points(mine, others)
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f}) {word}".rstrip()
