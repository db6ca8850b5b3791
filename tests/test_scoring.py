"""Repeats of a CAS, its comparison with real data, and the levers through the stage."""

import errno
import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

import classifier_training
from Data.soft_labels import aligned, both
from Data.synthetic import MANIFEST
from Experiment import presets
from Experiment.errors import UserError
from Experiment.files import write_json
from Experiment.intervals import difference_interval, mcnemar
from Experiment.predictions import (
    Predictions,
    against_largest_class,
    compared_in_words,
    no_better_than_largest,
    read_predictions,
    trained_otherwise,
    write_predictions,
)
from Experiment.randomness import repeat_seed
from Experiment.records import fixed_arguments
from Models import teacher as teachers
from Models.classifiers import CLASSIFIERS
from Models.weight_cards import teacher_hash
from Scoring import material
from tests.test_cas import make_set, npz, parse, results, sets, train
from tests.test_interruptions import weights_in
from tests.tiny_networks import one_layer

pytestmark = pytest.mark.usefixtures("no_pictures")

FOLDER = "Checkpoints/Classifiers/Exp_0001/resnet20/two"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Two classes that one layer tells apart only in part, and a synthetic set of three times their size."""
    monkeypatch.setitem(CLASSIFIERS, "resnet20", one_layer)
    npz(tmp_path / "two.npz")
    arrays = dict(np.load(tmp_path / "two.npz"))
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        labels = arrays[f"{split}_labels"].ravel() % 2
        noise = rng.normal(0, 60, (20, 8, 8, 3)) + 12 * labels[:, None, None, None] + 120
        arrays[f"{split}_images"] = noise.clip(0, 255).astype(np.uint8)
    np.savez(tmp_path / "two.npz", **arrays)
    make_set(sets(tmp_path) / "60Enc1Dif2Is5Ugs1.5", 60)
    return tmp_path


def outcome(folder):
    """What a training has left. Of the weights their values: the names of layers count the networks of this process."""
    weights = weights_in(folder / "best_model.weights.h5")
    return [
        {name: array.tobytes() for name, array in weights.items()},
        *((folder / name).read_bytes() for name in ("model_history.csv", "test_predictions.npz")),
    ]


def test_the_first_of_several_repeats_is_what_one_run_gives(root):
    train(root)
    alone, entry = outcome(root / FOLDER / "20"), results(root)["x1"]
    record = json.loads((root / FOLDER / "20/training.json").read_text())
    assert "repeats" not in record["arguments"] and not set(record["arguments"]) & {"augment", "labels", "optimizer"}
    train(root, "--restart", "--repeats", 3)
    three = results(root)["x1"]
    assert outcome(root / FOLDER / "20") == alone
    assert three["values"]["top_1_accuracy"][0] == entry["top_1_accuracy"] and (three["repeats"], entry["repeats"]) == (3, 1)
    assert three["top_1_accuracy"] == pytest.approx(np.mean(three["values"]["top_1_accuracy"]))
    low, high = three["interval"]["top_1_accuracy"]
    assert 0 <= low <= three["top_1_accuracy"] <= high <= 1 and three["test_images"] == 20
    others = [outcome(root / FOLDER / "20" / f"repeat_{i}")[0] for i in (2, 3)]
    assert alone[0] != others[0] != others[1] != alone[0]


def test_repeats_that_are_missing_are_added(root):
    train(root, "--repeats", 2)
    before = outcome(root / FOLDER / "20") + outcome(root / FOLDER / "20/repeat_2")
    assert classifier_training.plan(parse(root, "--repeats", 2)).done and classifier_training.plan(parse(root)).done
    assert not classifier_training.plan(parse(root, "--repeats", 3)).done
    train(root, "--repeats", 3)
    assert before == outcome(root / FOLDER / "20") + outcome(root / FOLDER / "20/repeat_2")
    assert results(root)["x1"]["repeats"] == 3
    train(root, "--train", "False")  # tests all that are there
    assert results(root)["x1"]["repeats"] == 3


def test_repeats_of_several_tasks_are_those_of_one(root):
    train(root, "--repeats", 3)
    entry, whole = results(root)["x1"], [outcome(root / FOLDER / "20" / name) for name in (".", "repeat_2", "repeat_3")]
    for name in ("Checkpoints", "CAS Results"):
        shutil.rmtree(root / name)
    for repeat in ("3/3", "1/3"):
        assert train(root, "--repeats", repeat) is None and not (root / "CAS Results").exists()
    known = classifier_training.plan(parse(root, "--repeats", "1/3"))
    assert known.done.endswith("two/20; repeats that are not complete: 2")
    assert classifier_training.plan(parse(root, "--repeats", "2/3")).part == "-repeat-2"
    train(root, "--repeats", "2/3")
    assert results(root)["x1"] == entry
    assert [outcome(root / FOLDER / "20" / name) for name in (".", "repeat_2", "repeat_3")] == whole
    for repeats in (3, "3/3"):
        assert classifier_training.plan(parse(root, "--repeats", repeats)).done.startswith("finished already")
    record = json.loads((root / FOLDER / "20/repeat_3/training.json").read_text())
    assert not {"repeat", "repeats"} & set(record["arguments"])


def test_a_task_that_trains_one_repeat_tests_all_where_only_that_is_missing(root):
    train(root, "--repeats", 2, "--test", "False")
    assert not (root / "CAS Results").exists()
    train(root, "--repeats", "1/2")
    assert results(root)["x1"]["repeats"] == 2


def test_the_last_of_several_tasks_trains_those_that_results_name_beyond_them(root):
    train(root, "--repeats", 3)
    shutil.rmtree(root / "Checkpoints")
    train(root, "--repeats", "1/2")
    assert not classifier_training.plan(parse(root, "--repeats", "2/2")).done
    train(root, "--repeats", "2/2")
    assert (root / FOLDER / "20/repeat_3/training.json").exists() and results(root)["x1"]["repeats"] == 3


def test_an_interrupted_repeat_goes_on(root, monkeypatch):
    train(root, "--repeats", 2, "--epochs", 4)
    whole = outcome(root / FOLDER / "20/repeat_2")

    from Models.fit_state import FitState
    from Scoring.score import progress

    begun, save = [], FitState.save

    def die(state, *args):
        save(state, *args)
        if state.path.parent.name == "repeat_2":
            begun.append(state.epoch)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FitState, "save", die)
        with pytest.raises(KeyboardInterrupt) as stopped:
            train(root, "--repeats", 2, "--epochs", 4, "--restart")
    known = classifier_training.plan(parse(root, "--repeats", 2, "--epochs", 4))
    said = f"1 of 2 repeats and {begun[0]} of 4 epochs are saved"
    assert progress(parse(root, "--epochs", 4), known) == stopped.value.saved() == said
    train(root, "--repeats", 2, "--epochs", 4)
    assert outcome(root / FOLDER / "20/repeat_2") == whole


def test_repeats_of_a_larger_set_are_of_other_subsets(root):
    args = parse(root)
    known = classifier_training.plan(args)
    subsets = [material.gather(args, known, repeat_seed(args.seed, repeat)).images for repeat in (1, 2, 1)]
    assert np.array_equal(subsets[0], subsets[2]) and not np.array_equal(subsets[0], subsets[1])


def test_a_synthetic_result_is_compared_with_the_real_one(root, caplog):
    train(root, "--repeats", 2)
    assert "against_real" not in results(root)["x1"]
    with caplog.at_level("INFO", logger="experiment"):
        train(root, "--synthetic", "False", "--epochs", 3)
    compared = results(root)["x1"]["against_real"]
    ours, real = (
        np.stack([read_predictions(root / FOLDER / name).hits() for name in names])
        for names in (("20", "20/repeat_2"), ("real",))
    )
    assert compared["difference"] == pytest.approx(ours.mean() - real.mean())
    assert compared["interval"] == pytest.approx(difference_interval(ours, real))
    assert compared["repeats"] == [2, 1] and "mcnemar_p" not in compared
    assert compared["trained_otherwise"] == {"epochs": [1, 3]}
    assert f"x1 is {compared['words']}; trained otherwise: epochs 1 (real: 3)" in caplog.text
    assert compared["verdict"] in compared["words"]
    train(root, "--restart")
    one = results(root)["x1"]["against_real"]
    assert one["mcnemar_p"] == mcnemar(ours[0], real[0]) and "against_real" not in results(root)["real"]
    assert f"(McNemar's p {one['mcnemar_p']:.2g}; others may differ); trained otherwise" in compared_in_words(one)
    assert "of these two trainings" in one["words"] and "of these two trainings" not in compared["words"]


def test_a_set_that_changes_between_two_repeats_ends_the_training(root):
    """What the second one learnt from would not be what is on record."""
    args = parse(root, "--repeats", 2)
    known = classifier_training.plan(args)
    assert len(material.gather(args, known, args.seed).labels) == 20
    one = next((sets(root) / "60Enc1Dif2Is5Ugs1.5/class_00").glob("*.png"))
    Image.new("RGB", (8, 8), "red").save(one)
    with pytest.raises(UserError, match="has changed since this training began"):
        material.gather(args, known, repeat_seed(args.seed, 2))


@pytest.mark.parametrize("flags, size", [((), "x1"), (("--synthetic", "False"), "real")])
def test_the_result_of_a_classifier_that_is_thrown_away_goes_with_it(root, flags, size):
    """Else the next one, not tested yet, would stand under the old one's accuracy and levers."""
    train(root)
    train(root, "--synthetic", "False")
    assert "against_real" in results(root)["x1"]
    train(root, *flags, "--restart", "--test", "False")
    left = results(root)
    assert left.keys() == {"x1", "real"} - {size} and "against_real" not in left.get("x1", {})
    train(root, *flags)
    assert results(root).keys() == {"x1", "real"} and "against_real" in results(root)["x1"]


