"""Our side of the training step: three steps from the published weights and numbers, compared with what came out there.

    python our_training.py FOLDER

Exit code 1: losses or weights differ by more than they may.
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from cli.startup import import_keras

import_keras()

from Models.adapter import Diffusion, WholeNetwork  # noqa: E402
from Models.backbones import BACKBONES  # noqa: E402
from Models.class_encoder import class_encoder  # noqa: E402
from Models.faster_layers import use_faster_layers  # noqa: E402
from Models.mini_backbone import mini_unet  # noqa: E402
from Models.training import compile_model  # noqa: E402
from Models.weights import load_weights  # noqa: E402

CONTEXT_SHAPE, HIDDEN, IMAGE_SIZE, SCALE = (8, 64), 64, 32, 0.18215
LEARNING_RATE, ALL_STEPS = {"enc": 1e-4, "dif": 1e-5}, 10
MOST_LOSS_DIFFERENCE = 1e-5  # relative
# Of the way that a weight has gone. Adam divides by the size of a gradient: of one that is 0 but for rounding it makes a
# whole step in either direction, so a few weights of thousands may differ by more.
MOST_WEIGHT_DIFFERENCE, LEAST_SHARE = 0.01, 0.995


def main(folder):
    with np.load(folder / "training.npz", allow_pickle=False) as data:
        expected = dict(data)
    classes = expected["labels"].shape[-1]
    good = True
    backbone = replace(BACKBONES["mini"], latent_scale=SCALE)  # what is compared is compiled as SD_adapting.py does
    for part in ("enc", "dif"):
        encoder, trained = (class_encoder(classes, HIDDEN, CONTEXT_SHAPE) for _ in range(2))
        unet, trained_unet = (use_faster_layers(mini_unet(IMAGE_SIZE, CONTEXT_SHAPE)) for _ in range(2))
        load_weights(encoder, folder / "small_encoder.hdf5")
        load_weights(unet, folder / "small_unet.hdf5")
        published = load_weights(trained if part == "enc" else trained_unet, folder / f"trained_{part}.hdf5")
        adapted = WholeNetwork(Diffusion(backbone, encoder, unet), part)
        before = [w.numpy() for w in adapted.network.weights]
        model = compile_model(adapted, LEARNING_RATE[part], ALL_STEPS, "float32")
        losses = []
        for i, target in enumerate(expected["target"]):
            names = {"moments": "moments", "latent_noise": "latent_noise", "noise": "noise", "timestep": "timesteps"}
            batch = {ours: expected[theirs][i] for ours, theirs in names.items()} | {"label": expected["labels"][i]}
            model.reset_metrics()
            losses.append(float(model.train_on_batch(batch, target)))
        ours, theirs = np.array(losses), expected[f"losses_{part}"]
        difference = np.abs(ours / theirs - 1).max()
        way = np.concatenate([np.abs(p.numpy() - b).ravel() for p, b in zip(published.weights, before)])
        apart = np.concatenate(
            [np.abs(p.numpy() - w.numpy()).ravel() for p, w in zip(published.weights, adapted.network.weights)]
        )
        share = np.mean(apart <= MOST_WEIGHT_DIFFERENCE * way.mean())
        fits = difference <= MOST_LOSS_DIFFERENCE and share >= LEAST_SHARE and way.mean() > 0
        good &= bool(fits)
        norms = ", ".join(f"{x:.3g}" for x in expected[f"norms_{part}"])
        print(
            f"training of {part}, three steps (gradients of norms {norms}, clipped at 10): losses "
            f"{', '.join(f'{x:.6f}' for x in ours)}, largest relative difference {difference:.1e}; weights went {way.mean():.1e} on average, {share:.3%} of them end within 1 % of that, "
            f"largest difference {apart.max():.1e}: {'ok' if fits else 'TOO MUCH'}",
            flush=True,
        )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
