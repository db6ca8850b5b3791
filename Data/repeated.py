"""Images that stand twice in a dataset: with equal pixels, or looking alike."""

import numpy as np

from Data.identity import image_hashes
from Data.near import near_copies
from Data.npz import SPLITS


def copies_within(split):
    """How many images of a split have the pixels of one before them in it."""
    return len(split.images) - len(np.unique(image_hashes(split.images)))


def repeated_images(splits):
    """Images with the pixels of another one: [(split, index, other split, other index, labels differ)].

    Only pairs that do harm: in two splits, or of two labels. Each image is named once for each other split.
    """
    sides = {split.images.shape[1:] for split in splits}
    if len(sides) > 1:
        return []
    hashes = np.concatenate([image_hashes(split.images) for split in splits])
    labels = np.concatenate([split.labels for split in splits])
    place = np.repeat(np.arange(3), [len(split.labels) for split in splits])
    first = np.concatenate([[0], np.cumsum([len(split.labels) for split in splits])])
    _, group, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    group = group.reshape(-1)
    many = np.flatnonzero(counts[group] > 1)
    many = many[np.argsort(group[many], kind="stable")]
    pairs = []
    for same in np.split(many, np.flatnonzero(np.diff(group[many])) + 1) if len(many) else []:
        pairs += partners(same.tolist(), place, labels)
    return [
        (SPLITS[place[i]], int(i - first[place[i]]), SPLITS[place[j]], int(j - first[place[j]]), bool(labels[i] != labels[j]))
        for i, j in pairs
    ]


def partners(same, place, labels):
    """Of images with equal pixels: pairs of each with the first of every other split, and with one of another label."""
    pairs, firsts, two = [], {}, []  # two: images of different labels; more are not needed
    for i in same:
        found = [
            firsts.get((split, labels[i]), firsts.get(split)) for split in range(3) if split != place[i] and split in firsts
        ]
        other = next((j for j in two if labels[j] != labels[i]), None)
        if other is not None and all(labels[j] == labels[i] for j in found):
            found.append(other)
        pairs += [(i, j) for j in found]
        firsts.setdefault(place[i], i)
        firsts.setdefault((place[i], labels[i]), i)
        if not two or len(two) < 2 and other is not None:
            two.append(i)
    return pairs


def count_between(pairs, split, other):
    """How many images of a split stand in another one too, of the pairs of `repeated_images`."""
    return len({i for a, i, b, _, _ in pairs if (a, b) == (split, other)})


def looks_repeated(splits, pairs):
    """Test images that look like training images, beside those with equal pixels: [(index, training index)], and the words for it."""
    exact = {i for a, i, b, _, _ in pairs if (a, b) == ("test", "train")}
    found, looked_at = near_copies(splits.test, splits.train)
    found = [pair for pair in found if pair[0] not in exact]
    words = (
        f"{len(found)} of {looked_at} test images look like one in train (copies that were resized, compressed or mirrored?)"
    )
    return found, words if found else ""


def count_repeated(pairs):
    """What `repeated_images` found, in words."""
    told = []
    for split, other in (("test", "train"), ("test", "val"), ("val", "train")):
        if number := count_between(pairs, split, other):
            told.append(f"{number} of {split} in {other} too")
    number = len({(a, i) for a, i, _, _, differ in pairs if differ})
    return told, [f"{number} under another label"] if number else []
