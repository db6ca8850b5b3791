"""Classification Accuracy Score: train a classifier on synthetic (or real) images, test it on real ones.

python classifier_training.py --dataset cifar10 --exp 0001 --take 4
"""

import logging
import time
from pathlib import Path

from cli.flags import add_classifier_flags, boolean, check_batch_size, finish_args, integer, new_parser
from cli.process import run, writing_in
from Data.loaders import data_identity, load_splits
from Data.registry import dataset_spec
from Data.synthetic import find_synthetic, load_synthetic, recipe, set_identity
from Experiment import presets
from Experiment.files import read_json, write_json
from Experiment.locks import refuse_if_claimed
from Experiment.paths import Experiment, size_name
from Experiment.plan import Plan
from Experiment.records import DATA_FLAGS, describe_run, finished_run, identity
from Experiment.results import CAS_SCHEMA, TESTED, check_recipe, read_results

log = logging.getLogger("experiment")

FREE = (*DATA_FLAGS, "backbone", "test", "synthetic_dir")  # arguments that do not change the result


def parse_args(argv=None):
    parser = new_parser(__doc__)
    add, yes = parser.add_argument, {"default": True, "type": boolean, "metavar": "{True,False}"}
    add("--synthetic", **yes, help="train on synthetic images, else on the real training images (True)")
    add("--take", default=1, type=integer(1, 1000), help="size of the synthetic set, in real sizes (1)")
    add("--synthetic_dir", type=Path, help="folder of the synthetic set (else the experiment's)")
    add("--epochs", default=presets.CLASSIFIER_EPOCHS, type=integer(1), help="most epochs (100)")
    add_classifier_flags(parser)
    add("--train", **yes, help="train it (True)")
    add("--test", **yes, help="test it (True)")
    add("--restart", action="store_true", help="train again what an earlier run has finished")
    args = finish_args(parser, argv)
    if args.synthetic_dir:
        args.synthetic_dir = args.synthetic_dir.expanduser().resolve()
        if not args.synthetic:
            parser.error("argument --synthetic_dir: not allowed with --synthetic False")
        if not args.synthetic_dir.is_dir():
            parser.error(f"argument --synthetic_dir: there is no folder {args.synthetic_dir}")
    return args


def plan(args):
    """Look at what is there.

    Returns:
        A `Plan`: the dataset's `spec` and `classes`, the `experiment`, the real `splits` (without training images where
        they are not needed), the number of images `wanted`, `source` and `cardinality` (names of the folder and of the
        result), the `folder`, the `set_folder` (None where no set is trained on), `inputs` by content, the `origin` of
        the result, and whether an earlier run has `trained`.

    Raises:
        UserError: The run cannot begin: other arguments or inputs, no fitting set, broken results, another process at work.
    """
    spec = dataset_spec(args.dataset, args.skip_broken, args.resolution, args.background)
    experiment = Experiment(args.root, args.exp, spec.name)
    # Reject broken results before hours of training.
    results = read_results(experiment.cas_file, CAS_SCHEMA) if args.test and experiment.cas_file.exists() else {}
    results, set_folder = results.get(args.classifier, {}).get(spec.name, {}), None
    wanted = args.take * spec.unit
    source, cardinality = (size_name(wanted), f"x{args.take}") if args.synthetic else ("real", "real")
    folder = experiment.classifier_dir(args.classifier, source)
    if args.synthetic and args.train:
        set_folder = args.synthetic_dir or find_synthetic(experiment.synthetic_root, spec.num_classes, wanted)
    splits = load_splits(spec, args.data_dir, args.seed, spec.resolution, experiment)
    wanted = wanted if args.synthetic else len(splits.train.labels)
    data = data_identity(splits, spec)
    read = ("resolution", "val", "test") if args.synthetic else ("resolution", "train", "val", "test")
    inputs = {"classes": data["classes"], "data": {name: data[name] for name in read}}
    if set_folder:
        inputs["set"] = set_identity(set_folder, data["classes"])
    trained = args.train and finished_run(folder / "training.json", args, FREE, inputs)
    if args.synthetic:
        splits = splits._replace(train=None)  # memory
    known = Plan(
        spec=spec, classes=data["classes"], experiment=experiment, splits=splits, wanted=wanted, source=source,
        cardinality=cardinality, folder=folder, set_folder=set_folder, inputs=inputs,
        origin=origin(args, folder, set_folder, trained), trained=trained,
    )  # fmt: skip
    if trained:
        (folder / "state.npz").unlink(missing_ok=True)  # killed between the record and this
        if not args.test or cardinality in results and (folder / TESTED).exists():
            known.done = f"finished already: {folder} (--restart trains again)"
            return known
    check_recipe(results, cardinality, known.origin, asked_for=bool(args.synthetic_dir))
    refuse_if_claimed(folder)
    return known


