"""The table of datasets, and the specs made from the user's own data."""

import hashlib
import io
import subprocess
import sys

import numpy as np
import pytest
from medmnist import INFO
from PIL import Image

from Data.npz import NPZ_KEYS, describe
from Data.registry import DATASETS, class_names, dataset_spec
from Experiment.errors import UserError
from Experiment.paths import REPOSITORY


@pytest.mark.parametrize("name, classes, resolution, train_size, unit", [
    ("cifar10", 10, 32, 40_000, 40_000), ("cifar100", 100, 32, 40_000, 40_000), ("pathmnist", 9, 28, 89_996, 90_000),
    ("dermamnist", 7, 28, 7_007, 7_000), ("bloodmnist", 8, 28, 11_959, 12_000), ("retinamnist", 5, 28, 1_080, 1_000),
    ("digits", 10, 8, 1_000, 1_000),
])  # fmt: skip
def test_registered(name, classes, resolution, train_size, unit):
    spec = dataset_spec(name)
    assert spec == DATASETS[name] and spec.name == name
    assert (spec.num_classes, spec.resolution, spec.train_size, spec.unit) == (classes, resolution, train_size, unit)
    assert len(spec.classes) == (0 if spec.source == "medmnist" else classes)


@pytest.mark.parametrize("name", [name for name, spec in DATASETS.items() if spec.source == "medmnist"])
def test_medmnist_agrees_with_its_package(name):
    assert (DATASETS[name].num_classes, DATASETS[name].train_size) == (
        len(INFO[name]["label"]), INFO[name]["n_samples"]["train"]
    )  # fmt: skip


