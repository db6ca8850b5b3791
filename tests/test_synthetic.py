"""Synthetic datasets on disk: writing, resuming, finding, drawing subsets."""

import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from Data import decoded, sinks
from Data.generation import sheet_file
from Data.numbering import Balanced
from Data.set_hashes import kept_file
from Data.stored_set import load_synthetic
from Data.synthetic import MANIFEST, SyntheticWriter, find_synthetic, recipe, set_identity
from Experiment import disk
from Experiment.errors import UserError
from Experiment.files import read_json, write_json
from tests.conftest import synthetic_files

SETTINGS = {"seed": 5, "ugs": 1.5}


def picture(label, index):
    """An image that says which one it is, and is not of one colour."""
    image = np.random.default_rng([label, index]).integers(0, 256, (4, 4, 3), np.uint8)
    image[0, 0] = label % 256, index, 0
    return image


def write_dataset(folder, counts, finish=True, settings=SETTINGS):
    writer = SyntheticWriter(folder, counts)
    writer.begin()
    numbers = writer.missing()
    for number in numbers:
        writer.write(number, picture(*writer.place(number)))
    if finish:
        writer.finish(settings)
    writer.drain()
    writer.close()
    return sorted(writer.place(number) for number in numbers)


def published_dataset(folder, counts):
    """A folder as the paper's authors released it: images without a manifest."""
    write_dataset(folder, counts, finish=False)
    return folder


@pytest.mark.parametrize("total, counts", [(10, [4, 3, 3]), (9, [3, 3, 3]), (2, [1, 1, 0]), (11, [4, 4, 3])])
def test_balanced_counts(total, counts):
    assert Balanced(3).counts(total) == counts


@pytest.mark.parametrize("total", [7, 2])  # with 2 images the last class has none
def test_what_is_written_can_be_read(tmp_path, total):
    counts = Balanced(3).counts(total)
    written = write_dataset(tmp_path, counts)
    assert written == [(label, index) for label in range(3) for index in range(counts[label])]
    files = synthetic_files(tmp_path, 3)
    assert [len(of_class) for of_class in files] == counts
    for label, index in written:
        assert np.array_equal(np.asarray(Image.open(files[label][index])), picture(label, index))
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    assert manifest.items() >= ({"total": total, "counts": counts} | SETTINGS).items()
    assert not list(tmp_path.rglob(".partial*"))


def test_resuming_gives_the_same_manifest(tmp_path):
    write_dataset(tmp_path, [3, 2])
    manifest = (tmp_path / MANIFEST).read_text()
    for label, index in [(0, 1), (1, 0)]:
        (tmp_path / f"class_0{label}/img_{index}.png").unlink()
    (tmp_path / "class_00" / ".partial-1-img_1.png").write_text("what a killed run leaves")
    (tmp_path / MANIFEST).unlink()
    assert write_dataset(tmp_path, [3, 2]) == [(0, 1), (1, 0)]  # only these
    assert (tmp_path / MANIFEST).read_text() == manifest
    assert write_dataset(tmp_path, [3, 2]) == []


def test_a_killed_writer_leaves_no_image_in_a_class_folder(tmp_path, monkeypatch):
    """What reads a class folder as it is (Keras does) takes every .png for an image."""
    begun = []

    def killed(source, target):
        begun.append(Path(source))
        raise KeyboardInterrupt

    monkeypatch.setattr(sinks.os, "replace", killed)
    monkeypatch.setattr(Path, "unlink", lambda *args, **kwargs: None)
    writer = SyntheticWriter(tmp_path, [1])
    writer.begin()
    with pytest.raises(KeyboardInterrupt):
        writer.sink.put(0, b"png")
    writer.close()
    assert begun[0].parent == tmp_path and list((tmp_path / "class_00").iterdir()) == []


def test_class_folders_that_change_places_have_another_content(tmp_path):
    """Moving a folder changes nothing of its files, neither sizes nor times."""
    write_dataset(tmp_path / "set", [3, 3])
    before = set_identity(tmp_path / "set", ("a", "b"))["sha256"]
    (tmp_path / "set/class_00").rename(tmp_path / "set/x")
    (tmp_path / "set/class_01").rename(tmp_path / "set/class_00")
    (tmp_path / "set/x").rename(tmp_path / "set/class_01")
    assert set_identity(tmp_path / "set", ("a", "b"))["sha256"] != before


