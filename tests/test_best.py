"""What a finished search has chosen, taken by name: equal to the numbers typed, or an error in one line."""

import shutil
from types import SimpleNamespace

import h5py
import pytest

import generate_dataset
import hyp_opt
import SD_adapting
from cli.best import search_result
from Data.registry import DATASETS
from Experiment.errors import UserError
from Experiment.files import file_hash, read_json, write_json
from Experiment.paths import Experiment
from Experiment.records import describe_arguments

pytestmark = pytest.mark.usefixtures("no_pictures")

SCALE = 1.2345678901234567  # more digits than a line shows


@pytest.fixture
def experiment(tmp_path):
    """An experiment whose two searches are finished: encoder epoch 2 and UNet epoch 3."""
    experiment = Experiment(tmp_path, "x", "digits")
    for part, epochs in (("enc", (1, 2)), ("dif", (1, 3))):
        for epoch in epochs:
            file = experiment.part_dir(part) / f"epoch{epoch}.weights.h5"
            file.parent.mkdir(parents=True, exist_ok=True)
            write_weights(file, epoch)
    finish_search(experiment, "enc", epoch=2, steps=9, scale=SCALE, enc_epoch=0, weights={})
    hashes = {"enc": file_hash(experiment.part_dir("enc") / "epoch2.weights.h5")}
    finish_search(experiment, "dif", epoch=3, steps=7, scale=2 * SCALE, enc_epoch=2, weights=hashes)
    return experiment


def write_weights(file, number):
    with h5py.File(file, "w") as weights:
        weights["number"] = number


def finish_search(experiment, part, epoch, steps, scale, enc_epoch, weights, **arguments):
    chosen = file_hash(experiment.part_dir(part) / f"epoch{epoch}.weights.h5")
    run = {"arguments": {"enc_epoch": enc_epoch, **arguments}, "inputs": {"epoch": chosen, "weights": weights}}
    best = {"trial": 1, "epoch": epoch, "is": steps, "ugs": scale, "run": run}
    write_json(experiment.search_dir(part) / "best.json", best)


TYPED_SECOND = ["--enc_epoch", "2", "--is_1", "9", "--ugs_1", repr(SCALE)]
TYPED_SET = ["--enc_epoch", "2", "--dif_epoch", "3", "--inf_steps", "7", "--ugs", repr(2 * SCALE)]
CASES = [
    (SD_adapting, ["--train_model", "dif", "--restart"], ["--enc_epoch", "best"], ["--enc_epoch", "2"]),
    (SD_adapting, ["--train_model", "dif"], ["--enc_epoch", "best", "--dif_epoch", "best"],
     ["--enc_epoch", "2", "--dif_epoch", "3"]),
    (SD_adapting, ["--train_model", "enc"], ["--enc_epoch", "best"], ["--enc_epoch", "2"]),
    (hyp_opt, ["--train_model", "dif"], ["--best"], TYPED_SECOND),
    (hyp_opt, ["--train_model", "dif", "--is_1", "9"], ["--enc_epoch", "best"], ["--enc_epoch", "2"]),
    (generate_dataset, ["--img_total", "10"], ["--best"], TYPED_SET),
    (generate_dataset, ["--img_total", "10", "--ugs", "1", "--inf_steps", "5"], ["--enc_epoch", "best", "--dif_epoch", "best"],
     ["--enc_epoch", "2", "--dif_epoch", "3"]),
]  # fmt: skip


def planned(script, experiment, flags):
    """A script's arguments as its record will hold them, and what its plan says of the run."""
    common = ["--dataset", "digits", "--exp", "x", "--root", str(experiment.root), "--backbone", "mini"]
    args = script.parse_args([*common, *flags])
    known = script.plan(args)
    return describe_arguments(args), {name: getattr(known, name, None) for name in ("identity", "inputs", "settings", "folder")}


@pytest.mark.parametrize("script, flags, best, typed", CASES)
def test_what_is_taken_by_name_is_what_is_typed(script, flags, best, typed, experiment):
    assert planned(script, experiment, [*flags, *best]) == planned(script, experiment, [*flags, *typed])


