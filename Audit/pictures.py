"""The pictures of an audit. Each function returns what it wrote."""

import matplotlib.pyplot as plt
import numpy as np

from curves import SOURCE_STYLES
from figures import save_figure
from sheets import enlarge, grid

COLUMNS, ROWS = 12, 2  # pairs of a sheet of nearest images


def nearest_sheet(generated, training, held_out, distances, path, title):
    """Generated images, each above its nearest training image and its nearest held-out one.

    Args:
        generated, training, held_out: uint8 (N, H, H, 3), the nearest pair first.
        distances: (N,) of the generated image to its training image.
        path: Of the picture.
        title: Of the picture.
    """
    rows = -(-len(generated) // COLUMNS)
    figure, axes = plt.subplots(rows, 1, figsize=(10, 2.75 * rows + 0.4), squeeze=False, layout="constrained")
    side = enlarge(generated[:1]).shape[1]
    for row, axis in enumerate(axes[:, 0]):
        here = slice(row * COLUMNS, (row + 1) * COLUMNS)
        lines = [
            np.concatenate([part[here], blank(part, COLUMNS - len(part[here]))]) for part in (generated, training, held_out)
        ]
        axis.imshow(grid(enlarge(np.concatenate(lines)), COLUMNS), interpolation="nearest")
        axis.set_yticks([(side + 2) * (i + 0.5) for i in range(3)], ["generated", "nearest in training", "nearest held out"])
        places = [(side + 2) * i + side / 2 for i in range(len(distances[here]))]
        axis.set_xticks(places, [f"{distance:.3g}" for distance in distances[here]], fontsize=8)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    figure.suptitle(title, fontsize=9)
    return save_figure(figure, path)


def blank(images, count):
    return np.full((count, *images.shape[1:]), 255, np.uint8)


def trade_off(points, path):
    """Accuracy against the success of the attack on the classifier.

    Args:
        points: [{"name", "accuracy", "accuracy_interval" or None, "auc", "auc_interval", "real": bool}].
        path: Of the picture.
    """
    figure, axis = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for point in points:
        colour, marker = SOURCE_STYLES[1 if point["real"] else 0]
        low, high = point["auc_interval"]
        axis.hlines(point["accuracy"], low, high, color=colour, alpha=0.45, linewidth=1.2)
        if point["accuracy_interval"]:
            axis.vlines(point["auc"], *point["accuracy_interval"], color=colour, alpha=0.45, linewidth=1.2)
        axis.plot(point["auc"], point["accuracy"], color=colour, marker=marker, linestyle="")
        axis.annotate(point["name"], (point["auc"], point["accuracy"]), (6, 5), textcoords="offset points", fontsize=9)
    axis.axvline(0.5, color="black", alpha=0.5, linewidth=0.8, linestyle=":")
    axis.set(
        xlabel="AUC of the likelihood-ratio attack (0.5: the attack learns nothing)", ylabel="accuracy on real test images"
    )
    axis.grid(alpha=0.3)
    axis.margins(0.12)
    return save_figure(figure, path)
