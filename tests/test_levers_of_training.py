"""Levers of a classifier's training: augmentation, slices, targets, SGD. What is random is addressed."""

import keras
import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from Data.registry import DATASETS, DatasetSpec, augmentations
from Data.stored_set import StoredSet
from Models.augment import Augment, crop, erase, flip
from Models.classifier import Classifier, accuracies
from Models.classifiers import CLASSIFIERS
from Models.recipes import SGD_DECAY, SGD_RATE, Recipe, falling_rate
from tests.conftest import Stopped
from tests.test_synthetic import write_dataset
from tests.tiny_networks import one_layer

RNG = np.random.default_rng(1)
IMAGES = RNG.integers(0, 256, (40, 8, 8, 3)).astype(np.uint8)
LABELS = (np.arange(40) % 2).astype(np.int32)


# Augmentation


def test_what_an_image_gets_is_a_function_of_seed_epoch_and_number():
    names = ("flip", "crop", "erase")
    index = np.array([7, 3, 30])
    first = Augment(names, 40, seed=5)(IMAGES[index], 2, index)
    # In another batch, after other epochs, among more images.
    again = Augment(names, 900, seed=5)
    again(IMAGES[:4], 9, np.arange(4))
    assert np.array_equal(again(IMAGES[index[::-1]], 2, index[::-1])[::-1], first)
    for seed, epoch in ((6, 2), (5, 3)):
        assert not np.array_equal(Augment(names, 40, seed)(IMAGES[index], epoch, index), first)
    assert not np.array_equal(Augment(names, 40, 5, part=1)(IMAGES[index], 2, index), first)
    assert first.dtype == np.uint8 and first.shape == (3, 8, 8, 3)


def test_flip_mirrors_left_and_right():
    assert np.array_equal(flip(IMAGES[:2], np.array([0.4, 0.6])), np.stack([IMAGES[0, :, ::-1], IMAGES[1]]))


@pytest.mark.parametrize("side, pad", [(8, 1), (28, 4), (32, 4), (4, 1)])
def test_crop_moves_by_an_eighth_at_most(side, pad):
    images = RNG.integers(0, 256, (9, side, side, 3)).astype(np.uint8)
    draws = np.array([[0.0, 0.999], [0.5, 0.5], *RNG.random((7, 2))])
    moved = crop(images, draws)
    assert np.array_equal(moved[1], images[1])  # the middle of 2 pad + 1 places
    assert np.array_equal(moved[0][pad:, :-pad], images[0][:-pad, pad:])  # down and left
    assert np.array_equal(moved[0][0, :-pad], images[0][pad, pad:])  # what comes in mirrors what is there


def test_erase_paints_a_rectangle_with_the_mean_colour_in_half_of_the_images():
    images = RNG.integers(0, 256, (400, 20, 20, 3)).astype(np.uint8)
    draws = RNG.random((400, 5))
    painted = erase(images, draws)
    changed = (painted != images).any(axis=-1)
    assert not changed[draws[:, 0] >= 0.5].any() and changed[draws[:, 0] < 0.5].any(axis=(1, 2)).all()
    heights, widths = changed.any(axis=2).sum(axis=1), changed.any(axis=1).sum(axis=1)
    erased = draws[:, 0] < 0.5
    for sides in (heights[erased], widths[erased]):
        assert sides.min() >= 4 and sides.max() <= 10 and len(set(sides)) > 4  # 20 to 50 %
    i = np.flatnonzero(erased)[0]
    assert (painted[i][changed[i]] == images[i].mean(axis=(0, 1)).round()).all()


@pytest.mark.parametrize("names, flips", [
    (("cat", "dog"), True), (("0", "1"), False), (("10", "11"), False), (("A", "B"), False), (("left", "up"), False),
    (("turn Left", "no"), False), (("lung-right", "heart"), False), (("bright", "dark"), True),
    (("Sample001", "Sample002"), False), (("lower_b", "lower_d"), False), (("t-shirt", "dress"), True),
    (("L_eye", "R_eye"), False), (("hand L", "hand R"), False), (("Käfer", "Öl"), True),
    (("\N{CJK UNIFIED IDEOGRAPH-732B}", "dog"), False), (("LeftEye", "other"), False),
    (("turnLeft", "no"), False), (("CTLeft", "no"), False), (("Leftover", "dress"), False), (("Bright", "brighter"), True),
    (("lefteye", "righteye"), False), (("gauche", "droite"), False), (("links", "rechts"), False), (("two", "dogs"), False),
    (("wheat east", "wheat"), False), (("stone", "feast"), True), (("Linksabbieger", "Rechtsabbieger"), False),
    (("höger", "vänster"), False), (("lewy", "prawy"), False), (("\N{CYRILLIC SMALL LETTER EL}\N{CYRILLIC SMALL LETTER IE}", "x"), False),
    (("pies", "kość"), True),
])  # fmt: skip
def test_own_data_is_mirrored_where_the_names_of_its_classes_allow_it(names, flips):
    spec = DatasetSpec("mine", "folder", len(names), 8, 10, 10, names)
    assert augmentations(spec, "standard") == (("flip", "crop", "erase") if flips else ("crop", "erase"))
    assert augmentations(spec, "none") == () and "flip" in augmentations(spec, "mirrored")
    assert "flip" not in augmentations(spec, "unmirrored")


def test_of_the_known_datasets_digits_and_sided_organs_are_not_mirrored():
    assert all(spec.flips is not None for spec in DATASETS.values())
    kept = {name for name, spec in DATASETS.items() if "flip" not in augmentations(spec, "standard")}
    assert kept == {"digits", "organamnist", "organcmnist", "organsmnist"}


