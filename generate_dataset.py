"""Generate a synthetic dataset with an adapted Stable Diffusion: a folder of PNGs a class, and a manifest.

    python generate_dataset.py --dataset cifar10 --exp 0001 --img_total 40000 --enc_epoch 31 --dif_epoch 10 \\
        --inf_steps 31 --ugs 1.74
"""

import argparse
import logging
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from cli.flags import add_model_flags, add_spacing_flag, finish_args, integer, new_parser, number
from cli.process import run, writing_in
from Data.loaders import class_names, read_images, resize_images
from Data.registry import DatasetSpec, dataset_spec
from Data.synthetic import MANIFEST, SyntheticWriter, balanced_counts, image_side, synthetic_files
from Experiment import presets
from Experiment.errors import UserError
from Experiment.files import file_hash, read_json, write_json
from Experiment.locks import claim, locked
from Experiment.paths import Experiment, size_name
from Experiment.records import describe_run, fixed_arguments
from Models.backbones import BACKBONES
from Models.weight_names import chosen_epochs

log = logging.getLogger("experiment")

SHEET_COLUMNS = 8
OWN_FILES = (".lock", "log.txt", ".partial", ".generation")  # what is there before the images are begun
MOST_IMAGES = 10_000_000
# Arguments that do not change the images.
FREE = ("root", "data_dir", "weights_dir", "batch_size", "img_class", "img_total", "shard", "skip_broken")