def test_the_last_result_that_is_thrown_away_leaves_no_name(root):
    train(root)
    train(root, "--restart", "--test", "False")
    assert not [path for path in (root / "CAS Results").rglob("*") if path.suffix in (".json", ".png")]
    assert not classifier_training.plan(parse(root)).done


def test_a_result_is_compared_with_always_naming_the_largest_class(root, caplog):
    labels = np.repeat([0, 1], [70, 30]).astype(np.int16)
    right, largest = labels[:, None], np.zeros((100, 1), np.int16)
    better, same, mixed = (
        against_largest_class([Predictions(ranking, labels, "t") for ranking in rankings])
        for rankings in ([right], [largest], [right, largest])
    )
    assert better["share"] == same["share"] == 0.7 and better["difference"] == pytest.approx(0.3)
    assert (better["verdict"], same["verdict"], mixed["verdict"]) == ("better", "no difference shown", "no difference shown")
    assert same["words"].startswith("equal to always naming the largest class, 95 % interval") and same["interval"][0] < 0
    # What it names is the same in every training: only ours vary.
    ours = np.stack([labels == 0, np.ones(100, bool)])
    assert mixed["interval"] == pytest.approx(difference_interval(ours, np.stack([labels == 0] * 2)))
    told = no_better_than_largest({"real": {"against_largest_class": better}, "x1": {"against_largest_class": same}, "x2": {}})
    assert told == [("x1", same["words"])]
    train(root)
    entry = results(root)["x1"]["against_largest_class"]
    assert entry["share"] == 0.5 and (entry["verdict"] == "better") == ("x1 is" not in caplog.text)


