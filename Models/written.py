"""Generated images on their way to the disk."""

import logging

import numpy as np

from Experiment.errors import UserError
from Experiment.progress import progress
from Models import sampler

log = logging.getLogger("experiment")


def write_generated(diffusion, writer, shard, resize, batch_size, solver="ddim", guide=None, **settings):
    """Generate and write the images of a shard that are missing.

    Args:
        diffusion: A `Diffusion`.
        writer: A `SyntheticWriter`; it is closed.
        shard: (I, N).
        resize: Function of images uint8 (n, H, H, 3) that gives them the size that they have on disk.
        batch_size: Most images at a time.
        solver, guide: As in `Diffusion.sampler`.
        settings: Further ones of `generate_images`.

    Returns:
        Their number.

    Raises:
        UserError: Some are not finite or of one colour; all others are written.
    """
    missing, broken = writer.missing(shard), []  # int (n,), ascending
    whole = len(writer.shard(shard))
    block = sampler.block_size(diffusion.backbone, batch_size)
    made = sampler.generate_images(diffusion.sampler(solver, guide), diffusion.encoder, missing, block=block, **settings)
    try:
        with progress(whole, "image", whole - len(missing), lines=True) as part:
            for numbers, images, good in made:  # (n,), uint8 (n, H, H, 3), bool (n,)
                broken += [writer.file(number) for number in numbers[~good]]
                for number, image in zip(numbers[good], resize(images[good])):
                    writer.write(number, image)
                part.advance(len(images))
        writer.drain()
    finally:
        writer.close()
    if broken:
        names = ", ".join(f"{path.parent.name}/{path.name}" for path in broken[:10])
        raise UserError(
            f"{len(broken)} of {len(missing)} images are not finite or of one colour, and not written: {names}. "
            "Check the weights, or try --precision float32 in another --exp."
        )
    return len(missing)


def write_filtered(diffusion, writer, selection, judge, resize, batch_size, solver="ddim", guide=None, **settings):
    """Generate candidates and write those that are kept, round by round, until every class is full.

    Args:
        diffusion, resize, batch_size, solver, guide, settings: As in `write_generated`.
        writer: A `SyntheticWriter`; it is closed.
        selection: A `Selection`; it goes on where it is.
        judge: Function of images uint8 (n, H, H, 3) and labels int (n,): which are kept, bool (n,).

    Raises:
        UserError: In the last round, which keeps everything, images are not finite or of one colour.
    """
    block, making = sampler.block_size(diffusion.backbone, batch_size), diffusion.sampler(solver, guide)
    there = int(selection.kept.sum())
    try:
        with progress(int(selection.counts.sum()), "image", there, lines=True) as part:
            while not selection.full:
                labels, indices = selection.candidates()

                def places(numbers, labels=labels, indices=indices):
                    return labels[numbers % len(labels)], indices[numbers % len(labels)]

                numbers = np.arange(selection.judged, len(labels))
                made = sampler.generate_images(making, diffusion.encoder, numbers, block=block, places=places, **settings)
                for numbers, images, good in made:  # (n,), uint8 (n, H, H, 3), bool (n,)
                    good = good if selection.last else good & judge(images, labels[numbers])
                    part.advance(write_kept(writer, selection, labels[numbers], images, good, resize))
                tell_round(selection, len(labels))
    finally:
        writer.close()


def write_kept(writer, selection, labels, images, good, resize):
    """Write those of a block of candidates that become images of the set, then note it. Returns their number."""
    kept, ranks = selection.keep(labels, good)
    if kept.any():
        for label, rank, image in zip(labels[kept], ranks[kept], resize(images[kept])):
            writer.write(rank * len(selection.counts) + label, image)
    writer.drain()
    selection.save()
    return int(kept.sum())


def tell_round(selection, candidates):
    """Log a round and begin the next one, if one is needed."""
    missing = int((selection.counts - selection.kept).sum())
    log.info("filter, round %d: %d candidates, %d images are missing", selection.round + 1, candidates, missing)
    if not missing:
        return
    if selection.last:
        raise UserError(
            f"{missing} images of the last round are not finite or of one colour. Check the weights, or try --precision "
            "float32 in another --exp."
        )
    selection.next_round()
    selection.save()
    if selection.last:
        log.warning("the filter has had its %d rounds: the %d missing images are made without it", selection.round, missing)
