"""Real splits of every source, from tiny files made here."""

import csv
import hashlib
import io
import json
import logging
import re
import shutil
import struct
import tarfile
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
from medmnist import INFO
from PIL import Image
from sklearn.model_selection import train_test_split

from cli.flags import finish_args, new_parser
from Data import loaders
from Data.identity import data_identity, image_hashes
from Data.loaders import Split, Splits, load_splits
from Data.npz import NPZ_KEYS, SPLITS
from Data.pictures import read_images
from Data.registry import DATASETS, class_names, dataset_spec
from Data.repeated import partners
from Data.resizing import resize_images
from Experiment.errors import PassingError, UserError
from Experiment.paths import Experiment
from tests.conftest import write_pets


@pytest.fixture(autouse=True)
def dark_is_meant(monkeypatch):
    """The images of these tests are numbered by their grey levels."""
    monkeypatch.setattr("Data.oddities.DARK", 0)


def numbers(split):
    """What tells the images of these tests apart: the first pixel's red and green."""
    return [tuple(image[0, 0, :2]) for image in split.images]


def numbered_images(path, counts, size=(9, 9), first=0):
    """Class folders of PNGs of one colour each: red is the class, green the number."""
    for label, (name, count) in enumerate(sorted(counts.items())):
        (path / name).mkdir(parents=True, exist_ok=True)
        for i in range(first, first + count):
            Image.new("RGB", size, (label, i, 0)).save(path / name / f"{i:03d}.png")


# Digits


def test_digits():
    splits = load_splits(DATASETS["digits"], "unused", seed=1)
    assert [len(s.labels) for s in splits] == [1000, 297, 500]
    assert splits.train.images.shape == (1000, 8, 8, 3) and splits.train.images.max() == 255
    whole = np.bincount(np.concatenate([s.labels for s in splits])) / 1797
    for split in splits:
        assert np.abs(np.bincount(split.labels) / len(split.labels) - whole).max() < 0.003  # stratified
    different = {image.tobytes() for split in splits for image in split.images}
    assert len(different) == 1797  # disjoint: no two of these digits are equal
    data = sklearn.datasets.load_digits()
    rest, test = train_test_split(np.arange(1797), test_size=500, stratify=data.target, random_state=1234)
    train, val = train_test_split(rest, test_size=297, stratify=data.target[rest], random_state=1234)
    for split, index in zip(splits, (train, val, test)):
        assert np.array_equal(split.images[..., 1], (data.images[index] * 255 / 16).round())
        assert np.array_equal(split.labels, data.target[index])
    again = load_splits(DATASETS["digits"], "unused", seed=2)  # the same split in every experiment
    assert all(np.array_equal(a.images, b.images) for a, b in zip(splits, again))


# CIFAR


