"""Images tiled beside each other: sheets with a row a class, and the published collages. Each function returns what it wrote."""

from pathlib import Path

import numpy as np
from PIL import Image

from Experiment.files import atomic_path
from Experiment.text import plain
from figures import plt, save_figure

COLLAGE_COLUMNS, COLLAGE_ROWS = 8, 3  # as published
MAX_SHEET_ROWS = 100


def save_image(array, path):
    with atomic_path(path) as partial:
        Image.fromarray(array).save(partial, format="PNG")
    return Path(path)


def grid(images, columns, gap=2):
    """Tile uint8 images (N, H, W, 3) row by row on white."""
    rows = -(-len(images) // columns)
    height, width = images.shape[1:3]
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = (i // columns) * (height + gap), (i % columns) * (width + gap)
        canvas[y : y + height, x : x + width] = image
    return canvas


def enlarge(images, side=64):
    """Repeat pixels until an image is at least `side` px, so that 8 px digits can be looked at."""
    factor = max(1, -(-side // images.shape[1]))
    return images.repeat(factor, axis=1).repeat(factor, axis=2)


def collage(images, path):
    """The published collage of one class: 8 columns, 3 rows."""
    return save_image(grid(enlarge(images[: COLLAGE_COLUMNS * COLLAGE_ROWS]), COLLAGE_COLUMNS), path)


def class_collages(images_of_classes, folder, kind):
    """The published collages of a dataset: `real/class<c>.png` or `synth/class<c>_synth.png` below `folder`.

    Args:
        images_of_classes: Yields images uint8 (n, H, W, 3) of each class; the first 24 are shown.
        folder: `Images/<dataset>`.
        kind: `real` or `synth`.
    """
    suffix = "_synth" if kind == "synth" else ""
    for label, images in enumerate(images_of_classes):
        if len(images):
            collage(images, folder / kind / f"class{label}{suffix}.png")


def sample_sheet(images, labels, classes, path, title=""):
    """One row a class, its name at the left; at most 100 classes."""
    shown = [label for label in range(len(classes)) if (labels == label).any()][:MAX_SHEET_ROWS]
    columns = max(int((labels == label).sum()) for label in shown)
    figure, axes = plt.subplots(
        len(shown), 1, figsize=(0.7 * columns + 1.5, 0.75 * len(shown) + 0.4), squeeze=False, layout="constrained"
    )
    for axis, label in zip(axes[:, 0], shown):
        axis.imshow(grid(enlarge(images[labels == label]), columns), interpolation="nearest")
        axis.set_ylabel(plain(classes[label], 16), rotation=0, ha="right", va="center")
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    figure.suptitle(plain(title), fontsize=10)
    return save_figure(figure, path)


def side_by_side(left, right, labels, classes, path, titles=("real", "synthetic")):
    """Two sheets beside each other, one row a class: images uint8 (N, H, W, 3), both in the order of `labels`."""
    rows = [label for label in range(len(classes)) if (labels == label).any()][:MAX_SHEET_ROWS]
    columns = max(int((labels == label).sum()) for label in rows)
    figure, axes = plt.subplots(
        len(rows), 2, figsize=(1.2 * columns + 1.5, 0.62 * len(rows) + 0.4), squeeze=False, layout="constrained"
    )
    for row, label in zip(axes, rows):
        for axis, images in zip(row, (left, right)):
            axis.imshow(grid(enlarge(images[labels == label]), columns), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        row[0].set_ylabel(plain(classes[label], 16), rotation=0, ha="right", va="center")
    for axis, title in zip(axes[0], titles):
        axis.set_title(title, fontsize=10)
    return save_figure(figure, path)
