"""Our side of the export in `make parity-diffusers`: epochs of a full-size model, exported, and the images that we make.

    python our_export.py FOLDER BACKBONE

The epochs of sd1 follow KerasCV's numerics, as all do that were fine-tuned from KerasCV's files, those of sd2 diffusers'.
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
from Models.backbones import BACKBONES  # noqa: E402
from Models.class_encoder import class_encoder  # noqa: E402
from Models.numerics import AS_PUBLISHED, let_follow  # noqa: E402
from Models.sampler import class_contexts  # noqa: E402
from Models.weight_names import epoch_path  # noqa: E402
from Models.weights import save_weights  # noqa: E402

CLASSES, COUNT, STEPS, SCALE, SEED = 10, 4, 15, 1.5, 1234


def save_epochs(backbone, place, experiment, as_published):
    """Epoch 1 of the Class Encoder, with contexts of unit variance, and of the UNet."""
    rng, encoder = np.random.default_rng(SEED), class_encoder(CLASSES, backbone.hidden_units, backbone.context_shape)
    for weight in encoder.weights:
        scale = 1.0 if weight.path.startswith("hidden") else backbone.hidden_units**-0.5
        weight.assign(rng.standard_normal(weight.shape, dtype="float32") * scale)
    save_weights(encoder, epoch_path(experiment.part_dir("enc"), 1))
    unet = backbone.unet(place)
    save_weights(let_follow(unet, AS_PUBLISHED) if as_published else unet, epoch_path(experiment.part_dir("dif"), 1))


def main(folder, name):
    backbone, place = BACKBONES[name], folder / "diffusers"
    save_epochs(backbone, place, Experiment(folder / "out", "parity", "digits"), name == "sd1")
    gc.collect()
    flags = [
        "--dataset",
        "digits",
        "--exp",
        "parity",
        "--backbone",
        name,
        "--root",
        str(folder / "out"),
        "--weights",
        str(place),
    ]
    flags += ["--enc_epoch", "1", "--dif_epoch", "1", "--vae", "--inf_steps", str(STEPS), "--ugs", str(SCALE)]
    args = export_weights.parse_args([*flags, "--to", str(folder / "export")])
    known = export_weights.plan(args)
    export_weights.export(args, known)
    gc.collect()
    diffusion = load_diffusion(backbone, CLASSES, place, **known.epochs)
    noise = np.random.default_rng(SEED).standard_normal((COUNT, *backbone.latent_shape), dtype="float32")
    contexts = class_contexts(diffusion.encoder)
    images, _ = diffusion.sampler().sample(noise, contexts, [0] * COUNT, STEPS, SCALE)
    np.savez(folder / "ours.npz", noise=noise, images=np.asarray(images))
    shutil.rmtree(folder / "out")


if __name__ == "__main__":
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    main(Path(sys.argv[1]), sys.argv[2])
