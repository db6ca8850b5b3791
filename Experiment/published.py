"""What the paper's figures can show: intervals of its accuracies, from the sizes of the test sets.

python -m Experiment.published     writes `CAS Results/published_intervals.md` anew
"""

from itertools import pairwise

from Experiment.files import atomic_path
from Experiment.intervals import CONFIDENCE, binomial_interval, unpaired_interval, verdict
from Experiment.paths import PUBLISHED_CAS, PUBLISHED_INTERVALS, PUBLISHED_PIPELINE
from Experiment.results import CAS_SCHEMA, FOUR_STEPS, PIPELINE_SCHEMA, read_results

# Number of test images (paper, table of datasets; the official splits).
TEST_IMAGES = {
    "cifar10": 10_000, "cifar100": 10_000, "pathmnist": 7_180, "dermamnist": 2_005, "bloodmnist": 3_421,
    "retinamnist": 400,
}  # fmt: skip
# Of the largest class, in the datasets where that is more than a fifth: grade 0 and melanocytic nevi (the official files).
LARGEST_CLASS = {"dermamnist": 1_341, "retinamnist": 174}
SIZES = [f"x{size}" for size in range(1, 11)]


def published_curves():
    """The paper's CAS results in the schema of `Experiment.cas_file`, each with the 95 % intervals of its accuracies."""
    results = read_results(PUBLISHED_CAS, CAS_SCHEMA)
    return {
        classifier: {dataset: with_intervals(curve, dataset) for dataset, curve in datasets.items()}
        for classifier, datasets in results.items()
    }


def published_steps():
    """The paper's accuracies after each step in the schema of `Experiment.pipeline_file`, with intervals."""
    return {
        dataset: {stage: with_intervals(entries, dataset) for stage, entries in stages.items()}
        for dataset, stages in read_results(PUBLISHED_PIPELINE, PIPELINE_SCHEMA).items()
    }


def with_intervals(entries, dataset):
    images = TEST_IMAGES[dataset]
    return {
        name: entry | {"interval": {score: list(binomial_interval(value, images)) for score, value in entry.items()}}
        for name, entry in entries.items()
    }


def against(curve, images, other, sizes):
    """How far results are above another accuracy: {claim: (difference, (low, high))} of a published curve.

    The best of ten sizes is the best by chance too: its interval is made wide enough that, with ten equal sizes, none of
    ten intervals would miss 0 in 95 % of cases (Bonferroni).

    Args:
        curve: {"real" | "x1" ... "x10": entry}.
        images: Number of test images.
        other: The accuracy.
        sizes: What is compared with it: keys of the curve, and `best` for the best of ten.
    """
    accuracy, found = {size: entry["top_1_accuracy"] for size, entry in curve.items()}, {}
    best = max(SIZES, key=accuracy.get)
    for size in sizes:
        if size == "best":
            claim, ours, confidence = f"best of ten ({best[1:]}x)", accuracy[best], 1 - (1 - CONFIDENCE) / len(SIZES)
        else:
            claim = size if size == "real" else f"{size[1:]}x"
            ours, confidence = accuracy[size], CONFIDENCE
        found[claim] = ours - other, unpaired_interval(ours, other, images, confidence)
    return found


def against_real(curve, images):
    """Whether synthetic data beat real data, see `against`."""
    return against(curve, images, curve["real"]["top_1_accuracy"], ("x1", "best"))


def against_largest(curve, images, largest):
    """How far results are above always naming the largest class, of `largest` test images, see `against`."""
    return against(curve, images, largest / images, ("x1", "x2", "best", "real"))


def steps(results, images):
    """What each step of the adaptation brought: {step: (difference, (low, high))} of a published dataset."""
    accuracies = {name: results[stage][key]["top_1"] for name, (stage, key) in FOUR_STEPS.items()}
    first, *later = accuracies
    pairs = {name: (before, name) for before, name in pairwise(accuracies)}
    pairs["all after the first step"] = first, later[-1]
    return {
        name: (accuracies[after] - accuracies[before], unpaired_interval(accuracies[after], accuracies[before], images))
        for name, (before, after) in pairs.items()
    }


def rows(title, found, judged=True):
    """Table rows of claims: {dataset: {claim: (difference, interval)}}, with or without a verdict."""
    yield f"| dataset | test images | {title} | difference, points | interval |{' |' if judged else ''}"
    yield "|---|---|---|---|---|" + ("---|" if judged else "")
    for dataset, claims in found.items():
        for claim, (difference, interval) in claims.items():
            low, high = (f"{100 * x:+.1f}" for x in interval)
            said = f"| {dataset} | {TEST_IMAGES[dataset]:,} | {claim} | {100 * difference:+.1f} | {low} to {high} |"
            yield said + (f" {verdict(interval)} |" if judged else "")


def page():
    """The text of the page."""
    curves = next(iter(read_results(PUBLISHED_CAS, CAS_SCHEMA).values()))
    pipeline = read_results(PUBLISHED_PIPELINE, PIPELINE_SCHEMA)
    real = {dataset: against_real(curve, TEST_IMAGES[dataset]) for dataset, curve in curves.items()}
    constant = {
        dataset: against_largest(curves[dataset], TEST_IMAGES[dataset], count) for dataset, count in LARGEST_CLASS.items()
    }
    brought = {dataset: steps(found, TEST_IMAGES[dataset]) for dataset, found in pipeline.items()}
    lines = [*HEAD.strip().split("\n"), "", *rows("synthetic against real", real), "", *LARGEST.strip().split("\n"), "",
             *rows("against the largest class", constant), "", *BETWEEN.strip().split("\n"), "",
             *rows("step", brought, judged=False)]  # fmt: skip
    return "\n".join(lines) + "\n"


HEAD = """
# How sure the published accuracies are

`python -m Experiment.published` computes this page from the published accuracies and the number of test images. Each is of
one training, so an interval (95 %) says how far a figure may be off because the test images are few, and nothing of how far
another training would be. Real and synthetic classifiers saw the same test images, but their single predictions are not
published: the difference is taken as of different images (Newcombe's interval), which is cautious. The best of ten sizes is
best by chance too; its interval is widened for that (Bonferroni: 99.5 % instead of 95 %).

`better`, `worse`: the interval excludes 0. The paper's claim that synthetic data beat real data in a third of cases rests on
the two datasets whose best of ten lies above real. The settings of all synthetic sets were chosen on these same test images,
which makes their accuracies too good by an amount that cannot be computed from the figures.
"""

LARGEST = """
In dermamnist two thirds of the test images are of one class, in retinamnist nearly half: always naming that class is right in
0.669 and 0.435 of cases. What is not shown to be better than that says little. (Intervals are again as of different images, and
wider for the best of ten.)
"""

BETWEEN = """
What each step of the adaptation brought (top-1). Settings were chosen on the test images, so that what a search brought is
too good, and what fine-tuning brought after it too bad, by an amount that cannot be computed: in simulations of 400 test images
and 100 trials that are all alike, the best is 6 points above what they all have. So nothing is called better or worse.
"""


def main():
    with atomic_path(PUBLISHED_INTERVALS) as partial:
        partial.write_text(page(), encoding="utf-8")
    print(f"written: {PUBLISHED_INTERVALS}")


if __name__ == "__main__":
    main()
