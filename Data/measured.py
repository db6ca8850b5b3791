"""What was measured of a synthetic set: accuracies of classifiers that have learnt from it, and figures of an audit."""

import logging

from Experiment.files import file_hash, read_json
from Experiment.levers import in_words, levers_on
from Experiment.paths import BEST_WEIGHTS, size_from_name
from Experiment.predictions import AGAINST_LARGEST
from Experiment.records import flattened, short
from Experiment.results import CAS_SCHEMA, all_doubts, interval_of, read_results, recorded_training, top_5_in_words

log = logging.getLogger("experiment")


def cas_rows(experiment, source):
    """The accuracies on real test images: [classifier, what it was trained on, levers, top-1, interval, top-5, balanced], as text.

    Those of this set, and of others of the same recipe that are not larger, since a larger set begins with the images of a
    smaller one. A result of fewer images than its set has is of a random part of it. Beside them those of the real training
    images, and what the answer has right that everything is of the largest class.

    Args:
        experiment: The `Experiment` with the results.
        source: The `SetToExport`.
    """
    rows, shares = [], set()
    for classifier, size, entry in entries_of(experiment, source):
        shares |= {entry[AGAINST_LARGEST]["share"]} if AGAINST_LARGEST in entry else set()
        learned = "the real training images"
        if size != "real":
            count, share = images_of(entry, size, source), levers_on(recorded_training(entry)).get("real_share", 0)
            learned = f"{count - round(share * count):,} generated images" + (
                f" and {round(share * count):,} real ones" if share else ""
            )
        rows.append([classifier, learned, *scores(entry, source.spec.num_classes)])
    balanced = f"{1 / source.spec.num_classes:.4f}"
    return rows + [
        ["none", "nothing: always the largest class", "nothing", f"{share:.4f}", "", "", balanced] for share in sorted(shares)
    ]


def cas_doubts(experiment, source):
    """Why these accuracies may be too good: a list of text."""
    return all_doubts(entry for _, _, entry in entries_of(experiment, source))


def entries_of(experiment, source):
    """The results behind `cas_rows`: (classifier, size, entry)."""
    for classifier, datasets in cas_results(experiment).items():
        entries = datasets.get(experiment.dataset, {})
        ours = {size: entry for size, entry in entries.items() if size != "real" and is_of(entry, size, source)}
        yield from ((classifier, size, ours[size]) for size in sorted(ours, key=lambda size: int(size[1:])))
        if ours and "real" in entries:
            tests = {entry["test"] for entry in [*ours.values(), entries["real"]] if "test" in entry}
            if len(tests) > 1:
                log.warning("the accuracy after real images was measured on other test images: it is left out")
            else:
                yield classifier, "real", entries["real"]


def images_of(entry, size, source):
    """How many images a result of a size is of; results of earlier versions do not say how many 1x were."""
    return int(size[1:]) * entry.get("unit", source.spec.unit)


def cas_results(experiment):
    return read_results(experiment.cas_file, CAS_SCHEMA) if experiment.cas_file.exists() else {}


def is_of(entry, size, source):
    """Whether a result comes from a set, or another one of the same recipe whose images are all in it."""
    made = entry.get("set")
    if not isinstance(made, dict) or images_of(entry, size, source) > source.total:
        return False
    folder = str(made.get("folder"))
    if folder == source.folder.name and entry.get("content", short(source.sha256)) != short(source.sha256):
        log.warning("%s of the results was measured on other images than %s holds now: it is left out", size, source.folder)
        return False
    if folder != source.folder.name and (size_from_name(folder) or source.total + 1) > source.total:
        return False
    return {key: value for key, value in made.items() if key != "folder"} == source.recipe


def scores(entry, num_classes):
    """The levers of a result's training, its accuracies, and the 95 % interval of the first; balanced is the mean over classes."""
    interval = interval_of(entry, "top_1_accuracy")
    told = in_words(recorded_training(entry)) or "nothing"
    within = f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else "not measured"
    balanced = f"{entry['balanced_accuracy']:.4f}" if "balanced_accuracy" in entry else "not measured"
    top_5 = top_5_in_words(entry["top_5_accuracy"], num_classes)
    return [told, f"{entry['top_1_accuracy']:.4f}", within, top_5, balanced]


def recorded_audit(folder):
    """The same as an audit's `of`, of an earlier version, from the record beside it."""
    record = folder.with_name(f"{folder.name}.audit") / "run.json"
    run = read_json(record) if record.exists() else {}
    said = run.get("inputs", {}).get("classifiers", "none")
    if not isinstance(said, dict):
        said = dict(each.split(" ") for each in said.split(", ")) if said != "none" else {}
    kind = run.get("arguments", {}).get("classifier")
    return {"set": run.get("inputs", {}).get("set"), "classifier": kind, "classifiers": said}


def trained_since(of, experiment):
    """What an audit is of that is no longer there, in words: classifiers whose weights are others now; empty where none is."""
    entries = cas_results(experiment).get(of.get("classifier"), {}).get(experiment.dataset, {})
    changed = []
    for size, sha256 in of.get("classifiers", {}).items():
        weights = experiment.root / entries.get(size, {}).get("predictions", "none") / BEST_WEIGHTS
        if weights.exists() and file_hash(weights) != sha256:
            changed.append(size)
    return f"classifiers than those of now ({', '.join(changed)})" if changed else ""


def audit_file(folder):
    """Where the figures of a set's audit lie: beside its folder."""
    return folder.with_name(f"{folder.name}.audit.json")


def audit_tables(folder, sha256, experiment):
    """What a set's audit has found, in brief: [{"header", "rows"}] of text.

    Empty where there was none, or one of other images than those of the hash, or of classifiers that have been trained again
    since. Audits of earlier versions hold figures alone.

    Args:
        folder: Of the set.
        sha256: Of its images.
        experiment: The `Experiment` whose classifiers an audit asks.
    """
    file = audit_file(folder)
    if not file.exists():
        return []
    found = read_json(file)
    of = found.get("of") or recorded_audit(folder)
    what = "images than those that are there now" if of.get("set") not in (None, sha256) else ""
    if what := what or trained_since(of, experiment):
        log.warning("%s is of other %s: it is left out", file, what)
        return []
    figures = flattened(found.get("figures", found)).items()
    plain = [{"header": ["figure", "value"], "rows": [[name, short(value)] for name, value in figures]}]
    return found.get("brief", plain)
