"""The whole method as one command: the list of its stages, how they run as processes, and what is shown."""

import errno
import io
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace

import numpy as np
import pytest
from PIL import Image

import pipeline
from cli import process
from Data.loaders import load_splits
from Data.measured import audit_file
from Data.registry import DATASETS, dataset_spec
from Experiment.errors import UserError, exit_code
from Experiment.files import read_json, write_json
from Experiment.paths import REPOSITORY, Experiment
from Experiment.progress import MARK, TO_PIPELINE
from Experiment.results import CHOSEN_ON_TEST
from Stages import display, outcome, report, running
from Stages.display import Display
from Stages.running import Runner
from Stages.stages import Stage, at_once
from Stages.work import fraction, operations, search_shares
from tests.test_export import write_set
from tests.test_scripts import run, succeed

DEMO = ["--dataset", "digits", "--exp", "demo", "--backbone", "mini", "--sizes", "1", "4"]


def known(*flags):
    return pipeline.plan(pipeline.parse_args([*map(str, flags)]))


def commands(*flags):
    return [" ".join(stage.command) for stage in known(*flags).stages]


# The list of stages


def test_the_demo_has_the_settings_that_the_readme_has_numbers_of(tmp_path):
    root = f"--root {tmp_path}"
    common, search = f"--dataset digits --exp demo {root}", (
        "--classifier resnet20_16 --batch_size 64 --n_trials 5 --num_imgs 300 --test_imgs 1000 --epochs 32 --solver dpmpp --is_min 5 "
        "--warm_start --save_plots"
    )  # fmt: skip
    mini, small = f"{common} --backbone mini", f"{common} --classifier resnet20_16 --batch_size 64"
    assert commands(*DEMO, "--root", tmp_path) == [
        f"SD_adapting.py {mini} --train_model enc --epochs 12 --freq 4",
        f"hyp_opt.py {mini} --train_model enc {search} --is_max 8 --ugs_max 4",
        f"SD_adapting.py {mini} --train_model dif --enc_epoch best --epochs 64 --freq 8",
        f"hyp_opt.py {mini} --train_model dif --best {search}",
        f"generate_dataset.py {mini} --img_total 1000 --best",
        f"generate_dataset.py {mini} --img_total 4000 --best",
        f"classifier_training.py {small} --epochs 40 --synthetic False",
        f"classifier_training.py {small} --epochs 40 --take 1",
        f"classifier_training.py {small} --epochs 20 --take 4",
    ]
    stages = known(*DEMO).stages
    assert [stage.group for stage in stages] == [0, 1, 2, 3, 4, 4, 4, 5, 5]
    assert at_once(Namespace(backbone="mini")) == 3 and at_once(Namespace(backbone="sd1")) == 1


def test_a_full_size_backbone_runs_with_the_papers_values():
    assert commands("--dataset", "cifar10", "--exp", "0001", "--sizes", 10) == [
        "SD_adapting.py --dataset cifar10 --exp 0001 --backbone sd1 --train_model enc",
        "hyp_opt.py --dataset cifar10 --exp 0001 --backbone sd1 --train_model enc --save_plots",
        "SD_adapting.py --dataset cifar10 --exp 0001 --backbone sd1 --train_model dif --enc_epoch best",
        "hyp_opt.py --dataset cifar10 --exp 0001 --backbone sd1 --train_model dif --best --save_plots",
        "generate_dataset.py --dataset cifar10 --exp 0001 --backbone sd1 --img_total 400000 --best",
        "classifier_training.py --dataset cifar10 --exp 0001 --synthetic False",
        "classifier_training.py --dataset cifar10 --exp 0001 --take 10",
    ]


@pytest.mark.parametrize("side, batch", [(28, None), (32, None), (64, 64), (128, 32)])
def test_a_classifier_sees_fewer_of_larger_pictures_at_a_time(side, batch):
    """Of the full-size backbones: the paper's 256 images of 128 px would not fit into the memory of most GPUs."""
    flags = ["--dataset", "cifar10", "--exp", "x", "--resolution", side]
    found = [command for command in commands(*flags) if command.startswith(("hyp_opt", "classifier"))]
    assert len(found) == 4 and all((f"--batch_size {batch}" in command) == bool(batch) for command in found)


