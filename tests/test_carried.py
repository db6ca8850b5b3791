"""Files of an experiment that travel between a pipeline's root and the copies of its tasks."""

import argparse
import errno
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import types
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

import curves
import pipeline
import result_plots
from Experiment.errors import MAY_PASS, UserError
from Experiment.files import read_json, write_json
from Experiment.locks import machine
from Experiment.paths import REPOSITORY, Experiment
from Stages import carried, copies, ray_task
from Stages.carried import Root, edited, edits, travels
from Stages.copies import BrokenCopy, Copy, reason

CHECKPOINTS = "Checkpoints/DDPM/Exp_e/digits/MyEmbedding"
EPOCH, SET = f"{CHECKPOINTS}/epoch1.weights.h5", "Data/Synthetic/Exp_e/digits/4Enc1"
IMAGE = f"{SET}/class_00/img_0.png"


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(carried, "PIECE", 10)
    monkeypatch.setattr(copies, "PIECE", 10)
    monkeypatch.setattr(copies, "PAUSES", (0, 0))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "root").mkdir()
    return Root(tmp_path / "root", "e", "digits")


def caller(root):
    return lambda method, *args: getattr(root, method)(*args)


def copy_of(root, script="generate_dataset", call=None):
    made = Copy(call or caller(root), script, "e", "digits")
    made.fetch()
    return made


class Calls:
    """Calls of a root that are noted, and may be made to fail."""

    def __init__(self, root):
        self.root, self.made, self.fails = root, [], lambda method, *args: False

    def __call__(self, method, *args):
        if self.fails(method, *args):
            raise OSError(errno.EHOSTUNREACH, "No route to host")
        self.made.append((method, args[0] if args else None))
        return getattr(self.root, method)(*args)

    def names(self):
        """What was changed, in order."""
        return [name for method, name in self.made if method in ("write", "grow", "merge", "folder", "remove")]


