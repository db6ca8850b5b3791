"""Classification Accuracy Score: train a classifier on synthetic (or real) images, test it on real ones.

python classifier_training.py --dataset cifar10 --exp first --take 4
"""

import logging
import time
from pathlib import Path

from cli.flags import add_classifier_flags, boolean, check_batch_size, finish_args, integer, new_parser
from cli.levers import add_classifier_levers, add_score_flags, check_score_flags
from cli.process import run, writing_in
from cli.tasks import size
from Data.identity import data_identity
from Data.loaders import load_splits
from Data.registry import dataset_spec, tell_augmentations
from Data.synthetic import find_synthetic
from Experiment import presets
from Experiment.locks import refuse_if_claimed
from Experiment.machine import device_name
from Experiment.paths import FIT_STATE, Experiment, repeat_folder, size_name
from Experiment.plan import Plan
from Experiment.progress import FINISHED_BEFORE
from Experiment.randomness import repeat_seed
from Experiment.records import DATA_FLAGS, short
from Experiment.results import CAS_SCHEMA, TESTED, check_recipe, read_results
from Scoring.inputs import doubts_of, inputs_of, kept_of, learns_from_real, origin, taught_by, unit_of
from Scoring.repeats import check_trained, missing_repeats, not_complete, trained_repeats

log = logging.getLogger("experiment")

# Arguments that do not change the result.
FREE = (*DATA_FLAGS, "backbone", "test", "synthetic_dir", "repeats", "repeat")


def parse_args(argv=None):
    parser = new_parser(__doc__, script="classifier_training")
    add, yes = parser.add_argument, {"default": True, "type": boolean, "metavar": "{True,False}"}
    add("--synthetic", **yes, help="train on synthetic images, else on the real training images (True)")
    add("--take", default=1, type=size(integer(1, 1000)),
        help="size of the synthetic set, in real sizes; auto: task i of a batch job takes i (1)")  # fmt: skip
    add("--synthetic_dir", type=Path, help="folder of the synthetic set (else the experiment's)")
    add("--epochs", default=presets.CLASSIFIER_EPOCHS, type=integer(1), help="most epochs (100)")
    add_classifier_flags(parser)
    add_classifier_levers(parser)
    add_score_flags(parser)
    add("--train", **yes, help="train it (True)")
    add("--test", **yes, help="test it (True)")
    add("--restart", action="store_true", help="train again what an earlier run has finished")
    args = finish_args(parser, argv)
    check_score_flags(parser, args)
    if args.synthetic_dir and not args.synthetic:
        parser.error("argument --synthetic_dir: not allowed with --synthetic False")
    if not args.synthetic:  # what only synthetic images have makes no other run of it
        args.take, args.resize = parser.get_default("take"), parser.get_default("resize")
    return args