def test_images_that_the_manifest_does_not_count_are_named(tmp_path):
    write_dataset(tmp_path, [3, 2])
    shutil.copy(tmp_path / "class_00/img_1.png", tmp_path / "class_00/img_1 (copy).png")
    with pytest.raises(UserError, match=r"does not count: class_00/img_1 \(copy\)\.png\. Remove them"):
        synthetic_files(tmp_path, 2)


def test_manifest_tells_other_images_apart(tmp_path):
    for name in ("a", "b"):
        write_dataset(tmp_path / name, [2, 2])
    Image.fromarray(picture(9, 9)).save(tmp_path / "b/class_01/img_1.png")
    write_dataset(tmp_path / "b", [2, 2])
    a, b = (json.loads((tmp_path / name / MANIFEST).read_text())["sha256"] for name in ("a", "b"))
    assert a[0] == b[0] and a[1] != b[1]


def test_an_error_of_the_disk_is_not_lost(tmp_path):
    writer = SyntheticWriter(tmp_path, [1])
    writer.begin()
    (tmp_path / "class_00").rmdir()
    writer.write(0, picture(0, 0))
    with pytest.raises(FileNotFoundError):
        writer.finish(SETTINGS)
    writer.close()
    assert not (tmp_path / MANIFEST).exists()


def test_files_are_in_the_order_of_their_numbers(tmp_path):
    write_dataset(tmp_path, [12])
    names = [path.name for path in synthetic_files(tmp_path, 1)[0]]
    assert names == [f"img_{i}.png" for i in range(12)]


@pytest.mark.parametrize("classes, first, last", [(2, "class_00", "class_01"), (100, "class_00", "class_99"),
                                                  (101, "class_000", "class_100"), (1000, "class_000", "class_999")])  # fmt: skip
def test_class_folders_sort_as_labels_do(tmp_path, classes, first, last):
    write_dataset(tmp_path, [1] * classes)
    names = [files[0].parent.name for files in synthetic_files(tmp_path, classes)]
    assert names == sorted(names) and (names[0], names[-1]) == (first, last)


def test_published_folders_of_more_than_100_classes_are_read_and_continued(tmp_path):
    for label in range(102):
        (tmp_path / f"class_{label:02d}").mkdir()
        Image.fromarray(picture(label, 0)).save(tmp_path / f"class_{label:02d}/img_0.png")
    names = [files[0].parent.name for files in synthetic_files(tmp_path, 102)]
    assert names[99:] == ["class_99", "class_100", "class_101"]
    assert SyntheticWriter(tmp_path, [1] * 102).missing().tolist() == []
    images, labels = load_synthetic(tmp_path, 102, 4, 102, seed=1)
    assert images[:, 0, 0, 0].tolist() == labels.tolist() == list(range(102))


@pytest.mark.parametrize("counts, classes, reason", [
    ([1, 1], 3, r"class_00..class_02. Missing or too many: class_02$"),
    ([1, 1, 1], 2, r"class_00..class_01. Missing or too many: class_02$"),
])  # fmt: skip
def test_other_class_folders_are_refused(tmp_path, counts, classes, reason):
    write_dataset(tmp_path, counts)
    with pytest.raises(UserError, match=reason):
        synthetic_files(tmp_path, classes)


def test_a_manifest_that_contradicts_the_files_is_refused(tmp_path):
    write_dataset(tmp_path, [2, 2])
    (tmp_path / "class_01/img_0.png").unlink()
    with pytest.raises(UserError, match=r"counts \[2, 2\] images a class, but there are \[2, 1\]"):
        synthetic_files(tmp_path, 2)


@pytest.mark.parametrize("wanted, name", [(1, "4Enc1Dif2Is5Ugs1"), (4, "4Enc1Dif2Is5Ugs1"), (5, "6Enc1Dif2Is5Ugs1"),
                                          (7, "8Enc1Dif2Is5Ugs1")])  # fmt: skip