def put(folder, name, data=b"x", age=None):
    """Write a file, that many seconds old."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    if age is not None:
        os.utime(path, (time.time() - age,) * 2)
    return path


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*"))
            if p.is_file() and p.name != copies.MARK and not p.name.endswith(".lock")}  # fmt: skip


def test_a_copy_has_what_its_script_needs_with_its_times(root):
    file = put(root.root, EPOCH, bytes(range(25)))
    os.utime(file, ns=(5, 1234567890123456789))
    for name in (IMAGE, "Data/Real/digits.npz", "Data/Real/pathmnist.npz", "CAS Results/test_accuracies_exper.json", "Data/Decoded/x.npy",
                 f"{CHECKPOINTS}/.lock", "Checkpoints/DDPM/Exp_f/digits/MyEmbedding/epoch1.weights.h5"):  # fmt: skip
        put(root.root, name)
    made = copy_of(root)
    assert content(made.folder).keys() == {EPOCH, IMAGE, "Data/Real/digits.npz"}
    assert (made.folder / EPOCH).read_bytes() == bytes(range(25))
    assert (made.folder / EPOCH).stat().st_mtime_ns == 1234567890123456789  # what cards of weights look at
    assert content(copy_of(root, "SD_adapting").folder).keys() == {EPOCH, "Data/Real/digits.npz"}
    made.close()
    assert not made.folder.exists()


def test_a_folder_stays_when_it_gets_its_first_file(root):
    """Who looks through the root meanwhile would miss it."""
    (root.root / IMAGE).parent.mkdir(parents=True)
    calls = Calls(root)
    made = copy_of(root, call=calls)
    put(made.folder, IMAGE)
    made.send(final=True)
    assert "remove" not in [method for method, _ in calls.made] and (root.root / IMAGE).exists()
    (made.folder / IMAGE).unlink()
    (made.folder / IMAGE).parent.rmdir()
    made.send(final=True)
    assert not (root.root / IMAGE).parent.exists()


def test_what_changes_in_a_copy_arrives(root):
    put(root.root, EPOCH, b"old")
    put(root.root, IMAGE)
    made = copy_of(root)
    (made.folder / EPOCH).unlink()
    new = put(made.folder, EPOCH.replace("1.w", "2.w"), bytes(range(30)))
    put(made.folder, IMAGE.replace("img_0", "img_1"), b"")
    (made.folder / SET / "class_01").mkdir()  # a class without images is a folder all the same
    made.send(final=True)
    assert content(root.root) == {
        EPOCH.replace("1.w", "2.w"): bytes(range(30)), IMAGE: b"x", IMAGE.replace("img_0", "img_1"): b""
    }  # fmt: skip
    assert (root.root / SET / "class_01").is_dir() and (copy_of(root).folder / SET / "class_01").is_dir()
    assert (root.root / EPOCH.replace("1.w", "2.w")).stat().st_mtime_ns == new.stat().st_mtime_ns
    made.call = calls = Calls(root)
    made.send(final=True)
    assert not calls.made
    shutil.rmtree(made.folder / SET)
    made.send(final=True)
    assert not (root.root / SET / "class_00").exists() and not (root.root / SET / "class_01").exists()


def test_a_file_appears_with_its_last_piece(root):
    root.write(EPOCH, "task", 0, b"a" * 10, None)
    assert not (root.root / EPOCH).exists() and EPOCH not in root.listing("SD_adapting")
    root.write(EPOCH, "task", 10, b"b", (99, True))
    assert (root.root / EPOCH).read_bytes() == b"a" * 10 + b"b"


# A broken copy


@pytest.mark.parametrize("how", ["all", "files", "before the look ends"])
def test_nothing_is_removed_because_a_copy_has_vanished(root, how, monkeypatch):
    put(root.root, EPOCH)
    put(root.root, IMAGE)
    made, before = copy_of(root), content(root.root)

    def vanish():
        shutil.rmtree(made.folder)
        if how == "files":  # a cleaner leaves folders
            (made.folder / CHECKPOINTS).mkdir(parents=True)

    if how == "before the look ends":
        monkeypatch.setattr(copies, "look", lambda *_: vanish() or {})
    else:
        vanish()
    for final in (False, True):
        with pytest.raises(BrokenCopy, match="somebody has removed files of"):
            made.send(final)
    assert content(root.root) == before


def test_the_mark_of_a_copy_is_its_oldest_file(root):
    """What cleans by age, whichever time it goes by, takes it first."""
    os.utime(put(root.root, EPOCH), (5, 5))
    made = copy_of(root)
    mark, epoch = ((made.folder / name).stat() for name in (copies.MARK, EPOCH))
    assert mark.st_atime_ns <= epoch.st_atime_ns and mark.st_ctime_ns <= epoch.st_ctime_ns


def test_copies_of_killed_tasks_of_this_machine_are_removed(root, tmp_path):
    names = (f"carried-{machine()}-999999999-abc", f"carried-{machine()}-{os.getpid()}-abc", "carried-other-1234-999999999-abc",
             f"unsent-carried-{machine()}-999999999-abc")  # fmt: skip
    for name in names:
        (tmp_path / "tmp" / name).mkdir()
    made = copy_of(root)
    assert {path.name for path in made.folder.parent.iterdir()} == {*names[1:], made.folder.name}


# Sending that fails


def test_a_send_that_fails_is_tried_again(root, monkeypatch):
    monkeypatch.setattr(copies, "EVERY", 0.01)
    made, said, ended, left = copy_of(root), [], threading.Event(), [4]
    made.call = calls = Calls(root)

    def fails(method, *args):
        left[0] -= 1
        return left[0] >= 0

    calls.fails = fails
    put(made.folder, EPOCH, age=9)
    thread = threading.Thread(target=made.keep_sending, args=(ended, said.append))
    thread.start()
    end = time.monotonic() + 30
    while not (root.root / EPOCH).exists() and time.monotonic() < end:
        time.sleep(0.01)
    arrived = (root.root / EPOCH).exists()
    left[0] = 2  # the last one fails twice too
    put(made.folder, IMAGE)
    ended.set()
    thread.join()
    assert arrived and (root.root / IMAGE).exists()
    assert set(said) == {"[Errno 113] No route to host: tried again"} and len(said) <= 3


class Board:
    """A board without Ray, in this process."""

    def __init__(self, call):
        def method(function):
            return types.SimpleNamespace(remote=function)

        self.said = []
        self.files, self.put, self.take = (
            method(call), method(lambda key, line, is_error: self.said.append((line, is_error))), method(lambda key: [])
        )  # fmt: skip


@pytest.fixture
def run(monkeypatch):
    """Function of a root's calls and flags of the stand-in that runs it as a task, and returns its code and the board."""
    ray = types.ModuleType("ray")
    ray.get, ray.exceptions = (lambda answer: answer), types.SimpleNamespace(RayActorError=ConnectionError)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(ray_task, "LOOK", 0.01)
    before = signal.getsignal(signal.SIGINT)

    def run(call, *flags):
        board, command = Board(call), ("tests/ray_stub.py", SET, *flags)
        where = (str(call.root.root), "e", "digits")
        return ray_task.run_command(command, False, board, "key", ray_task.software(), where), board

    yield run
    signal.signal(signal.SIGINT, before)


