"""Flag types, common flags, quiet start-up and one-line errors."""

import argparse
import errno
import importlib
import logging
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

import SD_adapting
from cli import flags, process, startup
from cli.flags import boolean, dataset_name, experiment_name, finish_args, integer, new_parser, number
from Experiment import records
from Experiment.errors import PassingError, UserError
from Experiment.paths import REPOSITORY, Experiment
from Experiment.plan import Plan
from Experiment.records import software


def run(stage, parse_args=lambda: None):
    """Run a stage of the arguments alone, of which nothing is known before."""
    process.run(lambda args, known: stage(args), parse_args, lambda args: SimpleNamespace(done=None))


@pytest.mark.parametrize("parse, text, value", [
    (integer(1), "1", 1), (integer(1, 1000), "1000", 1000),
    (number(0), "0", 0.0), (number(0, 1000), "1000", 1000.0), (number(0, above=True), "1e-9", 1e-9),
    (boolean, "True", True), (boolean, "yes", True), (boolean, "1", True),
    (boolean, "FALSE", False), (boolean, "no", False), (boolean, "0", False),
    (experiment_name, "0001", "0001"), (experiment_name, "a" * 64, "a" * 64), (experiment_name, "v1.2_b-c", "v1.2_b-c"),
    (dataset_name, "cifar100", "cifar100"),
])  # fmt: skip
def test_accepted(parse, text, value):
    assert parse(text) == value and type(parse(text)) is type(value)


@pytest.mark.parametrize("parse, text, reason", [
    (integer(1), "0", r"must be in 1\.\.1000000, received 0"), (integer(1, 9), "10", r"must be in 1\.\.9, received 10"),
    (integer(1), "1.5", "invalid literal"), (integer(1), "many", "invalid literal"),
    (number(0), "-0.1", "at least 0, received"), (number(0, 9), "9.1", "at least 0 and at most 9, received"),
    (number(0, above=True), "0", "more than 0"), (number(0), "nan", "at least 0"), (number(0), "inf", "at least 0"),
    (boolean, "maybe", "True or False"), (boolean, "", "True or False"),
    (experiment_name, "", "1 to 64"), (experiment_name, "a" * 65, "1 to 64"), (experiment_name, "../up", "1 to 64"),
    (experiment_name, ".hidden", "1 to 64"), (experiment_name, "a/b", "1 to 64"), (experiment_name, "a\n", "1 to 64"),
    (dataset_name, "cifar1O", r"path of .* received 'cifar1O' \(did you mean cifar10\?\)"),
    (dataset_name, "nowhere/at/all", r"received 'nowhere/at/all'$"), (dataset_name, "", "received ''"),
])  # fmt: skip
def test_refused(parse, text, reason):
    with pytest.raises((argparse.ArgumentTypeError, ValueError), match=reason):
        parse(text)


@pytest.fixture
def parser():
    parser = new_parser("Does something.\n\nMore.", exp_required=True)
    flags.add_model_flags(parser)
    return parser


def test_defaults(parser):
    args = finish_args(parser, ["--exp", "7"])
    assert (args.dataset, args.exp, args.backbone, args.seed) == ("cifar10", "7", "sd1", 1234)
    assert (args.root, args.data_dir) == (REPOSITORY, REPOSITORY / "Data" / "Real")
    assert (args.precision, args.weights_dir) == ("auto", None)


DIF = "--train_model dif --enc_epoch 1"


@pytest.mark.parametrize("script, flags, values", [
    ("SD_adapting", "--train_model enc", {"epochs": 50, "batch_size": 64, "lr": 1e-4}),
    ("SD_adapting", DIF, {"epochs": 10, "batch_size": 16, "lr": 1e-5}),
    ("SD_adapting", f"{DIF} --lora_rank 4", {"epochs": 10, "batch_size": 16, "lr": 1e-4}),
    ("SD_adapting", "--backbone mini --train_model enc", {"epochs": 12, "batch_size": 64, "lr": 2e-2}),
    ("SD_adapting", f"--backbone small {DIF}", {"epochs": 64, "batch_size": 32, "lr": 8e-4}),
    ("hyp_opt", "--train_model enc", {"n_trials": 50, "num_imgs": 4000, "epochs": 100, "batch_size": 256, "is_min": 5}),
    ("hyp_opt", f"{DIF} --is_1 30 --ugs_1 1.5", {"n_trials": 40, "num_imgs": 4000, "epochs": 100, "batch_size": 256}),
    ("generate_dataset", "--img_total 9", {"inf_steps": 50, "ugs": 7.5, "enc_epoch": 50, "dif_epoch": 10, "solver": "ddim"}),
    ("generate_dataset", "--img_total 9 --solver dpmpp", {"inf_steps": 15, "ugs": 7.5}),
    ("classifier_training", "", {"epochs": 100, "batch_size": 256, "classifier": "resnet20"}),
])  # fmt: skip
def test_flags_that_are_not_given_take_the_papers_values_or_the_backbones_own(script, flags, values):
    args = importlib.import_module(script).parse_args(["--dataset", "cifar10", "--exp", "x", *flags.split()])
    assert {name: getattr(args, name) for name in values} == values