def origin(args, folder, set_folder, trained):
    """What a result says of where it comes from: {"set": {setting: value}, "training": {setting: value}}, or less.

    Of a classifier that is trained already it is what its record says; a published one has none.
    """
    if trained or not args.train:
        record = read_json(folder / "training.json") if (folder / "training.json").exists() else {}
        return {key: record[key] for key in ("set", "training") if isinstance(record.get(key), dict)}
    training = {name: getattr(args, name) for name in ("seed", "epochs", "batch_size")}
    if not set_folder:
        return {"training": training}
    made = {"folder": set_folder.name, **recipe(set_folder)}
    return {"set": made, "training": {**training, "resize": args.resize}}


def training_images(args, known):
    """What the classifier learns from, images uint8 (N, H, H, 3) and labels int32 (N,)."""
    if not args.synthetic:
        return known.splits.train
    log.info("reading %d images of %s", known.wanted, known.set_folder)
    return load_synthetic(
        known.set_folder, known.spec.num_classes, known.spec.resolution, known.wanted, args.seed, args.resize,
        known.experiment.decoded_dir,
    )  # fmt: skip


def train_classifier(args, known=None):
    """Step 6 of the paper: a classifier learns from synthetic images and is tested on real ones.

    Args:
        args: What `parse_args` returns.
        known: What `plan` has found, if it was asked before.

    Returns:
        {"top_1_accuracy": 0..1, "top_5_accuracy": 0..1} on test; None with `--test False` or where nothing is to be done.
    """
    from Models.classifier import Classifier
    from Models.fit_state import saved_epochs
    from Models.runtime import make_repeatable
    from Models.trained import load_best, measure, throw_away, train_and_save

    started = time.time()
    known = known or plan(args)
    if known.done:
        return None
    spec, folder, val = known.spec, known.folder, known.splits.val
    log.info("classifier %s on %s, %s images -> %s", args.classifier, spec.name, known.source, folder)
    make_repeatable(args.seed, args.deterministic)
    classifier = Classifier(args.classifier, spec.resolution, spec.num_classes)
    learns = args.train and not known.trained
    if learns:
        check_batch_size(args, presets.CLASSIFIER_BATCH, known.wanted)
        images = training_images(args, known)  # (uint8 (N, H, H, 3), int32 (N,))
    else:
        load_best(classifier, folder)

    state_file = folder / "state.npz"
    with writing_in(folder, saved=lambda: f"{saved_epochs(state_file)} of {args.epochs} epochs are saved"):
        if learns:
            if args.restart:
                throw_away(folder)
            best = train_and_save(
                classifier, images, val, folder, identity(args, FREE, known.inputs), epochs=args.epochs,
                batch_size=args.batch_size, seed=args.seed,
            )  # fmt: skip
            facts = {"trained_on": str(known.set_folder or "real training images"), "images": len(images[1])}
            record = describe_run(args, started, known.inputs, **facts, val_accuracy=best, **known.origin)
            write_json(folder / "training.json", record)
            state_file.unlink(missing_ok=True)
            log.info("best validation accuracy %.4f", best)
        elif known.trained:
            log.info("trained already: the weights in %s are tested (--restart trains again)", folder)
        if not args.test:
            return None
        load_best(classifier, folder)
        names = (args.classifier, spec.name, known.cardinality)
        return measure(classifier, known.splits.test, known.classes, folder, known.experiment, names, known.origin)


if __name__ == "__main__":
    run(train_classifier, parse_args, plan)
