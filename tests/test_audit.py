"""The audit: metrics against plain formulas, attacks on numbers whose answer is known, and the script on a tiny set."""

import csv
import errno
import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.stats import norm

import audit_dataset
from Audit import copies, targets
from Audit.attacks import auc_interval, by_chance, chance_of, confidence, likelihood_ratio, strength, true_positives
from Audit.copies import nearer_to_training
from Audit.extractors import PixelFeatures
from Audit.material import AuditedSet, Seen, see
from Audit.neighbours import nearest, squared_radii
from Audit.parts import quality_part
from Audit.quality import frechet_distance, kid, manifold_metrics, quality, squared_mmd
from Audit.report import METRICS, accuracy_over_privacy, class_rows
from Audit.shadows import half
from Audit.targets import learnt, trained
from Data.identity import data_identity
from Data.loaders import load_splits
from Data.measured import audit_file
from Data.pictures import Files
from Data.registry import class_names, dataset_spec
from Experiment.errors import UserError
from Experiment.files import read_json, write_csv, write_json
from Experiment.intervals import auc
from Experiment.paths import REPOSITORY, Experiment
from Experiment.records import flattened
from Models import weight_cards
from tests.test_export import write_set
from tests.test_interruptions import TINY
from tests.tiny_networks import one_layer

RNG = np.random.default_rng(0)


# Metrics


def plain_metrics(real, fake, k):
    """Precision, recall, density, coverage by the letter of their definitions."""

    def d(a, b):
        return np.sqrt(((a - b) ** 2).sum())

    def radius(x, i):
        return sorted(d(x[i], x[j]) for j in range(len(x)) if j != i)[k - 1]

    real_r, fake_r = ([radius(x, i) for i in range(len(x))] for x in (real, fake))
    in_real = [[d(f, r) < R for r, R in zip(real, real_r)] for f in fake]
    return {
        "precision": np.mean([any(balls) for balls in in_real]),
        "recall": np.mean([any(d(r, f) < R for f, R in zip(fake, fake_r)) for r in real]),
        "density": np.mean([sum(balls) / k for balls in in_real]),
        "coverage": np.mean([any(d(r, f) < R for f in fake) for r, R in zip(real, real_r)]),
    }


@pytest.mark.parametrize("shift", [0.0, 0.7, 9.0])
def test_manifold_metrics_are_those_of_the_plain_formula(shift, monkeypatch):
    monkeypatch.setattr("Audit.neighbours.WIDE_BLOCK", 7)
    real, fake = RNG.standard_normal((23, 3)), RNG.standard_normal((17, 3)) + shift
    assert manifold_metrics(real, fake, 3) == pytest.approx(plain_metrics(real, fake, 3))


def test_manifold_metrics_of_points_on_a_line():
    """Real at 0, 1, 2, 10; generated at 0.5, 1.5, 50; k = 1. Radii: 1, 1, 1, 8 and 1, 1, 48.5."""
    real, fake = np.array([[0.0], [1], [2], [10]]), np.array([[0.5], [1.5], [50]])
    found = manifold_metrics(real, fake, 1)
    # 0.5 lies in the balls of 0 and 1, and 1.5 in those of 1 and 2; 1.5 is 8.5 away from 10. The ball of 50 holds 2 and 10.
    assert found == {"precision": 2 / 3, "recall": 1.0, "density": 4 / 3, "coverage": 3 / 4}


def test_kid_is_that_of_the_plain_formula():
    x, y = RNG.standard_normal((6, 4)), RNG.standard_normal((6, 4)) + 1

    def kernel(a, b):
        return (a @ b / 4 + 1) ** 3

    pairs = [(i, j) for i in range(6) for j in range(6) if i != j]
    within = sum(kernel(x[i], x[j]) + kernel(y[i], y[j]) for i, j in pairs) / 30
    across = np.mean([kernel(a, b) for a in x for b in y])
    assert squared_mmd(x, y) == pytest.approx(within - 2 * across)


def test_kid_is_unbiased_and_grows_with_the_distance():
    real, same, other = (RNG.standard_normal((600, 8)) + shift for shift in (0, 0, 0.5))
    mean, spread, size = kid(real, same, 1)
    assert size == 300 and 0 < spread and abs(mean) < 3 * spread
    assert kid(real, other, 1)[0] > 10 * spread
    assert kid(real, same, 1) == (mean, spread, size)  # a function of the seed


def test_frechet_distance_of_two_gaussians():
    x = RNG.standard_normal((4000, 2))
    assert frechet_distance(x, x + 3) == pytest.approx(18)
    assert frechet_distance(x, 2 * x) == pytest.approx(np.trace(np.cov(x, rowvar=False)) + x.mean(0) @ x.mean(0))


def test_quality_of_few_images_says_so_and_does_not_depend_on_the_size_of_numbers():
    real, fake = RNG.standard_normal((40, 3)), RNG.standard_normal((40, 3)) + 0.3
    assert "missing" in quality(real[:5], fake, 1) and "kid" not in quality(real, fake[:3], 1)
    assert quality(real, fake, 1) == pytest.approx(quality(1000 * real, 1000 * fake, 1))


