"""Trainings on one processor that TensorFlow takes for two: run by test_devices.py, in a process of its own.

python tests/two_devices.py FOLDER
"""

# The processor is cut in two before anything uses it.
# ruff: noqa: E402
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]

import keras
import numpy as np
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

from tiny_networks import tiny_part

from Models.adapter import WholeNetwork, load_diffusion
from Models.averages import Averaged
from Models.backbones import BACKBONES, Backbone
from Models.classifier import Classifier
from Models.devices import sharing
from Models.recipes import Recipe
from Models.training import compile_model, fit_epochs
from Models.weight_files import PackagedFile

PARTS = ("image_encoder", "unet", "decoder")
CLASSES = 3


class Losses(keras.callbacks.Callback):
    def __init__(self, adapted, last):
        super().__init__()
        self.adapted, self.last, self.offset, self.losses = adapted, last, 0, []

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(logs["loss"])


class SlowAdam(Recipe):
    """Adam moves a weight by the whole rate however small its gradient is, even if rounding has made its sign.

    At the published rate that is 1.02e-5 for one weight of 170,000 after 3 steps, and less for all others.
    """

    def new_optimizer(self):
        return keras.optimizers.Adam(2e-4)


def tiny(folder):
    backbone = Backbone(
        name="tiny", image_size=8, downsampling=2, latent_scale=1.0, context_shape=(2, 3), hidden_units=5, block=8,
        build={part: tiny_part(part) for part in PARTS},
        files={part: PackagedFile(f"{part}.weights.h5", folder) for part in PARTS},
        training={kind: {"epochs": 1, "batch_size": 100, "lr": 0.01} for kind in ("enc", "dif", "lora")},
    )  # fmt: skip
    keras.utils.set_random_seed(1)
    for part in PARTS:
        backbone.build[part](backbone).save_weights(folder / f"{part}.weights.h5")
    BACKBONES["tiny"] = backbone
    return backbone


def adaptation(folder, devices, part, samples, batch_size):
    """Losses of the steps of one epoch, weights after it and their averages."""
    rng = np.random.default_rng(1)
    moments = rng.standard_normal((samples, 4, 4, 8), dtype="float32")
    keras.utils.set_random_seed(1)
    with sharing(devices) as used:
        assert used == devices
        diffusion = load_diffusion(BACKBONES["tiny"], CLASSES)
        adapted = WholeNetwork(diffusion, part)
        model = compile_model(adapted, 0.01, 9, "float32", average_power=2.0)
    assert type(model.optimizer).__name__ == ("StockAdam" if devices > 1 else "SequentialAdam")
    saver = Losses(adapted, 1)
    fit_epochs(model, saver, moments, np.arange(samples) % CLASSES, CLASSES, batch_size, 7, 0)
    # What is sampled and saved from within a training.
    images, _ = diffusion.sampler().sample(rng.standard_normal((2, 4, 4, 4), dtype="float32"),
                                           np.ones((2, 2, 3), "float32"), [0, 0], 2, 1.5)  # fmt: skip
    assert images.shape == (2, 8, 8, 3)
    for variable in model.trainable_variables if devices > 1 else []:
        copies = [copy.numpy() for copy in variable.value.values]
        assert len(copies) == devices and all(np.array_equal(copies[0], copy) for copy in copies)
    averaged = Averaged(adapted, model.trainable_variables, model.optimizer.averages)
    averaged.save(folder / f"{part}{devices}.weights.h5")
    return saver.losses, [v.numpy() for v in [*model.trainable_variables, *model.optimizer.averages]]


def classifier(devices, samples, batch_size):
    """Losses of the first two steps, then that of validation after three; weights and predictions then."""
    rng = np.random.default_rng(1)
    images, labels = rng.integers(0, 256, (samples, 8, 8, 3), np.uint8), np.arange(samples) % CLASSES
    keras.utils.set_random_seed(1)
    with sharing(devices):
        network = Classifier("resnet20_16", 8, CLASSES, SlowAdam())
    steps = Losses(None, 1)
    history, _ = network.fit(
        (images, labels), (images, labels), epochs=1, batch_size=batch_size, seed=3, patience=(9, 9), verbose=0,
        callbacks=[steps],
    )  # fmt: skip
    return [*steps.losses[:2], *history["val_loss"]], [*network.model.get_weights(), network.probabilities(images)]


def compare(name, one, two):
    """Print the largest differences of losses, relative to them, and of weights, relative to those above 1."""
    (losses, arrays), (other_losses, others) = one, two
    assert len(arrays) == len(others) > 0 and [a.shape for a in arrays] == [a.shape for a in others]
    assert len(losses) == len(other_losses) >= 3
    loss = np.abs(np.divide(losses, other_losses) - 1).max()
    print(name, loss, max((np.abs(a - b) / np.maximum(1, np.abs(a))).max() for a, b in zip(arrays, others)))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    tiny(folder)
    compare("enc", *(adaptation(folder, devices, "enc", 24, 8) for devices in (1, 2)))
    compare("dif", *(adaptation(folder, devices, "dif", 21, 7) for devices in (1, 2)))  # parts are padded
    compare("classifier", *(classifier(devices, 21, 8) for devices in (1, 2)))  # the last batch is 3 and 2