def test_real_images_that_the_generator_has_not_seen_are_told(root):
    """Of a result whose generator has learnt from other training images than the real classifier."""
    made, real = ({"training": {"epochs": 9}, "learned_from": images} for images in ("a", "b"))
    assert trained_otherwise(made, real) == {"trained_otherwise": {"training images": ["a", "b"]}}
    assert trained_otherwise(made, real | {"learned_from": "a"}) == trained_otherwise({"training": {"epochs": 9}}, real) == {}
    train(root, "--synthetic", "False")
    before = results(root)["real"]["learned_from"]
    train(root, "--synthetic", "False", "--train", "False")
    assert results(root)["real"]["learned_from"] == before
    manifest = sets(root) / "60Enc1Dif2Is5Ugs1.5" / MANIFEST
    seen = [{"resolution": 8, "train": "c" * 64}, {"resolution": 28, "train": "d" * 64}]
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"learned_from": seen}))
    train(root)
    assert results(root)["x1"]["against_real"]["trained_otherwise"]["training images"] == ["c" * 8, before]


def test_what_is_not_on_record_is_no_difference_and_a_lever_that_is_off_has_its_value():
    ours, real = ({"training": {"epochs": 9, "batch_size": 4, **levers}} for levers in ({"augment": "standard"}, {}))
    assert trained_otherwise(ours, real) == {"trained_otherwise": {"augment": ["standard", "none"]}}
    assert trained_otherwise(real, ours) == {"trained_otherwise": {"augment": ["none", "standard"]}}
    assert trained_otherwise(ours, {"top_1_accuracy": 0.5}) == trained_otherwise({}, real) == {}
    del real["training"]["batch_size"]
    assert list(trained_otherwise(ours, real)["trained_otherwise"]) == ["augment"]


