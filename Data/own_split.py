"""How an image folder without splits is divided: once for an experiment, and written down."""

import contextlib
import functools
import hashlib
import json
import logging
import math
import os
import unicodedata
from typing import NamedTuple

import numpy as np

from Data.parallel import in_chunks
from Experiment.errors import UserError
from Experiment.files import atomic_path, file_hash, read_json
from Experiment.locks import locked
from Experiment.text import first_ten, shown

log = logging.getLogger("experiment")

TEST_SHARE = 0.2  # of an image folder without splits
SHARE_TO_VALIDATE = {"all": 0.125, "train": 0.2}  # of what is then left; of the training images that there are
BEGINNING = 4096  # bytes of a file: other ones seldom begin alike
MOST_NEEDED = 1000  # images of a class: more are never the answer


def train_count(count, whole):
    """How many of `count` images `divide` leaves to train: what it holds out is rounded up, as scikit-learn does."""
    if whole == "all":
        count -= math.ceil(TEST_SHARE * count)
    return count - math.ceil(SHARE_TO_VALIDATE[whole] * count)


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
    parts["train"], parts["val"] = hold_out(index, SHARE_TO_VALIDATE[whole])
    return parts


def classes_missing(labels, parts):
    """Classes without an image in one of the parts."""
    return sorted({c for part in parts.values() for c in np.setdiff1d(labels, labels[part]).tolist()})


def first_copies(root, files, labels):
    """For each file the index of the first one of its class with the same bytes, int (N,): its own where there is none before it.

    A file is read as a whole only where size and beginning are those of another one. One that cannot be read has no copy
    here: loading tells of it.

    Args:
        root: The folder.
        files: Their paths in it.
        labels: int (N,). Equal images of different classes are no copies: both are warned of once they are loaded.
    """
    first, seen, sizes = np.arange(len(files)), {}, np.full(len(files), -1)
    begins = np.zeros(len(files), "S16")

    def look(i):
        with contextlib.suppress(OSError), open(os.path.join(root, files[i]), "rb") as file:
            begins[i] = hashlib.blake2b(file.read(BEGINNING), digest_size=16).digest()
            sizes[i] = os.fstat(file.fileno()).st_size

    in_chunks(look, len(files))
    for same in groups(np.rec.fromarrays([labels, sizes, begins])):
        for i in same if sizes[same[0]] >= 0 else ():
            with contextlib.suppress(OSError):
                first[i] = seen.setdefault((labels[i], file_hash(root / files[i])), i)
    return first


def groups(values):
    """Indices of equal values of an array, ascending: a list of arrays, those of one alone left out."""
    order = np.argsort(values, kind="stable")
    ends = np.flatnonzero(values[order][1:] != values[order][:-1]) + 1
    return [same for same in np.split(order, ends) if len(same) > 1]


def checked_division(labels, whole, seed, classes, first=None):
    """`divide`, with every class in each part.

    Args:
        labels: int (N,).
        whole, seed: As in `divide`.
        classes: Names of the classes.
        first: What `first_copies` returns: copies count once, and come into the part of the first of them.

    Raises:
        UserError: A class is too small; it names those that are, and how many images they need.
    """
    if first is not None and (copies := np.flatnonzero(first != np.arange(len(first)))).size:
        return with_copies(labels, whole, seed, classes, first, copies)
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
        f"too few images, copies not counted, for a split with every class in each part: {first_ten(named, ', ')}; "
        f"a class here needs {needed} images. Or make the splits yourself: train/, val/ and test/."
    )


def with_copies(labels, whole, seed, classes, first, copies):
    """`checked_division` of what are no copies; these follow the first of them."""
    log.info("%d files are copies of others: each comes into the same part as the first", len(copies))
    alone = np.setdiff1d(np.arange(len(first)), copies)
    parts = checked_division(labels[alone], whole, seed, classes)
    return {name: np.concatenate([alone[part], copies[np.isin(first[copies], alone[part])]]) for name, part in parts.items()}


