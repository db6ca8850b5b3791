"""Samples of a set and of real images in which classes are equally frequent: else their shares are compared, not the images."""

import numpy as np

from Audit.material import SAMPLE
from Experiment.text import shown

APART = 0.05  # share of images that would need another class; random splits of a thousand images differ by less
ENOUGH = 100  # images below which chance moves the figures more than unequal shares do
EQUAL, UNEQUAL = (
    "the overall samples are drawn with the class shares of the training images",
    "overall KID, precision, recall, density and coverage include this difference, see the single classes",
)


def shares(counts):
    """Shares of the classes (..., K) of their counts."""
    return counts / counts.sum(axis=-1, keepdims=True)


def apart(counts):
    """Total variation (S,), 0..1, between the class shares of each side and those of the first, from counts (S, K)."""
    of_sides = shares(counts)
    return np.abs(of_sides - of_sides[0]).sum(axis=1) / 2


def class_counts(labels, num_classes):
    """Images of each class (S, K) in labels int (N,) of each of S sides."""
    return np.stack([np.bincount(side, minlength=num_classes) for side in labels])


def unequal(counts, classes):
    """That classes are not equally frequent, and the one of which the shares differ most; empty where they nearly are.

    Args:
        counts: Images of each class (3, K): of the training images, the set, and the held-out images.
        classes: Their names.
    """
    if apart(counts).max() <= APART:
        return ""
    of_sides = 100 * shares(counts)
    label = np.ptp(of_sides, axis=0).argmax()
    train, fake, held_out = of_sides[:, label]
    return (
        f"classes are not equally frequent in the set and in the real images ({shown(classes[label])}: {fake:.0f} % of the set, "
        f"{train:.0f} % of the training images, {held_out:.0f} % of the held-out ones)"
    )


def unequal_in(splits, labels, classes):
    """`unequal` of all images of the real `Splits` and of a set, of which the labels are given."""
    held_out = np.concatenate([splits.val.labels, splits.test.labels])
    return unequal(class_counts([splits.train.labels, labels, held_out], len(classes)), classes)


def drawn(sides, most, seed, kind=SAMPLE, label=None):
    """Rows of each `Seen` of {name: side}, of one class or of all: as many of each, since figures depend on how many."""
    count = min(len(side.sample(most, seed, kind, label)) for side in sides.values())
    return {name: side.sample(count, seed, kind, label) for name, side in sides.items()}


def drawn_alike(sides, most, seed, classes):
    """Rows of each side for the comparison of all classes together, and what is to be said of them.

    Of a side whose class shares are others than those of the training images each class is drawn as often as it is among
    these. So the samples are as large as the set allows; with the shares of a balanced set the rarest class would decide,
    of which there are few real images.

    Args:
        sides: {name: `Seen`}: the training images, the set, and the held-out images, in this order.
        most: Images of each side.
        seed: Of the samples.
        classes: Their names.

    Returns:
        {name: rows}, a sentence (empty where classes are equally frequent), and whether a side was drawn by class.
    """
    plain = drawn(sides, most, seed)
    counts = class_counts([side.labels[side.good] for side in sides.values()], len(classes))
    told, unlike = unequal(counts, classes), apart(counts) > APART
    if not told:
        return plain, "", False
    usual, of_train = len(next(iter(plain.values()))), shares(counts[0])
    there = of_train > 0
    size = min(usual, (counts[unlike][:, there] / of_train[there]).min())
    of_class = np.floor(size * of_train + 1e-9).astype(int)  # of a quotient that is whole but for rounding all of it
    if of_class.sum() < min(ENOUGH, usual):
        return plain, f"{told}: {UNEQUAL}", False

    def rows(side, by_class):
        if not by_class:
            return side.sample(of_class.sum(), seed)
        return np.concatenate([side.sample(n, seed, SAMPLE, label) for label, n in enumerate(of_class)])

    alike = {name: rows(side, by_class) for (name, side), by_class in zip(sides.items(), unlike)}
    return alike, f"{told}: {EQUAL}", True
