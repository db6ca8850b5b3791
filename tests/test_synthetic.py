"""Synthetic datasets on disk: writing, resuming, finding, drawing subsets."""

import json

import numpy as np
import pytest
from PIL import Image

from Data.synthetic import (
    MANIFEST,
    SyntheticWriter,
    balanced_counts,
    find_synthetic,
    image_file,
    load_synthetic,
    synthetic_files,
)  # fmt: skip
from Experiment.errors import UserError

SETTINGS = {"seed": 5, "ugs": 1.5}


def picture(label, index):
    """An image that says which one it is, and is not of one colour."""
    image = np.random.default_rng([label, index]).integers(0, 256, (4, 4, 3), np.uint8)
    image[0, 0] = label, index, 0
    return image


def write_dataset(folder, counts, finish=True):
    writer = SyntheticWriter(folder, counts)
    writer.begin()
    numbers = writer.missing()
    for number in numbers:
        writer.write(number, picture(*writer.place(number)))
    if finish:
        writer.finish(SETTINGS)
    writer.drain()
    writer.close()
    return sorted(writer.place(number) for number in numbers)


def published_dataset(folder, counts):
    """A folder as the paper's authors released it: images without a manifest."""
    write_dataset(folder, counts, finish=False)
    return folder


@pytest.mark.parametrize("total, counts", [(10, [4, 3, 3]), (9, [3, 3, 3]), (2, [1, 1, 0]), (11, [4, 4, 3])])
def test_balanced_counts(total, counts):
    assert balanced_counts(total, 3) == counts


@pytest.mark.parametrize("total", [7, 2])  # with 2 images the last class has none
def test_what_is_written_can_be_read(tmp_path, total):
    counts = balanced_counts(total, 3)
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
        image_file(tmp_path, label, index).unlink()
    (tmp_path / "class_00" / ".partial-1-img_1.png").write_text("what a killed run leaves")
    (tmp_path / MANIFEST).unlink()
    assert write_dataset(tmp_path, [3, 2]) == [(0, 1), (1, 0)]  # only these
    assert (tmp_path / MANIFEST).read_text() == manifest
    assert write_dataset(tmp_path, [3, 2]) == []


def test_manifest_tells_other_images_apart(tmp_path):
    for name in ("a", "b"):
        write_dataset(tmp_path / name, [2, 2])
    Image.fromarray(picture(9, 9)).save(image_file(tmp_path / "b", 1, 1))
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


def test_more_than_100_classes(tmp_path):
    write_dataset(tmp_path, [1] * 102)
    assert [files[0].parent.name for files in synthetic_files(tmp_path, 102)][99:] == [
        "class_99",
        "class_100",
        "class_101",
    ]


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
    image_file(tmp_path, 1, 0).unlink()
    with pytest.raises(UserError, match=r"counts \[2, 2\] images a class, but there are \[2, 1\]"):
        synthetic_files(tmp_path, 2)


@pytest.mark.parametrize("wanted, name", [(1, "4"), (4, "4"), (5, "6Enc1Dif2Is5Ugs1"), (7, "8")])
def test_the_smallest_dataset_that_suffices_is_found(tmp_path, wanted, name):
    published_dataset(tmp_path / "8", [4, 4])
    write_dataset(tmp_path / "6Enc1Dif2Is5Ugs1", [3, 3])
    write_dataset(tmp_path / "4", [2, 2])
    (tmp_path / "notes").mkdir()
    (tmp_path / ".DS_Store").touch()
    assert find_synthetic(tmp_path, 2, wanted) == tmp_path / name


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
