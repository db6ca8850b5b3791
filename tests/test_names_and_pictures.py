"""All stages with class names that are hardly names, and with no picture that can be drawn."""

import csv
import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import sheets
from tests.test_search_stages import SMALL, said_by

AWKWARD = ("a$_$b", "c\udcff", "日本\n")


def write_images(folder, names):
    rng = np.random.default_rng(0)
    for place, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(14):
            pixels = rng.integers(0, 200, (8, 8, 3), np.uint8) + np.uint8(25 * place)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def every_stage(tiny, tmp_path, float32_after):
    """A function that runs the scripts on images of the names and returns the root and what they said."""

    def run(*names, searched=False):
        root = tmp_path / "out"
        common = ["--dataset", write_images(tmp_path / "own", names), "--exp", "x", "--root", root]
        model, small = ["--backbone", "tiny"], ["--classifier", "resnet20_16", "--epochs", 1, "--batch_size", 8]
        search = [*SMALL, *small, "--num_imgs", 12, "--is_max", 5, "--n_trials", 1, "--repeats", 0, "--save_plots"]
        searches = [("hyp_opt", [*model, *search])] if searched else []
        made = ["--img_total", 24, "--enc_epoch", 1, "--dif_epoch", 0, "--inf_steps", 2, "--ugs", 1]
        said = said_by("SD_adapting", *common, *model, "--epochs", 1, "--batch_size", 8, "--lr", 1e-3)
        said += said_by("hyp_opt", *common, *model, *search) if searched else ""
        said += said_by("generate_dataset", *common, *model, *made)
        (folder,) = (root / "Data/Synthetic/Exp_x/own").glob("24*/")
        said += said_by("classifier_training", *common, *small, "--synthetic", False)
        for script, more in (*searches, ("generate_dataset", [*model, *made]),
                             ("classifier_training", [*small, "--synthetic", False])):  # fmt: skip
            assert "finished already" in said_by(script, *common, *more)
        assert json.loads((folder / "manifest.json").read_text())["total"] == 24
        return root, said

    return run


def test_class_names_are_whatever_a_file_system_allows(every_stage, recwarn):
    root, said = every_stage(*AWKWARD)
    assert "cannot be drawn" not in said and not [w for w in recwarn if "Glyph" in str(w.message)]
    for name in ("  a$_$b ", "  c\\udcff ", "  日本\\n "):
        assert name in said
    (file,) = root.rglob("class_accuracies.csv")
    with open(file, newline="", encoding="utf-8") as rows:
        assert [row["class"] for row in csv.DictReader(rows)] == ["a$_$b", "c\\udcff", "日本\n"]
    assert len(list(root.rglob("confusion_matrix.png"))) == 1


def test_pictures_that_fail_end_no_stage(every_stage, monkeypatch):
    def fail(*args, **how):
        raise RuntimeError("no font")

    monkeypatch.setattr(sheets, "save_image", fail)
    monkeypatch.setattr(Figure, "savefig", fail)
    root, said = every_stage("ant", "bee", searched=True)
    for what in (
        "the real images",
        "the loss",
        "epoch 1",
        "the steps so far",
        "best and worst",
        "the set",
        "the curve",
        "the confusion",
    ):
        assert f"{what} cannot be drawn: no font" in said, what
    for name in ("training.json", "best.json", "test_accuracies_expx.json", "class_accuracies.csv"):
        assert list(root.rglob(name))
    assert not plt.get_fignums()


def test_sheets_show_the_first_epoch_the_middle_and_the_last(tiny, tmp_path, float32_after):
    said_by("SD_adapting", "--dataset", "digits", "--exp", "x", "--backbone", "tiny", "--root", tmp_path, "--epochs", 9,
            "--batch_size", 500, "--lr", 1e-3)  # fmt: skip
    assert {path.stem for path in tmp_path.rglob("samples/*.png")} == {"epoch1", "epoch4", "epoch8", "epoch9"}