def test_a_task_fetches_and_sends(root, run, tmp_path):
    put(root.root, f"{SET}/0.txt", b"0")
    code, board = run(Calls(root), "--count", "2")
    assert code == 0 and ("2 files are there\n", False) in board.said and not list((tmp_path / "tmp").iterdir())
    assert (root.root / SET / "writes").read_text() == "1\n" and (root.root / SET / "1.txt").read_text() == "1"


def test_what_cannot_be_sent_stays_and_is_told(root, run, tmp_path):
    calls = Calls(root)
    calls.fails = lambda method, *args: method == "write"
    code, board = run(calls, "--count", "2")
    (kept,) = (tmp_path / "tmp").iterdir()
    assert code == MAY_PASS and (kept / SET / "1.txt").read_text() == "1"
    line, is_error = board.said[-1]
    assert is_error and line.startswith("--carry, node ") and line.endswith(f"No route to host): it lies in {kept}")
    copy_of(root)
    assert kept.exists()  # the next task leaves it alone


def test_what_cannot_be_fetched_is_told(root, run, tmp_path):
    calls = Calls(root)
    calls.fails = lambda *_: True
    code, board = run(calls)
    assert code == MAY_PASS and not list((tmp_path / "tmp").iterdir())
    assert [line.partition(": ")[2] for line, _ in board.said] == [
        "[Errno 113] No route to host: tried again", "files cannot be fetched ([Errno 113] No route to host)"
    ]  # fmt: skip


def test_a_stop_while_files_are_fetched_starts_nothing(root, run, tmp_path):
    put(root.root, EPOCH, b"a" * 100)

    class Stopping(Calls):
        def __call__(self, method, *args):
            if method == "read":
                signal.raise_signal(signal.SIGINT)
            return super().__call__(method, *args)

    calls = Stopping(root)
    code, board = run(calls)
    assert code == 143 and not board.said and [method for method, _ in calls.made] == ["listing", "read"]
    assert not list((tmp_path / "tmp").iterdir())


def test_a_copy_that_vanishes_under_a_task_is_told(root, run, tmp_path):
    put(root.root, EPOCH)
    before = content(root.root)

    class Vanishing(Calls):
        def __call__(self, method, *args):
            found = super().__call__(method, *args)
            if method == "read":
                for mark in (tmp_path / "tmp").glob(f"*/{copies.MARK}"):
                    mark.unlink()
            return found

    code, board = run(Vanishing(root), "--count", "2")
    assert code == MAY_PASS and "somebody has removed files of" in board.said[-1][0]
    assert content(root.root) == before


class ObjectStoreFullError(Exception):
    pass


def test_what_is_full_is_said():
    assert reason(ObjectStoreFullError("no\n room")) == "Ray's object store has no room: no room"
    full = OSError(errno.ENOSPC, "No space left on device")
    assert reason(full) == "the disk of this node is full: [Errno 28] No space left on device"
    wrapped = RuntimeError("many lines")
    wrapped.cause = full
    assert reason(wrapped) == "the disk of the pipeline is full: [Errno 28] No space left on device"
    assert reason(KeyError()) == "KeyError"


