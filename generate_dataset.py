"""Generate a synthetic dataset with an adapted Stable Diffusion: a folder of PNGs a class, and a manifest.

    python generate_dataset.py --dataset cifar10 --exp 0001 --img_total 40000 --enc_epoch 31 --dif_epoch 10 \\
        --inf_steps 31 --ugs 1.74
"""

import argparse
import re
import time

from cli.flags import add_model_flags, add_spacing_flag, finish_args, integer, new_parser, number
from cli.process import begin_writing, log, run, tell_if_interrupted
from cli.startup import import_keras, make_repeatable, share_cores
from Experiment.errors import UserError
from Experiment.files import file_hash, read_json, write_json
from Experiment.locks import claim, locked
from Experiment.paths import Experiment, size_name
from Experiment.records import describe_run, fixed_arguments

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
    parser.add_argument("--batch_size", default=250, type=integer(1), help="images at a time (250)")
    parser.add_argument("--enc_epoch", default=50, type=integer(0), help="epoch of the Class Encoder; 0: fresh (50)")
    parser.add_argument("--dif_epoch", default=10, type=integer(0), help="epoch of the UNet; 0: pretrained (10)")
    parser.add_argument("--inf_steps", default=50, type=integer(1, 1000), help="inference steps (50)")
    parser.add_argument("--ugs", default=7.5, type=number(0, 1000), help="unconditional guidance scale (7.5)")
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
    import shutil

    from Data.synthetic import MANIFEST

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


def weight_hashes(args, experiment, backbone):
    """What identifies every weight file that makes the images."""
    from Models.backbones import UNTRAINED_HASH, untrained
    from Models.weights import epoch_file

    hashes = {}
    for part in ("unet", "decoder"):
        known = UNTRAINED_HASH if untrained(backbone) else file_hash(backbone.weights_file(part, args.weights_dir))
        hashes[part] = known
    for part, epoch in (("enc", args.enc_epoch), ("dif", args.dif_epoch)):
        if epoch:
            hashes[part] = file_hash(epoch_file(experiment.part_dir(part), epoch, part))
    return hashes


def draw_pictures(args, spec, experiment, folder):
    """A sheet of samples beside the images, and the published collages."""
    import numpy as np

    from Data.loaders import class_names, read_images
    from Data.synthetic import synthetic_files
    from plots import COLLAGE_COLUMNS, COLLAGE_ROWS, class_collages, sample_sheet

    files = synthetic_files(folder, spec.num_classes)
    from PIL import Image

    with Image.open(next(of_class[0] for of_class in files if of_class)) as image:
        side = image.width
    shown = [read_images(of_class[: COLLAGE_COLUMNS * COLLAGE_ROWS], side) for of_class in files]
    class_collages(shown, experiment.images_dir, "synth")
    labels = np.concatenate([np.full(min(len(images), SHEET_COLUMNS), label) for label, images in enumerate(shown)])
    images = np.concatenate([images[:SHEET_COLUMNS] for images in shown])
    return sample_sheet(images, labels, class_names(spec), folder / "samples.png", f"{spec.name}, {folder.name}")


def main(args):
    from Data.registry import dataset_spec
    from Data.synthetic import MANIFEST, SyntheticWriter, balanced_counts

    started = time.time()
    spec = dataset_spec(args.dataset, args.skip_broken)
    experiment = Experiment(args.root, args.exp, spec.name)
    total = args.img_total or args.img_class * spec.num_classes
    name = f"{size_name(total)}Enc{args.enc_epoch}Dif{args.dif_epoch}Is{args.inf_steps}Ugs{args.ugs:g}"
    folder = experiment.synthetic_root / name

    # What is to be made, and what is there already
    share_cores(args.backbone)
    import_keras()
    from Data.loaders import resize_images
    from Models.backbones import BACKBONES, set_precision

    backbone = BACKBONES[args.backbone]
    size = args.image_size or backbone.image_size
    weights = weight_hashes(args, experiment, backbone)
    precision = set_precision(args.precision)  # what auto means here: other machines shall not mix it with theirs
    settings = {
        "total": total,
        **fixed_arguments(args, FREE),
        "image_size": size,
        "precision": precision,
        "weights": weights,
    }
    check_folder(args, folder, settings)
    part, parts = args.shard
    claimed = f"-{part}-of-{parts}" if parts > 1 else ""
    claim(folder, claimed, create=False)
    counts = balanced_counts(total, spec.num_classes)
    if (folder / MANIFEST).exists() and not args.restart:
        print(f"finished already: {folder}")
        return

    # Models, before anything is written or thrown away
    from tqdm import tqdm

    from Models.class_encoder import class_encoder
    from Models.sampler import Sampler, generate_images
    from Models.weights import load_epoch

    make_repeatable(args)  # a fresh encoder of --enc_epoch 0 is the same every time
    encoder = class_encoder(spec.num_classes, backbone.hidden_units, backbone.context_shape)
    load_epoch(encoder, experiment.part_dir("enc"), args.enc_epoch, "enc")
    unet = backbone.unet(args.weights_dir)
    load_epoch(unet, experiment.part_dir("dif"), args.dif_epoch, "dif")
    sampler = Sampler(unet, backbone.decoder(args.weights_dir), backbone.parts)

    # Generation
    begin_writing(folder, claimed)
    begin_folder(args, folder, settings)
    writer = SyntheticWriter(folder, counts)
    labels, indices = writer.missing(args.shard)
    whole = len(range(part - 1, total, parts))  # images of this shard
    tell_if_interrupted(lambda: f"{whole - writer.missing(args.shard).shape[1]} of {whole} images are saved")
    log.info(
        "%d images of %s with %s, %d there, %d inference steps, guidance scale %g, %s, seed %d -> %s",
        whole,
        spec.name,
        backbone.name,
        whole - len(labels),
        args.inf_steps,
        args.ugs,
        precision,
        args.seed,
        folder,
    )
    made = generate_images(
        sampler,
        encoder,
        labels,
        indices,
        num_steps=args.inf_steps,
        scale=args.ugs,
        seed=args.seed,
        batch_size=min(args.batch_size, total),
        spacing=args.timestep_spacing,
    )
    try:
        with tqdm(total=whole, initial=whole - len(labels), unit="image", smoothing=0.05) as progress:
            for label, index, images in made:
                for image in zip(label, index, resize_images(images, size, "bilinear")):
                    writer.write(*image)
                progress.update(len(images))
        writer.drain()
    finally:
        writer.close()

    if parts > 1:
        others = [f"{i}/{parts}" for i in range(1, parts + 1) if writer.missing((i, parts)).size]
        if others:
            log.info(
                "%d images in %.0f s -> %s; shards that are not complete: %s",
                len(labels),
                time.time() - started,
                folder,
                ", ".join(others),
            )
            return

    # Manifest and pictures
    sheet = draw_pictures(args, spec, experiment, folder)
    write_json(folder / "run.json", describe_run(args, started))
    writer.finish(settings)  # last: what has a manifest is complete
    log.info("%d images in %.0f s -> %s, samples %s", len(labels), time.time() - started, folder, sheet)


if __name__ == "__main__":
    run(main, parse_args)
