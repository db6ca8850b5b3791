"""Classification Accuracy Score: train a classifier on synthetic (or real) images, test it on real ones.

python classifier_training.py --dataset cifar10 --exp 0001 --take 4
"""

import time
from pathlib import Path

from cli.flags import (
    CLASSIFIER_BATCH_SIZE,
    add_classifier_flags,
    boolean,
    check_batch_size,
    finish_args,
    integer,
    new_parser,
)
from cli.process import begin_writing, log, run, tell_if_interrupted
from cli.startup import import_keras, make_repeatable
from Experiment.errors import UserError
from Experiment.files import merge_json, write_csv, write_json
from Experiment.locks import claim
from Experiment.paths import Experiment, size_name
from Experiment.records import describe_run, finished_run, fixed_arguments
from Experiment.results import CAS_SCHEMA, read_results

# Epochs without progress in validation accuracy before the learning rate falls, and before the end (paper's code).
PATIENCE = (10, 25)
TESTED = "class_accuracies.csv"  # written last
FREE = ("root", "data_dir", "backbone", "test")  # arguments that do not change the result


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
    parser.add_argument("--epochs", default=100, type=integer(1), help="most epochs (100)")
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


def training_images(args, spec, experiment, splits):
    """What the classifier learns from, images and labels, and the folder or split it comes from."""
    from Data.synthetic import find_synthetic, load_synthetic

    if not args.synthetic:
        return splits.train, "real training images"
    wanted = args.take * spec.unit
    folder = args.synthetic_dir or find_synthetic(experiment.synthetic_root, spec.num_classes, wanted)
    log.info("reading %d images of %s", wanted, folder)
    return load_synthetic(folder, spec.num_classes, spec.resolution, wanted, args.seed, args.resize), str(folder)


def train(args, classifier, images, splits, folder):
    """Train, and write best_model, model_history.csv and training_info.csv. Returns the best validation accuracy."""
    import numpy as np

    from Models.classifier import saved_epochs
    from Models.resnet import multiply_accumulates
    from Models.weights import save_weights

    state_file = folder / "state.npz"
    tell_if_interrupted(lambda: f"{saved_epochs(state_file)} of {args.epochs} epochs are saved")
    if args.restart:
        names = (TESTED, "training.json", "state.npz", "best_model.weights.h5")
        there = [folder / name for name in names if (folder / name).exists()]
        if there:
            log.info("throwing away %s in %s", ", ".join(path.name for path in there), folder)
        for path in there:
            path.unlink()
    history, seconds = classifier.fit(
        images,
        splits.val,
        epochs=args.epochs,
        batch_size=args.batch_size,
        seed=args.seed,
        patience=PATIENCE,
        state_file=state_file,
        settings=fixed_arguments(args, FREE),
    )
    if not np.isfinite(history["loss"]).all():
        raise UserError(f"the loss is not finite after {len(seconds)} epochs: nothing is saved.")
    save_weights(classifier.model, folder / "best_model.weights.h5")
    columns = {
        "loss": "loss",
        "accuracy": "accuracy",
        "val_loss": "val_loss",
        "val_accuracy": "val_accuracy",
        "learning_rate": "lr",
    }
    write_csv(
        folder / "model_history.csv",
        [{name: history[key][i] for key, name in columns.items()} for i in range(len(seconds))],
    )
    start = time.perf_counter()
    classifier.probabilities(splits.val.images)
    best = int(np.argmax(history["val_accuracy"]))
    write_csv(
        folder / "training_info.csv",
        [
            {
                "Total Training Time (s)": sum(seconds),
                "Average Epoch Time (s)": np.mean(seconds),
                "Best Epoch": best + 1,
                "Best Score": history["val_accuracy"][best],
                "Inference Time (s)": time.perf_counter() - start,
                "Number of Parameters": classifier.model.count_params(),
                "Number of MACs": multiply_accumulates(classifier.model),
            }
        ],
    )
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


def main(args):
    from Data.registry import dataset_spec

    started = time.time()
    spec = dataset_spec(args.dataset, args.skip_broken)
    experiment = Experiment(args.root, args.exp, spec.name)
    source = size_name(args.take * spec.unit) if args.synthetic else "real"
    folder = experiment.classifier_dir(args.classifier, source)
    record_file = folder / "training.json"
    cardinality, known = f"x{args.take}" if args.synthetic else "real", None
    done = args.train and finished_run(record_file, args, FREE)
    if args.test and experiment.cas_file.exists():
        results = read_results(experiment.cas_file, CAS_SCHEMA)  # a broken one shall be told before hours of training
        known = results.get(args.classifier, {}).get(spec.name, {}).get(cardinality)
    if done:
        (folder / "state.npz").unlink(missing_ok=True)  # killed between the record and this
        if not args.test or known and (folder / TESTED).exists():
            print(f"finished already: {folder} (--restart trains again)")
            return

    claim(folder, create=False)

    # Data and model
    import_keras()
    from Data.loaders import class_names, load_splits
    from Models.classifier import Classifier, accuracies

    log.info("classifier %s on %s, %s images -> %s", args.classifier, spec.name, source, folder)
    make_repeatable(args)
    splits = load_splits(spec, args.data_dir, args.seed, spec.resolution)
    classifier = Classifier(args.classifier, spec.resolution, spec.num_classes)

    learns = args.train and not done
    if learns:
        images, origin = training_images(args, spec, experiment, splits)
        check_batch_size(args, CLASSIFIER_BATCH_SIZE, len(images[1]))
    else:
        load_best(classifier, folder)
    begin_writing(folder)

    # Training
    if learns:
        val_accuracy = train(args, classifier, images, splits, folder)
        record = describe_run(args, started, trained_on=origin, images=len(images[1]), val_accuracy=val_accuracy)
        write_json(record_file, record)
        (folder / "state.npz").unlink(missing_ok=True)
        log.info("best validation accuracy %.4f", val_accuracy)
    elif done:
        log.info("trained already: the weights in %s are tested (--restart trains again)", folder)

    # Test, on real images that nothing has been selected on
    if args.test:
        from plots import confusion_matrix, experiment_cas_curve

        load_best(classifier, folder)
        result = accuracies(classifier.probabilities(splits.test.images), splits.test.labels)
        top = {key: result[key] for key in ("top_1_accuracy", "top_5_accuracy")}
        names = class_names(spec)
        merge_json(experiment.cas_file, {args.classifier: {spec.name: {cardinality: top}}})
        picture = confusion_matrix(
            result["confusion"],
            names,
            folder / "confusion_matrix.png",
            f"{spec.name}, trained on {cardinality}: top-1 {top['top_1_accuracy']:.4f}",
        )
        experiment_cas_curve(experiment)
        write_csv(
            folder / TESTED,
            [{"class": name, "accuracy": value} for name, value in zip(names, result["class_accuracies"])],
        )
        for name, value in zip(names, result["class_accuracies"]):
            log.info("  %-24s %.4f", name, value)
        log.info("test accuracy: top-1 %.4f, top-5 %.4f -> %s, %s", *top.values(), experiment.cas_file, picture)


if __name__ == "__main__":
    run(main, parse_args)