# One state


def test_what_changes_or_goes_while_it_is_fetched(root):
    """First a file goes and another one changes after the listing; then one changes between two of its pieces."""
    names = [f"{CHECKPOINTS}/epoch{i}.weights.h5" for i in (1, 2, 3)]
    for name in names:
        put(root.root, name, b"a" * 25)
    reads = []

    def call(method, *args):
        if method == "read":
            reads.append(args[:2])
            if len(reads) == 1:
                (root.root / names[1]).unlink()
                put(root.root, names[2], b"c" * 25)
            if args[:2] == (names[2], 10) and (root.root / names[2]).read_bytes()[:1] == b"c":
                put(root.root, names[2], b"d" * 30)
                put(root.root, names[0], b"e" * 5)
        return getattr(root, method)(*args)

    made = copy_of(root, call=call)
    assert content(made.folder) == content(root.root) == {names[0]: b"e" * 5, names[2]: b"d" * 30}
    made.send(final=True)  # and nothing of it counts as the task's
    assert content(root.root) == {names[0]: b"e" * 5, names[2]: b"d" * 30}


def test_files_that_never_rest_are_told(root):
    put(root.root, EPOCH)

    def call(method, *args):
        if method == "read":
            put(root.root, EPOCH, os.urandom(5))
        return getattr(root, method)(*args)

    with pytest.raises(UserError, match="keep changing"):
        copy_of(root, call=call)


def test_logs_of_others_may_grow_while_they_are_fetched(root):
    log = put(root.root, f"{SET}/log.txt", b"one\n")

    def call(method, *args):
        if method == "read":
            with open(log, "ab") as file:
                file.write(b"more\n")
        return getattr(root, method)(*args)

    assert (copy_of(root, call=call).folder / SET / "log.txt").read_bytes() == b"one\n"


def test_a_file_that_is_replaced_while_it_is_sent_ends_the_pass(root):
    """Sent would be half of each, and what comes later may speak of the first one."""
    made = copy_of(root)
    put(made.folder, EPOCH, b"a" * 25, age=9)
    put(made.folder, f"{CHECKPOINTS}/training.json", b"{}", age=8)
    made.call = calls = Calls(root)

    def write_over(method, *args):
        if method == "write" and args[0] == EPOCH and args[2] == 0 and args[3][:1] == b"a":
            with open(made.folder / EPOCH, "r+b") as file:
                file.write(b"b" * 30)
        return False

    calls.fails = write_over
    made.send()
    assert not content(root.root).keys() & {EPOCH, f"{CHECKPOINTS}/training.json"}
    calls.fails = lambda *_: False
    made.send(final=True)
    assert (root.root / EPOCH).read_bytes() == b"b" * 30 and (root.root / CHECKPOINTS / "training.json").exists()


def test_a_database_in_use_arrives_whole(root):
    name = "optimization_plots/e/digits/study.db"
    made = copy_of(root, "hyp_opt")
    (made.folder / name).parent.mkdir(parents=True)
    with closing(sqlite3.connect(made.folder / name)) as used:
        used.execute("create table trials (number)")
        used.execute("insert into trials values (1)")
        used.commit()
        used.execute("insert into trials values (2)")  # not committed: of a trial that runs
        made.send(final=True)
    with closing(sqlite3.connect(root.root / name)) as arrived:
        assert arrived.execute("select number from trials").fetchall() == [(1,)]
    assert [path.name for path in (root.root / name).parent.iterdir()] == ["study.db"]
    assert not list((made.folder / name).parent.glob(".partial*"))


def test_a_database_that_a_killed_process_has_left_is_settled_first(root):
    name = root.root / "optimization_plots/e/digits/study.db"
    name.parent.mkdir(parents=True)
    with closing(sqlite3.connect(name)) as used:
        used.execute("pragma journal_mode=wal")
        used.execute("create table trials (number)")
        used.commit()
        left = [(path, path.read_bytes()) for path in name.parent.iterdir()]
    for path, data in left:  # as if it had not been closed
        path.write_bytes(data)
    with closing(sqlite3.connect(copy_of(root, "hyp_opt").folder / name.relative_to(root.root))) as fetched:
        assert fetched.execute("select * from trials").fetchall() == []


