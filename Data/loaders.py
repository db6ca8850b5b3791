"""Real data: every dataset becomes the same three disjoint splits of uint8 images and int labels."""

import contextlib
import io
import logging
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from Data.registry import BROKEN_IMAGE, MAX_CLASSES, NPZ_KEYS, class_files, folder_splits, npz_arrays
from Experiment.errors import UserError
from Experiment.files import atomic_path, file_hash

log = logging.getLogger("experiment")

CIFAR_VALIDATION = 10_000  # the last images of the 50,000, as published
OWN_TEST_SHARE, OWN_VALIDATION_SHARE = 0.2, 0.1  # of an image folder without splits
# The archives of plain bytes: the better known ones hold pickles, which nothing here reads.
CIFAR_URL = "https://www.cs.toronto.edu/~kriz/"
CIFAR_FILES = {
    "cifar10": (
        "cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
        [f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)],
        ["cifar-10-batches-bin/test_batch.bin"],
    ),
    "cifar100": (
        "cifar-100-binary.tar.gz",
        "03b5dce01913d631647c71ecec9e9cb8",
        ["cifar-100-binary/train.bin"],
        ["cifar-100-binary/test.bin"],
    ),
}


class Split(NamedTuple):
    """Images uint8 (N, H, W, 3) and labels int32 (N,)."""

    images: np.ndarray
    labels: np.ndarray


class Splits(NamedTuple):
    train: Split
    val: Split
    test: Split


def load_splits(spec, data_dir, seed=1234, side=None):
    """The real train, validation and test images of a dataset.

    Args:
        spec: A `DatasetSpec`.
        data_dir: Folder with the official files; missing ones are downloaded into it.
        seed: Decides how an image folder without validation or test images is split; unused otherwise.
        side: Size of the images, px; without it they stay as they are in the files (MedMNIST's may be of 28 to 224).

    Raises:
        UserError: Files are missing and cannot be downloaded, or are not what they should be.
    """
    load = {
        "cifar": load_cifar,
        "medmnist": load_medmnist,
        "digits": load_digits,
        "folder": load_folder,
        "npz": load_npz,
    }[spec.source]
    splits = load(spec, Path(data_dir), seed)
    for name, split in zip(Splits._fields, splits):
        check_split(spec, name, split)
    if side:
        splits = Splits(*(Split(resize_images(split.images, side), split.labels) for split in splits))
    return splits


def check_split(spec, name, split):
    images, labels = split
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or len(images) != len(labels):
        raise UserError(
            f"{spec.name}, {name}: images must be uint8 (N, H, W, 3) with N labels. "
            f"Received: {images.dtype} {images.shape} with {len(labels)} labels"
        )
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= spec.num_classes:
        found = f"{labels.min()}..{labels.max()}" if len(labels) else "none"
        raise UserError(f"{spec.name}, {name}: labels must be in 0..{spec.num_classes - 1}. Received: {found}")


def class_names(spec):
    """Names of the classes in label order."""
    if spec.source == "medmnist":
        names = medmnist_info(spec.name)["label"]
        return tuple(names[str(i)] for i in range(spec.num_classes))
    return spec.classes


def fetch(url, name, folder, md5):
    """The path of an official file: taken from `folder`, or downloaded into it; checked by its hash either way.

    Raises:
        UserError: It is neither there nor reachable, or its hash is wrong.
    """
    path = folder / name
    place = f"Download {url} by other means and put it there as {name}, or name its folder with --data_dir."
    if not path.exists():
        from keras.utils import get_file

        log.info("downloading %s to %s", url, folder)
        try:
            with atomic_path(path) as partial:
                get_file(partial.name, origin=url, cache_dir=str(folder), cache_subdir="")
        # Keras wraps every failure of a download in a plain Exception.
        except Exception as error:
            raise UserError(f"{name} is not in {folder} and cannot be downloaded ({error}). {place}") from None
    if file_hash(path, "md5") != md5:
        raise UserError(f"{path} is not the official file: its MD5 is not {md5}. Delete it. {place}")
    return path