def cifar_row(label_bytes, number):
    planes = np.stack([np.full((32, 32), v, np.uint8) for v in (number, number + 100, number + 200)])
    planes[0, 0, 31] = 77  # red, first row, last column
    return bytes(label_bytes) + planes.tobytes()


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Writes an archive of 10 training and 3 test images in the official layout; 4 of the 10 are validation."""

    def write(name):
        archive, _, train_files, test_files = loaders.CIFAR_FILES[name]
        labels = (lambda i: [i % 10]) if name == "cifar10" else (lambda i: [19 - i, 90 + i % 10])
        rows = [cifar_row(labels(i), i) for i in range(13)]
        share = 10 // len(train_files)
        contents = [b"".join(rows[i * share : (i + 1) * share]) for i in range(len(train_files))]
        with tarfile.open(tmp_path / archive, "w:gz") as tar:
            for path, content in zip([*train_files, *test_files], [*contents, b"".join(rows[10:])]):
                info = tarfile.TarInfo(path)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        md5 = hashlib.md5((tmp_path / archive).read_bytes()).hexdigest()
        monkeypatch.setitem(loaders.CIFAR_FILES, name, (archive, md5, train_files, test_files))
        monkeypatch.setattr(loaders, "CIFAR_VALIDATION", 4)
        return DATASETS[name]

    return write


@pytest.mark.parametrize("name, first_label", [("cifar10", 0), ("cifar100", 90)])
def test_cifar(cifar, tmp_path, name, first_label):
    splits = load_splits(cifar(name), tmp_path)
    found = [[int(n[0]) for n in numbers(split)] for split in splits]
    assert found == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9], [10, 11, 12]]  # the last images of training are validation
    for split in splits:
        assert split.labels.tolist() == [first_label + n % 10 for n, _ in numbers(split)]
        assert split.labels.dtype == np.int32
    image = splits.train.images[5]
    assert image.shape == (32, 32, 3) and image[31, 0].tolist() == [5, 105, 205] and image[0, 31, 0] == 77


def test_cifar_validation_is_10000():
    assert loaders.CIFAR_VALIDATION == 10_000


# Official files


def fetch_file(folder, url, content=b"official"):
    return loaders.fetch(url, "data.bin", folder, hashlib.md5(content).hexdigest())


def test_a_missing_file_is_downloaded_once(tmp_path):
    (tmp_path / "server.bin").write_bytes(b"official")
    url = (tmp_path / "server.bin").as_uri()
    assert fetch_file(tmp_path / "new", url).read_bytes() == b"official"
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["data.bin"]
    (tmp_path / "server.bin").unlink()
    assert fetch_file(tmp_path / "new", url) == tmp_path / "new" / "data.bin"


def test_offline_error_says_how_to_get_the_file(tmp_path):
    url = (tmp_path / "offline.bin").as_uri()
    with pytest.raises(UserError) as error:
        fetch_file(tmp_path / "data", url)
    assert all(part in str(error.value) for part in ("data.bin", url, str(tmp_path / "data"), "--data_dir"))
    assert list((tmp_path / "data").iterdir()) == []


def test_a_download_of_another_hash_gets_no_name(tmp_path):
    (tmp_path / "server.bin").write_bytes(b"<html>log in</html>")
    with pytest.raises(UserError, match="data.bin is not in .* and cannot be downloaded"):
        fetch_file(tmp_path / "new", (tmp_path / "server.bin").as_uri())
    assert not any((tmp_path / "new").iterdir())


@pytest.mark.parametrize("said, kind", [
    ("503 -- Service Unavailable", PassingError), ("429 -- Too Many Requests", PassingError), ("404 -- Not Found", UserError),
    ("None -- [Errno -2] Name or service not known", UserError),
])  # fmt: skip
def test_a_server_that_is_busy_may_pass(tmp_path, monkeypatch, said, kind):
    def fails(*args):
        raise Exception(f"URL fetch failure on https://x.org/data.bin: {said}")

    monkeypatch.setattr(loaders, "download", fails)
    with pytest.raises(UserError) as error:
        fetch_file(tmp_path, "https://x.org/data.bin")
    assert type(error.value) is kind


def test_data_dir_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="data.bin is not in"):
        fetch_file(tmp_path / "file", "file:///nowhere")


def test_a_file_with_another_hash_is_refused(tmp_path):
    (tmp_path / "data.bin").write_bytes(b"half a down")
    with pytest.raises(UserError, match="data.bin is not the official file: its MD5 is not [0-9a-f]{32}. Delete it"):
        fetch_file(tmp_path, "file:///nowhere")


# MedMNIST and npz


def npz_arrays(side=4, channels=(3,), classes=3, **changes):
    """Splits of 5, 4 and 3 images, told apart by their first pixel; labels go round."""
    arrays = {}
    for number, split in enumerate(("train", "val", "test")):
        count = 5 - number
        images = np.full((count, side, side, *channels), 10 * number, np.uint8)
        images[:, 0, 0] += np.arange(count, dtype=np.uint8).reshape(-1, *[1] * len(channels))
        arrays |= {f"{split}_images": images, f"{split}_labels": (np.arange(count, dtype=np.uint8) % classes)[:, None]}
    return arrays | changes


def own_npz(tmp_path, **changes):
    np.savez(tmp_path / "cells.npz", **npz_arrays(**changes))
    return dataset_spec(tmp_path / "cells.npz")


@pytest.mark.parametrize("by", ["name", "path"])
def test_an_official_file_as_it_is_published(by):
    folder = Path(__file__).parent / "official"
    spec = dataset_spec("breastmnist" if by == "name" else folder / "breastmnist.npz")
    splits = load_splits(spec, folder)
    assert (spec.name, spec.source, spec.resolution, spec.unit) == ("breastmnist", "medmnist", 28, 546)
    assert class_names(spec) == ("malignant", "normal, benign")
    assert [np.bincount(part.labels).tolist() for part in splits] == [[147, 399], [21, 57], [42, 114]]
    assert [part.images.shape[1:] for part in splits] == [(28, 28, 3)] * 3
    assert [int(part.images.sum(dtype=np.int64)) for part in splits] == [3 * 35757482, 3 * 5282574, 3 * 10478773]
    assert splits.train.images[0, 0, :2].tolist() == [[139] * 3] * 2


@pytest.mark.parametrize("there, used", [
    ([""], ""), (["", "_64"], ""), (["_64"], "_64"), (["_64", "_128"], "_128"), (["_64", "_128", "_224"], "_224"),
])  # fmt: skip
def test_medmnist_takes_the_published_size_or_else_the_largest(tmp_path, monkeypatch, caplog, there, used):
    caplog.set_level("INFO")
    changes = {}
    for suffix in there:
        path = tmp_path / f"retinamnist{suffix}.npz"
        np.savez(path, **npz_arrays(side=int(suffix[1:] or 28)))
        changes[f"MD5{suffix}"] = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(INFO, "retinamnist", INFO["retinamnist"] | changes)
    splits = load_splits(DATASETS["retinamnist"], tmp_path)
    assert splits.train.images.shape[1] == int(used[1:] or 28)
    assert [s.labels.tolist() for s in splits] == [[0, 1, 2, 0, 1], [0, 1, 2, 0], [0, 1, 2]]
    assert f"the file of {int(used[1:] or 28)} px" in caplog.text


@pytest.mark.parametrize("there, wanted, used", [
    ([28, 64], 64, 64), ([28, 64, 128], 50, 64), ([28, 128], 64, 128), ([28, 64], 20, 28), ([28], 64, 28), ([64], 28, 64),
    ([], 64, 64), ([], 100, 128), ([], 1000, 224), ([], None, 28),
])  # fmt: skip
def test_resolution_chooses_the_medmnist_file(tmp_path, there, wanted, used):
    for side in there:
        (tmp_path / loaders.medmnist_name("retinamnist", side)).touch()
    assert loaders.medmnist_file(dataset_spec("retinamnist", resolution=wanted), tmp_path) == used


def test_an_official_file_is_read_where_it_lies(tmp_path, monkeypatch):
    """By its path, whatever lies in --data_dir; a class may be missing in a split of an official file."""
    path = tmp_path / "breastmnist_64.npz"
    np.savez(path, **npz_arrays(side=64, channels=(), classes=2, test_labels=np.zeros((3, 1), np.uint8)))
    monkeypatch.setitem(INFO, "breastmnist", INFO["breastmnist"] | {"MD5_64": hashlib.md5(path.read_bytes()).hexdigest()})
    splits = load_splits(dataset_spec(path), tmp_path / "nowhere")
    assert splits.train.images.shape == (5, 64, 64, 3) and splits.test.labels.tolist() == [0, 0, 0]


def test_medmnist_of_another_hash_is_refused(tmp_path):
    np.savez(tmp_path / "retinamnist.npz", **npz_arrays())
    with pytest.raises(UserError, match="retinamnist.npz is not the official file"):
        load_splits(DATASETS["retinamnist"], tmp_path)


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_npz(tmp_path, channels):
    splits = load_splits(own_npz(tmp_path, channels=channels), "unused")
    assert [s.images.shape for s in splits] == [(5, 4, 4, 3), (4, 4, 4, 3), (3, 4, 4, 3)]
    assert splits.val.images[1, 0, 0].tolist() == [11, 11, 11] and splits.val.labels.tolist() == [0, 1, 2, 0]
    assert all(s.images.dtype == np.uint8 and s.labels.dtype == np.int32 for s in splits)


@pytest.mark.parametrize("values", [[1, 2, 3], [0, 10, 7], [-1, 0, 5], [0.0, 2.0, 4.0], ["a", "b", "c"]])
@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_labels_become_0_to_c(tmp_path, values, shape):
    changes = {
        f"{s}_labels": np.array([values[i % 3] for i in range(n)]).reshape(shape)
        for s, n in (("train", 5), ("val", 4), ("test", 3))
    }
    spec = own_npz(tmp_path, **changes)
    order = np.argsort(np.argsort(values)).tolist()
    assert class_names(spec) == tuple(f"{v:g}" if isinstance(v, float) else str(v) for v in sorted(values))
    assert load_splits(spec, "unused").train.labels.tolist() == [order[i % 3] for i in range(5)]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_read_as_numpy_reads_them(tmp_path, save, order, monkeypatch):
    from Data import npz

    monkeypatch.setattr(npz, "ROWS", 4)  # several pieces, the last one shorter
    images = np.asarray(np.random.default_rng(0).integers(0, 256, (10, 9, 6, 3), np.uint8), order=order)
    labels = np.arange(10) % 2
    save(
        tmp_path / "cells.npz",
        **{f"{s}_{k}": images if k == "images" else labels for s in SPLITS for k in ("images", "labels")},
    )
    splits = load_splits(dataset_spec(tmp_path / "cells.npz"), "unused")
    assert np.array_equal(splits.test.images, images[:, 1:7])
    small = load_splits(dataset_spec(tmp_path / "cells.npz"), "unused", side=4)
    assert np.array_equal(small.val.images, resize_images(images[:, 1:7], 4))


@pytest.mark.parametrize("changes, reason", [
    ({"test_images": np.zeros((3, 4, 4, 3))}, "test_images must be uint8 .* Received: float64"),
    ({"val_images": np.zeros((4, 4, 4, 2), np.uint8)}, r"val_images must be uint8 .* Received: uint8 \(4, 4, 4, 2\)"),
    ({"val_images": np.zeros((4, 3, 4, 4), np.uint8)}, r"channels come last: store images.transpose\(0, 2, 3, 1\)"),
    ({"val_images": np.zeros((4, 4, 4, 28), np.uint8)}, "volumes are not images"),
    ({"val_labels": np.zeros((4, 14), int)}, r"val_labels must be .* Received: \(4, 14\), several"),
    ({"test_labels": np.full(3, 0.5)}, "test_labels must be whole numbers or words"),
    ({"val_labels": np.array([0, 1, 2, 3])}, "train has no image of these classes: 3"),
    ({"test_labels": np.array([0, 0, 1])}, "test has no image of these classes: 2"),
    ({"test_labels": np.zeros(2, int)}, "test_images must be one image for each label. .* with 2 labels"),
    ({"val_images": np.zeros((0, 4, 4, 3), np.uint8), "val_labels": np.zeros(0, int)}, r"val_images .* Received: \(0, 4, 4, 3\)"),
])  # fmt: skip
def test_npz_that_does_not_fit_is_refused(tmp_path, changes, reason):
    with pytest.raises(UserError, match=reason):
        load_splits(own_npz(tmp_path, **changes), "unused")


def test_a_damaged_array_is_found(tmp_path):
    """By the archive's checksum, though the images alone would be read to the end."""
    own_npz(tmp_path)
    raw = bytearray((tmp_path / "cells.npz").read_bytes())
    raw[raw.index(b"train_images.npy") + 300] ^= 1
    (tmp_path / "cells.npz").write_bytes(raw)
    with pytest.raises(UserError, match="not a readable npz file"):
        load_splits(dataset_spec(tmp_path / "cells.npz"), "unused")