# Order


def test_what_says_that_something_is_finished_arrives_after_it(root):
    put(root.root, f"{CHECKPOINTS}/training.json")
    made = copy_of(root, "SD_adapting")
    (made.folder / CHECKPOINTS / "training.json").unlink()
    order = [f"{CHECKPOINTS}/{name}" for name in ("z.weights.h5", "a.weights.h5", "log.txt", "history.csv", "run.json")]
    for age, name in zip((50, 40, 30, 20, 20), order):
        os.utime(put(made.folder, name), (1e9 - age,) * 2)
    made.call = calls = Calls(root)
    calls.fails = lambda method, *args: args[0] == order[2]
    with pytest.raises(OSError):
        made.send()
    assert calls.names() == [[f"{CHECKPOINTS}/training.json"], *order[:2]]
    calls.fails = lambda *_: False
    made.send()
    assert calls.names()[3:] == order[2:]


def test_what_begins_while_a_copy_is_looked_at_waits(root, monkeypatch):
    """The manifest would arrive without the image that the look had missed."""
    made = copy_of(root)
    put(made.folder, IMAGE, age=9)
    look = copies.look

    def looks(*args):
        missing = Path(made.folder / SET / "class_00/img_1.png")
        put(made.folder, f"{SET}/manifest.json", b"{}")
        found = look(*args)
        put(made.folder, missing.relative_to(made.folder))
        return found

    monkeypatch.setattr(copies, "look", looks)
    made.send()
    assert content(root.root).keys() == {IMAGE}
    monkeypatch.setattr(copies, "look", look)
    made.send(final=True)
    assert len(content(root.root)) == 3


def test_what_is_unfinished_goes_when_what_came_of_it_is_there(root):
    state, record, tar, pending = (f"{CHECKPOINTS}/state.npz", f"{CHECKPOINTS}/training.json", f"{SET}/images-000000.tar",
                                   f"{SET}/.pending-000000-0123abcd")  # fmt: skip
    put(root.root, state)
    put(root.root, pending)
    made = copy_of(root)
    for name in (state, pending):
        (made.folder / name).unlink()
    for name in (record, tar):
        put(made.folder, name, age=9)
    made.call = calls = Calls(root)
    calls.fails = lambda method, *args: args[0] == tar
    with pytest.raises(OSError):
        made.send()
    assert {state, pending} <= content(root.root).keys()
    calls.fails = lambda *_: False
    made.send()
    assert content(root.root).keys() == {record, tar}


# Files that several tasks write


def test_tasks_side_by_side_add_to_results_and_logs(root):
    file = Experiment(root.root, "e", "digits").cas_file
    write_json(file, {"resnet20": {"digits": {"real": {"top": 1, "old": 3}, "x1": {"top": 2}, "x9": {"top": 9}}}})
    log = f"{SET}/log.txt"
    put(root.root, log, b"before\n")
    one, two = copy_of(root), copy_of(root)
    for made, key in ((one, "x2"), (two, "x3")):
        results = made.folder / file.relative_to(root.root)
        entries = read_json(results)
        of_dataset = entries["resnet20"]["digits"]
        of_dataset |= {key: {"top": 5}, "x1": {"top": 2 if made is one else 7}}
        if made is one:
            del of_dataset["x9"], of_dataset["real"]["old"]
        else:
            entries["resnet20_16"] = {"digits": {"real": {"top": 4}}}
        write_json(results, entries)
        with open(made.folder / log, "ab") as lines:
            lines.write(f"{key} is done\n".encode())
    for made in (two, one, one):
        made.send(final=True)
    assert read_json(file) == {
        "resnet20": {"digits": {"real": {"top": 1}, "x1": {"top": 7}, "x3": {"top": 5}, "x2": {"top": 5}}},
        "resnet20_16": {"digits": {"real": {"top": 4}}},
    }
    assert (root.root / log).read_text() == "before\nx3 is done\nx2 is done\n"