def test_a_search_that_goes_on_has_no_result_yet(experiment):
    searches_with(experiment, extended_to=50)
    for script, flags in ((hyp_opt, SECOND), (SD_adapting, ["--train_model", "dif", "--enc_epoch", "best"])):
        with pytest.raises(
            UserError, match="goes on, to 50 trials, and is not finished: run hyp_opt.py --train_model enc --n_trials 50"
        ):
            planned(script, experiment, flags)


def test_the_first_search_bounds_the_second(experiment):
    arguments, _ = planned(hyp_opt, experiment, ["--train_model", "dif", "--best"])
    assert (arguments["is_max"], arguments["ugs_max"]) == (9, 2 * SCALE) and "best" not in arguments


def searches_with(experiment, **levers):
    file = experiment.search_dir("enc") / "best.json"
    write_json(file, read_json(file) | levers)


DPM = {"solver": "dpmpp", "guidance_interval": [0.3, 1.5]}
SECOND = ["--train_model", "dif", "--best"]


def test_the_second_search_samples_as_the_first_has_chosen_to(experiment):
    searches_with(experiment, **DPM)
    typed = ["--train_model", "dif", *TYPED_SECOND, "--solver", "dpmpp", "--guidance_interval", "0.3", "1.5"]
    assert planned(hyp_opt, experiment, SECOND) == planned(hyp_opt, experiment, typed)
    arguments, _ = planned(hyp_opt, experiment, SECOND)
    assert arguments["timestep_spacing"] == "linspace" and "levers_1" not in arguments


def test_where_levers_are_searched_again_those_of_the_first_search_are_measured_and_tried(experiment, monkeypatch):
    from optuna import create_study

    from Search import report
    from Search.trials import warm_start

    searches_with(experiment, **DPM)
    args = hyp_opt.parse_args(["--dataset", "digits", "--exp", "x", "--root", str(experiment.root), "--backbone", "mini", *SECOND,
                               "--search_solver", "--search_interval"])  # fmt: skip
    hyp_opt.plan(args)
    assert args.levers_1 == {"solver": "dpmpp", "interval": [0.3, 1.5]}
    study = create_study()
    warm_start(args, study, [1, 3], "digits")
    asked = [trial.system_attrs["fixed_params"] for trial in study.get_trials()]
    assert asked[0]["solver"] == "ddim" and (asked[0]["sigma_1"], asked[0]["sigma_2"]) == (0.02, 15.0)
    assert asked[1] == {"is": 9, "ugs": round(SCALE, 4), "epoch": 3, "solver": "dpmpp", "sigma_1": 0.3, "sigma_2": 1.5}

    used = []

    class Asked(Exception):
        pass

    def images(steps, scale, numbers, seed, **levers):
        used.append((steps, scale, levers))
        raise Asked

    context = SimpleNamespace(epochs={1: None, 3: None}, load=lambda epoch: None, images=images)
    monkeypatch.setattr(report, "settings_of", lambda trial: None)
    with pytest.raises(Asked):
        report.measure(args, context, None, None)
    assert used == [(9, SCALE, {"solver": "dpmpp", "interval": [0.3, 1.5]})]


def test_a_solver_that_is_given_stays_and_the_difference_is_told(experiment, caplog, monkeypatch):
    monkeypatch.setattr("cli.best.log.propagate", True)
    searches_with(experiment, **DPM, autoguide=1)
    arguments, _ = planned(hyp_opt, experiment, [*SECOND, "--solver", "ddim", "--guidance_interval", "0.3", "1.5"])
    assert "solver" not in arguments or arguments["solver"] == "ddim"
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == 2 and "chosen with solver dpmpp, this one is given ddim" in warned[0]
    assert "an earlier Class Encoder guided" in warned[1]


