"""The images of a synthetic dataset as training reads them: chosen by seed, resized, decoded once for all runs."""

import itertools
from pathlib import Path

import numpy as np

from Data.decoded import decoded_rows
from Data.numbering import subset_counts
from Data.pictures import read_images
from Data.set_hashes import content_hash
from Data.synthetic import open_set, read_manifest
from Experiment.errors import UserError
from Experiment.randomness import random_stream

SLICED = 1  # second address of the random numbers that divide a subset; its choice has 0


class StoredSet:
    """A synthetic dataset on disk whose images are read by their place in the list of them all, class by class.

    Args:
        folder: Of the dataset.
        num_classes: Number of classes.
        side: Side of the images that are read, px.
        mode: How they are resized, see `Data.resizing.resize`.
        cache: Folder where the whole set is kept decoded, if it has a manifest; None: only what is wanted is decoded.
    """

    def __init__(self, folder, num_classes, side, mode="bilinear", cache=None):
        self.folder, self.side, self.mode = Path(folder), side, mode
        self.files = open_set(folder, num_classes)
        self.counts, self.names = list(map(len, self.files.names)), list(itertools.chain(*self.files.names))
        self.labels = np.repeat(np.arange(num_classes, dtype=np.int32), self.counts)
        self.file, self.manifest, self.sha256 = None, read_manifest(folder), content_hash(self.folder, self.files)
        if cache and self.manifest:
            kind = "rounded" if mode == "bilinear" else mode  # earlier versions cut fractions off
            self.file = cache / f"{self.folder.name}_{side}_{kind}_{self.sha256[:16]}.npy"

    def read(self, rows):
        """Images uint8 (n, side, side, 3) of rows int (n,).

        Raises:
            UserError: Images cannot be read.
        """
        if self.file:
            return decoded_rows(self.file, self.files, self.names, self.side, self.mode, rows)
        return read_images([self.names[row] for row in rows], self.side, self.mode, self.files)

    def wanted_counts(self, wanted):
        return subset_counts(self.manifest, wanted, len(self.counts))

    def choose(self, wanted, seed):
        """Rows int (wanted,) of a subset, drawn by seed; class by class, ascending. It is balanced, or has the set's prior.

        Raises:
            UserError: A class has too few images.
        """
        chosen, first = [], 0
        for label, (count, there) in enumerate(zip(self.wanted_counts(wanted), self.counts)):
            if count > there:
                raise UserError(f"{self.folder}: class {label} has {there} images, {count} are needed.")
            chosen.append(first + np.sort(random_stream(seed, "subset", label).permutation(there)[:count]))
            first += there
        return np.concatenate(chosen)

    def sliced(self, rows, seed):
        """Rows in an order in which each run of consecutive ones has the classes as all of them have, by seed."""
        labels, places = self.labels[rows], np.empty(len(rows))
        for label in np.unique(labels):
            count = (labels == label).sum()
            shuffled = random_stream(seed, "subset", label, SLICED).permutation(count)
            places[labels == label] = (shuffled + 0.5) / count
        return rows[np.lexsort((labels, places))]


def load_synthetic(folder, num_classes, side, wanted, seed, mode="bilinear", cache=None):
    """A subset of a synthetic dataset, drawn by seed: images uint8 (wanted, side, side, 3), labels int32.

    The arguments are those of `StoredSet` and of its `choose`; it raises what they raise.
    """
    stored = StoredSet(folder, num_classes, side, mode, cache)
    rows = stored.choose(wanted, seed)
    return stored.read(rows), stored.labels[rows]