class Pickled:
    """Unpickling it would leave a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("key", NPZ_KEYS)
def test_pickled_objects_are_never_unpickled(tmp_path, key):
    with pytest.raises(UserError, match="not a readable npz file of plain arrays"):
        load_splits(own_npz(tmp_path, **{key: np.array([Pickled(tmp_path / "unpickled")], object)}), "unused")
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize("name, label, expected", [
    ("dermamnist", 5, "melanocytic nevi"), ("bloodmnist", 7, "platelet"), ("cifar10", 9, "truck"), ("digits", 3, "3"),
])  # fmt: skip
def test_class_names_are_in_label_order(name, label, expected):
    names = class_names(DATASETS[name])
    assert names[label] == expected and len(names) == DATASETS[name].num_classes


# Image folders


def test_folder_with_all_splits(tmp_path):
    for i, (split, count) in enumerate([("train", 3), ("val", 2), ("test", 1)]):
        numbered_images(tmp_path / split, {"cat": count, "ant": count}, first=10 * i)
    splits = load_splits(dataset_spec(tmp_path), "unused")
    assert numbers(splits.train) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert numbers(splits.val) == [(0, 10), (0, 11), (1, 10), (1, 11)] and numbers(splits.test) == [(0, 20), (1, 20)]
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1, 1] and splits.train.images.shape == (6, 9, 9, 3)


@pytest.mark.parametrize("folder, sizes", [("train", (40, 10)), ("", (35, 5, 10))], ids=["train and test", "neither"])
def test_folder_without_some_splits(tmp_path, folder, sizes):
    """What is missing is held out of the training images: disjoint, stratified, by seed."""
    numbered_images(tmp_path / folder, {"ant": 30, "cat": 20})
    if folder:
        numbered_images(tmp_path / "test", {"ant": 1, "cat": 1}, first=200)
    spec = dataset_spec(tmp_path)
    splits = load_splits(spec, "unused", seed=1)
    assert tuple(len(s.labels) for s in splits)[: len(sizes)] == sizes and spec.train_size == sizes[0]
    divided = splits[: len(sizes)]
    for split in divided:
        assert np.mean(split.labels == 0) == pytest.approx(0.6)
        assert split.labels.tolist() == [red for red, _ in numbers(split)]
    together = sorted(n for split in divided for n in numbers(split))
    assert together == [(0, i) for i in range(30)] + [(1, i) for i in range(20)]
    again, other = (load_splits(spec, "unused", seed=seed) for seed in (1, 2))
    assert numbers(again.val) == numbers(splits.val) != numbers(other.val)
    if folder:
        assert numbers(splits.test) == numbers(other.test) == [(0, 200), (1, 200)]


def test_too_few_images_for_a_split(tmp_path):
    numbered_images(tmp_path, {"ant": 2, "cat": 9})
    with pytest.raises(UserError, match=r"every class in each part: ant \(2\); a class here needs (\d+) images") as error:
        load_splits(dataset_spec(tmp_path), "unused")
    needed = int(re.search(r"needs (\d+)", str(error.value))[1])
    numbered_images(tmp_path, {"ant": needed, "cat": 9})
    splits = load_splits(dataset_spec(tmp_path), "unused")
    assert all(set(split.labels) == {0, 1} for split in splits)


def test_a_small_class_is_in_each_part_or_named(tmp_path):
    """Among large classes the split would go through without it."""
    numbered_images(tmp_path, {"ant": 3, "bee": 60, "cat": 60})
    with pytest.raises(UserError, match=r"in each part: ant \(3\); a class here needs \d+ images"):
        load_splits(dataset_spec(tmp_path), "unused")


@pytest.mark.parametrize("mode, colour, expected", [
    ("L", 90, (90, 90, 90)), ("P", 3, (3, 4, 5)), ("RGBA", (9, 8, 7, 255), (9, 8, 7)), ("1", 1, (255, 255, 255)),
    ("LA", (60, 255), (60, 60, 60)),
])  # fmt: skip
def test_every_kind_of_image_becomes_rgb(tmp_path, mode, colour, expected):
    image = Image.new(mode, (4, 4), colour)
    if mode == "P":
        image.putpalette([min(i + j, 255) for i in range(256) for j in range(3)])
    image.save(tmp_path / "image.png")
    (pixels,) = read_images([tmp_path / "image.png"], 4)
    assert pixels.dtype == np.uint8 and (pixels == expected).all()


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
def test_of_an_animated_image_the_first_frame_is_taken(tmp_path, suffix):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / f"image{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    (pixels,) = read_images([tmp_path / f"image{suffix}"], 4)
    assert (pixels == (255, 0, 0)).all()


def test_images_of_all_sizes_are_cut_to_the_middle_square(tmp_path):
    paths = []
    for size in [(8, 8), (16, 8), (8, 24), (32, 16)]:
        paths.append(tmp_path / f"{size}.png")
        image = Image.new("RGB", size, "red")  # a green square in the middle, red beside it
        side = min(size)
        image.paste("green", ((size[0] - side) // 2, (size[1] - side) // 2, (size[0] + side) // 2, (size[1] + side) // 2))
        image.save(paths[-1])
    images = read_images(paths, 8)
    assert images.shape == (4, 8, 8, 3) and (images == (0, 128, 0)).all()


def test_broken_images_are_listed(tmp_path, monkeypatch):
    numbered_images(tmp_path, {"ant": 3})
    good, cut, text = sorted((tmp_path / "ant").iterdir())
    cut.write_bytes(cut.read_bytes()[:45])
    text.write_text("no image")
    deep, huge = tmp_path / "deep.png", tmp_path / "huge.png"
    Image.fromarray(np.full((4, 4), 40_000, np.int32)).save(deep.with_suffix(".tif"))  # of unknown range
    deep = deep.with_suffix(".tif")
    Image.new("L", (1000, 1000)).save(huge)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match="^4 images cannot be read: ") as error:
        read_images([good, cut, text, deep, huge], 9)
    assert [path.name in str(error.value) for path in (good, cut, text, deep, huge)] == [False, True, True, True, True]


def test_a_tiff_whose_pixels_lie_at_a_fraction_is_broken(tmp_path):
    """Pillow raises a TypeError then."""
    path = tmp_path / "image.tif"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    raw = path.read_bytes()
    strip_offsets, short, long, real = 273, 3, 4, 11
    for kind in (short, long):
        raw = raw.replace(struct.pack("<HHI", strip_offsets, kind, 1), struct.pack("<HHI", strip_offsets, real, 1))
    path.write_bytes(raw)
    with pytest.raises(UserError, match="1 images cannot be read"):
        read_images([path], 8)


def test_broken_images_can_be_left_out(tmp_path, caplog):
    """Those whose header is broken, and those whose pixels are; a class of which nothing is left is an error."""
    caplog.set_level("INFO")
    numbered_images(tmp_path, {"ant": 30, "cat": 20})
    first, second = sorted((tmp_path / "ant").iterdir())[:2]
    first.write_bytes(first.read_bytes()[:20])
    with pytest.raises(UserError, match=rf"1 images cannot be read \(--skip_broken leaves them out\): {first}"):
        load_splits(dataset_spec(tmp_path), "unused", seed=1)
    second.write_bytes(second.read_bytes()[:45])
    splits = load_splits(dataset_spec(tmp_path, skip_broken=True), "unused", seed=1)
    together = sorted(n for split in splits for n in numbers(split))
    assert together == [(0, i) for i in range(2, 30)] + [(1, i) for i in range(20)]
    assert all(split.labels.tolist() == [red for red, _ in numbers(split)] for split in splits)
    assert "not used: 2 broken" in caplog.text
    for path in (tmp_path / "ant").iterdir():
        path.write_bytes(path.read_bytes()[:45] + path.name.encode())
    with pytest.raises(UserError, match="no image of these classes can be read: ant"):
        load_splits(dataset_spec(tmp_path, skip_broken=True), "unused")


def test_transparent_images_show_the_background(tmp_path):
    for name in ("ant", "cat"):
        (tmp_path / name).mkdir()
        for i in range(12):
            Image.new("RGBA", (9, 9), (i, 0, 0, 0)).save(tmp_path / name / f"{i}.png")
    assert (load_splits(dataset_spec(tmp_path), "unused").train.images == 255).all()
    assert (load_splits(dataset_spec(tmp_path, background="lime"), "unused").val.images == (0, 255, 0)).all()


# The report


@pytest.fixture
def experiment(tmp_path):
    return Experiment(tmp_path / "root", "0001", "own")


def listed(experiment):
    with open(experiment.unused_file, newline="") as file:
        return [tuple(row.values()) for row in csv.DictReader(file)]


def test_one_line_says_what_is_used_and_what_is_not(tmp_path, caplog, experiment):
    caplog.set_level("INFO")
    numbered_images(tmp_path / "own", {"ant": 30, "cat": 20})
    (tmp_path / "own/ant/notes.txt").write_text("text")
    (tmp_path / "own/ant/b.doc").write_text("text")
    numbered_images(tmp_path / "own/cat", {"more": 3})
    Image.new("RGB", (9, 9)).save(tmp_path / "own/beside.png")
    frames = [Image.new("RGB", (9, 9), (1, 200 + i, 0)) for i in range(3)]
    frames[0].save(tmp_path / "own/cat/film.gif", save_all=True, append_images=frames[1:])
    load_splits(dataset_spec(tmp_path / "own"), "unused", 1, None, experiment)
    (line,) = [r.getMessage() for r in caplog.records if "not used" in r.getMessage()]
    assert "train 35 images (ant 21, cat 14); val 5 images" in line and "test 11 images (ant 6, cat 5)" in line
    assert "9 px (as they are)" in line and str(experiment.unused_file) in line
    assert "not used: 2 not an image (.doc 1, .txt 1), 3 in a sub-folder (cat/more 3), 1 beside the class folders, " in line
    assert "2 later pages of 1 files (cat/film.gif)" in line
    assert len(listed(experiment)) == 7 and ("cat/more/000.png", "in a sub-folder", "cat/more") in listed(experiment)


def test_many_classes_are_summed_up(tmp_path, caplog):
    caplog.set_level("INFO")
    numbered_images(tmp_path, {f"c{i}": 10 + i for i in range(7)})
    load_splits(dataset_spec(tmp_path), "unused")
    assert "in each of 7 classes; val" in caplog.text and "not used: none" in caplog.text


def test_the_counts_of_many_classes_are_in_a_file(tmp_path, caplog, experiment):
    caplog.set_level("INFO")
    numbered_images(tmp_path / "own", {f"c{i}\n": 10 + 10 * i for i in range(7)})
    splits = load_splits(dataset_spec(tmp_path / "own"), "unused", 1, None, experiment)
    assert f"not used: none (images of each class: {experiment.used_file})" in caplog.text
    with open(experiment.used_file, newline="") as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file)]
    assert (
        len(rows) == 21
        and rows[0][:2] == ("train", "c0\\n")
        and rows[-1] == ("test", "c6\\n", str(sum(splits.test.labels == 6)))
    )
    assert sum(int(count) for *_, count in rows) == sum(10 + 10 * i for i in range(7))


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_images_in_two_splits_are_counted_and_listed(tmp_path, caplog, experiment, kind):
    if kind == "folder":
        for first, split, count in ((0, "train", 6), (4, "test", 6), (20, "val", 2)):
            numbered_images(tmp_path / "own" / split, {"ant": count, "cat": count}, first=first)
        Image.new("RGB", (9, 9), (0, 1, 0)).save(tmp_path / "own/train/cat/other_label.png")
        spec, row = (
            dataset_spec(tmp_path / "own"),
            ("test/ant/004.png", "test: the same pixels as in train", "train/ant/004.png"),
        )
    else:
        arrays = npz_arrays()
        arrays["test_images"][:2] = arrays["train_images"][:2]
        spec, row = (own_npz(tmp_path, **arrays), ("test_images[1]", "test: the same pixels as in train", "train_images[1]"))
    load_splits(spec, "unused", 1, None, experiment)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert f"{4 if kind == 'folder' else 2} of test in train too" in warning and str(experiment.unused_file) in warning
    assert ("1 under another label" in warning) == (kind == "folder")
    assert row in listed(experiment)


@pytest.mark.parametrize("labels, places, pairs", [
    ([0, 0, 0], [0, 0, 0], []), ([0, 0, 0], [0, 1, 2], [(1, 0), (2, 0), (2, 1)]), ([0, 1, 2, 2], [0] * 4, [(1, 0), (2, 0), (3, 0)]),
    ([0, 1, 1], [0, 0, 2], [(1, 0), (2, 1), (2, 0)]), ([0] * 9, [0] * 8 + [2], [(8, 0)]), ([0, 1], [0, 2], [(1, 0)]),
])  # fmt: skip
def test_pairs_of_images_that_do_harm(labels, places, pairs):
    assert partners(list(range(len(labels))), np.array(places), np.array(labels)) == pairs


def test_clean_data_leave_no_list(tmp_path, caplog, experiment):
    experiment.unused_file.parent.mkdir(parents=True)
    experiment.unused_file.write_text("of an earlier time")
    numbered_images(tmp_path / "own", {"ant": 30, "cat": 20})
    load_splits(dataset_spec(tmp_path / "own"), "unused", 1, None, experiment)
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not warnings and not experiment.unused_file.exists()


def test_names_that_cannot_be_printed_are_listed(tmp_path, experiment):
    numbered_images(tmp_path / "own", {"ant": 12, "c\udcff\u202e\n": 12})
    (tmp_path / "own/ant/\udcfe.txt").write_text("text")
    load_splits(dataset_spec(tmp_path / "own"), "unused", 1, None, experiment)
    assert listed(experiment)[0] == ("ant/\\udcfe.txt", "not an image", ".txt")
    again = load_splits(dataset_spec(tmp_path / "own"), "unused", 2, None, experiment)
    assert len(again.train.labels) == 16


@pytest.mark.parametrize("channels", [(), (3,)])
def test_loading_takes_little_more_memory_than_the_images(tmp_path, channels):
    """`python -m bench.memory` measures 100,000 images, of a folder too."""
    import tracemalloc

    shares = {"train": 14_000, "val": 2_000, "test": 4_000}
    rng = np.random.default_rng(0)
    arrays = {f"{s}_images": rng.integers(0, 256, (n, 32, 32, *channels), np.uint8) for s, n in shares.items()}
    np.savez(tmp_path / "cells.npz", **arrays, **{f"{s}_labels": np.arange(n) % 3 for s, n in shares.items()})
    arrays.clear()
    tracemalloc.start()
    try:
        splits = load_splits(dataset_spec(tmp_path / "cells.npz"), "unused", side=32)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.1 * sum(split.images.nbytes for split in splits)


def test_loading_a_folder_takes_little_more_memory_than_the_images(tmp_path, experiment):
    """About 1 KB an image, its name and hash, when it is divided and when its split is on record: no second copy of 3 KB."""
    import tracemalloc

    import sklearn.model_selection  # noqa: F401  what is imported is not what is loaded

    rng, count = np.random.default_rng(0), 5_000
    for label in range(2):
        (tmp_path / f"own/{label}").mkdir(parents=True)
    for i in range(count):
        pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"own/{i % 2}/{i:04d}.png", compress_level=0)
    spec = dataset_spec(tmp_path / "own")
    load_splits(spec, "unused", 1, 32, Experiment(tmp_path, "before", "own"))  # imports and caches are no images
    for on_record in (False, True):
        assert experiment.split_file.exists() == on_record
        tracemalloc.start()
        try:
            splits = load_splits(spec, "unused", 1, 32, experiment)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        size = sum(split.images.nbytes for split in splits)
        assert size == count * 32 * 32 * 3 and peak < size + 2_000 * count, (peak - size) / count


# The split of an experiment


def own_folder(tmp_path, layout="all"):
    folder = tmp_path / "own"
    numbered_images(folder / ("train" if layout == "train" else ""), {"ant": 20, "cat": 15})
    if layout == "train":
        numbered_images(folder / "test", {"ant": 2, "cat": 2}, first=200)
    return folder


def same(a, b):
    return all(np.array_equal(x.images, y.images) and np.array_equal(x.labels, y.labels) for x, y in zip(a, b))


def test_copies_of_a_file_stay_in_one_part(tmp_path, experiment, caplog):
    """As sync programs leave them: no test image is one that was learnt from, unless it is in two classes, of which is warned."""
    caplog.set_level("INFO")
    folder, alone = own_folder(tmp_path), own_folder(tmp_path / "alone")
    for file in sorted(folder.glob("*/*")):
        shutil.copy(file, file.with_name(f"zz {file.name}"))
    splits = load_splits(dataset_spec(folder), "unused", 1, None, experiment)
    assert "35 files are copies of others" in caplog.text and "equal pixels" not in caplog.text
    hashes = [set(image_hashes(split.images)) for split in splits]
    assert sum(map(len, hashes)) == len(set.union(*hashes)) == 35 and sum(len(split.labels) for split in splits) == 70
    for split, of_alone in zip(splits, load_splits(dataset_spec(alone), "unused", 1)):
        others = split.images[: len(of_alone.labels)]
        assert np.array_equal(others, of_alone.images)  # they lie where they would without the copies
    assert same(splits, load_splits(dataset_spec(folder), "unused", 2, None, experiment))
    assert "synthetic images, planned by the number of files" not in caplog.text
    for number in range(40):
        shutil.copy(folder / "ant/zz 000.png", folder / f"ant/again {number}.png")
    spec = dataset_spec(folder)
    real = len(load_splits(spec, "unused", 1).train.labels)
    assert (
        real != spec.unit
        and f"1x is {spec.unit} synthetic images, planned by the number of files; there are {real} real" in caplog.text
    )
    for number in range(40):
        (folder / f"ant/again {number}.png").unlink()
    shutil.copy(folder / "ant/zz 000.png", folder / "cat/in two classes.png")
    load_splits(dataset_spec(folder), "unused", 1)
    assert "35 files are copies of others" in caplog.text.split("equal pixels")[0] and "another label" in caplog.text


@pytest.mark.parametrize("layout", ["all", "train"])
def test_the_split_belongs_to_the_experiment(tmp_path, experiment, layout):
    """Made by the first stage's seed, and the same for every other one; another experiment divides anew."""
    folder = own_folder(tmp_path, layout)
    first = load_splits(dataset_spec(folder), "unused", 1, None, experiment)
    assert same(first, load_splits(dataset_spec(folder), "unused", 1))
    assert same(first, load_splits(dataset_spec(folder), "unused", 2, None, experiment))
    other = load_splits(dataset_spec(folder), "unused", 2, None, Experiment(experiment.root, "0002", "own"))
    assert not same(first, other)
    record = json.loads(experiment.split_file.read_text())
    assert {split: len(files) for split, files in record["files"].items()} == (
        {"test": 7, "train": 24, "val": 4} if layout == "all" else {"train": 28, "val": 7}
    )
    name, digest = next(iter(record["files"]["val"].items()))
    assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_a_copy_elsewhere_has_the_same_split(tmp_path, experiment):
    folder = own_folder(tmp_path)
    first = load_splits(dataset_spec(folder), "unused", 1, None, experiment)
    shutil.move(folder, tmp_path / "moved")
    assert same(first, load_splits(dataset_spec(tmp_path / "moved"), "unused", 2, None, experiment))