def test_nearest_is_exact_and_leaves_the_row_itself_out(monkeypatch):
    monkeypatch.setattr("Audit.neighbours.BLOCK", 8)
    monkeypatch.setattr("Audit.neighbours.REFERENCE", 13)
    x, y = RNG.standard_normal((20, 5)).astype("float32"), RNG.standard_normal((50, 5)).astype("float32")
    every = np.sqrt(((x[:, None].astype(float) - y) ** 2).sum(axis=2))
    distances, indices = nearest(x, y)
    assert (indices == every.argmin(axis=1)).all() and np.allclose(distances, every.min(axis=1))
    within = np.sqrt(((y[:, None].astype(float) - y) ** 2).sum(axis=2)) + np.diag(np.full(50, np.inf))
    distances, indices = nearest(y, y, same=True)
    assert (indices == within.argmin(axis=1)).all() and np.allclose(distances, within.min(axis=1))
    assert np.allclose(np.sqrt(squared_radii(y, 2)), np.sort(within, axis=1)[:, 1])
    assert nearest(y[:1], y)[0][0] == 0  # an exact copy is at 0, whatever float32 makes of it


def sides_of(*counts):
    """Training, generated and held-out features of the same two distributions, so many of each class."""
    labels = [np.repeat([0, 1], of_side).astype("int32") for of_side in counts]
    fields = np.dtype([("read", "?"), ("pixels", "<f4", (4,))])
    seen = []
    for side in labels:
        rows = np.ones(len(side), fields)
        rows["pixels"] = RNG.standard_normal((len(side), 4)) + 9 * side[:, None]
        seen.append(Seen(rows, side, {}))
    extractors = {"pixels": SimpleNamespace(name="pixels", words="")}
    return SimpleNamespace(**dict(zip(("train", "fake", "held_out"), seen)), extractors=extractors)


def test_a_perfect_set_of_other_class_frequencies_is_as_good_as_real_images():
    found, shares = quality_part(sides_of((900, 100), (600, 600), (900, 60)), 1000, 1, False, ["a", "b"])
    ours, theirs = (found["pixels"][kind] for kind in ("all", "held_out"))
    assert ours["generated"] == theirs["generated"] == 600 + 66 and shares["drawn"]
    assert abs(ours["kid"]) < 3 * ours["kid_spread"] and abs(ours["coverage"] - theirs["coverage"]) < 0.05
    assert "(a: 50 % of the set, 90 % of the training images, 94 % of the held-out ones): the overall" in shares["told"]
    assert [of["generated"] for of in found["pixels"]["classes"]] == [200, 100]
    # Of too few of a class they stay as they are, and that is said; of equal shares nothing is.
    found, shares = quality_part(sides_of((900, 100), (50, 600), (900, 100)), 1000, 1, False, ["a", "b"])
    assert found["pixels"]["all"]["generated"] == 650 and not shares["drawn"]
    assert "overall KID, precision, recall, density and coverage include this difference" in shares["told"]
    even = sides_of((90, 10), (180, 20), (90, 10))
    assert quality_part(even, 1000, 1, False, ["a", "b"])[1] == {"told": "", "drawn": False}


# Attacks


def test_auc_and_true_positives_by_hand():
    assert auc(np.array([3.0, 2, 1]), np.array([2.0, 0])) == pytest.approx((2 + 1.5 + 1) / 6)
    others = np.arange(100.0)
    assert true_positives(np.array([98.5, 99.5, 97.0, 50.0]), others) == 0.5  # one false alarm is allowed: 99
    assert true_positives(np.array([98.0, 98.5, 99.5]), others[:99]) == 2 / 3  # of 99 others none


def test_how_often_chance_finds_as_many_is_exact():
    """Of one other, c of m members are above it by chance with probability (m - c + 1) / (m + 1)."""
    for found in range(4):
        members = np.array([2.0] * found + [0.0] * (3 - found))
        assert by_chance(members, np.array([1.0])) == pytest.approx((4 - found) / 4)
    # Of chance alone a small p is as rare as it says.
    rng = np.random.default_rng(7)
    p = np.array([by_chance(rng.standard_normal(200), rng.standard_normal(40)) for _ in range(2000)])
    assert (p <= 0.05).mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000) and (p <= 0.3).mean() > 0.15


def test_the_interval_of_an_area_holds_the_true_one_near_its_ends_too():
    """Binormal scores, of which the area is known. Where all members are above the others it is not a point."""
    rng = np.random.default_rng(5)
    for distance in (0.0, 1.0, 2.5):
        true, missed = norm.cdf(distance / np.sqrt(2)), 0
        for _ in range(400):
            low, high = auc_interval(auc(rng.normal(distance, 1, 50), rng.normal(0, 1, 40)), 50, 40)
            missed += not low <= true <= high
        assert missed <= 0.05 * 400 + 3 * np.sqrt(400 * 0.05 * 0.95)
    assert auc_interval(1.0, 50, 50) == pytest.approx((0.96, 1), abs=0.01)
    assert auc_interval(0.0, 50, 50) == pytest.approx((0, 0.04), abs=0.01)


def test_nearness_to_training_images_is_told_from_chance():
    """A few references are the nearest of most queries, so that the share without any copying is often far from a half."""
    rng, p = np.random.default_rng(3), []
    for run in range(60):
        sides = [SimpleNamespace(good=np.arange(30), sample=lambda most, *_: np.arange(most), rows=rng.standard_normal((30, 20)))
                 for _ in range(2)]  # fmt: skip
        queries = SimpleNamespace(good=np.arange(200), rows=0.3 * rng.standard_normal((200, 20)))
        for side in (*sides, queries):
            side.features = lambda field, rows, side=side: side.rows[rows].astype("float32")
        found = nearer_to_training(queries, queries.good, *sides, "pixels", run)
        assert found["chance"][0] < found["chance"][1] and found["reference"] == 30
        p.append(found["p"])
    assert (np.array(p) <= 0.1).mean() <= 0.1 + 3 * np.sqrt(0.09 / 60) and np.mean(p) > 0.3
    queries.rows = sides[0].rows[queries.good % 30]  # the training images themselves
    copied = nearer_to_training(queries, queries.good, *sides, "pixels", 1)
    assert copied["share"] == 1.0 and copied["p"] == 0.001


