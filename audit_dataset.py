"""What a synthetic set is worth and what it gives away: quality, copies, membership, as figures and as one page.

python audit_dataset.py --dataset cifar10 --exp first
"""

import logging
import os
import time
from pathlib import Path

from Audit.brief import brief
from Audit.material import AuditedSet
from Audit.report import figures, write_report
from Audit.targets import (
    classifier_entries,
    doubts_in_words,
    epochs_of,
    hashes_of,
    in_one_text,
    learnt,
    real_folder,
    trained,
    usual_classifier,
)  # fmt: skip
from cli.flags import add_model_flags, finish_args, integer, new_parser
from cli.lora import base_hashes
from cli.process import run, writing_in
from Data.export_images import as_generated, only_set
from Data.identity import data_identity
from Data.loaders import Split, Splits, load_splits
from Data.registry import dataset_spec
from Data.resizing import resize_images
from Experiment.errors import UserError
from Experiment.files import write_json
from Experiment.locks import refuse_if_claimed
from Experiment.paths import BEST_WEIGHTS, Experiment, home
from Experiment.plan import Plan
from Experiment.progress import FINISHED_BEFORE
from Experiment.records import DATA_FLAGS, describe_run, finished_run
from Models.backbones import BACKBONES
from Models.classifiers import CLASSIFIERS
from Models.weight_cards import check_pretrained

log = logging.getLogger("experiment")

FREE = (*DATA_FLAGS, "backbone", "weights_dir", "synthetic_dir", "to", "exp")
SHADOWS, SAMPLE, LOSSES = 16, 10_000, 1000