def test_edits_are_by_path():
    before = {"a": {"b": 1, "c": {"d": 2, "x": 1}}, "e": 3, "gone": {"y": 1}}
    now = {"a": {"b": 1, "c": {"d": 4, "f": 5}}, "e": 3, "g": {}, "new": {"h": {"i": 1}}}
    changes = edits(before, now)
    assert sorted(changes, key=str) == sorted(
        [(("gone",),), (("a", "c", "x"),), (("a", "c", "d"), 4), (("a", "c", "f"), 5), (("g",), {}), (("new", "h", "i"), 1)], key=str
    )  # fmt: skip
    assert edited(json.loads(json.dumps(before)), changes) == now
    others = {"a": {"c": {"d": 9, "k": 1}}, "new": {"h": {"j": 2}}, "g": {"l": 1}}
    assert edited(others, changes) == {
        "a": {"c": {"d": 4, "k": 1, "f": 5}}, "new": {"h": {"j": 2, "i": 1}}, "g": {"l": 1}
    }  # fmt: skip


def test_a_broken_file_of_results_is_set_aside(root):
    file = Experiment(root.root, "e", "digits").cas_file
    put(root.root, file.relative_to(root.root), b"{broken")
    made = copy_of(root)
    write_json(made.folder / file.relative_to(root.root), {"a": 1})
    made.send(final=True)
    assert read_json(file) == {"a": 1} and len(list(file.parent.glob("*broken*"))) == 1


def test_an_answer_that_is_lost_repeats_no_lines(root):
    put(root.root, f"{SET}/log.txt", b"before\n")
    for offset, data in ((7, b"one\n"), (7, b"one\n"), (7, b"one\ntwo\n"), (15, b"three\n")):
        root.grow(f"{SET}/log.txt", "task", offset, data)
    assert (root.root / SET / "log.txt").read_bytes() == b"before\none\ntwo\nthree\n"


def test_an_answer_to_the_first_lines_that_is_lost_repeats_none(root):
    for data in (b"one\n", b"one\n", b"one\ntwo\n"):
        root.grow(f"{SET}/log.txt", "task", 0, data)
    assert (root.root / SET / "log.txt").read_bytes() == b"one\ntwo\n"


def test_images_that_wait_for_their_tar_arrive_as_they_come(root):
    made, name = copy_of(root), f"{SET}/.pending-000000-0123abcd"
    with open(put(made.folder, name, b"a" * 25), "ab") as file:
        made.send(final=True)
        file.write(b"b" * 12)
    made.call = calls = Calls(root)
    made.send(final=True)
    assert (root.root / name).read_bytes() == b"a" * 25 + b"b" * 12 and calls.names() == [name] * 2


def test_shards_of_other_settings_are_refused(root):
    """Each has begun the set before it could see the other."""
    one, two = copy_of(root), copy_of(root)
    for made, precision in ((one, "float32"), (two, "mixed_bfloat16")):
        put(made.folder, f"{SET}/generation.json", json.dumps({"precision": precision}).encode(), age=9)
        put(made.folder, IMAGE, precision.encode())
    one.send(final=True)
    before = content(root.root)
    with pytest.raises(UserError, match="has begun .* with other settings"):
        two.send(final=True)
    assert content(root.root) == before


