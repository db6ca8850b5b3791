"""The parts of an audit: each looks at the set and the real images in one way, and returns figures and pictures."""

import logging

import numpy as np

from Audit import copies
from Audit.frequencies import drawn, drawn_alike
from Audit.material import CLASS_SAMPLE, Seen, see
from Audit.pictures import COLUMNS, ROWS, nearest_sheet
from Audit.quality import quality
from Audit.targets import real_folder
from Experiment.paths import TRAINING_RECORD
from Experiment.progress import each
from Models.classifier import Classifier
from Models.runtime import make_repeatable
from Models.teacher import teacher
from Models.trained import load_best
from Models.weight_cards import other_inputs
from sheets import side_by_side

log = logging.getLogger("experiment")

CLASS_SHARE = 5  # by which a class has fewer images than the whole, at most
PICTURED = 8  # images of a class beside each other


def real_classifier(name, spec, splits, inputs, experiment):
    """A classifier that has learnt from the real training images: the experiment's, else its teacher, trained if need be.

    Args:
        name: A key of `CLASSIFIERS`.
        spec, splits, experiment: Of the real data.
        inputs: {"classes": [...], "data": {"resolution", "train", "val", "test"}}.

    Returns:
        The `Classifier`, and its folder.
    """
    make_repeatable(0)
    if folder := real_folder(experiment, name, inputs):
        classifier = Classifier(name, spec.resolution, spec.num_classes)
        load_best(classifier, folder)
        return classifier, folder
    folder, seen = experiment.teacher_dir(name), ("resolution", "train", "val")
    if (folder / TRAINING_RECORD).exists() and other_inputs(folder, inputs, seen):  # that one stays
        folder = folder.with_name(f"{folder.name}_{spec.resolution}px_{inputs['data']['train'][:8]}")
    data = {key: inputs["data"][key] for key in seen}
    classifier, _ = teacher(name, spec, splits, {"classes": inputs["classes"], "data": data}, folder)
    return classifier, folder


class Views:
    """The set and the real splits as the audit sees them.

    Args:
        source: An `AuditedSet`.
        splits: The real `Splits` at the classifiers' resolution.
        extractors: {field: extractor}; one is `pixels`.
        folder: Where features are kept.
        inputs: {"data": {split: hash}}.

    Attributes:
        fake, train, val, test, held_out: `Seen` of each; held out are the validation and the test images.
        read: {the same names: function of rows that gives images}.
    """

    def __init__(self, source, splits, extractors, folder, inputs):
        key = "_".join(extractor.identity[:12] for extractor in extractors.values())
        mode, background = source.reading
        seen_as = source.sha256[:12] + (
            "_rounded" if mode == "bilinear" else "_{}_{:02x}{:02x}{:02x}".format(mode, *background)
        )
        self.source, self.splits, self.extractors, self.read = source, splits, extractors, {}

        def view(name, what, labels, read):
            path = folder / f"{source.spec.name}_{name}_{what}_{source.spec.resolution}_{key}.npy"
            log.info("looking at %d images: %s", len(labels), name)
            self.read[name] = lambda rows: read(rows)[0]
            return see(path, labels, read, extractors)

        self.fake = view("set", seen_as, source.labels, source.read)
        for name in ("train", "val", "test"):
            split = getattr(splits, name)
            read = lambda rows, split=split: (split.images[rows], {})  # noqa: E731
            setattr(self, name, view(name, inputs["data"][name][:12], split.labels, read))
        both = [np.concatenate(pair) for pair in zip(splits.val, splits.test)]
        self.held_out = Seen(np.concatenate([self.val.rows, self.test.rows]), both[1], extractors)
        self.read["held_out"] = lambda rows: both[0][rows]


