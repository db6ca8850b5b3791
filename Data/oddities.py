"""What is probably not meant in a dataset, and is warned of when it is loaded."""

import logging
from collections import Counter

import numpy as np

from Data.registry import class_names
from Experiment.text import first_ten, shown

log = logging.getLogger("experiment")

UNLIKE = 0.05  # share of the real training images by which 1x may differ from them without a word
DARK = 32  # grey levels


def warn_of_oddities(spec, splits):
    """Warn of what is probably not meant in the `Splits` of a `DatasetSpec`."""
    names = class_names(spec)
    warn_of_dark_classes(spec, splits, names)
    warn_of_small_classes(spec, names)
    warn_of_names_alike(spec, names)
    warn_of_another_size(spec, len(splits.train.labels))


def warn_of_dark_classes(spec, splits, names):
    """A class of a split that is all dark: its pixels may be stored in another range than the others'."""
    for split, (images, labels) in splits._asdict().items():
        brightest = np.zeros(spec.num_classes, int)
        np.maximum.at(brightest, labels, images.reshape(len(images), -1).max(axis=1))
        dark = [f"{shown(names[c])} ({brightest[c]})" for c in np.unique(labels) if brightest[c] < DARK]
        if dark:
            log.warning("%s, %s: the brightest pixel of all images of these classes is below %d of 255, stored in another range? %s",
                        spec.name, split, DARK, first_ten(dark, ", "))  # fmt: skip


def warn_of_small_classes(spec, names):
    """Classes of small photographs beside those of large ones: only theirs are enlarged."""
    if not spec.scan:
        return
    sides = [int(np.median(of_class)) for of_class in spec.scan.sides[: spec.num_classes]]
    small = [f"{shown(name)} ({side} px)" for name, side in zip(names, sides)
             if side < spec.resolution and 2 * side < max(sides)]  # fmt: skip
    if small and max(sides) >= spec.resolution:
        log.warning("%s: photographs of these classes are enlarged, those of others are not, by which a classifier may tell them: %s",
                    spec.name, first_ten(small, ", "))  # fmt: skip


def warn_of_names_alike(spec, names):
    """Classes whose names differ only in case or blanks."""

    def folded(name):
        return " ".join(name.casefold().split())

    alike = Counter(map(folded, names))
    if odd := [name for name in names if alike[folded(name)] > 1]:
        log.warning(
            "%s: class names that differ only in case or blanks are classes of their own: %s",
            spec.name,
            ", ".join(map(repr, odd[:10])),
        )


def warn_of_another_size(spec, count):
    """A folder whose real training images are not as many as were planned: copies stay together, broken ones are left out."""
    if spec.source == "folder" and abs(count - spec.train_size) > UNLIKE * count:
        log.warning(
            "%s: 1x is %d synthetic images, planned by the number of files; there are %d real training images",
            spec.name, spec.unit, count,
        )  # fmt: skip
