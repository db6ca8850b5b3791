"""The page of an experiment: what was run, curves, searches, samples, accuracies with intervals, the audit, and how to do it again."""

import os
import shlex

import pages
from Data.generation import sheet_file
from Data.identity import data_identity
from Data.measured import audit_file, audit_tables
from Data.registry import class_names, origin
from Data.synthetic import find_synthetic, read_manifest, set_identity
from Experiment.files import read_json
from Experiment.levers import in_words, levers_on
from Experiment.predictions import AGAINST_LARGEST, COMPARED, compared_in_words, no_better_than_largest
from Experiment.progress import duration
from Experiment.records import short
from Experiment.results import (
    FOUR_STEPS,
    all_doubts,
    interval_of,
    recorded_training,
    step_3_otherwise,
    steps_trained_otherwise,
    top_5_in_words,
)

SEARCHES = {"enc": "first search, after transfer learning", "dif": "final search, after fine-tuning"}
CURVES = {"enc": "Loss of transfer learning by epoch", "dif": "Loss of fine-tuning by epoch"}
FOOT = "Made by pipeline.py. Formulas and sources: README.md of the project and the pages that it names."


def write_report(experiment, spec, splits, classifier, stages, seconds, sizes, sets, drawn, common):
    """Write the page of an experiment whose stages are finished.

    Args:
        experiment: The `Experiment`.
        spec: The `DatasetSpec`.
        splits: The real `Splits`.
        classifier: Name of the classifier.
        stages: A list of `Stage`.
        seconds: {name of a stage, or `all`: s} of this run of the pipeline.
        sizes: Synthetic sets, in real sizes.
        sets: Their folders, see `set_of`.
        drawn: Picture of real images beside synthetic ones.
        common: Flags that every script of the experiment takes.

    Returns:
        The file.
    """
    entries = read_json(experiment.cas_file)[classifier][experiment.dataset]
    parts = [
        glance(entries, sizes),
        data_part(spec, splits, experiment.split_file),
        pages.section(
            "Samples", pages.figure(drawn, "Real training images beside synthetic ones, one class a row"), samples(sets[0])
        ),
        accuracy_part(experiment, entries, classifier, sizes, spec.num_classes),
        steps_part(experiment, spec.num_classes),
        curves_part(experiment),
        searches_part(experiment),
        confusion_part(experiment, entries),
        audit_part(experiment, sets, class_names(spec), common),
        run_part(experiment, stages, seconds, sets[-1]),
    ]
    lead = (
        f"A diffusion model adapted to {spec.name}, a synthetic dataset made with it, and classifiers that have learnt from it"
    )
    title = f"Experiment {experiment.exp} on {experiment.dataset}"
    return pages.write_page(experiment.report_page, pages.page(title, lead, filter(None, parts), FOOT))


def set_of(experiment, spec, classifier, take):
    """Folder of the set that the classifier of a size has learnt from: which of several is on record with its result."""
    made = read_json(experiment.cas_file)[classifier][experiment.dataset][f"x{take}"].get("set")
    folder = experiment.synthetic_root / str(made.get("folder")) if isinstance(made, dict) else None
    if folder and folder.is_dir():
        return folder
    return find_synthetic(experiment.synthetic_root, spec.num_classes, take * spec.unit)


def glance(entries, sizes):
    told = [(f"{entries['real']['top_1_accuracy']:.3f}", "accuracy of a classifier that has seen the real training images")]
    told += [
        (f"{entries[f'x{n}']['top_1_accuracy']:.3f}", f"accuracy after {n}x synthetic images{beside(entries[f'x{n}'])}")
        for n in sizes
    ]
    return pages.cards(told)


def beside(entry):
    """How real training images take part beside those that the generator has learnt from, in words."""
    training, made = levers_on(recorded_training(entry)), levers_on(entry.get("set", {}))
    if share := training.get("real_share"):
        return f" and real ones, a share of {share:g}"
    taught = [" with labels of" if "labels" in training else "", " chosen by" if "filter" in made else ""]
    taught = " and".join(filter(None, taught))
    return f"{taught} a classifier that has learnt from the real ones" if taught else " alone"


