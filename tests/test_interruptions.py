"""Scripts that are stopped, divided or starved, through their real command lines, on the digits.

Their networks have a few weights (`tests/tiny_networks.py`): `make chaos` does such things to `mini`.
"""

import csv
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from Data.loaders import load_splits
from Data.registry import DATASETS
from tests.test_scripts import MINI, REPOSITORY, succeed, tree

TINY = "tests/tiny_networks.py"

FEW = (("train", 60), ("val", 60), ("test", 100))  # images of the digits: enough for what is tested here
ADAPT = (TINY, "SD_adapting.py", "--dataset", "FEW", "--exp", "smoke", *MINI, "--batch_size", 32)
ENCODER = (*ADAPT, "--epochs", 2, "--precision", "float32")
UNET = (*ADAPT, "--train_model", "dif", "--enc_epoch", 2, "--epochs", 1, "--precision", "float32")
GENERATE_FEW = (TINY, "generate_dataset.py", "--dataset", "digits", "--exp", "x", *MINI, "--img_total", "12", "--enc_epoch", "0",
                "--dif_epoch", "0", "--inf_steps", "2", "--ugs", "1", "--image_size", "128")  # fmt: skip


def with_data(command, few):
    """A command on the dataset that stands in it, FEW for the few digits."""
    return tuple(few if flag == "FEW" else flag for flag in command)


def write_few_digits(path, noise=False):
    """The first digits of each split as an .npz; the test images may be noise."""
    splits, arrays = load_splits(DATASETS["digits"], path.parent), {}
    for split, few in FEW:
        part = getattr(splits, split)
        arrays |= {f"{split}_images": part.images[:few], f"{split}_labels": part.labels[:few, None]}
    if noise:
        arrays["test_images"] = np.random.default_rng(0).integers(0, 256, arrays["test_images"].shape, "uint8")
    np.savez(path, **arrays)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "few.npz"
    write_few_digits(path)
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory, few):
    """A root in which a Class Encoder has been trained, very briefly."""
    root = tmp_path_factory.mktemp("root")
    succeed(*with_data(ENCODER, few), "--root", root)
    return root


@pytest.fixture(scope="module")
def fine_tuned(root, few, tmp_path_factory):
    """A root in which the UNet has been fine-tuned, on a disk that was full at its latents, then at its weights."""
    place, command = tmp_path_factory.mktemp("full"), with_data(UNET, few)
    shutil.copytree(root / "Checkpoints", place / "Checkpoints")
    before = tree(place)
    for room in (20_000, 100_000):
        fill_the_disk(command, place, room)
        assert before.items() <= tree(place).items()
    succeed(*command, "--root", place)
    return place


def test_a_full_disk_does_not_end_a_training_for_good(fine_tuned):
    assert (fine_tuned / "Checkpoints/DDPM/Exp_smoke/few/DiffusionFt/training.json").exists()


def test_gradient_checkpoints_and_spared_memory_learn_the_same(root, fine_tuned, few, tmp_path):
    for folder in ("Checkpoints", "Data/Latents"):
        shutil.copytree(root / folder, tmp_path / folder)
    succeed(*with_data(UNET, few), "--gradient_checkpointing", "--root", tmp_path)
    folders = [place / "Checkpoints/DDPM/Exp_smoke/few/DiffusionFt" for place in (fine_tuned, tmp_path)]
    losses = [float(next(csv.DictReader((folder / "history.csv").open()))["loss"]) for folder in folders]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    plain, spared = (weights_in(folder / "epoch1.weights.h5") for folder in folders)
    assert plain.keys() == spared.keys()
    # Adam's first steps are as long as the rate, 0.01, whatever the gradient: other gradients lead elsewhere.
    apart = np.concatenate([np.abs(plain[name] - spared[name]).ravel() for name in plain])
    assert (apart < 1e-4).mean() > 0.98, np.quantile(apart, [0.5, 0.9, 0.98, 1])  # tiny gradients may turn their sign