@pytest.mark.parametrize("make", [write_dataset, published_dataset])
def test_the_smallest_dataset_that_suffices_is_found(tmp_path, wanted, name, make):
    for total in (8, 6, 4):
        make(tmp_path / f"{total}Enc1Dif2Is5Ugs1", [total // 2] * 2)
    (tmp_path / "notes").mkdir()
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "4Enc1Dif2Is5Ugs1.samples.png").touch()
    assert find_synthetic(tmp_path, 2, wanted) == tmp_path / name


def test_sets_of_several_settings_are_not_chosen_among(tmp_path):
    write_dataset(tmp_path / "4Enc1Dif2Is5Ugs1", [2, 2])
    write_dataset(tmp_path / "8Enc1Dif2Is5Ugs3", [4, 4], settings={"seed": 5, "ugs": 3})
    published_dataset(tmp_path / "12", [6, 6])
    with pytest.raises(UserError, match="4Enc1Dif2Is5Ugs1, 8Enc1Dif2Is5Ugs3; choose with --synthetic_dir") as error:
        find_synthetic(tmp_path, 2, 3)
    assert "12" in str(error.value)
    with pytest.raises(UserError, match="12, 8Enc1Dif2Is5Ugs3; choose"):
        find_synthetic(tmp_path, 2, 5)
    assert find_synthetic(tmp_path, 2, 9) == tmp_path / "12"


# What a set is


def test_content_is_the_same_wherever_it_lies(tmp_path):
    write_dataset(tmp_path / "a", [2, 2])
    copied = published_dataset(tmp_path / "elsewhere" / "b", [2, 2])
    known, read = set_identity(tmp_path / "a", ["cat", "dog"]), set_identity(copied, ["cat", "dog"])
    assert known["sha256"] == read["sha256"] and known["ugs"] == 1.5 and read.keys() == {"sha256"}
    Image.fromarray(picture(9, 9)).save(copied / "class_01/img_1.png")
    assert set_identity(copied, ["cat", "dog"]) != read


def test_a_set_of_other_classes_is_refused(tmp_path):
    write_dataset(tmp_path, [2, 2], settings={"classes": ["cat", "fish"]})
    with pytest.raises(UserError, match="is of other classes: cat, fish. The dataset has cat, dog"):
        set_identity(tmp_path, ("cat", "dog"))
    assert set_identity(tmp_path, ("cat", "fish"))["sha256"]


def test_a_recipe_is_that_of_an_earlier_version(tmp_path):
    """It recorded the pretrained UNet beside the epoch in its place, and where the data lie."""
    weights = {"decoder": "c" * 64, "dif": "d" * 64}
    write_dataset(tmp_path / "a", [1], settings={**SETTINGS, "weights": {"unet": "f" * 64, **weights}, "dataset": "/x"})
    write_dataset(tmp_path / "b", [1], settings={**SETTINGS, "weights": weights, "classes": ["cat"]})
    assert recipe(tmp_path / "a") == recipe(tmp_path / "b")
    assert recipe(tmp_path / "a")["weights"] == {"decoder": "c" * 8, "dif": "d" * 8}


# Decoded once


@pytest.mark.parametrize("mode", ["bilinear", "antialias"])
def test_decoded_images_are_the_same_and_are_decoded_once(tmp_path, monkeypatch, mode):
    write_dataset(tmp_path / "set", [20, 20, 20])
    plain = load_synthetic(tmp_path / "set", 3, 3, 17, 1, mode)
    first = load_synthetic(tmp_path / "set", 3, 3, 17, 1, mode, tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob("*.npy")
    assert np.load(file, mmap_mode="r").shape == (60, 3, 3, 3)
    monkeypatch.setattr(decoded, "read_images", None)
    again = load_synthetic(tmp_path / "set", 3, 3, 17, 1, mode, tmp_path / "cache")
    more = load_synthetic(tmp_path / "set", 3, 3, 60, 2, mode, tmp_path / "cache")
    for images, labels in (first, again):
        assert np.array_equal(images, plain[0]) and np.array_equal(labels, plain[1])
    assert np.array_equal(more[0], load_synthetic(tmp_path / "set", 3, 3, 60, 2, mode)[0])


@pytest.mark.parametrize("damage", ["deleted", "cut", "text", "other shape"])
def test_a_damaged_file_of_decoded_images_is_made_again(tmp_path, damage):
    write_dataset(tmp_path / "set", [5, 5])
    whole = load_synthetic(tmp_path / "set", 2, 4, 10, 1, cache=tmp_path / "cache")[0]
    (file,) = (tmp_path / "cache").glob("*.npy")
    before = file.read_bytes()
    file.unlink()
    if damage == "other shape":
        np.save(file, whole[:3])
    elif damage != "deleted":
        file.write_bytes({"cut": before[:-1], "text": b"no array"}[damage])
    assert np.array_equal(load_synthetic(tmp_path / "set", 2, 4, 10, 1, cache=tmp_path / "cache")[0], whole)
    assert file.read_bytes() == before
    assert [path.suffix for path in (tmp_path / "cache").iterdir() if not path.name.startswith(".")] == [".npy"]


def test_a_changed_pixel_of_the_decoded_images_is_noticed(tmp_path):
    write_dataset(tmp_path / "set", [5, 5])
    load_synthetic(tmp_path / "set", 2, 4, 10, 1, cache=tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob("*.npy")
    with open(file, "r+b") as stream:
        stream.seek(128 + 7)  # behind the header
        stream.write(b"\xab")
    with pytest.raises(UserError, match="is damaged: remove it"):
        load_synthetic(tmp_path / "set", 2, 4, 10, 1, cache=tmp_path / "cache")
    file.unlink()
    load_synthetic(tmp_path / "set", 2, 4, 10, 1, cache=tmp_path / "cache")


def test_other_content_sizes_and_modes_have_their_own_file(tmp_path):
    write_dataset(tmp_path / "set", [5, 5])
    for side, mode in ((4, "bilinear"), (3, "bilinear"), (3, "antialias")):
        load_synthetic(tmp_path / "set", 2, side, 10, 1, mode, tmp_path / "cache")
    Image.fromarray(picture(9, 9)).save(tmp_path / "set/class_01/img_1.png")
    write_dataset(tmp_path / "set", [5, 5])
    images = load_synthetic(tmp_path / "set", 2, 4, 10, 1, cache=tmp_path / "cache")[0]
    assert np.array_equal(images[6], picture(9, 9)) and len(list((tmp_path / "cache").glob("*.npy"))) == 4


def test_what_has_no_manifest_or_no_room_is_decoded_each_time(tmp_path, monkeypatch):
    published_dataset(tmp_path / "40k", [5, 5])
    load_synthetic(tmp_path / "40k", 2, 4, 10, 1, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    write_dataset(tmp_path / "set", [5, 5])
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    assert len(load_synthetic(tmp_path / "set", 2, 4, 6, 1, cache=tmp_path / "cache")[0]) == 6
    assert not list((tmp_path / "cache").glob("*.npy"))


def test_broken_images_are_named_and_nothing_is_kept(tmp_path):
    write_dataset(tmp_path / "set", [5, 5])
    (tmp_path / "set/class_01/img_3.png").write_bytes(b"spoilt")
    with pytest.raises(UserError, match="1 images cannot be read: .*img_3.png"):
        load_synthetic(tmp_path / "set", 2, 4, 2, 1, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.npy"))


# Other readers


@pytest.mark.parametrize("classes", [3, 102])
def test_keras_reads_a_set_with_its_labels(tmp_path, classes):
    import keras

    folder = tmp_path / "set"
    write_dataset(folder, [2] * classes)
    for name in ("generation.json", "run.json", "log.txt", ".lock"):
        (folder / name).write_text("{}")
    Image.fromarray(picture(0, 0)).save(sheet_file(folder))
    read = keras.utils.image_dataset_from_directory(folder, image_size=(4, 4), shuffle=False, batch_size=None)
    assert len(read.file_paths) == 2 * classes
    labels = [int(label) for _, label in read]
    assert labels == [int(image[0, 0, 0]) for image, _ in read] == np.repeat(range(classes), 2).tolist()


def test_a_published_folder_is_counted_by_its_files(tmp_path):
    published_dataset(tmp_path / "40k", [2, 2])
    assert find_synthetic(tmp_path, 2, 4) == tmp_path / "40k"
    with pytest.raises(UserError, match=r"has 5 images. There: 40k \(4 images\)"):
        find_synthetic(tmp_path, 2, 5)


def test_a_dataset_that_is_still_being_generated_is_not_taken(tmp_path):
    published_dataset(tmp_path / "4Enc1Dif1Is5Ugs1", [2, 2])
    (tmp_path / "4Enc1Dif1Is5Ugs1" / "generation.json").write_text("{}")
    with pytest.raises(UserError, match="There: none"):
        find_synthetic(tmp_path, 2, 4)


def test_a_folder_whose_generation_was_refused_is_not_in_the_way(tmp_path):
    write_dataset(tmp_path / "4Enc1Dif1Is5Ugs1", [2, 2])
    refused = tmp_path / "4Enc9Dif1Is5Ugs1"
    refused.mkdir()
    (refused / ".lock").write_text("process 1 on laptop")
    assert find_synthetic(tmp_path, 2, 4) == tmp_path / "4Enc1Dif1Is5Ugs1"


def test_two_datasets_of_the_same_size_are_ambiguous(tmp_path):
    for name in ("4Enc1Dif1Is5Ugs1", "4Enc2Dif1Is5Ugs1"):
        write_dataset(tmp_path / name, [2, 2])
    with pytest.raises(UserError, match="4Enc1Dif1Is5Ugs1, 4Enc2Dif1Is5Ugs1; choose with --synthetic_dir"):
        find_synthetic(tmp_path, 2, 3)


def test_no_folder_at_all(tmp_path):
    with pytest.raises(UserError, match="There: none. Run generate_dataset.py"):
        find_synthetic(tmp_path / "nowhere", 2, 1)


def test_subset_is_balanced_and_drawn_by_seed(tmp_path):
    write_dataset(tmp_path, [20, 20, 20])
    images, labels = load_synthetic(tmp_path, 3, 4, wanted=17, seed=1)
    assert images.shape == (17, 4, 4, 3) and np.bincount(labels).tolist() == [6, 6, 5]
    assert np.array_equal(images[:, 0, 0, 0], labels)
    drawn = [images[labels == label, 0, 0, 1].tolist() for label in range(3)]
    assert all(len(set(of_class)) == len(of_class) for of_class in drawn)
    assert drawn[0] != drawn[1] and max(drawn[0]) > 6  # not simply the first ones
    again, other = (load_synthetic(tmp_path, 3, 4, wanted=17, seed=seed)[0] for seed in (1, 2))
    assert np.array_equal(images, again) and not np.array_equal(images, other)


def test_images_are_resized_to_what_the_classifier_sees(tmp_path):
    write_dataset(tmp_path, [2])
    assert load_synthetic(tmp_path, 1, 3, wanted=2, seed=1)[0].shape == (2, 3, 3, 3)


def test_a_class_with_too_few_images(tmp_path):
    published_dataset(tmp_path, [3, 2])
    with pytest.raises(UserError, match="class 1 has 2 images, 3 are needed"):
        load_synthetic(tmp_path, 2, 4, wanted=6, seed=1)


def test_a_copy_is_read_whatever_its_manifest_says(tmp_path):
    """An image was edited; then all was copied, the manifest last: no time tells of it."""
    folder = small_set(tmp_path / "set")
    before = set_identity(folder, ["a", "b"])["sha256"]
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(synthetic_files(folder, 2)[1][0])
    edited = set_identity(folder, ["a", "b"])["sha256"]
    copy = shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("manifest.json"))
    shutil.copy(folder / "manifest.json", copy)
    assert edited != before and set_identity(copy, ["a", "b"])["sha256"] == edited


def test_the_content_of_a_set_is_computed_once(tmp_path, monkeypatch):
    folder = small_set(tmp_path / "set")
    shutil.copy(kept_file(folder), tmp_path / "noted.json")
    kept_file(folder).write_text("{damaged")
    before = set_identity(folder, ["a", "b"])
    assert read_json(kept_file(folder)) == read_json(tmp_path / "noted.json")
    monkeypatch.setattr("Data.set_hashes.class_hashes", None)
    assert set_identity(folder, ["a", "b"]) == before


def test_a_set_that_is_still_made_is_refused(tmp_path):
    folder = small_set(tmp_path / "set")
    (folder / "manifest.json").unlink()
    assert set_identity(folder, ["a", "b"])  # a published one
    write_json(folder / "generation.json", {})
    with pytest.raises(UserError, match="is not complete: the command that began it makes what is missing"):
        set_identity(folder, ["a", "b"])


def test_images_that_are_no_png_are_not_left_out_without_a_word(tmp_path, caplog):
    write_dataset(tmp_path, [2, 2])
    (tmp_path / "class_00" / "img_5.jpg").touch()
    first = tmp_path / "class_00" / "img_0.png"
    first.rename(first.with_suffix(".PNG"))  # as some programs write it
    assert len(synthetic_files(tmp_path, 2)[0]) == 2
    assert "class_00: 1 files are not PNG and are not used" in caplog.text


def small_set(folder):
    writer = SyntheticWriter(folder, [2, 2])
    writer.begin()
    for number in writer.missing():
        writer.write(number, np.full((5, 5, 3), 10 * number, np.uint8))
    writer.drain()
    writer.finish({})
    writer.close()
    return folder


@pytest.mark.parametrize("how", ["cp -p", "mv"])
def test_an_image_that_is_not_newer_makes_another_set_too(tmp_path, how):
    folder = small_set(tmp_path / "set")
    before = set_identity(folder, ["a", "b"])["sha256"]
    (one, _), (other, _) = synthetic_files(folder, 2)
    time.sleep(0.02)  # longer than a tick of the file system's clock
    if how == "cp -p":
        Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(tmp_path / "old.png")
        os.utime(tmp_path / "old.png", (1e9, 1e9))
        shutil.copy2(tmp_path / "old.png", other)
    else:
        one.rename(tmp_path / "t")
        other.rename(one)
        (tmp_path / "t").rename(other)
    assert set_identity(folder, ["a", "b"])["sha256"] != before