def data_part(spec, splits, split_file):
    known, identity = origin(spec), data_identity(splits, spec)
    rows = [[name, f"{len(split.labels):,}", identity[name][:16]] for name, split in splits._asdict().items()]
    told = f"{spec.num_classes} classes: {', '.join(class_names(spec)[:20])}{' ...' if spec.num_classes > 20 else ''}. Classifiers see {spec.resolution} px."
    if split_file.exists() and "test" in read_json(split_file).get("files", {}):
        told += (" They were divided here, at random by image: photographs of one object, person or burst may stand on both sides, "
                 "and accuracies are then too good.")  # fmt: skip
    if known:
        told += f" {known.citation}. Licence: {known.licence.name if known.licence else 'stated by nobody'}."
    return pages.section("The real images", pages.paragraph(told), pages.table(["split", "images", "content"], rows))


def samples(folder):
    """The sheet of samples that generation has left beside a set."""
    return pages.figure_if_there(sheet_file(folder), f"Samples of {folder.name}")


def interval(entry, score="top_1_accuracy"):
    ends = interval_of(entry, score)
    return "not measured" if not ends else f"{ends[0]:.3f} to {ends[1]:.3f}"


def accuracy_part(experiment, entries, classifier, sizes, num_classes):
    rows, against = [], []
    for size in ("real", *(f"x{n}" for n in sizes)):
        entry = entries[size]
        top_5 = top_5_in_words(entry["top_5_accuracy"], num_classes, 3)
        balanced = f"{entry['balanced_accuracy']:.3f}" if "balanced_accuracy" in entry else ""
        learned = trained_on(size, entry)
        rows.append([learned, f"{entry['top_1_accuracy']:.3f}", interval(entry), top_5, balanced])
        if COMPARED in entry:
            against.append(f"{learned}: {compared_in_words(entry[COMPARED])}")
    if AGAINST_LARGEST in entries["real"]:
        share, balanced = entries["real"][AGAINST_LARGEST]["share"], 1 / num_classes
        rows.append(["nothing: always the largest class", f"{share:.3f}", "", "", f"{balanced:.3f}"])
    header = ["trained on", "top-1", "95 % interval", "top-5", "balanced"]
    count = entries["real"].get("test_images")
    mixed = any(levers_on(recorded_training(entry)).get("real_share") for entry in entries.values())
    told = f"{'Accuracy' if mixed else 'Classification Accuracy Score'} of {classifier}"
    told += f" on {count:,} real test images" if count else ""
    words = "Accuracy by the size of the synthetic training set; dashed: trained on real images"
    against += [f"{trained_on(size, entries[size])}: {words}" for size, words in no_better_than_largest(entries)]
    differences = pages.items(against) if against else ""
    picture = pages.figure_if_there(experiment.cas_plot, words)
    return pages.section("Accuracy", pages.table(header, rows, told), doubts_part(entries.values()), differences, picture)


def doubts_part(entries):
    return "".join(pages.paragraph(f"They may be too good: {text}.") for text in all_doubts(entries))


def trained_on(size, entry):
    """What the classifier of a result has learnt from, with the levers of its training."""
    levers = in_words(recorded_training(entry))
    return ("real images" if size == "real" else f"synthetic images, {size[1:]}x") + (f" ({levers})" if levers else "")


def steps_part(experiment, num_classes):
    found = read_json(experiment.pipeline_file)[experiment.dataset]
    entries = [(name, found[stage][key]) for name, (stage, key) in FOUR_STEPS.items()]
    rows = [
        [name, f"{of['top_1']:.3f}", interval(of, "top_1"), top_5_in_words(of["top_5"], num_classes, 3)] for name, of in entries
    ]
    plot = pages.figure_if_there(experiment.pipeline_plot("top_1"), "Accuracy after each step")
    stages = {stage: found[stage] for stage, _ in FOUR_STEPS.values()}
    told, other = steps_trained_otherwise(stages), step_3_otherwise(stages)
    return pages.section(
        "Steps of the adaptation",
        pages.table(["step", "top-1", "95 % interval", "top-5"], rows),
        doubts_part(entry for _, entry in entries),
        pages.paragraph(f"The classifiers of the two searches have learnt otherwise: {told}.") if told else "",
        pages.paragraph(f"{other[0].upper()}{other[1:]}.") if other else "",
        plot,
    )


