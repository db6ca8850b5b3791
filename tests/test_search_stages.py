"""A search from its first trial to its report, called as a function, with a tiny backbone: many runs of one study."""

import importlib
import io
import json
import logging
import shutil

import numpy as np
import optuna
import pytest

from Experiment.errors import UserError
from Search.context import Context
from tests.conftest import STAGES
from tests.test_interruptions import write_few_digits
from tests.test_scripts import tree

pytestmark = pytest.mark.usefixtures("no_pictures", "no_sheets")

SMALL = ["--num_imgs", "33", "--is_max", "6", "--epochs", "6", "--gen_batch_size", "33", "--classifier", "resnet20_16"]


def said_by(script, *flags):
    """What a script's command says, run here: without the start-up of a process, which `test_scripts.py` pays."""
    module, text = importlib.import_module(script), io.StringIO()
    handler, log = logging.StreamHandler(text), logging.getLogger("experiment")
    handler.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        args = module.parse_args([str(flag) for flag in flags])
        known = module.plan(args)
        if known.done:
            return known.done
        getattr(module, STAGES[script])(args, known)
    finally:
        log.removeHandler(handler)
    return text.getvalue()


def refused_by(script, *flags):
    """The one line in which a command ends."""
    with pytest.raises(UserError) as error:
        said_by(script, *flags)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.fixture
def adapted(tiny, tmp_path, float32_after):
    """Flags of an experiment with two epochs of a Class Encoder."""
    common = ["--dataset", "digits", "--exp", "smoke", "--backbone", "tiny", "--root", tmp_path / "out"]
    said_by("SD_adapting", *common, "--epochs", 2, "--lr", 1e-3)
    return common


def test_search_continues_to_a_larger_budget_and_adds_nothing_when_complete(adapted, tmp_path):
    flags = (*adapted, *SMALL, "--n_trials")
    study = {
        "study_name": "digits_expsmoke_study_enc",
        "storage": f"sqlite:///{tmp_path}/out/optimization_plots/smoke/digits/study.db",
    }
    for wanted, trials in ((3, 3), (4, 4), (4, 4)):
        said_by("hyp_opt", *flags, wanted)
        assert len(optuna.load_study(**study).trials) == trials
    assert "--ugs_max 7.5 (now 3.0)" in refused_by("hyp_opt", *flags, 5, "--ugs_max", 3)
    reported = said_by("hyp_opt", *flags, 9, "--no-optimize")
    assert "best of 4 trials" in reported and "(mean of 2 runs)" in reported.splitlines()[-1]
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for part in ("image_encoder", "unet"):
        shutil.copy(tmp_path / f"{part}.weights.h5", damaged)
    (damaged / "decoder.weights.h5").write_text("no weights")
    with pytest.raises(UserError, match="is not an HDF5 file"):  # before anything is thrown away
        said_by("hyp_opt", *flags, 1, "--restart", "--weights_dir", damaged)
    assert len(optuna.load_study(**study).trials) == 4
    again = said_by("hyp_opt", *flags, 1, "--restart")
    assert "throwing away the study digits_expsmoke_study_enc with 4 trials" in again
    assert len(optuna.load_study(**study).trials) == 1


def test_a_search_follows_its_weights_and_removes_the_epochs_that_it_has_not_chosen(adapted, tmp_path):
    flags = (*adapted, *SMALL, "--n_trials", 2, "--num_imgs", 20, "--epochs", 2, "--repeats", 0, "--gen_batch_size", 20)
    assert "there is no study to report" in refused_by("hyp_opt", *flags, "--prune")
    said_by("hyp_opt", *flags)
    searches = tmp_path / "out/optimization_plots"
    before, epochs = tree(searches), tmp_path / "out/Checkpoints/DDPM/Exp_smoke/digits/MyEmbedding"
    weights = epochs / "epoch1.weights.h5"
    kept = weights.read_bytes()
    shutil.copy(epochs / "epoch2.weights.h5", weights)  # as if it had been trained again
    stale = refused_by("hyp_opt", *flags)
    assert "other inputs: enc epoch 1 " in stale and "--restart to search afresh" in stale
    weights.write_bytes(kept)
    assert "finished already" in said_by("hyp_opt", *flags)
    best = json.loads((searches / "smoke/digits/enc/best.json").read_text())
    gone = 3 - best["epoch"]
    said = said_by("hyp_opt", *flags, "--prune")
    assert f"epoch {best['epoch']} is chosen: removing the epochs {gone} in" in said and f"{len(kept)} bytes" in said
    assert [p.name for p in sorted(epochs.glob("epoch*"))] == [
        f"epoch{best['epoch']}.weights.h5{suffix}" for suffix in ("", ".json")
    ]
    assert "finished already" in said_by("hyp_opt", *flags)
    assert before.keys() == tree(searches).keys()


def stopping_at_third(load):
    loaded = []

    def stop(context, epoch):
        loaded.append(epoch)
        if len(loaded) == 3:
            raise KeyboardInterrupt
        load(context, epoch)

    return stop


def test_search_never_reads_the_test_images(tiny, tmp_path, float32_after, monkeypatch):
    """With noise in their place the whole search is the same, trial by trial; only the final measurement differs. So it is
    if it is stopped and begun again."""
    found, measured = [], []
    for name in ("images", "noise"):
        root = tmp_path / name
        root.mkdir()
        write_few_digits(root / "few.npz", noise=name == "noise")
        common = ("--dataset", root / "few.npz", "--root", root, "--exp", "x", "--backbone", "tiny", "--precision", "float32")
        if name == "images":
            said_by("SD_adapting", *common, "--epochs", 1, "--batch_size", 32, "--lr", 1e-3)
        else:
            shutil.copytree(tmp_path / "images/Checkpoints", root / "Checkpoints")
        search = ("hyp_opt", *common, *SMALL, "--n_trials", 3, "--num_imgs", 40, "--epochs", 4, "--batch_size", 16,
                  "--test_imgs", 10, "--gen_batch_size", 20)  # fmt: skip
        if name == "noise":  # it is stopped in its third trial, too, and begun again
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(Context, "load", stopping_at_third(Context.load))
                said_by(*search)
        said_by(*search)
        study = optuna.load_study(
            study_name="few_expx_study_enc", storage=f"sqlite:///{root}/optimization_plots/x/few/study.db"
        )
        best = json.loads((root / "optimization_plots/x/few/enc/best.json").read_text())
        trials = [
            (t.params, t.value, t.state, t.intermediate_values) for t in study.trials if t.state.name in ("COMPLETE", "PRUNED")
        ]
        found.append((trials, best["is"], best["ugs"], best["val_accuracy"]))
        measured.append(json.loads((root / "CAS Results/pipeline_optimization_expx.json").read_text()))
    assert len(found[0][0]) == 3 and found[0] == found[1]
    assert len({np.float64(v) for trial in found[0][0] for v in trial[3].values()}) > 1  # accuracies that tell something
    assert measured[0] != measured[1]
