"""A corpus of captioned printed characters, from nothing but the fonts that matplotlib carries.

Each glyph is drawn in a random style and described by eight words. Every glyph is kept as a signed distance field, so
that a random warp and a random stroke width cost one lookup. No image of any dataset is used; the ten digits are among
the characters (printed, not handwritten).
"""

import functools
from pathlib import Path

import numpy as np
from PIL import Image

from Experiment.randomness import random_stream

SIZE = 32
SUPERSAMPLING = 2
DIGITS = "0123456789"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
CHARACTERS = DIGITS + LETTERS
DIGIT_SHARE = 0.5
FONTS = {  # word -> files of matplotlib
    "sans": ["DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique", "cmss10"],
    "mono": ["DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique", "cmtt10"],
    "serif": ["DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"],
    "times": ["STIXGeneral", "STIXGeneralBol", "cmr10", "cmb10"],
    "cursive": ["STIXGeneralItalic", "STIXGeneralBolIta", "cmti10"],
}
RESOLUTIONS = (8, 12, 16, 32)
PALETTES = ("light on dark", "dark on light", "colour")
# Words of a caption and how many values each takes; 0 always means "not said".
WORDS = {
    "character": 1 + len(CHARACTERS),
    "font": 1 + len(FONTS),
    "stroke": 6,
    "resolution": 1 + len(RESOLUTIONS),
    "palette": 1 + len(PALETTES),
    "scale": 6,
    "slant": 6,
    "aspect": 6,
}
PARTS = 8  # of a corpus, a fixed number: it does not depend on the machine
FIELD = 64  # side of a distance field, px
KNOTS = 5  # random numbers along a side that a smooth curve goes by


