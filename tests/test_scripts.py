"""Each script through its real command line, on the mini backbone and the embedded digits."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from Data.loaders import load_splits
from Data.registry import DATASETS
from Experiment.files import file_hash

REPOSITORY = Path(__file__).resolve().parent.parent
PLOTS = {"history", "contour_is_ugs", "contour_is_epoch", "contour_epoch_ugs", "intermediate_values",
         "parallel_coordinate", "param_importances", "rank", "slice", "timeline"}  # fmt: skip
MINI = ("--backbone", "mini")


def run(script, *flags, cwd=None, env=None):
    command = [sys.executable, str(REPOSITORY / script), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **(env or {})})


def succeed(*args, **kwargs):
    done = run(*args, **kwargs)
    assert done.returncode == 0, done.stderr
    return done


def tree(folder):
    """Every file below a folder and its bytes."""
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A root in which the chain of stages has run once, very briefly."""
    root = tmp_path_factory.mktemp("root")
    common = ("--dataset", "digits", "--exp", "smoke", "--root", root)
    elsewhere = tmp_path_factory.mktemp("elsewhere")  # scripts work from any working directory
    succeed("SD_adapting.py", *common, *MINI, "--epochs", 2, "--batch_size", 128, cwd=elsewhere)
    succeed("hyp_opt.py", *common, *MINI, "--n_trials", 3, "--num_imgs", 33, "--is_max", 6, "--epochs", 6,
            "--gen_batch_size", 33, "--classifier", "resnet20_16", "--save_plots", cwd=elsewhere)  # fmt: skip
    succeed("SD_adapting.py", *common, *MINI, "--train_model", "dif", "--enc_epoch", 2, "--epochs", 1, cwd=elsewhere)
    succeed("hyp_opt.py", *common, *MINI, "--train_model", "dif", "--enc_epoch", 2, "--n_trials", 2, "--num_imgs", 33,
            "--is_1", 6, "--ugs_1", 1.2, "--epochs", 3, "--gen_batch_size", 33, "--classifier", "resnet20_16",
            cwd=elsewhere)  # fmt: skip
    succeed("generate_dataset.py", *common, *MINI, "--img_total", 1003, "--enc_epoch", 2, "--dif_epoch", 1,
            "--inf_steps", 2, "--ugs", 1, cwd=elsewhere)  # fmt: skip
    for synthetic in (True, False):
        succeed("classifier_training.py", *common, "--synthetic", synthetic, "--epochs", 2,
                "--classifier", "resnet20_16", cwd=elsewhere)  # fmt: skip
    assert not list(elsewhere.iterdir())
    return root


