"""Files of NumPy arrays in MedMNIST's layout, read without more memory than the images need."""

import contextlib
import unicodedata

import numpy as np
from numpy.lib import format as npy

from Data.resizing import resize_images
from Experiment.errors import UserError, let_pass
from Experiment.files import NO_ARRAY, plain_arrays
from Experiment.text import first_ten, shown

SPLITS = ("train", "val", "test")
NPZ_KEYS = tuple(f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels"))
ROWS = 512  # images read at a time


def mapped(path, dtype, count, ndim=1, mode="r"):
    """An array (N, ...) of a file that this project has made, memory-mapped.

    Args:
        path: The file.
        dtype: What its elements are.
        count, ndim: How long it is, and of how many dimensions.
        mode: As NumPy has it: `r`, or `r+` to write.

    Raises:
        UserError: It is damaged, or another array.
    """
    try:
        array = np.load(path, mmap_mode=mode, allow_pickle=False)
        if array.dtype != dtype or array.ndim != ndim or len(array) != count:
            raise ValueError(f"{array.dtype} {array.shape} for {count} images")
    except NO_ARRAY as error:
        let_pass(error, path)
        raise UserError(f"{path} is damaged ({error}): delete it, and it is made again.") from None
    return array


@contextlib.contextmanager
def open_npz(path):
    """An open npz file with all of `NPZ_KEYS`.

    Raises:
        UserError: It is no npz, or lacks a key.
    """
    with plain_arrays(path) as data:
        missing = [key for key in NPZ_KEYS if key not in data]
        if missing:
            raise UserError(f"{path} must have the keys {', '.join(NPZ_KEYS)}. Missing: {', '.join(missing)}")
        yield data


@contextlib.contextmanager
def open_array(data, key):
    """An array's stream within an npz, behind its header, and its (shape, whether columns come first, dtype).

    Raises:
        ValueError: It is no array of plain values.
    """
    name = key + ".npy" if key + ".npy" in data.zip.namelist() else key
    with data.zip.open(name) as stream:
        version = npy.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{key} is of npy version {version}")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        header = read(stream)
        if header[2].hasobject:
            raise ValueError(f"{key} holds pickled objects, which are never read")
        yield stream, header


def describe(path):
    """Shape of the training images and the sorted label values of an npz, from headers and labels alone.

    Raises:
        UserError: It is not of MedMNIST's layout.
    """
    with open_npz(path) as data:
        with open_array(data, "train_images") as (_, (shape, _, _)):
            pass
        if len(shape) < 3 or 0 in shape:
            raise UserError(f"{path}: train_images must be (N, H, W) or (N, H, W, channels), N > 0. Received: {shape}")
        return shape, label_values(labels_of_all(data, path))


def labels_of_all(data, path):
    """{split: labels (N,)}, see `labels_of`; all are numbers or all are words."""
    labels = {split: labels_of(data, path, split) for split in SPLITS}
    if len({of_split.dtype.kind for of_split in labels.values()}) > 1:
        raise UserError(f"{path}: labels are numbers in one split and words in another.")
    return labels


def labels_of(data, path, split):
    """Labels of a split as they are in the file, (N,): int64 or text.

    Raises:
        UserError: They are no whole numbers or words, or several for an image.
    """
    key = f"{split}_labels"
    labels = data[key]
    if not isinstance(labels, np.ndarray):
        raise UserError(f"{path}: {key} is no array of NumPy.")
    if labels.ndim == 2 and labels.shape[1] > 1:
        found = labels.dtype.kind in "biuf" and np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all()
        what = "one-hot: store labels.argmax(axis=1)" if found else "several for an image, which no classifier here takes"
        raise UserError(f"{path}: {key} must be (N,) or (N, 1). Received: {labels.shape}, {what}")
    whole = labels.dtype.kind in "biuU"
    if labels.dtype.kind == "f":
        whole = bool((np.isfinite(labels) & (labels == np.trunc(labels))).all())
    if not whole or labels.shape not in ((labels.size,), (labels.size, 1)):
        raise UserError(
            f"{path}: {key} must be whole numbers or words, (N,) or (N, 1). Received: {labels.dtype} {labels.shape}"
        )
    labels = labels.reshape(-1)
    if labels.dtype.kind == "U":  # in one Unicode form, as names of folders
        words, places = np.unique(labels, return_inverse=True)
        return np.array([unicodedata.normalize("NFC", word) for word in words.tolist()], dtype=str)[places.reshape(-1)]
    if labels.size and not -(2**53) <= int(labels.min()) <= int(labels.max()) <= 2**53:
        raise UserError(f"{path}: {key} must be at most 2**53. Received: {labels.min()}..{labels.max()}")
    return labels.astype(np.int64)


def label_values(labels):
    """The sorted values that occur in the labels of all splits."""
    return np.unique(np.concatenate([np.unique(of_split) for of_split in labels.values()]))


def read_npz(path, values=None, side=None, complete=True):
    """The splits of an npz as {split: (images, labels)}; grey images become RGB, margins of oblong ones are lost.

    Args:
        path: The file.
        values: Label values in class order; by default those that occur.
        side: Size of the images, px; by default that of the file.
        complete: Whether every class must be in each split.

    Raises:
        UserError: Images are not uint8 of 1 or 3 channels, or labels not those of `values`.
    """
    splits = {}
    with open_npz(path) as data:
        labels = labels_of_all(data, path)
        values = label_values(labels) if values is None else np.asarray(values)
        for split in SPLITS:
            check_shape(data, path, split, len(labels[split]))
            if foreign := np.setdiff1d(labels[split], values).tolist():
                raise UserError(f"{path}: {split}_labels has no class for {first_ten(map(str, foreign), ', ')}")
            missing = [str(value) for value in values[~np.isin(values, labels[split])]]
            if missing and complete:
                raise UserError(f"{path}: {split} has no image of these classes: {shown(first_ten(missing, ', '))}")
        for split in SPLITS:
            images = read_images_of(data, split, side)
            splits[split] = images, np.searchsorted(values, labels[split]).astype(np.int32)
    return splits


def check_shape(data, path, split, labels):
    """Check the images of a split by their header alone.

    Args:
        data: The open npz.
        path: Its file, for the message.
        split: Name of the split.
        labels: How many labels it has.

    Raises:
        UserError: They are not uint8 (N, H, W), (N, H, W, 1) or (N, H, W, 3), or not as many as the labels.
    """
    key = f"{split}_images"
    with open_array(data, key) as (_, (shape, _, dtype)):
        pass
    channels = shape[3:] or (1,)
    if dtype != np.uint8 or len(shape) not in (3, 4) or channels not in ((1,), (3,)):
        hint = ""
        if len(shape) == 4 and shape[1] in (1, 3):
            hint = " (channels come last: store images.transpose(0, 2, 3, 1))"
        elif len(shape) == 5 or len(shape) == 4 and channels[0] > 4:
            hint = " (volumes are not images)"
        raise UserError(f"{path}: {key} must be uint8 (N, H, W), (N, H, W, 1) or (N, H, W, 3). Received: {dtype} {shape}{hint}")
    if 0 in shape or shape[0] != labels:
        raise UserError(f"{path}: {key} must be one image for each label. Received: {shape} with {labels} labels")


def read_images_of(data, split, side=None):
    """Images of a split as uint8 (N, side, side, 3), read from the archive piece by piece."""
    with open_array(data, f"{split}_images") as (stream, (shape, columns_first, _)):
        if columns_first:
            whole = data[f"{split}_images"]
            pieces = (whole[i : i + ROWS] for i in range(0, len(whole), ROWS))
        else:
            pieces = read_rows(stream, shape)
        inner = min(shape[1:3])  # what is not square loses its margins
        top, left = (shape[1] - inner) // 2, (shape[2] - inner) // 2
        images = np.empty((shape[0], side or inner, side or inner, 3), np.uint8)
        done = 0
        for piece in pieces:
            piece = piece.reshape(len(piece), *shape[1:3], -1)[:, top : top + inner, left : left + inner]
            if side and side != inner:
                piece = resize_images(np.broadcast_to(piece, (*piece.shape[:3], 3)), side)
            images[done : done + len(piece)] = piece  # a grey channel goes into all three
            done += len(piece)
    return images


def read_rows(stream, shape):
    """Pieces uint8 (n, ...) of an array that a stream holds row by row.

    Raises:
        EOFError: The stream ends before the last row.
    """
    row = int(np.prod(shape[1:], dtype=np.int64))
    for start in range(0, shape[0], ROWS):
        count = min(ROWS, shape[0] - start)
        raw = stream.read(count * row)
        if len(raw) < count * row:
            raise EOFError("an array is cut short")
        yield np.frombuffer(raw, np.uint8).reshape(count, *shape[1:])
    stream.read(1)  # at the end zipfile compares the checksum