def test_results_on_other_test_images_are_not_compared(root):
    train(root)
    train(root, "--synthetic", "False")
    assert "against_real" in results(root)["x1"]
    folder = root / FOLDER / "real"
    write_predictions(folder, read_predictions(folder)._replace(test="others"))
    train(root, "--train", "False")
    assert "against_real" not in results(root)["x1"]


@pytest.mark.parametrize("arrays", [{"ranking": np.zeros((3, 2))}, {**dict.fromkeys(Predictions._fields, np.zeros(3))}])
def test_damaged_predictions_are_one_line(tmp_path, arrays):
    np.savez(tmp_path / "test_predictions.npz", **arrays)
    with pytest.raises(UserError, match="predictions"):
        read_predictions(tmp_path)


def test_damaged_results_are_one_line(root):
    train(root)
    file = root / "CAS Results/test_accuracies_exp0001.json"
    whole = file.read_text()
    for added in (
        {"interval": [0, 1]}, {"interval": {"top_1_accuracy": [0.5]}}, {"interval": {"top_1_accuracy": ["a", "b"]}},
        {"repeats": 0}, {"repeats": "3"}, {"predictions": 5},
    ):  # fmt: skip
        content = json.loads(whole)
        content["resnet20"]["two"]["x1"] |= added
        file.write_text(json.dumps(content))
        with pytest.raises(UserError, match="does not hold accuracies in 0..1 in the published schema"):
            classifier_training.plan(parse(root))


# Levers


@pytest.mark.parametrize("flags, recorded", [
    (("--augment", "standard"), {"augment": "standard"}), (("--optimizer", "sgd"), {"optimizer": "sgd"}),
    (("--epochs", 4, "--optimizer", "adam_steps"), {"optimizer": "adam_steps"}),
    (("--real_share", 0.5), {"real_share": 0.5}), (("--recycle", "--take", 3), {"recycle": True}),
])  # fmt: skip
def test_a_lever_is_recorded_and_its_run_is_another_one(root, flags, recorded, monkeypatch):
    size = "x3" if "--take" in flags else "x1"
    train(root, *flags)
    entry = results(root)[size]
    assert entry["training"].items() >= recorded.items()
    assert classifier_training.plan(parse(root, *flags)).done
    plain = [flag for flag in flags if flag in ("--take", 3, "--epochs", 4)]
    name = next(iter(recorded))
    with pytest.raises(UserError, match=rf"finished run with other arguments: --{name} .* \(now (none|adam|0.0|False)\)"):
        classifier_training.plan(parse(root, *plain))
    folder = root / FOLDER / size.replace("x1", "20").replace("x3", "60")
    with_lever = outcome(folder)[0]
    train(root, *plain, "--restart")
    assert outcome(folder)[0] != with_lever


def test_a_run_of_before_is_not_finished_with_a_lever(root):
    train(root)
    with pytest.raises(UserError, match=r"other arguments: --augment none \(now standard\)"):
        classifier_training.plan(parse(root, "--augment", "standard"))


def test_a_curve_does_not_mix_levers(root):
    train(root)
    with pytest.raises(UserError, match=r"x1 in the results comes from other settings: augment none \(now augment standard\)"):
        classifier_training.plan(parse(root, "--take", 2, "--augment", "standard"))


