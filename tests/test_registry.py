"""The table of datasets, and the specs made from the user's own data."""

import io

import numpy as np
import pytest
from medmnist import INFO
from PIL import Image

from Data.registry import DATASETS, NPZ_KEYS, class_files, dataset_spec, folder_splits
from Experiment.errors import UserError


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
    assert dataset_spec(image_folder(tmp_path, {f"c{i:03d}": 1 for i in range(1000)}, size=(2, 2))).num_classes == 1000


def test_own_data_is_never_taken_for_a_published_dataset(tmp_path):
    assert dataset_spec(npz_file(tmp_path / "cifar10.npz")).name == "cifar10_own"


def test_npz_spec(tmp_path):
    spec = dataset_spec(npz_file(tmp_path / "cells v2.npz"))
    assert (spec.name, spec.source, spec.path) == ("cells_v2", "npz", tmp_path / "cells v2.npz")
    assert (spec.classes, spec.num_classes, spec.resolution) == (("0", "1", "2"), 3, 5)
    assert spec.train_size == spec.unit == 4


@pytest.mark.parametrize("changes, reason", [
    ({"val_images": None, "test_labels": None}, "Missing: val_images, test_labels"),
    ({"train_labels": np.zeros(4)}, "labels must be integers. Received: float64"),
    ({"train_labels": np.zeros(4, int)}, "needs 2 to 1000 classes. Received: 1"),
    ({"train_labels": np.full(4, 1000)}, "needs 2 to 1000 classes. Received: 1001"),
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


@pytest.mark.parametrize("folders, found", [
    (["Train", "TEST"], {"train": "Train", "test": "TEST"}),
    (["train", "validation", "test"], {"train": "train", "val": "validation", "test": "test"}),
    (["train", "valid", "test", "notes"], {"train": "train", "val": "valid", "test": "test"}),
    (["cats", "dogs"], {"all": ""}),
])  # fmt: skip
def test_folder_splits(tmp_path, folders, found):
    for name in folders:
        (tmp_path / name).mkdir()
    assert folder_splits(tmp_path) == {split: tmp_path / name for split, name in found.items()}


@pytest.mark.parametrize("folders", [["train"], ["train", "val"], ["test", "val"]])
def test_half_a_set_of_splits_is_refused(tmp_path, folders):
    for name in folders:
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="needs train and test"):
        folder_splits(tmp_path)


def test_class_files(tmp_path):
    image_folder(tmp_path, {"b": 2, "a": 1, ".cache": 1})
    (tmp_path / "b" / "photo.JPEG").touch()
    for ignored in ("b/notes.txt", "b/._0.png", "loose.png"):  # ._0.png: what macOS writes beside 0.png
        (tmp_path / ignored).touch()
    files = {name: [path.name for path in paths] for name, paths in class_files(tmp_path).items()}
    assert files == {"a": ["0.png"], "b": ["0.png", "1.png", "photo.JPEG"]}


@pytest.mark.parametrize("counts, classes, reason", [
    ({}, None, "holds no class folders"), ({"a": 1, "b": 0}, None, "hold no images: b"),
    ({"a": 1, "c": 1}, ("a", "b"), "other classes than the training images: b, c"),
])  # fmt: skip
def test_class_files_refuses(tmp_path, counts, classes, reason):
    image_folder(tmp_path, counts)
    with pytest.raises(UserError, match=reason):
        class_files(tmp_path, classes)


def test_folder_spec_refuses_a_single_class_and_a_broken_first_image(tmp_path):
    image_folder(tmp_path, {"a": 1})
    with pytest.raises(UserError, match="needs 2 to 1000 classes. Received: 1"):
        dataset_spec(tmp_path)
    (tmp_path / "a" / "0.png").write_text("no image")
    with pytest.raises(UserError, match="0.png is not a readable image"):
        dataset_spec(tmp_path)
