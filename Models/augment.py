"""Augmentation of training images: flip, crop, erase. What an image gets is a function of (seed, epoch, its number).

After GaFi (github.com/sup3rgiu/GaFi-Pipeline), with two differences: what a crop moves in at a border mirrors the image,
where it was of one grey, and the erased rectangle, in every other image, has the image's mean colour, where it was noise.
"""

import numpy as np

from Experiment.randomness import random_stream

PAD_SHARE = 1 / 8  # of the side: how far a crop moves at most
ERASED_SHARE = 0.5  # of the images
ERASED_SIDES = 0.2, 0.5  # of the side: height and width of the rectangle


class Augment:
    """Changes the images of training batches.

    Args:
        names: Which of `flip`, `crop` and `erase` it does.
        count: Number of training images.
        seed: Of what the images get.
        part: Number of a part of the training that counts its epochs by itself: each part draws anew.
    """

    def __init__(self, names, count, seed, part=0):
        self.names, self.count, self.seed, self.part = names, count, seed, part
        self.epoch, self.drawn = None, None

    def draws(self, epoch, index):
        """Random numbers float32 (B, 8) of images `index` (B,) in an epoch."""
        if self.epoch != epoch:
            stream = random_stream(self.seed, "augment", epoch, self.part)
            self.epoch, self.drawn = epoch, stream.random((self.count, 8), dtype="float32")
        return self.drawn[index]

    def __call__(self, images, epoch, index):
        """Images uint8 (B, H, H, 3) as an epoch has them; `index` (B,) says which of the training images they are."""
        draws = self.draws(epoch, index)
        if "flip" in self.names:
            images = flip(images, draws[:, 0])
        if "crop" in self.names:
            images = crop(images, draws[:, 1:3])
        if "erase" in self.names:
            images = erase(images, draws[:, 3:8])
        return images


def flip(images, draws):
    """Mirror every other image, left and right: (B, H, H, 3), (B,) in 0..1."""
    return np.where(draws[:, None, None, None] < 0.5, images[:, :, ::-1], images)


def crop(images, draws):
    """Move each image by up to `PAD_SHARE` in both directions: (B, H, H, 3), (B, 2) in 0..1."""
    side = images.shape[1]
    pad = max(1, round(side * PAD_SHARE))
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
    shifts = (draws * (2 * pad + 1)).astype(int)  # (B, 2), 0..2 pad
    rows, columns = (shift[:, None] + np.arange(side) for shift in shifts.T)  # (B, H) each
    return padded[np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]]


def erase(images, draws):
    """Paint a rectangle in some images with the image's mean colour: (B, H, H, 3), (B, 5) in 0..1."""
    side, (least, most) = images.shape[1], ERASED_SIDES
    sides = np.maximum(1, np.round(side * (least + (most - least) * draws[:, 1:3])))  # (B, 2)
    starts = np.floor(draws[:, 3:5] * (side - sides + 1))
    places = np.arange(side)
    rows, columns = ((start[:, None] <= places) & (places < (start + length)[:, None])
                     for start, length in zip(starts.T, sides.T))  # (B, H) each  # fmt: skip
    chosen = draws[:, 0] < ERASED_SHARE
    inside = chosen[:, None, None] & rows[:, :, None] & columns[:, None, :]  # (B, H, H)
    colours = images.mean(axis=(1, 2), keepdims=True).round().astype(np.uint8)
    return np.where(inside[..., None], colours, images)