def test_few_large_pictures_are_no_fewer_than_a_batch(tmp_path):
    flags = ["--dataset", image_folder(tmp_path / "own", 36, 150), "--exp", "x", "--root", tmp_path / "out", "--num_imgs", 20]
    search, real = (next(c for c in commands(*flags) if c.startswith(name)) for name in ("hyp_opt", "classifier"))
    assert "--batch_size 20" in search and "--batch_size 12" in real  # of 24 training images


def test_flags_reach_the_stages_that_have_them(tmp_path):
    flags = {"--data_dir": tmp_path, "--seed": 7, "--resolution": 14, "--background": "black", "--skip_broken": "",
             "--deterministic": "", "--xla": "off", "--tf32": ""}  # fmt: skip
    model = {"--precision": "float32", "--weights_dir": tmp_path}
    given = [text for flag, value in {**flags, **model}.items() for text in (flag, value) if text != ""]
    for command in commands(*DEMO, *given):
        for flag, value in flags.items():
            assert f"{flag} {value}".strip() in command
        for flag, value in model.items():
            assert (f"{flag} {value}" in command) == (not command.startswith("classifier"))


def test_what_the_user_chooses_stays():
    chosen = ["--enc_epochs", 3, "--dif_epochs", 5, "--n_trials", 7, "--num_imgs", 50, "--test_imgs", 60, "--trial_epochs", 9,
              "--classifier_epochs", 11, "--classifier", "resnet20"]  # fmt: skip
    for backbone in ("mini", "sd1"):
        enc, first, dif, second, _, real, one = commands("--dataset", "digits", "--exp", "x", "--backbone", backbone, *chosen)
        assert "--epochs 3" in enc and "--epochs 5" in dif and "--epochs 11" in real and "--epochs 11" in one
        for search in (first, second):
            assert "--n_trials 7" in search and "--num_imgs 50" in search and "--test_imgs 60" in search
            assert "--epochs 9" in search and "--classifier resnet20 " in f"{search} "


def test_further_flags_go_to_their_script():
    also = ["--also", "hyp_opt --pruner none --rungs 1", "--also", "SD_adapting.py:dif --keep 2",
            "--also", "classifier_training:synthetic --real_share 0.5"]  # fmt: skip
    for command in commands(*DEMO, *also):
        assert ("--pruner none --rungs 1" in command) == command.startswith("hyp_opt")
        assert ("--keep 2" in command) == ("SD_adapting" in command and "--train_model dif" in command)
        assert ("--real_share 0.5" in command) == ("--take" in command)


def test_a_search_that_chooses_the_solver_is_given_none():
    found = [command for command in commands(*DEMO, "--also", "hyp_opt --search_solver") if "hyp_opt" in command]
    assert len(found) == 2 and all("--search_solver" in each and "--solver" not in each.split() for each in found)


def test_a_filter_has_the_classifier_of_the_real_images_before_it():
    real, made, learned = known(*DEMO[:-1], "--also", "generate_dataset --filter=0.5").stages[-3:]
    assert (real.name, made.name, learned.name) == ("classifier, real", "generation, 1x", "classifier, 1x")
    assert real.group < made.group < learned.group and "--filter_classifier resnet20_16" in " ".join(made.command)


def image_folder(path, images, side):
    for i in range(images):
        file = path / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (side, side, 3), np.uint8)).save(file)
    return path


def test_own_images_are_seen_no_larger_than_the_backbone_makes_them(tmp_path, capsys):
    flags = ["--dataset", image_folder(tmp_path / "own", 60, 40), "--exp", "x", "--root", tmp_path / "out"]
    small = known(*flags, "--backbone", "mini")
    assert all("--resolution 32" in " ".join(stage.command) for stage in small.stages) and "at 32 px" in small.note
    assert "--batch_size 21" in " ".join(small.stages[-1].command)  # of 42 training images
    classifying = [stage for stage in small.stages if stage.script in ("hyp_opt", "classifier_training")]
    assert all("--optimizer adam_steps" in " ".join(stage.command) for stage in classifying)  # few epochs: the rate must fall
    full = known(*flags, "--backbone", "sd1")
    assert not any("--resolution" in stage.command for stage in full.stages) and not full.note
    assert not any("--optimizer" in stage.command for stage in full.stages)
    chosen = known(*flags, "--backbone", "mini", "--resolution", 36)
    assert all("--resolution 36" in " ".join(stage.command) for stage in chosen.stages) and not chosen.note


