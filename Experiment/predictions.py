"""What a classifier has predicted for each test image, in its folder: what comparisons with another one are made of."""

import logging
from typing import NamedTuple

import numpy as np

from Experiment.errors import UserError
from Experiment.files import atomic_path, change_json, plain_arrays
from Experiment.intervals import difference_interval, in_words, mcnemar, reserve, verdict
from Experiment.levers import filled_in, levers_on
from Experiment.paths import repeat_folder
from Experiment.results import recorded_training

log = logging.getLogger("experiment")

FILE = "test_predictions.npz"
COMPARED = "against_real"  # an entry of the results
AGAINST_LARGEST = "against_largest_class"  # another one


class Predictions(NamedTuple):
    """The first classes that a classifier ranks for each test image, and what they are.

    Attributes:
        ranking: int16 (N, k): the k likeliest classes, the likeliest first.
        labels: int16 (N,): the true ones.
        test: SHA-256 of the test images and labels.
    """

    ranking: np.ndarray
    labels: np.ndarray
    test: str

    def hits(self, first=1):
        """bool (N,): whether the true class is among the `first` likeliest."""
        return (self.ranking[:, :first] == self.labels[:, None]).any(axis=1)


def write_predictions(folder, predictions):
    with atomic_path(folder / FILE) as partial:
        np.savez(partial, **predictions._asdict())


def read_predictions(folder):
    """The `Predictions` in a classifier's folder; None where there are none: it was tested before they were kept.

    Raises:
        UserError: The file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    with plain_arrays(path) as data:
        if set(data.files) != set(Predictions._fields):
            raise UserError(f"{path} does not hold predictions: test the classifier again with --train False.")
        ranking, labels, test = (data[name] for name in Predictions._fields)
    if ranking.ndim != 2 or labels.shape != ranking.shape[:1]:
        raise UserError(f"{path} holds predictions of shape {ranking.shape} for labels of shape {labels.shape}.")
    return Predictions(ranking, labels, str(test))


def hits_of(root, entry):
    """Hits bool (R, N) of a result's repeats, and the SHA-256 of its test images; None where predictions are missing."""
    if "predictions" not in entry:
        return None
    folder = root / entry["predictions"]
    found = [read_predictions(repeat_folder(folder, repeat)) for repeat in range(1, entry["repeats"] + 1)]
    if None in found or len({predictions.test for predictions in found}) > 1:
        return None
    return np.stack([predictions.hits() for predictions in found]), found[0].test


def note_result(experiment, classifier, size, entry):
    """Put the entry of a size into the results file, and compare every synthetic result of the dataset with the real one.

    A comparison is of top-1 accuracy on the same test images. It is left out where the real result or its predictions are
    missing, or where the test images were others.

    Returns:
        {size: comparison}
    """
    compared = {}

    def noted(results):  # other sizes may be written at this moment: each is compared as it stands in the file
        entries = results.setdefault(classifier, {}).setdefault(experiment.dataset, {})
        entries[size] = entry
        real = hits_of(experiment.root, entries.get("real", {}))
        for other, one in entries.items():
            one.pop(COMPARED, None)  # of an earlier real result
            ours = hits_of(experiment.root, one) if other != "real" and real else None
            if ours and ours[1] == real[1]:
                one[COMPARED] = compared[other] = comparison(ours[0], real[0]) | trained_otherwise(one, entries["real"])
        return results

    change_json(experiment.cas_file, noted)
    return compared


def forget_result(experiment, classifier, size):
    """Take the entry of a size, whose classifier is thrown away, out of the results, what was compared with it, and the curve."""

    def left(results):
        entries = results.get(classifier, {}).get(experiment.dataset, {})
        entries.pop(size, None)
        if size == "real":
            for entry in entries.values():
                entry.pop(COMPARED, None)
        if not entries:
            results.get(classifier, {}).pop(experiment.dataset, None)
        return {name: datasets for name, datasets in results.items() if datasets}

    if experiment.cas_file.exists():
        change_json(experiment.cas_file, left)
    experiment.cas_plot.unlink(missing_ok=True)


def comparison(ours, real):
    """What a result says of its difference to real, from hits (R, N) and (S, N)."""
    difference, interval = float(ours.mean() - real.mean()), difference_interval(ours, real)
    limit = reserve(ours, real)
    said = {
        "difference": difference,
        "interval": list(interval),
        "verdict": verdict(interval, limit),
        "words": in_words(difference, interval, "real", limit),
        "repeats": [len(ours), len(real)],
        "test_images": ours.shape[1],
    }
    if len(ours) == len(real) == 1:
        said["mcnemar_p"] = mcnemar(ours[0], real[0])
    return said


def against_largest_class(predictions):
    """How far a result is above what needs no classifier: the answer that every test image is of the largest class of test.

    Args:
        predictions: A list of `Predictions`, one of each repeat.

    Returns:
        {"share": what that answer has right, 0..1, "difference", "interval", "verdict", "words"}
    """
    labels = predictions[0].labels
    largest = labels == np.bincount(labels).argmax()
    ours, theirs = np.stack([each.hits() for each in predictions]), np.stack([largest] * len(predictions))
    difference, interval = float(ours.mean() - theirs.mean()), difference_interval(ours, theirs)
    return {
        "share": float(largest.mean()),
        "difference": difference,
        "interval": list(interval),
        "verdict": verdict(interval),
        "words": in_words(difference, interval, "always naming the largest class"),
    }


def no_better_than_largest(entries):
    """[(size, in words)] of results {size: entry} that are not shown to be better than always naming the largest class."""
    compared = {size: entry[AGAINST_LARGEST] for size, entry in entries.items() if AGAINST_LARGEST in entry}
    return [(size, of["words"]) for size, of in compared.items() if of["verdict"] != "better"]


def trained_otherwise(entry, real):
    """How the real classifier's training differs in levers, epochs and training images, {"trained_otherwise": {name: [ours, real]}}.

    {} where it does not, or where one of them, a published result for one, does not say how it was trained. The training images
    of a synthetic set are those that its generator has learnt from.
    """
    sides, images = [training_of(entry), training_of(real)], [entry.get("learned_from"), real.get("learned_from")]
    differing = {"training images": images} if all(images) and images[0] != images[1] else {}
    if all(sides):
        ours, theirs = (filled_in(side, other) for side, other in zip(sides, reversed(sides)))
        differing |= {name: [value, theirs[name]] for name, value in ours.items() if theirs.get(name, value) != value}
    return {"trained_otherwise": differing} if differing else {}


def compared_in_words(compared):
    """A comparison as a sentence: the difference, what it is not sure of, and how the two trainings differ."""
    alone = f" (McNemar's p {compared['mcnemar_p']:.2g}; others may differ)" if "mcnemar_p" in compared else ""
    differing = compared.get("trained_otherwise", {})
    told = ", ".join(f"{name} {ours} (real: {real})" for name, (ours, real) in differing.items())
    return compared["words"] + alone + (f"; trained otherwise: {told}" if told else "")


def training_of(entry):
    training = recorded_training(entry)
    return {name: training[name] for name in ("epochs", "batch_size") if name in training} | levers_on(training)
