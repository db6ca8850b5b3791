"""Images at another size."""

import numpy as np
from PIL import Image

from Data.parallel import in_chunks


def square(image):
    """The middle square of a PIL image."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def resize(image, side, mode="antialias"):
    """A square PIL image at another size.

    Args:
        image: The image.
        side: New side, px.
        mode: `bilinear` blends the four nearest pixels, as published: the right one for generated images, since it
            undoes the bilinear enlargement that the backbone has learned from. `antialias` averages over all pixels
            when it shrinks: for photographs, which have detail to lose.
    """
    if image.width == side:
        return image
    if mode == "antialias":
        return image.resize((side, side), Image.BILINEAR)
    rows = blended(np.asarray(image, "float32"), side)  # Pillow would cut the fractions off: half a grey level too dark
    return Image.fromarray(np.rint(blended(rows.swapaxes(0, 1), side).swapaxes(0, 1)).astype("uint8"))


def blended(pixels, side):
    """Pixels float32 (H, ...) as (side, ...): each row blends the two nearest ones, those of the border stand for what is beyond."""
    places = np.clip((np.arange(side) + 0.5) * (len(pixels) / side) - 0.5, 0, len(pixels) - 1)
    low = places.astype(int)
    high, share = np.minimum(low + 1, len(pixels) - 1), (places - low).astype("float32")
    share = share.reshape(-1, *[1] * (pixels.ndim - 1))
    return pixels[low] * (1 - share) + pixels[high] * share


def resize_images(images, side, mode="antialias"):
    """Resize uint8 images (N, H, H, 3) to (N, side, side, 3), in parallel, by the same filter as `read_images`."""
    if images.shape[1:3] == (side, side):
        return images
    resized = np.empty((len(images), side, side, 3), np.uint8)

    def one(i):
        resized[i] = np.asarray(resize(Image.fromarray(images[i]), side, mode))

    in_chunks(one, len(images))
    return resized