def test_pictures_of_several_results_are_drawn_in_the_end(root, monkeypatch):
    """A task's own picture would lack what the tasks beside it have found."""
    experiment, drawn = Experiment(root.root, "e", "digits"), []
    entry = {"top_1_accuracy": 0.5, "top_5_accuracy": 0.9}

    class Run:
        stages, told, seconds = [], None, dict

        def run(self):
            tasks = [copy_of(root), copy_of(root)]
            for made, name in zip(tasks, ("x1", "x2")):
                put(
                    made.folder,
                    experiment.cas_file.relative_to(root.root),
                    json.dumps({"resnet20": {"digits": {name: entry}}}).encode(),
                )
                put(made.folder, experiment.pipeline_file.relative_to(root.root),
                    json.dumps({"digits": {f"train_{name}": {"opt": {"top_1": 0.5, "top_5": 0.9}}}}).encode())  # fmt: skip
            for made in tasks:
                made.send(final=True)

    @contextmanager
    def start_runner(args, known):
        yield Run()

    def noting(draw):
        return lambda sources, *rest: drawn.append(sources) or draw(sources, *rest)

    monkeypatch.setattr(pipeline, "start_runner", start_runner)
    monkeypatch.setattr(pipeline, "outcome", lambda *_: [])
    monkeypatch.setattr(result_plots, "cas_curve", noting(curves.cas_curve))
    monkeypatch.setattr(result_plots, "pipeline_bars", lambda sources, score, file: drawn.append(sources))
    known = types.SimpleNamespace(spec=types.SimpleNamespace(resolution=99), note="", experiment=experiment, classifier="")
    pipeline.run_pipeline(types.SimpleNamespace(carry=True, backbone="mini"), known)
    assert drawn[0]["experiment e resnet20"].keys() == {"x1", "x2"} and experiment.cas_plot.exists()
    assert drawn[1]["experiment e"]["digits"].keys() == {"train_x1", "train_x2"} and len(drawn) == 3


# Places


def test_locks_and_what_is_being_written_stay(root):
    for name in (".lock", ".lock-1-of-2", ".lock.guard", ".lock.holder", ".training.json.lock", ".study.lock", ".partial-a-1-x.npz",
                 "study.db-journal", "study.db-wal", "study.db-shm"):  # fmt: skip
        put(root.root, f"{CHECKPOINTS}/{name}")
        assert not travels(f"{CHECKPOINTS}/{name}", "e", "digits")
    made = copy_of(root)
    assert not content(made.folder)
    put(made.folder, f"{SET}/.generation.json.lock")
    put(made.folder, EPOCH)
    made.send(final=True)
    assert not (root.root / SET / ".generation.json.lock").exists() and (root.root / EPOCH).exists()


@pytest.mark.parametrize("name", ["../x", f"{SET}/../../../../../x", "/etc/x", "pipeline.py", "CAS Results/other.json", "Data/Real/digits.npz",
                                  "Data/Synthetic/Exp_f/digits/x", f"{SET}/.lock"])  # fmt: skip
def test_names_of_a_task_stay_in_its_experiment(root, name):
    put(root.root, "pipeline.py")
    for call in (lambda: root.write(name, "t", 0, b"", (1, True)), lambda: root.grow(name, "t", 0, b""), lambda: root.folder(name),
                 lambda: root.merge(name, [(("a",), 1)]), lambda: root.remove([name])):  # fmt: skip
        with pytest.raises(UserError, match="no file of the experiment"):
            call()
    assert content(root.root) == {"pipeline.py": b"x"}


def test_links_are_read_and_not_written_through(root, tmp_path):
    away = tmp_path / "away"
    put(away, "epoch1.weights.h5", b"far")
    put(tmp_path, "real/digits.npz", b"data")
    (root.root / CHECKPOINTS).parent.mkdir(parents=True)
    (root.root / CHECKPOINTS).symlink_to(away)
    (root.root / "Data").mkdir()
    (root.root / "Data/Real").symlink_to(tmp_path / "real")
    (away / "around").symlink_to(root.root / CHECKPOINTS)
    made = copy_of(root, "SD_adapting")
    assert content(made.folder) == {EPOCH: b"far", "Data/Real/digits.npz": b"data"}
    put(made.folder, EPOCH, b"new")
    (made.folder / "Data/Real/digits.npz").unlink()
    with pytest.raises(UserError, match="--carry writes nothing outside of .*, where a link leads to on the way to"):
        made.send(final=True)
    (made.folder / EPOCH).unlink()
    with pytest.raises(UserError, match="writes nothing outside"):
        made.send(final=True)
    log = root.root / SET / "log.txt"
    log.parent.mkdir(parents=True)
    log.symlink_to(put(away, "log.txt"))
    with pytest.raises(UserError, match="writes nothing outside"):
        root.grow(f"{SET}/log.txt", "task", 1, b"line")
    assert (away / "epoch1.weights.h5").read_bytes() == b"far" and (tmp_path / "real/digits.npz").exists()


