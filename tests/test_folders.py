"""Folders as people have them: which files are used, and that nothing is left out without a word."""

import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from Data.folders import Unused, dataset_root, folder_splits, scan_folder
from Experiment.errors import UserError
from Experiment.text import shown


def image_folder(path, counts, size=(20, 16), suffix=".png"):
    """Class folders with `counts` {class: images}."""
    for name, count in counts.items():
        (path / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", size, (i, len(name), 0)).save(path / name / f"{i}{suffix}", format="PNG")
    return path


def names(scan):
    return {split: listing.files for split, listing in scan.splits.items()}


# Splits


@pytest.mark.parametrize("folders, found", [
    (["Train", "TEST"], {"train": "Train", "test": "TEST"}),
    (["train", "validation", "test"], {"train": "train", "val": "validation", "test": "test"}),
    (["Training", "dev", "testing"], {"train": "Training", "val": "dev", "test": "testing"}),
    (["train", "valid", "test", "notes"], {"train": "train", "val": "valid", "test": "test"}),
    (["cats", "dogs"], {"all": ""}), (["bus", "car", "train"], {"all": ""}), (["bus", "test"], {"all": ""}),
])  # fmt: skip
def test_folder_splits(tmp_path, folders, found):
    for name in folders:
        (tmp_path / name).mkdir()
    assert folder_splits(tmp_path) == {split: tmp_path / name for split, name in found.items()}


@pytest.mark.parametrize("folders", [["train"], ["train", "val"], ["test", "val"], ["train/cat", "notes"]])
def test_half_a_set_of_splits_is_refused(tmp_path, folders):
    for name in folders:
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(UserError, match="needs train and test"):
        folder_splits(tmp_path)


@pytest.mark.parametrize("first, second", [("val", "valid"), ("Train", "train"), ("test", "testing")])
def test_two_folders_of_one_split(tmp_path, first, second):
    for name in {"train", "test", first, second}:
        image_folder(tmp_path / name, {"a": 1, "b": 1})
    with pytest.raises(UserError, match=f"two folders of one split: {first} and {second}"):
        scan_folder(tmp_path)


def test_other_folders_beside_splits_are_named(tmp_path):
    for name in ("train", "test", "TEST_SIMPLE"):
        image_folder(tmp_path / name, {"a": 2, "b": 1})
    scan = scan_folder(tmp_path)
    assert set(scan.splits) == {"train", "test"}
    assert [(u.file, u.reason, u.detail) for u in scan.unused] == [
        (f"TEST_SIMPLE/{name}.png", "in other folders", "TEST_SIMPLE") for name in ("a/0", "a/1", "b/0")
    ]


def test_what_lies_beside_the_one_folder_that_is_the_dataset_is_named(tmp_path):
    image_folder(tmp_path / "sorted", {"a": 2, "b": 1})
    Image.new("RGB", (9, 9)).save(tmp_path / "unsorted.png")
    (tmp_path / "notes.txt").write_text("hello")
    scan = scan_folder(tmp_path)
    assert scan.path == tmp_path / "sorted"
    assert [(u.file, u.reason) for u in scan.unused] == [
        ("../notes.txt", "not an image"),
        ("../unsorted.png", "beside the class folders"),
    ]


def test_photographs_that_are_in_icloud_alone_are_an_error(tmp_path):
    image_folder(tmp_path, {"a": 2, "b": 1})
    (tmp_path / "b" / ".IMG_1.jpg.icloud").write_bytes(b"bplist00")
    with pytest.raises(UserError, match=r"\.IMG_1\.jpg\.icloud stands for a file that is in iCloud alone"):
        scan_folder(tmp_path)


def test_files_have_one_order_however_a_system_spells_their_names(tmp_path):
    orders = []
    for form in ("NFC", "NFD"):
        of_form = [unicodedata.normalize(form, name) for name in ("été", "fox", "zoo", "eva")]
        for name in of_form:
            image_folder(tmp_path / form, {name: 1})
            image_folder(tmp_path / form, {"a": 0})
            Image.new("RGB", (9, 9)).save(tmp_path / form / "a" / f"{name}.png")
        scan = scan_folder(tmp_path / form)
        orders.append([unicodedata.normalize("NFC", file) for file in scan.splits["all"].files])
    assert orders[0] == orders[1] and len(orders[0]) == 8


def test_flat_splits_are_no_classes(tmp_path):
    image_folder(tmp_path, {"train": 3, "test": 3})
    with pytest.raises(UserError, match="train holds no class folders"):
        scan_folder(tmp_path)


def test_classes_of_splits_must_be_the_same(tmp_path):
    image_folder(tmp_path / "train", {"ant": 1, "cat": 1})
    image_folder(tmp_path / "test", {"ant": 1, "dog": 1})
    with pytest.raises(UserError, match="test has other classes than the training images: cat, dog"):
        scan_folder(tmp_path)


def test_a_class_without_images_in_a_split(tmp_path):
    image_folder(tmp_path / "train", {"ant": 1, "cat": 1})
    image_folder(tmp_path / "val", {"ant": 1, "cat": 0})
    image_folder(tmp_path / "test", {"ant": 1, "cat": 1})
    with pytest.raises(UserError, match="val: these class folders hold no images: cat"):
        scan_folder(tmp_path)


# One level down


@pytest.mark.parametrize("inner", [["train", "test"], [""]])
def test_a_dataset_one_level_down(tmp_path, inner):
    for split in inner:
        image_folder(tmp_path / "set/set" / split, {"a": 1, "b": 1})
    (tmp_path / "set/__MACOSX/set").mkdir(parents=True)
    (tmp_path / "set/README.txt").write_text("a dataset")
    assert dataset_root(tmp_path / "set") == tmp_path / "set/set"


def test_several_datasets_one_level_down_are_named(tmp_path):
    for name in ("small", "large"):
        image_folder(tmp_path / name, {"a": 1, "b": 1})
    with pytest.raises(UserError, match="these hold folders with images: large, small. Name the one"):
        scan_folder(tmp_path)


def test_a_dataset_beside_something_else_is_named(tmp_path):
    image_folder(tmp_path / "images/train", {"a": 1, "b": 1})
    image_folder(tmp_path / "images/test", {"a": 1, "b": 1})
    (tmp_path / "docs").mkdir()
    with pytest.raises(UserError, match="folders with images: images. Name"):
        scan_folder(tmp_path)


# Classes


@pytest.mark.parametrize(
    "name", ["Käfer", "a b", "-dash", "a,b;c", "x" * 200, "\udcff", "\u202eabc", "日本", "a\nb", "'\"$(rm)", "0", "%s {}"]
)
def test_names_of_classes_are_whatever_a_file_system_allows(tmp_path, name):
    try:
        image_folder(tmp_path, {name: 2, "other": 1})
    except (OSError, UnicodeError):
        pytest.skip("this file system does not allow it")
    scan = scan_folder(tmp_path)
    assert scan.classes == tuple(sorted([name, "other"])) and "\n" not in shown(name)


def test_classes_sort_as_text(tmp_path):
    assert scan_folder(image_folder(tmp_path, {"a10": 1, "a2": 1, "B": 1, "b": 1})).classes == ("B", "a10", "a2", "b")


def test_one_name_in_two_unicode_forms(tmp_path):
    """What macOS and Linux make of the same name."""
    composed, decomposed = (unicodedata.normalize(form, "été") for form in ("NFC", "NFD"))
    image_folder(tmp_path / "train", {composed: 1, "b": 1})
    image_folder(tmp_path / "test", {decomposed: 1, "b": 1})
    scan = scan_folder(tmp_path)
    assert scan.classes == ("b", composed) and scan.splits["test"].files == ["test/b/0.png", f"test/{decomposed}/0.png"]
    image_folder(tmp_path / "train", {decomposed: 1})
    with pytest.raises(UserError, match="two folders of one class, été"):
        scan_folder(tmp_path)


def test_files_and_labels(tmp_path):
    image_folder(tmp_path, {"b": 2, "a": 1, ".cache": 1})
    scan = scan_folder(tmp_path)
    assert names(scan) == {"all": ["a/0.png", "b/0.png", "b/1.png"]} and scan.unused == []
    assert scan.splits["all"].labels.tolist() == [0, 1, 1] and scan.splits["all"].labels.dtype == np.int32


def test_no_class_folders(tmp_path):
    with pytest.raises(UserError, match="holds no class folders"):
        scan_folder(tmp_path)
    with pytest.raises(UserError, match="nowhere cannot be read"):
        scan_folder(tmp_path / "nowhere")


# What is not used


def test_nothing_is_left_out_without_a_word(tmp_path):
    image_folder(tmp_path, {"a": 2, "b": 2})
    image_folder(tmp_path / "a", {"more/deep": 2, ".thumbs": 3})
    (tmp_path / "a/notes.TXT").write_text("text")
    (tmp_path / "a/a.mov").write_bytes(b"\0\0\0\x18ftypqt  ")
    (tmp_path / "b/no_suffix").write_text("text")
    (tmp_path / "labels.csv").write_text("a")
    Image.new("RGB", (4, 4)).save(tmp_path / "beside.png")
    frames = [Image.new("L", (4, 4), i) for i in range(3)]
    frames[0].save(tmp_path / "b/film.gif", save_all=True, append_images=frames[1:])
    scan = scan_folder(tmp_path)
    assert names(scan) == {"all": ["a/0.png", "a/1.png", "b/0.png", "b/1.png", "b/film.gif"]}
    assert set(scan.unused) == {
        Unused("a/more/deep/0.png", "in a sub-folder", "a/more"), Unused("a/more/deep/1.png", "in a sub-folder", "a/more"),
        Unused("a/notes.TXT", "not an image", ".txt"), Unused("a/a.mov", "not an image", ".mov"),
        Unused("b/no_suffix", "not an image", "no suffix"), Unused("labels.csv", "not an image", ".csv"),
        Unused("beside.png", "beside the class folders"), Unused("b/film.gif", "later pages", "2"),
    }  # fmt: skip


def test_a_damaged_photograph_beside_the_class_folders_is_called_so(tmp_path):
    image_folder(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0cut")
    ((file, reason, detail),) = scan_folder(tmp_path).unused
    assert (file, reason) == ("cut.jpg", "broken") and detail


def test_what_systems_leave_is_ignored(tmp_path):
    image_folder(
        tmp_path, {"a": 1, "b": 1, "__MACOSX": 1, "@eaDir": 1, ".ipynb_checkpoints": 1, "$RECYCLE.BIN": 1, "lost+found": 0}
    )
    image_folder(tmp_path / "a", {"@eaDir": 2, "__MACOSX": 1})
    for name in (".DS_Store", "a/Thumbs.db", "a/desktop.ini", "a/._0.png", "b/Icon\r", "b/.hidden.png"):
        (tmp_path / name).write_bytes(b"x")
    scan = scan_folder(tmp_path)
    assert (scan.classes, scan.unused, scan.broken) == (("a", "b"), [], {})
    assert names(scan) == {"all": ["a/0.png", "b/0.png"]}


@pytest.mark.parametrize("file, content, why", [
    ("photo.mov", b"\0\0\0\x18ftypqt  ", ".mov: not an image"), ("photo.jpg", b"", "broken: it is empty"), ("sub/a.png", b"", "in a sub-folder"),
    ("photo.heic", b"\0\0\0\x18ftypheic", "broken: it is a HEIC photograph, .*convert it to JPEG or PNG first"),
])  # fmt: skip
def test_a_class_that_has_lost_all_its_files_says_why(tmp_path, file, content, why):
    image_folder(tmp_path, {"a": 1, "b": 0})
    (tmp_path / "b" / file).parent.mkdir(exist_ok=True)
    (tmp_path / "b" / file).write_bytes(content)
    with pytest.raises(UserError, match=rf"these class folders hold no images: b \({why}\)"):
        scan_folder(tmp_path)


def test_broken_images_are_told_from_what_is_none(tmp_path):
    image_folder(tmp_path, {"a": 1, "b": 1})
    for name in ("empty.png", "html.jpg"):
        (tmp_path / "a" / name).write_text("<html>" if "html" in name else "")
    (tmp_path / "a/gone.png").symlink_to("nowhere")
    scan = scan_folder(tmp_path)
    assert set(scan.broken) == {"a/empty.png", "a/html.jpg", "a/gone.png"} and names(scan) == {"all": ["a/0.png", "b/0.png"]}
    assert "empty" in scan.broken["a/empty.png"] and "no image" in scan.broken["a/html.jpg"]


@pytest.mark.parametrize("link", ["dogs", "train/dogs", "val"])
def test_a_class_or_split_that_is_not_mounted_is_missed(link, tmp_path):
    splits = [""] if link == "dogs" else ["train", "test"]
    for split in splits:
        image_folder(tmp_path / split, {"a": 3, "b": 3})
    (tmp_path / link).symlink_to("/mnt/not/mounted")
    with pytest.raises(UserError, match=f"{link} is a link to nothing: mount what it leads to, or remove it"):
        scan_folder(tmp_path)


def test_links_are_followed_once(tmp_path):
    image_folder(tmp_path / "elsewhere", {"a": 2})
    image_folder(tmp_path / "set", {"b": 1})
    (tmp_path / "set/a").symlink_to(tmp_path / "elsewhere/a")
    (tmp_path / "set/b/file.png").symlink_to(tmp_path / "elsewhere/a/0.png")
    (tmp_path / "set/b/loop").symlink_to(tmp_path / "set")
    (tmp_path / "set/b/self").symlink_to("self")
    scan = scan_folder(tmp_path / "set")
    assert names(scan) == {"all": ["a/0.png", "a/1.png", "b/0.png", "b/file.png"]}
    assert scan.unused == [Unused("b/loop", "in a sub-folder", "b/loop")] or [u.file for u in scan.unused] == [
        "b/loop",
        "b/self",
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission(tmp_path):
    image_folder(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "b").chmod(0)
    with pytest.raises(UserError, match="b cannot be read: .*Permission denied"):
        scan_folder(tmp_path)


# Sizes


def test_the_size_is_the_median(tmp_path):
    image_folder(tmp_path, {"a": 3, "b": 2}, size=(40, 30))
    Image.new("RGB", (6, 6)).save(tmp_path / "a/000.png")
    Image.new("RGB", (600, 2)).save(tmp_path / "b/pano.png")
    assert scan_folder(tmp_path).side == 30
