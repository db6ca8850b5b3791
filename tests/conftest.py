"""What several test files share: quiet TensorFlow, golden values, tiny models and data."""

import os
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

from pathlib import Path

import numpy as np
import pytest

# The function of each script that is its stage.
STAGES = {
    "SD_adapting": "adapt",
    "hyp_opt": "search",
    "generate_dataset": "generate",
    "classifier_training": "train_classifier",
}


def actions_of(script):
    """The argparse actions of a script's command line."""
    import importlib

    from cli import flags

    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flags.Parser, "parse_args", lambda parser, argv=None: made.append(parser) or sys.exit())
        with pytest.raises(SystemExit):
            importlib.import_module(script).parse_args([])
    return made[0]._actions


@pytest.fixture(scope="session")
def golden():
    """Folder of what the published stack computed."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def diffusion_golden(golden):
    with np.load(golden / "diffusion_golden.npz") as data:
        return dict(data)


@pytest.fixture
def float32_after():
    """Put Keras back to float32 after a test that changes the precision."""
    import keras

    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def tiny_unet():
    """Builder of a UNet stand-in of 1400 weights: latents (B, 4, 4, 4), time (B, 320), context (B, 2, 3) -> noise."""

    def build():
        import keras
        from keras import layers

        latent = keras.Input((4, 4, 4), name="latent")
        time = keras.Input((320,), name="timestep_embedding")
        context = keras.Input((2, 3), name="context")
        condition = layers.Concatenate()([time, layers.Flatten()(context)])
        shift = layers.Reshape((1, 1, 4))(layers.Dense(4, activation="tanh")(condition))
        noise = layers.Conv2D(4, 3, padding="same")(layers.Add()([latent, shift]))
        return keras.Model([latent, time, context], noise, name="tiny_unet")

    return build
