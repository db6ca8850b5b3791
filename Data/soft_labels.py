"""Soft labels of a synthetic dataset: what the teacher says of each image, kept beside the dataset.

Knowledge Recycling (arXiv 2407.15526; its code: github.com/NicoloResmini/TCKR) asks the teacher in every step, about the
augmented image, and smooths what it says by 0.1 on top. Here it is asked once, about the image as it is, so that the labels
can be published with the dataset, and its answer is the target: its softmax at temperature 1, cross-entropy, no hard label.
"""

import contextlib
import glob
import logging
import os

import numpy as np

from Experiment.files import atomic_path, plain_arrays
from Experiment.locks import locked
from Experiment.text import first_ten

log = logging.getLogger("experiment")

PIECE = 2048  # images that the teacher sees at a time
ROUNDS, TINY = 100, 1e-6  # of the alignment; what every class has at least, so that none has a mean of 0
NAME = "{}.soft_labels.{}.npz"  # beside the folder of the dataset, as its sheet of samples is; of the teacher 8 digits


def soft_labels(stored, teacher, teacher_hash, classes):
    """Class probabilities float32 (N, C) of all images of a synthetic dataset: read, or asked of the teacher and kept.

    Args:
        stored: A `StoredSet`.
        teacher: A `Classifier`.
        teacher_hash: SHA-256 of its weights.
        classes: Names of the classes, in the order of the columns.
    """
    path = stored.folder.with_name(NAME.format(stored.folder.name, teacher_hash[:8]))
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # beside a set that others own nothing is kept, and nobody waits
            stack.enter_context(locked(path))
        return read_or_asked(path, stored, teacher, teacher_hash, classes)


def read_or_asked(path, stored, teacher, teacher_hash, classes):
    """The same, by one process at a time."""
    made_of = {
        "set_sha256": stored.sha256, "teacher_sha256": teacher_hash, "side": str(stored.side), "resize": stored.mode,
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
    files, names = np.array(as_kept(stored.names)), np.array(classes, dtype=np.str_)
    try:
        with atomic_path(path) as partial:
            np.savez(partial, probabilities=probabilities, files=files, classes=names, **made_of)
    except OSError as error:
        log.warning("they are not kept beside the set (%s): each run asks the teacher again", error)
    return normalised(probabilities)


def aligned(probabilities, counts):
    """Class probabilities float32 (N, C) whose means are the class shares of `counts` (C,): the same evidence on another prior.

    Of images that look like no class of its own a teacher says some classes far more often than others, and its pupil learns
    that they are more frequent. Each column is weighted so that this ends, as in the distribution alignment of ReMixMatch
    (arXiv 1911.09785), here over all images at once and until the means hold.
    """
    shares, found = counts / counts.sum(), probabilities.astype(float) + TINY
    for _ in range(ROUNDS):
        found *= shares / found.mean(axis=0)
        found /= found.sum(axis=1, keepdims=True)
    return found.astype("float32")


def both(probabilities, labels, smoothing):
    """Targets float32 (N, C): half of what a teacher says (N, C), half the class (N,) that each image was made as, smoothed.

    The two err elsewhere: what was made as a frog and resembles nothing is a cat to the teacher. The cross-entropy with their
    mean is the mean of the two losses of distillation (Hinton et al. 2015, arXiv 1503.02531, section 2), at temperature 1.
    """
    return (probabilities + smoothed(labels, probabilities.shape[1], smoothing)) / 2


def smoothed(labels, classes, smoothing):
    """Targets float32 (N, C) of classes int (N,), of each of which the share `smoothing` is spread over all classes."""
    return (1 - smoothing) * np.eye(classes, dtype="float32")[labels] + np.float32(smoothing / classes)


def as_kept(names):
    """Names of images as the file has them: a list of bytes."""
    return list(map(os.fsencode, names))


def kept_soft_labels(folder, set_hash, names):
    """Class probabilities float32 (N, C) that a teacher, whichever, has given to the images of a set, from the file beside it.

    Args:
        folder: Of the set.
        set_hash: SHA-256 of its content, for which they must be.
        names: Names of its images, class by class.

    Returns:
        None where there are none, or those of several teachers.
    """
    found, listed = {}, as_kept(names)
    for path in sorted(folder.parent.glob(NAME.format(glob.escape(folder.name), "*"))):
        with plain_arrays(path) as data:
            whole = all(name in data.files for name in ("probabilities", "files", "set_sha256"))
            if whole and str(data["set_sha256"]) == set_hash and data["files"].tolist() == listed:
                found[path.name] = data["probabilities"]
    if len(found) > 1:
        log.warning("soft labels of several teachers are there, none of them goes along: %s", first_ten(found, ", "))
    return normalised(*found.values()) if len(found) == 1 else None


def normalised(probabilities):
    """As float32, with sums of 1: those of half precision are off by up to a thousandth."""
    probabilities = probabilities.astype("float32")
    return probabilities / probabilities.sum(axis=1, keepdims=True)