def test_paths_become_absolute(parser, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "flowers").mkdir()
    args = finish_args(parser, ["--exp", "7", "--dataset", "flowers", "--root", "out", "--weights_dir=~/flowers"])
    assert args.dataset == str(tmp_path / "flowers")
    assert args.root == tmp_path / "out" and args.data_dir == tmp_path / "out" / "Data" / "Real"
    assert args.weights_dir == tmp_path / "flowers"


@pytest.mark.parametrize("argv, reason", [
    ([], "--exp"), (["--exp", "7", "--seed", "-1"], "must be in 0"), (["--exp", "7", "--backbone", "sd9"], "invalid choice"),
    (["--exp", "7", "--weights_dir", "nowhere"], "there is no folder"),
])  # fmt: skip
def test_a_wrong_flag_ends_in_one_line(parser, capsys, argv, reason):
    with pytest.raises(SystemExit, match="2"):
        finish_args(parser, argv)
    message = capsys.readouterr().err
    assert reason in message and message.count("\n") == 1


@pytest.mark.parametrize("error, code, message", [
    (UserError("no such\n   file"), 2, "train.py: error: no such file\n"),
    (KeyboardInterrupt(), 130, "train.py: interrupted; nothing is lost that was saved before: the same command goes on from there\n"),
])  # fmt: skip
def test_run_ends_in_one_line(capsys, monkeypatch, error, code, message):
    monkeypatch.setattr(sys, "argv", ["folder/train.py"])

    def main(args):
        raise error

    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == code and capsys.readouterr().err == message


@pytest.mark.parametrize("error, code", [
    (PassingError("the database is away"), 75), (OSError(errno.ESTALE, "Stale file handle"), 75),
    (OSError(errno.ENOSPC, "No space left on device"), 2), (UserError("no such file"), 2),
])  # fmt: skip
def test_what_may_pass_has_a_code_of_its_own(capsys, monkeypatch, error, code):
    monkeypatch.setattr(sys, "argv", ["train.py"])

    def main(args):
        raise error

    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == code and capsys.readouterr().err.startswith("train.py: error: ")


def test_an_error_of_the_file_system_is_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit) as ended:
        run(lambda args: (tmp_path / "gone" / "a").write_text(""))
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and line.startswith("train.py: error: ") and str(tmp_path / "gone" / "a") in line


def test_what_is_saved_is_told_on_interruption(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])

    def main(args):
        epochs = []
        with process.telling_what_is_saved(lambda: f"{len(epochs)} of 9 epochs are saved"):
            epochs.append(1)
            raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        run(main)
    assert capsys.readouterr().err == "train.py: interrupted; 1 of 9 epochs are saved: the same command goes on from there\n"


def test_what_cannot_go_on_begins_anew(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])

    def main(args):
        with process.telling_what_is_saved(lambda: "out is not made", "begins anew"):
            raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        run(main)
    assert capsys.readouterr().err == "train.py: interrupted; out is not made: the same command begins anew\n"


@pytest.mark.parametrize("thrown_away, command", [(False, ": the same command"), (True, "command without --restart")])
def test_restart_is_not_to_be_repeated_once_it_has_thrown_away(capsys, monkeypatch, thrown_away, command):
    monkeypatch.setattr(sys, "argv", ["train.py"])

    def main(args, known):
        known.thrown_away = thrown_away
        raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        process.run(main, argparse.Namespace, lambda args: Plan(), starts_keras=False)
    assert capsys.readouterr().err.endswith(f"{command} goes on from there\n")


