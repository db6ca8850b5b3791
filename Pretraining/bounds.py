"""What an autoencoder keeps of test images: `python -m Pretraining.bounds --backbone mini|small --dataset NAME ...`.

PSNR, dB: of each test image at 32 px and its reconstruction decode(mean of encode(x)), on pixels 0..255 clipped and
rounded as they are written; then the mean over images.

With --to it also writes, for each dataset, NAME_reconstructed.npz: training images as reconstructed, validation and test
images as they are. What a classifier reaches that learns from it (`classifier_training.py --dataset FILE --synthetic
False`) bounds what can be expected of images that this backbone draws of that dataset.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from cli.flags import integer
from cli.process import run
from Data.loaders import load_splits
from Data.registry import dataset_spec
from Data.resizing import resize_images
from Experiment.errors import UserError
from Experiment.files import atomic_path, write_json
from Experiment.paths import REAL_DATA
from Experiment.plan import Plan
from Pretraining.glyphs import SIZE
from Pretraining.kinds import KINDS

PARTS = ("image_encoder", "decoder")


def autoencoder(kind, folder):
    """Encoder and decoder with the weights in a folder, in which the UNet may be missing."""
    from Models.weights import load_weights

    return [load_weights(kind.builders[part](SIZE, kind.context_shape), folder / f"{part}.weights.h5") for part in PARTS]


def reconstructions(encoder, decoder, images):
    """uint8 (N, 32, 32, 3) from images of that kind."""
    mean = np.split(encoder.predict(images / np.float32(127.5) - 1, batch_size=64, verbose=0), 2, axis=-1)[0]
    made = np.asarray(decoder.predict(mean, batch_size=64, verbose=0), "float32")
    return np.clip(np.round((made + 1) * 127.5), 0, 255).astype("uint8")


def psnr(images, others):
    """PSNR in dB, (N,), of two arrays uint8 (N, H, W, 3); 99 where an image is the same."""
    error = ((images.astype("float32") - others) ** 2).mean((1, 2, 3))
    return 10 * np.log10(255**2 / np.maximum(error, 255**2 / 10**9.9))


def write_reconstructed(networks, splits, side, path):
    """Write a dataset of `side` px with MedMNIST's keys whose training images are reconstructions."""
    arrays = {}
    for name, (images, labels) in splits._asdict().items():
        shown = reconstructions(*networks, resize_images(images, SIZE)) if name == "train" else images
        arrays |= {f"{name}_images": resize_images(shown, side), f"{name}_labels": labels[:, None]}
    with atomic_path(path) as partial, open(partial, "wb") as file:
        np.savez(file, **arrays)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m Pretraining.bounds", allow_abbrev=False, description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--backbone", required=True, choices=list(KINDS), help="whose autoencoder")
    add("--weights_dir", type=Path, help="folder of its weights (Models/BACKBONE_weights)")
    add("--dataset", nargs="+", required=True, help="names or paths")
    add("--data_dir", type=Path, default=Path(REAL_DATA), help=f"folder of official files ({REAL_DATA})")
    add("--images", type=integer(1), default=500, help="first test images (500)")
    add("--sheets", type=Path, help="folder of pictures: originals above reconstructions")
    add("--to", type=Path, help="folder of datasets whose training images are reconstructions")
    add("--json", type=Path, help="file of the results")
    return parser.parse_args(argv)


def plan(args):
    """Look at what is there. UserError: weights are missing, or a dataset is unknown."""
    folder = args.weights_dir or KINDS[args.backbone].folder
    for part in PARTS:
        if not (folder / f"{part}.weights.h5").is_file():
            raise UserError(f"{folder} has no {part}.weights.h5.")
    specs = [dataset_spec(name) for name in args.dataset]
    specs = [replace(spec, resolution=min(spec.resolution, SIZE)) for spec in specs]
    return Plan(folder=folder, specs=specs, done=None)


def measure(args, known):
    """Print a Markdown table, and write what else is asked for. Returns {dataset: {"images": N, "psnr": dB}}."""
    from sheets import grid, save_image

    networks, results = autoencoder(KINDS[args.backbone], known.folder), {}
    for spec in known.specs:
        splits = load_splits(spec, args.data_dir)
        images = resize_images(splits.test.images[: args.images], SIZE)
        made = reconstructions(*networks, images)
        results[spec.name] = {"images": len(images), "psnr": round(float(psnr(images, made).mean()), 2)}
        if args.sheets:
            args.sheets.mkdir(parents=True, exist_ok=True)
            shown = min(16, len(images))
            save_image(grid(np.concatenate([images[:shown], made[:shown]]), shown), args.sheets / f"{spec.name}.png")
        if args.to:
            args.to.mkdir(parents=True, exist_ok=True)
            path = args.to / f"{spec.name}_reconstructed.npz"
            write_reconstructed(networks, splits, spec.resolution, path)
    print("| dataset | test images | PSNR, dB |\n|---|---|---|")
    for name, result in results.items():
        print(f"| {name} | {result['images']} | {result['psnr']:.2f} |")
    if args.json:
        write_json(args.json, {"backbone": args.backbone, "results": results})
    return results


if __name__ == "__main__":
    run(measure, parse_args, plan)