def test_a_copy_from_a_system_of_another_unicode_form_has_the_same_split(tmp_path, experiment):
    folder = own_folder(tmp_path)
    (folder / "ant").rename(folder / "k\N{LATIN SMALL LETTER A WITH DIAERESIS}fer")
    first = load_splits(dataset_spec(folder), "unused", 1, None, experiment)
    (folder / "k\N{LATIN SMALL LETTER A WITH DIAERESIS}fer").rename(folder / "ka\N{COMBINING DIAERESIS}fer")
    assert same(first, load_splits(dataset_spec(folder), "unused", 2, None, experiment))


@pytest.mark.parametrize("change, told", [
    (lambda folder: (folder / "ant/003.png").unlink(), r"1 gone \(ant/003.png\)"),
    (lambda folder: shutil.copy(folder / "ant/003.png", folder / "ant/x.png"), r"1 new \(ant/x.png\)"),
    (lambda folder: shutil.copy(folder / "ant/004.png", folder / "ant/003.png"), r"1 changed \(ant/003.png\)"),
    (lambda folder: shutil.move(folder / "ant/003.png", folder / "cat/z.png"), r"1 gone \(ant/003.png\); 1 new \(cat/z.png\)"),
    (lambda folder: [path.unlink() for path in sorted((folder / "ant").iterdir())[:5]], r"5 gone \(ant/000.png, .*, \.\.\.\)"),
])  # fmt: skip
def test_changed_files_are_named(tmp_path, experiment, change, told):
    folder = own_folder(tmp_path)
    load_splits(dataset_spec(folder), "unused", 1, None, experiment)
    before = experiment.split_file.read_bytes()
    change(folder)
    with pytest.raises(
        UserError, match=f"changed since this experiment divided them: {told}. Put them back, or use another --exp"
    ):
        load_splits(dataset_spec(folder), "unused", 1, None, experiment)
    assert experiment.split_file.read_bytes() == before


