"""The devices that a run computes on: how the flags choose them, and trainings that several of them share."""

import contextlib
import logging
from functools import cache

from Experiment.errors import UserError
from Experiment.machine import used_gpus
from Models.runtime import make_repeatable, on_gpu, use_hardware

log = logging.getLogger("experiment")


def start_devices(args):
    """Seed Keras and choose how models are computed. To be called before models are made.

    Args:
        args: The script's arguments `seed`, `deterministic`, `xla` and `tf32`.
    """
    make_repeatable(args.seed, args.deterministic)
    use_hardware("off" if args.deterministic else args.xla, args.tf32)  # XLA does not promise to repeat itself
    if (there := len(used_gpus())) > 1 and getattr(args, "devices", 1) == 1:
        log.info("this run computes on the first of %d GPUs (CUDA_VISIBLE_DEVICES before the command chooses others)", there)
    if args.deterministic and on_gpu():
        log.info(
            "--deterministic switches off: XLA, the choice of the fastest algorithm for each convolution, and all algorithms "
            "whose sums depend on timing; an operation that has no other one ends the run with an error"
        )


def local_devices():
    """Names of the devices that can share a training: all GPUs, or what TensorFlow takes for processors."""
    import tensorflow as tf

    kind = "GPU" if on_gpu() else "CPU"
    return [f"{kind}:{number}" for number in range(len(tf.config.list_logical_devices(kind)))]


@contextlib.contextmanager
def sharing(devices):
    """Within this block models are made that several devices train together, each with a part of every batch.

    Args:
        devices: Their number, or `all`.

    Yields:
        Their number.

    Raises:
        UserError: There are not so many.
    """
    if devices == 1:
        yield 1
        return
    there = local_devices()
    if devices != "all" and devices > len(there):
        raise UserError(f"argument --devices: {devices} is more than there are: {', '.join(there)}.")
    used = there if devices == "all" else there[:devices]
    if len(used) == 1:
        yield 1
        return
    log.info("%d devices share each batch: %s", len(used), ", ".join(used))
    with mirrored(tuple(used)).scope():
        yield len(used)


@cache
def mirrored(names):
    """One strategy for all models of a process that the same devices share: models of two cannot be parts of one."""
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(names)
