"""Images tiled beside each other: sheets with a row a class, and the published collages. Each function returns what it wrote."""

from pathlib import Path

import numpy as np
from PIL import Image

from Experiment.files import atomic_path
from Experiment.text import plain
from figures import plt, save_figure

COLLAGE_COLUMNS, COLLAGE_ROWS = 8, 3  # as published
SHEET_COLUMNS, MAX_SHEET_ROWS = 8, 100  # images of a class, and classes


def save_image(array, path):
    """Write an image uint8 (H, W, 3) as PNG."""
    with atomic_path(path) as partial:
        Image.fromarray(array).save(partial, format="PNG")
    return Path(path)


def grid(images, columns, gap=2):
    """Tile uint8 images (N, H, W, 3) row by row on white, with `gap` px between them: uint8 (height, width, 3)."""
    rows = -(-len(images) // columns)
    height, width = images.shape[1:3]
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = (i // columns) * (height + gap), (i % columns) * (width + gap)
        canvas[y : y + height, x : x + width] = image
    return canvas


def enlarge(images, side=64):
    """Repeat pixels of images (N, H, W, 3) until H is at least `side` px, so that 8 px digits can be looked at.

    Returns:
        Images (N, k*H, k*W, 3).
    """
    factor = max(1, -(-side // images.shape[1]))
    return images.repeat(factor, axis=1).repeat(factor, axis=2)


def collage(images, path):
    """The published collage of one class, of images uint8 (N, H, W, 3): the first 24, in 8 columns and 3 rows."""
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


def class_rows(sheets, labels, classes, width, height):
    """A figure with one row a class, its name at the left, and one column a sheet; at most 100 classes.

    Args:
        sheets: Images uint8 (N, H, W, 3) each, all in the order of `labels`.
        labels: Of the images, int (N,).
        classes: Names of the classes, in label order.
        width, height: Of an image, in inches.

    Returns:
        The figure, and its axes (classes that have images, sheets).
    """
    rows = [label for label in range(len(classes)) if (labels == label).any()][:MAX_SHEET_ROWS]
    columns = max(int((labels == label).sum()) for label in rows)
    size = (width * columns + 1.5, height * len(rows) + 0.4)
    figure, axes = plt.subplots(len(rows), len(sheets), figsize=size, squeeze=False, layout="constrained")
    for row, label in zip(axes, rows):
        for axis, images in zip(row, sheets):
            axis.imshow(grid(enlarge(images[labels == label]), columns), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        row[0].set_ylabel(plain(classes[label], 16), rotation=0, ha="right", va="center")
    return figure, axes


def sample_sheet(images, labels, classes, path, title=""):
    """A sheet with one row a class: images uint8 (N, H, W, 3), labels int (N,). See `class_rows`."""
    figure, _ = class_rows([images], labels, classes, 0.7, 0.75)
    figure.suptitle(plain(title), fontsize=10)
    return save_figure(figure, path)


def side_by_side(left, right, labels, classes, path, titles=("real", "synthetic")):
    """Two sheets beside each other: images uint8 (N, H, W, 3), both in the order of labels int (N,). See `class_rows`."""
    figure, axes = class_rows([left, right], labels, classes, 1.2, 0.62)
    for axis, title in zip(axes[0], titles):
        axis.set_title(title, fontsize=10)
    return save_figure(figure, path)