def test_the_spacing_of_the_timesteps_goes_with_the_steps(experiment, caplog, monkeypatch):
    monkeypatch.setattr("cli.best.log.propagate", True)
    for part in ("enc", "dif"):
        file = experiment.search_dir(part) / "best.json"
        found = read_json(file)
        found["run"]["arguments"]["timestep_spacing"] = "linspace"
        write_json(file, found)
    made = ["--img_total", "10", "--best"]
    for script, flags in ((generate_dataset, made), (hyp_opt, SECOND)):
        assert planned(script, experiment, flags)[0]["timestep_spacing"] == "linspace"
        given = planned(script, experiment, [*flags, "--timestep_spacing", "leading"])
        assert given[0]["timestep_spacing"] == "leading"
        assert "chosen with --timestep_spacing linspace, this run is given leading" in caplog.text
        caplog.clear()
    dpm = planned(hyp_opt, experiment, [*SECOND, "--solver", "dpmpp"])
    assert dpm[0]["timestep_spacing"] == "linspace"  # of another solver: its own
    searched = planned(hyp_opt, experiment, [*SECOND, "--search_solver"])
    assert searched[0].get("timestep_spacing") is None  # each trial has its solver's own
    assert "chosen with --timestep_spacing linspace, which this one does without" in caplog.text


def test_more_steps_than_the_solver_of_the_first_search_takes_are_refused(experiment):
    searches_with(experiment, **DPM)
    with pytest.raises(UserError, match="dpmpp takes at most 999 steps, received 1000"):
        planned(hyp_opt, experiment, [*SECOND, "--is_max", "1000"])


def test_what_is_taken_is_told(experiment, caplog, monkeypatch):
    monkeypatch.setattr("cli.best.log.propagate", True)
    caplog.set_level("INFO", "experiment")
    planned(generate_dataset, experiment, ["--img_total", "10", "--best"])
    assert "--best takes epoch 3, steps 7, scale 2.46914, Class Encoder epoch 2 from" in caplog.text


def test_defaults_are_the_papers_without_a_search(tmp_path):
    second = hyp_opt.parse_args(["--train_model", "dif", "--root", str(tmp_path)])
    assert (second.enc_epoch, second.is_1, second.ugs_1, second.is_max, second.ugs_max) == (0, 50, 7.5, 50, 15.0)
    made = generate_dataset.parse_args(["--img_total", "10", "--root", str(tmp_path)])
    assert (made.enc_epoch, made.dif_epoch, made.inf_steps, made.ugs) == (50, 10, 50, 7.5)


@pytest.mark.parametrize("script, flags, flag, part", [
    (SD_adapting, ["--train_model", "dif", "--enc_epoch", "best"], "--enc_epoch best", "enc"),
    (hyp_opt, ["--train_model", "dif", "--best"], "--best", "enc"),
    (generate_dataset, ["--img_total", "10", "--best"], "--best", "dif"),
])  # fmt: skip
def test_a_search_that_is_not_finished_is_one_line(script, flags, flag, part, experiment):
    shutil.rmtree(experiment.search_dir(part))
    with pytest.raises(UserError, match=f"^{flag}: no search .* run hyp_opt.py --train_model {part} first"):
        planned(script, experiment, flags)


