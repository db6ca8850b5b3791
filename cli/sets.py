"""Flags of what a generated set holds beside balanced classes and how it lies on the disk, and what they mean."""

import logging
import shlex
from functools import partial

from cli.flags import number
from Data.filtering import Selection, agrees, read_selection
from Data.loaders import load_splits
from Data.numbering import Balanced, Proportional, real_frequencies
from Data.resizing import resize_images
from Data.stores import FILES, STORES, TAR_IMAGES, TARS
from Experiment.errors import UserError
from Experiment.levers import HOW, OFF
from Experiment.paths import BEST_WEIGHTS, is_trained
from Experiment.records import training_record
from Models.classifiers import CLASSIFIERS
from Models.weight_cards import learned_from, other_inputs, read_card

log = logging.getLogger("experiment")

FILTER_CLASSIFIER = "resnet20"


def add_set_levers(parser):
    """The flags."""
    parser.add_argument(
        "--class_prior", default=OFF["class_prior"], choices=["balanced", "real"],
        help="as many images of each class, or as frequent as in the real training set (balanced)",
    )  # fmt: skip
    parser.add_argument(
        "--filter", nargs="?", const=0.0, type=number(0, 0.999), metavar="T",
        help="keep what a classifier trained on the real training images calls its class with a confidence above T, and "
        "make more until each class is full (off; alone: 0)",
    )  # fmt: skip
    parser.add_argument(
        "--filter_classifier", choices=list(CLASSIFIERS),
        help="kind of that classifier, which classifier_training.py --synthetic False has left (resnet20)",
    )  # fmt: skip
    parser.add_argument(
        "--store", default=HOW["store"], choices=STORES,
        help=f"{FILES}: a PNG file for each image; {TARS}: tars of about {TAR_IMAGES} of them, for file systems that do not love "
        f"many small files; shards are then made of whole tars ({FILES})",
    )  # fmt: skip


def finish_set_levers(parser, args):
    """Check these flags."""
    if args.class_prior != OFF["class_prior"] and args.img_class:
        parser.error("argument --class_prior: not allowed with --img_class, by which all classes are as frequent")
    if args.filter is None:
        if args.filter_classifier:
            parser.error("argument --filter_classifier: needs --filter")
        return
    args.filter_classifier = args.filter_classifier or FILTER_CLASSIFIER
    if args.shard[1] > 1:
        parser.error("argument --shard: not allowed with --filter, which makes more of a class until it is full")


def set_name(args):
    """What a set's name says of these flags; empty where they are off."""
    prior = "" if args.class_prior == OFF["class_prior"] else f"Prior{args.class_prior.capitalize()}"
    return prior + ("" if args.filter is None else f"Filter{args.filter:g}")


def numbering_of(args, spec, experiment, total, block):
    """What numbers the images, and facts of it for the manifest, empty for balanced classes.

    Raises:
        UserError: A class would have no image.
    """
    if args.class_prior == "balanced":
        return Balanced(spec.num_classes), {}
    labels = load_splits(spec, args.data_dir, args.seed, None, experiment).train.labels
    prior = real_frequencies(labels, spec.num_classes, total)
    return Proportional(prior, total + block), {"prior": prior}


def filter_folder(args, experiment):
    return experiment.classifier_dir(args.filter_classifier, "real")


def filter_hash(args, spec, experiment, classes):
    """What identifies the filter's weights: {"filter": SHA-256}, empty without one.

    Raises:
        UserError: There is no classifier trained on the real images of these classes; it says how to train one.
    """
    if args.filter is None:
        return {}
    folder = filter_folder(args, experiment)
    if not is_trained(folder):
        flags = ["--dataset", args.dataset, "--exp", args.exp, "--root", args.root, "--classifier", args.filter_classifier]
        command = shlex.join(map(str, ["python", "classifier_training.py", *flags, "--synthetic", False]))
        raise UserError(
            f"--filter needs a classifier that is trained on the real training images, and there is none in {folder}: {command} "
            "(and the --data_dir, --resolution, --skip_broken and --background of this command)"
        )
    if told := other_inputs(folder, {"classes": classes, "data": {"resolution": spec.resolution}}, ["resolution"]):
        raise UserError(f"--filter: the classifier in {folder} was trained on {told}.")
    return {"filter": read_card(folder / BEST_WEIGHTS)["sha256"]}


def load_judge(args, spec, experiment):
    """A function of images uint8 (n, H, H, 3) and labels (n,) that says which are kept, bool (n,)."""
    from Models.classifier import Classifier
    from Models.trained import load_best

    classifier = Classifier(args.filter_classifier, spec.resolution, spec.num_classes)
    load_best(classifier, filter_folder(args, experiment))
    as_seen = partial(resize_images, side=spec.resolution, mode="bilinear")

    def judge(images, labels):
        return agrees(classifier.probabilities(as_seen(images)), labels, args.filter)

    return judge


def generate_filtered(args, known, diffusion, writer, how):
    """Generate until every class is full of images that the filter keeps, from where an earlier run was.

    Args:
        args: The script's arguments.
        known: The script's `Plan`.
        diffusion: A `Diffusion`.
        writer: A `SyntheticWriter` with balanced numbers.
        how: Further arguments of `write_filtered`.

    Returns:
        How many images of the set this process has made.
    """
    from Models.written import write_filtered

    selection = Selection(known.folder, known.counts, known.numbering)
    selection.load()
    classes, missing = len(known.counts), writer.missing()
    if (missing // classes < selection.kept[missing % classes]).any():
        log.info("images that the filter has kept are gone: it begins again")
        selection.begin()
    before = int(selection.kept.sum())
    write_filtered(diffusion, writer, selection, load_judge(args, known.spec, known.experiment), **how)
    for name, kept, tried in zip(known.classes, selection.kept, selection.tried):
        log.info("  %-24s %d of %d candidates kept", name, kept, tried)
    return int(selection.kept.sum()) - before


def facts_of_set(args, known):
    """What the manifest says beside the settings: training images that its makers have seen, and what a filter has counted."""
    seen, facts = learned_from(known.epochs.values()), {}
    if args.filter is not None:
        data = training_record(filter_folder(args, known.experiment)).get("inputs", {}).get("data", {})
        if {"resolution", "train"} <= data.keys():
            seen += [{name: data[name] for name in ("resolution", "train")}]
        facts["filter_counts"] = read_selection(known.folder)
    return facts | ({"learned_from": seen} if seen else {})
