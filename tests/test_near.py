"""Copies that no hash of pixels finds, and what else makes the accuracy on one's own photographs too good."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from Data import near
from Data.doubts import OTHER_SIZE, doubts
from Data.identity import data_identity
from Data.loaders import Split, Splits, load_splits
from Data.near import near_copies
from Data.registry import dataset_spec
from Experiment.errors import UserError
from Experiment.paths import Experiment


def photographs(count, seed, side=64):
    """Smooth pictures with some fine detail, as PIL images."""
    rng = np.random.default_rng(seed)
    found = []
    for coarse in rng.integers(40, 200, (count, 6, 6, 1), np.uint8) + rng.integers(0, 40, (count, 6, 6, 3), np.uint8):
        pixels = np.asarray(Image.fromarray(coarse).resize((side, side), Image.BICUBIC), float)
        found.append(Image.fromarray(np.clip(pixels + rng.normal(0, 6, pixels.shape), 0, 255).astype("uint8")))
    return found


def compressed(image):
    memory = io.BytesIO()
    image.save(memory, "JPEG", quality=60)
    return Image.open(memory)


CHANGES = [compressed, lambda image: image.resize((32, 32), Image.BICUBIC), ImageOps.mirror]


def split_of(images, side=48):
    pixels = np.stack([np.asarray(image.convert("RGB").resize((side, side), Image.BILINEAR)) for image in images])
    return Split(pixels, np.arange(len(pixels)) % 2)


def test_copies_that_were_changed_are_found_and_other_photographs_are_not():
    train, others = photographs(40, seed=1), photographs(30, seed=2)
    copies = [change(image) for image, change in zip(train, 4 * CHANGES)]
    found, looked_at = near_copies(split_of(others + copies), split_of(train))
    assert found == [(30 + i, i) for i in range(12)] and looked_at == 42
    flat = [Image.new("RGB", (64, 64), (i, i, i)) for i in range(8)]  # nothing to be recognised by
    assert near_copies(split_of(flat), split_of(flat))[0] == []


def test_photographs_of_one_place_and_mirrored_ones_of_another_class_are_no_copies():
    (place,) = photographs(1, seed=4)
    scenes = []
    for i in range(60):  # each with a small thing of its own
        scene = place.copy()
        scene.paste((200 - i, 40 + 2 * i, 90), (3 + i // 10 * 9, 4 + i % 10 * 6, 8 + i // 10 * 9, 9 + i % 10 * 6))
        scenes.append(scene)
    assert near_copies(split_of(scenes[:30]), split_of(scenes[30:]))[0] == []
    arrows = photographs(12, seed=5)
    left, right = split_of(arrows), split_of([ImageOps.mirror(arrow) for arrow in arrows])
    assert len(near_copies(right, left)[0]) == 12
    assert near_copies(right._replace(labels=1 - right.labels), left)[0] == []


def test_photographs_of_one_kind_are_no_copies_however_the_kinds_differ():
    """Discs, bright ones and dark ones, with as little of their own as a standardised scan has: only the class is recognised."""
    distance = np.hypot(*(np.indices((48, 48)) - 23.5))[..., None]
    rng, labels = np.random.default_rng(6), np.arange(120) % 2
    discs = np.where(distance < 16, 80 + 120 * labels[:, None, None, None], 20) + rng.normal(0, 3, (120, 48, 48, 3))
    train, test = (Split(discs[half].astype("uint8"), labels[half]) for half in (slice(0, 60), slice(60, 120)))
    assert near_copies(test, train)[0] == []
    few = Split(train.images[:3], np.array([0, 1, 2]))  # the only one of its class is not its own background
    assert near_copies(Split(few.images[1:2], np.array([1])), few)[0] == [(0, 1)]


def test_of_many_a_part_is_looked_at(monkeypatch):
    train = photographs(20, seed=1)
    monkeypatch.setattr(near, "MOST_IMAGES", 10)
    found, looked_at = near_copies(split_of(train), split_of(train))
    assert looked_at == 10 and found == [(i, i) for i in range(0, 20, 2)]


@pytest.fixture
def folder(tmp_path):
    """Two classes in train, val and test; one test image is a training image at half of its size."""
    pictures = iter(photographs(40, seed=3))
    for split, count in (("train", 8), ("val", 3), ("test", 3)):
        for name in ("ant", "bee"):
            (tmp_path / "own" / split / name).mkdir(parents=True)
            for i in range(count):
                next(pictures).save(tmp_path / "own" / split / name / f"{i}.png")
    Image.open(tmp_path / "own/train/bee/4.png").resize((32, 32)).save(tmp_path / "own/test/bee/small.png")
    return tmp_path / "own"


def test_a_changed_copy_in_test_is_told_listed_and_doubted(folder, tmp_path, caplog):
    experiment = Experiment(tmp_path, "x", "own")
    spec = dataset_spec(str(folder))
    splits = load_splits(spec, "unused", experiment=experiment)
    told = "1 of 7 test images look like one in train (copies that were resized, compressed or mirrored?)"
    assert f"{told}, test/bee/small.png and train/bee/4.png for one" in caplog.text
    assert "test/bee/small.png,test: looks like one in train,train/bee/4.png" in experiment.unused_file.read_text()
    data = data_identity(splits, spec)
    assert doubts(splits, data, own=True) == doubts(splits, data) == [told]
    (folder / "test/bee/small.png").unlink()
    caplog.clear()
    splits = load_splits(spec := dataset_spec(str(folder)), "unused", experiment=experiment)
    assert "look like" not in caplog.text and doubts(splits, data_identity(splits, spec), own=True) == []


def test_a_generator_that_has_learnt_at_another_resolution_is_doubted():
    splits = Splits(*(split_of(photographs(4, seed)) for seed in (1, 2, 3)))
    data = {"resolution": 48, "train": "a" * 64}
    assert doubts(splits, data, [{"resolution": 48, "train": "a" * 64}], own=True) == []
    assert doubts(splits, data, [{"resolution": 47, "train": "a" * 64}], own=True) == [OTHER_SIZE]


def test_classes_of_small_photographs_and_dark_splits_are_told(folder, caplog, monkeypatch):
    monkeypatch.setattr("Data.oddities.DARK", 32)
    for i in range(8):
        photographs(1, i)[0].resize((12, 12)).save(folder / f"train/ant/{i}.png")
    for i in range(3):
        Image.new("RGB", (64, 64), (i, 1, 1)).save(folder / f"test/ant/{i}.png")
    load_splits(dataset_spec(str(folder)), "unused")
    assert (
        "photographs of these classes are enlarged, those of others are not, by which a classifier may tell them: ant (12 px)"
        in caplog.text
    )
    assert (
        "own, test: the brightest pixel of all images of these classes is below 32 of 255, stored in another range? ant (2)"
        in caplog.text
    )
    assert "own, train: the brightest" not in caplog.text


def test_lines_instead_of_photographs_are_refused_unless_a_size_is_asked_for(tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / "own" / name).mkdir(parents=True)
        for i in range(9):
            Image.new("RGB", (90, 1), (9 * i, 0, 0)).save(tmp_path / "own" / name / f"{i}.png")
    with pytest.raises(UserError, match="the images are seen at 1 px .* are these photographs"):
        dataset_spec(str(tmp_path / "own"))
    assert dataset_spec(str(tmp_path / "own"), resolution=8).resolution == 8
