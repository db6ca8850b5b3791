"""A synthetic set on its way to others: its images, checked and marked, one after the other."""

import io
import itertools
import logging
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from Data.marking import check_pixels, marked
from Data.parallel import in_chunks
from Data.pictures import BROKEN_IMAGE, decode, opened, to_rgb
from Data.registry import class_names
from Data.resizing import square
from Data.soft_labels import kept_soft_labels
from Data.synthetic import complete_sets, open_set, read_manifest, recipe, set_identity
from Experiment.errors import UserError, let_pass
from Experiment.levers import without_off
from Experiment.records import DATA_FLAGS, flattened
from Experiment.text import first_ten, shown

log = logging.getLogger("experiment")

PIECE = 512  # images in memory at a time
# What is in a manifest besides the settings of the images, or, of an earlier version, says where things lay.
NOT_SETTINGS = {
    *DATA_FLAGS,
    "weights_dir",
    "exp",
    "no_mark",
    "learned_from",
    "filter_counts",
    "total",
    "counts",
    "sha256",
    "classes",
    "weights",
    "prior",
    "store",
}


class ExportedImage(NamedTuple):
    """An image of a set.

    Attributes:
        png: The bytes of its file, with the mark of generated images.
        pixels: uint8 (H, W, 3).
        label: Its label.
        facts: What is known of it: name of its class, index in its class, settings, soft label; the same keys for all.
    """

    png: bytes
    pixels: np.ndarray
    label: int
    facts: dict

    @property
    def name(self):
        """A name that no other image of the set has, without a suffix."""
        return f"{self.label:04d}_{self.facts['index']:07d}"


class SetToExport:
    """A complete synthetic set and what is known of it.

    Args:
        folder: Of the set.
        spec: The `DatasetSpec` of the real data.

    Attributes:
        classes: Names of the classes in label order, as text that can be printed.
        store: What gives the bytes of its images by name, see Data/stores.py.
        names: Names of its images, one list a class.
        manifest: Its manifest, empty for a set without one.
        recipe: What it is made with, as results have it.
        sha256: Hash of its content.
        settings: {setting: number or text} of its images, without levers that are off.
        soft_labels: Class probabilities float32 (N, C) that a teacher has given, class by class; None where there are none.
        real: {"val": `Split`, "test": `Split`} of real images that go with it, empty if none do.

    Raises:
        UserError: It is of other classes, not complete, or without images.
    """

    def __init__(self, folder, spec):
        self.folder, self.spec, self.real = Path(folder), spec, {}
        classes = class_names(spec)
        self.classes = tuple(shown(name) for name in classes)
        self.manifest = read_manifest(folder) or {}
        self.sha256 = set_identity(folder, classes)["sha256"]
        self.store, self.recipe = open_set(folder, len(classes)), recipe(folder)
        self.names = self.store.names
        if not self.total:
            raise UserError(f"{folder} holds no images.")
        made_with = {key: value for key, value in without_off(self.manifest).items() if key not in NOT_SETTINGS}
        self.settings = {key: value for key, value in flattened(made_with).items() if value is not None}
        self.soft_labels = kept_soft_labels(self.folder, self.sha256, itertools.chain(*self.names))
        self.first = np.cumsum([0, *self.counts])  # of each class, in that list

    @property
    def counts(self):
        """Number of images of each class."""
        return [len(of_class) for of_class in self.names]

    @property
    def total(self):
        return sum(self.counts)

    def bytes(self):
        """Bytes of all files."""
        return sum(self.store.size(name) for of_class in self.names for name in of_class)

    def order(self):
        """(label, index, name) of each image, the classes in turn, so that any run of images holds all of them."""
        for index, of_all in enumerate(itertools.zip_longest(*self.names)):
            yield from ((label, index, name) for label, name in enumerate(of_all) if name is not None)

    def read(self, label, index, name):
        """An `ExportedImage`, or a text that says why it cannot be read."""
        try:
            png = self.store.read(name)
            check_pixels(png)
            with opened(io.BytesIO(png), ["PNG"]) as image:
                pixels = np.asarray(square(to_rgb(decode(image))))  # as classifiers see it
        except BROKEN_IMAGE as error:
            let_pass(error, self.store.where(name))
            return f"{shown(self.store.where(name))} ({shown(error)})"
        facts = {"class": self.classes[label], "index": index, **self.settings}
        if self.soft_labels is not None:
            facts["soft_label"] = self.soft_labels[self.first[label] + index].tolist()
        return ExportedImage(marked(png), pixels, label, facts)

    def images(self):
        """Every image, as an `ExportedImage`. A few hundred are in memory at a time.

        Raises:
            UserError: Images cannot be read; all are looked at before.
        """
        order, broken = self.order(), []
        while piece := list(itertools.islice(order, PIECE)):
            read = dict.fromkeys(range(len(piece)))

            def one(i, piece=piece, read=read):
                read[i] = self.read(*piece[i])

            in_chunks(one, len(piece))
            broken += [image for image in read.values() if isinstance(image, str)]
            if not broken:
                yield from read.values()
        if broken:
            raise UserError(f"{len(broken)} of {self.total} images cannot be read: {first_ten(broken)}")


def as_generated(spec, folder, resolution):
    """The spec at the resolution at which classifiers saw the images that a set's generator has learnt from, if none is named.

    `pipeline.py` chooses it by the backbone: at another one its classifiers' results would seem to be of other images.

    Args:
        spec: The `DatasetSpec` of the real data.
        folder: Of the set.
        resolution: What `--resolution` says, or None.
    """
    seen = {each["resolution"] for each in (read_manifest(folder) or {}).get("learned_from", [])}
    if resolution or len(seen) != 1 or spec.resolution in seen:
        return spec
    (side,) = seen
    log.info("real images are seen at %d px, as when %s was made (--resolution chooses another)", side, folder.name)
    return replace(spec, resolution=side, chosen="as when the set was made")


def only_set(root, num_classes):
    """The one complete synthetic set below `root`.

    Raises:
        UserError: There is none, or there are several: it names them.
    """
    there = complete_sets(root, num_classes)
    if not there:
        raise UserError(
            f"there is no complete synthetic dataset in {root}. Run generate_dataset.py, or name a folder with --synthetic_dir."
        )
    if len(there) > 1:
        named = first_ten((f"{folder.name} ({total} images)" for folder, total in there.items()), ", ")
        raise UserError(f"several synthetic datasets are in {root}: {named}; choose with --synthetic_dir.")
    return next(iter(there))