def test_broken_files_have_their_place_in_the_split(tmp_path, experiment):
    folder = own_folder(tmp_path)
    cut = folder / "ant/003.png"
    whole = cut.read_bytes()
    cut.write_bytes(whole[:45])
    spec = dataset_spec(folder, skip_broken=True)
    first = load_splits(spec, "unused", 1, None, experiment)
    assert same(first, load_splits(dataset_spec(folder, skip_broken=True), "unused", 2, None, experiment))
    cut.write_bytes(whole)
    with pytest.raises(UserError, match=r"1 changed \(ant/003.png\)"):
        load_splits(dataset_spec(folder, skip_broken=True), "unused", 1, None, experiment)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"files": {"train": []}}',
        '{"files": {"train": {}, "val": 3}}',
        '{"files": {"train": {"a": "ff"}, "val": {}}}',
        '{"files": {"train": {}, "val": {"a": null}}}',
    ],
)
def test_a_record_that_is_none_is_refused(tmp_path, experiment, content):
    folder = own_folder(tmp_path)
    experiment.split_file.parent.mkdir(parents=True)
    experiment.split_file.write_text(content)
    with pytest.raises(UserError, match="own.json"):
        load_splits(dataset_spec(folder), "unused", 1, None, experiment)


def test_folders_with_all_splits_and_other_sources_leave_no_record(tmp_path, experiment):
    for i, split in enumerate(SPLITS):
        numbered_images(tmp_path / "own" / split, {"ant": 3, "cat": 3}, first=10 * i)
    load_splits(dataset_spec(tmp_path / "own"), "unused", 1, None, experiment)
    load_splits(DATASETS["digits"], "unused", 1, None, Experiment(experiment.root, "0001", "digits"))
    assert not experiment.root.exists()


