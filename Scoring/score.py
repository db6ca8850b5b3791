"""Repeats of a training, and the score: the mean of what they reach on test, its interval, and its difference to real."""

import argparse
import logging
import time

import numpy as np

from Experiment.files import write_json
from Experiment.intervals import accuracy_interval
from Experiment.paths import FIT_STATE, TRAINING_RECORD, repeat_folder
from Experiment.pictures import try_to_draw
from Experiment.predictions import (
    AGAINST_LARGEST,
    against_largest_class,
    compared_in_words,
    no_better_than_largest,
    note_result,
)
from Experiment.randomness import repeat_seed
from Experiment.records import describe_run, identity, short, training_record
from Experiment.results import top_5_in_words
from Experiment.text import shown
from Models.fit_state import epochs_done
from Models.runtime import make_repeatable
from Models.trained import load_best, measure, train_and_save, write_tested
from result_plots import experiment_cas_curve
from Scoring.inputs import taught_by, unit_of

log = logging.getLogger("experiment")

SCORES = ("top_1_accuracy", "top_5_accuracy", "balanced_accuracy", "auc")
PUBLISHED_SCORES = SCORES[:2]


def train_repeat(args, known, classifier, made, repeat, free):
    """Train one repeat and leave its record.

    Args:
        args: The script's arguments.
        known: What its `plan` has found.
        classifier: A `Classifier`.
        made: The `Material` that it learns from.
        repeat: Number of the repeat, from 1.
        free: Names of arguments that do not change the result.
    """
    started, seed, folder = time.time(), repeat_seed(args.seed, repeat), repeat_folder(known.folder, repeat)
    if repeat > 1:
        log.info("repeat %d of %d, seed %d -> %s", repeat, known.repeats, seed, folder)
        make_repeatable(seed, args.deterministic)
        classifier.draw_weights()
    best = train_and_save(
        classifier, (made.images, made.labels), known.splits.val, folder, identity(args, free, known.inputs),
        epochs=args.epochs, batch_size=args.batch_size, seed=seed, augment=made.augment(args, known.spec, seed),
        slices=made.slices,
    )  # fmt: skip
    facts = {"trained_on": str(known.set_folder or "real training images"), "images": len(made.labels)}
    facts |= {"repeat": repeat, "repeat_seed": seed} if repeat > 1 else {}
    facts["doubts"] = known.doubts  # empty ones too: of a record of an earlier version nothing is known
    alone = argparse.Namespace(**{name: value for name, value in vars(args).items() if name not in ("repeat", "repeats")})
    record = describe_run(alone, known.started if repeat == 1 else started, known.inputs, **facts, val_accuracy=best,
                          **known.origin)  # fmt: skip
    write_json(folder / TRAINING_RECORD, record)
    (folder / FIT_STATE).unlink(missing_ok=True)
    log.info("best validation accuracy %.4f", best)


def progress(args, known):
    """What of the training is saved, in words."""
    folders = [known.folders[args.repeat - 1]] if args.repeat else known.folders
    done = sum((folder / TRAINING_RECORD).exists() for folder in folders)
    if done == len(folders) or not args.train:
        return "the training is saved, the test begins anew"
    there = epochs_done(folders[min(done, len(folders) - 1)] / FIT_STATE)
    of_repeats = f"{done} of {len(folders)} repeats and " if len(folders) > 1 else ""
    return f"{of_repeats}{there} of {args.epochs} epochs are saved"


def score(args, known, classifier):
    """Test every repeat on real images that nothing has been selected on: accuracies as JSON and CSV, and pictures.

    Returns:
        {"top_1_accuracy": 0..1, "top_5_accuracy": 0..1}, means over the repeats.
    """
    results, predictions = [], []
    for folder in known.folders:
        load_best(classifier, folder)
        names = (known.spec.name, known.cardinality)
        measured = measure(classifier, known.splits.test, known.classes, folder, names, known.inputs["data"]["test"])
        results.append(measured[0])
        predictions.append(measured[1])
    experiment = known.experiment
    entry = summary(results, predictions) | {"predictions": known.folder.relative_to(experiment.root).as_posix()}
    entry |= {"test": short(known.inputs["data"]["test"]), **unit_of(args, known.spec)}
    entry |= taught_by(training_record(known.folder).get("inputs", {}))
    entry |= {"content": known.content} if known.content else {}
    entry |= {"doubts": known.doubts} if known.doubts else {}
    entry = {name: entry.pop(name) for name in PUBLISHED_SCORES} | known.origin | entry
    compared = note_result(experiment, args.classifier, known.cardinality, entry)
    picture = try_to_draw("the curve", experiment_cas_curve, experiment) or "no picture"
    tell(known, results, entry, picture)
    for size, comparison in compared.items():
        if known.cardinality in (size, "real"):
            tell_comparison(size, comparison)
    for folder, result in zip(known.folders, results):
        write_tested(folder, known.classes, result)
    return {name: entry[name] for name in PUBLISHED_SCORES}


def summary(results, predictions):
    """Means of the scores, their single values, 95 % intervals of the published ones, and what needs no classifier."""
    values = {name: [result[name] for result in results] for name in SCORES}
    firsts = {"top_1_accuracy": 1, "top_5_accuracy": predictions[0].ranking.shape[1]}
    hits = {name: np.stack([p.hits(first) for p in predictions]) for name, first in firsts.items()}
    return {
        **{name: None if None in of_score else float(np.mean(of_score)) for name, of_score in values.items()},
        "repeats": len(results),
        "test_images": len(predictions[0].labels),
        "values": values,
        "interval": {name: list(accuracy_interval(of_score)) for name, of_score in hits.items()},
        AGAINST_LARGEST: against_largest_class(predictions),
    }


def tell(known, results, entry, picture):
    """Log accuracies of the classes and of all."""
    by_class = np.nanmean([result["class_accuracies"] for result in results], axis=0)
    for name, value in zip(known.classes, by_class):
        log.info("  %-24s %.4f", shown(name), value)
    top_5 = top_5_in_words(entry["top_5_accuracy"], len(known.classes))
    log.info("test accuracy: top-1 %.4f, top-5 %s -> %s, %s", entry["top_1_accuracy"], top_5, known.experiment.cas_file,
             picture)  # fmt: skip
    if known.repeats > 1:
        log.info("top-1 of %d repeats: %s", known.repeats,
                 ", ".join(f"{value:.4f}" for value in entry["values"]["top_1_accuracy"]))  # fmt: skip
    low, high = entry["interval"]["top_1_accuracy"]
    auc = "none" if entry["auc"] is None else f"{entry['auc']:.4f}"
    log.info("top-1, 95 %% interval %.4f to %.4f on %d test images; balanced accuracy %.4f, AUC %s; always naming the largest "
             "class: %.4f", low, high, entry["test_images"], entry["balanced_accuracy"], auc,
             entry[AGAINST_LARGEST]["share"])  # fmt: skip
    for size, words in no_better_than_largest({known.cardinality: entry}):
        log.warning("%s is %s", size, words)


def tell_comparison(size, comparison):
    """Log how a synthetic result compares with the real one."""
    log.info("%s is %s", size, compared_in_words(comparison))
