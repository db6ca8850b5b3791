"""Crops of photographs with captions: which category, how much of it, and from where.

A caption has the eight words of a printed character (`Pretraining.glyphs.WORDS`), of which a photograph gives five others
values: so glyphs and photographs share the tokens of a context.
"""

import numpy as np
from PIL import Image

from Experiment.randomness import random_stream
from Pretraining.glyphs import SIZE, WORDS
from Pretraining.photographs import listed_photographs, read_photographs

SMALLEST = 0.4  # side of a crop over the photograph's shorter side
SEEN = {"whole": 0.95, "most": 0.75, "part": 0.55, "detail": 0.0}  # how much of the shorter side, from which share on
ACROSS, DOWN = ("left", "centre", "right"), ("top", "middle", "bottom")  # where the centre of the crop is
THIRDS = (0.42, 0.58)  # of a side: centres of crops lie around its middle
COLOURS = ("photograph", "grey photograph")
GREY = 0.1  # share of crops
# Area averages, triangle and cubic filter, all widened to the size of the crop: pictures come in all degrees of sharpness.
FILTERS = (Image.BOX, Image.BILINEAR, Image.BICUBIC)


def photograph_words(categories):
    """{word: values that photographs add to those of glyphs}, in the order of their numbers."""
    return {"character": tuple(categories), "palette": COLOURS, "scale": tuple(SEEN), "slant": ACROSS, "aspect": DOWN}


def all_words(categories):
    """{word: how many values it takes}, `unsaid` (0) among them."""
    added = photograph_words(categories)
    return {word: count + len(added.get(word, ())) for word, count in WORDS.items()}


def caption(category, grey, share, across, down):
    """Captions int32 (n, 8) in the order of `WORDS`.

    Args:
        category: Number of the category.
        grey: bool (n,).
        share: Side of the crop over the photograph's shorter side, (n,).
        across, down: Centre of the crop as a share of width and height, (n,).
    """
    seen = np.argmax(share[:, None] >= np.array(list(SEEN.values())), axis=1)
    values = {
        "character": np.full(len(share), category),
        "palette": grey.astype(int),
        "scale": seen,
        "slant": np.digitize(across, THIRDS),
        "aspect": np.digitize(down, THIRDS),
    }
    unsaid = np.zeros(len(share), int)
    columns = [WORDS[word] + values[word] if word in values else unsaid for word in WORDS]
    return np.stack(columns, axis=1).astype("int32")


def crops(photograph, category, rng, count):
    """Random crops of a photograph uint8 (H, W, 3): images uint8 (count, 32, 32, 3), captions int32 (count, 8)."""
    height, width = photograph.shape[:2]
    share = np.minimum(rng.uniform(SMALLEST, 1.15, count), 1.0)  # a fifth shows the whole shorter side
    side = share * min(height, width)
    left, top = rng.uniform(0, 1, count) * (width - side), rng.uniform(0, 1, count) * (height - side)
    mirrored, grey = rng.random(count) < 0.5, rng.random(count) < GREY
    filters = rng.integers(0, len(FILTERS), count)
    gain = np.exp(rng.normal(0, 0.06, (count, 1, 1, 3)))  # of light
    contrast = np.exp(rng.normal(0, 0.12, (count, 1, 1, 1)))
    brightness = rng.normal(0, 10, (count, 1, 1, 1))

    whole, images = Image.fromarray(photograph), np.empty((count, SIZE, SIZE, 3), "float32")
    for i in range(count):
        box = (left[i], top[i], left[i] + side[i], top[i] + side[i])
        images[i] = whole.resize((SIZE, SIZE), FILTERS[filters[i]], box)
    images[mirrored] = images[mirrored, :, ::-1]
    images[grey] = images[grey].mean(-1, keepdims=True)
    gain[grey] = 1.0
    images = 127.5 + (images * gain - 127.5) * contrast + brightness
    across = (left + side / 2) / width
    across = np.where(mirrored, 1 - across, across)
    return (np.clip(images + 0.5, 0, 255).astype("uint8"), caption(category, grey, share, across, (top + side / 2) / height))


def crops_part(arguments):
    """Worker: the crops of every eighth photograph, a function of (seed, part) alone."""
    folder, files, seed, part, parts, count = arguments
    photographs, _ = listed_photographs(folder, files)
    numbers = range(part, len(photographs), parts)
    made = []  # of a part without photographs: nothing
    for number, pixels in zip(numbers, read_photographs(folder, photographs[part::parts])):
        of_this = count // len(photographs) + (number < count % len(photographs))
        made.append(crops(pixels, photographs[number][2], random_stream(seed, "crops", number), of_this))
    return [np.concatenate(arrays) for arrays in zip(*made)]
