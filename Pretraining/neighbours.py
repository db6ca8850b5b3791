"""Is a test image among the photographs? `python -m Pretraining.neighbours --photographs FOLDER --dataset NAME ...`.

The nearest photograph of each test image by normalised correlation: crops of each photograph and the image, 16 px in
colour, mean removed, of length 1. Exit code 1 if any correlation is above the threshold.
"""

import argparse
import logging
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from cli.process import run
from Data.loaders import load_splits
from Data.registry import dataset_spec
from Experiment.plan import Plan
from Pretraining.photographs import listed_photographs, read_photographs, source_hashes

log = logging.getLogger("experiment")

SIDE, SEEN_AT = 16, 32  # px: of what is compared, and of the test images
# Not yet chosen on real photographs: an earlier version, of other crops, saw at most 0.967 without copies.
THRESHOLD = 0.985
FLAT = 8.0  # of 255, standard deviation: images of less contrast correlate by chance and are not compared
POSITIONS, SCALES = (0.0, 0.5, 1.0), (0.95, 0.85)  # of the whole shorter side; of crops in the centre
BLOCK = 128  # photographs


def thumbnail(picture, box=None):
    """float32 (768,) of a PIL picture or a box (left, top, right, bottom) of it."""
    return np.asarray(picture.resize((SIDE, SIDE), Image.BOX, box), "float32").ravel()


def crops_of(photograph):
    """Thumbnails float32 (n, 768) of a photograph uint8 (H, W, 3): squares at fixed places, each mirrored too."""
    picture, side = Image.fromarray(photograph), min(photograph.shape[:2])
    places = [(1.0, at) for at in POSITIONS] + [(scale, 0.5) for scale in SCALES]
    made = []
    for scale, at in places:
        size = scale * side
        left, top = (picture.width - size) * at, (picture.height - size) * at
        made.append(thumbnail(picture, (left, top, left + size, top + size)))
    mirrored = np.reshape(made, (-1, SIDE, SIDE, 3))[:, :, ::-1].reshape(len(made), -1)
    return np.concatenate([made, mirrored])


def normalised(vectors):
    """Vectors (n, d) without their mean and of length 1; zero where they are flat."""
    centred = vectors - vectors.mean(1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    flat = length < FLAT * vectors.shape[1] ** 0.5
    return np.where(flat, 0, centred / np.maximum(length, 1e-6))


def nearest(images, folder, photographs):
    """The nearest photograph of each image uint8 (N, H, W, 3).

    Args:
        folder, photographs: As in `read_photographs`.

    Returns:
        Correlations float32 (N,), -1 for flat images, and indices of photographs int (N,).
    """
    queries = normalised(np.stack([thumbnail(Image.fromarray(image)) for image in images]))
    best, index = np.full(len(images), -1, "float32"), np.zeros(len(images), int)
    for start in range(0, len(photographs), BLOCK):
        block = [crops_of(pixels) for pixels in read_photographs(folder, photographs[start : start + BLOCK])]
        products = queries @ normalised(np.concatenate(block)).T
        at = products.argmax(1)
        found = products[np.arange(len(images)), at]
        better = found > best
        best[better], index[better] = found[better], start + at[better] // len(block[0])
    best[~queries.any(1)] = -1
    return best, index


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m Pretraining.neighbours", allow_abbrev=False, description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--photographs", type=Path, required=True, help="folder of the tar files")
    add("--other_photographs", action="store_true", help="take whatever tar files are in --photographs")
    add("--dataset", nargs="+", required=True, help="names or paths of evaluation sets")
    add("--data_dir", type=Path, default=Path("Data/Real"), help="folder of official files (Data/Real)")
    return parser.parse_args(argv)


def plan(args):
    """Look at what is there. UserError: photographs are missing or others, or a dataset is unknown."""
    files = source_hashes(args.photographs, args.other_photographs)
    specs = [dataset_spec(name) for name in args.dataset]
    return Plan(specs=specs, photographs=listed_photographs(args.photographs, files)[0], done=None)


def compare(args, known):
    """Print a line a set. Exits with code 1 if an image is above the threshold."""
    copies = 0
    for spec in known.specs:
        images = load_splits(spec, args.data_dir, side=SEEN_AT).test.images
        best, index = nearest(images, args.photographs, known.photographs)
        above, top = int((best > THRESHOLD).sum()), int(best.argmax())
        file, member, _ = known.photographs[index[top]]
        print(f"{spec.name}: {len(images)} test images, {(best < 0).sum()} too flat to compare; largest correlation "
              f"{best[top]:.3f} (image {top}, {file}/{member}); {above} above {THRESHOLD}")  # fmt: skip
        copies += above
    if copies:
        sys.exit(f"neighbours.py: error: {copies} test images are among the photographs, or nearly")


if __name__ == "__main__":
    run(compare, parse_args, plan, starts_keras=False)
