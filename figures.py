"""What every figure shares: matplotlib without a screen, and a file that is whole or not there."""

import warnings
from pathlib import Path

import matplotlib

if "inline" not in (matplotlib.get_backend(auto_select=False) or ""):  # a notebook keeps its own
    matplotlib.use("Agg")
import matplotlib.pyplot as plt

from Experiment.files import atomic_path


def save_figure(figure, path):
    """Write a figure in the format of the path's suffix, and close it. Returns the path."""
    with atomic_path(path) as partial, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # its fonts lack most alphabets: boxes say so
        try:
            figure.savefig(partial, dpi=120, bbox_inches="tight", format=Path(path).suffix[1:])
        finally:
            plt.close(figure)
    return Path(path)
