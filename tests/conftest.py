"""What several test files share: quiet TensorFlow, golden values, tiny models and data."""

import contextlib
import logging
import os
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # tests are of a processor, also where there is a GPU

from pathlib import Path

import numpy as np
import pytest

from cli.startup import use_onednn
from tests.tiny_networks import one_layer, tiny_part

use_onednn()  # tests in this process compute as the scripts do

LONGEST = ("test_scripts", "test_interruptions", "test_search_stages", "test_xla")


def pytest_collection_modifyitems(items):
    """Files whose tests take minutes come first: one of them at the end would keep one process waiting for the other."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


# The function of each script that is its stage.
STAGES = {
    "SD_adapting": "adapt",
    "hyp_opt": "search",
    "generate_dataset": "generate",
    "classifier_training": "train_classifier",
    "export_dataset": "export",
    "audit_dataset": "audit",
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


def synthetic_files(folder, num_classes):
    """Paths of the images of a set of files, one list a class."""
    from Data.synthetic import open_set

    return [[Path(folder) / name for name in of_class] for of_class in open_set(folder, num_classes).names]


class Stopped(Exception):
    """What ends a stage in its middle."""


@contextlib.contextmanager
def stopped_writing_images(blocks):
    """Within it, images that a filter has kept are written `blocks` times, and then no more."""
    from Models import written

    write, calls = written.write_kept, []

    def stop(*args):
        if len(calls) == blocks:
            raise Stopped
        calls.append(1)
        return write(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(written, "write_kept", stop)
        yield


def write_pets(folder):
    """A folder `pets` of two classes of noise, without splits. Returns it."""
    from PIL import Image

    rng = np.random.default_rng(1)
    for name in ("cat", "dog"):
        (folder / "pets" / name).mkdir(parents=True)
        for i in range(20):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / "pets" / name / f"{i}.png")
    return folder / "pets"


@pytest.fixture(autouse=True)
def no_part_stays_open():
    """Progress is shown of what is under way alone, however a part ended: the next test sees none of this one's."""
    from Experiment.progress import open_parts

    yield
    left = [part.unit for part in open_parts]
    open_parts.clear()
    assert not left


@pytest.fixture(autouse=True)
def log_is_heard():
    """What is logged is heard by `caplog`, in details too, whatever a script that ran here before has set."""
    log = logging.getLogger("experiment")
    handlers, level, propagate = list(log.handlers), log.level, log.propagate
    log.setLevel(logging.DEBUG)  # not by the attribute: a logger remembers which levels it was asked for
    log.propagate = True
    yield
    log.handlers[:], log.propagate = handlers, propagate
    log.setLevel(level)


@pytest.fixture
def no_pictures(monkeypatch):
    """Figures are made but not rendered: stages draw several, and most tests of stages look at none."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **how: Path(path).write_bytes(b"PNG"))


@pytest.fixture
def no_sheets(monkeypatch):
    """Adaptations draw no samples: their sampler takes longer to trace than a tiny network to learn."""
    monkeypatch.setattr("Models.sample_sheets.sheet_writer", lambda *about: lambda epoch: None)


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
        # Added, not concatenated: in sampling one time serves the whole batch.
        condition = layers.Dense(4)(time) + layers.Dense(4)(layers.Flatten()(context))
        shift = layers.Reshape((1, 1, 4))(layers.Activation("tanh")(condition))
        noise = layers.Conv2D(4, 3, padding="same")(layers.Add()([latent, shift]))
        return keras.Model([latent, time, context], noise, name="tiny_unet")

    return build


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A backbone of a few weights that is known for the time of a test, in which `resnet20_16` is one layer."""
    import keras

    from Models.backbones import BACKBONES, Backbone
    from Models.classifiers import CLASSIFIERS
    from Models.weight_files import PackagedFile

    parts = ("image_encoder", "unet", "decoder")
    backbone = Backbone(
        name="tiny", image_size=8, downsampling=2, latent_scale=1.0, context_shape=(2, 3), hidden_units=5, block=8,
        build={part: tiny_part(part) for part in parts},
        files={part: PackagedFile(f"{part}.weights.h5", tmp_path) for part in parts},
        training={kind: {"epochs": 1, "batch_size": 100, "lr": 0.01} for kind in ("enc", "dif", "lora")},
    )  # fmt: skip
    keras.utils.set_random_seed(1)  # images that are not black or white all over
    for part in parts:
        backbone.build[part](backbone).save_weights(tmp_path / f"{part}.weights.h5")
    monkeypatch.setitem(BACKBONES, "tiny", backbone)
    monkeypatch.setitem(CLASSIFIERS, "resnet20_16", one_layer)
    return backbone


@pytest.fixture
def tiny_experiment(golden, tmp_path, monkeypatch, float32_after):
    """Flags of an experiment on digits below `tmp_path` with encoder epoch 31, a published file, and UNet epoch 10.

    Its backbone is small enough for the encoder; `TinyBackbone.built` says of each UNet whether it was pretrained.
    """
    import shutil
    from dataclasses import dataclass, field

    import keras

    from Models import backbones

    @dataclass(frozen=True)
    class TinyBackbone(backbones.Backbone):
        """One whose Class Encoder has the shape of the published golden file."""

        built: list = field(default_factory=list)

        def unet(self, weights_dir=None, pretrained=True):
            self.built.append(pretrained)
            latent, time = keras.Input((4, 4, 4)), keras.Input((320,))
            context = keras.Input((5, 8))
            shift = keras.layers.Reshape((1, 1, 4))(keras.layers.Dense(4)(keras.layers.Flatten()(context)))
            return keras.Model([latent, time, context], keras.layers.Add()([latent, shift]))

        def decoder(self, weights_dir=None):
            latent = keras.Input((4, 4, 4))
            pixels = keras.layers.Conv2D(3, 1)(keras.layers.UpSampling2D(4)(latent))
            return keras.Model(latent, keras.layers.Activation(keras.ops.sin)(pixels))  # never all black or all white

        def weights_hash(self, part, weights_dir=None):
            return f"hash of {part}"

    tiny = TinyBackbone("mini", 16, 4, 1.0, (5, 8), 12, 4, {}, {})
    monkeypatch.setitem(backbones.BACKBONES, "mini", tiny)
    folder = tmp_path / "Checkpoints/DDPM/Exp_0001/digits"
    (folder / "MyEmbedding").mkdir(parents=True)
    (folder / "DiffusionFt").mkdir()
    shutil.copy(golden / "class_encoder_units12_tokens5_dim8_classes10.hdf5", folder / "MyEmbedding/epoch31.hdf5")
    tiny.unet().save_weights(folder / "DiffusionFt/epoch10.weights.h5")
    tiny.built.clear()
    return ["--dataset", "digits", "--exp", "0001", "--backbone", "mini", "--root", str(tmp_path)]
