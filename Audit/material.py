"""What an audit looks at: the images of a set and of the real splits, each seen once, with features kept on the disk."""

import logging
import os
import re
from pathlib import Path

import numpy as np

from Data.export_images import SetToExport
from Data.folders import folders_by_class, ignored
from Data.identity import image_hashes
from Data.npz import mapped
from Data.pictures import WHITE, Files, readable_images
from Data.registry import class_names
from Data.set_hashes import class_hashes, combined
from Data.stores import number_in
from Data.synthetic import MANIFEST, RECORD, recipe
from Experiment.disk import check_room
from Experiment.errors import UserError, let_pass
from Experiment.files import read_json, reserve, write_json
from Experiment.locks import locked
from Experiment.progress import progress
from Experiment.randomness import random_stream
from Experiment.text import first_ten

log = logging.getLogger("experiment")

PIECE = 2048  # images in memory at a time
# Addresses of random numbers; 0 and 1: extractors.py, quality.py; 5: the second reference; 6: membership.py.
SAMPLE, CLASS_SAMPLE, REFERENCE, SWAPS = 2, 3, 4, 7


class AuditedSet:
    """A synthetic set: one of this project, a published one, or a folder of folders that are named after the classes.

    Args:
        folder: Of the set.
        spec: The `DatasetSpec` of the real data.

    Attributes:
        names: Names of its images, class by class.
        files: What gives their bytes, see `readable_images`.
        labels: int32 (N,).
        manifest, recipe, sha256: As of a `SetToExport`.
        reading: How its files become images: the mode of `Data.resizing.resize`, and the colour behind transparent pixels.

    Raises:
        UserError: It is of other classes, not complete, or without images.
    """

    def __init__(self, folder, spec):
        self.folder, self.spec, classes = Path(folder), spec, class_names(spec)
        # The real classes may be named class_00 ... too.
        ours = any((self.folder / name).exists() for name in (MANIFEST, RECORD))
        of_classes = None if ours else names_by_class(self.folder, classes)
        if of_classes is None and not ours:
            refuse_unknown_folders(self.folder, classes)
        if of_classes is None:
            found = SetToExport(self.folder, spec)
            of_classes, self.files = found.names, found.store
            self.manifest, self.recipe, self.sha256 = found.manifest, found.recipe, found.sha256
            self.reading = "bilinear", WHITE
        else:
            self.files = Files(self.folder)
            self.manifest, self.recipe = {}, recipe(self.folder)
            # As the user's own real images, so that copies of these are found.
            self.reading = "antialias", spec.background
            self.sha256 = combined(class_hashes(of_classes, self.content))
        self.names = [name for names in of_classes for name in names]
        self.labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(names) for names in of_classes])
        if not self.names:
            raise UserError(f"{folder} holds no images.")

    @property
    def total(self):
        return len(self.names)

    def content(self, name):
        """The bytes of a file, or why it cannot be read: then it is left out later, with its name."""
        try:
            return self.files.read(name)
        except OSError as error:
            let_pass(error, self.files.where(name))
            return str(error.strerror).encode()

    def read(self, rows):
        """Images uint8 (n, H, H, 3) as a classifier sees them, and {place among the rows: why one cannot be read}."""
        names = [self.names[row] for row in rows]
        return readable_images(names, self.spec.resolution, *self.reading, files=self.files)


def names_by_class(folder, classes):
    """Names of the images where the class folders have the classes' own names; None where they are not all so."""
    there = folders_by_class(folder)
    if set(there) != set(classes):
        return None
    places = [there[name] for name in classes]
    found = [[entry for entry in os.scandir(folder / place) if not ignored(entry.name)] for place in places]
    files = [sorted((entry.name for entry in of_class if entry.is_file()), key=number_in) for of_class in found]
    if others := sum(map(len, found)) - sum(map(len, files)):
        log.warning("%s: %d folders and links to nothing within its classes are left out", folder, others)
    return [[f"{place}/{file}" for file in of_class] for place, of_class in zip(places, files)]


