"""What is said of a dataset once it is loaded: what is used, what is not, what stands in two splits; its fingerprint."""

import hashlib
import logging
from collections import Counter

import numpy as np

from Data.folders import BESIDE, BROKEN, IN_SUBFOLDER, LATER_PAGES, NOT_AN_IMAGE, OTHER_FOLDER
from Data.near import near_copies
from Data.registry import DATASETS, class_names
from Experiment.files import write_csv
from Experiment.text import first_ten, shown

log = logging.getLogger("experiment")

MOST_NAMED = 6  # classes whose counts are given one by one
ROWS = 1024  # images hashed at a time
SPLITS = ("train", "val", "test")


def image_hashes(images):
    """A 16-byte hash of the pixels of each image uint8 (N, H, W, 3), as an array (N,)."""
    hashes = np.empty(len(images), "S16")
    for i, image in enumerate(images):
        hashes[i] = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
    return hashes


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
        (
            SPLITS[place[i]],
            int(i - first[place[i]]),
            SPLITS[place[j]],
            int(j - first[place[j]]),
            bool(labels[i] != labels[j]),
        )
        for i, j in pairs
    ]


def partners(same, place, labels):
    """Of images with equal pixels: pairs of each with the first of every other split, and with one of another label."""
    pairs, firsts, two = [], {}, []  # two: images of different labels; more are not needed
    for i in same:
        found = [
            firsts.get((split, labels[i]), firsts.get(split))
            for split in range(3)
            if split != place[i] and split in firsts
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
    words = f"{len(found)} of {looked_at} test images look like one in train (copies that were resized, compressed or mirrored?)"
    return found, words if found else ""


def count_repeated(pairs):
    """What `repeated_images` found, in words."""
    told = []
    for split, other in (("test", "train"), ("test", "val"), ("val", "train")):
        if number := count_between(pairs, split, other):
            told.append(f"{number} of {split} in {other} too")
    number = len({(a, i) for a, i, _, _, differ in pairs if differ})
    return told, [f"{number} under another label"] if number else []


class Report:
    """What is said of a dataset: one line, one warning, and a file.

    Args:
        spec: Its `DatasetSpec`.
        splits: Its `Splits`.
        classes: Names of its classes.
        unused: A list of `Unused`.
        files: {split: names of its images}; without it images are named by number.
    """

    def __init__(self, spec, splits, classes, unused=(), files=None):
        self.spec, self.splits, self.classes, self.unused, self.files = spec, splits, classes, unused, files or {}
        self.pairs = repeated_images(splits)
        self.near, self.alike = looks_repeated(splits, self.pairs)

    def line(self):
        """Images of each split and class, the resolution, and what is not used by reason and number."""
        used = [f"{name} {counts_of(split, self.classes)}" for name, split in zip(SPLITS, self.splits)]
        read = self.splits.train.images.shape[1]
        side = f"{self.spec.resolution} px" + (f" (read at {read} px)" if read != self.spec.resolution else "")
        chosen = f" ({self.spec.chosen})" if self.spec.chosen else ""
        return (
            f"{self.spec.name}: {'; '.join(used)}; {side}{chosen}; not used: {counts_of_unused(self.unused) or 'none'}"
        )

    def warning(self):
        """One line on images that stand twice, empty where there are none."""
        between, labels = count_repeated(self.pairs)
        if not between + labels:
            return ""
        effect = "what is measured on them is too good" if between else "they cannot all be right"
        return f"{self.spec.name}: images with equal pixels: {', '.join(between + labels)}: {effect}"

    def second_warning(self):
        """One line on test images that look like training images, empty where there are none."""
        if not self.near:
            return ""
        i, j = self.near[0]
        pair = f"{self.image_name('test', i)} and {self.image_name('train', j)}"
        return f"{self.spec.name}: {self.alike}, {pair} for one: what is measured on them is too good"

    def image_name(self, split, index):
        return shown(self.files[split][index]) if split in self.files else f"{split}_images[{index}]"

    def rows(self):
        """The whole list, as rows of a CSV file."""
        rows = [{"file": shown(file), "what": reason, "detail": shown(detail)} for file, reason, detail in self.unused]
        for split, i, other, j, differ in self.pairs:
            what = f"{split}: the same pixels as in {other}" + (", under another label" if differ else "")
            rows.append({"file": self.image_name(split, i), "what": what, "detail": self.image_name(other, j)})
        alike = {"what": "test: looks like one in train"}
        return rows + [
            {"file": self.image_name("test", i), **alike, "detail": self.image_name("train", j)} for i, j in self.near
        ]

    def counts(self):
        """Images of each split and class, as rows of a CSV file."""
        return [
            {"split": name, "class": shown(self.classes[label]), "images": count}
            for name, split in zip(SPLITS, self.splits)
            for label, count in enumerate(np.bincount(split.labels, minlength=len(self.classes)).tolist())
        ]

    def tell(self, experiment=None):
        """Log the line and the warning; the list, and the counts of many classes, go into files of the experiment."""
        rows, place = self.rows(), ""
        if experiment:
            if rows:
                write_csv(experiment.unused_file, rows)
                place = f" (listed in {experiment.unused_file})"
            else:
                experiment.unused_file.unlink(missing_ok=True)
        counts = ""
        if experiment and len(self.classes) > MOST_NAMED and self.spec.name not in DATASETS:
            write_csv(experiment.used_file, self.counts())
            counts = f" (images of each class: {experiment.used_file})"
        log.info("%s%s%s", self.line(), place if self.unused else "", counts)
        for warning in filter(None, (self.warning(), self.second_warning())):
            log.warning("%s%s", warning, place)


def counts_of(split, classes):
    """Number of images of a split, and of each class or, of many classes, the least and most."""
    counts = np.bincount(split.labels, minlength=len(classes))
    if len(classes) > MOST_NAMED:
        return f"{counts.sum()} images, {counts.min()}..{counts.max()} in each of {len(classes)} classes"
    return f"{counts.sum()} images ({', '.join(f'{shown(c)} {n}' for c, n in zip(classes, counts))})"


def counts_of_unused(unused):
    """Number of files for each reason, with what tells the user where to look."""
    told = []
    for reason in (NOT_AN_IMAGE, IN_SUBFOLDER, BESIDE, OTHER_FOLDER, LATER_PAGES, BROKEN):
        found = [item for item in unused if item.reason == reason]
        if not found:
            continue
        if reason == LATER_PAGES:
            pages = sum(int(item.detail) for item in found)
            told.append(
                f"{pages} later pages of {len(found)} files ({first_ten([shown(i.file) for i in found], ', ')})"
            )
            continue
        details = Counter(item.detail for item in found if item.detail) if reason not in (BROKEN, BESIDE) else {}
        names = [f"{shown(name)} {count}" for name, count in Counter(details).most_common()]
        told.append(f"{len(found)} {reason}" + (f" ({first_ten(names, ', ')})" if names else ""))
    return ", ".join(told)


def data_identity(splits, spec):
    """What identifies a dataset wherever it lies: classes, resolution, and a hash of each split's pixels and labels.

    Args:
        splits: Its `Splits`. Images count in their order, which decides their random numbers in training.
        spec: Its `DatasetSpec`.

    Returns:
        {"classes": [...], "resolution": px, "train": SHA-256, "val": SHA-256, "test": SHA-256}
    """
    hashes = {name: split_hash(split) for name, split in zip(SPLITS, splits)}
    return {"classes": list(class_names(spec)), "resolution": spec.resolution, **hashes}


def split_hash(split):
    """SHA-256 of a split's shape, labels and pixels, a piece at a time."""
    digest = hashlib.sha256(repr(split.images.shape).encode())
    digest.update(np.ascontiguousarray(split.labels, "<i4").data)
    for start in range(0, len(split.images), ROWS):
        digest.update(np.ascontiguousarray(split.images[start : start + ROWS]).data)
    return digest.hexdigest()
