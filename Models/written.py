"""Generated images on their way to the disk."""

from Experiment.errors import UserError
from Experiment.progress import progress
from Models import sampler


def write_generated(diffusion, writer, shard, resize, batch_size, **settings):
    """Generate and write the images of a shard that are missing.

    Args:
        diffusion: A `Diffusion`.
        writer: A `SyntheticWriter`; it is closed.
        shard: (I, N).
        resize: Function of images uint8 (n, H, H, 3) that gives them the size that they have on disk.
        batch_size: Most images at a time.
        settings: Further ones of `generate_images`.

    Returns:
        Their number.

    Raises:
        UserError: Some are not finite or of one colour; all others are written.
    """
    missing, broken = writer.missing(shard), []  # int (n,), ascending
    there, whole = writer.progress(shard)
    block = sampler.block_size(diffusion.backbone, batch_size)
    made = sampler.generate_images(diffusion.sampler(), diffusion.encoder, missing, block=block, **settings)
    try:
        with progress(whole, "image", there, lines=True) as part:
            for numbers, images, good in made:  # (n,), uint8 (n, H, H, 3), bool (n,)
                broken += [writer.file(number) for number in numbers[~good]]
                for image in zip(numbers[good], resize(images[good])):
                    writer.write(*image)
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