def test_recycling_takes_the_steps_of_1x(root):
    args = parse(root, "--take", 3, "--recycle")
    made = material.gather(args, classifier_training.plan(args), args.seed)
    assert made.slices == 3 and np.bincount(made.labels).tolist() == [30, 30]
    assert all(np.bincount(part).tolist() == [10, 10] for part in np.split(made.labels, 3))
    with pytest.raises(UserError, match="--batch_size: 30 is more than the 20"):
        train(root, "--take", 3, "--recycle", "--batch_size", 30)


def test_real_images_stand_in_for_synthetic_ones(root, caplog):
    args = parse(root, "--real_share", 0.5)
    with caplog.at_level("INFO", logger="experiment"):
        made = material.gather(args, classifier_training.plan(args), args.seed)
    assert made.images.shape == (20, 8, 8, 3) and made.labels.shape == (20,)
    real = np.load(root / "two.npz")["train_images"]
    assert sum(any(np.array_equal(image, one) for one in real) for image in made.images) == 10
    assert "10 real training images stand among 20: the result is no Classification Accuracy Score" in caplog.text
    with pytest.raises(UserError, match="--real_share: 30 real images are needed, there are 20"):
        train(root, "--take", 3, "--real_share", 0.5)


@pytest.fixture
def quick_teacher(monkeypatch):
    monkeypatch.setattr(presets, "CLASSIFIER_EPOCHS", 3)


@pytest.mark.parametrize("tf32", [False, True])
def test_how_a_teacher_multiplies_is_on_its_record_where_it_is_asked_for(tf32, monkeypatch):
    monkeypatch.setitem(teachers.CHOSEN, "tf32", tf32)
    told = fixed_arguments(teachers.teacher_arguments("resnet20", 40), ())
    assert told.get("tf32", False) is tf32
    assert told["seed"] != presets.SEED  # with which its pupil begins


def test_aligned_labels_have_the_class_frequencies_and_keep_the_evidence():
    rng = np.random.default_rng(0)
    said = rng.dirichlet([4.0, 1.0, 0.1], 500).astype("float32")  # of the third class hardly anything
    labels = aligned(said, np.array([30, 60, 10]))
    assert labels.dtype == np.float32 and labels.mean(axis=0) == pytest.approx([0.3, 0.6, 0.1], abs=2e-3)
    assert labels.sum(axis=1) == pytest.approx(np.ones(500), abs=1e-5)
    sure = np.argsort(said.min(axis=1))[-2:]  # of the two images all classes of which are likely enough to divide by
    odds = [found[sure, 0] / found[sure, 1] for found in (said, labels)]
    assert odds[0][0] / odds[0][1] == pytest.approx(odds[1][0] / odds[1][1], rel=1e-3)
    none_of_the_third = aligned(np.eye(3, dtype="float32")[[0, 0, 1]], np.ones(3))
    assert none_of_the_third.sum() == pytest.approx(3)


def test_labels_of_both_are_half_the_teachers_and_half_their_class():
    said = np.array([[0.2, 0.8], [0.6, 0.4]], "float32")
    labels = both(said, np.array([0, 1]), 0.1)
    assert labels.dtype == np.float32
    assert labels == pytest.approx(np.array([[(0.2 + 0.95) / 2, (0.8 + 0.05) / 2], [(0.6 + 0.05) / 2, (0.4 + 0.95) / 2]]))


