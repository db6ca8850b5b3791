"""Paths, names, records, safe writing and addressed randomness."""

import ast
import builtins
import errno
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from Experiment import machine as hardware
from Experiment import records
from Experiment.errors import UserError
from Experiment.files import atomic_path, change_json, file_hash, plain_arrays, read_json, reserve, write_csv, write_json
from Experiment.locks import claim, claimed, machine, process_start, release
from Experiment.paths import PUBLISHED_CAS, PUBLISHED_PIPELINE, REPOSITORY, Experiment, size_from_name, size_name
from Experiment.randomness import STREAMS, random_stream, random_streams
from Experiment.records import describe_run, finished_run
from Experiment.results import CAS_SCHEMA, PIPELINE_SCHEMA, read_results

EXPERIMENT = Experiment("out", "0001", "cifar10")


@pytest.mark.parametrize("found, published", [
    (EXPERIMENT.part_dir("enc"), "Checkpoints/DDPM/Exp_0001/cifar10/MyEmbedding"),
    (EXPERIMENT.part_dir("dif"), "Checkpoints/DDPM/Exp_0001/cifar10/DiffusionFt"),
    (EXPERIMENT.classifier_dir("resnet20", "40k"), "Checkpoints/Classifiers/Exp_0001/resnet20/cifar10/40k"),
    (EXPERIMENT.synthetic_root, "Data/Synthetic/Exp_0001/cifar10"),
    (EXPERIMENT.cas_file, "CAS Results/test_accuracies_exp0001.json"),
    (EXPERIMENT.images_dir, "Images/cifar10"),
    (EXPERIMENT.search_dir("dif"), "optimization_plots/0001/cifar10/dif"),
    (EXPERIMENT.study_name("enc"), "cifar10_exp0001_study_enc"),
])  # fmt: skip
def test_published_names(found, published):
    assert str(found).removeprefix("out/") == published


@pytest.mark.parametrize("count, name", [
    (40_000, "40k"), (400_000, "400k"), (1_000, "1k"), (1_080, "1.08k"), (999, "999"), (7, "7"),
])  # fmt: skip
def test_size_name_can_be_read_back(count, name):
    assert size_name(count) == name
    assert size_from_name(f"{name}Enc50Dif10Is50Ugs7.5") == size_from_name(name) == count


@pytest.mark.parametrize("name, count", [("40.0kEnc50Dif10Is50Ugs7.5", 40_000), ("x2", None), ("40kb", None), ("old", None)])
def test_size_from_name(name, count):
    assert size_from_name(name) == count


def test_random_stream_is_a_function_of_its_address():
    random_stream(1234, "subset").random(1000)  # what others draw does not matter
    again = [random_stream(1234, "sampling_noise", 3, 7).integers(0, 2**32, 3).tolist() for _ in range(2)]
    # Pinned: the datasets of earlier versions must come out again.
    assert again == [[633741151, 3346180123, 3550696968]] * 2


@pytest.mark.parametrize("other", [
    (1235, "sampling_noise", 3, 7), (1234, "training_noise", 3, 7), (1234, "sampling_noise", 7, 3),
    (1234, "sampling_noise", 3, 8), (1234, "sampling_noise", 4, 7), (2**63 - 1, "sampling_noise", 3, 7),
])  # fmt: skip
def test_random_stream_never_repeats_another_address(other):
    draws = random_stream(1234, "sampling_noise", 3, 7).integers(0, 2**32, 1000)
    assert not set(draws) & set(random_stream(*other).integers(0, 2**32, 1000))


@pytest.mark.parametrize("seed", [0, 1234, 2**63 - 1])
def test_a_generator_that_is_moved_draws_what_a_new_one_does(seed):
    stream = random_streams(seed, "training_noise")
    for address in ((0, 0), (3, 7), (100, 2**40), (3, 7)):
        moved, new = stream(*address), random_stream(seed, "training_noise", *address)
        assert np.array_equal(*(s.standard_normal((5, 3), dtype="float32") for s in (moved, new)))
        assert moved.integers(1000) == new.integers(1000)


def test_each_purpose_has_its_own_stream():
    assert len(set(STREAMS.values())) == len(STREAMS)


def test_atomic_path_replaces_only_when_the_block_succeeds(tmp_path):
    path = tmp_path / "new" / "weights.h5"
    with atomic_path(path) as partial:
        assert partial.suffix == ".h5" and partial.parent == path.parent
        partial.write_text("one")
        assert not path.exists()
    with pytest.raises(RuntimeError), atomic_path(path) as partial:
        partial.write_text("half of two")
        raise RuntimeError
    assert [p.name for p in path.parent.iterdir()] == ["weights.h5"]
    assert path.read_text() == "one"


