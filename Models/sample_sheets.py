"""Sheets of samples of a model as it is."""

import logging

import numpy as np

from Models.runtime import jit_compile
from Models.sampler import block_size, first_of_each_class, generate_images
from sheets import MAX_SHEET_ROWS, SHEET_COLUMNS, sample_sheet

log = logging.getLogger("experiment")

SOLVER, STEPS, SCALE = "dpmpp", 8, 1.5  # as good as DDIM in 20 steps, in less than half of the time
FEW_COLUMNS, MANY_CLASSES = 2, 20


def sheet_writer(diffusion, names, seed, folder, title):
    """A function of an epoch's number that draws `samples/epoch<number>.png`, one row a class.

    Args:
        diffusion: A `Diffusion`.
        names: Names of the classes.
        seed: Of the initial noise: the same for every sheet, so that epochs can be compared.
        folder: Of the epochs.
        title: Format of the title, with a place for the number.
    """
    sampler, block = diffusion.sampler(SOLVER), block_size(diffusion.backbone, diffusion.backbone.block)
    sampler.jit_compile = jit_compile()  # as in training: to compile it by XLA takes longer than a few sheets
    columns = SHEET_COLUMNS if len(names) <= MANY_CLASSES else FEW_COLUMNS
    numbers, labels = first_of_each_class(len(names), columns, MAX_SHEET_ROWS)

    def write(epoch):
        made = generate_images(sampler, diffusion.encoder, numbers, num_steps=STEPS, scale=SCALE, seed=seed, block=block)
        images = np.concatenate([images for _, images, _ in made])  # bad ones too: they are to be seen
        path = folder / "samples" / f"epoch{epoch}.png"
        sample_sheet(images, labels, names, path, title.format(epoch))
        log.info("samples -> %s", path)

    return write