def plan(args):
    """Look at what is there.

    Returns:
        A `Plan`: the dataset's `spec` and `classes`, the `experiment`, the real `splits` (without training images where
        they are not needed), the number of images `wanted`, `source` and `cardinality` (names of the folder and of the
        result), the `folder`, the `set_folder` (None where no set is trained on), `inputs` by content, the `origin` of
        the result, the `content` of the set (the first digits of its hash, or None) and the `doubts` of what is measured, the
        `folders` of the `repeats` that there are to be, which of them earlier runs have `trained`, the `part` of the folder
        that is claimed, and when the run has `started`, s.

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
    inputs = inputs_of(args, data, set_folder, experiment)
    known = Plan(
        spec=spec, classes=inputs["classes"], experiment=experiment, splits=splits, wanted=wanted, source=source,
        cardinality=cardinality, folder=folder, set_folder=set_folder, inputs=inputs, started=time.time(),
    )  # fmt: skip
    tested = results.get(cardinality, {}).get("repeats", 1) if cardinality in results else 0
    known.repeats = args.repeats if args.restart else max(args.repeats, tested)
    known.part = f"-repeat-{args.repeat}" if args.repeat else ""
    known.folders = [repeat_folder(folder, repeat) for repeat in range(1, known.repeats + 1)]
    kept = {"content": short(inputs["set"]["sha256"])} if set_folder else {}
    if not args.train:
        check_trained(known.folders, inputs)
        kept = kept_of(folder, results.get(cardinality, {}))
    known.trained = trained_repeats(args, known, FREE)
    known.origin = origin(args, folder, set_folder, known.trained[0], data)
    known.content = kept.get("content")
    known.doubts = doubts_of(spec, splits, data, set_folder, kept.get("doubts", []))
    if not learns_from_real(args):
        known.splits = splits._replace(train=None)  # memory
    for each, trained in zip(known.folders, known.trained):
        if trained:
            (each / FIT_STATE).unlink(missing_ok=True)  # killed between the record and this
    if all(known.trained):
        if not args.test or tested == known.repeats and all((each / TESTED).exists() for each in known.folders):
            known.done = f"{FINISHED_BEFORE}: {folder} (--restart trains again)"
            return known
    elif args.repeat and not missing_repeats(args, known):
        known.done = f"{FINISHED_BEFORE}: {known.folders[args.repeat - 1]}; {not_complete(known)}"
        return known
    entry = known.origin | {"test": short(inputs["data"]["test"]), **unit_of(args, spec), **taught_by(inputs)}
    check_recipe(results, cardinality, entry, asked_for=bool(args.synthetic_dir))
    refuse_if_claimed(folder, known.part)
    return known


def train_classifier(args, known=None):
    """Step 6 of the paper: a classifier learns from synthetic images and is tested on real ones.

    Args:
        args: What `parse_args` returns.
        known: What `plan` has found, if it was asked before.

    Returns:
        {"top_1_accuracy": 0..1, "top_5_accuracy": 0..1} on test, means over the repeats; None with `--test False`, where
        nothing is to be done, and for one repeat of several while others are missing.
    """
    from Experiment.predictions import forget_result
    from Models.classifier import Classifier
    from Models.devices import sharing, start_devices
    from Models.runtime import make_repeatable
    from Models.trained import load_best, throw_away
    from Scoring.material import ask_teacher, gather, recipe_of
    from Scoring.score import progress, score, train_repeat

    known = known or plan(args)
    if known.done:
        return None
    spec, folder = known.spec, known.folder
    log.info("classifier %s on %s, %s images, %s -> %s", args.classifier, spec.name, known.source, device_name(), folder)
    missing = missing_repeats(args, known) if args.train else []
    start_devices(args)
    if missing:
        check_batch_size(args, presets.CLASSIFIER_BATCH, known.wanted // (args.take if args.recycle else 1))
        tell_augmentations(spec, args.augment)
        taught = ask_teacher(args, known)
        if taught:
            known.inputs["teacher"] = taught[1]
            trained_repeats(args, known, FREE)  # refuses to go on with those of another teacher
            make_repeatable(args.seed)
        made = gather(args, known, repeat_seed(args.seed, missing[0]), taught)
    with sharing(args.devices):
        classifier = Classifier(args.classifier, spec.resolution, spec.num_classes, recipe_of(args))
    if not missing:
        load_best(classifier, folder)

    with writing_in(folder, known.part, saved=lambda: progress(args, known)):
        if args.restart and missing:
            forget_result(known.experiment, args.classifier, known.cardinality)
            throw_away(folder)
            known.thrown_away = True
        for repeat in missing:
            if repeat > missing[0]:
                made = gather(args, known, repeat_seed(args.seed, repeat), taught)
            train_repeat(args, known, classifier, made, repeat, FREE)
        if args.repeat:
            known.trained = trained_repeats(args, known, FREE)
            if not all(known.trained):
                log.info(not_complete(known))
                return None
        if not missing and args.train:
            log.info("trained already: the weights in %s are tested (--restart trains again)", folder)
        return score(args, known, classifier) if args.test else None


if __name__ == "__main__":
    run(train_classifier, parse_args, plan)
