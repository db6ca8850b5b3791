"""Real splits of every source, from tiny files made here."""

import hashlib
import io
import struct
import tarfile

import numpy as np
import pytest
from medmnist import INFO
from PIL import Image

from Data import loaders
from Data.loaders import class_names, load_splits, read_images, resize_images
from Data.registry import DATASETS, NPZ_KEYS, dataset_spec
from Experiment.errors import UserError


def numbers(split):
    """What tells the images of these tests apart: the first pixel's red and green."""
    return [tuple(image[0, 0, :2]) for image in split.images]


def numbered_images(path, counts, size=(9, 9), first=0):
    """Class folders of PNGs of one colour each: red is the class, green the number."""
    for label, (name, count) in enumerate(sorted(counts.items())):
        (path / name).mkdir(parents=True)
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


def test_data_dir_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="data.bin is not in"):
        fetch_file(tmp_path / "file", "file:///nowhere")


def test_a_file_with_another_hash_is_refused(tmp_path):
    (tmp_path / "data.bin").write_bytes(b"half a down")
    with pytest.raises(UserError, match="data.bin is not the official file: its MD5 is not [0-9a-f]{32}. Delete it"):
        fetch_file(tmp_path, "file:///nowhere")


# MedMNIST and npz


def npz_arrays(side=4, channels=(3,), **changes):
    arrays = {}
    for number, split in enumerate(("train", "val", "test")):
        images = np.full((3 - number, side, side, *channels), 10 * number, np.uint8)
        images[:, 0, 0] += np.arange(3 - number, dtype=np.uint8).reshape(-1, *[1] * len(channels))
        arrays |= {f"{split}_images": images, f"{split}_labels": np.arange(3 - number, dtype=np.uint8)[:, None]}
    return arrays | changes


def own_npz(tmp_path, **changes):
    np.savez(tmp_path / "cells.npz", **npz_arrays(**changes))
    return dataset_spec(tmp_path / "cells.npz")


@pytest.mark.parametrize("there, used", [
    ([""], ""), (["", "_64"], ""), (["_64"], "_64"), (["_64", "_128"], "_128"), (["_64", "_128", "_224"], "_224"),
])  # fmt: skip
def test_medmnist_takes_the_published_size_or_else_the_largest(tmp_path, monkeypatch, there, used):
    changes = {}
    for suffix in there:
        path = tmp_path / f"retinamnist{suffix}.npz"
        np.savez(path, **npz_arrays(side=int(suffix[1:] or 28)))
        changes[f"MD5{suffix}"] = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(INFO, "retinamnist", INFO["retinamnist"] | changes)
    splits = load_splits(DATASETS["retinamnist"], tmp_path)
    assert splits.train.images.shape[1] == int(used[1:] or 28)
    assert [s.labels.tolist() for s in splits] == [[0, 1, 2], [0, 1], [0]]


def test_medmnist_of_another_hash_is_refused(tmp_path):
    np.savez(tmp_path / "retinamnist.npz", **npz_arrays())
    with pytest.raises(UserError, match="retinamnist.npz is not the official file"):
        load_splits(DATASETS["retinamnist"], tmp_path)


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_npz(tmp_path, channels):
    splits = load_splits(own_npz(tmp_path, channels=channels), "unused")
    assert [s.images.shape for s in splits] == [(3, 4, 4, 3), (2, 4, 4, 3), (1, 4, 4, 3)]
    assert splits.val.images[1, 0, 0].tolist() == [11, 11, 11] and splits.val.labels.tolist() == [0, 1]
    assert all(s.images.dtype == np.uint8 and s.labels.dtype == np.int32 for s in splits)


@pytest.mark.parametrize("changes, reason", [
    ({"test_images": np.zeros((1, 4, 4, 3))}, "test_images must be uint8 .* Received: float64"),
    ({"val_images": np.zeros((2, 4, 4, 2), np.uint8)}, r"val_images must be uint8 .* Received: uint8 \(2, 4, 4, 2\)"),
    ({"val_labels": np.zeros((2, 14), int)}, r"val_labels must be integers .* Received: int64 \(2, 14\)"),
    ({"test_labels": np.zeros(1)}, "test_labels must be integers .* Received: float64"),
    ({"val_labels": np.array([0, 3])}, r"val: labels must be in 0..2. Received: 0..3"),
    ({"train_labels": np.array([-1, 1, 2])}, r"train: labels must be in 0..2. Received: -1..2"),
    ({"test_labels": np.zeros(2, int)}, "test: images must be .* with 2 labels"),
    ({"val_images": np.zeros((0, 4, 4, 3), np.uint8), "val_labels": np.zeros(0, int)}, "val: .* Received: none"),
])  # fmt: skip
def test_npz_that_does_not_fit_is_refused(tmp_path, changes, reason):
    with pytest.raises(UserError, match=reason):
        load_splits(own_npz(tmp_path, **changes), "unused")


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
    with pytest.raises(UserError, match="too few images"):
        load_splits(dataset_spec(tmp_path), "unused")


def test_classes_of_test_must_be_those_of_train(tmp_path):
    numbered_images(tmp_path / "train", {"ant": 5, "cat": 5})
    numbered_images(tmp_path / "test", {"ant": 1, "dog": 1})
    with pytest.raises(UserError, match="test has other classes than the training images: cat, dog"):
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
        image.paste(
            "green", ((size[0] - side) // 2, (size[1] - side) // 2, (size[0] + side) // 2, (size[1] + side) // 2)
        )
        image.save(paths[-1])
    images = read_images(paths, 8)
    assert images.shape == (4, 8, 8, 3) and (images == (0, 128, 0)).all()


def test_broken_images_are_listed(tmp_path, monkeypatch):
    numbered_images(tmp_path, {"ant": 3})
    good, cut, text = sorted((tmp_path / "ant").iterdir())
    cut.write_bytes(cut.read_bytes()[:45])
    text.write_text("no image")
    deep, huge = tmp_path / "deep.png", tmp_path / "huge.png"
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(deep)  # a conversion to 8 bits would make it white
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
    """Also when the first one, which tells the resolution, is broken; a class of which nothing is left is an error."""
    numbered_images(tmp_path, {"ant": 30, "cat": 20})
    first = sorted((tmp_path / "ant").iterdir())[0]
    first.write_bytes(first.read_bytes()[:20])
    with pytest.raises(UserError, match=f"{first} is not a readable image"):
        dataset_spec(tmp_path)
    splits = load_splits(dataset_spec(tmp_path, skip_broken=True), "unused", seed=1)
    together = sorted(n for split in splits for n in numbers(split))
    assert together == [(0, i) for i in range(1, 30)] + [(1, i) for i in range(20)]
    assert f"1 broken images are left out: {first}" in caplog.text
    for path in (tmp_path / "ant").iterdir():
        path.write_text("no image")
    with pytest.raises(UserError, match="no image of these classes can be read: ant"):
        load_splits(dataset_spec(tmp_path, skip_broken=True), "unused")


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
    assert np.abs(resized - expected).max() <= 1
    Image.fromarray(images[0]).save(tmp_path / "image.png")
    assert np.array_equal(read_images([tmp_path / "image.png"], side, "bilinear")[0], resized[0])
