"""The full-size sd1 backbone through the four scripts, with random weights: minutes, and 15 GB of memory."""

import math
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from Models.weight_files import UNTRAINED
from tests.test_scripts import REPOSITORY, run

pytestmark = pytest.mark.slow


@pytest.fixture
def images(tmp_path):
    """A folder of two classes of noise, 32 px."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 2)):
        for name in ("a", "b"):
            folder = tmp_path / "noise" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "noise"


# Runs a command and adds its peak memory, in KiB, as the last line of stderr.
MEASURED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


def test_every_stage_of_sd1_runs(images, tmp_path):
    common = ("--dataset", images, "--exp", "full", "--root", tmp_path)
    stages = [
        ("SD_adapting.py", "--epochs", 1, "--batch_size", 2),
        ("hyp_opt.py", "--n_trials", 1, "--num_imgs", 2, "--is_max", 5, "--epochs", 1, "--gen_batch_size", 2),
        ("SD_adapting.py", "--train_model", "dif", "--enc_epoch", 1, "--epochs", 1, "--batch_size", 3),
        ("hyp_opt.py", "--train_model", "dif", "--enc_epoch", 1, "--n_trials", 1, "--num_imgs", 2, "--is_1", 5,
         "--ugs_1", 1.5, "--epochs", 1, "--gen_batch_size", 2),
        ("generate_dataset.py", "--img_total", 6, "--enc_epoch", 1, "--dif_epoch", 1, "--inf_steps", 2, "--ugs", 1.5,
         "--batch_size", 4),
        ("classifier_training.py", "--epochs", 1),
    ]  # fmt: skip
    for script, *flags in stages:
        start = time.time()
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, sys.executable, str(REPOSITORY / script), *map(str, (*common, *flags))],
            capture_output=True, text=True, env={**os.environ, UNTRAINED: "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        peak = int(done.stderr.splitlines()[-1]) / 2**20
        print(f"{script} {' '.join(map(str, flags))}\n    {time.time() - start:.0f} s, at most {peak:.1f} GB of memory")
    with Image.open(tmp_path / "Data/Synthetic/Exp_full/noise/6Enc1Dif1Is2Ugs1.5/class_01/img_2.png") as image:
        assert image.size == (128, 128)
    assert "--weights_dir" in run("generate_dataset.py", *common, "--img_total", 2, "--enc_epoch", 0, "--dif_epoch", 0,
                                  env={"KERAS_HOME": str(tmp_path / "empty")}).stderr  # fmt: skip


@pytest.mark.parametrize("backbone, parameters", [("sd1", 797_184), ("sd2", 829_952)])
def test_low_rank_updates_are_three_megabytes(monkeypatch, backbone, parameters):
    """Rank 4 on queries, keys, values and outputs of the 16 transformers: as many as others' files of Stable Diffusion."""
    from Models.backbones import BACKBONES
    from Models.lora import kernel_shapes, target_layers
    from Models.runtime import precision

    monkeypatch.setenv(UNTRAINED, "1")
    with precision("mixed_bfloat16"):
        unet = BACKBONES[backbone].unet()
    shapes = kernel_shapes(target_layers(unet, "attention"))
    assert len(shapes) == 16 * 8
    assert sum(4 * (math.prod(shape[:-1]) + shape[-1]) for shape in shapes.values()) == parameters
