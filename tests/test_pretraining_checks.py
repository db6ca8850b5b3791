"""Checks of a pretraining: no test image is among its photographs, and what its autoencoder keeps of test images."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from Data.loaders import load_splits
from Data.registry import dataset_spec
from Data.resizing import resize_images
from Experiment.errors import UserError
from Pretraining import bounds, neighbours
from tests.test_pretraining import write_photographs


def copy_of(pixels, rng):
    """uint8 (32, 32, 3): a square of a photograph anywhere in it, smaller, brighter, through JPEG."""
    picture = Image.fromarray(pixels)
    side = rng.uniform(0.75, 1) * min(picture.size)
    left, top = (picture.width - side) * rng.random(), (picture.height - side) * rng.random()
    small = np.asarray(picture.resize((32, 32), Image.BICUBIC, (left, top, left + side, top + side)))
    file = io.BytesIO()
    Image.fromarray(np.clip(0.9 * small + 20.0, 0, 255).astype("uint8")).save(file, "JPEG", quality=75)
    return np.asarray(Image.open(file).convert("RGB"))


def test_copies_are_found_and_others_are_not(tmp_path):
    folder = write_photographs(tmp_path / "photographs")
    listed, _ = neighbours.listed_photographs(folder, ["trash.tar", "caltech101.tar"])
    rng = np.random.default_rng(3)
    copies = [copy_of(pixels, rng) for pixels in neighbours.read_photographs(folder, listed)]
    copies[0] = copies[0][:, ::-1]
    coarse = np.random.default_rng(9).integers(0, 256, (20, 6, 6, 3)).astype("uint8")
    others = [np.asarray(Image.fromarray(image).resize((32, 32), Image.BICUBIC)) for image in coarse]
    flat = np.full((32, 32, 3), 90, "uint8")
    best, index = neighbours.nearest(np.stack([*copies, *others, flat]), folder, listed)
    # The second tar file is of the same pixels as the first one: which of the two is found does not matter.
    found = [np.asarray(picture) for picture in neighbours.read_photographs(folder, [listed[i] for i in index[:9]])]
    for picture, expected in zip(found, neighbours.read_photographs(folder, listed)):
        assert np.array_equal(picture, expected)
    assert (best[:9] > neighbours.THRESHOLD).all() and best[9:29].max() < 0.9 and best[29] == -1


def test_fine_texture_is_looked_for_though_it_is_nearly_flat_at_8_px():
    texture = np.indices((32, 32)).sum(0)[..., None] // 2 % 2 * 40 + np.arange(32)[:, None, None] // 4 + 90
    images = np.repeat(texture, 3, 2).astype("uint8")[None]
    coarse, fine = (neighbours.queries(images, side, least)[0] for side, least in
                    ((neighbours.COARSE, neighbours.LEAST), (neighbours.FINE, neighbours.FLAT)))  # fmt: skip
    assert not neighbours.queries(images, neighbours.COARSE, neighbours.FLAT)[0].any()
    assert coarse.any() and fine.any()


def test_the_command_ends_with_a_line(tmp_path, monkeypatch, capsys):
    folder = write_photographs(tmp_path / "photographs")
    flags = ["--photographs", str(folder), "--other_photographs", "--dataset"]
    args = neighbours.parse_args([*flags, "digits"])
    neighbours.compare(args, neighbours.plan(args))
    assert "digits: " in capsys.readouterr().out
    monkeypatch.setattr(neighbours, "THRESHOLD", -2.0)
    with pytest.raises(SystemExit, match="are among the photographs"):
        neighbours.compare(args, neighbours.plan(args))
    with pytest.raises(UserError):
        neighbours.plan(neighbours.parse_args([*flags, "nonsense"]))


@pytest.mark.parametrize("backbone, least", [("mini", 36), ("small", 35)])
def test_what_an_autoencoder_keeps_of_digits(tmp_path, backbone, least):
    places = ["--sheets", str(tmp_path), "--json", str(tmp_path / "x.json"), "--to", str(tmp_path)]
    flags = ["--backbone", backbone, "--images", "64", *places]
    args = bounds.parse_args([*flags, "--dataset", "digits"])
    bounds.measure(args, bounds.plan(args))
    result = json.loads((tmp_path / "x.json").read_text())["results"]["digits"]
    assert result["images"] == 64 and result["psnr"] > least
    assert Image.open(tmp_path / "digits.png").width > 16 * 32
    real, made = (load_splits(dataset_spec(name), tmp_path) for name in ("digits", tmp_path / "digits_reconstructed.npz"))
    assert all(np.array_equal(ours.labels, theirs.labels) for ours, theirs in zip(real, made))
    assert np.array_equal(real.test.images, made.test.images)
    at_32_px = resize_images(load_splits(dataset_spec("digits"), tmp_path, side=32).train.images, 8)
    assert 33 < bounds.psnr(at_32_px, made.train.images).mean() < 60  # near, but not the same
    with pytest.raises(UserError):
        bounds.plan(bounds.parse_args([*flags, "--dataset", "nonsense"]))
    with pytest.raises(UserError, match="has no image_encoder"):
        bounds.plan(bounds.parse_args([*flags, "--dataset", "digits", "--weights_dir", str(tmp_path)]))


def test_psnr_is_of_each_image():
    black = np.zeros((2, 4, 4, 3), "uint8")
    assert np.allclose(bounds.psnr(black, black + np.array([1, 255], "uint8")[:, None, None, None]), [48.13, 0], atol=0.01)
