"""Where sampling is guided, and what guides it."""

from dataclasses import dataclass

import keras
import numpy as np


@dataclass(frozen=True)
class Guide:
    """An earlier epoch that guides in place of the unconditional pass (Karras et al. 2024, arXiv 2406.02507).

    Its pass is conditional too: noise = guide + scale * (noise - guide).

    Attributes:
        encoder: Its Class Encoder; None: that of what is sampled.
        unet: Its UNet; None: that of what is sampled.
    """

    encoder: keras.Model | None = None
    unet: keras.Model | None = None


def guided_steps(schedule, timesteps, interval):
    """Which steps are guided, bool (n,): those at a noise level sigma with LO < sigma <= HI (arXiv 2404.07724).

    Args:
        schedule: A `NoiseSchedule`.
        timesteps: int (n,).
        interval: (LO, HI) in sigma / alpha: 0.03 to 14.6 in Stable Diffusion.
    """
    low, high = interval
    levels = schedule.noise_levels(timesteps)
    return (low < levels) & (levels <= high)


def context_table(contexts, guides, labels, size):
    """The contexts of a batch of images, in a table that always has the same size.

    Args:
        contexts: float32 (C + 1, tokens, width): of all classes, and the unconditional one.
        guides: The same of a `Guide`; None: the unconditional context guides.
        labels: int (B,).
        size: Rows of the table for conditional contexts, at least the number of classes in the batch.

    Returns:
        Table float32 (R, tokens, width), and int (B,) each: rows of the images, and rows of what guides them.
    """
    used, rows = np.unique(labels, return_inverse=True)
    used = np.resize(used, size)
    if guides is None:
        return contexts[[*used, -1]], rows, np.full(len(labels), size)
    return np.concatenate([contexts[used], guides[used]]), rows, rows + size