@pytest.mark.parametrize("script, flags, message", [
    (hyp_opt, ["--best"], "argument --best: is for --train_model dif"),
    (hyp_opt, ["--enc_epoch", "best"], "argument --enc_epoch best: is for --train_model dif"),
    (hyp_opt, ["--is_1", "20"], "argument --is_1: is for --train_model dif"),
    (hyp_opt, ["--train_model", "dif", "--best", "--is_1", "50"], "argument --best: not allowed with --is_1"),
    (generate_dataset, ["--img_total", "1", "--best", "--ugs", "7.5"], "argument --best: not allowed with --ugs"),
    (SD_adapting, ["--exp", "x", "--enc_epoch", "bestt"], "argument --enc_epoch: invalid whole number or best value"),
])  # fmt: skip
def test_wrong_flags_are_one_line(script, flags, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        script.parse_args(flags)
    assert message in capsys.readouterr().err


def test_more_steps_at_least_than_the_first_search_found_are_refused(experiment):
    with pytest.raises(UserError, match="argument --is_min: 10 is more than the most inference steps, 9"):
        planned(hyp_opt, experiment, ["--train_model", "dif", "--best", "--is_min", "10"])


@pytest.mark.parametrize("part, epoch, kind", [("dif", 3, "UNet"), ("enc", 2, "Class Encoder")])
def test_weights_that_were_trained_again_are_refused(part, epoch, kind, experiment):
    file = experiment.part_dir(part) / f"epoch{epoch}.weights.h5"
    write_weights(file, 99)
    with pytest.raises(UserError, match=f"--best: epoch {epoch} of the {kind} is not the one that was searched"):
        search_result(experiment, "dif", DATASETS["digits"].classes, "--best")
    file.unlink()
    with pytest.raises(UserError, match=f"there is no {kind} of that epoch"):
        search_result(experiment, "dif", DATASETS["digits"].classes, "--best")


@pytest.mark.parametrize("change", [{"epoch": None}, {"ugs": []}, {"is": "many"}, {"run": 5}, {"run": {}}])
def test_a_damaged_result_is_one_line(change, experiment):
    file = experiment.search_dir("enc") / "best.json"
    write_json(file, read_json(file) | change)
    with pytest.raises(UserError, match="is not what a search writes"):
        search_result(experiment, "enc", DATASETS["digits"].classes, "--best")


# A search on test images


@pytest.fixture
def on_test(experiment):
    """The same experiment, whose searches have chosen on test images."""
    finish_search(experiment, "enc", epoch=2, steps=9, scale=SCALE, enc_epoch=0, weights={}, select_on="test")
    hashes = {"enc": file_hash(experiment.part_dir("enc") / "epoch2.weights.h5")}
    finish_search(experiment, "dif", 3, 7, 2 * SCALE, enc_epoch=2, weights=hashes, select_on="test")
    return experiment


@pytest.mark.parametrize("flags, flag", [(["--best"], "--best"), (["--enc_epoch", "best"], "--enc_epoch best")])
def test_a_search_on_validation_takes_nothing_that_was_chosen_on_test(flags, flag, on_test):
    with pytest.raises(UserError, match=f"{flag}: the search in .*enc.best.json has chosen on TEST images"):
        planned(hyp_opt, on_test, ["--train_model", "dif", *flags])
    planned(hyp_opt, on_test, ["--train_model", "dif", *flags, "--select_on", "test"])


@pytest.mark.parametrize("script, flags", [
    (SD_adapting, ["--train_model", "dif", "--enc_epoch", "best", "--restart"]), (generate_dataset, ["--img_total", "10", "--best"]),
    (generate_dataset, ["--img_total", "10", "--dif_epoch", "best", "--enc_epoch", "2"]),
])  # fmt: skip
def test_what_was_chosen_on_test_is_said_and_known(script, flags, on_test, caplog, monkeypatch):
    monkeypatch.setattr("cli.best.log.propagate", True)
    args = script.parse_args(["--dataset", "digits", "--exp", "x", "--root", str(on_test.root), "--backbone", "mini", *flags])
    assert script.plan(args).taken == {"select_on": "test"}
    assert [r.levelname for r in caplog.records if "has chosen on TEST images" in r.getMessage()] == ["WARNING"]


def test_records_say_what_was_chosen_on_test(tiny, tmp_path):
    experiment, common = (Experiment(tmp_path, "x", "digits"), ["--exp", "x", "--backbone", "tiny", "--root", str(tmp_path)])
    common += ["--dataset", "digits"]
    weights = {}
    for part, flags in (("enc", []), ("dif", ["--enc_epoch", "best"])):
        folder = SD_adapting.adapt(SD_adapting.parse_args([*common, "--train_model", part, *flags]))
        finish_search(experiment, part, 1, 2, 1.5, enc_epoch=1, weights=weights, select_on="test")
        weights = {part: file_hash(folder / "epoch1.weights.h5")}
    assert read_json(folder / "training.json")["select_on"] == "test"
    made = generate_dataset.generate(generate_dataset.parse_args([*common, "--img_total", "10", "--best"]))
    assert read_json(made / "manifest.json")["select_on"] == read_json(made / "run.json")["select_on"] == "test"
