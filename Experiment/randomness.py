"""Random numbers that are functions of their address."""

import numpy as np

# Purposes of random numbers: each gets its own stream, so that none repeats another's draws.
PURPOSES = (
    "order", "training_noise", "sampling_noise", "subset", "split", "corpus", "augment", "repeat", "bootstrap", "real_share",
    "low_rank_start", "label_dropout", "audit_subset", "audit_noise", "shadow", "crops", "pretraining",
    "teacher",
)  # fmt: skip
STREAMS = {name: i for i, name in enumerate(PURPOSES)}


def random_stream(seed, purpose, first=0, second=0):
    """A NumPy generator that is a function of its arguments alone (counter-based Philox).

    Randomness is addressed, not consumed: the noise of image i is the same whoever draws it, in whatever batch,
    before or after a restart.

    Args:
        seed: The user's seed, 0 or more.
        purpose: A key of `STREAMS`.
        first, second: The address within the purpose, such as (class, index) or (epoch, sample).
    """
    # Philox counts up in its first word: the address goes into the other three.
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, first, second, STREAMS[purpose]]))


def random_streams(seed, purpose):
    """The same as a function of (first, second) that moves one generator from address to address.

    To make a generator takes as long as 2,000 normal numbers, and a training step asks for one a sample. What it gave
    before must have been used up when it is called again.
    """
    philox = np.random.Philox(key=seed, counter=0)
    generator, state = np.random.Generator(philox), philox.state

    def stream(first=0, second=0):
        state["state"]["counter"] = np.array([0, first, second, STREAMS[purpose]], np.uint64)
        philox.state = state
        return generator

    return stream


def repeat_seed(seed, repeat):
    """The seed of a run's `repeat`th repeat, 1 or more. That of the first is the user's, of the others one drawn from it."""
    return seed if repeat == 1 else int(random_stream(seed, "repeat", repeat).integers(2**63))
