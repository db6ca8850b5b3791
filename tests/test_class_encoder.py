"""The Class Encoder, against what the published stack computed."""

import keras
import numpy as np
import pytest

from Models.class_encoder import class_encoder
from Models.weights import load_weights


@pytest.fixture(scope="module")
def published(golden):
    return load_weights(class_encoder(10, 12, (5, 8)), golden / "class_encoder_units12_tokens5_dim8_classes10.hdf5")


@pytest.mark.parametrize("label, key", [(np.eye(10), "one_hot_output"), (np.zeros((1, 10)), "zeros_output")])
def test_published_weights_give_the_published_contexts(golden, published, label, key):
    with np.load(golden / "class_encoder_golden.npz") as expected:
        assert np.abs(published.predict_on_batch(label) - expected[key]).max() < 1e-5


def test_there_is_no_nonlinearity(published):
    a, b, zero = (
        np.random.default_rng(1).normal(size=(2, 10)),
        np.random.default_rng(2).normal(size=(2, 10)),
        np.zeros((2, 10)),
    )
    f = published.predict_on_batch
    assert np.abs(f(a + b) - (f(a) + f(b) - f(zero))).max() < 1e-5
    assert np.abs(f(zero)).max() > 1e-3  # the first layer has a bias


def test_a_fresh_unconditional_context_is_zero():
    assert not class_encoder(3, 4, (2, 3)).predict_on_batch(np.zeros((1, 3))).any()


def test_published_size():
    model = class_encoder(10, 500, (100, 768))
    assert model.output_shape == (None, 100, 768)
    assert [tuple(w.shape) for w in model.weights] == [(10, 500), (500,), (500, 76_800)]


def test_it_computes_in_float32_whatever_the_policy(float32_after):
    keras.config.set_dtype_policy("mixed_bfloat16")
    assert class_encoder(3, 4, (2, 3)).output.dtype == "float32"