def load_cifar(spec, data_dir, seed):
    archive, md5, train_files, test_files = CIFAR_FILES[spec.name]
    path = fetch(CIFAR_URL + archive, archive, data_dir, md5)
    label_bytes = 1 if spec.name == "cifar10" else 2  # CIFAR-100: coarse label, then the fine one that is used

    def read(tar, names):
        raw = np.concatenate([np.frombuffer(tar.extractfile(name).read(), np.uint8) for name in names])
        rows = raw.reshape(-1, label_bytes + 3 * 32 * 32)
        images = rows[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # (N, 32, 32, 3)
        return np.ascontiguousarray(images), rows[:, label_bytes - 1].astype(np.int32)

    with tarfile.open(path) as tar:
        images, labels = read(tar, train_files)
        test = Split(*read(tar, test_files))
    return Splits(
        Split(images[:-CIFAR_VALIDATION], labels[:-CIFAR_VALIDATION]),
        Split(images[-CIFAR_VALIDATION:], labels[-CIFAR_VALIDATION:]),
        test,
    )


def medmnist_info(name):
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that PyTorch is missing, which nothing here needs
        from medmnist import INFO
    return INFO[name]


def load_medmnist(spec, data_dir, seed):
    """A MedMNIST file of 28 px, or the largest of 64, 128 and 224 px that lies in the folder."""
    info = medmnist_info(spec.name)
    larger = [side for side in (224, 128, 64) if (data_dir / f"{spec.name}_{side}.npz").exists()]
    suffix = f"_{larger[0]}" if larger and not (data_dir / f"{spec.name}.npz").exists() else ""
    path = fetch(info[f"url{suffix}"], f"{spec.name}{suffix}.npz", data_dir, info[f"MD5{suffix}"])
    return read_npz(path)


def load_npz(spec, data_dir, seed):
    return read_npz(spec.path)


def read_npz(path):
    """The splits of a MedMNIST-style npz; grey images become RGB.

    Raises:
        UserError: Images are not uint8 of 1 or 3 channels, or labels not whole numbers.
    """
    arrays = npz_arrays(path, NPZ_KEYS)
    splits = []
    for images_key, labels_key in zip(NPZ_KEYS[::2], NPZ_KEYS[1::2]):
        images, labels = arrays[images_key], arrays[labels_key]
        if images.ndim == 3:
            images = images[..., None]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise UserError(
                f"{path}: {images_key} must be uint8 (N, H, W), (N, H, W, 1) or (N, H, W, 3). "
                f"Received: {images.dtype} {images.shape}"
            )
        if not np.issubdtype(labels.dtype, np.integer) or labels.shape not in ((labels.size,), (labels.size, 1)):
            raise UserError(
                f"{path}: {labels_key} must be integers (N,) or (N, 1). Received: {labels.dtype} {labels.shape}"
            )
        height, width = images.shape[1:3]
        side = min(height, width)  # what is not square loses its margins
        top, left = (height - side) // 2, (width - side) // 2
        images = images[:, top : top + side, left : left + side]
        labels = labels.reshape(-1).clip(-1, MAX_CLASSES).astype(np.int32)  # no wrapping: it stays out of range
        splits.append(Split(np.repeat(images, 3, -1) if images.shape[-1] == 1 else images, labels))
    return Splits(*splits)


def load_digits(spec, data_dir, seed):
    """The 1,797 handwritten digits that scikit-learn carries: a fixed stratified split, 1000 / 297 / 500."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    images = np.repeat((data.images * (255 / 16)).round().astype(np.uint8)[..., None], 3, axis=-1)  # (1797, 8, 8, 3)
    labels = data.target.astype(np.int32)
    rest, test = train_test_split(np.arange(1797), test_size=500, stratify=labels, random_state=1234)
    train, val = train_test_split(rest, test_size=297, stratify=labels[rest], random_state=1234)
    return Splits(*(Split(images[index], labels[index]) for index in (train, val, test)))


def square(image):
    """The middle square of a PIL image."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def resize(image, side, mode="antialias"):
    """A square PIL image at another size.

    Args:
        image: The image.
        side: New side, px.
        mode: `bilinear` blends the four nearest pixels, as published: the right one for generated images, since it
            undoes the bilinear enlargement that the backbone has learned from. `antialias` averages over all pixels
            when it shrinks: for photographs, which have detail to lose.
    """
    from PIL import Image

    if image.width == side:
        return image
    if mode == "antialias":
        return image.resize((side, side), Image.BILINEAR)
    scale = image.width / side
    return image.transform((side, side), Image.AFFINE, (scale, 0, 0, 0, scale, 0), Image.BILINEAR)


def read_image(path, side, mode="antialias"):
    """An image file as RGB uint8 (side, side, 3): cut to its middle square, resized if need be.

    Raises:
        ValueError: Its pixels have more than 8 bits, which a conversion would clip to white.
    """
    from PIL import Image

    with Image.open(path) as image:
        if image.mode[0] in "IF":
            raise ValueError(f"images must have 8 bits a channel. Received: mode {image.mode}")
        return np.asarray(resize(square(image.convert("RGB")), side, mode))


def read_images(paths, side, mode="antialias"):
    """Image files as uint8 (N, side, side, 3), read in parallel.

    Raises:
        UserError: Files that cannot be read; it lists the first ten.
    """
    images, broken = readable_images(paths, side, mode)
    if broken:
        raise UserError(f"{len(broken)} images cannot be read: {first_ten(broken)}")
    return images


def first_ten(broken):
    return "; ".join(list(broken.values())[:10])


def readable_images(paths, side, mode="antialias"):
    """Image files as uint8 (N, side, side, 3), read in parallel, and which cannot be read: {index: path and reason}."""
    from PIL import Image

    images = np.empty((len(paths), side, side, 3), np.uint8)
    broken = {}

    def read(i):
        try:
            images[i] = read_image(paths[i], side, mode)
        except BROKEN_IMAGE + (Image.DecompressionBombError,) as error:
            broken[i] = f"{paths[i]} ({error})"

    Image.init()  # not safe to do for the first time in several threads at once
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(read, range(len(paths)), chunksize=64))
    return images, dict(sorted(broken.items()))


