"""How the images of a synthetic set lie on the disk, for those who read them: as files, or in tars. No reader knows which.

A store gives names, `class_00/img_0.png`, and by name the bytes of a file; a third one is a class here and a sink in
Data/sinks.py.
"""

import functools
import logging
import os
import re
from pathlib import Path

import numpy as np

from Data.folders import ignored
from Data.pictures import Files
from Data.tar import members
from Experiment.errors import UserError, let_pass
from Experiment.text import first_ten, shown

log = logging.getLogger("experiment")

FILES, TARS = "files", "webdataset"
STORES = (FILES, TARS)
TAR_PATTERN = "images-*.tar"
# Images of a tar, about: of 512 px that is half a gigabyte, and 40,000 images can be divided among many shards.
TAR_IMAGES = 1024
MEMBER = re.compile(r"(class_\d+)/img_(0|[1-9]\d{0,8})\.png")


def class_folders(folder, num_classes):
    """Paths of the class folders, whose names sort as labels do: class_00, and class_000 for more than 100 classes.

    Published folders of more than 100 classes have two digits (class_100 after class_99): one that is there stays so.
    """
    folder, digits = Path(folder), max(2, len(str(num_classes - 1)))
    if (folder / "class_00").is_dir():
        digits = 2
    return [folder / f"class_{label:0{digits}d}" for label in range(num_classes)]


def image_name(index):
    return f"img_{index}.png"


def number_in(name):
    """What image files are sorted by: their number, then their name: img_2 before img_10."""
    number = os.path.splitext(name)[0].rpartition("_")[2]
    return int(number) if number.isdecimal() else 0, name


def tar_file(folder, number):
    return Path(folder) / f"images-{number:06d}.tar"


class FolderStore(Files):
    """A set of PNG files in class folders.

    Args:
        folder: Of the set.
        num_classes: Number of classes.
    """

    def __init__(self, folder, num_classes):
        super().__init__(folder)
        self.class_folders = class_folders(folder, num_classes)

    @functools.cached_property
    def names(self):
        """Names of the images, one list a class, in order.

        They are text, not paths: of 400,000 images those would take more memory than the images of 8 px.

        Raises:
            UserError: Class folders are missing or too many.
        """
        expected = [path.name for path in self.class_folders]
        there = {p.name for p in Path(self.folder).iterdir() if p.is_dir() and not ignored(p.name)}
        if difference := sorted(there ^ set(expected)):
            raise UserError(
                f"{self.folder} must hold the folders {expected[0]}..{expected[-1]}. Missing or too many: "
                f"{', '.join(difference[:10])}"
            )
        images = []
        for folder in self.class_folders:
            every = [file for file in os.listdir(folder) if not file.startswith(".")]
            files = [file for file in every if file.lower().endswith(".png")]
            if len(files) < len(every):
                log.warning("%s: %d files are not PNG and are not used", folder, len(every) - len(files))
            images.append([f"{folder.name}/{file}" for file in sorted(files, key=number_in)])
        return images

    def size(self, name):
        """Bytes of a file."""
        return os.stat(os.path.join(self.folder, name)).st_size

    def stats(self):
        """Name of the place and `os.stat_result` of everything that holds images: class folders may be moved, too."""
        for folder in self.class_folders:
            with os.scandir(folder) as files:
                yield from ((folder.name, file.stat()) for file in files)


class TarStore:
    """A set of tars that each hold a run of its images: of each `class_00/img_0.png`, and `class_00/img_0.cls`, its label.

    Where each image lies is looked up once, which takes seconds for 400,000, and 24 bytes an image beside its name.

    Args: As of a `FolderStore`.
    """

    def __init__(self, folder, num_classes):
        self.folder = Path(folder)
        self.labels = {path.name: label for label, path in enumerate(class_folders(folder, num_classes))}
        self.tars = sorted(self.folder.glob(TAR_PATTERN))

    @functools.cached_property
    def names(self):
        """As of a `FolderStore`.

        Raises:
            UserError: A tar is damaged, or holds something else, or an image is missing.
        """
        return [[f"{name}/{image_name(i)}" for i in range(len(places))] for name, places in self.places.items()]

    @functools.cached_property
    def places(self):
        """{class folder: int64 (n, 3)}: of each image of a class in order, the number of its tar, its offset and its size."""
        found = [self.look(number) for number in range(len(self.tars))]
        rows, places = np.concatenate([np.empty((0, 5), np.int64), *found]), {}
        for name, label in self.labels.items():
            of_class = rows[rows[:, 0] == label]
            of_class = of_class[np.argsort(of_class[:, 1], kind="stable")]
            wrong = np.flatnonzero(of_class[:, 1] != np.arange(len(of_class)))
            if wrong.size:
                first = int(wrong[0])
                if first and of_class[first, 1] == of_class[first - 1, 1]:
                    told = f"{name}/{image_name(first - 1)} is there twice"
                else:
                    told = f"{name}/{image_name(first)} is in none of its {len(self.tars)} tars"
                raise UserError(f"{shown(self.folder)}: {told}: the command that made the set makes what is missing.")
            places[name] = of_class[:, 2:].copy()
        return places

    def look(self, number):
        """Label, index, number of the tar, offset and size, int64 (n, 5), of the images in a tar."""
        path, rows = self.tars[number], []
        try:
            with open(path, "rb") as file:
                inside = members(file)
                for name, offset, size in inside:
                    known = MEMBER.fullmatch(name)
                    if not known or known[1] not in self.labels:
                        raise ValueError(f"{shown(name)} in it is no image of the set's {len(self.labels)} classes")
                    label, (beside, _, length) = self.labels[known[1]], next(inside, ("", 0, 0))
                    if beside != f"{name.removesuffix('png')}cls" or file.read(length) != str(label).encode():
                        raise ValueError(f"its label does not stand beside {name}")
                    rows.append((label, int(known[2]), number, offset, size))
        except (OSError, ValueError) as error:
            let_pass(error, path)
            raise UserError(
                f"{shown(path)} cannot be read: {shown(error)}. Remove it: the command that made the set makes it again."
            ) from None
        return np.array(rows, np.int64).reshape(-1, 5)

    def place(self, name):
        folder, _, file = name.partition("/")
        return self.places[folder][number_in(file)[0]].tolist()

    def read(self, name):
        """The bytes of a file."""
        tar, offset, size = self.place(name)
        with open(self.tars[tar], "rb") as file:
            file.seek(offset)
            return file.read(size)

    def where(self, name):
        """Where a file lies, for messages."""
        return f"{self.tars[self.place(name)[0]]}: {name}"

    def size(self, name):
        return self.place(name)[2]

    def stats(self):
        return ((path.name, path.stat()) for path in self.tars)


def open_store(folder, num_classes, manifest=None):
    """The store of a set: what its manifest says, or what is there.

    Raises:
        UserError: The manifest names a store that is not known.
    """
    there = TARS if any(Path(folder).glob(TAR_PATTERN)) else FILES
    store = (manifest or {"store": there}).get("store", FILES)
    if store not in STORES:
        raise UserError(f"{shown(folder)} has the store {shown(store)}. Known are: {first_ten(STORES, ', ')}.")
    return (TarStore if store == TARS else FolderStore)(folder, num_classes)
