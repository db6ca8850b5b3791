"""The faster layers compute what KerasCV's compute."""

import keras
import numpy as np
import pytest

from Models import faster_layers, kerascv_layers
from Models.faster_layers import shared_contexts, use_faster_layers
from Models.kerascv_layers import diffusion_model
from Models.mini_backbone import mini_unet


def random_weights(model, seed=0):
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(0.1, 0.3, w.shape) for w in model.get_weights()])
    return model


@pytest.mark.parametrize("shape, groups", [((4, 4, 64), 32), ((5, 3, 96), 32), ((2, 2, 6), 3)])
@pytest.mark.parametrize("policy, tolerance", [("float32", 1e-5), ("mixed_bfloat16", 4e-2)])
def test_group_normalization(shape, groups, policy, tolerance):
    stock = keras.layers.GroupNormalization(groups, epsilon=1e-5, dtype=policy)
    stock.build((None, *shape))
    rng = np.random.default_rng(1)
    stock.set_weights(rng.normal(1, 0.5, (2, shape[-1])))
    x = rng.normal(30, 2, (3, *shape)).astype("float32")  # far from 0, where E[x^2] - E[x]^2 loses its digits
    expected = np.asarray(stock(x), "float32")
    stock.__class__ = faster_layers.GroupNormalization
    found = np.asarray(stock(x), "float32")
    assert np.abs(expected).max() > 1 and np.abs(found - expected).max() < tolerance


@pytest.mark.parametrize("size, channels, filters, kernel, stride, product", [
    (6, 640, 640, 3, 1, True), (4, 700, 640, 3, 2, True), (5, 700, 640, 3, 2, True), (18, 12, 20, 3, 1, False), (7, 6, 5, 1, 1, False), (2, 300, 200, 1, 1, True),
    (None, 640, 640, 3, 1, False),
])  # fmt: skip
def test_convolution(monkeypatch, size, channels, filters, kernel, stride, product):
    layer = keras.layers.Conv2D(filters, kernel, stride)
    layer.build((None, size, size, channels))
    rng = np.random.default_rng(4)
    layer.set_weights([rng.normal(0, 0.1, w.shape) for w in layer.weights])
    x = rng.normal(0, 1, (2, size or 6, size or 6, channels)).astype("float32")
    expected = np.asarray(layer(x))
    layer.__class__ = faster_layers.Conv2D
    stock = []
    monkeypatch.setattr(keras.layers.Conv2D, "convolution_op", lambda *args: stock.append(args) or expected - layer.bias)
    found = np.asarray(keras.Model(i := keras.Input((size, size, channels)), layer(i))(x) if product else layer(x))
    assert expected.std() > 0.1 and np.abs(found - expected).max() < 1e-4
    assert size is None or bool(stock) != product


@pytest.fixture(scope="module")
def unet():
    return random_weights(mini_unet(16, (3, 5)))


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(2)
    contexts = 20 * rng.standard_normal((4, 3, 5), dtype="float32")  # strong enough to be seen in the output
    rows = np.array([3, 0, 0, 2, 1])
    return (rng.standard_normal((5, 4, 4, 4), dtype="float32"), rng.standard_normal((5, 320), dtype="float32"), contexts, rows)


def test_unet_keeps_its_numbers_and_its_weights(unet, inputs, tmp_path):
    latents, time, contexts, rows = inputs
    expected = np.asarray(unet([latents, time, contexts[rows]]))
    unet.save_weights(tmp_path / "stock.weights.h5")
    faster = use_faster_layers(mini_unet(16, (3, 5)))
    faster.load_weights(tmp_path / "stock.weights.h5")
    kinds = [type(layer) for layer in faster_layers.all_layers(faster)]
    assert kinds.count(faster_layers.GroupNormalization) == 21 and kinds.count(faster_layers.CrossAttention) == 8
    assert keras.layers.GroupNormalization not in kinds and diffusion_model.CrossAttention not in kinds
    assert np.abs(np.asarray(faster([latents, time, contexts[rows]])) - expected).max() < 1e-4 * np.abs(expected).max()

    assert keras.layers.Conv2D not in kinds
    on_gpu = [type(layer) for layer in faster_layers.all_layers(use_faster_layers(mini_unet(16, (3, 5)), on_gpu=True))]
    assert on_gpu.count(keras.layers.Conv2D) == kinds.count(faster_layers.Conv2D) > 0
    assert on_gpu.count(faster_layers.GroupNormalization) == 21

    with shared_contexts(faster, contexts, rows):
        shared = np.asarray(faster([latents, time, np.zeros_like(contexts[rows])]))  # the argument is not looked at
    assert np.abs(shared - expected).max() < 1e-4 * np.abs(expected).max()
    other = np.asarray(faster([latents, time, np.zeros_like(contexts[rows])]))  # outside of the block it is
    assert np.abs(other - expected).max() > 1e-2 * np.abs(expected).max()


def every_kerascv_layer():
    """Networks with each layer of KerasCV's Stable Diffusion: (path, shape, values) of weights, and shapes of layers."""
    keras.utils.set_random_seed(3)
    image, time, context = keras.Input((4, 6, 8)), keras.Input((10,)), keras.Input((3, 5))
    x = kerascv_layers.PaddedConv2D(64, 3, padding=1, strides=2)(image)
    x = kerascv_layers.ResnetBlock(32)(x)
    x = kerascv_layers.AttentionBlock(32)(kerascv_layers.ResnetBlock(32)(x))
    x = diffusion_model.ResBlock(64)([x, time])
    x = diffusion_model.ResBlock(64)([x, time])
    for fully_connected in (False, True):
        x = diffusion_model.SpatialTransformer(4, 16, fully_connected)([x, context])
    model = keras.Model([image, time, context], diffusion_model.Upsample(16)(x))
    weights = [(w.path, tuple(w.shape), w.numpy().tobytes()) for w in model.weights]
    return weights, [(layer.name, layer.output.shape, layer.output.dtype) for layer in model.layers]


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_kerascv_layers_are_built_as_kerascv_builds_them(monkeypatch, float32_after, policy):
    keras.config.set_dtype_policy(policy)
    keras.backend.clear_session()  # names of layers count from 0 again
    found = every_kerascv_layer()
    for kind, build in kerascv_layers.KERASCV_BUILDS.items():
        monkeypatch.setattr(kind, "build", build)
        monkeypatch.delattr(kind, "compute_output_shape")
    keras.backend.clear_session()
    stock = every_kerascv_layer()
    assert len(stock[0]) == 106 and found == stock
