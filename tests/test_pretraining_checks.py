"""Checks of a pretraining: that no test image is among its photographs."""

import io

import numpy as np
import pytest
from PIL import Image

from Experiment.errors import UserError
from Pretraining import neighbours
from tests.test_pretraining import write_photographs


def copy_of(pixels):
    """uint8 (32, 32, 3): the central square of a photograph, cropped by 5 %, smaller, brighter, through JPEG."""
    picture = Image.fromarray(pixels)
    side = 0.95 * picture.height
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    small = np.asarray(picture.resize((32, 32), Image.BICUBIC, (left, top, left + side, top + side)))
    file = io.BytesIO()
    Image.fromarray(np.clip(0.9 * small + 20.0, 0, 255).astype("uint8")).save(file, "JPEG", quality=75)
    return np.asarray(Image.open(file).convert("RGB"))


def test_copies_are_found_and_others_are_not(tmp_path):
    folder = write_photographs(tmp_path / "photographs")
    listed, _ = neighbours.listed_photographs(folder, ["trash.tar", "caltech101.tar"])
    copies = [copy_of(pixels) for pixels in neighbours.read_photographs(folder, listed)]
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