def parse_args(argv=None):
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--synthetic_dir", type=Path, help="folder of the synthetic set (else the experiment's only one)")
    add("--classifier", choices=list(CLASSIFIERS),
        help="kind of classifier whose features are compared, and that is attacked (the one that there are results of)")  # fmt: skip
    add("--sample", default=SAMPLE, type=integer(10, 100_000),
        help="most images of each side that the quality metrics compare (10000)")  # fmt: skip
    add("--losses", default=LOSSES, type=integer(0, 100_000),
        help="most images of each side for the denoising loss of the adapted model; 0: leave it out (1000)")  # fmt: skip
    add("--shadows", default=SHADOWS, type=integer(0, 1000),
        help="shadow classifiers of the attack on classifiers, each a training; 0: leave it out (16)")  # fmt: skip
    add("--shadow_epochs", type=integer(1),
        help="most epochs of a shadow (those of the classifier trained on real images)")  # fmt: skip
    add("--to", type=Path, help="folder of the page and all that goes with it (that in which the set's folder lies)")
    add("--fid", action="store_true", help="Frechet distances too, which depend on the number of images")
    add_model_flags(parser)
    add("--restart", action="store_true", help="make the audit anew; what is computed once for the images stays")
    args = finish_args(parser, argv)
    if args.shadows == 1:
        parser.error("argument --shadows: must be 0, or 2 or more: an image is inside of one and outside of another")
    return args


def plan(args):
    """Look at what is there.

    Returns:
        A `Plan`: the dataset's `spec`, the `experiment`, the `source`, an `AuditedSet`, the real `splits` at the
        classifiers' resolution and as they are in the files (`native`), results of classifiers (`entries`) and folders of
        those that can be attacked (`targets`), `epochs` that made the set, None where they are not to be had, what is
        `missing` and why, the `folder` and the `page` of the audit, and `inputs` by content.

    Raises:
        UserError: The run cannot begin: no set or not a whole one, other classes, other arguments or inputs.
    """
    spec = dataset_spec(args.dataset, args.skip_broken, args.resolution, args.background)
    experiment, missing = Experiment(args.root, args.exp, spec.name), []
    folder = args.synthetic_dir or only_set(experiment.synthetic_root, spec.num_classes)
    spec = as_generated(spec, folder, args.resolution)
    source = AuditedSet(folder, spec)
    args.classifier = args.classifier or usual_classifier(experiment)
    native = load_splits(spec, args.data_dir, args.seed, None, experiment)
    splits = Splits(*(Split(resize_images(split.images, spec.resolution), split.labels) for split in native))
    data = data_identity(splits, spec)
    inputs = {"classes": data["classes"], "data": {k: data[k] for k in ("resolution", "train", "val", "test")}}
    entries = classifier_entries(experiment, args.classifier, source)
    targets, lacking = trained(experiment, entries, inputs, source)
    epochs, hashes = None, {}
    try:
        epochs, hashes = epochs_of(experiment, source, data)
        args.backbone = source.manifest["backbone"]
        hashes |= base_of(args, source, epochs)
    except UserError as error:
        epochs, hashes = None, {}
        missing.append(f"The denoising loss of the model that made the set: {error}")
    # As text: a record in which there are none says so, and is not that of a run that finds some.
    real = real_folder(experiment, args.classifier, inputs)
    inputs |= {"set": source.sha256, "classifiers": in_one_text(hashes_of(targets)), "weights": in_one_text(hashes)}
    inputs["extractor"] = in_one_text(hashes_of({"real": real} if real else {}))
    inputs["accuracies"] = in_one_text({name: entry["top_1_accuracy"] for name, entry in entries.items()})
    inputs["doubts"] = doubts_in_words(entries, splits, source, inputs["classes"])
    place = (home(args.to).resolve() if args.to else folder.parent) / f"{folder.name}.audit"
    known = Plan(
        spec=spec, experiment=experiment, source=source, splits=splits, native=native, entries=entries, targets=targets,
        epochs=epochs, missing=missing + [f"Attack on {text}" for text in lacking], folder=place, inputs=inputs,
        page=place.with_name(f"{place.name}.html"),
    )  # fmt: skip
    instead = "name another place by --to, or give --restart to replace it"
    if finished_run(place / "run.json", args, FREE, inputs, instead) and known.page.exists():
        known.done = f"{FINISHED_BEFORE}: {known.page} (--restart makes it anew)"
    if not args.to and not os.access(folder.parent, os.W_OK):
        raise UserError(f"{folder.parent} cannot be written: name another place with --to.")
    refuse_if_claimed(place)
    return known


def base_of(args, source, epochs):
    """Hashes of the pretrained weights that the attack on the model reads, {part: hash}.

    Raises:
        UserError: They are not those with which the set was made.
    """
    base, made = base_hashes(args, ["image_encoder"], epochs["dif"]), source.manifest.get("weights", {})
    # With another VAE the model would be asked of latents that it has not learnt from.
    check_pretrained(epochs.values(), base, BACKBONES[args.backbone].prediction_type, vae_too=True)
    if "unet" in base and made.get("unet", base["unet"]) != base["unet"]:
        raise UserError("the set was made with another pretrained UNet: give the --weights of its generation")
    return base


def audit(args, known=None):
    """Look at the set in every way that is possible; what is not is named.

    Args:
        args: What `parse_args` returns.
        known: What `plan` has found, if it was asked before.

    Returns:
        The page.

    Raises:
        UserError: The run cannot begin, or no image of the set can be read.
    """
    from Audit import parts
    from Audit.extractors import ClassifierFeatures, PixelFeatures
    from Audit.membership import ask_classifiers, ask_model
    from Models.devices import start_devices

    started = time.time()
    known = known or plan(args)
    if known.done:
        return known.page
    start_devices(args)
    spec, splits, found = known.spec, known.splits, {"missing": list(known.missing), "fid": args.fid, "later": False}
    with writing_in(known.folder, saved=lambda: "features and shadows that are whole are saved"):
        log.info("audit of %d images of %s, %s -> %s", known.source.total, spec.name, known.source.folder, known.page)
        classifier, place = parts.real_classifier(args.classifier, spec, splits, known.inputs, known.experiment)
        extractors = {
            "classifier": ClassifierFeatures(classifier, place / BEST_WEIGHTS),
            "pixels": PixelFeatures(splits.train.images, args.seed),
        }
        views = parts.Views(known.source, splits, extractors, known.experiment.seen_dir, known.inputs)
        found["unread"] = known.source.total - len(views.fake.good)
        found["samples"] = parts.samples_picture(views, known.inputs["classes"], known.folder / "samples.png")
        found["copies"], found["sheets"] = parts.copies_part(views, args.sample, args.seed, known.folder)
        of_quality = parts.quality_part(views, args.sample, args.seed, args.fid, known.inputs["classes"])
        found["quality"], found["frequencies"] = of_quality
        found["learnt"] = {name: learnt(name, entry) for name, entry in known.entries.items()}
        found["denoising"] = ask_model(args, known, found)
        found["classifiers"] = ask_classifiers(args, known, place, found)
        numbers = figures(found)
        record = describe_run(args, started, known.inputs)
        write_report(known.page, args, known, found, record)
        of = {"set": known.source.sha256, "classifier": args.classifier, "classifiers": hashes_of(known.targets)}
        write_json(known.page.with_suffix(".json"), {"brief": brief(found), "figures": numbers, "of": of})
        if not found["later"]:
            write_json(known.folder / "run.json", record)  # last: what has it is finished
        log.info("audit in %.0f s -> %s", time.time() - started, known.page)
    return known.page


if __name__ == "__main__":
    run(audit, parse_args, plan)