def refuse_unknown_folders(folder, classes):
    """Refuse a folder that holds neither class_00 ... nor folders of the classes' names (UserError, which says both)."""
    there = set(folders_by_class(folder))
    if not there or any(re.fullmatch(r"class_\d+", name) for name in there):
        return
    named = [f"{what}: {first_ten(sorted(names), ', ')}" for what, names in
             (("missing", set(classes) - there), ("too many", there - set(classes))) if names]  # fmt: skip
    raise UserError(
        f"{folder} holds neither the folders class_00, class_01 ... nor folders named after the classes ({'; '.join(named)})."
    )


class Seen:
    """What is kept of images: a hash of their pixels, features by extractor, and whether they could be read.

    Args:
        rows: Structured array (N,), memory-mapped.
        labels: int32 (N,).
        extractors: {field: extractor}.
    """

    def __init__(self, rows, labels, extractors):
        self.rows, self.labels, self.extractors = rows, labels, extractors
        self.good = np.flatnonzero(rows["read"])

    @property
    def hashes(self):
        """uint64 (N, 2)."""
        return self.rows["hash"]

    def features(self, field, rows):
        """float32 (n, d)."""
        return np.ascontiguousarray(self.rows[field][rows])

    def sample(self, most, seed, kind=SAMPLE, label=None):
        """Rows (n,), ascending: at most so many readable images, of one class or of all, drawn by seed."""
        rows = self.good if label is None else self.good[self.labels[self.good] == label]
        return np.sort(random_stream(seed, "audit_subset", kind, label or 0).permutation(rows)[:most])


def see(path, labels, read, extractors):
    """Look at images once: hash and features of each, kept in a file. An interrupted run goes on after its last piece.

    Args:
        path: The file; its name is a function of the images and of the extractors.
        labels: int32 (N,).
        read: Function of rows int (n,) that gives images uint8 (n, H, H, 3), and {place: why one cannot be read}.
        extractors: {field: extractor}.

    Returns:
        A `Seen`.

    Raises:
        UserError: No image can be read, or the disk lacks room.
    """
    kinds = [("read", "?"), ("hash", "<u8", (2,))]
    kind = np.dtype(kinds + [(field, "<f4", (extractor.width,)) for field, extractor in extractors.items()])
    with locked(path):  # two audits of one experiment look at the same real images
        if not path.exists():
            check_room(path.parent, kind.itemsize * len(labels), "features of the images")
            look(path, kind, labels, read, extractors)
    rows = mapped(path, kind, len(labels))
    seen = Seen(rows, labels, extractors)
    if len(seen.good) < len(labels):
        reasons = read_json(path.with_suffix(".unread.json"))["unread"]
        told = f"{len(labels) - len(seen.good)} of {len(labels)} images cannot be read: {first_ten(reasons)}"
        if not len(seen.good):
            raise UserError(told)
        log.warning("%s; they are left out", told)
    return seen


def look(path, kind, labels, read, extractors):
    """Write the file of `see`, and beside it why images cannot be read, if there are such."""
    begun, how_far = path.with_name(f"{path.stem}.begun.npy"), path.with_name(f"{path.stem}.begun.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    state = read_json(how_far) if how_far.exists() and begun.exists() else {"done": 0, "unread": []}
    if state["done"]:
        rows = mapped(begun, kind, len(labels), mode="r+")
    else:
        rows = np.lib.format.open_memmap(begun, mode="w+", dtype=kind, shape=(len(labels),))
    reserve(begun, begun.stat().st_size)
    with progress(len(labels), "image", state["done"], lines=True) as part:
        for start in range(state["done"], len(labels), PIECE):
            here = np.arange(start, min(start + PIECE, len(labels)))
            images, broken = read(here)
            rows["read"][here] = [place not in broken for place in range(len(here))]
            rows["hash"][here] = image_hashes(images).view("<u8").reshape(-1, 2)
            for field, extractor in extractors.items():
                rows[field][here] = extractor(images)
            rows.flush()
            state = {"done": int(here[-1]) + 1, "unread": [*state["unread"], *broken.values()]}
            write_json(how_far, state)
            part.reach(state["done"])
    del rows
    with open(begun, "rb+") as file:  # a power cut may not leave a file that looks whole
        os.fsync(file.fileno())
    if state["unread"]:
        write_json(path.with_suffix(".unread.json"), {"unread": state["unread"]})
    os.replace(begun, path)
    how_far.unlink(missing_ok=True)