def test_adapting_writes_weights_history_and_samples(root):
    folder = root / "Checkpoints/DDPM/Exp_smoke/digits/MyEmbedding"
    epochs = {"epoch1.weights.h5", "epoch2.weights.h5"}
    assert {p.name for p in folder.glob("epoch*")} == epochs | {f"{name}.json" for name in epochs}
    rows = list(csv.DictReader((folder / "history.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[1]["loss"]) < float(rows[0]["loss"])
    assert (folder / "loss.png").exists() and (folder / "samples/epoch2.png").exists()
    record = json.loads((folder / "training.json").read_text())
    assert record["arguments"]["seed"] == 1234 and record["versions"]["keras"]


@pytest.mark.parametrize("flags, changed, folder", [
    (("SD_adapting.py", *MINI, "--epochs", 2, "--batch_size", 128), ("--lr", 0.5), "DDPM/Exp_smoke/digits/MyEmbedding"),
    (("classifier_training.py", "--synthetic", False, "--epochs", 2, "--classifier", "resnet20_16"), ("--batch_size", 77),
     "Classifiers/Exp_smoke/resnet20_16/digits/real"),
])  # fmt: skip
def test_a_finished_stage_says_so_and_refuses_other_arguments(root, flags, changed, folder):
    flags, folder = (*flags, "--dataset", "digits", "--exp", "smoke", "--root", root), root / "Checkpoints" / folder
    before, results = tree(folder), (root / "CAS Results/test_accuracies_expsmoke.json").read_bytes()
    assert f"finished already: {folder}" in succeed(*flags).stdout
    refused = run(*flags, *changed)
    assert refused.returncode == 2 and changed[0] in refused.stderr and f"(now {changed[1]})" in refused.stderr
    assert tree(folder) == before and (root / "CAS Results/test_accuracies_expsmoke.json").read_bytes() == results


def test_adapting_unet_does_not_touch_the_encoder(root):
    folder = root / "Checkpoints/DDPM/Exp_smoke/digits"
    assert (folder / "DiffusionFt/epoch1.weights.h5").exists()
    assert not (folder / "MyEmbedding/epoch3.weights.h5").exists()
    learnt_beside = json.loads((folder / "DiffusionFt/training.json").read_text())["inputs"]["weights"]["enc"]
    assert learnt_beside == file_hash(folder / "MyEmbedding/epoch2.weights.h5")


def test_search_writes_best_settings_results_and_plots(root):
    folder = root / "optimization_plots/smoke/digits/enc"
    contours = {name for name in PLOTS if name.startswith("contour")}  # of three trials they would be empty
    assert PLOTS - contours - {"param_importances"} | {"best_and_worst"} <= {p.stem for p in folder.glob("*.png")}
    assert not {p.stem for p in folder.glob("*.png")} & contours
    rows = list(csv.DictReader((folder / "trials.csv").open()))
    assert [row["trial"] for row in rows] == ["0", "1", "2"] and {row["state"] for row in rows} <= {"COMPLETE", "PRUNED"}
    best = json.loads((folder / "best.json").read_text())
    completed = [row for row in rows if row["state"] == "COMPLETE"]
    assert set(best["repeats"]) == {row["trial"] for row in completed} == {row["trial"] for row in rows if row["mean"]}
    assert best["val_accuracy"] == np.mean([best["first_value"], *best["repeats"][str(best["trial"])]])
    assert max(float(row["mean"]) for row in completed) == best["val_accuracy"]
    assert 5 <= best["is"] <= 6 and 0 <= best["ugs"] <= 7.5 and best["epoch"] in (1, 2)
    results = json.loads((root / "CAS Results/pipeline_optimization_expsmoke.json").read_text())["digits"]
    assert set(results) == {"After Transfer Learning", "After Fine-Tuning"}
    for stage in results.values():
        assert set(stage) == {"no_opt", "opt"} and all(0 <= v["top_1"] <= v["top_5"] <= 1 for v in stage.values())


def test_generation_writes_exact_totals_and_a_manifest(root):
    folder = root / "Data/Synthetic/Exp_smoke/digits/1.003kEnc2Dif1Is2Ugs1"
    manifest = json.loads((folder / "manifest.json").read_text())
    counts = [len(list((folder / f"class_{c:02d}").glob("*.png"))) for c in range(10)]
    assert manifest["counts"] == counts == [101] * 3 + [100] * 7
    assert manifest["total"] == 1003 and manifest["seed"] == 1234
    with Image.open(folder / "class_09/img_99.png") as image:
        assert image.size == (32, 32) and image.mode == "RGB"
    assert folder.with_name(f"{folder.name}.samples.png").exists()
    assert len(list((root / "Images/digits/synth").glob("class*_synth.png"))) == 10
    assert len(list((root / "Images/digits/real").glob("class*.png"))) == 10


def test_classifier_writes_results_and_keeps_others(root):
    results = json.loads((root / "CAS Results/test_accuracies_expsmoke.json").read_text())
    assert set(results["resnet20_16"]["digits"]) == {"real", "x1"}
    folder = root / "Checkpoints/Classifiers/Exp_smoke/resnet20_16/digits/1k"
    assert {p.name for p in folder.iterdir()} >= {"best_model.weights.h5", "model_history.csv", "training_info.csv",
                                                  "class_accuracies.csv", "confusion_matrix.png"}  # fmt: skip
    history = list(csv.DictReader((folder / "model_history.csv").open()))
    assert list(history[0]) == ["loss", "accuracy", "val_loss", "val_accuracy", "lr"] and len(history) == 2
    info = next(csv.DictReader((folder / "training_info.csv").open()))
    assert list(info) == ["Total Training Time (s)", "Average Epoch Time (s)", "Best Epoch", "Best Score",
                          "Inference Time (s)", "Number of Parameters", "Number of MACs"]  # fmt: skip
    classes = list(csv.DictReader((folder / "class_accuracies.csv").open()))
    labels = load_splits(DATASETS["digits"], root).test.labels
    mean = np.average([float(row["accuracy"]) for row in classes], weights=np.bincount(labels))
    assert mean == pytest.approx(results["resnet20_16"]["digits"]["x1"]["top_1_accuracy"])


@pytest.mark.parametrize(
    "script, flags, message",
    [
        ("generate_dataset.py", ["--img_total", 10, "--enc_epoch", 9], "--enc_epoch 9: there is no Class Encoder of that epoch"),
        ("generate_dataset.py", ["--img_total", 10, "--enc_epoch", 2, "--dif_epoch", 9], "Epochs there: 1"),
        ("SD_adapting.py", ["--enc_epoch", 7, "--exp", "other"], "Epochs there: none"),
        ("SD_adapting.py", ["--epochs", 3, "--batch_size", 128], "--epochs 2 (now 3)"),
        ("classifier_training.py", ["--take", 5, "--classifier", "resnet20_16"], "There: 1.003kEnc2Dif1Is2Ugs1 (1003 images)"),
        ("classifier_training.py", ["--train", False, "--take", 3], "there is no trained classifier"),
        ("hyp_opt.py", ["--dataset", "bloodmnist"], "there are no weights in"),
    ],
)  # fmt: skip
def test_a_users_mistake_is_one_line_and_exit_code_2(root, script, flags, message):
    before = tree(root)
    done = run(script, "--dataset", "digits", "--exp", "smoke", "--root", root, *MINI, *flags)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    changed = {p for p, content in tree(root).items() if before.get(p) != content and p.name != "log.txt"}
    assert not changed


@pytest.mark.parametrize("script", ["SD_adapting.py", "hyp_opt.py", "generate_dataset.py", "classifier_training.py"])
def test_help_and_wrong_flags_answer_at_once(script):
    """What takes seconds to import is not: on an idle machine the answer is there in less than one."""
    for flags, code in ((["--help"], 0), (["--dataset", "cifar11"], 2)):
        done = run(script, *flags, env={"PYTHONPROFILEIMPORTTIME": "1"})
        assert done.returncode == code
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
        assert "argparse" in imported
        assert not imported & {"tensorflow", "keras", "keras_cv", "optuna", "matplotlib", "pandas", "sklearn", "scipy.stats"}
    assert "did you mean cifar10?" in done.stderr