@functools.cache
def glyph_fields():
    """Signed distance fields, float32 (fonts, characters, FIELD, FIELD), in field px, positive inside the stroke.

    Returns:
        The fields and the font word (fonts,) of each.
    """
    import matplotlib
    from PIL import ImageDraw, ImageFont
    from scipy.ndimage import distance_transform_edt

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    big = 4 * FIELD
    fields, words = [], []
    for word, names in enumerate(FONTS.values(), start=1):
        for name in names:
            font = ImageFont.truetype(str(folder / f"{name}.ttf"), 150)
            of_font = []
            for character in CHARACTERS:
                canvas = Image.new("L", (big, big))
                ImageDraw.Draw(canvas).text((big / 2, big / 2), character, fill=255, font=font, anchor="mm")
                left, top, right, bottom = canvas.getbbox()
                # Every character is centred and stretched to one height: case and size are words of the caption.
                scale = 0.62 * big / max(bottom - top, right - left)
                glyph = canvas.crop((left, top, right, bottom)).resize(
                    (max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))), Image.BICUBIC
                )
                canvas = Image.new("L", (big, big))
                canvas.paste(glyph, ((big - glyph.width) // 2, (big - glyph.height) // 2))
                inside = np.asarray(canvas) > 127
                field = distance_transform_edt(inside) - distance_transform_edt(~inside)
                of_font.append(field[2::4, 2::4] / 4)
            fields.append(of_font)
            words.append(word)
    return np.asarray(fields, "float32"), np.asarray(words)


def bin_word(value, low, high):
    """Which of five equal bins between low and high: 1..5."""
    return np.clip(((value - low) / (high - low) * 5).astype(int), 0, 4) + 1


@functools.cache
def warp_basis(side):
    """Quadratic splines (side, KNOTS): what turns a few random numbers into a smooth curve."""
    from scipy.ndimage import zoom

    return zoom(np.eye(KNOTS, dtype="float32"), (side / KNOTS, 1), order=2, mode="nearest", grid_mode=True)


def smooth_warp(rng, count, side):
    """Random smooth displacements (count, side, side, 2), px: handwriting bends its strokes."""
    basis = warp_basis(side)
    coarse = rng.standard_normal((count, KNOTS, KNOTS, 2)).astype("float32")
    return np.einsum("yk,nklc,xl->nyxc", basis, coarse, basis, optimize=True)


def look_up(fields, y, x):
    """Bilinear samples of fields (B, FIELD, FIELD) at y, x (B, s, s), in px; outside, the border value."""
    y, x = np.clip(y, 0, FIELD - 1.001), np.clip(x, 0, FIELD - 1.001)
    y0, x0 = y.astype(int), x.astype(int)
    fy, fx = y - y0, x - x0
    index = np.arange(len(fields))[:, None, None]
    top = fields[index, y0, x0] * (1 - fx) + fields[index, y0, x0 + 1] * fx
    bottom = fields[index, y0 + 1, x0] * (1 - fx) + fields[index, y0 + 1, x0 + 1] * fx
    return top * (1 - fy) + bottom * fy


def scanned(ink, small):
    """Ink (s, s) as it looks at a resolution of `small` px, enlarged to (SIZE, SIZE)."""
    side = len(ink)
    if side % small == 0:  # a box filter, as a scanner counts ink
        glyph = ink.reshape(small, side // small, small, side // small).mean((1, 3))
    else:
        glyph = np.asarray(Image.fromarray(ink).resize((small, small), Image.BOX))
    return np.asarray(Image.fromarray(glyph.astype("float32")).resize((SIZE, SIZE), Image.BILINEAR))


def draw(fields, font_words, rng, count):
    """Draw captioned glyphs: images uint8 (count, 32, 32, 3) and captions int32 (count, 8), in the order of WORDS."""
    is_digit = rng.random(count) < DIGIT_SHARE
    character = np.where(is_digit, rng.integers(0, 10, count), rng.integers(10, len(CHARACTERS), count))
    font = rng.integers(0, len(fields), count)
    stroke = rng.uniform(-1.0, 3.5, count).astype("float32")  # added to each side of the stroke, px of 64
    scale = rng.uniform(0.8, 1.7, count)
    slant = rng.normal(0, 0.22, count)
    aspect = np.exp(rng.normal(0, 0.22, count))
    angle = rng.normal(0, 0.12, count)
    shift = rng.normal(0, 1.5, (count, 2))
    bend = rng.uniform(0, 3.0, count)
    resolution = rng.choice(len(RESOLUTIONS), count, p=[0.4, 0.2, 0.2, 0.2])
    palette = rng.choice(len(PALETTES), count, p=[0.65, 0.2, 0.15])

    side = SIZE * SUPERSAMPLING
    grid = (np.arange(side, dtype="float32") + 0.5) / side * FIELD - FIELD / 2  # px from the centre
    y, x = np.meshgrid(grid, grid, indexing="ij")
    columns = [v.astype("float32")[:, None, None] for v in (scale, aspect, slant, angle)]
    s, a, k, r = columns
    u = (np.cos(r) * x + np.sin(r) * y) / s / np.sqrt(a)  # narrow for a < 1
    v = (-np.sin(r) * x + np.cos(r) * y) / s * np.sqrt(a)
    u = u + k * v
    warp = smooth_warp(rng, count, side) * bend.astype("float32")[:, None, None, None]
    u = u + warp[..., 0] + FIELD / 2 - 0.5 + shift[:, 0].astype("float32")[:, None, None]
    v = v + warp[..., 1] + FIELD / 2 - 0.5 + shift[:, 1].astype("float32")[:, None, None]
    distance = look_up(fields[font, character], v, u)
    ink = np.clip(distance * s + stroke[:, None, None] + 0.5, 0, 1)  # (B, 64, 64), edge one px wide

    images = np.empty((count, SIZE, SIZE, 3), "uint8")
    levels = rng.uniform(0, 1, (count, 2, 3)).astype("float32")
    contrast = rng.uniform(0.8, 1.0, count)
    for i in range(count):
        glyph = scanned(ink[i], RESOLUTIONS[resolution[i]])
        if palette[i] == 2:
            low, high = levels[i]
        else:
            low, high = (0.0, contrast[i]) if palette[i] == 0 else (1.0, 1.0 - contrast[i])
        picture = low + (high - low) * glyph[..., None]  # (32, 32, 3)
        images[i] = np.clip(picture * 255, 0, 255)

    captions = np.stack(
        [
            1 + character,
            font_words[font],
            bin_word(stroke, -1.0, 3.5),
            1 + resolution,
            1 + palette,
            bin_word(scale, 0.8, 1.7),
            bin_word(slant, -0.45, 0.45),
            bin_word(np.log(aspect), -0.45, 0.45),
        ],
        axis=1,
    )
    return images, captions.astype("int32")


def corpus_part(arguments):
    """Worker: one part of the corpus, a function of (seed, part) alone."""
    seed, part, count = arguments
    fields, words = glyph_fields()
    made = [draw(fields, words, random_stream(seed, "corpus", part, i), min(500, count - i)) for i in range(0, count, 500)]
    return [np.concatenate(arrays) for arrays in zip(*made)]


def make_corpus(seed, count, processes=None):
    """The whole corpus on all cores, or as many `processes`: images uint8 (count, 32, 32, 3), captions int32 (count, 8)."""
    from concurrent.futures import ProcessPoolExecutor

    glyph_fields()  # most of the work: processes that are forked have them already
    sizes = [count // PARTS + (i < count % PARTS) for i in range(PARTS)]
    with ProcessPoolExecutor(processes) as pool:
        made = pool.map(corpus_part, [(seed, i, n) for i, n in enumerate(sizes)])
        images, captions = (np.concatenate(arrays) for arrays in zip(*made))
    order = random_stream(seed, "corpus", PARTS).permutation(count)
    return images[order], captions[order]