def test_strength_of_scores_that_say_nothing_holds_a_half():
    members, others = RNG.standard_normal(800), RNG.standard_normal(700)
    found = strength(members, others)
    low, high = found["auc_interval"]
    assert low < 0.5 < high and high - low < 0.08 and found["tpr_interval"][0] < 0.02
    assert strength(members + 3, others)["auc_interval"][0] > 0.97


def test_confidence_is_the_logit_of_the_true_class():
    found = confidence(np.array([[0.8, 0.1, 0.1], [1.0, 0.0, 0.0]], "float32"), np.array([0, 1]))
    assert found[0] == pytest.approx(np.log(4), rel=1e-5) and np.isfinite(found).all() and found[1] < -60


def test_confidence_loses_no_digits_where_little_is_left_for_others():
    probabilities = np.array([[1 - 1e-20, 6e-21, 4e-21]])
    assert confidence(probabilities, np.array([0]))[0] == pytest.approx(-np.log(1e-20), rel=1e-6)


@pytest.mark.parametrize("shadows", [2, 16])
def test_the_likelihood_ratio_finds_members_and_invents_none(shadows):
    """Confidence of hard and easy images, a unit higher where a model has learnt from them: only that may count."""
    images = 3000
    hard = RNG.normal(0, 5, images)
    inside = np.stack([half(images, shadow, 1) for shadow in range(shadows)])
    assert (inside.sum(axis=0) == shadows / 2).all()
    said = hard + inside + RNG.normal(0, 0.5, inside.shape)
    members = RNG.random(images) < 0.5
    target = hard + members + RNG.normal(0, 0.5, images)
    scores = likelihood_ratio(target, said, inside)
    assert auc(scores[members], scores[~members]) > (0.9 if shadows > 2 else 0.6)
    assert auc(target[members], target[~members]) < 0.6  # without shadows the attack is blind
    nobody = likelihood_ratio(hard + RNG.normal(0, 0.5, images), said, inside)
    assert abs(auc(nobody[members], nobody[~members]) - 0.5) < 0.04


def test_accuracy_over_privacy_is_accuracy_at_chance():
    assert accuracy_over_privacy(0.9, 0.5) == accuracy_over_privacy(0.9, 0.4) == 0.9
    assert accuracy_over_privacy(0.8, 1.0) == 0.2


def test_denoising_loss_finds_what_a_model_was_overtrained_on(tiny_latent_model):
    """The control: 50 images, seen again and again by a network that is large enough to remember them."""
    from Audit.denoising import denoising_losses

    diffusion, moments, labels = tiny_latent_model(50)
    losses = [
        denoising_losses(diffusion, moments[s], labels[s], np.arange(50) + s.start, 3) for s in (slice(0, 50), slice(50, 100))
    ]
    found = strength(-losses[0], -losses[1])
    assert found["auc_interval"][0] > 0.8
    again = denoising_losses(diffusion, moments[:50], labels[:50], np.arange(50), 3)
    assert np.array_equal(again, losses[0])


@pytest.fixture
def tiny_latent_model(float32_after):
    """Function of a number of images: a `Diffusion` overtrained on as many, and moments and labels of twice as many."""

    def build(count):
        import keras
        from keras import layers

        from Models.adapter import Diffusion, WholeNetwork
        from Models.backbones import Backbone
        from Models.class_encoder import class_encoder
        from Models.training import compile_model

        keras.utils.set_random_seed(1)
        rng = np.random.default_rng(1)
        latent, time, context = keras.Input((2, 2, 4)), keras.Input((320,)), keras.Input((2, 3))
        x = layers.Concatenate()([layers.Flatten()(latent), time, layers.Flatten()(context)])
        for _ in range(2):
            x = layers.Dense(256, "relu")(x)
        unet = keras.Model([latent, time, context], layers.Reshape((2, 2, 4))(layers.Dense(16)(x)))
        backbone = Backbone("tiny", 4, 2, 1.0, (2, 3), 5, 8, {}, {})
        diffusion = Diffusion(backbone, class_encoder(2, 5, (2, 3)), unet)
        moments = np.zeros((2 * count, 2, 2, 8), "float32")
        moments[..., :4], moments[..., 4:] = rng.standard_normal((2 * count, 2, 2, 4)), -30
        labels = np.arange(2 * count) % 2
        model = compile_model(WholeNetwork(diffusion, "dif"), 4e-3, 600, "float32")
        for _ in range(600):
            rows = np.repeat(np.arange(count), 10)
            noise = rng.standard_normal((2, len(rows), 2, 2, 4), dtype="float32")
            batch = {"moments": moments[rows], "latent_noise": noise[0], "noise": noise[1],
                     "timestep": rng.integers(1000, size=len(rows)).astype("int32"),
                     "label": np.eye(2, dtype="float32")[labels[rows]]}  # fmt: skip
            model.train_on_batch(batch, noise[1])
        return diffusion, moments, labels

    return build


