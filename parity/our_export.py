"""Our side of the exports in `make parity-diffusers`: epochs of a model, exported, and the images that we make.

    python our_export.py FOLDER SHAPE       SHAPE: a name in shapes.py

Epoch 1 of the UNet is a whole one. That of sd1 follows KerasCV's numerics, as all do that were fine-tuned from KerasCV's
files, those of the others diffusers'. Epoch 2 are low-rank updates of the pretrained UNet, exported apart from it.
"""

import gc
import logging
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from cli.startup import import_keras

keras = import_keras()

import export_weights  # noqa: E402
from Experiment.paths import Experiment  # noqa: E402
from Models.adapter import load_diffusion  # noqa: E402
from Models.class_encoder import class_encoder  # noqa: E402
from Models.lora import kernel_shapes, target_layers  # noqa: E402
from Models.lora_files import Facts, write_updates  # noqa: E402
from Models.numerics import AS_PUBLISHED, let_follow  # noqa: E402
from Models.sampler import class_contexts  # noqa: E402
from Models.weight_names import epoch_path  # noqa: E402
from Models.weights import save_weights  # noqa: E402
from parity.shapes import SHAPES, backbone_of  # noqa: E402

CLASSES, COUNT, STEPS, SCALE, SEED = 10, 4, 15, 1.5, 1234
RANK, ALPHA = 4, 8.0


def save_epochs(backbone, place, experiment, shape):
    """Epoch 1 of the Class Encoder, with contexts of unit variance, and both of the UNet."""
    rng, encoder = np.random.default_rng(SEED), class_encoder(CLASSES, backbone.hidden_units, backbone.context_shape)
    for weight in encoder.weights:
        scale = 1.0 if weight.path.startswith("hidden") else backbone.hidden_units**-0.5
        weight.assign(rng.standard_normal(weight.shape, dtype="float32") * scale)
    save_weights(encoder, epoch_path(experiment.part_dir("enc"), 1))
    unet, folder = backbone.unet(place), experiment.part_dir("dif")
    save_weights(let_follow(unet, AS_PUBLISHED) if shape.backbone.endswith("sd1") else unet, epoch_path(folder, 1))
    kernels = kernel_shapes(target_layers(unet, shape.lora))
    facts = Facts(RANK, ALPHA, shape.lora, backbone.weights_hash("unet", place))
    write_updates(epoch_path(folder, 2), facts, {where: pair(kernel, rng) for where, kernel in kernels.items()})


def pair(kernel, rng):
    """A and B of an update of a kernel of some shape: a fifth of what the kernel itself gives."""
    a = rng.standard_normal((*kernel[:-1], RANK)) * float(np.prod(kernel[:-1])) ** -0.5
    return a, rng.standard_normal((RANK, kernel[-1])) * 0.2 * RANK / ALPHA * RANK**-0.5


def export(folder, backbone, epoch, name, *more):
    """Export an epoch of the UNet into a folder of a name, and write what we draw with it beside."""
    place = folder / "diffusers"
    flags = f"--dataset digits --exp parity --enc_epoch 1 --vae --inf_steps {STEPS} --ugs {SCALE}".split()
    flags += ["--backbone", backbone.name, "--weights", str(place), "--root", str(folder / "out"), *more]
    args = export_weights.parse_args([*flags, "--dif_epoch", str(epoch), "--to", str(folder / name)])
    known = export_weights.plan(args)
    export_weights.export(args, known)
    gc.collect()
    diffusion = load_diffusion(backbone, CLASSES, place, **known.epochs)
    noise = np.random.default_rng(SEED).standard_normal((COUNT, *backbone.latent_shape), dtype="float32")
    contexts = class_contexts(diffusion.encoder)
    images, _ = diffusion.sampler().sample(noise, contexts, [0] * COUNT, STEPS, SCALE)
    np.savez(folder / f"{name}.npz", noise=noise, images=np.asarray(images))


def main(folder, shape):
    backbone = backbone_of(shape)
    save_epochs(backbone, folder / "diffusers", Experiment(folder / "out", "parity", "digits"), shape)
    gc.collect()
    export(folder, backbone, 2, "updates", "--lora", "separate")
    gc.collect()
    export(folder, backbone, 1, "export")
    shutil.rmtree(folder / "out")


if __name__ == "__main__":
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    main(Path(sys.argv[1]), SHAPES[sys.argv[2]])