def test_two_processes_that_divide_at_once_agree(tmp_path, experiment, monkeypatch):
    """The one that comes second takes the record of the first, or says what to do where its seed was another."""
    folder = own_folder(tmp_path)
    load_splits(dataset_spec(folder), "unused", 1, None, experiment)
    late = iter([None])
    known = loaders.recorded_split
    monkeypatch.setattr(loaders, "recorded_split", lambda e: next(late, known(e)))
    load_splits(dataset_spec(folder), "unused", 1, None, experiment)
    late = iter([None])
    with pytest.raises(UserError, match="another process has divided the images at the same time"):
        load_splits(dataset_spec(folder), "unused", 2, None, experiment)


# Identity


def test_data_are_identified_by_content(tmp_path, experiment):
    folder = own_folder(tmp_path)
    spec = dataset_spec(folder)
    splits = load_splits(spec, "unused", 1, None, experiment)
    known = data_identity(splits, spec)
    assert list(known) == ["classes", "resolution", *SPLITS] and known["classes"] == ["ant", "cat"] and known["resolution"] == 9
    assert all(re.fullmatch("[0-9a-f]{64}", known[split]) for split in SPLITS)

    for split, (images, labels) in zip(SPLITS, splits):  # the same as a folder with splits, elsewhere, in another format
        for i, (image, label) in enumerate(zip(images, labels)):
            path = tmp_path / "copy" / split / spec.classes[label] / f"{i:03d}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    copy = dataset_spec(tmp_path / "copy")
    read = load_splits(copy, "unused")
    order = [np.lexsort((np.arange(len(s.labels)), s.labels)) for s in splits]
    sorted_splits = Splits(*(Split(s.images[o], s.labels[o]) for s, o in zip(splits, order)))
    assert data_identity(read, copy) == data_identity(sorted_splits, spec)


