"""The classifier's network, against published counts and what the published stack computed."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from Models.classifiers import CLASSIFIERS
from Models.resnet import BatchNormalization, multiply_accumulates, resnet20
from Models.weights import load_weights


@pytest.mark.parametrize("classes, resolution, parameters", [
    (10, 32, 4_291_530), (100, 32, 4_314_660), (9, 28, 4_291_273), (7, 28, 4_290_759), (8, 28, 4_291_016),
    (5, 28, 4_290_245),
])  # fmt: skip
def test_published_parameter_counts(classes, resolution, parameters):
    assert resnet20(resolution, classes).count_params() == parameters


def test_published_multiply_accumulates():
    assert multiply_accumulates(resnet20(32, 10)) == 643_874_944


@pytest.mark.parametrize("name", ["resnet20_filters8_classes10_res32", "resnet20_filters8_classes5_res28"])
def test_published_whole_model_files_give_the_published_probabilities(golden, name):
    """These files hold an optimizer's state too."""
    with np.load(golden / f"{name}_golden.npz") as expected:
        images, probabilities = expected["images"], expected["probabilities"]
        model = resnet20(images.shape[1], probabilities.shape[1], filters=8)
        assert model.count_params() == expected["params"]
    load_weights(model, golden / f"{name}.h5")
    assert np.abs(model.predict_on_batch(images) - probabilities).max() < 1e-5


def test_the_classifiers_of_the_command_line():
    filters = {name: build(8, 3).layers[1].filters for name, build in CLASSIFIERS.items()}
    assert filters == {"resnet20": 64, "resnet20_16": 16}


def test_batch_normalisation_gives_the_numbers_of_keras():
    """Outputs, gradients and moving averages, of a whole batch and of a smaller last one; and outputs of a trained layer."""
    rng = np.random.default_rng(0)
    gamma, beta = (rng.normal(size=5).astype("float32") for _ in range(2))

    def computed(layer):
        layer.build((None, 3, 4, 5))
        layer.gamma.assign(gamma)
        layer.beta.assign(beta)

        @tf.function
        def step(images, wanted):
            with tf.GradientTape() as tape:
                tape.watch(images)
                loss = tf.reduce_sum(wanted * layer(images, training=True))
            return tape.gradient(loss, [images, layer.gamma.value, layer.beta.value])

        numbers = np.random.default_rng(1)
        found = []
        for size in (6, 1):
            images, wanted = (numbers.normal(2, 3, size=(size, 3, 4, 5)).astype("float32") for _ in range(2))
            found += step(tf.constant(images), tf.constant(wanted))
            found += [layer.moving_mean, layer.moving_variance, layer(images), layer(images, training=True)]
        return [keras.ops.convert_to_numpy(value) for value in found]

    how = {"momentum": 0.9, "epsilon": 1e-5}
    ours, stock = computed(BatchNormalization(**how)), computed(keras.layers.BatchNormalization(**how))
    assert len(ours) == 14
    for mine, theirs in zip(ours, stock):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=2e-5)


def test_files_know_both_normalisations_by_one_name():
    assert {layer.__class__.__name__ for layer in resnet20(8, 3, filters=8).layers if "norm" in layer.name} == {
        "BatchNormalization"
    }
