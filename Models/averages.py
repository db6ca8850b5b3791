"""Averages of weights over a training, and their place in what is saved."""

import contextlib

import numpy as np

WIDTHS = (0.01, 0.28)  # sigma_rel: narrower is no average of a short run, wider is no power of 0 or more


def power_of_width(width):
    """The exponent gamma of an average whose weight at a time tau of the run, 0..1, is proportional to tau^gamma.

    Its standard deviation, relative to the run's length, is sigma_rel = sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3)))
    (Karras et al. 2024, arXiv 2312.02696, section 3.1), a cubic equation in gamma.

    Args:
        width: sigma_rel, within `WIDTHS`.
    """
    squared = width**-2
    return float(np.roots([1.0, 7.0, 16.0 - squared, 12.0 - squared]).real.max())


class Averaged:
    """An adaptation whose epochs are averages of its weights. The weights themselves stay what learns.

    Args:
        adapted: A `WholeNetwork` or another adaptation.
        variables: The variables that learn.
        averages: Their averages, in the same order, as an `AveragingAdam` keeps them.
    """

    def __init__(self, adapted, variables, averages):
        self.adapted, self.learning, self.averages = adapted, variables, averages

    def __getattr__(self, name):
        return getattr(self.adapted, name)

    @property
    def bytes(self):
        """As of the adaptation; the state of an interrupted run holds the averages too."""
        epoch, state = self.adapted.bytes
        return epoch, state + epoch

    @contextlib.contextmanager
    def in_place(self):
        """Within this block the averages stand in place of the weights."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def swap(self):
        for variable, average in zip(self.learning, self.averages):
            value = variable.numpy()
            variable.assign(average)
            average.assign(value)

    def save(self, path):
        """Save the averages as an epoch file (UserError where a weight is not finite)."""
        with self.in_place():
            self.adapted.save(path)

    def drawn(self, draw):
        """A function that draws pictures, with the averages."""

        def draw_averages(*args):
            with self.in_place():
                draw(*args)

        return draw_averages
