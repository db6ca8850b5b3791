"""What a finished pipeline shows: the table of accuracies, the seconds of its stages, its pictures and its page."""

import numpy as np

from Data.generation import sheet_file
from Data.loaders import load_splits
from Data.pictures import read_images
from Data.registry import class_names
from Data.synthetic import open_set
from Experiment.files import read_json
from Experiment.predictions import no_better_than_largest
from Experiment.results import FOUR_STEPS, all_doubts, interval_of
from sheets import MAX_SHEET_ROWS, SHEET_COLUMNS, side_by_side
from Stages.report import set_of, trained_on, write_report
from Stages.stages import MODEL, as_flags, changed, common_flags


def measured(experiment, classifier):
    """What an experiment's result files hold of its dataset: the four steps, and the entries by size of the training set."""
    steps, cas = read_json(experiment.pipeline_file), read_json(experiment.cas_file)
    return steps[experiment.dataset], cas[classifier][experiment.dataset]


def accuracy_rows(steps, cas, sizes):
    """[(what, top-1 accuracy with its 95 % interval)] of what was `measured`, text."""
    rows = [(name, sure(steps[stage][key], "top_1")) for name, (stage, key) in FOUR_STEPS.items()]
    return rows + [(f"trained on {trained_on(size, cas[size])}", sure(cas[size], "top_1_accuracy"))
                   for size in ("real", *(f"x{take}" for take in sizes))]  # fmt: skip


def sure(entry, score):
    """An accuracy and, where it was measured, its interval."""
    ends = interval_of(entry, score)
    return f"{entry[score]:.3f}" + (f"  {ends[0]:.3f} to {ends[1]:.3f}" if ends else "")


def doubts(steps, cas):
    """Lines that say why accuracies that were `measured` may be too good; none where nothing is known."""
    of = [(", of the steps", [entry for stage in steps.values() for entry in stage.values()]), ("", cas.values())]
    return [f"may be too good{which}: {text}" for which, entries in of for text in all_doubts(entries)]


def no_better(cas):
    """Lines that name the results which are not shown to be better than always naming the largest class."""
    return [f"{trained_on(size, cas[size])}: {words}" for size, words in no_better_than_largest(cas)]


def table(title, unit, rows):
    """Lines of a table of two columns of text."""
    width = max(len(title), *(len(name) for name, _ in rows))
    ruler = "-" * (width + 1 + max(len(unit), *(len(value) for _, value in rows)))
    return [f"\n{title:{width}} {unit}", ruler, *(f"{name:{width}} {value}" for name, value in rows)]


def real_beside_synthetic(experiment, spec, splits, folder):
    """A picture of eight real training images of each class beside eight synthetic ones. Returns the file.

    Args:
        experiment: The `Experiment`.
        spec: The `DatasetSpec`.
        splits: The real `Splits` at the classifier's resolution.
        folder: Of the synthetic set.
    """
    train, side, classes = splits.train, spec.resolution, class_names(spec)
    store = open_set(folder, spec.num_classes)
    real, synthetic, labels = [], [], []
    for label, of_class in enumerate(store.names[:MAX_SHEET_ROWS]):
        here = np.flatnonzero(train.labels == label)[: min(SHEET_COLUMNS, len(of_class))]
        real += list(train.images[here])
        synthetic += of_class[: len(here)]
        labels += [label] * len(here)
    titles = (f"real, {side}x{side} px", "synthetic, as the classifier sees it")
    file = experiment.images_dir / f"exp{experiment.exp}_real_beside_synthetic.png"
    shown = read_images(synthetic, side, "bilinear", store)
    return side_by_side(np.stack(real), shown, np.array(labels), classes, file, titles)


def pictures(experiment, sets):
    """Pictures that the stages have left, of these sets alone: sheets of others may outlive what they show."""
    exp, dataset = experiment.exp, experiment.dataset
    found = [sheet for folder in dict.fromkeys(sets) if (sheet := sheet_file(folder)).is_file()]
    for pattern in (
        f"optimization_plots/{exp}/{dataset}/*/history.png",
        f"optimization_plots/{exp}/top_1.png",
        f"CAS Results/CAS_plots/exp{exp}/{dataset}.png",
        f"Checkpoints/DDPM/Exp_{exp}/{dataset}/*/loss.png",
        f"Checkpoints/Classifiers/Exp_{exp}/*/{dataset}/*/confusion_matrix.png",
    ):
        found += sorted(experiment.root.glob(pattern))
    return found


def outcome(args, spec, experiment, classifier, stages, seconds):
    """All lines that the pipeline ends with.

    Args:
        args: The pipeline's arguments.
        spec: The `DatasetSpec`.
        experiment: The `Experiment`.
        classifier: Name of the classifier.
        stages: A list of `Stage`.
        seconds: {name of a stage, or `all`: s}.
    """
    splits = load_splits(spec, args.data_dir, args.seed, spec.resolution, experiment)
    count = len(splits.test.labels)
    sets = [set_of(experiment, spec, classifier, take) for take in args.sizes]
    drawn = real_beside_synthetic(experiment, spec, splits, sets[0])
    common = common_flags(args) + as_flags(changed(args, MODEL))  # of the page's command for an audit
    page = write_report(experiment, spec, splits, classifier, stages, seconds, args.sizes, sets, drawn, common)
    steps, cas = measured(experiment, classifier)
    title = f"accuracy on {count} real test images"
    largest = ("always naming the largest class", f"{np.bincount(splits.test.labels).max() / count:.3f}")
    took = [(stage, f"{spent:7.0f}") for stage, spent in seconds.items()]
    return [
        *table(title, "top-1  95 % interval", [*accuracy_rows(steps, cas, args.sizes), largest]),
        *no_better(cas),
        *doubts(steps, cas),
        *table("stage, time in this run", "seconds", took),
        f"\npage for a browser: {page}",
        "\npictures:",
        *(f"  {path}" for path in [drawn, *pictures(experiment, sets)]),
    ]
