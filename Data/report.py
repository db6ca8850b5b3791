"""What is said of a dataset once it is loaded: what is used, what is not, what stands in two splits."""

import logging
from collections import Counter

import numpy as np

from Data.folders import BESIDE, BROKEN, IN_SUBFOLDER, LATER_PAGES, NOT_AN_IMAGE, OTHER_FOLDER
from Data.npz import SPLITS
from Data.registry import DATASETS
from Data.repeated import count_repeated, looks_repeated, repeated_images
from Experiment.files import write_csv
from Experiment.text import first_ten, shown

log = logging.getLogger("experiment")

MOST_NAMED = 6  # classes whose counts are given one by one


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
        return f"{self.spec.name}: {'; '.join(used)}; {side}{chosen}; not used: {counts_of_unused(self.unused) or 'none'}"

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
        return f"{self.spec.name}: {self.alike}, {pair} for one: what is measured on them may be too good"

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
            told.append(f"{pages} later pages of {len(found)} files ({first_ten([shown(i.file) for i in found], ', ')})")
            continue
        details = Counter(item.detail for item in found if item.detail) if reason not in (BROKEN, BESIDE) else {}
        names = [f"{shown(name)} {count}" for name, count in Counter(details).most_common()]
        told.append(f"{len(found)} {reason}" + (f" ({first_ten(names, ', ')})" if names else ""))
    return ", ".join(told)