def test_what_a_killed_process_was_writing_is_removed_by_the_next_writer(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host, name = machine(), "weights.h5"
    dead = tmp_path / f".partial-{host}-{ended.pid}-{name}"
    others = [tmp_path / f".partial-{host}-{os.getppid()}-{name}", tmp_path / f".partial-elsewhere-{ended.pid}-{name}",
              tmp_path / f".partial-{host}-{ended.pid}-other.h5"]  # alive, of another machine, another file  # fmt: skip
    for path in (dead, *others):
        path.write_text("half")
    with atomic_path(tmp_path / name) as partial:
        partial.write_text("whole")
    assert not dead.exists() and all(path.exists() for path in others)


@pytest.mark.parametrize("content, reason", [
    ('{"a": ', "is not readable JSON"), ("", "is not readable JSON"), ("[" * 100_000, "is not readable JSON"),
    ("[1]", "must hold a JSON object. Received: list"),
])  # fmt: skip
def test_read_json_names_the_broken_file(tmp_path, content, reason):
    (tmp_path / "broken.json").write_text(content)
    with pytest.raises(UserError, match=f"broken.json {reason}"):
        read_json(tmp_path / "broken.json")


@pytest.mark.parametrize("error, raised, said", [
    (OSError(errno.ESTALE, "stale"), OSError, "stale"), (OSError(errno.EINVAL, "odd"), UserError, "not a readable npz"),
    (MemoryError("60 GiB"), UserError, "needs more memory"),
])  # fmt: skip
def test_trouble_of_a_disk_or_of_memory_is_no_broken_file(tmp_path, error, raised, said):
    np.savez(tmp_path / "x.npz", a=1)
    with pytest.raises(raised, match=said), plain_arrays(tmp_path / "x.npz"):
        raise error


def test_room_is_reserved_or_refused(tmp_path):
    reserve(tmp_path / "a", 100_000)
    assert (tmp_path / "a").stat().st_blocks * 512 >= 100_000
    with pytest.raises(OSError, match=f"{tmp_path}/b"):
        reserve(tmp_path / "b", 2**60)


def test_a_change_keeps_a_broken_file_aside(tmp_path):
    (tmp_path / "cas.json").write_text('{"resnet20": ')
    change_json(tmp_path / "cas.json", lambda before: before | {"a": 1})
    assert read_json(tmp_path / "cas.json") == {"a": 1}
    (aside,) = tmp_path.glob("cas.broken-*.json")
    assert aside.read_text() == '{"resnet20": '


ACCURACIES = {"top_1_accuracy": 0.5, "top_5_accuracy": 1}


@pytest.mark.parametrize("content", [
    {}, {"resnet20": 5}, {"resnet20": {"digits": {}}}, {"resnet20": {"digits": {"x0": ACCURACIES}}},
    {"resnet20": {"digits": {"x1": {"top_1_accuracy": 0.5}}}}, {"resnet20": {"digits": {"x1": ACCURACIES | {"top_1_accuracy": 1.1}}}},
    {"resnet20": {"digits": {"x1": ACCURACIES | {"top_1_accuracy": "0.5"}}}}, {"resnet20": {"digits": {"x1": ACCURACIES}, "a": []}},
])  # fmt: skip
def test_results_in_another_schema_are_refused(tmp_path, content):
    write_json(tmp_path / "cas.json", content)
    with pytest.raises(UserError, match="cas.json does not hold accuracies"):
        read_results(tmp_path / "cas.json", CAS_SCHEMA)


def test_published_results_fit_their_schemas(tmp_path):
    assert len(read_results(PUBLISHED_CAS, CAS_SCHEMA)["resnet20"]) == 6
    assert len(read_results(PUBLISHED_PIPELINE, PIPELINE_SCHEMA)) == 6
    write_json(tmp_path / "cas.json", {"resnet20": {"digits": {"x1": ACCURACIES, "real": ACCURACIES}}})
    assert read_results(tmp_path / "cas.json", CAS_SCHEMA) == read_json(tmp_path / "cas.json")


def test_a_change_loses_nothing_to_writers_at_the_same_time(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: change_json(tmp_path / "cas.json", lambda before: before | {str(i): i}), range(40)))
    assert read_json(tmp_path / "cas.json") == {str(i): i for i in range(40)}


