"""How an image folder without splits is divided: once for an experiment, and written down."""

import logging

import numpy as np

from Data.pictures import first_ten, shown
from Experiment.errors import UserError
from Experiment.files import read_json, write_json
from Experiment.locks import locked

log = logging.getLogger("experiment")

TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1  # of an image folder without splits
VALIDATION_OF_TRAIN = 0.2  # of the training images of one with train and test
MOST_NEEDED = 1000  # images of a class: more are never the answer


def divide(labels, whole, seed):
    """Indices of train, val and, of `all`, test: stratified, in an order that the seed decides.

    Args:
        labels: int (N,).
        whole: What is divided: `all`, or `train` which gives its validation images.
        seed: The user's seed.

    Raises:
        ValueError: There are fewer images than classes in a part.
    """
    from sklearn.model_selection import train_test_split

    def hold_out(index, share):
        return train_test_split(index, test_size=share, stratify=labels[index], random_state=seed % 2**32)

    index, parts = np.arange(len(labels)), {}
    if whole == "all":
        index, parts["test"] = hold_out(index, TEST_SHARE)
        share = VALIDATION_SHARE / (1 - TEST_SHARE)
    else:
        share = VALIDATION_OF_TRAIN
    parts["train"], parts["val"] = hold_out(index, share)
    return parts


def classes_missing(labels, parts):
    """Classes without an image in one of the parts."""
    return sorted({c for part in parts.values() for c in np.setdiff1d(labels, labels[part]).tolist()})


def checked_division(labels, whole, seed, classes):
    """`divide`, with every class in each part.

    Raises:
        UserError: A class is too small; it names those that are, and how many images they need.
    """
    counts = np.bincount(labels, minlength=len(classes))
    try:
        parts = divide(labels, whole, seed)
        small = classes_missing(labels, parts)
        if not small:
            return parts
    except ValueError:  # of scikit-learn: not even one image for each class
        small = list(range(len(classes)))
    for needed in range(2, MOST_NEEDED):
        more = counts.copy()
        more[small] = np.maximum(more[small], needed)
        trial = np.repeat(np.arange(len(classes)), more)
        try:
            if not classes_missing(trial, divide(trial, whole, seed)):
                break
        except ValueError:
            pass
    named = [f"{shown(classes[c])} ({counts[c]})" for c in small if counts[c] < needed]
    raise UserError(
        f"too few images for a split with every class in each part: {first_ten(named, ', ')}; "
        f"a class here needs {needed} images. Or make the splits yourself: train/, val/ and test/."
    )


def recorded_split(experiment):
    """{split: {file: SHA-256}} of an experiment whose folder was divided before; None where it was not.

    Raises:
        UserError: The record is not one.
    """
    path = experiment.split_file if experiment else None
    if path is None or not path.exists():
        return None
    files = read_json(path).get("files")
    known = isinstance(files, dict) and set(files) >= {"train", "val"} and set(files) <= {"train", "val", "test"}
    if not known or not all(isinstance(of_split, dict) for of_split in files.values()):
        raise UserError(f"{path} is not the record of a split: restore it, or use another --exp.")
    return files


def record_split(experiment, files, seed):
    """Write down a division {split: {file: SHA-256}}; returns the one that counts, which another process may have made."""
    with locked(experiment.split_file):
        before = recorded_split(experiment)
        if before is None:
            write_json(experiment.split_file, {"seed": seed, "files": files})
            log.info("the split is kept in %s for all stages of this experiment", experiment.split_file)
    return before or files


def check_files(experiment, recorded, there):
    """Compare the files of a record with those that are there.

    Args:
        experiment: The experiment that has the record.
        recorded: {split: {file: SHA-256}}.
        there: {file: SHA-256, or None where it is not known yet}.

    Raises:
        UserError: Files are gone, new or changed; it says which, and what to do.
    """
    before = {file: digest for of_split in recorded.values() for file, digest in of_split.items()}
    changes = {
        "gone": [file for file in before if file not in there],
        "new": [file for file in there if file not in before],
        "changed": [file for file, digest in there.items() if digest and before.get(file, digest) != digest],
    }
    told = [f"{len(files)} {what} ({first_three(files)})" for what, files in changes.items() if files]
    if told:
        raise UserError(
            f"the images have changed since this experiment divided them: {'; '.join(told)}. "
            f"Put them back, or use another --exp (the record is {experiment.split_file})."
        )


def first_three(files):
    return ", ".join(map(shown, sorted(files)[:3])) + (", ..." if len(files) > 3 else "")
