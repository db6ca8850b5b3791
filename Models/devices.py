"""The devices that a run computes on: how the flags choose them, and trainings that several of them share."""

import logging

from Models.runtime import make_repeatable, on_gpu, use_hardware

log = logging.getLogger("experiment")


def start_devices(args):
    """Seed Keras and choose how models are computed. To be called before models are made.

    Args:
        args: The script's arguments `seed`, `deterministic`, `xla` and `tf32`.
    """
    make_repeatable(args.seed, args.deterministic)
    use_hardware("off" if args.deterministic else args.xla, args.tf32)  # XLA does not promise to repeat itself
    if args.deterministic and on_gpu():
        log.info(
            "--deterministic switches off: XLA, the choice of the fastest algorithm for each convolution, and all algorithms "
            "whose sums depend on timing; an operation that has no other one ends the run with an error"
        )
