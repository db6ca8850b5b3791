"""Which number an image of a set has. Numbers say what is computed together, and what a shard makes."""

import numpy as np

from Experiment.errors import UserError


class Balanced:
    """Image n is image n // C of class n % C, of C classes."""

    def __init__(self, num_classes):
        self.num_classes = num_classes

    def counts(self, total):
        """Images of each class among the first `total`: the remainder of the division goes to the first classes."""
        return [total // self.num_classes + (label < total % self.num_classes) for label in range(self.num_classes)]

    def places(self, numbers):
        """Labels and indices within their class, int (n,) each, of images."""
        indices, labels = np.divmod(np.asarray(numbers), self.num_classes)
        return labels, indices


class Proportional:
    """Classes in proportion to given frequencies, among the first images as among all.

    The next image is of the class whose share is furthest behind: Sainte-Lague's method, which gives seat k of a class with
    frequency f the rank of (2 k + 1) / f. A larger set holds the smaller one, and equal frequencies give `Balanced`.

    Args:
        frequencies: Such as the number of real images of each class.
        most: Largest number that is asked for, and one.
    """

    def __init__(self, frequencies, most):
        frequencies = np.asarray(frequencies, float)
        seats = np.ceil(most * frequencies / frequencies.sum()).astype(int) + len(frequencies)
        labels = np.repeat(np.arange(len(frequencies)), seats)
        indices = np.concatenate([np.arange(of_class) for of_class in seats])
        order = np.argsort((2 * indices + 1) / frequencies[labels], kind="stable")[:most]
        self.num_classes, self.labels, self.indices = len(frequencies), labels[order], indices[order]

    def counts(self, total):
        """Images of each class among the first `total`."""
        return np.bincount(self.labels[:total], minlength=self.num_classes).tolist()

    def places(self, numbers):
        """Labels and indices within their class, int (n,) each, of images."""
        return self.labels[numbers], self.indices[numbers]


def subset_counts(manifest, wanted, num_classes):
    """How many images of each class a subset has: as many of each, or in the proportions of the set's class prior.

    Args:
        manifest: Of the set; None: of a published one.
        wanted: Images in all.
        num_classes: Number of classes.

    Raises:
        UserError: The manifest does not say the prior.
    """
    if "class_prior" not in (manifest or {}):
        return Balanced(num_classes).counts(wanted)
    prior = manifest.get("prior")
    if not isinstance(prior, list) or len(prior) != num_classes or not all(isinstance(n, int) and n > 0 for n in prior):
        raise UserError("the manifest of a set with a class prior says no frequencies: make the set again.")
    return Proportional(prior, wanted).counts(wanted)


def real_frequencies(labels, num_classes, total):
    """Real images of each class, for a set of `total` images.

    Raises:
        UserError: A class would have no image.
    """
    frequencies = np.bincount(labels, minlength=num_classes).tolist()
    if 0 in (counts := Proportional(frequencies, total).counts(total)):
        none = counts.index(0)
        raise UserError(
            f"--class_prior real: of {total} images none would be of class {none}, which {frequencies[none]} of "
            f"{sum(frequencies)} real images are: make more."
        )
    return frequencies
