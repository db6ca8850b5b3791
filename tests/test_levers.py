"""Levers that the paper does not have: off by default, on record when they are on."""

import argparse
import csv
import json

import numpy as np
import optuna
import pytest
from PIL import Image

import audit_dataset
import classifier_training
import generate_dataset
import hyp_opt
import pipeline
import SD_adapting
from Experiment.errors import UserError
from Experiment.files import read_json, write_json
from Experiment.levers import OFF, RECIPE_BEST
from Experiment.paths import Experiment
from Experiment.records import changes, describe_arguments, describe_run, finished_run, fixed_arguments
from Models.weight_cards import weights_hashes
from Search.pareto import front, passes
from Search.settings import NOISE_LEVELS, Settings, as_flags, as_params, levers_used, settings_of, suggest_settings
from Stages.stages import common_flags

GENERATE = ["--img_total", "23", "--enc_epoch", "31", "--dif_epoch", "10", "--inf_steps", "3", "--ugs", "1.5"]


def refused(parse_args, flags, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_args(flags)
    assert stopped.value.code == 2
    return capsys.readouterr().err


# Records


def test_a_lever_that_is_off_is_in_no_record():
    args = generate_dataset.parse_args(GENERATE)
    assert {name: getattr(args, name) for name in OFF if hasattr(args, name)} == {
        name: value for name, value in OFF.items() if hasattr(args, name)
    }
    assert not set(OFF) & set(fixed_arguments(args, ())) and args.timestep_spacing == "leading"
    assert not set(OFF) & set(describe_run(args, 0)["arguments"])


def test_no_lever_of_all_is_in_a_record_or_missed_in_one_while_it_is_off(tmp_path):
    off = argparse.Namespace(lr=1, restart=False, **OFF)
    assert describe_arguments(off) == {"lr": 1, "restart": False}
    record = tmp_path / "training.json"
    record.write_text('{"arguments": {"lr": 1}, "inputs": {}}')
    assert finished_run(record, off, ())


@pytest.mark.parametrize("before, now, said", [
    ({}, {"--solver": "dpmpp"}, "--solver ddim (now dpmpp)"),
    ({"--guidance_interval": [0.3, 2.0]}, {}, "--guidance_interval [0.3, 2.0] (now None)"),
    ({"--guidance_interval": [0.3, 2.0]}, {"--guidance_interval": [0.3, 2.5]}, "--guidance_interval [0.3, 2.0] (now [0.3, 2.5])"),
    ({"--autoguide": 3}, {"--autoguide": 3}, ""),
    ({}, {}, ""),
])  # fmt: skip
def test_a_lever_that_a_record_does_not_name_is_off(before, now, said):
    assert changes({"--lr": 1, **before}, {"--lr": 1, **now}) == (f"other arguments: {said}" if said else "")


# Sets


def images_of(*flags):
    """The pixels of a set that is generated with these flags, int (N, H, W, 3)."""
    folder = generate_dataset.generate(generate_dataset.parse_args([*flags]))
    return np.stack([np.asarray(Image.open(file)) for file in sorted(folder.glob("class_*/*.png"))]).astype(int)


def test_sets_of_other_levers_have_other_names_and_are_not_mixed(tiny_experiment, tmp_path):
    flags = [*tiny_experiment, *GENERATE]
    plain = generate_dataset.generate(generate_dataset.parse_args(flags))
    on = ["--solver", "dpmpp", "--guidance_interval", "0.3", "2"]
    folder = generate_dataset.generate(generate_dataset.parse_args([*flags, *on]))
    assert folder.name == f"{plain.name}DpmppGi0.3-2"
    manifest = read_json(folder / "manifest.json")
    assert (manifest["solver"], manifest["guidance_interval"]) == ("dpmpp", [0.3, 2.0])
    assert manifest["timestep_spacing"] == "linspace"
    assert not set(OFF) & set(read_json(plain / "manifest.json"))
    assert (folder / "class_00/img_0.png").read_bytes() != (plain / "class_00/img_0.png").read_bytes()
    assert generate_dataset.plan(generate_dataset.parse_args([*flags, *on])).done
    outside = images_of(*flags, "--guidance_interval", "50", "100")  # no step lies there
    unguided = images_of(*flags[:-1], "1")
    assert (outside != images_of(*flags)).any() and np.abs(outside - unguided).max() <= 1
    # Were the folder's name no help, its record would be.
    record = read_json(folder / "generation.json")
    del record["solver"]
    (folder / "generation.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="solver: ddim there, dpmpp now"):
        generate_dataset.plan(generate_dataset.parse_args([*flags, *on]))


def test_a_set_guided_by_an_earlier_epoch_says_by_which_weights(tiny_experiment, tmp_path):
    from Models.backbones import BACKBONES

    folder = tmp_path / "Checkpoints/DDPM/Exp_0001/digits/DiffusionFt"
    flags = [*tiny_experiment, *GENERATE, "--autoguide", "4"]
    with pytest.raises(UserError, match="--autoguide 4: there is no UNet of that epoch in .*Epochs there: 10"):
        generate_dataset.plan(generate_dataset.parse_args(flags))
    BACKBONES["mini"].unet().save_weights(folder / "epoch4.weights.h5")
    made = generate_dataset.generate(generate_dataset.parse_args(flags))
    manifest = read_json(made / "manifest.json")
    assert made.name.endswith("Ag4") and manifest["autoguide"] == 4 and len(manifest["weights"]["guide"]) == 64
    assert (images_of(*flags[:-2]) != images_of(*flags)).any()
    BACKBONES["mini"].unet().save_weights(folder / "epoch4.weights.h5")  # other random weights
    with pytest.raises(UserError, match="weights.guide"):
        generate_dataset.plan(generate_dataset.parse_args(flags))


@pytest.mark.parametrize("flags, said", [
    (["--guidance_interval", "2", "1"], "LO must be less than HI, received 2 1"),
    (["--guidance_interval", "-1", "1"], "at least 0"),
    (["--solver", "euler"], "invalid choice"),
    (["--filter", "--shard", "1/2"], "argument --shard: not allowed with --filter"),
])  # fmt: skip
def test_flags_that_make_no_sense_are_refused_in_one_line(flags, said, capsys):
    error = refused(generate_dataset.parse_args, [*GENERATE, *flags], capsys)
    assert said in error and error.count("\n") == 1


@pytest.mark.parametrize("flags, said", [
    (["--autoguide", "10"], "--autoguide 10: must be an epoch before --dif_epoch 10, which it guides"),
    (["--dif_epoch", "0", "--autoguide", "0"], "a fresh Class Encoder guides nowhere"),
])  # fmt: skip
def test_a_guide_is_an_earlier_epoch(tiny_experiment, flags, said):
    with pytest.raises(UserError, match=said):
        generate_dataset.plan(generate_dataset.parse_args([*tiny_experiment, *GENERATE, *flags]))


# Search


def test_searched_levers_are_settings_of_a_trial():
    args = hyp_opt.parse_args(["--dataset", "digits", "--search_solver", "--search_interval"])
    study = optuna.create_study()
    study.enqueue_trial({"is": 7, "ugs": 1.5, "epoch": 3, "sigma_1": 2.0, "sigma_2": 0.5, "solver": "dpmpp"})
    study.enqueue_trial({"is": 7, "ugs": 1.5, "epoch": 3, **as_params(args, {})})

    def objective(trial):
        suggest_settings(trial, args, 9)
        trial.set_user_attr("saved_epoch", 4)
        return 0.0

    study.optimize(objective, n_trials=2)
    searched, published = map(settings_of, study.trials)
    assert searched == (7, 1.5, 4, {"solver": "dpmpp", "interval": [0.5, 2.0]})
    assert published.levers == {"solver": "ddim", "interval": list(NOISE_LEVELS)}
    told = "--enc_epoch 4 --dif_epoch 0 --inf_steps 7 --ugs 1.5 --solver dpmpp --guidance_interval 0.5 2.0"
    assert as_flags(args, searched) == told
    plain = hyp_opt.parse_args(["--dataset", "digits"])
    assert levers_used(plain, {}) == {} and as_params(plain, {}) == {}


@pytest.mark.parametrize("flags, epochs", [([], "--enc_epoch 4 --dif_epoch 0"),
                                           (["--train_model", "dif", "--enc_epoch", "9"], "--enc_epoch 9 --dif_epoch 4")])  # fmt: skip
def test_what_a_search_reports_is_a_command_line_that_makes_the_same_images(flags, epochs):
    args = hyp_opt.parse_args(["--dataset", "digits", *flags, "--timestep_spacing", "linspace"])
    settings = Settings(7, 1.2345678901234, 4)
    told = as_flags(args, settings)
    assert told == f"{epochs} --inf_steps 7 --ugs 1.2345678901234 --timestep_spacing linspace"
    made = generate_dataset.parse_args(["--dataset", "digits", "--img_total", "10", *told.split()])
    assert (made.inf_steps, made.ugs, made.timestep_spacing) == (7, settings.scale, "linspace")


@pytest.mark.parametrize("flags, said", [
    (["--search_solver", "--solver", "dpmpp"], "argument --solver: not allowed with --search_solver"),
    (["--search_interval", "--guidance_interval", "1", "2"], "not allowed with --search_interval"),
])  # fmt: skip
def test_a_search_of_what_is_given_is_refused(flags, said, capsys):
    assert said in refused(hyp_opt.parse_args, ["--dataset", "digits", *flags], capsys)


@pytest.mark.parametrize("flags, settings, expected", [
    ([], (13, 1.5, 1), 2 * 14),  # --inf_steps 13 visits 14 timesteps
    ([], (13, 1.0, 1), 14),
    (["--solver", "dpmpp"], (6, 1.5, 1), 12),
    (["--solver", "dpmpp", "--guidance_interval", "50", "60"], (6, 1.5, 1), 6),
    (["--guidance_interval", "0.283", "1.609"], (31, 1.5, 1), 32 + 13),
    (["--search_solver", "--search_interval"], (6, 1.5, 1, {"solver": "dpmpp", "interval": [0.01, 20.0]}), 12),
])  # fmt: skip
def test_passes_of_an_image(flags, settings, expected):
    assert passes(hyp_opt.parse_args(["--dataset", "digits", *flags]), Settings(*settings)) == expected


def test_the_front_has_what_no_other_beats():
    costs, accuracies = [12, 26, 12, 20, 6, 30], [0.90, 0.95, 0.93, 0.92, 0.5, 0.95]
    assert front(costs, accuracies) == [4, 2, 1]


@pytest.fixture
def adapted(tiny, tmp_path):
    common = ["--dataset", "digits", "--exp", "x", "--backbone", "tiny", "--root", str(tmp_path / "out")]
    SD_adapting.adapt(SD_adapting.parse_args([*common, "--epochs", "3", "--lr", "1e-3"]))
    return common


def test_best_takes_the_levers_of_the_search(tiny_experiment, tmp_path, capsys):
    experiment = Experiment(tmp_path, "0001", "digits")
    searched = ["--search_solver", "--search_interval"]
    args = hyp_opt.parse_args([*tiny_experiment, "--train_model", "dif", "--enc_epoch", "31", *searched])
    folder = experiment.part_dir("dif")
    files = {"enc": experiment.part_dir("enc") / "epoch31.hdf5", "dif": folder / "epoch10.weights.h5"}
    hashes = weights_hashes(files, list("0123456789"))
    run = describe_run(args, 0, {"epoch": hashes["dif"], "weights": {"enc": hashes["enc"]}})
    found = {"epoch": 10, "is": 4, "ugs": 1.5, "solver": "dpmpp", "guidance_interval": [0.3, 2.0], "run": run}
    write_json(experiment.search_dir("dif") / "best.json", found)
    flags = [*tiny_experiment, "--img_total", "20", "--best"]
    args = generate_dataset.parse_args(flags)
    known = generate_dataset.plan(args)
    assert known.folder.name == "20Enc31Dif10Is4Ugs1.5DpmppGi0.3-2"
    assert (known.settings["solver"], known.settings["timestep_spacing"]) == ("dpmpp", "linspace")
    assert "argument --best: not allowed with --solver" in refused(
        generate_dataset.parse_args, [*flags, "--solver", "dpmpp"], capsys
    )


def test_solver_interval_and_steps_are_searched_together(adapted, tmp_path, caplog):
    small = ["--num_imgs", "20", "--epochs", "1", "--batch_size", "10", "--classifier", "resnet20_16", "--rungs", "1",
             "--n_trials", "3", "--is_min", "2", "--is_max", "4", "--repeats", "0", "--autoguide", "1", "--pruner", "none"]  # fmt: skip
    flags = [*adapted, *small, "--search_solver", "--search_interval", "--objective", "pareto"]
    with caplog.at_level("INFO", logger="experiment"):
        best = hyp_opt.search(hyp_opt.parse_args(flags))
    folder = tmp_path / "out/optimization_plots/x/digits/enc"
    with open(folder / "trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["solver"] for row in rows} <= {"ddim", "dpmpp"} and all(row["interval"].startswith("[") for row in rows)
    assert all(int(row["saved_epoch"]) > 1 for row in rows)
    assert len(best["guidance_interval"]) == 2 and best["autoguide"] == 1
    assert "--autoguide 1, validation accuracy" in caplog.text
    assert best["run"]["arguments"]["search_interval"] is True
    with open(folder / "pareto.csv", newline="") as file:
        cheapest = list(csv.DictReader(file))
    assert cheapest and all(float(row["seconds"]) > 0 and "--inf_steps" in row["flags"] for row in cheapest)
    assert (folder / "pareto.png").stat().st_size > 1000 and f"{cheapest[0]['passes']} passes" in caplog.text
    with pytest.raises(UserError, match=r"--search_interval True \(now False\)"):
        hyp_opt.search(hyp_opt.parse_args([*adapted, *small, "--search_solver"]))


# --recipe


@pytest.mark.parametrize("script, needed, levers", [
    (generate_dataset, GENERATE, {"solver": "dpmpp", "timestep_spacing": "linspace"}),
    (hyp_opt, [], {"solver": "dpmpp", "augment": "none"}),
    (classifier_training, [], {"augment": "standard", "labels": "both"}),
    (classifier_training, ["--synthetic", "False"], {"augment": "standard", "labels": "hard"}),
    (generate_dataset, ["--img_total", "9", "--best"], {"solver": "ddim"}),  # what the search has chosen comes later
    (hyp_opt, ["--search_solver"], {"solver": "ddim"}),
])  # fmt: skip
def test_the_best_recipe_is_the_flags_that_it_stands_for(script, needed, levers):
    best = vars(script.parse_args([*needed, "--recipe", "best"]))
    paper = vars(script.parse_args([*needed, "--recipe", "paper"]))
    assert paper == vars(script.parse_args(needed)) and "recipe" not in best
    assert {name: best[name] for name in levers} == levers
    spelled = [word for name in levers if name in OFF for word in (f"--{name}", str(levers[name]))]
    if "--best" not in needed:
        assert best == vars(script.parse_args([*needed, *spelled]))


def test_a_flag_that_is_given_goes_before_the_recipe(capsys):
    args = classifier_training.parse_args(["--recipe", "best", "--labels", "hard"])
    assert (args.labels, args.augment) == ("hard", "standard")
    assert "ddim" in generate_dataset.parse_args([*GENERATE, "--recipe", "best", "--solver", "ddim"]).solver
    assert "invalid choice: 'good'" in refused(generate_dataset.parse_args, [*GENERATE, "--recipe", "good"], capsys)


def test_the_best_recipe_names_flags_that_the_scripts_have():
    for name, flags in RECIPE_BEST.items():
        parsed = vars({"generate_dataset": generate_dataset, "hyp_opt": hyp_opt, "SD_adapting": SD_adapting,
                       "classifier_training": classifier_training}[name].parse_args(
                           GENERATE if name == "generate_dataset" else ["--exp", "e"]))  # fmt: skip
        assert set(flags) <= set(parsed) & set(OFF)


def test_the_pipeline_passes_the_recipe_to_each_stage(tmp_path):
    flags = ["--dataset", "digits", "--exp", "e", "--backbone", "mini", "--root", str(tmp_path), "--sizes", "4"]
    stages = pipeline.plan(pipeline.parse_args([*flags, "--recipe", "best"])).stages
    assert all("--recipe best" in stage.shown for stage in stages)
    assert "--epochs 60" in stages[-1].shown  # of augmented images, where the paper's are seen 20 times
    args = pipeline.parse_args([*flags, "--recipe", "best"])
    audit_dataset.parse_args(common_flags(args))  # the page of the experiment shows this command
    paper = pipeline.plan(pipeline.parse_args(flags)).stages
    assert not any("--recipe" in stage.shown for stage in paper) and "--epochs 20" in paper[-1].shown
