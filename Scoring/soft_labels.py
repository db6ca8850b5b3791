"""Soft labels of a synthetic dataset: what the teacher says of each image, kept beside the dataset.

Knowledge Recycling (arXiv 2407.15526; its code: github.com/NicoloResmini/TCKR) asks the teacher in every step, about the
augmented image, and smooths what it says by 0.1 on top. Here it is asked once, about the image as it is, so that the labels
can be published with the dataset, and its answer is the target: its softmax at temperature 1, cross-entropy, no hard label.
"""

import contextlib
import logging
import os

import numpy as np

from Experiment.files import atomic_path, plain_arrays
from Experiment.locks import locked

log = logging.getLogger("experiment")

PIECE = 2048  # images that the teacher sees at a time


def soft_labels_file(folder, teacher_hash):
    """Beside the folder of the dataset, as its sheet of samples is."""
    return folder.with_name(f"{folder.name}.soft_labels.{teacher_hash[:8]}.npz")


def soft_labels(stored, teacher, teacher_hash, set_hash, classes):
    """Class probabilities float32 (N, C) of all images of a synthetic dataset: read, or asked of the teacher and kept.

    Args:
        stored: A `StoredSet`.
        teacher: A `Classifier`.
        teacher_hash, set_hash: SHA-256 of its weights, and of the dataset.
        classes: Names of the classes, in the order of the columns.
    """
    path = soft_labels_file(stored.folder, teacher_hash)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # beside a set that others own nothing is kept, and nobody waits
            stack.enter_context(locked(path))
        return read_or_asked(path, stored, teacher, teacher_hash, set_hash, classes)


def read_or_asked(path, stored, teacher, teacher_hash, set_hash, classes):
    """The same, by one process at a time."""
    made_of = {
        "set_sha256": set_hash, "teacher_sha256": teacher_hash, "side": str(stored.side), "resize": stored.mode,
    }  # fmt: skip
    if path.exists():
        with plain_arrays(path) as data:
            same = all(name in data.files and str(data[name]) == value for name, value in made_of.items())
            if same and data["probabilities"].shape == (len(stored.names), len(classes)):
                return normalised(data["probabilities"])
    log.info("the teacher labels %d images -> %s", len(stored.names), path)
    rows = np.arange(len(stored.names))
    parts = [teacher.probabilities(stored.read(rows[i : i + PIECE])) for i in range(0, len(rows), PIECE)]
    probabilities = np.concatenate(parts).astype(np.float16)
    agreed = float(np.mean(probabilities.argmax(axis=1) == stored.labels))
    log.info("the teacher's likeliest class is the image's own for %.1f %% of them", 100 * agreed)
    files, names = np.array(list(map(os.fsencode, stored.names))), np.array(classes, dtype=np.str_)
    try:
        with atomic_path(path) as partial:
            np.savez(partial, probabilities=probabilities, files=files, classes=names, **made_of)
    except OSError as error:
        log.warning("they are not kept beside the set (%s): each run asks the teacher again", error)
    return normalised(probabilities)


def normalised(probabilities):
    """As float32, with sums of 1: those of half precision are off by up to a thousandth."""
    probabilities = probabilities.astype("float32")
    return probabilities / probabilities.sum(axis=1, keepdims=True)
