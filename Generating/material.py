"""What a set is made of beside the model: numbers of its images, what writes them, the filter, and facts for the manifest."""

import shlex

from Data.filtering import read_selection
from Data.loaders import load_splits
from Data.numbering import Balanced, Proportional, real_frequencies
from Data.synthetic import SyntheticWriter
from Experiment.errors import UserError
from Experiment.paths import BEST_WEIGHTS, is_trained
from Experiment.records import training_record
from Models.backbones import BACKBONES
from Models.weight_cards import learned_from, other_inputs, read_card


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


def writer_of(args, known):
    """What writes the set. A filter numbers candidates; what it keeps is numbered as if classes were balanced."""
    numbering, mark = known.numbering if args.filter is None else None, not known.settings.get("no_mark", True)
    return SyntheticWriter(known.folder, known.counts, BACKBONES[args.backbone].block, numbering, mark, args.store)


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
        flags = {"dataset": args.dataset, "exp": args.exp, "root": args.root, "classifier": args.filter_classifier}
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        command = shlex.join(["python", "classifier_training.py", *words, "--synthetic", "False"])
        raise UserError(
            f"--filter needs a classifier that is trained on the real training images, and there is none in {folder}: {command} "
            "(and the --data_dir, --resolution, --skip_broken and --background of this command)"
        )
    if told := other_inputs(folder, {"classes": classes, "data": {"resolution": spec.resolution}}, ["resolution"]):
        raise UserError(f"--filter: the classifier in {folder} was trained on {told}.")
    return {"filter": read_card(folder / BEST_WEIGHTS)["sha256"]}


def facts_of_set(args, known):
    """What the manifest says beside the settings: training images that its makers have seen, and what a filter has counted."""
    seen, facts = learned_from(known.epochs.values()), {}
    if args.filter is not None:
        data = training_record(filter_folder(args, known.experiment)).get("inputs", {}).get("data", {})
        if {"resolution", "train"} <= data.keys():
            own = {name: data[name] for name in ("resolution", "train")}
            seen += [own] * (own not in seen)
        facts["filter_counts"] = read_selection(known.folder)
    return facts | ({"learned_from": seen} if seen else {})