def curves_part(experiment):
    found = [pages.figure_if_there(experiment.part_dir(part) / "loss.png", words) for part, words in CURVES.items()]
    return pages.section("Training of the diffusion model", *found) if any(found) else ""


def searches_part(experiment):
    rows, pictures = [], []
    for part, words in SEARCHES.items():
        folder = experiment.search_dir(part)
        if (folder / "best.json").exists():
            best = read_json(folder / "best.json")
            value = f"{best['val_accuracy']:.3f}" if "val_accuracy" in best else f"{best['test_accuracy']:.3f}, on TEST"
            rows.append([words, best["epoch"], best["is"], f"{best['ugs']:g}", value])
        for name, told in (("history", "value of each trial"), ("contour_is_ugs", "steps and scale")):
            pictures.append(pages.figure_if_there(folder / f"{name}.png", f"{words}: {told}"))
    header = ["search", "epoch", "steps", "scale", "validation accuracy"]
    return pages.section("Searches", pages.table(header, rows, "what was chosen"), *pictures) if rows else ""


def confusion_part(experiment, entries):
    found = [
        pages.figure_if_there(experiment.root / entry["predictions"] / "confusion_matrix.png", f"Trained on {trained_on(size, entry)}")
        for size, entry in entries.items() if "predictions" in entry
    ]  # fmt: skip
    return pages.section("Confusion", *found) if any(found) else ""


def audit_part(experiment, sets, classes, common):
    """Figures of the sets' audits and links to their pages; how to make one where there is none."""
    parts = []
    for folder in dict.fromkeys(sets):
        if not audit_file(folder).exists():
            continue  # the set's identity may take long
        if tables := audit_tables(folder, set_identity(folder, classes)["sha256"], experiment):
            page = os.path.relpath(audit_file(folder).with_suffix(".html"), experiment.report_page.parent).replace(os.sep, "/")
            parts += [
                pages.heading(folder.name),
                pages.link(page, "The page of this audit"),
                *(pages.table(each["header"], each["rows"]) for each in tables),
            ]
    if not parts:
        flags = [*common, "--synthetic_dir", str(sets[-1])]
        there = any(audit_file(folder).exists() for folder in sets)
        told = "One is there, of other images or classifiers than those of now" if there else "None lies beside the set"
        told += ": how near the images come to single training images is not known. This command makes one:"
        parts = [pages.paragraph(told), pages.code([f"python audit_dataset.py {shlex.join(flags)}"])]
    return pages.section("Audit", *parts)


def run_part(experiment, stages, seconds, folder):
    took = [[stage.name, duration(seconds.get(stage.name, 0))] for stage in stages]
    settings = {
        key: value
        for key, value in (read_manifest(folder) or {}).items()
        if isinstance(value, (int, float, str)) and key != "root"
    }
    record = next(iter(sorted(experiment.part_dir("enc").glob("training*.json"))), None)
    run = read_json(record) if record else {}
    versions = ", ".join(f"{name} {value}" for name, value in run.get("versions", {}).items())
    machine = run.get("machine", {})
    told = f"{versions}; {machine.get('system', '')}, {machine.get('cores', '?')} cores." if versions else ""
    return pages.section(
        "How to do it again",
        pages.paragraph("Each command by itself, in this order; stages that are finished are not done again."),
        pages.code([stage.shown for stage in stages]),
        pages.table(["stage", "time in this run"], took),
        pages.heading(f"The synthetic set {folder.name}"),
        pages.table(["setting", "value"], [[name, short(value)] for name, value in settings.items()]),
        pages.paragraph(told) if told else "",
    )
