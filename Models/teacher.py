"""The teacher of an experiment: a classifier that has learnt from the real training images, and never saw a test image.

It gives synthetic images soft labels, and can tell which of them look like their class. It is trained once for an
experiment the paper's way, and once from augmented images if its students see those; the epoch of best validation accuracy
is kept.
"""

import argparse
import logging
import time

from Experiment import presets
from Experiment.files import read_json, write_json
from Experiment.locks import claimed, locked
from Experiment.paths import FIT_STATE, TRAINING_RECORD
from Experiment.progress import progress
from Experiment.randomness import random_stream
from Experiment.records import describe_run, finished_run, identity
from Models.augment import Augment
from Models.classifier import Classifier
from Models.fit_state import is_of_run
from Models.runtime import CHOSEN, make_repeatable
from Models.trained import load_best, train_and_save
from Models.weight_cards import teacher_hash

log = logging.getLogger("experiment")

# Of its own: with that of its pupil, both would begin with the same weights and see the same order and augmentations.
TEACHER_SEED = int(random_stream(presets.SEED, "teacher").integers(2**32))
LEAST_STEPS = 16  # in an epoch of a small dataset; the paper's batch of 256 alone would leave RetinaMNIST 5


def teacher(name, spec, splits, inputs, folder, augment="none", changes=()):
    """The experiment's teacher: loaded, or trained where there is none yet, always with the same seed of its own.

    Several processes may ask for it at the same time: one trains it, the others wait. An interrupted training goes on.

    Args:
        name: A key of `CLASSIFIERS`.
        spec: The dataset's: `resolution` and `num_classes`.
        splits: The real images: `train` and `val`, each images uint8 (N, H, H, 3) and labels int32 (N,).
        inputs: {"classes": [...], "data": {"resolution": ..., "train": hash, "val": hash}}.
        folder: Where it is kept, `Experiment.teacher_dir`.
        augment: The flag `--augment`, for its record.
        changes: What changes the images that it learns from by that: names of `Augment`.

    Returns:
        A `Classifier`, and the SHA-256 of its weights.

    Raises:
        UserError: The teacher that is there was trained on other data; it says what to remove. Or the loss is not finite.
    """
    args, record_file = teacher_arguments(name, len(splits.train.labels), augment), folder / TRAINING_RECORD
    args.seed = seed_there(folder, args, inputs)
    make_repeatable(args.seed)
    classifier = Classifier(name, spec.resolution, spec.num_classes)
    with locked(folder.with_name(folder.name + ".training")):
        if not finished_run(record_file, args, (), inputs, instead="use another --exp, or remove that folder"):
            with claimed(folder), progress(1, "teacher"):
                started = time.time()
                log.info("teacher %s on the %d real training images -> %s", name, len(splits.train.labels), folder)
                changed = Augment(changes, len(splits.train.labels), args.seed) if changes else None
                best = train_and_save(
                    classifier, splits.train, splits.val, folder, identity(args, (), inputs), epochs=args.epochs,
                    batch_size=args.batch_size, seed=args.seed, augment=changed,
                )  # fmt: skip
                write_json(record_file, describe_run(args, started, inputs, val_accuracy=best))
                (folder / FIT_STATE).unlink(missing_ok=True)
        load_best(classifier, folder)
    found = teacher_hash(folder)
    log.info("teacher: %s (weights %s)", folder, found[:8])
    return classifier, found


def seed_there(folder, args, inputs):
    """The seed of the teacher that is there or was begun: that of earlier versions was the usual one, as of their pupils."""
    record, earlier = folder / TRAINING_RECORD, argparse.Namespace(**{**vars(args), "seed": presets.SEED})
    if record.exists():
        begun = read_json(record).get("arguments", {}).get("seed") == presets.SEED
    else:
        begun = is_of_run(folder / FIT_STATE, identity(earlier, (), inputs))
    if begun:
        log.info("the teacher in %s is of an earlier version: it began with the weights that pupils with --seed %d begin with",
                 folder, presets.SEED)  # fmt: skip
    return presets.SEED if begun else TEACHER_SEED


def teacher_arguments(name, images, augment="none"):
    """What a teacher is trained with, as a run's arguments: the paper's values, with smaller batches for small datasets."""
    batch_size = max(1, min(presets.CLASSIFIER_BATCH, images // LEAST_STEPS))
    return argparse.Namespace(
        classifier=name, epochs=presets.CLASSIFIER_EPOCHS, batch_size=batch_size, seed=TEACHER_SEED, restart=False,
        augment=augment, tf32=CHOSEN["tf32"],
    )  # fmt: skip