def test_memory_that_lacks_has_many_names():
    class NotFoundError(Exception):
        """As TensorFlow's, where no algorithm of a convolution finds room on a GPU."""

    told = NotFoundError("No algorithm worked! Error messages: RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9")
    assert not process.lacks_memory(told)  # of somebody else
    NotFoundError.__module__ = "tensorflow.python.framework.errors_impl"
    assert process.lacks_memory(told) and not process.lacks_memory(NotFoundError("no such key"))


def test_an_interruption_is_told_though_what_is_saved_cannot_be_read(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["train.py"])

    def main(args):
        with process.telling_what_is_saved((tmp_path / "gone").read_text):
            raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == 130 and "what is saved cannot be read" in capsys.readouterr().err


def test_lack_of_memory_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit) as ended:
        run(lambda args: bytearray(2**62))
    assert ended.value.code == 2 and capsys.readouterr().err == "train.py: error: out of memory: try a smaller --batch_size\n"


def test_sigterm_ends_as_ctrl_c_does():
    code = """
import time
from types import SimpleNamespace
from cli.process import run
run(lambda args, known: print("begun", flush=True) or time.sleep(60), lambda: None, lambda args: SimpleNamespace(done=None))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "begun\n"
    process.terminate()
    assert process.wait(20) == 143 and "goes on from there" in process.stderr.read()


def test_nothing_follows_the_line_of_a_stop():
    """A stop between two contexts of TensorFlow leaves one open, whose end fails when Python clears up."""
    code = """
import os, signal
from types import SimpleNamespace
from cli.process import run

def context():
    try:
        yield
    finally:
        for callback in None:
            pass

left_open = context()

def work(args, known):
    next(left_open)
    os.kill(os.getpid(), signal.SIGINT)

run(work, lambda: None, lambda args: SimpleNamespace(done=None), starts_keras=False)
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == 130 and ended.stderr.endswith("goes on from there\n") and ended.stderr.count("\n") == 1


