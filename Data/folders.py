"""Folders of images: which files belong to which split and class, and which to none."""

import os
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from Data.parallel import in_chunks
from Data.pictures import BROKEN_IMAGE, NotAnImage, probe
from Experiment.errors import UserError, let_pass
from Experiment.text import first_ten, shown

SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# What systems leave in folders, in lower case; hidden names are ignored as well.
SYSTEM_NAMES = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found",
                "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}  # fmt: skip
NOT_AN_IMAGE, IN_SUBFOLDER, BESIDE = "not an image", "in a sub-folder", "beside the class folders"
OTHER_FOLDER, LATER_PAGES, BROKEN = "in other folders", "later pages", "broken"


class Unused(NamedTuple):
    """Why a file, named relative to the dataset's folder, is not used; the detail is a suffix, folder or number."""

    file: str
    reason: str
    detail: str = ""


class Listing(NamedTuple):
    """Image files of a split, relative to the dataset's folder and in label order, and their labels int32 (N,)."""

    files: list
    labels: np.ndarray


@dataclass
class Scan:
    """What lies in the folder of a dataset.

    Attributes:
        path: The folder that holds the splits or the classes.
        classes: Names of the classes in label order.
        splits: {split: Listing}; the one split is `all` where we split.
        unused: A list of `Unused`.
        broken: {file: reason} of images of which not even the size can be read.
        sides: Shorter sides of all images, px.
    """

    path: Path
    classes: tuple = ()
    splits: dict = field(default_factory=dict)
    unused: list = field(default_factory=list)
    broken: dict = field(default_factory=dict)
    sides: list = field(default_factory=list)

    @property
    def side(self):
        """The median of the shorter sides, px."""
        return int(np.median(np.concatenate(self.sides)))


def ignored(name):
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def in_one_form(name):
    """A key that sorts names alike in whichever Unicode form a system has stored them."""
    return unicodedata.normalize("NFC", name), name


def entries(folder):
    """Sorted names of the folders and of all else in a folder, without what systems leave there.

    Raises:
        UserError: The folder cannot be read, or holds placeholders of files that lie in iCloud alone.
    """
    folders, files = [], []
    try:
        with os.scandir(folder) as found:
            for entry in found:
                if entry.name.startswith(".") and entry.name.endswith(".icloud"):
                    raise UserError(
                        f"{shown(entry.path)} stands for a file that is in iCloud alone: download what is in {shown(folder)} first."
                    )
                if not ignored(entry.name):
                    (folders if os.path.isdir(entry.path) else files).append(entry.name)
    except OSError as error:
        let_pass(error, folder)
        raise UserError(f"{shown(folder)} cannot be read: {shown(error)}") from None
    return sorted(folders, key=in_one_form), sorted(files, key=in_one_form)


def files_below(folder):
    """All files in a folder and its folders, relative to it; a link to a folder counts as one file."""
    if os.path.islink(folder):
        return [""]
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not ignored(name))
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        found += [os.path.relpath(os.path.join(place, n), folder) for n in sorted(files) + links if not ignored(n)]
    return found


def is_image(path):
    try:
        probe(path)
    except (NotAnImage, *BROKEN_IMAGE) as error:
        let_pass(error, path)
        return False
    return True


def holds_images(folder):
    """Whether an image lies in a folder itself."""
    return any(is_image(os.path.join(folder, name)) for name in entries(folder)[1])


def is_dataset(folder):
    folders = entries(folder)[0]
    return any(n.lower() in SPLIT_FOLDERS or holds_images(os.path.join(folder, n)) for n in folders)


def dataset_root(path):
    """The folder that holds the splits or classes: the given one, or the only one in it where that is unmistakable.

    Raises:
        UserError: The folder is no dataset, but several in it are; it names them.
    """
    folders = entries(path)[0]
    if is_dataset(path):
        return path
    inner = [name for name in folders if is_dataset(path / name)]
    if len(folders) == len(inner) == 1:
        return path / inner[0]
    if inner:
        raise UserError(
            f"{shown(path)}: its folders hold no images themselves, but these hold folders with images: "
            f"{first_ten(map(shown, inner), ', ')}. Name the one that is the dataset."
        )
    return path


def folder_splits(path):
    """The split folders of an image folder as {split: folder}; {"all": path} where there are none.

    A folder with the name of a split, but without folders in it, is a class beside others ("bus", "car", "train").

    Raises:
        UserError: Some of train and test are there, but not both, or one of them twice.
    """
    folders = entries(path)[0]
    named = [name for name in folders if name.lower() in SPLIT_FOLDERS]
    kinds = {SPLIT_FOLDERS[name.lower()] for name in named}
    if not {"train", "test"} <= kinds and len(named) < len(folders):
        named = [name for name in named if entries(path / name)[0]]
    found = {}
    for name in named:
        split = SPLIT_FOLDERS[name.lower()]
        if split in found:
            raise UserError(f"{shown(path)} has two folders of one split: {found[split].name} and {name}.")
        found[split] = path / name
    if not found:
        return {"all": path}
    if not {"train", "test"} <= set(found):
        raise UserError(
            f"{shown(path)}: an image folder with splits needs train and test (and may have val). "
            f"Found: {', '.join(sorted(found))}"
        )
    return {split: found[split] for split in ("train", "val", "test") if split in found}


