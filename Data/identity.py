"""The fingerprint of a dataset: hashes of its images and splits, the same wherever they lie."""

import hashlib

import numpy as np

from Data.npz import SPLITS
from Data.registry import class_names

ROWS = 1024  # images hashed at a time


def data_identity(splits, spec):
    """What identifies a dataset wherever it lies: classes, resolution, and a hash of each split's pixels and labels.

    Args:
        splits: Its `Splits`. Images count in their order, which decides their random numbers in training.
        spec: Its `DatasetSpec`.

    Returns:
        {"classes": [...], "resolution": px, "train": SHA-256, "val": SHA-256, "test": SHA-256}
    """
    hashes = {name: split_hash(split) for name, split in zip(SPLITS, splits)}
    return {"classes": list(class_names(spec)), "resolution": spec.resolution, **hashes}


def split_hash(split):
    """SHA-256 of a split's shape, labels and pixels, a piece at a time."""
    digest = hashlib.sha256(repr(split.images.shape).encode())
    digest.update(np.ascontiguousarray(split.labels, "<i4").data)
    for start in range(0, len(split.images), ROWS):
        digest.update(np.ascontiguousarray(split.images[start : start + ROWS]).data)
    return digest.hexdigest()


def image_hashes(images):
    """A 16-byte hash of the pixels of each image uint8 (N, H, W, 3), as an array (N,)."""
    hashes = np.empty(len(images), "S16")
    for i, image in enumerate(images):
        hashes[i] = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
    return hashes
