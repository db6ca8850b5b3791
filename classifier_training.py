"""Classification Accuracy Score: train a classifier on synthetic (or real) images, test it on real ones.

python classifier_training.py --dataset cifar10 --exp 0001 --take 4
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cli.flags import add_classifier_flags, boolean, check_batch_size, finish_args, integer, new_parser
from cli.process import run, writing_in
from Data.loaders import class_names, load_splits
from Data.registry import DatasetSpec, dataset_spec
from Data.synthetic import find_synthetic, load_synthetic
from Experiment import presets
from Experiment.errors import UserError
from Experiment.files import merge_json, write_csv, write_json
from Experiment.locks import claim
from Experiment.paths import Experiment, size_name
from Experiment.records import describe_run, finished_run, fixed_arguments
from Experiment.results import CAS_SCHEMA, read_results

log = logging.getLogger("experiment")

TESTED = "class_accuracies.csv"  # written last
FREE = ("root", "data_dir", "backbone", "test")  # arguments that do not change the result
# Column of model_history.csv, and Keras's name.
HISTORY = {
    "loss": "loss", "accuracy": "accuracy", "val_loss": "val_loss", "val_accuracy": "val_accuracy", "learning_rate": "lr"
}  # fmt: skip


def parse_args(argv=None):
    parser = new_parser(__doc__)
    parser.add_argument(
        "--synthetic",
        default=True,
        type=boolean,
        metavar="{True,False}",
        help="train on synthetic images, else on the real training images (True)",
    )
    parser.add_argument("--take", default=1, type=integer(1, 1000), help="size of the synthetic set, in real sizes (1)")
    parser.add_argument("--synthetic_dir", type=Path, help="folder of the synthetic set (else the experiment's)")
    parser.add_argument("--epochs", default=presets.CLASSIFIER_EPOCHS, type=integer(1), help="most epochs (100)")
    add_classifier_flags(parser)
    parser.add_argument("--train", default=True, type=boolean, metavar="{True,False}", help="train it (True)")
    parser.add_argument("--test", default=True, type=boolean, metavar="{True,False}", help="test it (True)")
    parser.add_argument("--restart", action="store_true", help="train again what an earlier run has finished")
    args = finish_args(parser, argv)
    if args.synthetic_dir:
        args.synthetic_dir = args.synthetic_dir.expanduser().resolve()
        if not args.synthetic:
            parser.error("argument --synthetic_dir: not allowed with --synthetic False")
        if not args.synthetic_dir.is_dir():
            parser.error(f"argument --synthetic_dir: there is no folder {args.synthetic_dir}")
    return args


@dataclass
class Plan:
    """What is known of a run before anything heavy is loaded.

    Attributes:
        spec: The dataset's.
        experiment: Where everything lies.
        source: `real`, or the size of the synthetic set: names the folder.
        cardinality: `real` or `x1`, `x2` ...: names the result.
        folder: Of the classifier.
        trained: Whether an earlier run has trained it.
        done: A line where there is nothing to do.
    """

    spec: DatasetSpec
    experiment: Experiment
    source: str
    cardinality: str
    folder: Path
    trained: bool = False
    done: str = None


def plan(args):
    """Look at what is there.

    Raises:
        UserError: The run cannot begin: other arguments, broken results, another process at work.
    """
    spec = dataset_spec(args.dataset, args.skip_broken, args.resolution, args.background)
    experiment = Experiment(args.root, args.exp, spec.name)
    source, cardinality = (size_name(args.take * spec.unit), f"x{args.take}") if args.synthetic else ("real", "real")
    known = Plan(spec, experiment, source, cardinality, experiment.classifier_dir(args.classifier, source))
    known.trained = args.train and finished_run(known.folder / "training.json", args, FREE)
    result = None
    if args.test and experiment.cas_file.exists():
        results = read_results(experiment.cas_file, CAS_SCHEMA)  # reject a broken file before hours of training
        result = results.get(args.classifier, {}).get(spec.name, {}).get(cardinality)
    if known.trained:
        (known.folder / "state.npz").unlink(missing_ok=True)  # killed between the record and this
        if not args.test or result and (known.folder / TESTED).exists():
            known.done = f"finished already: {known.folder} (--restart trains again)"
    if not known.done:
        claim(known.folder, create=False)
    return known


def training_images(args, known, splits):
    """What the classifier learns from, images and labels, and the folder or split it comes from."""
    if not args.synthetic:
        return splits.train, "real training images"
    spec = known.spec
    wanted = args.take * spec.unit
    folder = args.synthetic_dir or find_synthetic(known.experiment.synthetic_root, spec.num_classes, wanted)
    log.info("reading %d images of %s", wanted, folder)
    return load_synthetic(folder, spec.num_classes, spec.resolution, wanted, args.seed, args.resize), str(folder)


def throw_away(folder):
    """Remove what an earlier run has left."""
    names = (TESTED, "training.json", "state.npz", "best_model.weights.h5")
    there = [folder / name for name in names if (folder / name).exists()]
    if there:
        log.info("throwing away %s in %s", ", ".join(path.name for path in there), folder)
    for path in there:
        path.unlink()


def train(args, classifier, images, splits, folder):
    """Train, and write best_model, model_history.csv and training_info.csv. Returns the best validation accuracy."""
    from Models.resnet import multiply_accumulates
    from Models.weights import save_weights

    if args.restart:
        throw_away(folder)
    history, seconds = classifier.fit(
        images,
        splits.val,
        epochs=args.epochs,
        batch_size=args.batch_size,
        seed=args.seed,
        patience=presets.CLASSIFIER_PATIENCE,
        state_file=folder / "state.npz",
        settings=fixed_arguments(args, FREE),
    )
    if not np.isfinite(history["loss"]).all():
        raise UserError(f"the loss is not finite after {len(seconds)} epochs: nothing is saved.")
    save_weights(classifier.model, folder / "best_model.weights.h5")
    rows = [{column: history[key][i] for key, column in HISTORY.items()} for i in range(len(seconds))]
    write_csv(folder / "model_history.csv", rows)
    start = time.perf_counter()
    classifier.probabilities(splits.val.images)
    best = int(np.argmax(history["val_accuracy"]))
    info = {
        "Total Training Time (s)": sum(seconds),
        "Average Epoch Time (s)": np.mean(seconds),
        "Best Epoch": best + 1,
        "Best Score": history["val_accuracy"][best],
        "Inference Time (s)": time.perf_counter() - start,
        "Number of Parameters": classifier.model.count_params(),
        "Number of MACs": multiply_accumulates(classifier.model),
    }
    write_csv(folder / "training_info.csv", [info])
    return history["val_accuracy"][best]


def load_best(classifier, folder):
    """Load the trained weights: ours, or a published best_model.h5, some of which lie one folder deeper.

    Raises:
        UserError: There are none.
    """
    from Models.weights import load_weights

    names = ["best_model.weights.h5", "best_model.h5/best_model.h5", "best_model.h5"]
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise UserError(f"there is no trained classifier in {folder} ({' or '.join(names)}): run with --train True.")
    load_weights(classifier.model, found[0])


def measure(args, known, classifier, images, labels):
    """Test on real images that nothing has been selected on: accuracies as JSON and CSV, and pictures.

    Returns:
        {"top_1_accuracy": 0..1, "top_5_accuracy": 0..1}
    """
    from Models.classifier import accuracies
    from plots import confusion_matrix, experiment_cas_curve

    spec, experiment, folder = known.spec, known.experiment, known.folder
    result = accuracies(classifier.probabilities(images), labels)
    top = {key: result[key] for key in ("top_1_accuracy", "top_5_accuracy")}
    names = class_names(spec)
    merge_json(experiment.cas_file, {args.classifier: {spec.name: {known.cardinality: top}}})
    title = f"{spec.name}, trained on {known.cardinality}: top-1 {top['top_1_accuracy']:.4f}"
    picture = confusion_matrix(result["confusion"], names, folder / "confusion_matrix.png", title)
    experiment_cas_curve(experiment)
    by_class = [{"class": name, "accuracy": value} for name, value in zip(names, result["class_accuracies"])]
    write_csv(folder / TESTED, by_class)
    for row in by_class:
        log.info("  %-24s %.4f", row["class"], row["accuracy"])
    log.info("test accuracy: top-1 %.4f, top-5 %.4f -> %s, %s", *top.values(), experiment.cas_file, picture)
    return top


def train_classifier(args, known=None):
    """Step 6 of the paper: a classifier learns from synthetic images and is tested on real ones.

    Args:
        args: What `parse_args` returns.
        known: What `plan` has found, if it was asked before.

    Returns:
        Test accuracies, as `measure` returns them; None with `--test False` or where there is nothing to do.
    """
    from Models.classifier import Classifier
    from Models.fit_state import saved_epochs
    from Models.runtime import make_repeatable

    started = time.time()
    known = known or plan(args)
    if known.done:
        return None
    spec, folder = known.spec, known.folder
    log.info("classifier %s on %s, %s images -> %s", args.classifier, spec.name, known.source, folder)
    make_repeatable(args.seed, args.deterministic)
    splits = load_splits(spec, args.data_dir, args.seed, spec.resolution, known.experiment)
    classifier = Classifier(args.classifier, spec.resolution, spec.num_classes)
    learns = args.train and not known.trained
    if learns:
        images, origin = training_images(args, known, splits)  # (uint8 (N, H, H, 3), int32 (N,))
        check_batch_size(args, presets.CLASSIFIER_BATCH, len(images[1]))
    else:
        load_best(classifier, folder)

    state_file = folder / "state.npz"
    with writing_in(folder, saved=lambda: f"{saved_epochs(state_file)} of {args.epochs} epochs are saved"):
        if learns:
            best = train(args, classifier, images, splits, folder)
            record = describe_run(args, started, trained_on=origin, images=len(images[1]), val_accuracy=best)
            write_json(folder / "training.json", record)
            state_file.unlink(missing_ok=True)
            log.info("best validation accuracy %.4f", best)
        elif known.trained:
            log.info("trained already: the weights in %s are tested (--restart trains again)", folder)
        if not args.test:
            return None
        load_best(classifier, folder)
        return measure(args, known, classifier, *splits.test)


if __name__ == "__main__":
    run(train_classifier, parse_args, plan)
