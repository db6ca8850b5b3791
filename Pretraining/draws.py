"""What a backbone draws for captions: a sheet of glyphs and, if it knows photographs, one of their categories."""

import numpy as np

from Data.glyphs import CHARACTERS, DIGITS, PALETTES, RESOLUTIONS, WORDS
from Models.sampler import Sampler, initial_noise
from Pretraining.crops import COLOURS, SEEN
from sheets import grid, save_image

COLUMNS = 20
STEPS, SCALE = 25, 2.0
CATEGORIES, DRAWS = 40, 10  # of the sheet of photographs: rows of two categories


def glyph_captions():
    """Captions int32 (n, 8) of which only character, resolution and palette are said: digits, letters."""
    characters = [c for c in DIGITS for _ in range(COLUMNS // 2)] + list("ABCDEFGHKMNPQRSTWXYZ" * 2)
    number = np.arange(len(characters))
    said = {
        "character": 1 + np.array([CHARACTERS.index(c) for c in characters]),
        "resolution": 1 + number % len(RESOLUTIONS),
        "palette": 1 + (number // len(RESOLUTIONS)) % len(PALETTES),
    }
    return captions(said, len(characters))


def photograph_captions(categories):
    """Captions int32 (n, 8) of whole colour photographs: ten of each of up to 40 categories, evenly chosen."""
    chosen = np.unique(np.linspace(0, len(categories) - 1, min(CATEGORIES, len(categories))).round().astype(int))
    category = chosen.repeat(DRAWS)
    said = {
        "character": WORDS["character"] + category,
        "palette": WORDS["palette"] + COLOURS.index("photograph"),
        "scale": WORDS["scale"] + list(SEEN).index("whole"),
    }
    return captions(said, len(category))


def captions(said, count):
    """Captions int32 (count, 8) from numbers of some words."""
    made = np.zeros((count, len(WORDS)), "int32")
    for word, numbers in said.items():
        made[:, list(WORDS).index(word)] = numbers
    return made


def draw_sheet(unet, decoder, context_encoder, said, path, seed):
    """Draw an image of each caption: a PNG with 20 columns. Returns its path."""
    rows = np.arange(len(said))
    noise = initial_noise(seed, said[:, 0], rows, unet.input_shape[0][1:])
    contexts = np.asarray(context_encoder.predict_on_batch(np.concatenate([said, 0 * said[:1]])), "float32")
    images, _ = Sampler(unet, decoder).sample(noise, contexts, rows, num_steps=STEPS, scale=SCALE)
    return save_image(grid(np.asarray(images), COLUMNS), path)


def draw_samples(unet, decoder, context_encoder, categories, folder, seed):
    """Draw both sheets into a folder: samples.png, and samples_photographs.png if there are categories."""
    draw_sheet(unet, decoder, context_encoder, glyph_captions(), folder / "samples.png", seed)
    if categories:
        said = photograph_captions(categories)
        draw_sheet(unet, decoder, context_encoder, said, folder / "samples_photographs.png", seed)
