"""Our side of `make parity-diffusers`: loads what diffusers_side.py has saved, both ways, and compares what comes out.

    python our_diffusers_side.py FOLDER SHAPE JOB        a shape of shapes.py; a job: folder, file, numerics or control

A job is a process of its own, which holds one UNet. Exit code 1: something differs by more than it may, or two tensors that
have changed places go unseen.
"""

import json
import logging
import struct
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from cli.startup import import_keras

import_keras()

from Models.diffusion import timestep_embedding  # noqa: E402
from Models.numerics import KERASCV, let_follow  # noqa: E402
from Models.sampler import Sampler  # noqa: E402
from parity.our_side import ROW, compare  # noqa: E402
from parity.shapes import SHAPES, backbone_of  # noqa: E402

MOST_GREY_LEVELS, OF_PIXELS = 1, 0.999
# Two tensors of one shape, which the control lets change places.
SWAPPED = [f"model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.{name}.weight" for name in ("to_q", "to_k")]


def predicted(unet, expected):
    inputs = [expected["latents"], timestep_embedding(expected["timesteps"]), expected["contexts"][expected["labels"]]]
    return unet.predict_on_batch(inputs)


def generated(unet, decoder, expected):
    arguments = (expected[name] for name in ("initial_noise", "contexts", "labels"))
    sampler = Sampler(unet, decoder, prediction_type=unet.following.prediction_type)
    return np.asarray(sampler.sample(*arguments, int(expected["steps"]), float(expected["scale"]))[0])


def compare_images(ours, theirs, what):
    """Print how many pixel values are within a grey level. Returns whether enough are."""
    levels = np.abs(ours.astype(int) - theirs)
    near = (levels <= MOST_GREY_LEVELS).mean()
    print(
        f"{what}: {(levels == 0).mean():.4%} of the pixel values are equal, {near:.4%} within a grey level, largest "
        f"difference {levels.max()} (images: mean {theirs.mean():.0f}, standard deviation {theirs.std():.0f}, "
        f"{np.isin(theirs, (0, 255)).mean():.1%} clipped)",
        flush=True,
    )
    return bool(near >= OF_PIXELS)


def swap(path, one, other):
    """Let two tensors of a safetensors file change places: their names point at each other's numbers."""
    with open(path, "r+b") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(size))
        header[one], header[other] = header[other], header[one]
        file.seek(8)
        file.write(json.dumps(header, separators=(",", ":")).encode().ljust(size))


def compare_place(backbone, place, expected):
    """Load every part from a folder or file and compare. Returns whether all is well."""
    print(ROW.format(place.name[:20], "largest diff", "max abs", "std", "", "shape of the output"))
    image_encoder = backbone.image_encoder(place)
    good = [compare("image encoder", image_encoder.predict_on_batch(expected["images"]), expected["moments"])]
    decoder = backbone.decoder(place)
    good += [compare("decoder", decoder.predict_on_batch(expected["latents"]), expected["decoded"])]
    unet = backbone.unet(place)
    good += [compare("UNet", predicted(unet, expected), expected["predicted"])]
    images = generated(unet, decoder, expected)
    good += [compare_images(images, expected["generated"], f"generation, {int(expected['steps'])} steps")]
    return all(good)


def show_numerics(backbone, place, expected):
    """Print how much it matters that KerasCV computes GELU by tanh and has another epsilon."""
    networks = (backbone.unet(place), backbone.decoder(place))
    unet, decoder = (let_follow(one, replace(one.following, numerics=KERASCV)) for one in networks)
    print("the same weights by KerasCV's numerics (GELU by tanh, epsilon 1e-5), to tell how much these matter:")
    for part, ours, theirs in (
        ("UNet", predicted(unet, expected), expected["predicted"]),
        ("decoder", decoder.predict_on_batch(expected["latents"]), expected["decoded"]),
    ):
        print(f"  {part}: largest difference {np.abs(ours - theirs).max():.1e}", flush=True)
    compare_images(generated(unet, decoder, expected), expected["generated"], "  generation")
    return True


def control(backbone, original, expected):
    """Let two matrices of one attention change places. Returns whether that is seen."""
    swap(original, *SWAPPED)
    print("two matrices of one attention, which have changed places in the file, have to be seen:")
    seen = not compare("  UNet", predicted(backbone.unet(original), expected), expected["predicted"])
    swap(original, *SWAPPED)
    return seen


def main(folder, shape, job):
    with np.load(folder / "expected.npz") as data:
        expected = dict(data)
    place = folder / ("diffusers" if job in ("folder", "numerics") else "original.safetensors")
    work = {"folder": compare_place, "file": compare_place, "numerics": show_numerics, "control": control}[job]
    good = work(backbone_of(shape), place, expected)
    print(f"{job}: {'as it should be' if good else 'NOT as it should be'}\n", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it finds fault with many models in one process
    sys.exit(main(Path(sys.argv[1]), SHAPES[sys.argv[2]], sys.argv[3]))
