"""The VAE moments of a dataset: computed once for a dataset, backbone and size, then read from disk."""

import contextlib
import hashlib
import itertools
import logging

import numpy as np

from Data.npz import mapped
from Experiment.disk import check_room
from Experiment.files import atomic_path

log = logging.getLogger("experiment")


def moments_file(experiment, backbone, weights_dir, images):
    """Where the moments of a dataset's images lie.

    Args:
        experiment: The `Experiment`: its cache, and the name of the dataset.
        backbone: A `Backbone`.
        weights_dir: Folder or file of its pretrained weights, if not the usual one.
        images: uint8 (N, H, W, 3).
    """
    name = f"{experiment.dataset}_{backbone.name}_{backbone.image_size}"
    return cache_file(experiment.latents_dir, name, images, backbone.weights_hash("image_encoder", weights_dir))


def cache_file(folder, name, images, weights_hash):
    """The file of the moments of images by the image encoder of a fingerprint; both are in its name."""
    key = hashlib.sha256(weights_hash.encode() + str(images.shape).encode())
    key.update(np.ascontiguousarray(images).data)
    return folder / f"{name}_{key.hexdigest()[:16]}.npy"


def cached_moments(path, images, encode):
    """Mean and log-variance of the VAE for every image, float32 (N, h, w, 8), memory-mapped.

    Args:
        path: What `moments_file` says.
        images: uint8 (N, H, W, 3), what `encode` takes.
        encode: Function that yields float32 moments (n, h, w, 8) batch by batch.
    """
    if not path.exists():
        log.info("encoding %d images with the VAE, once", len(images))
        with contextlib.closing(encode(images)) as batches, atomic_path(path) as partial:
            first = next(batches)
            check_room(path.parent, 4 * len(images) * int(np.prod(first.shape[1:])), "the VAE's moments of the images")
            header = {"descr": "<f4", "fortran_order": False, "shape": (len(images), *first.shape[1:])}
            # Not through a memory map: where a page of one finds no room on the disk, the process ends without a word.
            with open(partial, "wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                for batch in itertools.chain([first], batches):
                    file.write(np.ascontiguousarray(batch, "<f4").data)
    return mapped(path, "float32", len(images), 4)
