"""Our side of `make parity`: loads what published_side.py has saved and compares what comes out.

    python our_side.py FOLDER

Checkpoints are loaded by the code that loads released ones. Exit code 1: something differs by more than it may.
"""

import gc
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from cli.startup import import_keras

keras = import_keras()

from Experiment.files import file_hash  # noqa: E402
from Experiment.paths import Experiment  # noqa: E402
from Models.backbones import BACKBONES  # noqa: E402
from Models.class_encoder import class_encoder  # noqa: E402
from Models.diffusion import timestep_embedding  # noqa: E402
from Models.sampler import Sampler, class_contexts  # noqa: E402
from Models.weight_files import UNTRAINED  # noqa: E402
from Models.weight_names import epoch_file  # noqa: E402
from Models.weights import load_weights  # noqa: E402

MOST_DIFFERENCE = 1e-4  # of float32 outputs of order 1
MOST_GREY_LEVELS = 1
ORDER_OF_ONE = (0.1, 10.0)  # standard deviations for which that bound means something
ROW = "{:<20} {:>12} {:>9} {:>9} {:>12}  {}"


def compare(part, ours, published):
    """Print a row of the table. Returns whether the difference is small enough."""
    ours, published = np.asarray(ours), np.asarray(published)
    # Before the subtraction, which would broadcast.
    if ours.shape != published.shape:
        raise ValueError(f"{part} must have the published shape {published.shape}. Received: {ours.shape}")
    difference, spread = np.abs(ours - published).max(), published.std()
    good = bool(difference <= MOST_DIFFERENCE and ORDER_OF_ONE[0] <= spread <= ORDER_OF_ONE[1])
    shape = "x".join(map(str, published.shape))
    print(
        ROW.format(
            part, f"{difference:.1e}", f"{np.abs(published).max():.2f}", f"{spread:.2f}", "ok" if good else "TOO MUCH", shape
        ),
        flush=True,
    )
    return good


def sd1(pretrained):
    """The backbone `sd1` whose pretrained image encoder and decoder are those in a folder: only their hashes differ."""
    known = BACKBONES["sd1"]
    files = {
        part: replace(file, sha256=file_hash(pretrained / file.name)) if (pretrained / file.name).exists() else file
        for part, file in known.files.items()
    }
    return replace(known, files=files)


def main(folder):
    expected = np.load(folder / "expected.npz")
    experiment = Experiment(folder, "0001", "cifar10")
    pretrained = folder / "pretrained"
    backbone = sd1(pretrained)
    print(ROW.format("part", "largest diff", "max abs", "std", "", "shape of the output"))

    encoder = class_encoder(len(expected["contexts"]) - 1, backbone.hidden_units, backbone.context_shape)
    load_weights(encoder, epoch_file(experiment.part_dir("enc"), 31, "enc"))
    contexts = class_contexts(encoder)
    good = [compare("class encoder", contexts[:-1], expected["contexts"][:-1])]
    good += [compare("  of no label", contexts[-1:], expected["contexts"][-1:])]

    image_encoder = backbone.image_encoder(pretrained)
    good += [compare("image encoder", image_encoder.predict_on_batch(expected["images"]), expected["moments"])]
    del image_encoder
    gc.collect()

    decoder = backbone.decoder(pretrained)
    good += [compare("decoder", decoder.predict_on_batch(expected["latents"]), expected["decoded"])]

    # There is no pretrained UNet, so that what it computes can only come from the epoch.
    os.environ[UNTRAINED] = "1"
    unet = backbone.unet()
    load_weights(unet, epoch_file(experiment.part_dir("dif"), 10, "dif"))
    embeddings = timestep_embedding(expected["timesteps"])
    good += [compare("timestep embedding", embeddings, expected["embeddings"])]
    labels = expected["labels"]
    noise = unet.predict_on_batch([expected["latents"], expected["embeddings"], expected["contexts"][labels]])
    good += [compare("UNet", noise, expected["noise"])]

    steps, scale = int(expected["steps"]), float(expected["scale"])
    images, _ = Sampler(unet, decoder).sample(expected["initial_noise"], contexts, labels, steps, scale)
    images, published = np.asarray(images), expected["generated"]
    if images.shape != published.shape or images.dtype != published.dtype:
        raise ValueError(f"images must be {published.dtype} {published.shape}. Received: {images.dtype} {images.shape}")
    levels = np.abs(images.astype(int) - published).max()
    good += [bool(levels <= MOST_GREY_LEVELS)]
    print(
        f"\ngeneration of {len(labels)} images, {steps} steps, guidance scale {scale}: "
        f"{(images == published).mean():.4%} of the pixel values are equal, largest difference {levels} of 255\n"
        f"(published images: mean {published.mean():.0f}, standard deviation {published.std():.0f}, "
        f"{np.isin(published, (0, 255)).mean():.1%} clipped)"
    )
    print("\nours gives what the published stack gives" if all(good) else "\nours DIFFERS from the published stack")
    return 0 if all(good) else 1


if __name__ == "__main__":
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it finds fault with five models in one process
    print(f"keras {keras.__version__} on {keras.backend.backend()}", flush=True)
    sys.exit(main(Path(sys.argv[1])))