def test_write_csv(tmp_path):
    write_csv(tmp_path / "history.csv", [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}])
    assert (tmp_path / "history.csv").read_text().split() == ["epoch,loss", "1,0.5", "2,0.25"]


@pytest.mark.parametrize("algorithm, expected", [
    ("sha256", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
    ("md5", "900150983cd24fb0d6963f7d28e17f72"),
])  # fmt: skip
def test_file_hash(tmp_path, algorithm, expected):
    (tmp_path / "abc").write_text("abc")
    assert file_hash(tmp_path / "abc", algorithm) == expected


def test_describe_run_is_json(tmp_path):
    record = describe_run(Namespace(seed=5, root=Path("/out")), started=0, loss=0.5)
    assert record == json.loads(json.dumps(record))
    assert record["arguments"] == {"root": "/out", "seed": 5} and record["loss"] == 0.5
    assert {"tensorflow", "keras", "numpy", "python"} <= set(record["versions"])


@pytest.fixture
def record(tmp_path):
    path = tmp_path / "training.json"
    write_json(path, {"arguments": {"lr": 0.1, "root": "/a", "restart": False}})
    return path


def arguments(**changes):
    return Namespace(**{"lr": 0.1, "root": Path("/a"), "restart": False} | changes)


@pytest.mark.parametrize("changes, finished", [({}, True), ({"root": Path("/b")}, True), ({"restart": True}, False)])
def test_finished_run(record, changes, finished):
    assert finished_run(record, arguments(**changes), free=["root"]) is finished


def test_no_run_has_finished_without_a_record(tmp_path):
    assert not finished_run(tmp_path / "training.json", arguments(), free=[])


def test_finished_run_with_other_arguments_shows_both_values(record):
    with pytest.raises(UserError, match=r"--lr 0.1 \(now 0.2\)"):
        finished_run(record, arguments(lr=0.2), free=["root"])


def test_a_record_that_is_none_is_refused(record):
    write_json(record, {"arguments": [1]})
    with pytest.raises(UserError, match="training.json is not the record of a run"):
        finished_run(record, arguments(), free=[])


def claiming(*arguments):
    """A process that holds a claim until it is killed."""
    code = "import sys, time; from Experiment import locks; locks.claim(*sys.argv[1:]); print('claimed', flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "claimed\n"
    return process


def test_parts_of_a_folder_have_writers_side_by_side_but_not_beside_the_whole(tmp_path):
    folder = tmp_path / "run"
    shard = claiming(folder, "-1-of-2")
    alive, dead = (folder / f".partial-{machine()}-{shard.pid}-a", folder / f".partial-{machine()}-{2**22 + 1}-b")
    for path in (alive, dead):
        path.write_bytes(b"half")
    other = claiming(folder, "-2-of-2")
    assert alive.exists() and not dead.exists()
    for part in ("", "-2-of-2"):
        with pytest.raises(UserError, match="is writing in"):
            claim(folder, part)
    for process in (shard, other):
        process.kill()
        process.wait()
    whole = claiming(folder)
    with pytest.raises(UserError, match=f"process {whole.pid} on .* is writing in"):
        claim(folder, "-1-of-2")
    whole.kill()
    whole.wait()


def test_what_is_written_into_a_claimed_folder_that_was_deleted_is_refused(tmp_path):
    folder = tmp_path / "run"
    claim(folder)
    write_json(folder / "deep/a.json", {})
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="run has been deleted while this process was writing in it"):
        write_json(folder / "deep/a.json", {})
    assert not folder.exists()


def test_a_folder_has_one_writer_until_that_ends(tmp_path):
    first = claiming(tmp_path / "run")
    (tmp_path / "run/class_00").mkdir()
    left = [tmp_path / "run/.partial-1-a.npz", tmp_path / "run/class_00/.partial-1-img_0.png"]
    for path in left:
        path.write_bytes(b"half")
    with pytest.raises(UserError, match=f"process {first.pid} on .* is writing in {tmp_path / 'run'}"):
        claim(tmp_path / "run")
    assert all(path.exists() for path in left)
    first.kill()
    first.wait()
    claim(tmp_path / "run")
    claim(tmp_path / "run")  # it is ours
    assert not any(path.exists() for path in left)


