"""The images of a set, generated and written; with a filter those that it keeps."""

import logging
from functools import partial

from Data.filtering import Selection, agrees
from Data.generation import room_of
from Data.resizing import resize_images
from Experiment.disk import bytes_in_words
from Experiment.levers import sampling_in_words
from Experiment.machine import device_name
from Generating.material import filter_folder
from Models.classifier import Classifier
from Models.trained import load_best
from Models.written import write_filtered, write_generated

log = logging.getLogger("experiment")


def write_images(args, known, precision, diffusion, guide, writer):
    """Generate and write the images of this shard that are missing. Returns their number."""
    there, whole = writer.progress(args.shard)
    side = known.settings["image_size"]
    log.info(
        "%d images of %s with %s, %d there, %d inference steps, guidance scale %g%s, %s, seed %d, about %s on disk, %s -> %s",
        whole, known.name, diffusion.backbone.name, there, args.inf_steps, args.ugs, sampling_in_words(vars(args)),
        precision, args.seed, bytes_in_words(room_of(whole - there, side)), device_name(), known.folder,
    )  # fmt: skip
    if "no_mark" not in known.settings:
        log.info("an earlier version has begun the set, without a mark of generated images: it goes on without one")
    how = {
        "resize": partial(resize_images, side=side, mode="bilinear"), "batch_size": args.batch_size,
        "solver": args.solver, "guide": guide, "num_steps": args.inf_steps, "scale": args.ugs, "seed": args.seed,
        "spacing": args.timestep_spacing, "interval": args.guidance_interval,
    }  # fmt: skip
    if args.filter is not None:
        return generate_filtered(args, known, diffusion, writer, how)
    return write_generated(diffusion, writer, args.shard, places=known.numbering.places, **how)


def generate_filtered(args, known, diffusion, writer, how):
    """Generate until every class is full of images that the filter keeps, from where an earlier run was.

    Args:
        args: The script's arguments.
        known: The script's `Plan`.
        diffusion: A `Diffusion`.
        writer: A `SyntheticWriter` with balanced numbers.
        how: Further arguments of `write_filtered`.

    Returns:
        How many images of the set this process has made.
    """
    selection = Selection(known.folder, known.counts, known.numbering)
    selection.load()
    classes, missing = len(known.counts), writer.missing()
    if (missing // classes < selection.kept[missing % classes]).any():
        log.info("images that the filter has kept are gone: it begins again")
        selection.begin()
    before = int(selection.kept.sum())
    write_filtered(diffusion, writer, selection, load_judge(args, known.spec, known.experiment), **how)
    for name, kept, tried in zip(known.classes, selection.kept, selection.tried):
        log.info("  %-24s %d of %d candidates kept", name, kept, tried)
    return int(selection.kept.sum()) - before


def load_judge(args, spec, experiment):
    """A function of images uint8 (n, H, H, 3) and labels (n,) that says which are kept, bool (n,)."""
    classifier = Classifier(args.filter_classifier, spec.resolution, spec.num_classes)
    load_best(classifier, filter_folder(args, experiment))
    as_seen = partial(resize_images, side=spec.resolution, mode="bilinear")

    def judge(images, labels):
        return agrees(classifier.probabilities(as_seen(images)), labels, args.filter)

    return judge