def scan_folder(path):
    """Look at every file of an image folder.

    Raises:
        UserError: It is no dataset: no classes, a class without images, or other classes in another split.
    """
    scan = Scan(dataset_root(Path(path)))
    folders = folder_splits(scan.path)
    if scan.path != Path(path):  # files beside the one folder that is the dataset
        scan.unused += beside(scan, os.pardir, entries(path)[1])
    if "all" not in folders:
        names, files = entries(scan.path)
        for name in names:
            if scan.path / name not in folders.values():
                below = files_below(scan.path / name)
                scan.unused += [Unused(os.path.join(name, file), OTHER_FOLDER, name) for file in below]
        scan.unused += beside(scan, "", files)
    for split, folder in folders.items():
        scan.splits[split] = scan_split(scan, split, "" if split == "all" else folder.name)
    return scan


def beside(scan, folder, names):
    """Files that lie where class folders should: images are not used, as little as the rest.

    Raises:
        UserError: One is a link to nothing: a class or a split that is not mounted would be missing without a word.
    """
    for name in names:
        file = os.path.join(folder, name)
        if os.path.islink(scan.path / file) and not os.path.exists(scan.path / file):
            raise UserError(f"{shown(scan.path / file)} is a link to nothing: mount what it leads to, or remove it.")
        try:
            probe(scan.path / file)
            yield Unused(file, BESIDE, "")
        except NotAnImage:
            yield Unused(file, NOT_AN_IMAGE, suffix(name))
        except BROKEN_IMAGE as error:
            let_pass(error, scan.path / file)
            yield Unused(file, BROKEN, shown(error) or type(error).__name__)


def suffix(name):
    return os.path.splitext(name)[1].lower() or "no suffix"


def folders_by_class(folder):
    """{class name: folder name} of the folders in one. Names are in one Unicode form: systems store them in several.

    Raises:
        UserError: Two folders are of one class, or the folder cannot be read.
    """
    found = {}
    for name in entries(folder)[0]:
        plain = unicodedata.normalize("NFC", name)
        if plain in found:
            raise UserError(f"{shown(folder)} has two folders of one class, {shown(plain)}: merge them.")
        found[plain] = name
    return found


def class_folders(scan, split, folder):
    """`folders_by_class` of a split, sorted by class."""
    found = folders_by_class(scan.path / folder)
    if not found:
        raise UserError(f"{shown(scan.path / folder)} holds no class folders.")
    if not scan.classes:
        scan.classes = tuple(sorted(found))
    elif different := sorted(set(found) ^ set(scan.classes)):
        raise UserError(
            f"{shown(scan.path / folder)}: {split} has other classes than the training images: "
            f"{first_ten(map(shown, different), ', ')}"
        )
    return {name: found[name] for name in scan.classes}


def scan_split(scan, split, folder):
    """The `Listing` of a split's folder, named relative to the dataset's; what is not used goes into the scan."""
    folders = class_folders(scan, split, folder)
    scan.unused += beside(scan, folder, entries(scan.path / folder)[1])
    files, labels, empty = [], [], []
    for label, (name, own) in enumerate(folders.items()):
        below, names = entries(scan.path / folder / own)
        for inner in below:
            place = os.path.join(folder, own, inner)
            scan.unused += [
                Unused(os.path.normpath(os.path.join(place, file)), IN_SUBFOLDER, os.path.join(own, inner))
                for file in files_below(scan.path / place)
            ]
        images, why = images_among(scan, [os.path.join(folder, own, n) for n in names])
        files += images
        labels += [label] * len(images)
        if not images:
            why += [IN_SUBFOLDER] * bool(below)
            reasons = [f"{count} {reason}" if count > 1 else reason for reason, count in Counter(why).most_common(3)]
            empty.append(shown(name) + (f" ({', '.join(reasons)})" if why else ""))
    if empty:
        raise UserError(f"{shown(scan.path / folder)}: these class folders hold no images: {first_ten(empty, ', ')}")
    return Listing(files, np.array(labels, np.int32))


def images_among(scan, files):
    """Those of a class's files that are images, and why the others are none, a text each."""
    sides, counts, odd = np.zeros(len(files), np.int32), np.ones(len(files), np.int32), {}

    def look(i):
        try:
            sides[i], counts[i] = probe(os.path.join(scan.path, files[i]))
        except NotAnImage:
            odd[i] = None
        except BROKEN_IMAGE as error:
            let_pass(error, os.path.join(scan.path, files[i]))
            odd[i] = shown(error) or type(error).__name__

    in_chunks(look, len(files))
    why = []
    for i, reason in sorted(odd.items()):
        if reason is None:
            scan.unused.append(Unused(files[i], NOT_AN_IMAGE, suffix(files[i])))
            why.append(f"{suffix(files[i])}: {NOT_AN_IMAGE}")
        else:
            scan.broken[files[i]] = reason
            why.append(f"{BROKEN}: {reason}")
    scan.unused += [Unused(files[i], LATER_PAGES, str(counts[i] - 1)) for i in np.flatnonzero(counts > 1)]
    scan.sides.append(sides[sides > 0])
    return [file for i, file in enumerate(files) if i not in odd], why