def test_soft_labels_are_a_teachers_and_are_kept_beside_the_set(root, quick_teacher, monkeypatch, caplog):
    train(root, "--labels", "soft")
    folder = root / FOLDER / "teacher"
    record = json.loads((folder / "training.json").read_text())
    assert record["arguments"] == {
        "batch_size": 1,
        "classifier": "resnet20",
        "epochs": 3,
        "restart": False,
        "seed": teachers.TEACHER_SEED,
    }
    assert set(record["inputs"]["data"]) == {"resolution", "train", "val"}  # it never sees test
    (file,) = sets(root).glob("*.soft_labels.*.npz")
    with np.load(file) as data:
        assert data["probabilities"].shape == (60, 2) and data["files"][-1] == b"class_01/img_29.png"
        assert data["classes"].tolist() == ["0", "1"] and file.name.split(".")[-2] == str(data["teacher_sha256"])[:8]
    trained = json.loads((root / FOLDER / "20/training.json").read_text())
    assert trained["inputs"]["teacher"] == str(np.load(file)["teacher_sha256"])
    assert results(root)["x1"]["training"]["labels"] == "soft"
    assert results(root)["x1"]["teacher"] == trained["inputs"]["teacher"][:8]
    assert classifier_training.plan(parse(root, "--labels", "soft")).done
    # Neither the teacher nor its labels are made again, for another size or seed.
    monkeypatch.setattr(teachers, "train_and_save", None)
    before = file.stat().st_mtime_ns
    train(root, "--labels", "soft", "--take", 2, "--seed", 7)
    assert file.stat().st_mtime_ns == before
    # Beside a set that others own, nothing is kept.
    file.unlink()
    monkeypatch.setattr("Data.soft_labels.atomic_path", read_only)
    train(root, "--labels", "soft", "--seed", 8, "--restart")
    record["arguments"]["seed"] = presets.SEED  # of an earlier version: it goes on being the teacher
    (folder / "training.json").write_text(json.dumps(record))
    with caplog.at_level("INFO"):
        train(root, "--labels", "soft", "--seed", 9, "--restart")
    assert "is of an earlier version" in caplog.text
    assert "not kept beside the set" in caplog.text and not list(sets(root).glob("*.soft_labels.*.npz"))


def test_a_teacher_of_students_of_augmented_images_is_another_one(root, quick_teacher):
    train(root, "--labels", "soft", "--augment", "standard")
    folder = root / FOLDER / "augmented_teacher"
    assert json.loads((folder / "training.json").read_text())["arguments"]["augment"] == "standard"
    trained = json.loads((root / FOLDER / "20/training.json").read_text())
    assert trained["inputs"]["teacher"] == teacher_hash(folder) and not (root / FOLDER / "teacher").exists()
    assert classifier_training.plan(parse(root, "--labels", "soft", "--augment", "standard")).done
    args = parse(root, "--labels", "soft")
    plain = material.ask_teacher(args, classifier_training.plan(parse(root, "--labels", "soft", "--restart")))[1]
    assert plain == teacher_hash(root / FOLDER / "teacher") != teacher_hash(folder)


def read_only(path):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_a_students_targets_are_what_the_teacher_says(root, quick_teacher):
    args = parse(root, "--labels", "soft", "--real_share", 0.2)
    known = classifier_training.plan(args)
    taught = material.ask_teacher(args, known)
    made = material.gather(args, known, args.seed, taught)
    said = taught[0].probabilities(made.images[:16])
    assert made.labels.dtype == np.float32 and np.abs(made.labels[:16] - said).max() < 1e-3
    assert np.allclose(made.labels.sum(axis=1), 1, atol=1e-6)
    assert np.unique(made.labels[16:]).tolist() == pytest.approx([0.05, 0.95])  # real images: their own labels, smoothed
    assert material.recipe_of(args).smoothing == 0.0


def test_aligned_labels_are_those_of_the_same_teacher(root, quick_teacher, caplog):
    """Of the images that are learnt from, and of two classes that are equally frequent in the real ones."""
    said = {}
    for labels in ("soft", "aligned"):
        args = parse(root, "--labels", labels)
        known = classifier_training.plan(args)
        taught = material.ask_teacher(args, known)
        said[labels] = material.gather(args, known, args.seed, taught).labels
        assert material.recipe_of(args).smoothing == 0.0
    assert len(list((root / FOLDER).glob("*teacher"))) == 1 and "labels are aligned with the class frequencies" in caplog.text
    assert said["aligned"].mean(axis=0) == pytest.approx([0.5, 0.5], abs=1e-3)
    assert np.array_equal(said["aligned"][:, 0].argsort(kind="stable"), said["soft"][:, 0].argsort(kind="stable"))
    train(root, "--labels", "aligned")
    assert results(root)["x1"]["training"]["labels"] == "aligned"


