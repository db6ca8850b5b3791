"""Copies: what of a set stands in the real splits too, exactly or nearly, and which training image is nearest.

These figures say how near images are. They are no measure of privacy (arXiv 2505.01524): a set without copies can give
away what was trained on, see Audit/attacks.py.
"""

import numpy as np

from Audit.material import PIECE, REFERENCE, SWAPS
from Audit.neighbours import nearest
from Experiment.intervals import percentiles
from Experiment.randomness import random_stream

NEAR = 5 / 255  # root mean square difference of pixels below which two images are near duplicates
MOST = 32_768  # images whose features are in memory at a time
TIMES = 999  # that training and validation images swap places
PIXELS = "pixels"  # field of the features in which near duplicates are looked for


def keys(hashes):
    """Hashes uint64 (N, 2) as one sortable value each, (N,)."""
    return np.ascontiguousarray(hashes).view("S16").reshape(-1)


def exact_within(seen):
    """How many readable images have the pixels of another one, of whatever class."""
    _, counts = np.unique(keys(seen.hashes[seen.good]), return_counts=True)
    return int(counts[counts > 1].sum())


def exact_between(seen, other):
    """How many readable images have the pixels of one of another split."""
    return int(np.isin(keys(seen.hashes[seen.good]), keys(other.hashes[other.good])).sum())


def pixel_difference(left, right):
    """Root mean square difference (N,), 0..1, of images uint8 (N, H, H, 3)."""
    difference = left.astype("float32") - right
    return np.sqrt((difference**2).mean(axis=(1, 2, 3))) / 255


def nearest_rows(seen, rows, others, other_rows, field, same=False):
    """Distances (N,) and rows (N,) of the nearest other images of `rows`, in the features of a field.

    Args:
        seen, others: `Seen` of both.
        rows, other_rows: int: which of them.
        field: Of the features.
        same: Whether both are the same images: then an image is not its own neighbour.
    """
    reference, pieces = (others.features(field, other_rows), [rows] if same else np.array_split(rows, -(-len(rows) // MOST)))
    found = [nearest(seen.features(field, piece), reference, same) for piece in pieces]
    distances, places = map(np.concatenate, zip(*found))
    return distances, other_rows[places]


def count_near(seen, read, rows, others, read_others, other_rows, same=False):
    """How many images are near duplicates of their nearest ones: the components of the pixels give these, the pixels decide.

    Images that differ by more in the components cannot be as near in the pixels: they are not read.

    Args:
        read, read_others: Functions of rows that give images uint8 (n, H, H, 3).
        seen, rows, others, other_rows, same: As in `nearest_rows`.
    """
    distances, found = nearest_rows(seen, rows, others, other_rows, PIXELS, same)
    possible, count = np.flatnonzero(distances < seen.extractors[PIXELS].distance_of(NEAR)), 0
    for start in range(0, len(possible), PIECE):
        here = possible[start : start + PIECE]
        count += int((pixel_difference(read(rows[here]), read_others(found[here])) < NEAR).sum())
    return count


def near_within(seen, read):
    """How many images have a near duplicate of their own class in the set."""
    of_classes = (seen.good[seen.labels[seen.good] == label] for label in np.unique(seen.labels[seen.good]))
    return sum(count_near(seen, read, rows, seen, read, rows, same=True) for rows in of_classes if len(rows) > 1)


def near_between(seen, read, others, read_others):
    """How many images have a near duplicate in another split."""
    return count_near(seen, read, seen.good, others, read_others, others.good)


def nearer_to_training(queries, rows, train, val, field, seed):
    """The share of images that are nearer to a training image than to any validation image; equally near count half.

    Both references have the same number of images, drawn by seed: else the larger one would win. A few images of either may
    be the nearest of many, so that the share of two references of one kind is often far from a half, however many images
    are asked: what chance gives is found by reference images that swap sides.

    Args:
        queries, train, val: `Seen`.
        rows: int (N,): which of the queries.
        field: Of the features.
        seed: The user's seed.

    Returns:
        {"share", "chance": [low, high], the middle 95 % of the shares after such swaps, "p": how often these are as high or
        higher, "images": N, "reference": images of each}.
    """
    most = min(len(train.good), len(val.good))
    references = [side.sample(most, seed, REFERENCE + i) for i, side in enumerate((train, val))]
    (to_train, near_train), (to_val, near_val) = (
        nearest_rows(queries, rows, side, reference, field) for side, reference in zip((train, val), references)
    )
    won = (to_train < to_val) + 0.5 * (to_train == to_val)
    of_train = np.bincount(near_train, won, references[0].max() + 1)[references[0]]
    of_val = np.bincount(near_val, 1 - won, references[1].max() + 1)[references[1]]
    share, swapped = float(won.mean()), swapped_shares(np.concatenate([of_train, of_val]) / len(rows), seed)
    return {
        "share": share,
        "chance": list(percentiles(swapped)),
        "p": float((1 + (swapped >= share - 1e-9).sum()) / (1 + TIMES)),
        "images": len(rows),
        "reference": most,
    }


def swapped_shares(won, seed):
    """What half of the reference images, drawn anew each time, win together: (TIMES,), from what each has won (2 R,)."""
    stream = random_stream(seed, "audit_subset", SWAPS)
    return np.array([stream.permutation(won)[: len(won) // 2].sum() for _ in range(TIMES)])