class Recorded(NamedTuple):
    """Files of a split in their order, and their SHA-256 as uint8 (N, 32), zeros where a file could not be opened."""

    files: list
    digests: np.ndarray


def recorded_split(experiment):
    """{split: Recorded} of an experiment whose folder was divided before; None where it was not.

    Raises:
        UserError: The record is not one.
    """
    path = experiment.split_file if experiment else None
    if path is None or not path.exists():
        return None
    files = read_json(path).get("files")
    try:
        if not {"train", "val"} <= set(files) <= {"train", "val", "test"}:
            raise ValueError
        return {split: Recorded(list(of_split), from_hex(of_split.values())) for split, of_split in files.items()}
    except (TypeError, ValueError, AttributeError):
        raise UserError(f"{path} is not the record of a split: restore it, or use another --exp.") from None


def from_hex(texts):
    digests = np.zeros((len(texts), 32), np.uint8)
    for digest, text in zip(digests, texts):
        raw = bytes.fromhex(text)
        if len(raw) != 32:
            raise ValueError(text)
        digest[:] = np.frombuffer(raw, np.uint8)
    return digests


def record_split(experiment, made, seed):
    """Write down a division {split: Recorded}; returns that of another process instead, if one was first, or None."""
    with locked(experiment.split_file):
        before = recorded_split(experiment)
        if before is None:
            with atomic_path(experiment.split_file) as partial, open(partial, "w") as file:
                file.write(f'{{"seed": {seed}, "files": {{')  # line by line: a dump would need the images' memory again
                for i, (split, (files, digests)) in enumerate(made.items()):
                    file.write(f'{"," * (i > 0)}\n"{split}": {{')
                    for j, (name, digest) in enumerate(zip(files, digests)):
                        file.write(f'{"," * (j > 0)}\n  {json.dumps(name)}: "{digest.tobytes().hex()}"')
                    file.write("\n}")
                file.write("\n}}\n")
            what = "test and validation images" if "test" in made else "validation images"
            log.info("%s were taken at random (photographs of one object, person or burst may stand on both sides: make the splits "
                     "yourself if there are such); the split is kept in %s for all stages of this experiment", what,
                     experiment.split_file)  # fmt: skip
    return before


def places_of(experiment, recorded, there):
    """{split: indices int (n,) into `there`}: where the files of a record stand in the list of those that are there.

    Raises:
        UserError: Files are gone or new; it says which, and what to do.
    """
    names = [file for of_split in recorded.values() for file in of_split.files]
    # Systems store letters with accents in several Unicode forms, and copying may change it.
    plain = functools.partial(unicodedata.normalize, "NFC")
    if any(len({plain(file) for file in files}) < len(files) for files in (names, there)):
        plain = str  # two files have one name but for the form
    place = {plain(file): i for i, file in enumerate(there)}
    known = {plain(file) for file in names}
    if known != place.keys():
        refuse_changes(experiment, {"gone": known - place.keys(), "new": place.keys() - known})
    return {split: np.array([place[plain(file)] for file in of_split.files], np.int64)
            for split, of_split in recorded.items()}  # fmt: skip


def check_digests(experiment, recorded, read):
    """Compare the files that were read, {split: Recorded} in the order of the record, with the record.

    Raises:
        UserError: Files have changed; it says which, and what to do.
    """
    refuse_changes(
        experiment,
        {
            "changed": {
                files[i]
                for split, (files, digests) in read.items()
                for i in np.flatnonzero((digests != recorded[split].digests).any(axis=1))
            }
        },
    )


def refuse_changes(experiment, changes):
    told = [f"{len(files)} {what} ({first_three(files)})" for what, files in changes.items() if files]
    if told:
        raise UserError(
            f"the images have changed since this experiment divided them: {'; '.join(told)}. "
            f"Put them back, or use another --exp (the record is {experiment.split_file})."
        )


def first_three(files):
    return ", ".join(map(shown, sorted(files)[:3])) + (", ..." if len(files) > 3 else "")