def shard(text):
    """An argparse type: I/N with 1 <= I <= N."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"must be I/N with I from 1 to N, received {text}")
    return int(match[1]), int(match[2])


def parse_args(argv=None):
    parser = new_parser(__doc__)
    parser.add_argument("--img_class", type=integer(1, MOST_IMAGES), help="images of each class; or --img_total")
    parser.add_argument(
        "--img_total", type=integer(1, MOST_IMAGES), help="images in all, spread evenly over the classes"
    )
    parser.add_argument(
        "--batch_size",
        default=presets.GENERATION_BATCH,
        type=integer(1),
        help="most images at a time (250; on a processor 16, mini 96)",
    )
    parser.add_argument(
        "--enc_epoch",
        default=presets.GENERATION_EPOCHS["enc"],
        type=integer(0),
        help="epoch of the Class Encoder; 0: fresh (50)",
    )
    parser.add_argument(
        "--dif_epoch",
        default=presets.GENERATION_EPOCHS["dif"],
        type=integer(0),
        help="epoch of the UNet; 0: pretrained (10)",
    )
    parser.add_argument(
        "--inf_steps", default=presets.INFERENCE_STEPS, type=integer(1, 1000), help="inference steps (50)"
    )
    parser.add_argument(
        "--ugs", default=presets.GUIDANCE_SCALE, type=number(0, 1000), help="unconditional guidance scale (7.5)"
    )
    add_spacing_flag(parser)
    parser.add_argument("--image_size", type=integer(1, 4096), help="side of the stored images, px (the backbone's)")
    add_model_flags(parser)
    parser.add_argument(
        "--shard",
        default=(1, 1),
        type=shard,
        metavar="I/N",
        help="make the Ith of N parts of the dataset, beside other processes or machines",
    )
    parser.add_argument("--restart", action="store_true", help="throw away what an earlier run has left here")
    args = finish_args(parser, argv)
    if (args.img_class is None) == (args.img_total is None):
        parser.error("exactly one of --img_class and --img_total is needed")
    if args.restart and args.shard[1] > 1:
        parser.error("argument --restart: not allowed with --shard: it would throw away what other shards make")
    return args


@dataclass
class Plan:
    """What is known of a run before anything heavy is loaded.

    Attributes:
        spec: The dataset's.
        experiment: Where everything lies.
        total: Number of images.
        folder: Of the images.
        done: None: whether there is nothing to do depends on weights, which are looked at later.
    """

    spec: DatasetSpec
    experiment: Experiment
    total: int
    folder: Path
    done: None = None


def plan(args):
    """Names and places of what is to be made."""
    spec = dataset_spec(args.dataset, args.skip_broken, args.resolution, args.background)
    experiment = Experiment(args.root, args.exp, spec.name)
    total = args.img_total or args.img_class * spec.num_classes
    name = f"{size_name(total)}Enc{args.enc_epoch}Dif{args.dif_epoch}Is{args.inf_steps}Ugs{args.ugs:g}"
    return Plan(spec, experiment, total, experiment.synthetic_root / name)


def check_folder(args, folder, settings):
    """Check that what lies in the folder is of the same settings.

    Raises:
        UserError: The folder holds images of other settings, or something else.
    """
    record = folder / "generation.json"
    if args.restart or not folder.exists():
        return
    if record.exists():
        before = read_json(record)
        differing = [key for key in settings if before.get(key) != settings[key]]
        if differing:
            shown = "; ".join(f"{key}: {before.get(key)} there, {settings[key]} now" for key in differing)
            raise UserError(f"{folder} holds images of other settings ({shown}). Use another --exp, or --restart.")
    elif any(not path.name.startswith(OWN_FILES) for path in folder.iterdir()):
        raise UserError(f"{folder} holds something that generate_dataset.py has not begun: move it away.")


def begin_folder(args, folder, settings):
    """Say in the folder what is generated there; with --restart, throw away what is there.

    Raises:
        UserError: A shard that began at the same moment has other settings.
    """
    record = folder / "generation.json"
    if args.restart:
        there = sum(1 for _ in folder.glob("class_*/img_*.png"))
        log.info("throwing away the %d images in %s", there, folder)
        (folder / MANIFEST).unlink(missing_ok=True)  # first: what has a manifest is complete
        for path in folder.iterdir():
            if not path.name.startswith(OWN_FILES) and path != record:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    with locked(record):
        check_folder(args, folder, settings)
        write_json(record, settings)


def weight_hashes(args, backbone, epochs):
    """What identifies every weight file that makes the images."""
    pretrained = {part: backbone.weights_hash(part, args.weights_dir) for part in ("unet", "decoder")}
    return pretrained | {part: file_hash(file) for part, file in epochs.items() if file}


def draw_pictures(spec, experiment, folder):
    """A sheet of samples beside the images, and the published collages. Returns the sheet."""
    import numpy as np

    from plots import COLLAGE_COLUMNS, COLLAGE_ROWS, class_collages, sample_sheet

    files = synthetic_files(folder, spec.num_classes)
    side = image_side(files)
    shown = [read_images(of_class[: COLLAGE_COLUMNS * COLLAGE_ROWS], side) for of_class in files]
    class_collages(shown, experiment.images_dir, "synth")
    labels = np.concatenate([np.full(min(len(images), SHEET_COLUMNS), label) for label, images in enumerate(shown)])
    images = np.concatenate([images[:SHEET_COLUMNS] for images in shown])
    return sample_sheet(images, labels, class_names(spec), folder / "samples.png", f"{spec.name}, {folder.name}")


def generate(args, known=None):
    """Step 5 of the paper: labels in, a synthetic dataset on disk out.

    Args:
        args: What `parse_args` returns.
        known: What `plan` has found, if it was asked before.

    Returns:
        The folder of the images.
    """
    from Models.adapter import load_diffusion
    from Models.runtime import make_repeatable, precision, resolve_precision

    started = time.time()
    known = known or plan(args)
    spec, experiment, folder = known.spec, known.experiment, known.folder
    backbone = BACKBONES[args.backbone]
    size = args.image_size or backbone.image_size
    epochs = chosen_epochs(experiment, args.enc_epoch, args.dif_epoch)
    settings = {
        "total": known.total,
        **fixed_arguments(args, FREE),
        "image_size": size,
        "precision": resolve_precision(args.precision),  # so that shards on other hardware are refused
        "weights": weight_hashes(args, backbone, epochs),
    }
    check_folder(args, folder, settings)
    part, parts = args.shard
    claimed = f"-{part}-of-{parts}" if parts > 1 else ""
    claim(folder, claimed, create=False)
    if (folder / MANIFEST).exists() and not args.restart:
        log.info("finished already: %s", folder)
        return folder

    make_repeatable(args.seed, args.deterministic)  # a fresh encoder of --enc_epoch 0 is the same every time
    with precision(args.precision):
        diffusion = load_diffusion(backbone, spec.num_classes, args.weights_dir, **epochs)
    writer = SyntheticWriter(folder, balanced_counts(known.total, spec.num_classes), backbone.block)
    with writing_in(folder, claimed, saved=lambda: "{} of {} images are saved".format(*writer.progress(args.shard))):
        begin_folder(args, folder, settings)
        writer.begin()
        made = write_images(args, known, diffusion, writer, size)
        others = [f"{i}/{parts}" for i in range(1, parts + 1) if writer.missing((i, parts)).size]
        if others:
            log.info(
                "%d images in %.0f s -> %s; shards that are not complete: %s",
                made, time.time() - started, folder, ", ".join(others),
            )  # fmt: skip
            return folder
        sheet = draw_pictures(spec, experiment, folder)
        write_json(folder / "run.json", describe_run(args, started))
        writer.finish(settings)  # last: what has a manifest is complete
        log.info("%d images in %.0f s -> %s, samples %s", made, time.time() - started, folder, sheet)
    return folder


def write_images(args, known, diffusion, writer, size):
    """Generate and write the images of this shard that are missing. Returns their number."""
    from tqdm import tqdm

    from Models.runtime import resolve_precision
    from Models.sampler import block_size, generate_images

    missing = writer.missing(args.shard)  # int (n,), ascending
    there, whole = writer.progress(args.shard)
    log.info(
        "%d images of %s with %s, %d there, %d inference steps, guidance scale %g, %s, seed %d -> %s",
        whole, known.spec.name, diffusion.backbone.name, there, args.inf_steps, args.ugs,
        resolve_precision(args.precision), args.seed,
        known.folder,
    )  # fmt: skip
    made = generate_images(
        diffusion.sampler(),
        diffusion.encoder,
        missing,
        num_steps=args.inf_steps,
        scale=args.ugs,
        seed=args.seed,
        block=block_size(diffusion.backbone, args.batch_size),
        spacing=args.timestep_spacing,
    )
    try:
        with tqdm(total=whole, initial=there, unit="image", smoothing=0.05) as progress:
            for numbers, images, *good in made:  # (n,), uint8 (n, H, H, 3)
                for image in zip(numbers, resize_images(images, size, "bilinear")):
                    writer.write(*image)
                progress.update(len(images))
        writer.drain()
    finally:
        writer.close()
    return len(missing)


if __name__ == "__main__":
    run(generate, parse_args, plan)