@pytest.mark.slow
def test_likelihood_ratio_finds_what_a_classifier_was_overtrained_on(float32_after, tmp_path):
    """The control for classifiers: 50 images with labels by chance, which can only be learnt by heart."""
    from Audit.shadows import ShadowRecipe, confidence_of, shadow_confidences
    from Data.loaders import Split, Splits
    from Models.classifier import Classifier

    spec = dataset_spec("digits")
    images, labels = load_splits(spec, tmp_path).train
    labels = RNG.integers(0, 10, 100).astype("int32")
    train, test = (Split(images[s], labels[s]) for s in (slice(0, 50), slice(50, 100)))
    splits = Splits(train, train, test)  # the epoch is chosen by what was learnt by heart
    recipe = ShadowRecipe("resnet20_16", 40, 25, "adam", "none", 1, "x")
    classifier = Classifier("resnet20_16", 8, 10)
    classifier.fit(train, train, epochs=40, batch_size=25, seed=9, patience=(99, 99), verbose=0)
    shadows, inside = shadow_confidences(recipe, 8, spec, splits, tmp_path)
    said = np.concatenate([confidence_of(classifier, *split) for split in (train, test)])
    scores = likelihood_ratio(said, shadows, inside)
    assert strength(scores[:50], scores[50:])["auc_interval"][0] > 0.8


def test_shadows_are_kept_added_to_and_never_mixed(tmp_path, quick_teacher):
    from dataclasses import replace

    from Audit.shadows import ShadowRecipe, shadow_confidences

    data = make(tmp_path / "own.npz")
    spec = dataset_spec(str(data))
    splits, recipe = load_splits(spec, tmp_path), ShadowRecipe("resnet20_16", 1, 8, "adam", "none", 1, "x")
    two, inside = shadow_confidences(recipe, 2, spec, splits, tmp_path / "shadows")
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "shadows").iterdir()}
    assert len(written) == 2 and two.shape == (2, 72) and (inside[0] ^ inside[1]).all()
    four, _ = shadow_confidences(recipe, 4, spec, splits, tmp_path / "shadows")
    assert np.array_equal(four[:2], two) and not np.array_equal(four[2], four[0])
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())
    assert replace(recipe, epochs=2).key != recipe.key == replace(recipe).key  # names of their folders
    assert replace(recipe, tf32=True).key != recipe.key and "tf32" not in recipe.settings()
    with pytest.raises(UserError, match="of another recipe or other data .epochs 1"):
        shadow_confidences(replace(recipe, epochs=2), 2, spec, splits, tmp_path / "shadows")


# Images


def tiny_data(path, sides=(40, 24, 32), classes=2, seed=0):
    """An npz of two classes of noisy 8 px images."""
    rng, arrays = np.random.default_rng(seed), {}
    for split, count in zip(("train", "val", "test"), sides):
        labels = np.arange(count) % classes
        images = rng.integers(0, 120, (count, 8, 8, 3)).astype(np.uint8)
        images[labels == 1, :4] += 100
        arrays |= {f"{split}_images": images, f"{split}_labels": labels[:, None]}
    np.savez(path, **arrays)
    return arrays