def quality_part(views, most, seed, fid, classes):
    """{field: {"name", "all", "held_out", "classes"}}: `quality` of the set, of held-out real images, and by class.

    And {"told", "drawn"} of how frequent the classes are, see `drawn_alike`.
    """
    sides = {"train": views.train, "set": views.fake, "held_out": views.held_out}
    rows, told, by_class = drawn_alike(sides, most, seed, classes)
    if told:
        log.log(logging.INFO if by_class else logging.WARNING, "quality: %s", told)
    pair, most_of_class = {name: sides[name] for name in ("train", "set")}, max(1, most // CLASS_SHARE)
    rows_of = [drawn(pair, most_of_class, seed, CLASS_SAMPLE, label) for label in range(len(classes))]
    found = {}
    for field, extractor in views.extractors.items():

        def compared(name, rows, field=field):
            return quality(*(sides[side].features(field, rows[side]) for side in ("train", name)), seed, fid)

        log.info("quality by %s", extractor.name)
        found[field] = {
            "name": extractor.name,
            "words": extractor.words,
            "all": compared("set", rows),
            "held_out": compared("held_out", rows),
            "classes": [compared("set", of_class) for of_class in each(rows_of, "class")],
        }
    return found, {"told": told, "drawn": by_class}


def copies_part(views, most, seed, folder):
    """Figures of copies, and the sheets: {"exact", "near", "nearer"} and {field: picture}."""
    splits = {name: getattr(views, name) for name in ("train", "val", "test")}
    log.info("copies: within the set, and between it and the real splits")
    exact = {"the set itself": copies.exact_within(views.fake)}
    near = {"the set itself": copies.near_within(views.fake, views.read["set"])}
    for name, seen in splits.items():
        exact[f"the set and {name}"] = copies.exact_between(views.fake, seen)
        near[f"the set and {name}"] = copies.near_between(views.fake, views.read["set"], seen, views.read[name])
    for one, other in (("val", "train"), ("test", "train"), ("test", "val")):
        exact[f"{one} and {other}"] = copies.exact_between(splits[one], splits[other])
        near[f"{one} and {other}"] = copies.near_between(splits[one], views.read[one], splits[other], views.read[other])
    asked = {"generated": views.fake, "real test images": views.test}  # the latter show what an extractor does by itself
    nearer = {
        field: {
            who: copies.nearer_to_training(seen, seen.sample(most, seed), views.train, views.val, field, seed)
            for who, seen in asked.items()
        }
        for field in views.extractors
    }
    sheets = {field: closest(views, field, folder / f"nearest_{field}.png") for field in views.extractors}
    return {"exact": exact, "near": near, "nearer": nearer, "counted": len(views.fake.good)}, sheets


def closest(views, field, path):
    """The sheet of the generated images, of the whole set, that are nearest to a training image."""
    fake, train, held_out = views.fake, views.train, views.held_out
    distances, neighbours = copies.nearest_rows(fake, fake.good, train, train.good, field)
    order = np.argsort(distances, kind="stable")[: COLUMNS * ROWS]
    rows = fake.good[order]
    _, others = copies.nearest_rows(fake, rows, held_out, held_out.good, field)
    return nearest_sheet(
        views.read["set"](rows), views.read["train"](neighbours[order]), views.read["held_out"](others),
        distances[order], path, f"nearest by {views.extractors[field].name}; below: the distance to the training image",
    )  # fmt: skip


def samples_picture(views, classes, path):
    """Real training images of each class beside generated ones, drawn in the order of the set."""
    shown = []
    for seen, name in ((views.train, "train"), (views.fake, "set")):
        of_classes = [seen.good[seen.labels[seen.good] == label][:PICTURED] for label in range(len(classes))]
        shown.append((of_classes, views.read[name]))
    counts = [min(len(rows[label]) for rows, _ in shown) for label in range(len(classes))]
    labels = np.repeat(np.arange(len(classes)), counts)
    if not len(labels):
        return None
    images = [read(np.concatenate([rows[:count] for rows, count in zip(of_classes, counts)])) for of_classes, read in shown]
    return side_by_side(*images, labels, classes, path, ("real, of the training images", "generated"))