def test_a_claim_ends_with_its_block(tmp_path):
    with claimed(tmp_path / "run", "-1-of-2"):
        with pytest.raises(UserError, match=f"process {os.getpid()} on {platform.node()} is writing in"):
            claim(tmp_path / "run")
        write_json(tmp_path / "run/a.json", {})
    claiming(tmp_path / "run").kill()  # another process may have it now
    with pytest.raises(ZeroDivisionError), claimed(tmp_path / "other"):
        raise ZeroDivisionError
    shutil.rmtree(tmp_path / "other")
    write_json(tmp_path / "other/a.json", {})  # it is no claimed folder any more


def test_a_block_leaves_what_was_claimed_before_it(tmp_path):
    claim(tmp_path)
    with claimed(tmp_path):
        pass
    code = "from Experiment import locks; locks.claim(__import__('sys').argv[1])"
    second = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=REPOSITORY, capture_output=True, text=True)
    assert f"process {os.getpid()} on" in second.stderr
    release(tmp_path)
    release(tmp_path)
    assert subprocess.run([sys.executable, "-c", code, tmp_path], cwd=REPOSITORY).returncode == 0


def test_nothing_is_made_where_nothing_is_to_be_created(tmp_path):
    assert not claim(tmp_path / "run", create=False)
    assert not (tmp_path / "run").exists()


def test_containers_of_one_name_are_told_apart(tmp_path, monkeypatch):
    names = set()
    for first_process, address in ((0.25, 2), (1462.15, 2), (0.25, 4), (None, 2), (0.25, 2)):
        with monkeypatch.context() as patch:
            patch.setattr("Experiment.locks.process_start", lambda pid, began=first_process: began)
            patch.setattr("uuid.getnode", lambda address=address: address)
            names.add(machine.__wrapped__())  # not the cached one: other tests of this process need the true name
    assert len(names) == 4 and all(name.startswith(platform.node()) for name in names)
    theirs = tmp_path / f".partial-{min(names)}-{2**22 + 1}-a.json"  # of a process that we cannot see
    theirs.write_text("half")
    write_json(tmp_path / "a.json", {})
    assert theirs.exists()


def test_random_addresses_do_not_name_a_machine(monkeypatch):
    monkeypatch.setattr("uuid.getnode", lambda: 1 << 40 | int.from_bytes(os.urandom(4)))
    names = [machine.__wrapped__() for _ in range(3)]
    assert len(set(names)) == 1


def test_when_a_process_began():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert process_start(child.pid) == process_start(child.pid) > process_start(os.getpid())
    child.communicate(b"\n")
    assert process_start(child.pid) is None


def test_an_ended_process_that_nobody_waits_for_is_gone():
    child = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    child.stdout.read()
    deadline = time.monotonic() + 30
    while process_start(child.pid) is not None:  # its output is closed a moment before it has ended
        assert time.monotonic() < deadline
    child.wait()


# psutil and platform do not know the instructions of a processor, nor the driver of a GPU without its library. Where
# /proc is missing, bfloat16 is not taken by itself, and a record has the name of the processor that platform knows.
# Used where they are, and left out where not.
LINUX_ONLY = {"Experiment/machine.py": {"/proc/"}, "Stages/copies.py": {"fcntl"}}


def system_parts(source):
    """What a module has that not every system has: imports, files below /proc, signal 0."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        found |= {"fcntl", "msvcrt", "resource", "pwd", "grp", "termios"} & set(names)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "/proc/" in node.value:
            found.add("/proc/")
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "os.kill":
            found.add("os.kill")
    return found


def test_no_module_needs_what_only_some_systems_have():
    modules = [path for path in REPOSITORY.rglob("*.py") if not path.is_relative_to(REPOSITORY / ".venv")]
    names = [path.relative_to(REPOSITORY) for path in modules if not path.name.startswith(".")]
    names = [name for name in names if name.parts[0] not in ("tests", "bench", "parity") and name.parts[0][0] != "."]
    assert {"hyp_opt.py", "Experiment/locks.py", "Search/studies.py"} <= {name.as_posix() for name in names}
    found = {name.as_posix(): system_parts((REPOSITORY / name).read_text()) for name in names}
    assert {name: parts for name, parts in found.items() if parts} == LINUX_ONLY


def test_locks_work_where_fcntl_and_proc_are_hidden(tmp_path):
    """Our modules in a process in which they cannot import fcntl nor open anything below /proc."""
    code = """
import builtins, io, sys, pathlib
import filelock, psutil
ours = str(pathlib.Path.cwd())
def from_us(frame):
    return frame.f_code.co_filename.startswith(ours) and "site-packages" not in frame.f_code.co_filename
