"""What a classifier learns from: real images, synthetic ones, or both, with hard labels or a teacher's."""

import logging
from typing import NamedTuple

import numpy as np

from Data.registry import augmentations
from Data.soft_labels import aligned, both, smoothed, soft_labels
from Data.stored_set import StoredSet
from Experiment import presets
from Experiment.errors import UserError
from Experiment.randomness import random_stream
from Models.augment import Augment
from Models.recipes import Recipe
from Models.teacher import teacher

log = logging.getLogger("experiment")


class Material(NamedTuple):
    """Images and labels of a training, and how an epoch sees them.

    Attributes:
        images: uint8 (N, H, H, 3).
        labels: int32 (N,), or targets float32 (N, C).
        slices: How many parts of consecutive images there are, of which an epoch sees the next one.
    """

    images: np.ndarray
    labels: np.ndarray
    slices: int = 1

    def augment(self, args, spec, seed):
        """What changes the images of an epoch; None where they stay as they are."""
        names = augmentations(spec, args.augment)
        return Augment(names, len(self.images), seed) if names else None


def recipe_of(args):
    """The `Recipe` that the flags choose."""
    return Recipe(args.optimizer, args.epochs, presets.LABEL_SMOOTHING if args.labels == "hard" else 0.0)


def ask_teacher(args, known):
    """The experiment's teacher, trained if need be, as (classifier, hash); None with hard labels.

    With --augment it has learnt from augmented images as well.
    """
    if args.labels == "hard":
        return None
    data = known.inputs["data"]
    inputs = {"classes": known.classes, "data": {name: data[name] for name in ("resolution", "train", "val")}}
    folder = known.experiment.teacher_dir(args.classifier, args.augment)
    changes = augmentations(known.spec, args.augment)
    return teacher(args.classifier, known.spec, known.splits, inputs, folder, args.augment, changes)


def gather(args, known, seed, taught=None):
    """The `Material` of a training.

    Args:
        args: The script's arguments.
        known: What `plan` of the script has found.
        seed: Of the choice among more images than are wanted.
        taught: What `ask_teacher` returns.

    Raises:
        UserError: A class has too few synthetic images, there are too few real ones, or images cannot be read.
    """
    if not args.synthetic:
        return Material(*known.splits.train)
    log.info("reading %d images of %s", known.wanted, known.set_folder)
    spec, real = known.spec, round(args.real_share * known.wanted)
    stored = StoredSet(known.set_folder, spec.num_classes, spec.resolution, args.resize, known.experiment.decoded_dir)
    if stored.sha256 != known.inputs["set"]["sha256"]:  # between two repeats, or while the teacher learnt
        raise UserError(f"{known.set_folder} has changed since this training began, and what is on its record is another set.")
    rows = stored.choose(known.wanted - real, seed)
    if args.recycle:
        rows = stored.sliced(rows, seed)
    labels = stored.labels[rows]
    if taught:
        said = soft_labels(stored, *taught, known.classes)[rows]
        labels = targets(args.labels, said, labels, known.splits.train.labels)
    made = Material(stored.read(rows), labels, args.take if args.recycle else 1)
    return with_real(made, known.splits.train, real, seed) if real else made


def targets(kind, said, labels, real_labels):
    """Targets float32 (N, C) of --labels `kind`, from what a teacher says (N, C), and the classes (N,) of images and real ones."""
    if kind == "both":
        return both(said, labels, presets.LABEL_SMOOTHING)
    if kind == "aligned":
        said = aligned(said, np.bincount(real_labels, minlength=said.shape[1]))
        log.info("labels are aligned with the class frequencies of the real training images: the likeliest class is the "
                 "image's own for %.1f %%", 100 * np.mean(said.argmax(axis=1) == labels))  # fmt: skip
    return said


def with_real(made, train, count, seed):
    """Synthetic `Material` and as many real training images, drawn by seed. Beside a teacher's labels theirs are smoothed."""
    if count > len(train.labels):
        raise UserError(f"argument --real_share: {count} real images are needed, there are {len(train.labels)} to train on.")
    rows = np.sort(random_stream(seed, "real_share").permutation(len(train.labels))[:count])
    labels = train.labels[rows]
    if made.labels.ndim == 2:
        labels = smoothed(labels, made.labels.shape[1], presets.LABEL_SMOOTHING)
    log.info("%d real training images stand among %d: the result is no Classification Accuracy Score", count,
             count + len(made.labels))  # fmt: skip
    return Material(np.concatenate([made.images, train.images[rows]]), np.concatenate([made.labels, labels]))
