"""The classifier follows its inputs: synthetic set, real data, classes; and one curve is of one recipe."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import classifier_training
import curves
from Data.cards import measured_part
from Data.export_images import SetToExport
from Data.measured import cas_doubts, cas_rows, is_of
from Data.numbering import Balanced
from Data.registry import dataset_spec
from Data.synthetic import SyntheticWriter, recipe, set_identity
from Experiment.errors import UserError
from Experiment.files import read_json, write_json
from Experiment.paths import Experiment
from Experiment.results import CAS_SCHEMA, CHOSEN_ON_TEST, all_doubts, read_results, told_apart
from Models.classifiers import CLASSIFIERS
from tests.conftest import write_pets
from tests.tiny_networks import one_layer

pytestmark = pytest.mark.usefixtures("no_pictures")

REPOSITORY = Path(__file__).resolve().parent.parent
SETTINGS = {"enc_epoch": 1, "dif_epoch": 2, "inf_steps": 5, "ugs": 1.5, "seed": 5, "backbone": "mini",
            "precision": "float32", "classes": ["0", "1"], "weights": {"enc": "e" * 64, "dif": "d" * 64}}  # fmt: skip


def npz(path, value=200):
    labels = np.arange(20, dtype=np.int32) % 2
    images = (labels[:, None, None, None] * np.full((20, 8, 8, 3), value)).astype(np.uint8)
    arrays = {f"{split}_images": images for split in ("train", "val", "test")}
    np.savez(path, **arrays, **{f"{split}_labels": labels[:, None] for split in ("train", "val", "test")})


def make_set(folder, total=20, level=50, manifest=True, **changes):
    writer = SyntheticWriter(folder, Balanced(2).counts(total))
    writer.begin()
    for number in writer.missing():
        noise = np.random.default_rng(number).integers(0, level, (8, 8, 3)) + 200 * (number % 2)
        writer.write(number, noise.astype(np.uint8))
    writer.drain()
    if manifest:
        writer.finish({**SETTINGS, **changes})
    writer.close()
    return folder


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setitem(CLASSIFIERS, "resnet20", one_layer)
    npz(tmp_path / "two.npz")
    return tmp_path


def sets(root):
    return root / "Data/Synthetic/Exp_0001/two"


def parse(root, *flags):
    common = ["--dataset", root / "two.npz", "--epochs", 1, "--batch_size", 10, "--root", root]
    return classifier_training.parse_args([str(flag) for flag in (*common, *flags)])


def train(root, *flags):
    return classifier_training.train_classifier(parse(root, *flags))


def results(root):
    return read_results(root / "CAS Results/test_accuracies_exp0001.json", CAS_SCHEMA)["resnet20"]["two"]


def test_a_result_says_where_it_comes_from(root):
    make_set(sets(root) / "20Enc1Dif2Is5Ugs1.5")
    train(root)
    entry = results(root)["x1"]
    assert entry["training"] == {"seed": 1234, "epochs": 1, "batch_size": 10, "resize": "bilinear"}
    assert entry["set"].items() >= {
        **{key: SETTINGS[key] for key in ("enc_epoch", "dif_epoch", "inf_steps", "ugs", "seed", "backbone", "precision")},
        "folder": "20Enc1Dif2Is5Ugs1.5", "weights": {"enc": "e" * 8, "dif": "d" * 8},
    }.items()  # fmt: skip
    train(root, "--synthetic", "False")
    assert results(root)["real"]["training"] == {"seed": 1234, "epochs": 1, "batch_size": 10}
    assert "set" not in results(root)["real"]


def test_what_a_trained_classifier_comes_from_is_in_its_record(root):
    make_set(sets(root) / "20Enc1Dif2Is5Ugs1.5")
    train(root, "--test", "False")
    shutil.rmtree(sets(root))
    weights = root / "Checkpoints/Classifiers/Exp_0001/resnet20/two/20/best_model.weights.h5"
    before = weights.read_bytes()
    train(root, "--train", "False")
    first = results(root)
    train(root, "--train", "False")
    assert weights.read_bytes() == before and results(root) == first
    assert results(root)["x1"]["set"]["folder"] == "20Enc1Dif2Is5Ugs1.5" and results(root)["x1"]["training"]["epochs"] == 1


@pytest.mark.parametrize("repeats", [1, 2])
def test_a_classifier_is_tested_on_what_it_knows(root, repeats):
    make_set(sets(root) / "20Enc1Dif2Is5Ugs1.5")
    train(root, "--repeats", repeats)
    alone = ("--train", "False", "--repeats", repeats)
    train(root, *alone)
    before, arrays = results(root), dict(np.load(root / "two.npz"))
    for changed, told in (
        ({n: a + 1 for n, a in arrays.items() if "labels" in n}, r"classes \['0', '1'\] \(now \['1', '2'\]\)"),
        ({"test_images": arrays["test_images"] // 2}, r"data.test \w{8} \(now \w{8}\)"),
        ({n: a[:, :4, :4] for n, a in arrays.items() if "images" in n}, r"data.resolution 8 \(now 4\)"),
    ):
        np.savez(root / "two.npz", **arrays | changed)
        with pytest.raises(UserError, match=f"was trained on other inputs: .*{told}"):
            train(root, *alone)
        assert results(root) == before
    record = root / "Checkpoints/Classifiers/Exp_0001/resnet20/two/20/training.json"
    if repeats == 1:  # one of an earlier version says less
        write_json(record, {"arguments": {}, "inputs": {}})
        classifier_training.plan(parse(root, *alone))


def test_nothing_of_an_earlier_entry_stays(root):
    folder = make_set(sets(root) / "20Enc1Dif2Is5Ugs1.5")
    train(root)
    shutil.rmtree(folder)
    make_set(sets(root) / "20", manifest=False)
    train(root, "--restart")
    assert results(root)["x1"]["set"] == {"folder": "20", "name": ""}


def test_a_set_that_was_made_again_is_not_finished(root):
    folder = make_set(sets(root) / "20Enc1Dif2Is5Ugs1.5")
    train(root)
    assert "finished already" in classifier_training.plan(parse(root)).done
    shutil.rmtree(folder)
    make_set(folder, level=40, ugs=2.5)
    with pytest.raises(UserError, match=r"other inputs: set.sha256 \w{8} \(now \w{8}\), set.ugs 1.5 \(now 2.5\). Use another"):
        classifier_training.plan(parse(root))


def test_an_interrupted_run_on_another_set_is_refused(root):
    from Models.fit_state import FitState

    folder = make_set(sets(root) / "20Enc1Dif2Is5Ugs1.5")
    classifier = root / "Checkpoints/Classifiers/Exp_0001/resnet20/two/20"
    kept, save = [], FitState.save

    def keep(state, *args):
        save(state, *args)
        kept.append(state.path.read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FitState, "save", keep)
        train(root, "--test", "False")
    shutil.rmtree(folder)
    make_set(folder, level=40)
    (classifier / "training.json").unlink()
    (classifier / "state.npz").write_bytes(kept[-1])
    with pytest.raises(UserError, match="interrupted run with other inputs: set.sha256"):
        train(root)


@pytest.mark.parametrize("split", ["val", "test"])
def test_other_real_images_are_not_finished(root, split):
    make_set(sets(root) / "20Enc1Dif2Is5Ugs1.5")
    train(root)
    arrays = dict(np.load(root / "two.npz"))
    arrays[f"{split}_images"] = arrays[f"{split}_images"] // 2
    np.savez(root / "two.npz", **arrays)
    with pytest.raises(UserError, match=rf"other inputs: data.{split} \w{{8}} \(now \w{{8}}\)"):
        classifier_training.plan(parse(root))


def test_a_seed_moves_the_classifier_alone(root):
    """Of images that we have divided ourselves the same ones are learnt from, whatever the seed."""
    pets = write_pets(root)
    record, inputs = root / "Checkpoints/Classifiers/Exp_0001/resnet20/pets/real/training.json", []
    for flags in ((), ("--seed", 7, "--restart")):
        train(root, "--dataset", pets, "--synthetic", False, *flags)
        inputs.append(read_json(record)["inputs"])
    assert inputs[0] == inputs[1] and set(inputs[0]["data"]) >= {"train", "val", "test"}
    assert read_json(record)["arguments"]["seed"] == 7


def test_a_copy_elsewhere_is_the_same(root):
    folder = make_set(sets(root) / "20Enc1Dif2Is5Ugs1.5")
    train(root)
    elsewhere = root / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(root / "two.npz", elsewhere)
    shutil.move(folder, elsewhere / "a set")
    (elsewhere / "a set/manifest.json").unlink()  # it is then read like a published one
    flags = ("--dataset", elsewhere / "two.npz", "--synthetic_dir", elsewhere / "a set")
    assert classifier_training.plan(parse(root, *flags)).done


def test_a_set_of_other_classes_is_refused(root):
    make_set(sets(root) / "20Enc1Dif2Is5Ugs1.5", classes=["cat", "dog"])
    with pytest.raises(UserError, match="is of other classes: cat, dog. The dataset has 0, 1"):
        classifier_training.plan(parse(root))


def test_a_curve_of_several_recipes_is_asked_for_by_name(root, caplog, monkeypatch):
    make_set(sets(root) / "20Enc1Dif2Is5Ugs1.5")
    train(root)
    folder = make_set(sets(root) / "40Enc1Dif2Is5Ugs3", 40, ugs=3.0)
    with pytest.raises(UserError, match=r"x1 in the results comes from other settings: ugs 1.5 \(now ugs 3.0\)"):
        classifier_training.plan(parse(root, "--take", 2))
    with caplog.at_level("WARNING", logger="experiment"):
        labels = legends_of(root, monkeypatch, "--take", 2, "--synthetic_dir", folder)
    assert "one curve of several settings: x1 in the results comes from other settings" in caplog.text
    assert labels == ["trained on synthetic (ugs 1.5)", "trained on synthetic (ugs 3.0)"]
    assert classifier_training.plan(parse(root, "--take", 2)).done  # what is finished stays finished


@pytest.mark.parametrize("manifest", [True, False])
def test_one_curve_is_of_one_test(root, manifest, monkeypatch):
    """What was tested on other images is refused; where it is asked for, the legend says so."""
    for total in (20, 40):
        make_set(sets(root) / f"{total}Enc1Dif2Is5Ugs1.5", total, manifest=manifest)
    train(root)
    arrays = dict(np.load(root / "two.npz"))
    np.savez(root / "two.npz", **arrays | {"test_images": arrays["test_images"] // 2})
    told = r"x1 in the results comes from other settings: test images (\w{8}) \(now test images (?!\1)\w{8}\)"
    with pytest.raises(UserError, match=told):
        classifier_training.plan(parse(root, "--take", 2))
    assert legends_of(root, monkeypatch, "--take", 2, "--synthetic_dir", sets(root) / "40Enc1Dif2Is5Ugs1.5") == [
        f"trained on synthetic (test images {results(root)[size]['test']})" for size in ("x1", "x2")
    ]


def test_real_and_synthetic_are_tested_on_the_same_images(root, caplog):
    """Other test images: real data come first, then what is compared with them."""
    make_set(sets(root) / "20Enc1Dif2Is5Ugs1.5")
    train(root)
    train(root, "--synthetic", "False")
    assert "against_real" in results(root)["x1"]
    arrays = dict(np.load(root / "two.npz"))
    np.savez(root / "two.npz", **arrays | {"test_images": arrays["test_images"] // 2})
    with pytest.raises(UserError, match="the real result was tested on other images .* --synthetic False --restart"):
        classifier_training.plan(parse(root, "--restart"))
    train(root, "--synthetic", "False", "--restart")
    assert "x1 in the results: tested on other images than those of today" in caplog.text
    assert "against_real" not in results(root)["x1"]  # it was of the earlier real result
    train(root, "--restart")
    assert "against_real" in results(root)["x1"] and results(root)["x1"]["test"] == results(root)["real"]["test"]


def test_a_card_lists_results_of_images_that_are_in_the_set(root):
    small, large = (make_set(sets(root) / f"{total}Enc1Dif2Is5Ugs1.5", total) for total in (20, 40))
    spec = dataset_spec(str(root / "two.npz"))
    made = {"folder": large.name, **recipe(small)}
    of_large = [is_of({"set": made}, "x1", SetToExport(folder, spec)) for folder in (small, large)]
    of_small = [is_of({"set": made | {"folder": small.name}}, "x1", SetToExport(folder, spec)) for folder in (small, large)]
    assert (of_large, of_small) == ([False, True], [True, True])


def legends_of(root, monkeypatch, *flags):
    """Train, and return what the legend of the curve says, but for the name of the source."""
    figures, save = [], curves.save_figure
    monkeypatch.setattr(curves, "save_figure", lambda figure, path: figures.append(figure) or save(figure, path))
    train(root, *flags)
    return [text.get_text().split(", ", 1)[1] for text in figures[-1].legends[0].get_texts()]


def test_results_of_earlier_versions_do_not_say_on_which_images_they_were_tested(root, monkeypatch):
    for total in (20, 40):
        make_set(sets(root) / f"{total}Enc1Dif2Is5Ugs1.5", total)
    train(root)
    file = root / "CAS Results/test_accuracies_exp0001.json"
    entries = read_json(file)
    del entries["resnet20"]["two"]["x1"]["test"]
    write_json(file, entries)
    assert legends_of(root, monkeypatch, "--take", 2) == ["trained on synthetic"]


def test_other_epochs_along_a_curve_are_said_in_its_legend(root, monkeypatch):
    for total in (20, 40):
        make_set(sets(root) / f"{total}Enc1Dif2Is5Ugs1.5", total)
    train(root)
    assert legends_of(root, monkeypatch, "--take", 2, "--epochs", 3) == ["trained on synthetic, in at most 1 to 3 epochs"]


def test_sizes_whose_images_were_taken_otherwise_are_no_curve(root):
    make_set(sets(root) / "40Enc1Dif2Is5Ugs1.5", 40)
    train(root)
    for flags, told in ((["--resize", "antialias"], "resize bilinear .now resize antialias"),
                        (["--batch_size", 5], "batch_size 10 .now batch_size 5")):  # fmt: skip
        with pytest.raises(UserError, match=told):
            classifier_training.plan(parse(root, "--take", 2, *flags))


def test_sizes_of_one_recipe_make_one_curve(root):
    for total in (20, 40):
        make_set(sets(root) / f"{total}Enc1Dif2Is5Ugs1.5", total)
    train(root)
    train(root, "--take", 2)
    assert results(root)["x1"]["set"]["folder"].startswith("20") and results(root)["x2"]["set"]["folder"].startswith("40")


def test_a_set_that_was_edited_is_another_one(root, caplog):
    folder = make_set(sets(root) / "20Enc1Dif2Is5Ugs1.5")
    train(root)
    source = SetToExport(folder, dataset_spec(str(root / "two.npz")))
    experiment = Experiment(root, "0001", "two")
    row, largest = cas_rows(experiment, source)
    assert largest[:2] == ["none", "nothing: always the largest class"] and largest[-1] == "0.5000"
    share = results(root)["x1"]["against_largest_class"]["share"]
    assert largest[3] == f"{share:.4f}" and len(row) == len(largest) == 7
    assert row[1] == "20 generated images" and not caplog.text.count("manifest speaks of")
    image = folder / "class_00/img_0.png"
    shutil.copy(folder / "class_00/img_1.png", image)
    edited = SetToExport(folder, dataset_spec(str(root / "two.npz")))
    assert "not those that its manifest speaks of" in caplog.text
    assert not cas_rows(experiment, edited) and "was measured on other images" in caplog.text


def test_a_file_of_the_future_hides_no_change(root):
    folder = make_set(sets(root) / "20Enc1Dif2Is5Ugs1.5")
    os.utime(folder / "class_00/img_0.png", (2**31, 2**31))
    before = set_identity(folder, ["0", "1"])
    shutil.copy(folder / "class_00/img_2.png", folder / "class_00/img_1.png")
    assert set_identity(folder, ["0", "1"])["sha256"] != before["sha256"]


def test_1x_of_another_size_is_another_curve(root):
    make_set(sets(root) / "40Enc1Dif2Is5Ugs1.5", 40)
    train(root)
    file = root / "CAS Results/test_accuracies_exp0001.json"
    entry = results(root)["x1"]
    assert entry["unit"] == 20
    write_json(file, {"resnet20": {"two": {"x1": entry | {"unit": 15}}}})
    with pytest.raises(UserError, match="x1 in the results comes from other settings: images of 1x 15 .now images of 1x 20."):
        train(root, "--take", 2)


def test_test_images_that_are_in_train_too_are_told_with_the_accuracy(root):
    with np.load(root / "two.npz") as data:
        arrays = dict(data)
    rng = np.random.default_rng(1)
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = rng.integers(0, 256, (20, 8, 8, 3), np.uint8)
    arrays["test_images"][:3] = arrays["train_images"][:3]
    np.savez(root / "two.npz", **arrays)
    folder = make_set(sets(root) / "20Enc1Dif2Is5Ugs1.5")
    train(root)
    told = ["3 of the 20 test images have the pixels of one in train"]
    assert results(root)["x1"]["doubts"] == told
    source = SetToExport(folder, dataset_spec(str(root / "two.npz")))
    assert cas_doubts(Experiment(root, "0001", "two"), source) == told
    before = results(root)["x1"]
    record = root / "Checkpoints/Classifiers/Exp_0001/resnet20/two/20/training.json"
    write_json(record, read_json(record) | {"doubts": [*told, "of the set"]})
    train(root, "--train", "False")  # the set is not looked at
    assert results(root)["x1"] == before | {"doubts": [*told, "of the set"]} and before["content"]
    write_json(record, {name: value for name, value in read_json(record).items() if name != "doubts"})
    train(root, "--train", "False")  # a record of an earlier version: the earlier result says it
    assert results(root)["x1"]["doubts"] == [*told, "of the set"]
    assert any("3 of the 20" in text for text in measured_part(source, [["x"]], told))


def test_a_result_by_settings_that_were_chosen_on_test_says_so(root):
    entry = {"top_1_accuracy": 0.5, "top_5_accuracy": 1.0, "doubts": ["one"]}
    assert all_doubts([entry, {}]) == ["one"]
    assert told_apart([{"seed": 1}, {"seed": 1, "select_on": "test"}]) == ["select_on val", "select_on test"]
    assert told_apart([{"seed": 1}, {"seed": 1, "resize": "nearest"}]) == ["resize not recorded", "resize nearest"]
    assert all_doubts([entry, entry | {"set": {"select_on": "test"}}]) == ["one", CHOSEN_ON_TEST]
    assert all_doubts([{"top_1": 0.5, "select_on": "test"}]) == [CHOSEN_ON_TEST]
    assert all_doubts([{"select_on": "val"}, {"set": "a name"}]) == []


def test_a_finished_classifier_says_so_without_tensorflow(root):
    make_set(sets(root) / "20Enc1Dif2Is5Ugs1.5")
    train(root)
    code = "import sys, classifier_training as c; print(c.plan(c.parse_args(sys.argv[1:])).done, 'keras' in sys.modules)"
    flags = ["--dataset", root / "two.npz", "--epochs", "1", "--batch_size", "10", "--root", root]
    done = subprocess.run([sys.executable, "-c", code, *flags], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.startswith("finished already") and done.stdout.strip().endswith("False"), done.stderr


def test_the_set_is_decoded_once_for_all_sizes(root):
    make_set(sets(root) / "40Enc1Dif2Is5Ugs1.5", 40)
    train(root)
    (decoded,) = (root / "Data/Decoded").glob("*.npy")
    before = decoded.stat().st_mtime_ns
    train(root, "--take", 2)
    assert decoded.stat().st_mtime_ns == before


def test_results_of_an_earlier_version_are_no_recipe(root):
    file = root / "CAS Results/test_accuracies_exp0001.json"
    file.parent.mkdir()
    scores = {"top_1_accuracy": 0.5, "top_5_accuracy": 1.0}
    file.write_text(json.dumps({"resnet20": {"two": {"x1": scores, "x3": scores | {"set": "odd"}}}}))
    make_set(sets(root) / "40Enc1Dif2Is5Ugs1.5", 40)
    train(root, "--take", 2)
    assert set(results(root)) == {"x1", "x2", "x3"}