really_import, really_open = builtins.__import__, builtins.open
def checked_import(name, *args, **kwargs):
    assert not (name in ("fcntl", "msvcrt", "resource") and from_us(sys._getframe(1))), name
    return really_import(name, *args, **kwargs)
def checked_open(file, *args, **kwargs):
    assert not (str(file).startswith("/proc") and from_us(sys._getframe(1))), file
    return really_open(file, *args, **kwargs)
builtins.__import__, builtins.open, io.open = checked_import, checked_open, checked_open  # io's is that of pathlib
from Experiment.files import change_json
from Experiment.locks import claimed
from Search.studies import delete_study, open_study, pruner, run_trials
folder = pathlib.Path(sys.argv[1])
address, lock, best = f"journal:{folder}/study.log", folder / "study", folder / "best.json"
study = open_study(address, "s", 1, pruner("none", 1), True, lock)
run_trials(study, lambda trial: 1.0, 1)
assert delete_study(address, "s", lock, best) == 1
with claimed(sys.argv[1], "-1-of-2"):
    change_json(sys.argv[1] + "/a.json", lambda before: before | {"a": 1})
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def without_proc(monkeypatch):
    """Hides /proc from our modules, not from libraries. A list of what they have asked for in vain."""
    ours, asked = str(REPOSITORY), []

    def hide(module, name):
        really = getattr(module, name)

        def hidden(path, *args, **how):
            frame = sys._getframe(1)
            while frame.f_code.co_filename.endswith(("pathlib.py", "genericpath.py")):  # on behalf of
                frame = frame.f_back
            file = frame.f_code.co_filename
            if str(path).startswith("/proc") and file.startswith(ours) and "site-packages" not in file:
                asked.append(str(path))
                raise FileNotFoundError(errno.ENOENT, "hidden", str(path))
            return really(path, *args, **how)

        monkeypatch.setattr(module, name, hidden)

    for module, name in ((builtins, "open"), (io, "open"), (os, "stat"), (os, "listdir"), (os, "scandir")):
        hide(module, name)
    hardware.processor.cache_clear()
    hardware.driver_gpus.cache_clear()
    yield asked
    hardware.processor.cache_clear()
    hardware.driver_gpus.cache_clear()


def test_the_machine_is_described_and_a_stage_runs_without_proc(tiny, tmp_path, without_proc):
    import SD_adapting

    assert hardware.cpu_info() == "" and not hardware.computes_bfloat16() and set(without_proc) == {"/proc/cpuinfo"}
    found = hardware.describe_machine()
    assert found["processor"]["name"] and found["processor"]["memory_gb"] >= 1
    with pytest.raises(FileNotFoundError):
        hardware.CPUINFO.read_text()
    flags = ["--dataset", "digits", "--exp", "x", "--backbone", "tiny", "--root", str(tmp_path / "out")]
    folder = SD_adapting.adapt(SD_adapting.parse_args(flags))
    record = read_json(folder / "training.json")
    assert record["machine"]["processor"] == found["processor"]


def test_a_package_that_is_missing_has_no_version(monkeypatch):
    monkeypatch.setattr(records, "PACKAGES", ("numpy", "no-such-package"))
    found = describe_run(Namespace(), started=0)["versions"]
    assert found == {"python": platform.python_version(), "numpy": np.__version__, "no-such-package": None}


@pytest.mark.parametrize("address, shown", [
    ("postgresql+psycopg://opt:se:cr/et@host:5432/optuna", "postgresql+psycopg://opt:***@host:5432/optuna"),
    ("postgresql://opt:s@cret@host/optuna", "postgresql://opt:***@host/optuna"),
    ("postgresql://:secret@host/optuna", "postgresql://:***@host/optuna"),
    ("postgresql://host/optuna?user=opt&password=secret&sslmode=require",
     "postgresql://host/optuna?user=opt&password=***&sslmode=require"),
    ("postgresql://opt@host/optuna", "postgresql://opt@host/optuna"),
    ("postgresql://host:5432/optuna", "postgresql://host:5432/optuna"),
    ("sqlite:///out/study.db", "sqlite:///out/study.db"), ("journal:a@b/study.log", "journal:a@b/study.log"),
])  # fmt: skip
def test_records_hold_no_passwords(address, shown):
    record = describe_run(Namespace(storage=address, root=Path("/out"), seed=5, exp=None), started=0)
    assert record["arguments"] == {"exp": None, "root": str(Path("/out")), "seed": 5, "storage": shown}
