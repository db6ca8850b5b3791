"""Flags of what a generated set holds beside balanced classes and how it lies on the disk."""

from cli.flags import number
from Data.stores import FILES, STORES, TAR_IMAGES, TARS
from Experiment.levers import HOW, OFF
from Models.classifiers import CLASSIFIERS

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
