"""Every picture of the project. The notebook and the scripts share these functions; each returns what it wrote."""

from pathlib import Path

import matplotlib

if "inline" not in matplotlib.get_backend():  # a notebook keeps its own
    matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from experiment import atomic_path

COLLAGE_COLUMNS, COLLAGE_ROWS = 8, 3  # as published
MAX_SHEET_ROWS = 100


def save_figure(figure, path):
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=120, bbox_inches="tight", format=Path(path).suffix[1:])
    plt.close(figure)
    return Path(path)


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


def sample_sheet(images, labels, classes, path, title=""):
    """One row a class, its name at the left; at most 100 classes."""
    shown = [label for label in range(len(classes)) if (labels == label).any()][:MAX_SHEET_ROWS]
    columns = max(int((labels == label).sum()) for label in shown)
    figure, axes = plt.subplots(
        len(shown), 1, figsize=(0.7 * columns + 1.5, 0.75 * len(shown) + 0.4), squeeze=False, layout="constrained"
    )
    for axis, label in zip(axes[:, 0], shown):
        axis.imshow(grid(enlarge(images[labels == label]), columns), interpolation="nearest")
        axis.set_ylabel(classes[label][:16], rotation=0, ha="right", va="center")
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    figure.suptitle(title, fontsize=10)
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
        row[0].set_ylabel(classes[label][:16], rotation=0, ha="right", va="center")
    for axis, title in zip(axes[0], titles):
        axis.set_title(title, fontsize=10)
    return save_figure(figure, path)


def loss_curve(history, path, title=""):
    """Loss by epoch, from rows with `epoch` and `loss`."""
    figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
    axis.plot([row["epoch"] for row in history], [row["loss"] for row in history], marker=".")
    axis.set(xlabel="epoch", ylabel="mean squared error of the noise", title=title)
    axis.grid(alpha=0.3)
    return save_figure(figure, path)


def confusion_matrix(confusion, classes, path, title=""):
    """Rows: true class; columns: prediction; shades are shares of the row. Counts are written up to 20 classes."""
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = min(3 + 0.4 * len(classes), 14)
    figure, axis = plt.subplots(figsize=(side, side), layout="constrained")
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set(xlabel="predicted", ylabel="true", title=title)
    if len(classes) <= 50:
        names = [name[:16] for name in classes]
        axis.set_xticks(range(len(classes)), names, rotation=90)
        axis.set_yticks(range(len(classes)), names)
    if len(classes) <= 20:
        for (row, column), count in np.ndenumerate(confusion):
            axis.text(column, row, count, ha="center", va="center", fontsize=7,
                      color="white" if shares[row, column] > 0.5 else "black")  # fmt: skip
    return save_figure(figure, path)


def search_plots(study, folder):
    """The ten published plots of a study; one that cannot be drawn does not lose the others. Yields their files."""
    import logging
    import warnings

    import optuna.visualization.matplotlib as optuna_plots
    from optuna.exceptions import ExperimentalWarning

    plots = {
        "history": lambda: optuna_plots.plot_optimization_history(study),
        "contour_is_ugs": lambda: optuna_plots.plot_contour(study, params=["is", "ugs"]),
        "contour_is_epoch": lambda: optuna_plots.plot_contour(study, params=["is", "epoch"]),
        "contour_epoch_ugs": lambda: optuna_plots.plot_contour(study, params=["epoch", "ugs"]),
        "intermediate_values": lambda: optuna_plots.plot_intermediate_values(study),
        "parallel_coordinate": lambda: optuna_plots.plot_parallel_coordinate(study),
        "param_importances": lambda: optuna_plots.plot_param_importances(study),
        "rank": lambda: optuna_plots.plot_rank(study),
        "slice": lambda: optuna_plots.plot_slice(study),
        "timeline": lambda: optuna_plots.plot_timeline(study),
    }
    for name, draw in plots.items():
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            try:
                figure = np.ravel(draw())[0].figure
            # A study of one trial, or of equal values, has no importances or contours.
            except (ValueError, RuntimeError, ZeroDivisionError) as error:
                logging.getLogger("experiment").warning("%s cannot be drawn: %s", name, error)
                continue
        yield save_figure(figure, folder / f"{name}.png")
