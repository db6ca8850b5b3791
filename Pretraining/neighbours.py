"""Is a test image among the photographs? `python -m Pretraining.neighbours --photographs FOLDER --dataset NAME ...`.

The nearest photograph of each test image by normalised correlation of pixels (mean removed, of length 1): crops of each
photograph at 8 px in colour find it; then the best place of the image in it, mirrored or not, is sought at 16 px. Exit
code 1 if any correlation is above the threshold.
"""

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from cli.process import run
from Data.loaders import load_splits
from Data.registry import dataset_spec
from Experiment.paths import REAL_DATA
from Experiment.plan import Plan
from Pretraining.photographs import listed_photographs, read_photographs, source_hashes

COARSE, FINE, SEEN_AT = 8, 16, 32  # px: of what is compared first, of what is compared then, and of the test images
# Of crops of the photographs at any place, of 0.7 to 1 of the shorter side, mirrored, brighter, through JPEG at 32 px, nine in
# ten are above, the others full of fine detail; of 2,028 images of five evaluation sets none is: 0.962 at most.
THRESHOLD = 0.97
FLAT = 8.0  # of 255, standard deviation: images of less contrast correlate by chance and are not compared
LEAST = 0.1  # the same of what only proposes where to look closely: fine texture is nearly flat at 8 px
SCALES, POSITIONS = (1.0, 0.9, 0.8, 0.7), (0.0, 0.5, 1.0)  # of the shorter side; of the room that a crop leaves
CANDIDATES = 3  # photographs that are looked at closely: a crop beside its place on the grid correlates less
FIRST_STEP, LAST_STEP = 0.12, 0.01  # of a box's side: how far it is moved in search of the best place
BLOCK = 128  # photographs


def thumbnail(picture, side, box=None):
    """float32 (3 side^2,) of a PIL picture or a box (left, top, right, bottom) of it."""
    return np.asarray(picture.resize((side, side), Image.BOX, box), "float32").ravel()


def boxes(width, height):
    """Where a photograph is looked at: all of it, squeezed, and squares of some sizes on a grid; (left, top, right, bottom)."""
    found = [(0.0, 0.0, float(width), float(height))]
    for scale in SCALES:
        side = scale * min(width, height)
        places = itertools.product(*(sorted({(room - side) * at for at in POSITIONS}) for room in (width, height)))
        found += [(left, top, left + side, top + side) for left, top in places]
    return found


def normalised(vectors, least):
    """Vectors (n, d) without their mean and of length 1; zero where their standard deviation is below `least`."""
    centred = vectors - vectors.mean(1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    flat = length < least * vectors.shape[1] ** 0.5
    return np.where(flat, 0, centred / np.maximum(length, 1e-6))


def queries(images, side, least):
    """Thumbnails of images uint8 (N, H, W, 3), normalised, and of the mirrored ones: float32 (2, N, 3 side^2)."""
    both = np.stack([images, images[:, :, ::-1]])
    return np.stack([normalised(np.stack([thumbnail(Image.fromarray(x), side) for x in some]), least) for some in both])


def nearest(images, folder, photographs):
    """The nearest photograph of each image uint8 (N, H, W, 3).

    Args:
        folder, photographs: As in `read_photographs`.

    Returns:
        Correlations float32 (N,), -1 for flat images, and indices of photographs int (N,).
    """
    coarse, fine = queries(images, COARSE, LEAST), queries(images, FINE, FLAT)
    found = [[] for _ in images]  # (correlation, photograph, box, mirrored), best first
    for start in range(0, len(photographs), BLOCK):
        crops = []
        for i, pixels in enumerate(read_photographs(folder, photographs[start : start + BLOCK]), start):
            picture = Image.fromarray(pixels)
            crops += [(i, box, thumbnail(picture, COARSE, box)) for box in boxes(*picture.size)]
        products = coarse @ normalised(np.stack([vector for _, _, vector in crops]), LEAST).T  # (2, N, crops)
        for n in range(len(images)):
            found[n] = best_few(found[n], products[:, n], crops)
    best, index = np.full(len(images), -1, "float32"), np.zeros(len(images), int)
    wanted = {i for few in found for _, i, _, _ in few}
    pictures = dict(zip(sorted(wanted), read_photographs(folder, [photographs[i] for i in sorted(wanted)])))
    for n in np.flatnonzero(fine[0].any(1)):
        for _, i, box, mirrored in found[n]:
            correlation = place_of(fine[mirrored, n], Image.fromarray(pictures[i]), box)
            if correlation > best[n]:
                best[n], index[n] = correlation, i
    return best, index


def best_few(found, products, crops):
    """The `CANDIDATES` photographs of the largest correlations, among those found so far and a block's: (2, crops)."""
    either = products.max(0)
    least = found[-1][0] if len(found) == CANDIDATES else -2
    for at in sorted(np.flatnonzero(either > least), key=lambda at: -either[at]):
        i, box, _ = crops[at]
        if len(found) == CANDIDATES and either[at] <= found[-1][0]:
            break
        if not any(photograph == i and correlation >= either[at] for correlation, photograph, *_ in found):
            others = [known for known in found if known[1] != i]
            ours = (float(either[at]), i, box, int(products[:, at].argmax()))
            found = sorted([*others, ours], key=lambda known: -known[0])[:CANDIDATES]
    return found


def place_of(query, picture, box):
    """The largest correlation of an image with boxes of a picture, by steps from a box that halve where none is better."""

    def correlation(box):
        return float(normalised(thumbnail(picture, FINE, box)[None], FLAT)[0] @ query)

    best, step = correlation(box), FIRST_STEP
    while step > LAST_STEP:
        width, height = box[2] - box[0], box[3] - box[1]
        moves = [(dx, dy, grow) for dx, dy, grow in itertools.product((-1, 0, 1), repeat=3) if dx or dy or grow]
        tried = [(correlation(moved), moved) for moved in (
            moved_box(box, dx * step * width, dy * step * height, 1 + grow * step) for dx, dy, grow in moves
        ) if inside(moved, picture)]  # fmt: skip
        found, moved = max(tried, default=(-1, box))
        if found > best:
            best, box = found, moved
        else:
            step /= 2
    return best


def moved_box(box, dx, dy, scale):
    """A box moved, and made larger or smaller about its centre."""
    left, top, right, bottom = box
    x, y = (left + right) / 2 + dx, (top + bottom) / 2 + dy
    w, h = (right - left) * scale / 2, (bottom - top) * scale / 2
    return x - w, y - h, x + w, y + h


def inside(box, picture):
    """Whether a box has an area and lies within a picture."""
    return 0 <= box[0] < box[2] <= picture.width and 0 <= box[1] < box[3] <= picture.height


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m Pretraining.neighbours", allow_abbrev=False, description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--photographs", type=Path, required=True, help="folder of the tar files")
    add("--other_photographs", action="store_true", help="take whatever tar files are in --photographs")
    add("--dataset", nargs="+", required=True, help="names or paths of evaluation sets")
    add("--data_dir", type=Path, default=Path(REAL_DATA), help=f"folder of official files ({REAL_DATA})")
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
