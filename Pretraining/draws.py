"""What a backbone draws for captions: a sheet of glyphs and, if it knows photographs, one of their categories. And its losses."""

import numpy as np

from figures import plt, save_figure
from Models.sampler import Sampler, initial_noise
from Pretraining.crops import COLOURS, SEEN
from Pretraining.glyphs import CHARACTERS, DIGITS, PALETTES, RESOLUTIONS, WORDS
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


def draw_losses(parts, path):
    """Draw the losses of all parts by tenths of their fits: of pictures, and of noise over the cycles. Returns the file.

    Args:
        parts: {part: facts} of the record, in order.
        path: The picture.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    begun = 0  # steps of the cycles before
    for part, facts in parts.items():
        of_noise, steps, losses = part.startswith("unet"), facts["steps"], facts["loss"]
        ends = (np.arange(len(losses)) + 1) * steps / len(losses)
        axes[int(of_noise)].plot(ends + begun * of_noise, losses, marker=".", label=part)
        begun += steps * of_noise
    for axis, title in zip(axes, ("squared error of pictures", "squared error of the noise")):
        axis.set(yscale="log", xlabel="step", title=title)
        if axis.lines:
            axis.legend()
    return save_figure(figure, path)
