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


def cache_file(folder, name, images, weights_hash):
    """Where `cached_moments` keeps them."""
    key = hashlib.sha256(weights_hash.encode() + str(images.shape).encode())
    key.update(np.ascontiguousarray(images).data)
    return folder / f"{name}_{key.hexdigest()[:16]}.npy"


def cached_moments(folder, name, images, weights_hash, encode):
    """Mean and log-variance of the VAE for every image, float32 (N, h, w, 8), memory-mapped.

    Args:
        folder: Cache folder.
        name: Readable part of the file name, such as `digits_mini_32`.
        images: uint8 (N, H, W, 3), what `encode` takes.
        weights_hash: Fingerprint of the image encoder; with the images' own it keys the cache.
        encode: Function that yields float32 moments (n, h, w, 8) batch by batch.
    """
    path = cache_file(folder, name, images, weights_hash)
    if not path.exists():
        log.info("encoding %d images with the VAE, once", len(images))
        with contextlib.closing(encode(images)) as batches, atomic_path(path) as partial:
            first = next(batches)
            check_room(folder, 4 * len(images) * int(np.prod(first.shape[1:])), "the VAE's moments of the images")
            header = {"descr": "<f4", "fortran_order": False, "shape": (len(images), *first.shape[1:])}
            # Not through a memory map: where a page of one finds no room on the disk, the process ends without a word.
            with open(partial, "wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                for batch in itertools.chain([first], batches):
                    file.write(np.ascontiguousarray(batch, "<f4").data)
    return mapped(path, "float32", len(images), 4)


def cache_of(experiment, backbone, weights_dir):
    """Folder, name and fingerprint of the cache of a dataset's moments for a backbone."""
    name = f"{experiment.dataset}_{backbone.name}_{backbone.image_size}"
    return experiment.latents_dir, name, backbone.weights_hash("image_encoder", weights_dir)


def moments_file(experiment, backbone, weights_dir, images):
    """Where `dataset_moments` keeps the moments of these images."""
    folder, name, weights = cache_of(experiment, backbone, weights_dir)
    return cache_file(folder, name, images, weights)


def dataset_moments(experiment, backbone, weights_dir, images, encode):
    """`cached_moments` of a dataset's images for a backbone.

    Args:
        experiment: The `Experiment`: its cache, and the name of the dataset.
        backbone: A `Backbone`.
        weights_dir: Folder or file of its pretrained weights, if not the usual one.
        images, encode: As in `cached_moments`.
    """
    folder, name, weights = cache_of(experiment, backbone, weights_dir)
    return cached_moments(folder, name, images, weights, encode)
