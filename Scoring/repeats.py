"""Which repeats of a training there are."""

from Experiment.errors import UserError
from Experiment.paths import TRAINING_RECORD
from Experiment.records import finished_run
from Models.weight_cards import other_inputs


def trained_repeats(args, known, free):
    """Which repeats are trained, by their records.

    Args:
        args: The script's arguments.
        known: What its `plan` has found.
        free: Names of arguments that do not change the result.
    """
    return [args.train and finished_run(each / TRAINING_RECORD, args, free, known.inputs) for each in known.folders]


def untrained(known):
    """Numbers of the repeats that are not trained, from 1."""
    return [i for i, trained in enumerate(known.trained, start=1) if not trained]


def missing_repeats(args, known):
    """The repeats that this run has to train: all that are not trained, or that of a run which is one of several.

    The last of these also trains those that an earlier result counts beyond them.
    """
    if args.repeat:
        return [i for i in untrained(known) if i == args.repeat or args.repeat == args.repeats < i]
    return untrained(known)


def not_complete(known):
    """Which repeats are not trained, in words."""
    return f"repeats that are not complete: {', '.join(map(str, untrained(known)))}"


def check_trained(folders, inputs):
    """Raise a UserError if a classifier that is to be tested as it is has learnt other classes, or sees other images.

    A published one has no record.
    """
    for folder in folders:
        if told := other_inputs(folder, inputs, ("resolution", "test"), unknown=False):
            raise UserError(f"the classifier in {folder} was trained on {told}. Run with --train True --restart.")