@pytest.mark.parametrize("flags, message", [
    (["--exp", "x", "--dataset", "cifar11"], "did you mean cifar10?"), (["--dataset", "digits"], "--exp"),
    (["--exp", "x", "--sizes", "0"], "argument --sizes: must be in 1..1000"),
    (["--exp", "x", "--also", "hyp_op --rungs 1"], "argument --also: must be one of SD_adapting, "),
    (["--exp", "x", "--also", "hyp_opt '"], "argument --also: must be one of"),
    (["--exp", "x", "--also", "hyp_opt --rungs 9"], "argument --rungs: must be in 1..6"),
    (["--exp", "x", "--also", "generate_dataset --ugs 2"], "argument --best: not allowed with --ugs"),
    (["--exp", "x", "--num_imgs", "10", "--also", "hyp_opt --batch_size 64"], "--batch_size: 64 is more than the 10"),
    (["--exp", "x", "--also", "classifier_training:real --classifier resnet20_16"], "kinds are not compared (resnet20, resnet20_16)"),
    (["--exp", "x", "--also", "classifier_training --test False"], "classifiers are tested"),
    (["--exp", "x", "--also", "generate_dataset --img_total=5"], "argument --also: the pipeline decides --img_total=5"),
    (["--exp", "x", "--also", "hyp_opt --no-optimize"], "argument --also: the pipeline decides --no-optimize"),
    (["--exp", "x", "--also", "hyp_opt --storage sqlite:///"], "is a database in memory"),
    (["--exp", "x", "--also", "generate_dataset --filter --filter_classifier resnet20_16"],
     "nobody has trained or trains the --filter_classifier resnet20_16 on the real images"),
    (["--exp", "x", "--also", "classifier_training --repeats 1/3"], "a stage is done as a whole"),
    (["--exp", "x", "--also", "generate_dataset --shard 1/2"], "a stage is done as a whole"),
    (["--exp", "x", "--also", "classifier_training:synthetic --take 2"], "is said by --sizes"),
    (["--exp", "x", "--also", "classifier_training:synthetic --synthetic_dir ."], "must name a set of the experiment"),
])  # fmt: skip
def test_wrong_flags_end_in_one_line_before_anything_runs(flags, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pipeline.py"])
    parse = lambda: pipeline.parse_args([*flags, "--root", str(tmp_path)])  # noqa: E731
    with pytest.raises(SystemExit, match="2"):
        process.run(pipeline.run_pipeline, parse, pipeline.plan, starts_keras=False)
    said, error = capsys.readouterr()
    assert error.startswith("pipeline.py: error: ") and message in error and len(error.splitlines()) == 1
    assert not said and not list(tmp_path.iterdir())


def test_a_wrong_flag_ends_the_process(tmp_path):
    done = run("pipeline.py", "--exp", "x", "--sizes", "0", "--root", tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("pipeline.py: error: argument --sizes: ")
    assert len(done.stderr.splitlines()) == 1 and not done.stdout and not list(tmp_path.iterdir())


def test_a_dry_run_prints_the_commands_and_writes_nothing(tmp_path):
    done = succeed("pipeline.py", *DEMO, "--root", tmp_path / "two words", "--dry_run", cwd=tmp_path)
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        ["python", stage.command[0]] for stage in known(*DEMO).stages
    ]
    assert f"--root '{tmp_path}/two words'" in done.stdout and not list(tmp_path.iterdir())


# Stages as processes. The scripts here are a few lines each.

SCRIPTS = {
    "says": "import sys; print('hello', *sys.argv[1:], flush=True); print('a warning', file=sys.stderr)",
    "finished": "print('finished already: folder')",
    "mistake": "import sys; print('mistake.py: error: no such thing', file=sys.stderr); sys.exit(2)",
    "away": "import sys; print('away.py: error: the database is away', file=sys.stderr); sys.exit(75)",
    "crashes": "1 / 0",
    "killed": "import os; os.kill(os.getpid(), 9)",
    "waits": """
import signal, sys, time
def stop(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGTERM, stop)
try:
    print("waiting", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.5)
    print("waits.py: interrupted; 3 of 9 epochs are saved: the same command goes on from there", file=sys.stderr)
    sys.exit(130)
""",
    "chats": "import sys; [print(i, flush=True) for i in range(10**9)]",
    "meets": """
import pathlib, sys, time
here, other = map(pathlib.Path, sys.argv[1:])
here.touch()
for _ in range(200):
    time.sleep(0.05)
    if other.exists():
        sys.exit()
sys.exit("the other never came")
""",
    "reports": f"""
import json, os
print(os.environ.get({TO_PIPELINE!r}))
print({MARK!r} + json.dumps([["step", 1, 4, "epoch 1"]]), flush=True)
""",
}


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """Makes a `Stage` of the scripts above."""
    for name, code in SCRIPTS.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setattr(running, "REPOSITORY", tmp_path)
    monkeypatch.setattr(running, "fraction", lambda script, parts, shares: parts[0][1] / parts[0][2])
    return lambda script, group=0, *flags, name=None: Stage(name or script, script, flags, group)


def runner_of(stages, at_once=3):
    return Runner(stages, at_once, Display(stages, dict.fromkeys(stages, 1.0)))


def test_lines_are_passed_on_with_the_number_of_their_stage(scripts, capfd):
    runner = runner_of([scripts("says", 0, "a", "two words"), scripts("finished", 1)])
    runner.run()
    output = capfd.readouterr()
    assert "[1/2 says] 0 s so far: python says.py a 'two words'" in output.out
    assert "[1/2 says] hello a two words" in output.out and output.err == "[1/2 says] a warning\n"
    assert "[1/2 says] finished, 0 s" in output.out
    assert "[2/2 finished] finished already: folder\n[2/2 finished] an earlier run has finished it" in output.out
    assert list(runner.seconds()) == ["says", "finished", "all"]


def test_stages_of_a_group_run_side_by_side(scripts, tmp_path):
    runner_of([scripts("meets", 0, f"{tmp_path}/{a}", f"{tmp_path}/{b}", name=a) for a, b in ("xy", "yx")]).run()


@pytest.mark.parametrize("script, why", [
    ("mistake", "no such thing"), ("away", "the database is away"), ("crashes", "ended with exit code 1"),
    ("killed", "was killed by signal 9: by somebody, or by the system where memory lacks"),
])  # fmt: skip
def test_a_stage_that_fails_ends_all_in_one_line(script, why, scripts, capfd):
    runner = runner_of([scripts(script), scripts("says", 0), scripts("finished", 1)])
    with pytest.raises(UserError) as error:
        runner.run()
    assert str(error.value) == f"stage 1/3 {script}: {why}" and exit_code(error.value) == (75 if script == "away" else 2)
    output = capfd.readouterr()
    assert "hello" in output.out and "[3/3" not in output.out  # what runs beside it ends in peace
    assert ("ZeroDivisionError" in output.err) == (script == "crashes")


def test_a_stage_whose_lines_cannot_be_passed_on_is_stopped(scripts, monkeypatch):
    """Nobody reads it any more: it would wait for ever, when its pipe is full."""

    def tell(display, stage, line, to=None):
        if line == "100":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Display, "tell", tell)
    runner = runner_of([scripts("chats")])
    with pytest.raises(OSError, match="No space left"):
        runner.run()
    assert [run.process.poll() for run in runner.runs.values()] == [-signal.SIGTERM]


