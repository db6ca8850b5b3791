"""Images of two splits that look alike: copies that were resized, compressed or mirrored, which no hash of pixels finds."""

import numpy as np

SIDE = 16  # of the thumbnails that are compared, px
NEAR = 2.5  # grey levels of 255, root mean square: copies differ by less, other photographs by several times as much
# Standard deviation from the mean thumbnail of its class up to which an image shows too little of its own to be recognised.
FLAT = 8
MOST, MOST_IMAGES = 10_000_000, 2_000  # pairs, and images of the one split, that are looked at
PIECE = 64  # images at a time: thumbnails of all may take as much memory as the images
NUMBERS = 2**16  # pixel values at a time


def thumbnails(images):
    """Means of equal areas of images uint8 (N, H, H, 3), as uint8 (N, SIDE, SIDE, 3)."""
    side, edges = images.shape[1], np.linspace(0, images.shape[1], SIDE + 1)
    pixels = np.arange(side)
    overlaps = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = (np.maximum(overlaps, 0) * SIDE / side).astype("float32")  # (SIDE, H)
    small, step = np.empty((len(images), SIDE, SIDE, 3), np.uint8), max(1, NUMBERS // (side * side * 3))
    for start in range(0, len(images), step):
        rows = weights @ images[start : start + step].reshape(-1, side, side * 3).astype("float32")
        columns = rows.reshape(-1, SIDE, side, 3).swapaxes(1, 2).reshape(-1, side, SIDE * 3)
        small[start : start + step] = np.rint(weights @ columns).reshape(-1, SIDE, SIDE, 3).swapaxes(1, 2)
    return small


def near_copies(split, other):
    """Images that look like one of another split, as they are or, of the same class, mirrored.

    Args:
        split, other: A `Split` each.

    Returns:
        [(index, index in the other split)], and how many images were looked at: of many every second, third, ... one.
    """
    count, others = len(split.labels), len(other.labels)
    rows = np.arange(0, count, max(1, -(-count // min(MOST_IMAGES, max(1, MOST // others)))))
    pieces = [rows[i : i + PIECE] for i in range(0, len(rows), PIECE)]
    small = [thumbnails(split.images[piece]) for piece in pieces]
    labels, sums = split.labels[rows], np.zeros((other.labels.max() + 1, SIDE, SIDE, 3))  # 6 KB a class
    least, nearest = np.full(len(rows), np.inf), np.zeros(len(rows), int)
    for start in range(0, others, PIECE):
        theirs = thumbnails(other.images[start : start + PIECE])
        np.add.at(sums, other.labels[start : start + PIECE], theirs)
        for i, ours in enumerate(small):
            here = slice(i * PIECE, i * PIECE + len(ours))
            another_class = labels[here, None] != other.labels[start : start + PIECE]
            for mirrored in (False, True):  # of another class an arrow to the left is none to the right
                squares = differences(ours[:, :, ::-1] if mirrored else ours, theirs)
                squares[another_class & mirrored] = np.inf
                closest = squares.argmin(axis=1)
                found = squares[np.arange(len(ours)), closest]
                nearest[here] = np.where(found < least[here], start + closest, nearest[here])
                least[here] = np.minimum(found, least[here])
    near = [i for i in np.flatnonzero(least <= NEAR**2) if shows_its_own(nearest[i], other, sums)]
    return [(int(rows[i]), int(nearest[i])) for i in near], len(rows)


def shows_its_own(index, split, sums):
    """Whether an image differs from the mean of the others of its class, which all photographs of one place or kind share.

    Args:
        index, split: The image's number, and its `Split`.
        sums: Of the thumbnails of each class (K, SIDE, SIDE, 3).
    """
    label = split.labels[index]
    total, count = sums[label], np.count_nonzero(split.labels == label)
    if count == 1:  # there are no others
        total, count = sums.sum(axis=0), len(split.labels)
    (image,) = thumbnails(split.images[index : index + 1]).astype(float)
    others = (total - image) / max(1, count - 1)
    return bool((image - others).std(axis=(0, 1)).max() > FLAT)


def differences(images, others):
    """Mean squared differences (N, M) of the pixels of images uint8 (N, H, H, 3) and (M, H, H, 3)."""
    one, two = (side.reshape(len(side), -1).astype("float32") - 128 for side in (images, others))
    return ((one**2).sum(axis=1)[:, None] + (two**2).sum(axis=1) - 2 * one @ two.T) / one.shape[1]