def image_folder(path, counts, size=(20, 16)):
    """Class folders with `counts` {class: images}."""
    for name, count in counts.items():
        (path / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", size).save(path / name / f"{i}.png")
    return path


def test_too_many_values(tmp_path):
    with pytest.raises(UserError, match="needs 2 to 1000 classes. Received: 1001"):
        dataset_spec(npz_file(tmp_path / "cells.npz", train_labels=np.arange(1001)))


def npz_file(path, **changes):
    arrays = {key: np.zeros((4, 6, 5) if "images" in key else (4, 1), np.uint8) for key in NPZ_KEYS}
    arrays["train_labels"][3] = 2
    arrays |= changes
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return path


@pytest.mark.parametrize("splits, train_size", [(["train", "val", "test"], 20), (["train", "test"], 16), ([""], 14)])
def test_folder_spec(tmp_path, splits, train_size):
    for split in splits:
        image_folder(tmp_path / "my.own flowers" / split, {"rose": 12, "daisy": 8})
    spec = dataset_spec(str(tmp_path / "my.own flowers"))
    assert (spec.name, spec.source, spec.path) == ("my_own_flowers", "folder", tmp_path / "my.own flowers")
    assert (spec.classes, spec.num_classes, spec.resolution) == (("daisy", "rose"), 2, 16)
    assert spec.train_size == spec.unit == train_size


def test_large_images_are_seen_at_128_px(tmp_path):
    assert dataset_spec(image_folder(tmp_path, {"a": 1, "b": 1}, size=(300, 200))).resolution == 128


def test_a_thousand_classes(tmp_path):
    assert dataset_spec(image_folder(tmp_path, {f"c{i:03d}": 1 for i in range(1000)}, size=(4, 4))).num_classes == 1000


def test_own_data_is_never_taken_for_a_published_dataset(tmp_path):
    assert dataset_spec(npz_file(tmp_path / "cifar10.npz")).name == "cifar10_own"


def test_npz_spec(tmp_path):
    spec = dataset_spec(npz_file(tmp_path / "cells v2.npz"))
    assert (spec.name, spec.source, spec.path) == ("cells_v2", "npz", tmp_path / "cells v2.npz")
    assert (spec.classes, spec.num_classes, spec.resolution) == (("0", "2"), 2, 5)
    assert spec.train_size == spec.unit == 4


@pytest.mark.parametrize("changes, reason", [
    ({"val_images": None, "test_labels": None}, "Missing: val_images, test_labels"),
    ({"train_labels": np.full(4, 0.5)}, "train_labels must be whole numbers or words, .* Received: float64"),
    ({"train_labels": np.full(4, np.inf)}, "train_labels must be whole numbers"),
    ({"train_labels": np.full(4, 2**63, np.uint64)}, r"train_labels must be at most 2\*\*53"),
    ({"train_labels": np.array(list("abab"))}, "numbers in one split and words in another"),
    ({"train_labels": np.zeros(4, int)}, "needs 2 to 1000 classes. Received: 1"),
    ({"train_labels": np.eye(4, dtype=int)}, r"Received: \(4, 4\), one-hot: store labels.argmax"),
    ({"test_labels": np.ones((4, 14), int)}, r"test_labels .* Received: \(4, 14\), several for an image"),
    ({"train_images": np.zeros((0, 6, 5), np.uint8)}, r"N > 0. Received: \(0, 6, 5\)"),
    ({"train_images": np.zeros((4, 6), np.uint8)}, r"Received: \(4, 6\)"),
])  # fmt: skip
def test_npz_with_other_arrays_is_refused(tmp_path, changes, reason):
    with pytest.raises(UserError, match=reason):
        dataset_spec(npz_file(tmp_path / "cells.npz", **changes))


def bytes_of(save, array):
    file = io.BytesIO()
    save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("content", [
    b"", b"no archive", bytes_of(np.save, np.zeros(3)), bytes_of(np.savez, np.zeros(9999))[:5000],
], ids=["empty", "text", "single array", "cut short"])  # fmt: skip
def test_what_is_no_npz_is_refused(tmp_path, content):
    (tmp_path / "cells.npz").write_bytes(content)
    with pytest.raises(UserError, match="cells.npz is not a readable npz file"):
        dataset_spec(tmp_path / "cells.npz")


def test_folder_spec_refuses_a_single_class(tmp_path):
    image_folder(tmp_path, {"a": 1})
    with pytest.raises(UserError, match="needs 2 to 1000 classes. Received: 1"):
        dataset_spec(tmp_path)


# Resolution


def test_the_resolution_is_the_median_and_says_so(tmp_path):
    """A stray icon that sorts first does not decide."""
    image_folder(tmp_path, {"cat": 6, "dog": 6}, size=(96, 100))
    Image.new("RGB", (6, 6)).save(tmp_path / "cat" / "000.png")
    spec = dataset_spec(tmp_path)
    assert spec.resolution == 96 and "6..96 px, median 96" in spec.chosen and "--resolution" in spec.chosen


@pytest.mark.parametrize("name", ["folder", "npz", "retinamnist", "digits"])
def test_resolution_can_be_chosen(tmp_path, name):
    image_folder(tmp_path / "folder", {"a": 1, "b": 1})
    npz_file(tmp_path / "npz")
    path = {"folder": tmp_path / "folder", "npz": tmp_path / "npz.npz"}.get(name, name)
    spec = dataset_spec(path, resolution=48)
    assert (spec.resolution, spec.chosen) == (48, "--resolution") and dataset_spec(path).resolution != 48


def test_background_is_kept_as_a_colour(tmp_path):
    image_folder(tmp_path, {"a": 1, "b": 1})
    assert dataset_spec(tmp_path).background == (255, 255, 255)
    assert dataset_spec(tmp_path, background="#010203").background == (1, 2, 3)


# Labels of an npz


@pytest.mark.parametrize("labels, names", [
    (np.array([1, 2, 3, 1]), ("1", "2", "3")), (np.array([0, 7, 10, 7]), ("0", "7", "10")), (np.array([-1, 1, 1, 1]), ("-1", "1")),
    (np.array([0.0, 2.0, 2.0, 0.0], np.float32), ("0", "2")), (np.array([[0], [1], [1], [0]], np.uint8), ("0", "1")),
    (np.array([0, 1, 1, 0], ">i8"), ("0", "1")), (np.array([True, False, True, True]), ("0", "1")),
    (np.array(["cat", "ant", "cat", "ant"]), ("ant", "cat")), (np.array([10**12, 0, 0, 0]), ("0", "1000000000000")),
])  # fmt: skip
def test_the_values_that_occur_are_the_classes(tmp_path, labels, names):
    spec = dataset_spec(npz_file(tmp_path / "cells.npz", **{key: labels for key in NPZ_KEYS if "labels" in key}))
    assert (spec.classes, spec.num_classes) == (names, len(names))


def test_values_of_all_splits_count(tmp_path):
    assert dataset_spec(npz_file(tmp_path / "cells.npz", test_labels=np.array([0, 2, 9, 9]))).classes == ("0", "2", "9")


@pytest.mark.parametrize("compress", [np.savez, np.savez_compressed])
def test_shapes_are_read_without_images(tmp_path, compress, monkeypatch):
    npz_file(tmp_path / "cells.npz")
    with np.load(tmp_path / "cells.npz") as data:
        compress(tmp_path / "cells.npz", **data)
    loaded = []
    get = np.lib.npyio.NpzFile.__getitem__
    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", lambda data, key: loaded.append(key) or get(data, key))
    assert describe(tmp_path / "cells.npz")[0] == (4, 6, 5)
    assert not [key for key in loaded if "images" in key]


# MedMNIST


def single_label_2d():
    return sorted(name for name, info in INFO.items() if "multi-label" not in info["task"] and "3d" not in name)


def test_every_2d_set_of_one_label_is_there():
    assert sorted(name for name, spec in DATASETS.items() if spec.source == "medmnist") == single_label_2d()
    paper = {"pathmnist", "dermamnist", "bloodmnist", "retinamnist"}
    for name in set(single_label_2d()) - paper:
        assert DATASETS[name].unit == DATASETS[name].train_size == INFO[name]["n_samples"]["train"]
        assert class_names(DATASETS[name]) == tuple(INFO[name]["label"].values())


def official(monkeypatch, path, suffix=""):
    """Make a file of `npz_file` pass for the official one."""
    name = path.stem.removesuffix(suffix)
    monkeypatch.setitem(INFO, name, INFO[name] | {f"MD5{suffix}": hashlib.md5(path.read_bytes()).hexdigest()})


@pytest.mark.parametrize("suffix, side", [("", 28), ("_64", 64)])
def test_an_official_file_by_path_is_the_named_dataset(tmp_path, monkeypatch, suffix, side):
    path = npz_file(tmp_path / f"breastmnist{suffix}.npz")
    assert dataset_spec(path).name == ("breastmnist_64" if suffix else "breastmnist_own")
    official(monkeypatch, path, suffix)
    spec = dataset_spec(path)
    assert (spec.name, spec.source, spec.path, spec.resolution, spec.unit) == ("breastmnist", "medmnist", path, side, 546)
    assert class_names(spec) == ("malignant", "normal, benign")


def test_names_and_facts_need_no_heavy_import():
    code = "import sys, Data.registry, cli.flags; print([m for m in ('medmnist', 'sklearn', 'pandas', 'keras') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