def test_shards_make_the_dataset_that_one_process_makes(tmp_path):
    flags = ("generate_dataset.py", "--dataset", "digits", "--exp", "s", *MINI, "--img_total", 230, "--enc_epoch", 0, "--dif_epoch", 0,
             "--inf_steps", 2, "--ugs", 1.5, "--batch_size", 8)  # fmt: skip
    folders = [tmp_path / name / "Data/Synthetic/Exp_s/digits/230Enc0Dif0Is2Ugs1.5" for name in ("whole", "parts")]
    succeed(TINY, *flags, "--root", tmp_path / "whole")
    parts = (*flags, "--root", tmp_path / "parts", "--shard")
    assert "shards that are not complete: 1/3, 3/3" in succeed(TINY, *parts, "2/3").stdout
    assert not (folders[1] / "manifest.json").exists()
    both = [subprocess.Popen([sys.executable, str(REPOSITORY / TINY), *map(str, parts), f"{i}/3"],
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for i in (1, 3)]  # fmt: skip
    assert [process.wait() for process in both] == [0, 0]
    whole, union = map(tree, folders)
    images = {p for p in whole if p.suffix == ".png" and p.parts[0].startswith("class_")}
    assert len(images) == 230 and all(whole[p] == union[p] for p in images)
    assert whole[Path("manifest.json")] == union[Path("manifest.json")]


def test_interrupted_training_ends_with_the_same_weights(root, few, tmp_path):
    folders = [place / "Checkpoints/DDPM/Exp_smoke/few/MyEmbedding" for place in (root, tmp_path)]
    script, *flags = with_data(ENCODER, few)
    shutil.copytree(root / "Data/Latents", tmp_path / "Data/Latents")  # a first try had got so far
    command = [sys.executable, str(REPOSITORY / script), *map(str, flags), "--root", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (folders[1] / "state.npz").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folders[1] / "epoch2.weights.h5").exists()
    assert "going on after epoch 1" in succeed(script, *flags, "--root", tmp_path).stdout
    arrays = [weights_in(folder / "epoch2.weights.h5") for folder in folders]
    assert arrays[0] and arrays[0].keys() == arrays[1].keys()
    assert all(np.array_equal(arrays[0][name], arrays[1][name]) for name in arrays[0])
    assert not list(tmp_path.rglob(".partial*"))


def fill_the_disk(command, root, room):
    """Run a command where no file may grow beyond `room` bytes: it ends in one line, and leaves nothing half done."""
    import resource

    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))  # noqa: E731
    full = subprocess.run([sys.executable, REPOSITORY / command[0], *map(str, command[1:]), "--root", root], capture_output=True,
                          text=True, preexec_fn=limit)  # fmt: skip
    lines = [line for line in full.stderr.splitlines() if "error" in line or "Traceback" in line]
    assert full.returncode == 2 and len(lines) == 1 and lines[0].startswith(f"{command[1]}: error: "), full.stderr
    left = [path.relative_to(root) for path in root.rglob("*") if path.name.startswith(".partial")]
    assert not left and not list(root.rglob("manifest.json")) and not list(root.rglob("DiffusionFt/training.json"))


def test_a_full_disk_is_one_line_and_damages_nothing(tmp_path):
    fill_the_disk(GENERATE_FEW, tmp_path, 6_000)  # an image is larger
    succeed(*GENERATE_FEW, "--root", tmp_path)
    assert list(tmp_path.rglob("manifest.json"))


# Stages that take long, and the file that shows that some of their work is saved.
LONG = {
    "generate": ((*GENERATE_FEW, "--img_total", "5000", "--batch_size", "20"), "img_*.png"),
    "adapt": ((*ADAPT, "--epochs", 90), "state.npz"),
    "classify": ((TINY, "classifier_training.py", "--dataset", "digits", "--exp", "smoke", "--synthetic", "False", "--epochs", "90",
                  "--classifier", "resnet20_16"), "state.npz"),
    "search": ((TINY, "hyp_opt.py", "--dataset", "FEW", "--exp", "long", *MINI, "--n_trials", "90", "--num_imgs", "20", "--is_max", "6",
                "--epochs", "2", "--classifier", "resnet20_16", "--gen_batch_size", "20"), "study.db"),
}  # fmt: skip


def working(stage, root, few, epochs=None):
    """A process of a stage that has saved some of its work; `epochs` are those that a search looks at."""
    (script, *flags), sign = LONG[stage]
    if epochs:
        shutil.copytree(epochs, root / "Checkpoints/DDPM/Exp_long/few/MyEmbedding")
    process = subprocess.Popen([sys.executable, REPOSITORY / script, *map(str, with_data(flags, few)), "--root", root],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    while not list(root.rglob(sign)) or stage == "search" and "trial   0" not in process.stdout.readline():
        assert process.poll() is None
        time.sleep(0.05)
    return process


def test_a_folder_that_is_deleted_in_mid_run_is_one_line(tmp_path, few):
    process = working("generate", tmp_path, few)
    shutil.rmtree(tmp_path / "Data", ignore_errors=True)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and "generate_dataset.py: error: " in errors and "Traceback" not in errors


@pytest.mark.parametrize("stop, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_says_what_is_saved(tmp_path, few, stop, code):
    process = working("generate", tmp_path, few)
    process.send_signal(stop)
    _, errors = process.communicate(timeout=60)
    there = len(list(tmp_path.rglob("img_*.png")))
    last = errors.strip().splitlines()[-1]
    assert process.returncode == code
    assert last == f"generate_dataset.py: interrupted; {there} of 5000 images are saved: the same command goes on from there"


@pytest.mark.parametrize(
    "stage, stop, code", [("adapt", signal.SIGINT, 130), ("classify", signal.SIGTERM, 143), ("search", signal.SIGINT, 130)]
)
def test_every_stage_says_what_is_saved_when_it_is_stopped(root, few, tmp_path, stage, stop, code):
    process = working(stage, tmp_path, few, root / "Checkpoints/DDPM/Exp_smoke/few/MyEmbedding")
    process.send_signal(stop)
    _, errors = process.communicate(timeout=60)
    saved = r"[1-9]\d* of 90 (epochs are saved|trials are finished)"
    assert (
        re.search(rf"\w+.py: interrupted; {saved}: the same command goes on from there$", errors.strip())
        and "Traceback" not in errors
    )
    assert process.returncode == code


@pytest.mark.parametrize("stage", ["adapt", "classify"])
def test_a_stage_whose_folder_is_deleted_ends_in_one_line(tmp_path, few, stage):
    process = working(stage, tmp_path, few)
    shutil.rmtree(tmp_path / "Checkpoints", ignore_errors=True)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and f"{LONG[stage][0][1]}: error: " in errors and "Traceback" not in errors


def weights_in(path):
    """Every array of an HDF5 file by its name."""
    import h5py

    arrays = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return arrays