def test_a_linked_place_is_refused_before_anything_runs(root, tmp_path):
    (root.root / "Checkpoints").symlink_to(tmp_path)
    with pytest.raises(UserError, match="name the place that it leads to with --root"):
        root.begin()


def test_what_killed_tasks_were_sending_is_removed_at_the_start(root):
    left, other = f"{SET}/class_00/{carried.PARTIAL}x-1-a-img_0.png", f"{SET}/.partial-host-1-x"
    for name in (left, other, IMAGE):
        put(root.root, name)
    root.begin()
    assert content(root.root).keys() == {other, IMAGE}
    root.write(EPOCH, copy_of(root).folder.name, 0, b"x", None)
    (piece,) = (root.root / CHECKPOINTS).iterdir()
    assert piece.name.startswith(carried.PARTIAL)


# What lies elsewhere


def test_what_is_named_by_path(tmp_path):
    search = argparse.Namespace(data_dir=tmp_path / "Data/Real", weights_dir=tmp_path / "sd", storage=None)
    training = argparse.Namespace(data_dir=tmp_path / "Data/Real", synthetic_dir=None, labels="hard")
    of_script = {"hyp_opt": [search, search], "classifier_training": [training]}
    args = argparse.Namespace(dataset="digits", root=tmp_path)
    assert pipeline.named_paths(args, of_script) == [str(tmp_path / "sd")]
    args.dataset, search.data_dir = "/pictures", tmp_path / "else"
    training.synthetic_dir = Path("/set")
    assert pipeline.named_paths(args, of_script) == ["/pictures", "/set", str(tmp_path / "else"), str(tmp_path / "sd")]
    search.storage = "postgresql://x/y"
    pipeline.named_paths(args, of_script)
    for search.storage in ("sqlite:///x.db", "journal:x"):
        with pytest.raises(UserError, match="--storage that is a file lies on one node"):
            pipeline.named_paths(args, of_script)
    search.storage, training.labels = None, "soft"
    with pytest.raises(UserError, match="labels of a teacher"):
        pipeline.named_paths(args, of_script)


def test_one_pipeline_at_a_time_carries(tmp_path, monkeypatch):
    """Scripts claim the folders of their copies alone: two pipelines would put their files over one another."""
    monkeypatch.setattr(pipeline, "Cluster", lambda *_: types.SimpleNamespace(
        check_paths=lambda paths: None, slots=1, one_machine=True, running=None, close=lambda: None))  # fmt: skip
    args = argparse.Namespace(ray="x:1", carry=True, root=tmp_path, exp="e", backbone="mini", data_dir=tmp_path)
    known = argparse.Namespace(spec=argparse.Namespace(name="mine"), work={}, shares={}, paths=[])
    begin = "from Experiment.locks import claim; claim(sys.argv[1], sys.argv[2])"
    other = [sys.executable, "-c", f"import sys; {begin}", str(tmp_path / "Checkpoints/.carried"), "-e-mine"]
    with pipeline.start_runner(args, known):
        beside = subprocess.run(other, cwd=REPOSITORY, capture_output=True, text=True)
        assert "another --exp" in beside.stderr
    assert subprocess.run(other, cwd=REPOSITORY, capture_output=True).returncode == 0


def test_what_the_root_refuses_is_not_tried_again(root, monkeypatch):
    made, tries, ended = copy_of(root), [], threading.Event()
    monkeypatch.setattr(copies, "EVERY", 0.01)

    def refuse(final=False):
        tries.append(final)
        raise UserError("other settings")

    made.send = refuse
    with pytest.raises(UserError, match="other settings"):
        made.keep_sending(ended, print)
    ended.set()
    with pytest.raises(UserError, match="other settings"):
        made.keep_sending(ended, print)
    assert tries == [False, True]


def test_nodes_know_what_they_lack(tmp_path):
    assert ray_task.absent([str(tmp_path), str(tmp_path / "x")])[1] == [str(tmp_path / "x")]


def test_carrying_is_for_ray_alone(capsys):
    with pytest.raises(SystemExit):
        pipeline.parse_args(["--exp", "e", "--carry"])
    assert "argument --carry: not allowed without --ray" in capsys.readouterr().err
