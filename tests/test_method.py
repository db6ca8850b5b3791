"""The method works: digits, mini, the whole chain of scripts. And a chain that is broken does not."""

import json

import numpy as np
import pytest

from Data.loaders import load_splits
from Data.registry import DATASETS
from tests.test_scripts import MINI, succeed

pytestmark = pytest.mark.slow

CLASSIFIER = ("--classifier", "resnet20_16", "--batch_size", 64, "--epochs", 40)
SETTINGS = ("--enc_epoch", 12, "--dif_epoch", 32, "--inf_steps", 13, "--ugs", 1.5)


def score_of_chain(root, shuffled):
    """CAS at 1x: adapt, generate, classify. Labels of the real training images may be shuffled; val and test are right."""
    splits = load_splits(DATASETS["digits"], root)
    labels = {split: getattr(splits, split).labels for split in ("train", "val", "test")}
    if shuffled:
        labels["train"] = np.random.default_rng(0).permutation(labels["train"])
    arrays = {f"{split}_images": getattr(splits, split).images for split in labels}
    np.savez(root / "numerals.npz", **arrays, **{f"{split}_labels": of[:, None] for split, of in labels.items()})
    common = ("--dataset", root / "numerals.npz", "--exp", "works", "--root", root)
    succeed("SD_adapting.py", *common, *MINI, "--epochs", 12, "--freq", 12)
    succeed("SD_adapting.py", *common, *MINI, "--train_model", "dif", "--enc_epoch", 12, "--epochs", 32, "--freq", 32)
    succeed("generate_dataset.py", *common, *MINI, "--img_total", 1000, *SETTINGS)
    succeed("classifier_training.py", *common, *CLASSIFIER)
    results = json.loads((root / "CAS Results/test_accuracies_expworks.json").read_text())
    return results["resnet20_16"]["numerals"]["x1"]


def test_a_classifier_that_saw_synthetic_digits_alone_reads_real_ones(tmp_path):
    result = score_of_chain(tmp_path, shuffled=False)
    assert result["top_1_accuracy"] > 0.9 and result["balanced_accuracy"] > 0.9 and result["auc"] > 0.98


def test_with_shuffled_labels_it_falls_to_chance(tmp_path):
    result = score_of_chain(tmp_path, shuffled=True)
    # Chance is 0.1; the epoch is chosen among 40 on validation images, which finds what luck there is.
    assert result["top_1_accuracy"] < 0.25 and 0.3 < result["auc"] < 0.7