def write_images(folder, images, labels, names=("class_00", "class_01")):
    for number, (image, label) in enumerate(zip(images, labels)):
        (folder / names[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / names[label] / f"img_{number}.png")
    return folder


def audited(root, data, *flags):
    argv = ["--dataset", str(data), "--exp", "e", "--root", str(root), "--classifier", "resnet20_16", "--shadows", "0", *flags]
    return audit_dataset.audit(audit_dataset.parse_args(argv))


@pytest.fixture
def quick_teacher(monkeypatch):
    """A teacher of a few weights and one epoch."""
    from Models.classifiers import CLASSIFIERS

    def build(resolution, num_classes):
        from keras import Sequential, layers

        shape = (resolution, resolution, 3)
        return Sequential([layers.Input(shape), layers.Flatten(), layers.Dense(16), layers.Dense(num_classes, "softmax")])

    monkeypatch.setattr("Experiment.presets.CLASSIFIER_EPOCHS", 1)
    monkeypatch.setitem(CLASSIFIERS, "resnet20_16", build)


def figures_of(folder):
    return flattened(read_json(audit_file(folder))["figures"])


def figure(found, *words):
    """The one figure whose name holds all of the words."""
    (value,) = [value for name, value in found.items() if all(word in name for word in words)]
    return value


def test_a_set_of_training_images_is_caught_by_every_number(tmp_path, quick_teacher):
    data = tiny_data(tmp_path / "own.npz", (80, 60, 60))
    copied = data["train_images"], data["train_labels"][:, 0]
    fresh = tiny_data(tmp_path / "fresh.npz", (80, 60, 60), seed=7)
    folders = {
        "copies": write_images(tmp_path / "copies", *copied),
        "fresh": write_images(tmp_path / "fresh", fresh["train_images"], fresh["train_labels"][:, 0]),
    }
    found = {}
    for name, folder in folders.items():
        page = audited(tmp_path, tmp_path / "own.npz", "--synthetic_dir", str(folder))
        assert page == folder.with_name(f"{name}.audit.html")
        found[name] = figures_of(folder)
    for name, count in (("copies", 80), ("fresh", 0)):
        assert figure(found[name], "with the pixels of another one, the set and train") == count
        assert figure(found[name], "near duplicates, the set and train") == count
    share = "share nearer to training"
    usual = figure(found["copies"], share, "real test images", "pixel components")
    assert figure(found["copies"], share, "generated", "pixel components") > usual + 0.5
    for features in ("pixel components", "resnet20_16 features"):  # nearer than any other images of the same kind can be
        assert (
            figure(found["copies"], "KID, generated", features)
            < 0
            < figure(found["fresh"], "KID deviation", "generated", features)
        )
    assert abs(figure(found["fresh"], share, "generated", "pixel components") - usual) < 0.15
    for features in ("pixel components", "resnet20_16 features"):
        where = "generated", features
        assert figure(found["copies"], "precision", *where) == figure(found["copies"], "recall", *where) == 1
        assert figure(found["copies"], "coverage", *where) == 1


@pytest.mark.parametrize("others", [10, 120, 400])
def test_what_chance_finds_at_one_percent_is_known(others):
    """Of few others it is far more than 1 %: figures of chance alone must not look like a leak."""
    rng = np.random.default_rng(others)
    found = [true_positives(rng.standard_normal(500), rng.standard_normal(others)) for _ in range(400)]
    assert np.mean(found) == pytest.approx(chance_of(others), abs=3.5 * np.std(found) / 20)
    assert strength(rng.standard_normal(50), rng.standard_normal(others))["chance"] == chance_of(others)


def test_images_with_a_twin_are_counted_whatever_their_class(tmp_path):
    images = np.zeros((9, 8, 8, 3), np.uint8)
    images[:, 0, 0, 0] = 1, 1, 2, 2, 2, 3, 4, 5, 6
    labels = np.arange(9, dtype="int32") % 2
    seen = see(tmp_path / "twins.npy", labels, lambda rows: (images[rows], {}), {})
    assert copies.exact_within(seen) == 5


def test_near_duplicates_are_found_and_others_are_not(tmp_path):
    spec, data = dataset_spec(str(make(tmp_path / "own.npz"))), np.load(tmp_path / "own.npz")
    images = data["train_images"]
    changed = images.astype(int) + RNG.integers(-3, 4, images.shape)  # rms 2 grey levels
    changed = changed.clip(0, 255).astype(np.uint8)
    extractors = {"pixels": PixelFeatures(images, 1)}
    labels = data["train_labels"][:, 0].astype("int32")
    reads = {name: (lambda rows, x=x: (x[rows], {})) for name, x in (("a", images), ("b", changed), ("c", data["test_images"]))}
    seen = {
        name: see(tmp_path / f"{name}.npy", np.resize(labels, n), reads[name], extractors)
        for name, n in (("a", 40), ("b", 40), ("c", 32))
    }
    read = {name: (lambda rows, f=f: f(rows)[0]) for name, f in reads.items()}
    assert copies.near_between(seen["b"], read["b"], seen["a"], read["a"]) == 40
    assert copies.near_between(seen["c"], read["c"], seen["a"], read["a"]) == 0
    assert copies.exact_between(seen["b"], seen["a"]) == 0 and copies.exact_between(seen["a"], seen["a"]) == 40
    assert copies.exact_within(seen["a"]) == 0 and copies.near_within(seen["a"], read["a"]) == 0
    assert spec.num_classes == 2


def make(path):
    tiny_data(path)
    return path


def test_an_interrupted_look_goes_on_after_its_last_piece(tmp_path, monkeypatch):
    monkeypatch.setattr("Audit.material.PIECE", 10)
    images, asked = tiny_data(tmp_path / "own.npz")["train_images"], []
    extractors = {"pixels": PixelFeatures(images, 1)}

    def read(rows, fails=()):
        if rows[0] in fails:
            raise KeyboardInterrupt
        asked.append(int(rows[0]))
        return images[rows], {3: "lost"} if rows[0] == 10 else {}

    labels = np.zeros(40, "int32")
    whole = see(tmp_path / "whole.npy", labels, read, extractors)
    with pytest.raises(KeyboardInterrupt):
        see(tmp_path / "cut.npy", labels, lambda rows: read(rows, fails=(20,)), extractors)
    asked.clear()
    cut = see(tmp_path / "cut.npy", labels, read, extractors)
    assert asked == [20, 30] and np.array_equal(cut.rows, whole.rows)
    assert cut.good.tolist() == [i for i in range(40) if i != 13] and not list(tmp_path.glob("*begun*"))
    del cut
    with open(tmp_path / "cut.npy", "rb+") as file:
        file.truncate(300)
    with pytest.raises(UserError, match="cut.npy is damaged .*: delete it, and it is made again"):
        see(tmp_path / "cut.npy", labels, read, extractors)


# The script


def write_real_classifier(root, data):
    """What classifier_training.py --synthetic False leaves, but for the training."""
    from Models.weights import save_weights

    spec = dataset_spec(str(data))
    known = data_identity(load_splits(spec, root, side=spec.resolution), spec)
    folder = Experiment(root, "e", spec.name).classifier_dir("resnet20_16", "real")
    save_weights(one_layer(spec.resolution, spec.num_classes), folder / "best_model.weights.h5")
    inputs = {"classes": known.pop("classes"), "data": known}
    write_json(folder / "training.json", {"arguments": {"epochs": 1, "batch_size": 20}, "inputs": inputs})


def test_the_command_line_makes_a_page_and_figures(tmp_path):
    data = make(tmp_path / "own.npz")
    folder = write_set(Experiment(tmp_path, "e", "own").synthetic_root / "60Enc3Dif4Is20Ugs1.5", str(data), 60, 8)
    write_real_classifier(tmp_path, data)
    flags = [
        "--dataset",
        str(data),
        "--exp",
        "e",
        "--root",
        str(tmp_path),
        "--classifier",
        "resnet20_16",
        "--shadows",
        "2",
        "--fid",
    ]
    command = [sys.executable, str(REPOSITORY / TINY), "audit_dataset.py", *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    brief, found, _ = json.loads(folder.with_name(f"{folder.name}.audit.json").read_text()).values()
    quality, copies, membership, missing = (table["rows"] for table in brief)
    assert ["KID", "precision, k 5", "recall, k 5", "density, k 5", "coverage, k 5"] == [row[0] for row in quality[1:6]]
    assert f"{figure(found, 'coverage, generated, pixel'):.3f}" in [row[1] for row in quality]
    assert [row[1] for row in copies] == ["0", "0"] and membership[0][0].startswith("likelihood ratio") and missing
    assert all(len(row) == len(table["header"]) for table in brief for row in table["rows"])
    assert "there is no Class Encoder of that epoch" in found["not done"][0]
    assert not any("(the teacher)" in name for name in found)
    assert 0 <= figure(found, "likelihood ratio", "learnt the real images, AUC", "interval")[0] <= 1
    assert figure(found, "FID, generated", "pixel") > 0
    page = folder.with_name(f"{folder.name}.audit.html").read_text()
    assert not re.search(r'<script|(src|href)="(?!data:)|url\(|@import', page)
    assert "viewport" in page and "@media print" in page and "What could not be done" in page
    assert page.count("<img ") == page.count("data:image/png") == 3
    rows = list(csv.DictReader((folder.with_name(f"{folder.name}.audit") / "classes.csv").open()))
    assert [row["class"] for row in rows] == ["0", "1"] * 2
    assert audit_dataset.plan(audit_dataset.parse_args(flags)).done.startswith("finished already: ")
    assert f"--data_dir {tmp_path}/Data/Real" in page and "--background white" in page
    record = folder.with_name(f"{folder.name}.audit") / "run.json"
    inputs = read_json(record)["inputs"]
    assert inputs["classifiers"] == inputs["weights"] == "none"
    write_json(record, read_json(record) | {"inputs": inputs | {"classifiers": "x1 abc"}})  # gone since
    with pytest.raises(UserError, match="other inputs: classifiers x1 abc .now none"):
        audit_dataset.plan(audit_dataset.parse_args(flags))
    write_json(record, read_json(record) | {"inputs": inputs})
    with pytest.raises(UserError, match="--seed 1234 .now 7."):
        audit_dataset.plan(audit_dataset.parse_args([*flags, "--seed", "7"]))


def test_folders_named_after_the_classes_and_unreadable_files(tmp_path, quick_teacher):
    data = tiny_data(tmp_path / "own.npz")
    folder = write_images(tmp_path / "theirs", data["val_images"], data["val_labels"][:, 0], ("0", "1"))
    (folder / "0" / "img_2.png").write_text("no picture")
    (folder / "0" / "more").mkdir()
    (folder / "1" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    page = audited(tmp_path, tmp_path / "own.npz", "--synthetic_dir", str(folder), "--to", str(tmp_path / "pages"))
    assert page == tmp_path / "pages/theirs.audit.html" and page.with_suffix(".json").exists()
    assert not list(tmp_path.glob("theirs.audit*"))
    page = page.read_text()
    assert "1 images of the set: they cannot be read" in page and "which model made it is not known" in page
    assert figure(figures_of(tmp_path / "pages/theirs"), "with the pixels of another one, the set and val") == 23


def test_copies_of_large_photographs_are_found_in_a_foreign_folder(tmp_path):
    """They are read as the user's own real images are: by another filter the very files would give other pixels."""
    images = RNG.integers(0, 255, (24, 40, 40, 4), np.uint8)
    images[..., 3] = np.where(np.arange(40) % 3, 255, 0)
    real = write_images(tmp_path / "real", images, np.arange(24) % 2)
    spec = dataset_spec(str(real), resolution=8, background="black")
    source = AuditedSet(shutil.copytree(real, tmp_path / "copied"), spec)
    seen, broken = source.read(range(source.total))
    ours = np.concatenate([split.images for split in load_splits(spec, tmp_path, 1)])
    assert not broken and {image.tobytes() for image in seen} == {image.tobytes() for image in ours}


def test_folders_of_another_system_are_those_of_the_classes(tmp_path):
    """macOS stores names in another Unicode form, and archives have folders that are no classes."""
    images, labels = RNG.integers(0, 255, (12, 8, 8, 3), np.uint8), np.arange(12) % 2
    real, ours = write_images(tmp_path / "real", images, labels, ("\u00e9t\u00e9", "hiver")), tmp_path / "ours"
    theirs = write_images(tmp_path / "theirs", images, labels, ("e\u0301te\u0301", "hiver"))
    write_set(ours, str(real), 12, 8)
    for folder in (theirs, ours):
        (folder / "__MACOSX").mkdir()
    (theirs / "hiver" / "Thumbs.db").write_text("")
    for folder in (theirs, ours):
        source = AuditedSet(folder, dataset_spec(str(real)))
        assert source.total == 12 and not source.read(range(12))[1]


def test_a_file_without_permission_is_named_and_the_rest_is_done(tmp_path, monkeypatch):
    real = write_images(tmp_path / "real", RNG.integers(0, 255, (8, 8, 8, 3), np.uint8), np.arange(8) % 2)
    read = Files.read

    def forbidden(files, name):
        if name.endswith("img_3.png"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return read(files, name)

    monkeypatch.setattr(Files, "read", forbidden)
    source = AuditedSet(real, dataset_spec(str(real)))
    _, broken = source.read(range(source.total))
    assert len(broken) == 1 and "Permission denied" in next(iter(broken.values()))


def test_fid_of_a_class_that_is_too_small_is_left_empty(tmp_path):
    of = dict.fromkeys(("kid", "kid_spread", "kid_subset", "generated", *METRICS), 0.5)
    found = {
        "fid": True,
        "quality": {"pixels": {"name": "pixels", "classes": [{"missing": "3 images", "generated": 3}, of | {"fid": 0.1}]}},
    }
    write_csv(tmp_path / "classes.csv", class_rows(found, ["a", "b"]))
    rows = list(csv.DictReader((tmp_path / "classes.csv").open()))
    assert [row["fid"] for row in rows] == ["", "0.1"]


def test_accuracies_on_other_test_images_than_those_of_today_are_left_out(tmp_path):
    entries = {"x1": {"top_1_accuracy": 0.9, "test": "0" * 8}, "x2": {"top_1_accuracy": 0.8, "test": "t" * 8}}
    found, lacking = trained(
        Experiment(tmp_path, "e", "own"), entries, {"data": {"test": "t" * 8}}, SimpleNamespace(manifest={})
    )
    assert list(entries) == ["x2"] and "the classifier x1: it was tested on other images" in lacking[0]


def test_a_set_of_ours_is_known_where_the_real_classes_have_its_names(tmp_path):
    real = write_images(tmp_path / "real", RNG.integers(0, 255, (40, 8, 8, 3), np.uint8), np.arange(40) % 2)
    folder = write_set(tmp_path / "60Enc3Dif4Is20Ugs1.5", str(real), 60, 8)
    assert AuditedSet(folder, dataset_spec(str(real))).manifest["total"] == 60
    assert AuditedSet(real, dataset_spec(str(real))).manifest == {}


def test_classifiers_that_have_seen_real_images_too_are_not_attacked_as_if_not(tmp_path):
    entry = {"top_1_accuracy": 0.5, "top_5_accuracy": 1.0, "training": {"epochs": 3, "real_share": 0.5, "labels": "soft"}}
    found, lacking = trained(
        Experiment(tmp_path, "e", "own"), {"x1": entry}, {"data": {"test": "t"}}, SimpleNamespace(manifest={})
    )
    assert not found and lacking == ["the classifier x1: it has learnt from real images too (--real_share 0.5)"]
    assert learnt("x1", entry) == "1x generated images (real_share 0.5, labels soft)"
    assert learnt("real", {"training": {"epochs": 3}}) == "the real images"


def test_a_model_that_has_learnt_from_other_images_too_is_not_attacked(tmp_path, monkeypatch):
    """Its training may have gone on with other images: each epoch's card says all that it has seen."""
    seen = [{"resolution": 8, "train": each * 64} for each in "ab"]
    epochs = {part: tmp_path / f"{part}.weights.h5" for part in ("enc", "dif")}
    monkeypatch.setattr(targets, "chosen_epochs", lambda *_: epochs)
    monkeypatch.setattr(targets, "weights_hashes", lambda *_: {"enc": "1", "dif": "2"})
    monkeypatch.setattr(weight_cards, "read_card", lambda path: {"learned_from": seen[: 1 if "enc" in path.name else 2]})
    manifest = {"backbone": "mini", "enc_epoch": 1, "dif_epoch": 2, "weights": {"enc": "1", "dif": "2"}}
    source, data = SimpleNamespace(manifest=manifest), {"classes": ["p", "q"], "resolution": 8, "train": "a" * 64}
    with pytest.raises(UserError, match="its epochs have learnt from other images than the training images of today"):
        targets.epochs_of(None, source, data)
    del seen[1]
    assert targets.epochs_of(None, source, data) == (epochs, {"enc": "1", "dif": "2"})


def test_classifiers_of_other_training_images_than_those_of_today_are_not_attacked(tmp_path):
    experiment, now = Experiment(tmp_path, "e", "own"), {"resolution": 8, "train": "a" * 64, "test": "t" * 64}
    entries = {}
    for size in ("real", "x1"):
        folder = tmp_path / size
        folder.mkdir()
        (folder / "best_model.weights.h5").write_bytes(b"")
        data = now if size == "real" else {name: now[name] for name in ("resolution", "test")}
        write_json(folder / "training.json", {"inputs": {"classes": ["p", "q"], "data": data}})
        entries[size] = {"predictions": size}
    source = SimpleNamespace(manifest={"learned_from": [{"resolution": 8, "train": "a" * 64}]})
    inputs = {"classes": ["p", "q"], "data": now}
    assert trained(experiment, entries, inputs, source) == ({size: tmp_path / size for size in entries}, [])
    other = {"classes": ["p", "q"], "data": now | {"train": "b" * 64}}
    found, lacking = trained(experiment, entries, other, source)
    assert not found and [text.partition(" has learnt from other images")[0] for text in lacking] == [
        "the classifier real: it", "the classifier x1: its generator"
    ]  # fmt: skip


def test_the_model_is_attacked_on_the_unet_that_made_the_set(tmp_path, monkeypatch):
    monkeypatch.setattr(audit_dataset, "base_hashes", lambda args, parts, dif: {"image_encoder": "a" * 64, "unet": "b" * 64})
    args, epochs = SimpleNamespace(backbone="sd1"), {"enc": None, "dif": None}
    for made in ({}, {"weights": {"unet": "b" * 64}}):
        source = SimpleNamespace(manifest=made)
        assert audit_dataset.base_of(args, source, epochs) == {"image_encoder": "a" * 64, "unet": "b" * 64}
    with pytest.raises(UserError, match="made with another pretrained UNet: give the --weights of its generation"):
        audit_dataset.base_of(args, SimpleNamespace(manifest={"weights": {"unet": "c" * 64}}), epochs)


def test_a_model_that_cannot_be_asked_is_not_asked(tmp_path, monkeypatch):
    """Its epochs are there, but not the UNet that they were made on: no figure of another model may take the place."""

    def refuse(*_):
        raise UserError("made with another pretrained UNet")

    monkeypatch.setattr(audit_dataset, "epochs_of", lambda *_: ({"enc": tmp_path, "dif": None}, {"enc": "a"}))
    monkeypatch.setattr(audit_dataset, "base_of", refuse)
    data = make(tmp_path / "own.npz")
    folder = write_set(tmp_path / "20Enc3Dif0Is20Ugs1.5", str(data), 20, 8)
    flags = ["--dataset", str(data), "--exp", "e", "--root", str(tmp_path), "--synthetic_dir", str(folder)]
    known = audit_dataset.plan(audit_dataset.parse_args(flags))
    assert known.epochs is None and known.inputs["weights"] == "none" and "another pretrained" in known.missing[0]


def test_weights_that_were_not_to_be_had_are_asked_for_again(tmp_path, quick_teacher, monkeypatch):
    def cannot(*_):
        raise UserError("no network")

    monkeypatch.setattr(audit_dataset, "epochs_of", lambda *_: ({"enc": tmp_path, "dif": None}, {"enc": "a"}))
    monkeypatch.setattr(audit_dataset, "base_of", lambda *_: {"image_encoder": "b"})
    monkeypatch.setattr("Audit.membership.chosen_moments", cannot)
    data = make(tmp_path / "own.npz")
    folder = write_set(tmp_path / "20Enc3Dif0Is20Ugs1.5", str(data), 20, 8)
    page = audited(tmp_path, data, "--synthetic_dir", str(folder))
    assert "made the set: no network" in page.read_text()
    flags = ["--dataset", str(data), "--exp", "e", "--root", str(tmp_path), "--synthetic_dir", str(folder),
             "--classifier", "resnet20_16", "--shadows", "0"]  # fmt: skip
    assert not audit_dataset.plan(audit_dataset.parse_args(flags)).done


def test_three_images_a_class_leave_the_classes_out(tmp_path, quick_teacher):
    data = tiny_data(tmp_path / "own.npz")
    folder = write_images(tmp_path / "few", data["val_images"][:6], data["val_labels"][:6, 0])
    page = audited(tmp_path, tmp_path / "own.npz", "--synthetic_dir", str(folder), "--fid").read_text()
    assert "Quality of 2 of 2 classes by pixel components: too few images" in page
    assert figure(figures_of(folder), "coverage", "generated", "pixel components", "n 6") >= 0


@pytest.mark.parametrize("names, message", [
    (("class_00", "class_05"), "Missing or too many: class_01, class_05"), (("cat", "dog"), "neither the folders class_00, .* nor folders named after the classes .missing: 0, 1; too many: cat, dog."),
    (("0", "dog"), "missing: 1; too many: dog"),
])  # fmt: skip
def test_a_set_of_other_classes_is_refused(names, message, tmp_path):
    data = tiny_data(tmp_path / "own.npz")
    folder = write_images(tmp_path / "other", data["val_images"], data["val_labels"][:, 0], names)
    with pytest.raises(UserError, match=message):
        audited(tmp_path, tmp_path / "own.npz", "--synthetic_dir", str(folder))


def test_a_set_in_a_folder_of_others_asks_for_another_place(tmp_path, monkeypatch):
    data = tiny_data(tmp_path / "own.npz")
    folder = write_images(tmp_path / "theirs", data["val_images"], data["val_labels"][:, 0], ("0", "1"))
    monkeypatch.setattr("audit_dataset.os.access", lambda path, mode: path != tmp_path)
    with pytest.raises(UserError, match="cannot be written: name another place with --to"):
        audited(tmp_path, tmp_path / "own.npz", "--synthetic_dir", str(folder))


def test_half_of_a_set_is_refused(tmp_path):
    data = make(tmp_path / "own.npz")
    folder = write_set(tmp_path / "half", str(data), 20, 8)
    (folder / "class_00" / "img_3.png").unlink()
    with pytest.raises(UserError, match="counts .10, 10. images a class, but there are .9, 10."):
        audited(tmp_path, data, "--synthetic_dir", str(folder))
    assert (
        len(class_names(dataset_spec(str(data))))
        == AuditedSet(write_set(tmp_path / "whole", str(data), 20, 8), dataset_spec(str(data))).labels.max() + 1
    )


def test_other_class_frequencies_are_told_wherever_the_figures_are(tmp_path, quick_teacher, caplog):
    data, told = (tiny_data(tmp_path / "own.npz"), "(0: 25 % of the set, 50 % of the training images, 50 % of the held-out")
    rows = np.concatenate([np.flatnonzero(data["val_labels"][:, 0] == label)[: 4 + 8 * label] for label in (0, 1)])
    folder = write_images(tmp_path / "set", data["val_images"][rows], data["val_labels"][rows, 0], ("0", "1"))
    page = audited(tmp_path, tmp_path / "own.npz", "--synthetic_dir", str(folder))
    found = read_json(page.with_suffix(".json"))
    assert all(told in text for text in (caplog.text, page.read_text(), str(found["brief"]), str(found["figures"])))
    record = tmp_path / "set.audit/run.json"
    of = read_json(record)
    write_json(record, of | {"inputs": of["inputs"] | {"doubts": "none"}})  # as versions before wrote it
    with pytest.raises(UserError, match="other inputs: doubts none .now .*classes are not equally frequent"):
        audited(tmp_path, tmp_path / "own.npz", "--synthetic_dir", str(folder))


def test_data_without_validation_images_are_refused_in_one_line(tmp_path):
    arrays = tiny_data(tmp_path / "own.npz")
    folder = write_images(tmp_path / "set", arrays["val_images"], arrays["val_labels"][:, 0])
    np.savez(tmp_path / "own.npz", **{name: value for name, value in arrays.items() if not name.startswith("val")})
    with pytest.raises(UserError, match="Missing: val_images"):
        audited(tmp_path, tmp_path / "own.npz", "--synthetic_dir", str(folder))