# Slices


def test_slices_are_disjoint_and_balanced(tmp_path):
    write_dataset(tmp_path / "set", [20, 20, 20])
    stored = StoredSet(tmp_path / "set", 3, 4)
    rows = stored.choose(48, seed=1)
    sliced = stored.sliced(rows, seed=1)
    assert sorted(sliced) == sorted(rows) and not np.array_equal(sliced, rows)
    for part in np.split(sliced, 4):
        assert np.bincount(stored.labels[part]).tolist() == [4, 4, 4]
    assert not np.array_equal(stored.sliced(rows, seed=2), sliced)


def test_an_epoch_sees_the_next_slice(monkeypatch):
    classifier = Classifier("resnet20_16", 8, 2)
    images = np.arange(21, dtype=np.uint8)[:, None, None, None]
    stream = classifier.batches(images, np.arange(21) % 2, 4, seed=5, slices=3)
    seen = [[next(stream) for _ in range(2)] for _ in range(4)]
    values = [sorted((np.concatenate([x.ravel() for x, _ in epoch]) * 255).round().astype(int)) for epoch in seen]
    assert values == [list(range(7)), list(range(7, 14)), list(range(14, 21)), list(range(7))]
    later = classifier.batches(images, np.arange(21) % 2, 4, seed=5, first_epoch=1, slices=3)
    assert np.array_equal(next(later)[0], seen[1][0][0])  # a continued run sees what the whole one saw


# Recipes


def test_sgd_falls_twice_and_shrinks_weights_by_a_ten_thousandth():
    rate = falling_rate(SGD_RATE, 40)
    assert [rate(epoch) for epoch in (0, 23, 24, 31, 32, 39)] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    optimizer, variable = Recipe("sgd").new_optimizer(), keras.Variable([2.0])
    optimizer.build([variable])
    optimizer.apply([keras.ops.zeros(1)])
    assert float(variable.numpy()[0]) == pytest.approx(2 * (1 - SGD_DECAY), rel=1e-6)
    assert optimizer.nesterov and float(optimizer.learning_rate) == pytest.approx(SGD_RATE)


def test_soft_targets_are_the_targets():
    model = Classifier("resnet20_16", 8, 2, Recipe(smoothing=0.0)).model
    target, said = np.array([[0.3, 0.7]]), np.array([[0.2, 0.8]])
    assert float(model.loss(target, said)) == pytest.approx(-(target * np.log(said)).sum(), rel=1e-5)


@pytest.fixture(scope="module")
def small():
    keras.utils.set_random_seed(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CLASSIFIERS, "one", one_layer)
        yield Classifier("one", 8, 2, Recipe("sgd", 6, 0.0))


def fit(small, path, **changes):
    soft = np.eye(2, dtype="float32")[LABELS] * 0.8 + 0.1
    how = {"epochs": 6, "batch_size": 8, "seed": 5, "patience": (1, 2), "verbose": 0, "state_file": path / "state.npz",
           "save_share": 1.0, "augment": Augment(("flip", "crop", "erase"), 40, 5), "slices": 2}  # fmt: skip
    return small.fit((IMAGES, soft), (IMAGES, LABELS), **(how | changes))


def test_an_interrupted_training_with_every_lever_ends_with_the_same_weights(small, tmp_path):
    (tmp_path / "whole").mkdir(), (tmp_path / "broken").mkdir()
    history, _ = fit(small, tmp_path / "whole")
    whole = [w.numpy() for w in small.model.weights]
    assert history["learning_rate"] == pytest.approx([0.1] * 4 + [0.01] + [0.001])

    def stop(epoch, logs):
        if epoch == 3:
            raise Stopped

    with pytest.raises(Stopped):
        fit(small, tmp_path / "broken", callbacks=[keras.callbacks.LambdaCallback(on_epoch_begin=stop)])
    again, _ = fit(small, tmp_path / "broken")
    assert again["loss"] == history["loss"] and len(again["loss"]) == 6  # patience ends no SGD
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(whole, small.model.weights))


def test_the_rate_of_adam_falls_by_steps(tmp_path, monkeypatch):
    monkeypatch.setitem(CLASSIFIERS, "one", one_layer)
    stepwise = Classifier("one", 8, 2, Recipe("adam_steps", 5, 0.0))
    assert type(stepwise.model.optimizer) is type(Classifier("one", 8, 2).model.optimizer)
    history, _ = fit(stepwise, tmp_path, epochs=5)  # more than the patience of 2 epochs, which ends nothing
    assert history["learning_rate"] == pytest.approx([1e-3] * 3 + [1e-4, 1e-5])


def test_other_first_weights_are_those_of_a_new_classifier(small):
    keras.utils.set_random_seed(9)
    small.draw_weights()
    keras.utils.set_random_seed(9)
    new = Classifier("one", 8, 2, Recipe("sgd", 6, 0.0))
    assert len(small.first) == len(new.first) and all(np.array_equal(a, b) for a, b in zip(small.first, new.first))


# Scores


@pytest.mark.parametrize("num_classes", [2, 4])
def test_balanced_accuracy_and_auc_are_scikit_learns(num_classes):
    probabilities = RNG.dirichlet(np.ones(num_classes), 60).round(1) + 0.01  # with ties
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    labels = RNG.integers(0, num_classes, 60)
    scores = accuracies(probabilities, labels)
    assert scores["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, probabilities.argmax(axis=1)))
    expected = [roc_auc_score(labels == c, probabilities[:, c]) for c in range(num_classes)]
    assert scores["auc"] == pytest.approx(np.mean(expected))
    assert accuracies(probabilities, 0 * labels)["auc"] is None  # one class alone