def test_identity_sees_every_change():
    images, labels = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8), np.arange(5, dtype=np.int32) % 2
    spec = DATASETS["digits"]

    def of(images, labels):
        return data_identity(Splits(*[Split(images, labels)] * 3), spec)["val"]

    known, other = of(images, labels), images.copy()
    other[4, 3, 3, 2] ^= 1
    changed = {
        of(other, labels),
        of(images, np.roll(labels, 1)),
        of(images[::-1], labels),
        of(images.reshape(5, 2, 8, 3), labels),
    }
    assert known not in changed and len(changed) == 4
    wide = np.zeros((5, 4, 8, 3), np.uint8)
    wide[:, :, ::2] = images
    assert of(wide[:, :, ::2], labels.astype(np.int64)) == known  # a view that is not contiguous


# Resizing


def test_resize_images():
    images = np.zeros((2, 8, 8, 3), np.uint8)
    images[1, :, ::2] = 200  # stripes of one px: antialiasing makes them grey
    assert resize_images(images, 8) is images
    small = resize_images(images, 4)
    assert small.shape == (2, 4, 4, 3) and small.dtype == np.uint8
    assert (small[0] == 0).all() and np.abs(small[1, :, 1:-1].astype(int) - 100).max() < 20
    large = resize_images(np.full((1, 8, 8, 3), 7, np.uint8), 20)
    assert large.shape == (1, 20, 20, 3) and (large == 7).all()