def load_folder(spec, data_dir, seed):
    """A folder of class folders, with train/val/test, train/test, or neither: then a seeded stratified split."""
    splits = {}
    for name, folder in folder_splits(spec.path).items():
        files = class_files(folder, spec.classes)
        paths = [path for of_class in files.values() for path in of_class]
        labels = np.repeat(np.arange(len(files), dtype=np.int32), [len(of_class) for of_class in files.values()])
        images, broken = readable_images(paths, spec.resolution)
        if broken and not spec.skip_broken:
            raise UserError(f"{len(broken)} images cannot be read (--skip_broken leaves them out): {first_ten(broken)}")
        if broken:
            log.warning("%s: %d broken images are left out: %s", folder, len(broken), first_ten(broken))
            images, labels = (np.delete(array, list(broken), axis=0) for array in (images, labels))
        if lost := sorted(set(range(len(files))) - set(labels)):
            raise UserError(
                f"{folder}: no image of these classes can be read: {', '.join(spec.classes[i] for i in lost[:10])}"
            )
        splits[name] = Split(images, labels)
    if "all" in splits:
        rest, splits["test"] = hold_out(splits["all"], OWN_TEST_SHARE, seed)
        splits["train"], splits["val"] = hold_out(rest, OWN_VALIDATION_SHARE / (1 - OWN_TEST_SHARE), seed)
    elif "val" not in splits:
        splits["train"], splits["val"] = hold_out(splits["train"], 0.2, seed)
    return Splits(splits["train"], splits["val"], splits["test"])


def hold_out(split, share, seed):
    """Divide a split into two, `share` of every class in the second.

    Raises:
        UserError: Too few images to put one of each class on both sides.
    """
    from sklearn.model_selection import train_test_split

    try:
        kept, held = train_test_split(
            np.arange(len(split.labels)), test_size=share, stratify=split.labels, random_state=seed % 2**32
        )
    except ValueError as error:
        raise UserError(f"there are too few images for a split with every class in each part: {error}") from None
    return Split(split.images[kept], split.labels[kept]), Split(split.images[held], split.labels[held])


def resize_images(images, side, mode="antialias"):
    """Resize uint8 images (N, H, H, 3) to (N, side, side, 3), in parallel, by the same filter as `read_images`."""
    from PIL import Image

    if images.shape[1:3] == (side, side):
        return images
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        resized = pool.map(lambda x: np.asarray(resize(Image.fromarray(x), side, mode)), images, chunksize=256)
        return np.stack(list(resized))
