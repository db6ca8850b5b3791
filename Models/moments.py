"""Moments of the VAE's encoder: what a dataset's images become before anything learns from them."""

import numpy as np
from keras import ops

from Experiment.progress import each
from Models.runtime import precision, without_tf32

PIECE = 64  # most images at a time


def encode_moments(image_encoder, images, side):
    """Yield VAE moments float32 (n, h, w, 8) of images uint8 (N, H, H, 3), batch by batch.

    Every batch has the same size (the last one is padded and cut).

    Args:
        image_encoder: The backbone's.
        images: uint8 (N, H, H, 3).
        side: The backbone's image size, px.
    """
    batch_size = min(PIECE, len(images))
    for start in each(range(0, len(images), batch_size), "batch"):
        batch = images[start : start + batch_size]
        padded = batch[np.resize(np.arange(len(batch)), batch_size)].astype("float32")
        resized = ops.image.resize(padded, (side, side), "bilinear", antialias=side < padded.shape[1])
        yield np.asarray(image_encoder.predict_on_batch(resized / 127.5 - 1.0))[: len(batch)].astype("float32")


def exact(batches):
    """The batches, computed without TF32: runs with and without --tf32 share them."""
    with without_tf32():
        yield from batches


def moments_encoder(backbone, weights_dir=None):
    """What `Data.latents.cached_moments` encodes images with: the backbone's encoder, in float32, built when it is needed."""

    def encode(images):
        with precision("float32"):
            image_encoder = backbone.image_encoder(weights_dir)
        return exact(encode_moments(image_encoder, images, backbone.image_size))

    return encode