@pytest.mark.parametrize("side", [5, 8, 20, 40])
def test_bilinear_is_the_published_filter(tmp_path, side):
    """tf.image.resize without antialiasing: the four nearest pixels."""
    from keras import ops

    images = np.random.default_rng(1).integers(0, 256, (2, 20, 20, 3), np.uint8)
    expected = np.asarray(ops.image.resize(images.astype("float32"), (side, side), "bilinear", antialias=False))
    resized = resize_images(images, side, "bilinear")
    assert np.abs(resized - expected).max() <= 0.5 + 1e-3 and abs((resized - expected).mean()) < 0.05
    Image.fromarray(images[0]).save(tmp_path / "image.png")
    assert np.array_equal(read_images([tmp_path / "image.png"], side, "bilinear")[0], resized[0])


def test_dark_images_and_classes_that_differ_in_case_are_warned_of(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("Data.oddities.DARK", 32)
    for name in ("Cat", "cat"):
        (tmp_path / "own" / name).mkdir(parents=True)
        for i in range(12):
            Image.new("L", (8, 8), i).save(tmp_path / "own" / name / f"{i}.png")
    load_splits(dataset_spec(tmp_path / "own"), "unused", 1)
    said = "train: the brightest pixel of all images of these classes is below 32 of 255, stored in another range? Cat (11), cat (11)"
    assert said in caplog.text and "own, test: the brightest" in caplog.text
    assert "differ only in case or blanks are classes of their own: 'Cat', 'cat'" in caplog.text


def test_words_in_two_unicode_forms_are_one_class(tmp_path, caplog):
    names = [unicodedata.normalize(form, "été") for form in ("NFC", "NFD")] + ["hiver", "hiver "]
    images = np.zeros((8, 6, 6, 3), np.uint8) + np.arange(8, dtype=np.uint8)[:, None, None, None] * 30
    arrays = {f"{split}_images": images + i for i, split in enumerate(("train", "val", "test"))}
    np.savez(tmp_path / "a.npz", **arrays, **{f"{s}_labels": np.array(names * 2) for s in ("train", "val", "test")})
    spec = dataset_spec(str(tmp_path / "a.npz"))
    load_splits(spec, tmp_path)
    assert spec.classes == ("hiver", "hiver ", names[0]) and "differ only in case or blanks" in caplog.text


def test_labels_that_are_no_array_are_one_line(tmp_path):
    images = np.zeros((4, 8, 8, 3), np.uint8)
    labels = {f"{split}_labels": np.arange(4) % 2 for split in ("val", "test")}
    np.savez(tmp_path / "own.npz", **{f"{split}_images": images for split in ("train", "val", "test")}, **labels)
    with zipfile.ZipFile(tmp_path / "own.npz", "a") as archive:
        archive.writestr("train_labels", "cat dog cat dog")
    with pytest.raises(UserError, match="train_labels is no array of NumPy"):
        dataset_spec(str(tmp_path / "own.npz"))


def test_a_split_without_images_is_named_where_labels_are_words(tmp_path):
    arrays = {f"{split}_images": np.zeros((n, 8, 8, 3), np.uint8) for split, n in (("train", 4), ("val", 0), ("test", 4))}
    arrays |= {f"{name.split('_')[0]}_labels": np.array(["cat", "dog"] * 2)[: len(of)] for name, of in arrays.items()}
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(UserError, match="val"):
        load_splits(dataset_spec(str(tmp_path / "own.npz")), tmp_path)


def test_a_folder_named_as_a_published_dataset_keeps_apart(tmp_path, monkeypatch, caplog):
    for name in ("digits", "CIFAR10"):
        write_pets(tmp_path).rename(tmp_path / name)
        assert dataset_spec(str(tmp_path / name)).name == f"{name}_own"
    monkeypatch.chdir(tmp_path)
    for text, said in (("digits", True), ("./digits", False)):
        caplog.clear()
        for _ in range(2):  # once, however often flags are parsed
            finish_args(new_parser("x"), ["--dataset", text])
        assert caplog.text.count("is the published dataset") <= 1
        assert ("is the published dataset, not the folder" in caplog.text) == said
