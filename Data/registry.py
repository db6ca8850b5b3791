"""The datasets: one entry each. A new published dataset is one line here; the user's own needs none."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from Experiment.errors import UserError
from Experiment.files import plain_arrays

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
NPZ_KEYS = tuple(f"{split}_{kind}" for split in ("train", "val", "test") for kind in ("images", "labels"))
# What Pillow raises, besides DecompressionBombError, for files that are not the image they should be.
BROKEN_IMAGE = (OSError, ValueError, SyntaxError, EOFError, TypeError)
MAX_CLASSES = 1000
MAX_SIDE = 128  # of the user's own images: larger ones show a classifier nothing that the backbones can make

# fmt: off
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100_CLASSES = tuple(
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle "
    "caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant "
    "flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man "
    "maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree "
    "plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train "
    "trout tulip turtle wardrobe whale willow_tree wolf woman worm".split()
)
# fmt: on


@dataclass(frozen=True)
class DatasetSpec:
    """What is known of a dataset before its images are read.

    Attributes:
        name: Name in folders and results.
        source: Which loader reads it: `cifar`, `medmnist`, `digits`, `folder` or `npz`.
        num_classes: Number of classes.
        resolution: Side in px at which a classifier sees the images.
        train_size: Number of real training images.
        unit: Number of images of a synthetic dataset of size 1x (the paper's round figures).
        classes: Names of the classes in label order; empty where the loader's source has them.
        path: Folder or file of the user's own data.
        skip_broken: Whether images of that folder that cannot be read are left out, instead of being an error.
    """

    name: str
    source: str
    num_classes: int
    resolution: int
    train_size: int
    unit: int
    classes: tuple = ()
    path: Path | None = None
    skip_broken: bool = False


DATASETS = {
    spec.name: spec
    for spec in [
        DatasetSpec("cifar10", "cifar", 10, 32, 40_000, 40_000, CIFAR10_CLASSES),
        DatasetSpec("cifar100", "cifar", 100, 32, 40_000, 40_000, CIFAR100_CLASSES),
        DatasetSpec("pathmnist", "medmnist", 9, 28, 89_996, 90_000),
        DatasetSpec("dermamnist", "medmnist", 7, 28, 7_007, 7_000),
        DatasetSpec("bloodmnist", "medmnist", 8, 28, 11_959, 12_000),
        DatasetSpec("retinamnist", "medmnist", 5, 28, 1_080, 1_000),
        DatasetSpec("digits", "digits", 10, 8, 1_000, 1_000, tuple("0123456789")),
    ]
}


def dataset_spec(name, skip_broken=False):
    """The spec of a registered dataset, or one made from what lies at a path.

    Args:
        name: A key of `DATASETS`, or a path.
        skip_broken: Whether broken images of an image folder are left out.

    Raises:
        UserError: The path holds neither class folders with images nor a MedMNIST-style npz.
    """
    if name in DATASETS:
        return DATASETS[name]
    path = Path(name)
    spec = npz_spec(path) if path.is_file() else folder_spec(path, skip_broken)
    if not 2 <= spec.num_classes <= MAX_CLASSES:
        raise UserError(f"{path}: a dataset needs 2 to {MAX_CLASSES} classes. Received: {spec.num_classes}")
    return spec


def own_name(path):
    """A dataset name for the user's own data that cannot be mistaken for a published dataset's."""
    name = "".join(c if c.isalnum() or c in "_-" else "_" for c in (path.name if path.is_dir() else path.stem))
    return f"{name}_own" if name in DATASETS else name


def folder_splits(path):
    """The split folders of an image folder as {split: folder}; {"all": path} where there are none.

    Raises:
        UserError: Some of train and test are there, but not both, or one of them twice.
    """
    found = {}
    for folder in sorted(p for p in path.iterdir() if p.is_dir() and p.name.lower() in SPLIT_FOLDERS):
        split = SPLIT_FOLDERS[folder.name.lower()]
        if split in found:
            raise UserError(f"{path} has two folders of one split: {found[split].name} and {folder.name}.")
        found[split] = folder
    if not found:
        return {"all": path}
    if not {"train", "test"} <= set(found):
        raise UserError(
            f"{path}: an image folder with splits needs train and test (and may have val). Found: {sorted(found)}"
        )
    return found


def class_files(folder, classes=None):
    """Image files of a folder of class folders: {class name: sorted paths}.

    Raises:
        UserError: No class folder, an empty one, or other classes than `classes`.
    """
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise UserError(f"{folder} holds no class folders.")
    if classes is not None and tuple(names) != tuple(classes):
        difference = sorted(set(names) ^ set(classes))
        raise UserError(f"{folder} has other classes than the training images: {', '.join(difference[:10])}")
    files = {
        name: sorted(
            p for p in (folder / name).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")
        )
        for name in names
    }
    empty = [name for name, paths in files.items() if not paths]
    if empty:
        raise UserError(f"{folder}: these class folders hold no images: {', '.join(empty[:10])}")
    return files


def folder_spec(path, skip_broken=False):
    """The spec of an image folder: classes and sizes from its names, resolution from its first image."""
    from PIL import Image

    splits = folder_splits(path)
    files = class_files(splits.get("train", path))
    count = sum(len(paths) for paths in files.values())
    if "all" in splits:
        count = round(count * 0.7)
    elif "val" not in splits:
        count = round(count * 0.8)
    for first in itertools.chain(*files.values()):
        try:
            with Image.open(first) as image:
                side = min(*image.size, MAX_SIDE)
                break
        except BROKEN_IMAGE + (Image.DecompressionBombError,) as error:
            if not skip_broken:
                raise UserError(f"{first} is not a readable image: {error}") from None
    else:
        raise UserError(f"{path} holds no readable image.")
    return DatasetSpec(own_name(path), "folder", len(files), side, count, count, tuple(files), path, skip_broken)


def npz_arrays(path, keys):
    """Arrays of a MedMNIST-style npz as {key: array}.

    Raises:
        UserError: It is no npz, lacks one of `NPZ_KEYS`, or holds pickled objects, which are never read.
    """
    with plain_arrays(path) as data:
        missing = [key for key in NPZ_KEYS if key not in data]
        if missing:
            raise UserError(f"{path} must have the keys {', '.join(NPZ_KEYS)}. Missing: {', '.join(missing)}")
        return {key: data[key] for key in keys}


def npz_spec(path):
    """The spec of a MedMNIST-style npz; the class count is the largest label + 1."""
    images, labels = npz_arrays(path, ["train_images", "train_labels"]).values()
    if images.ndim < 3 or len(images) == 0 or labels.size == 0:
        raise UserError(
            f"{path}: train_images must be (N, H, W) or (N, H, W, channels), N > 0. Received: {images.shape}"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{path}: labels must be integers. Received: {labels.dtype}")
    classes = int(labels.max()) + 1
    names = tuple(str(i) for i in range(min(classes, MAX_CLASSES)))  # a label of billions is refused, not counted up to
    side = min(*images.shape[1:3], MAX_SIDE)
    return DatasetSpec(own_name(path), "npz", classes, side, len(images), len(images), names, path)
