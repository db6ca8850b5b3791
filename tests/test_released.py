"""The paper's own files in their published folders: checkpoints of Keras 2, and a synthetic tree without a manifest."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import classifier_training
import generate_dataset
import hyp_opt
from Data.loaders import Split, Splits
from Models.classifiers import CLASSIFIERS, resnet20_of

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.mark.parametrize("name", ["best_model.h5/best_model.h5", "best_model.h5"])
def test_released_classifier_is_tested_as_it_is(golden, tmp_path, monkeypatch, name):
    with np.load(golden / "resnet20_filters8_classes10_res32_golden.npz") as data:
        images, probabilities = (data["images"] * 255).round().astype(np.uint8), data["probabilities"]
    labels = probabilities.argmax(axis=1).astype(np.int32)
    labels[:3] = (labels[:3] + 1) % 10  # so that 5 of 8 are right
    split = Split(images, labels)
    monkeypatch.setattr(classifier_training, "load_splits", lambda *_: Splits(split, split, split))
    monkeypatch.setitem(CLASSIFIERS, "resnet20", resnet20_of(8))
    weights = tmp_path / "Checkpoints/Classifiers/Exp_0001/resnet20/cifar10/400k" / name
    weights.parent.mkdir(parents=True)
    shutil.copy(golden / "resnet20_filters8_classes10_res32.h5", weights)

    flags = ["--dataset", "cifar10", "--exp", "0001", "--take", "10", "--train", "False", "--root", str(tmp_path)]
    classifier_training.train_classifier(classifier_training.parse_args(flags))
    results = json.loads((tmp_path / "CAS Results/test_accuracies_exp0001.json").read_text())
    assert results["resnet20"]["cifar10"]["x10"]["top_1_accuracy"] == 5 / 8


def test_released_epochs_generate_images(tiny_experiment, tmp_path):
    flags = ["--img_total", "12", "--enc_epoch", "31", "--dif_epoch", "10", "--inf_steps", "2", "--ugs", "1.5"]
    generate_dataset.generate(generate_dataset.parse_args(tiny_experiment + flags))
    made = tmp_path / "Data/Synthetic/Exp_0001/digits/12Enc31Dif10Is2Ugs1.5"
    assert json.loads((made / "manifest.json").read_text())["counts"] == [2, 2, *[1] * 8]


def test_released_epoch_is_searched(tiny_experiment, tmp_path, monkeypatch):
    monkeypatch.setitem(CLASSIFIERS, "resnet20", resnet20_of(4))
    flags = ["--n_trials", "1", "--num_imgs", "10", "--is_max", "5", "--epochs", "1"]
    hyp_opt.search(hyp_opt.parse_args(tiny_experiment + flags))
    best = json.loads((tmp_path / "optimization_plots/0001/digits/enc/best.json").read_text())
    assert best["epoch"] == 31  # the only one there, whatever epoch was suggested


def test_released_synthetic_tree_trains_a_classifier(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    labels = np.arange(20, dtype=np.int32) % 2
    real = Split((labels[:, None, None, None] * np.full((20, 28, 28, 3), 200)).astype(np.uint8), labels)
    np.savez(tmp_path / "two.npz", **{f"{s}_images": real.images for s in ("train", "val", "test")},
             **{f"{s}_labels": labels[:, None] for s in ("train", "val", "test")})  # fmt: skip
    for label in range(2):
        folder = tmp_path / f"Data/Synthetic/Exp_0001/two/1k/class_{label:02d}"
        folder.mkdir(parents=True)
        for i in range(11):
            noise = rng.integers(0, 50, (128, 128, 3)) + 200 * label
            Image.fromarray(noise.astype(np.uint8)).save(folder / f"img_{i}.png")
    monkeypatch.setitem(CLASSIFIERS, "resnet20", resnet20_of(4))
    flags = ["--dataset", str(tmp_path / "two.npz"), "--exp", "0001", "--epochs", "12", "--batch_size", "4",
             "--root", str(tmp_path)]  # fmt: skip
    classifier_training.train_classifier(classifier_training.parse_args(flags))
    results = json.loads((tmp_path / "CAS Results/test_accuracies_exp0001.json").read_text())
    assert results["resnet20"]["two"]["x1"]["top_1_accuracy"] > 0.9
