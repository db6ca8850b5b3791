"""The classifier's network, against published counts and what the published stack computed."""

import numpy as np
import pytest

from Models.classifiers import CLASSIFIERS
from Models.resnet import multiply_accumulates, resnet20
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