@pytest.mark.parametrize("signum, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)])
def test_a_stop_that_a_library_swallows_is_raised_again(capsys, monkeypatch, signum, code):
    """Keras has bare `except:` where it traces a network."""
    monkeypatch.setattr(process, "AGAIN", 0.1)
    monkeypatch.setattr(process.signal, "getsignal", lambda signum: signal.SIG_DFL)  # whatever nohup has set here
    swallowed = []

    def work_until_stopped():
        for _ in range(2000):
            time.sleep(0.01)

    def work(args):
        for step in (lambda: signal.raise_signal(signum), work_until_stopped):
            try:
                step()
            except BaseException as stop:
                swallowed.append(stop)
        work_until_stopped()

    with pytest.raises(SystemExit) as ended:
        run(work)
    assert ended.value.code == code and len(swallowed) == 2 and "interrupted" in capsys.readouterr().err
    time.sleep(0.3)  # no stop comes after the end


def test_run_does_not_hide_a_defect():
    with pytest.raises(ZeroDivisionError):
        run(lambda args: 1 / args, lambda: 0)


def test_logging_to_terminal_and_file(tmp_path, capsys):
    log = process.log
    for folder in ("first", "second"):  # a second start replaces the first
        process.start_logging()
        logging.getLogger("experiment").info("reading %s", folder)
        assert not (tmp_path / folder).exists()
        with process.writing_in(tmp_path / folder):
            log.info("epoch %d", 3)
            log.debug("a detail")
    log.info("afterwards")
    assert capsys.readouterr().out == "reading first\nepoch 3\nreading second\nepoch 3\nafterwards\n"
    lines = [(tmp_path / folder / "log.txt").read_text().splitlines() for folder in ("first", "second")]
    assert [[line[20:] for line in file] for file in lines] == [
        [f"reading {folder}", f"software: {software()}", "epoch 3", "a detail"] for folder in ("first", "second")
    ]


def test_the_code_is_what_computes(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "REPOSITORY", tmp_path)
    for name in ("a.py", "Models/b.py", "tests/c.py", ".venv/d.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    before = software.__wrapped__()
    (tmp_path / ".#a.py").symlink_to("nobody@host")  # of an editor
    (tmp_path / "gone.py").symlink_to("nowhere")
    (tmp_path / "tests/c.py").write_text("2")
    assert software.__wrapped__() == before
    (tmp_path / "Models/b.py").write_text("2")
    assert software.__wrapped__() != before


def test_a_dataset_by_a_link_has_the_name_of_the_link(tmp_path, caplog):
    (tmp_path / "v3").mkdir()
    (tmp_path / "flowers").symlink_to(tmp_path / "v3")
    given = ["--dataset", str(tmp_path / "flowers"), "--exp", "x", "--root", str(tmp_path / "out")]
    assert SD_adapting.parse_args(given).dataset == str(tmp_path / "flowers")
    Experiment(tmp_path / "out", "x", "v3").part_dir("enc").mkdir(parents=True)  # of an earlier version
    assert SD_adapting.parse_args(given).dataset == str(tmp_path / "v3")
    assert "goes on under the name of what it leads to" in caplog.text
    Experiment(tmp_path / "out", "x", "flowers").part_dir("enc").mkdir(parents=True)
    assert SD_adapting.parse_args(given).dataset == str(tmp_path / "flowers")


def test_a_run_that_goes_on_with_other_code_or_packages_says_so(tmp_path, monkeypatch):
    for code in ("a", "a", "b", "b"):
        monkeypatch.setattr(process, "software", lambda code=code: f"code {code}, numpy 2")
        process.start_logging()
        with process.writing_in(tmp_path):
            pass
    told = f"the run before this one in {tmp_path} was of other code or packages: code a, numpy 2 (now code b, numpy 2)"
    assert [line[20:] for line in (tmp_path / "log.txt").read_text().splitlines()] == [
        "software: code a, numpy 2", told, "software: code b, numpy 2"
    ]  # fmt: skip


@pytest.mark.parametrize("fails", [False, True])
def test_notes_of_the_start_up_are_shown_only_if_it_fails(tmp_path, capfd, monkeypatch, caplog, fails):
    caplog.set_level("DEBUG", "experiment")
    end = "raise ImportError('broken')" if fails else ""
    (tmp_path / "keras.py").write_text(f"import os\nos.write(2, b'a note of C++')\n{end}\n")
    no_gpus = SimpleNamespace(config=SimpleNamespace(list_physical_devices=lambda kind: []))
    monkeypatch.setitem(sys.modules, "tensorflow", no_gpus)
    monkeypatch.setattr(startup, "warn_of_idle_gpus", lambda: None)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    if fails:
        with pytest.raises(ImportError, match="broken"):
            startup.import_keras()
    else:
        startup.import_keras()
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    os.write(2, b" and after")  # what the terminal is again
    assert [record.message for record in caplog.records] == ([] if fails else ["TensorFlow: a note of C++"])  # to log.txt
    assert capfd.readouterr().err == ("a note of C++" if fails else "") + " and after"


@pytest.mark.parametrize("machine, set_by_user, used", [
    ("x86_64", None, "1"), ("AMD64", None, "1"), ("x86_64", "0", "0"), ("arm64", None, None), ("aarch64", None, None),
])  # fmt: skip
def test_onednn_computes_on_every_x86_processor_unless_the_user_says_no(monkeypatch, machine, set_by_user, used):
    monkeypatch.setattr(startup.platform, "machine", lambda: machine)
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    if set_by_user:
        monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", set_by_user)
    startup.use_onednn()
    found = os.environ.get("TF_ENABLE_ONEDNN_OPTS")
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")  # noted, and so put back as it was
    assert found == used


def test_a_worker_of_the_benchmark_starts():
    """The measurement itself takes the best part of an hour, and is asked for by hand alone."""

    def started(*arguments):
        command = [sys.executable, "-m", "bench.worker", *arguments]
        return subprocess.run(command, cwd=REPOSITORY, input="", capture_output=True, text=True, timeout=300)

    assert started("classifier").stdout == '{"jobs": ["from PNGs", "in memory"]}\n'
    assert started("no_training", "checkpoints").stderr.endswith(
        "KeyError: 'no_training'\n"
    )  # what trains would be built next, sd1 for a minute


SPARING = """
import argparse, os, sys
print("begins", os.getpid(), *sys.argv[1:], flush=True)
from cli.startup import import_keras
import_keras(argparse.Namespace(gradient_checkpointing=True))
import tensorflow as tf
with tf.Graph().as_default():
    print("goes on", os.getpid(), os.environ.get("GLIBC_TUNABLES"), bool(tf.constant(1).op.traceback))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
@pytest.mark.parametrize("set_by_user, begins", [(None, 2), ("glibc.malloc.perturb=0", 1)])
def test_sparing_memory_begins_the_same_process_again_once(monkeypatch, set_by_user, begins):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if set_by_user:
        monkeypatch.setenv("GLIBC_TUNABLES", set_by_user)
    command = [sys.executable, "-c", SPARING, "--exp", "two words"]
    process = subprocess.Popen(command, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE)
    lines = process.communicate()[0].splitlines()
    assert lines[:-1] == [f"begins {process.pid} --exp two words"] * begins
    assert lines[-1] == f"goes on {process.pid} {set_by_user or startup.GIVE_BACK} False"


KEEPING = """
import ctypes, resource
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: pages of 2 MB, where a system gives them always, fault less often
from cli.startup import keep_memory
keep_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    array = b"x" * 2**26
    del array
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
@pytest.mark.parametrize("set_by_user", [None, ("MALLOC_TOP_PAD_", "0"), ("GLIBC_TUNABLES", "glibc.malloc.mmap_max=9")])
def test_kept_memory_costs_no_page_faults(monkeypatch, set_by_user):
    for name in ("GLIBC_TUNABLES", "MALLOC_TOP_PAD_"):
        monkeypatch.delenv(name, raising=False)
    if set_by_user:
        monkeypatch.setenv(*set_by_user)
    command = [sys.executable, "-c", KEEPING]
    faults = int(subprocess.run(command, cwd=REPOSITORY, text=True, capture_output=True, check=True).stdout)
    assert faults > 10_000 if set_by_user else faults < 100  # 64 MiB have 16,384 pages


def test_keras_starts_without_what_is_not_used():
    code = """
import sys
from cli.startup import import_keras
import_keras()
from Models.classifier import Classifier
Classifier("resnet20_16", 8, 3)
print("Models.kerascv_layers" in sys.modules)
import Models.faster_layers
print(*{"sklearn", "pandas", "keras_cv", "keras_cv.src.models", "matplotlib"} & set(sys.modules))
import keras_cv, matplotlib, pandas, sklearn
print(keras_cv.models.stable_diffusion.DiffusionModel is Models.faster_layers.diffusion_model.DiffusionModel)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, text=True, capture_output=True, check=True)
    assert done.stdout.splitlines() == ["False", "", "True"]


def test_an_error_before_any_log_leaves_its_traceback(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(process.tempfile, "tempdir", str(tmp_path))

    def plan(args):
        raise PermissionError(13, "Permission denied", "/data")

    with pytest.raises(SystemExit, match="2"):
        process.run(None, lambda: argparse.Namespace(), plan, starts_keras=False)
    (file,) = tmp_path.glob("error-*.txt")
    error = capsys.readouterr().err
    assert error.endswith(f"error: [Errno 13] Permission denied: '/data' (where it happened: {file})\n")
    assert "in plan" in file.read_text() and "PermissionError" in file.read_text()


def test_a_mistyped_flag_tells_no_password(capsys):
    with pytest.raises(SystemExit, match="2"):
        flags.Parser(prog="x").parse_args(["--storag", "postgresql://opt:secret@host/db"])
    error = capsys.readouterr().err
    assert "secret" not in error and "postgresql://opt:***@host/db" in error


def test_names_of_any_alphabet_in_any_locale(tmp_path):
    code = """
import sys, logging; from pathlib import Path; from cli.process import start_logging, logging_to; from Experiment.files import write_csv
start_logging(); folder = Path(sys.argv[1])
with logging_to(folder): logging.getLogger("experiment").info("classes \\u732b")
write_csv(folder / "a.csv", [{"class": "\\u732b"}])
"""
    ascii_only = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONPATH": REPOSITORY}
    done = subprocess.run([sys.executable, "-c", code, tmp_path], env=ascii_only, capture_output=True)
    assert b"classes" in done.stdout and "猫" in (tmp_path / "log.txt").read_text("utf-8"), done.stderr
    assert "猫" in (tmp_path / "a.csv").read_text("utf-8"), done.stderr