def test_half_of_the_labels_of_both_is_the_images_class(root, quick_teacher):
    made = {}
    for labels in ("soft", "both"):
        args = parse(root, "--labels", labels)
        known = classifier_training.plan(args)
        made[labels] = material.gather(args, known, args.seed, material.ask_teacher(args, known)).labels
    own = np.repeat(np.eye(2), 10, axis=0)  # of 20 images the first ten are of the first class
    assert made["both"] == pytest.approx((made["soft"] + 0.9 * own + 0.05) / 2, abs=1e-6)
    train(root, "--labels", "both")
    assert results(root)["x1"]["training"]["labels"] == "both"


def test_a_teacher_of_other_data_is_refused(root, quick_teacher):
    train(root, "--labels", "soft")
    arrays = dict(np.load(root / "two.npz"))
    np.savez(root / "two.npz", **arrays | {"train_images": arrays["train_images"] // 2})
    told = r"teacher holds a finished run with other inputs: data.train .*, or remove that folder"
    with pytest.raises(UserError, match=told):
        train(root, "--labels", "soft", "--take", 2)


def test_one_curve_has_one_teacher(root, quick_teacher):
    train(root, "--labels", "soft")
    file = root / "CAS Results/test_accuracies_exp0001.json"
    entry = results(root)["x1"]
    write_json(file, {"resnet20": {"two": {"x1": entry | {"teacher": "0123abcd"}}}})
    with pytest.raises(UserError, match=f"other settings: teacher 0123abcd .now teacher {entry['teacher']}."):
        train(root, "--labels", "soft", "--take", 2)
    write_json(file, {"resnet20": {"two": {"x1": {k: v for k, v in entry.items() if k != "teacher"}}}})  # of an earlier version
    train(root, "--labels", "soft", "--take", 2)
    write_json(file, {"resnet20": {"two": {"x1": results(root)["x2"] | {"teacher": 3}}}})
    with pytest.raises(UserError, match="does not hold accuracies"):
        train(root, "--labels", "soft", "--take", 2)


def test_another_teacher_makes_another_run(root, quick_teacher):
    train(root, "--labels", "soft")
    weights = root / FOLDER / "teacher/best_model.weights.h5"
    weights.write_bytes((root / FOLDER / "20/best_model.weights.h5").read_bytes())
    with pytest.raises(UserError, match=r"other inputs: teacher \w{8} \(now \w{8}\)"):
        classifier_training.plan(parse(root, "--labels", "soft"))


def test_repeats_of_another_teacher_are_not_added(root, quick_teacher, monkeypatch):
    train(root, "--labels", "soft")
    shutil.rmtree(root / FOLDER / "teacher")
    assert classifier_training.plan(parse(root, "--labels", "soft")).done  # what is finished needs it no more
    monkeypatch.setattr(presets, "CLASSIFIER_EPOCHS", 2)  # so another one is trained
    with pytest.raises(UserError, match="other inputs: teacher"):
        train(root, "--labels", "soft", "--repeats", 2)


@pytest.mark.parametrize("flags, said", [
    (("--labels", "soft", "--synthetic", "False"), "--labels: not allowed with --synthetic False"),
    (("--recycle", "--synthetic", "False"), "--recycle: not allowed with --synthetic False"),
    (("--real_share", "0.5", "--synthetic", "False"), "--real_share: not allowed with --synthetic False"),
    (("--real_share", "0.5", "--recycle"), "--recycle: not allowed with --real_share"),
    (("--repeats", "4/3"), "I/N with I from 1 to N"), (("--repeats", "1/2", "--restart"), "not allowed with --restart"),
    (("--repeats", "auto"), "no batch system is at work"), (("--repeats", "1/1001"), "at most 1000"),
    (("--repeats", "1/2", "--train", "False"), "not allowed with --train"),
    (("--real_share", "1"), "must be at least 0 and at most 0.99"), (("--repeats", "0"), "must be in 1..1000"),
])  # fmt: skip
def test_levers_that_do_not_go_together(capsys, flags, said):
    with pytest.raises(SystemExit) as stopped:
        classifier_training.parse_args(flags)
    assert stopped.value.code == 2 and re.search(said, capsys.readouterr().err)