STOPPED = """
import sys
from pathlib import Path
from types import SimpleNamespace
sys.path.insert(0, {repository!r})
sys.argv = ["pipeline.py"]
from cli.process import run, telling_what_is_saved
from Stages import running
from Stages.display import Display
from Stages.stages import Stage
running.REPOSITORY = Path({folder!r})
stages = [Stage("first", "finished", (), 0), Stage("second", "waits", (), 1), Stage("third", "says", (), 2)]
def work(args, known):
    runner = running.Runner(stages, 3, Display(stages, dict.fromkeys(stages, 1.0)))
    with telling_what_is_saved(runner.told):
        runner.run()
run(work, lambda: None, lambda args: SimpleNamespace(done=None), starts_keras=False)
"""


@pytest.mark.parametrize("signum, code, times", [(signal.SIGINT, 130, 1), (signal.SIGTERM, 143, 1), (signal.SIGINT, 130, 2)])
def test_a_stop_waits_for_the_stage_and_tells_what_is_finished_in_one_line(signum, code, times, scripts, tmp_path):
    driver = STOPPED.format(repository=str(REPOSITORY), folder=str(tmp_path))
    process = subprocess.Popen(
        [sys.executable, "-c", driver], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    for line in process.stdout:
        if line.endswith("waiting\n"):
            break
    for _ in range(times):
        process.send_signal(signum)
        time.sleep(0.2)
    rest, errors = process.communicate(timeout=30)
    assert process.returncode == code and "third" not in rest
    assert errors == ("pipeline.py: interrupted; finished: 1/3 first; 2/3 second: 3 of 9 epochs are saved: "
                      "the same command goes on from there\n")  # fmt: skip


def test_progress_of_a_stage_moves_the_bar_on_a_terminal(scripts, monkeypatch, capfd):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(running, "REFRESH", 0.01)
    runner = runner_of([scripts("reports")])
    runner.run()
    assert "[1/1 reports] live\n" in capfd.readouterr().out  # the stage is asked for messages, which are no lines
    assert MARK not in terminal.getvalue() and runner.runs[runner.stages[0]].fraction == 0.25
    assert "1/1 reports" in terminal.getvalue() and runner.display.bar is None
    assert runner.display.state(runner.runs[runner.stages[0]]) == "1/1 reports, step 1 of 4 (epoch 1)"


def test_without_a_terminal_stages_send_messages_too(scripts, capfd):
    """A stage that goes on counts from where it begins."""
    runner = runner_of([scripts("reports")])
    runner.run()
    assert "[1/1 reports] with lines\n" in capfd.readouterr().out
    assert runner.runs[runner.stages[0]].first[1] == 0.25


# Estimates


def test_the_time_left_follows_the_work_that_is_left(monkeypatch):
    stages = [Stage(str(i), "hyp_opt", (), i) for i in range(4)]
    shown = Display(stages, dict(zip(stages, (10.0, 10.0, 30.0, 50.0))))
    now = shown.started + 125.0
    monkeypatch.setattr(display.time, "monotonic", lambda: now)
    assert shown.left() is None and shown.times() == "2 min so far"
    before = Namespace(code=0, fraction=0.0, finished_before=True, seconds=15.0, begun=now - 125, first=None)
    done = Namespace(code=0, fraction=0.0, finished_before=False, seconds=46.0, begun=now - 110, first=(now - 104, 0.0))
    half = Namespace(code=None, fraction=0.7, finished_before=False, seconds=0.0, begun=now - 64, first=(now - 60, 0.2))
    shown.runs = dict(zip(stages, (before, done, half)))
    # 125 s, of which 15 for the stage that was finished, and 6 and 4 for two starts: 100 s for 10 + 15 units, 4 s a unit.
    assert shown.left() == pytest.approx(4.0 * (9 + 50) + 5.0)
    starting = Namespace(code=None, fraction=0.0, finished_before=False, seconds=0.0, begun=now - 20, first=None)
    shown.runs = dict(zip(stages, (before, starting)))
    assert shown.left() is None


def test_stages_that_start_side_by_side_do_not_shorten_the_time_left(monkeypatch):
    stages = [Stage(str(i), "generate_dataset", (), 0) for i in range(3)]
    shown = Display(stages, dict(zip(stages, (10.0, 10.0, 40.0))))
    now = shown.started + 70.0
    monkeypatch.setattr(display.time, "monotonic", lambda: now)
    # Both were 20 s at starting; then they worked for 30 s, one of them for 20 s more.
    short = Namespace(code=0, fraction=0.0, finished_before=False, seconds=50.0, begun=now - 70, first=(now - 50, 0.0))
    long = Namespace(code=None, fraction=0.25, finished_before=False, seconds=0.0, begun=now - 70, first=(now - 50, 0.0))
    shown.runs = {stages[0]: short, stages[2]: long}
    assert shown.left() == pytest.approx(50.0 / 20.0 * (30 + 10) + 20.0)


def test_the_parts_of_a_search_have_their_shares():
    told = [[["trial", 1, 5, ""], ["image", 3, 4, ""]], [["trial", 5, 5, ""]], [["repeat", 0, 3, ""]],
            [["measurement", 1, 2, ""]]]  # fmt: skip
    assert [fraction("hyp_opt", parts) for parts in told] == pytest.approx([0.08, 0.4, 0.4, 0.85])
    taught = [["teacher", 0, 1, ""], ["step", 1, 2, ""]]
    assert fraction("classifier_training", taught) == pytest.approx(0.2)  # the classifier itself has not begun
    assert fraction("hyp_opt", [["image", 3, 4, ""]]) == 0.0 and fraction("SD_adapting", [["step", 1, 2, ""]]) == 0.5


SEARCH = {"backbone": "mini", "epochs": 2, "classifier": "resnet20_16", "take": 2, "synthetic": True, "img_total": 10,
          "n_trials": 4, "repeats": 1, "num_imgs": 30, "test_imgs": 50, "train_model": "dif", "solver": "ddim",
          "labels": "hard"}  # fmt: skip


def test_the_shares_of_a_search_follow_its_trials_and_repeats():
    few, many, alone = (search_shares(Namespace(**(SEARCH | change)), DATASETS["digits"], 10)
                        for change in ({}, {"n_trials": 40}, {"repeats": 0}))  # fmt: skip
    assert sum(few.values()) == pytest.approx(1) and few["repeat"] == pytest.approx(1.5 * few["trial"])
    assert many["trial"] > 0.7 and alone["repeat"] == 0
    assert fraction("hyp_opt", [["measurement", 0, 2, ""]], alone) == pytest.approx(alone["trial"])


def test_work_grows_with_what_is_to_be_done():
    def work(**change):
        args = Namespace(**(SEARCH | change))
        return [operations(script, args, DATASETS["digits"], 10) for script in pipeline.SCRIPTS]

    plain = work()
    assert all(value > 0 for value in plain) and [b > a for a, b in zip(plain, work(epochs=3))] == [True, True, False, True]
    assert [b > a for a, b in zip(plain, work(backbone="sd1"))] == [True, True, True, False]
    assert work(train_model="enc")[1] > plain[1] > work(n_trials=2)[1] and work(synthetic=False)[3] == plain[3] / 2
    assert work(labels="soft")[3] > plain[3]


# What it ends with


def test_the_table_of_accuracies(tmp_path):
    experiment = Experiment(tmp_path, "x", "digits")
    write_json(experiment.pipeline_file, {"digits": {
        "After Transfer Learning": {"no_opt": {"top_1": 0.1, "top_5": 0.5},
                                    "opt": {"top_1": 0.2, "top_5": 0.5, "interval": {"top_1": [0.15, 0.26]}}},
        "After Fine-Tuning": {"no_opt": {"top_1": 0.3, "top_5": 0.5}, "opt": {"top_1": 0.4, "top_5": 0.5}},
    }})  # fmt: skip
    write_json(experiment.cas_file, {"resnet20": {"digits": {
        name: {"top_1_accuracy": value, "top_5_accuracy": 1.0} for name, value in (("real", 0.9), ("x1", 0.7), ("x4", 0.8))
    }}})  # fmt: skip
    cas = read_json(experiment.cas_file)
    entries = cas["resnet20"]["digits"]
    entries["x1"] |= {
        "interval": {"top_1_accuracy": [0.65, 0.75]},
        "against_largest_class": {"verdict": "better", "words": "fine"},
    }
    entries["x4"] |= {"training": {"labels": "soft"}, "against_largest_class": {"verdict": "worse", "words": "it is worse"}}
    write_json(experiment.cas_file, cas)
    found = outcome.measured(experiment, "resnet20")
    rows = outcome.accuracy_rows(*found, [1, 4])
    assert rows == [
        ("1 transfer learning", "0.100"), ("2 first search", "0.200  0.150 to 0.260"),
        ("3 fine-tuning", "0.300"), ("4 final search", "0.400"), ("trained on real images", "0.900"),
        ("trained on synthetic images, 1x", "0.700  0.650 to 0.750"), ("trained on synthetic images, 4x (labels soft)", "0.800"),
    ]  # fmt: skip
    assert outcome.doubts(*found) == []
    assert outcome.no_better(found[1]) == ["synthetic images, 4x (labels soft): it is worse"]
    cas, steps = read_json(experiment.cas_file), read_json(experiment.pipeline_file)
    cas["resnet20"]["digits"]["x4"]["doubts"] = ["some of test is in train"]
    steps["digits"]["After Fine-Tuning"]["opt"]["select_on"] = "test"
    write_json(experiment.cas_file, cas)
    write_json(experiment.pipeline_file, steps)
    assert outcome.doubts(*outcome.measured(experiment, "resnet20")) == [
        f"may be too good, of the steps: {CHOSEN_ON_TEST}", "may be too good: some of test is in train"
    ]  # fmt: skip
    lines = outcome.table("accuracy", "top-1", rows[:2])
    assert lines == ["\naccuracy            top-1", "-" * 41, "1 transfer learning 0.100",
                     "2 first search      0.200  0.150 to 0.260"]  # fmt: skip


def test_the_page_of_an_experiment(tmp_path, monkeypatch):
    """Of what the stages have left: it holds the figures and the pictures, escapes names, and names an audit or its command."""
    experiment, spec = Experiment(tmp_path, "x", "digits"), dataset_spec("digits")
    scores = {"top_1": 0.25, "top_5": 0.5, "interval": {"top_1": [0.2, 0.3]}}
    write_json(experiment.pipeline_file, {"digits": {
        stage: {step: scores | {"training": {"optimizer": optimizer}} for step in ("no_opt", "opt")}
        for stage, optimizer in (("After Transfer Learning", "adam"), ("After Fine-Tuning", "sgd"))
    }})  # fmt: skip
    real = {"top_1_accuracy": 0.9, "top_5_accuracy": 1.0, "interval": {"top_1_accuracy": [0.87, 0.93]}, "test_images": 500}
    made = {"top_1_accuracy": 0.7, "top_5_accuracy": 0.9, "against_real": {
        "words": "20.0 points below <real>", "trained_otherwise": {"epochs": [9, 12]}
    }, "training": {"labels": "soft"}}  # fmt: skip
    write_json(experiment.cas_file, {"resnet20": {"digits": {"real": real, "x1": made}}})
    write_json(experiment.search_dir("enc") / "best.json", {"epoch": 31, "is": 29, "ugs": 1.75, "val_accuracy": 0.6543})
    folder = write_set(experiment.synthetic_root / "1kEnc3Dif4Is20Ugs1.5", total=1000, side=8)
    drawn = tmp_path / "drawn.png"
    Image.new("RGB", (9, 9)).save(drawn)
    loss = experiment.part_dir("dif") / "loss.png"
    loss.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(loss)
    stages = [Stage("generation, 1x", "generate_dataset", ("--exp", "two words"), 0)]

    def written():
        splits = load_splits(spec, tmp_path)
        seconds, common = {"generation, 1x": 90.0}, ["--dataset", "digits", "--exp", "e", "--root", "some where"]
        found = report.write_report(experiment, spec, splits, "resnet20", stages, seconds, [1], [folder], drawn, common)
        return found.read_text(encoding="utf-8")

    args = Namespace(dataset="digits", exp="x", root=tmp_path, data_dir=tmp_path, seed=1234, sizes=[1], backbone="mini")
    monkeypatch.setattr(outcome, "common_flags", lambda args: [])
    monkeypatch.setattr(outcome, "changed", lambda args, flags: {})
    lines = outcome.outcome(args, spec, experiment, "resnet20", stages, {"generation, 1x": 90.0})
    beside = experiment.images_dir / "expx_real_beside_synthetic.png"
    assert f"\npage for a browser: {experiment.report_page}" in lines and f"  {beside}" in lines and f"  {loss}" in lines
    assert any(line.startswith("trained on synthetic images, 1x") and "0.700" in line for line in lines)
    with Image.open(beside) as picture:
        assert picture.width > 100
    page = written()
    for text in ("0.900", "0.870 to 0.930", "0.700", "0.200 to 0.300", "29", "1.75", "0.654", "20.0 points below &lt;real&gt;; trained otherwise: epochs 9 (real: 12)",
                 "synthetic images with labels of a classifier that has learnt from the real ones", "otherwise: optimizer adam and sgd",
                 "generate_dataset.py --exp &#x27;two words&#x27;", "None lies beside",
                 "python audit_dataset.py --dataset digits --exp e --root &#x27;some where&#x27; --synthetic_dir"):  # fmt: skip
        assert text in page, text
    assert page.count("data:image/png;base64,") == 2 and "<script" not in page and "<real>" not in page
    write_json(audit_file(folder), {"coverage, generated": 0.4321})
    best = {"epoch": 9, "is": 29, "ugs": 1.75, "test_accuracy": 0.8764}
    write_json(experiment.search_dir("dif") / "best.json", best)
    page = written()
    assert "0.876, on TEST" in page and "too good" not in page
    steps = read_json(experiment.pipeline_file)
    steps["digits"]["After Transfer Learning"]["opt"] |= {"select_on": "test", "doubts": ["few images"]}
    write_json(experiment.pipeline_file, steps)
    page = written()
    assert "They may be too good: few images." in page
    assert f"They may be too good: {CHOSEN_ON_TEST}.".replace("'", "&#x27;") in page
    assert "0.4321" in page and "None lies" not in page
    assert 'href="../../Data/Synthetic/Exp_x/digits/1kEnc3Dif4Is20Ugs1.5.audit.html"' in page


def test_the_page_shows_the_set_that_a_classifier_has_learnt_from(tmp_path):
    experiment, spec = Experiment(tmp_path, "x", "digits"), dataset_spec("digits")
    first, second = (write_set(experiment.synthetic_root / name, total=1000, side=8)
                     for name in ("1kEnc3Dif4Is20Ugs1.5", "1kEnc3Dif4Is20Ugs2"))  # fmt: skip
    for entry, shown in (({"set": {"folder": second.name}}, second), ({"set": {"folder": first.name}}, first)):
        write_json(experiment.cas_file, {"resnet20": {"digits": {"x1": entry}}})
        assert report.set_of(experiment, spec, "resnet20", 1) == shown
    for entry in ({}, {"set": {"folder": "gone"}}, {"set": "of an earlier version"}):
        write_json(experiment.cas_file, {"resnet20": {"digits": {"x1": entry}}})
        with pytest.raises(UserError, match="several synthetic datasets"):
            report.set_of(experiment, spec, "resnet20", 1)


def test_passwords_are_shown_nowhere(tmp_path):
    secret = "postgresql://opt:s3cret@host/optuna"
    flags = ["--dataset", "digits", "--exp", "x", "--root", str(tmp_path), "--also", f"hyp_opt --storage {secret}"]
    stages = pipeline.plan(pipeline.parse_args([*flags, "--dry_run"]))
    assert "s3cret" not in stages.done and stages.done.count("postgresql://opt:***@host/optuna") == 2
    searches = [stage for stage in stages.stages if stage.script == "hyp_opt"]
    assert all(secret in stage.command and "s3cret" not in stage.shown for stage in searches) and len(searches) == 2


@pytest.mark.slow
def test_the_whole_method_on_few_images_and_again(tmp_path):
    tiny = ["--dataset", "digits", "--exp", "t", "--backbone", "mini", "--root", tmp_path, "--enc_epochs", 1, "--dif_epochs", 1,
            "--n_trials", 2, "--num_imgs", 32, "--test_imgs", 32, "--trial_epochs", 1, "--classifier_epochs", 1,
            "--also", "hyp_opt --repeats 0 --rungs 1 --is_min 2 --is_max 3"]  # fmt: skip
    done = succeed("pipeline.py", *tiny)
    lines = done.stdout.splitlines()
    assert "[7/7 classifier, 1x] finished, " in done.stdout and any(
        line.startswith("accuracy on 500 real test images") for line in lines
    )
    shown = [line.strip() for line in lines[lines.index("pictures:") + 1 :]]
    assert len(shown) == 10 and f"{tmp_path}/Images/digits/expt_real_beside_synthetic.png" == shown[0]
    assert all(Image.open(file).format == "PNG" for file in shown)
    again = succeed("pipeline.py", *tiny).stdout
    assert again.count("an earlier run has finished it") == 7
    accuracies = [line for line in lines if line.startswith(("1 transfer", "trained on"))]
    assert len(accuracies) == 3 and set(accuracies) <= set(again.splitlines())
