"""Studies that several processes share: budget, repeated trials of workers that died, addressed randomness."""

import errno
import io
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import optuna
import psutil
import pytest
import sqlalchemy.exc
from filelock import FileLock
from optuna.trial import TrialState

import hyp_opt
from Experiment.errors import PassingError, UserError
from Experiment.locks import locked, machine
from Experiment.paths import Experiment
from Experiment.records import masked
from Search import journal as search_journal
from Search import studies, workers
from Search.inputs import claim_study
from Search.journal import WholeLines, end_of_lines
from Search.storages import DatabaseError, check_address, database_errors, open_storage, study_file
from Search.studies import RANDOM_TRIALS, delete_study, open_study, pruner, run_trials, trials
from Search.workers import GRACE, retry, runs_here, signing, sweep_stale_trials, this_worker

REPOSITORY = Path(__file__).resolve().parent.parent
WORKER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from Search.studies import open_study, pruner, run_trials
study = open_study(sys.argv[2], "s", 5, pruner("none", 10), True, sys.argv[3])
def objective(trial):
    x = trial.suggest_float("x", 0, 1)
    time.sleep(float(sys.argv[5]))
    return x
run_trials(study, objective, int(sys.argv[4]))
"""


@pytest.fixture(params=["sqlite:///{}/study.db", "journal:{}/study.log"])
def address(request, tmp_path):
    return request.param.format(tmp_path)


def new_study(address, tmp_path, seed=5, name="s"):
    return open_study(address, name, seed, pruner("none", 10), True, tmp_path / "study")


def square(trial):
    x, y = trial.suggest_float("x", -1, 1), trial.suggest_int("y", 1, 9)
    return -(x**2) - y


def params(study):
    return [t.params for t in trials(study)]


def worker(address, tmp_path, budget, seconds):
    command = [sys.executable, "-c", WORKER, REPOSITORY, address, tmp_path / "study", budget, seconds]
    return subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("autoguide", [[], ["--autoguide", "0"]])
def test_a_study_follows_the_backbones_own_files(tiny, tmp_path, autoguide):
    """Other files in the place of the tiny backbone's: the decoder of both searches, the UNet where it is read."""
    from Models.weight_cards import write_card

    common = ["--dataset", "digits", "--exp", "x", "--root", str(tmp_path), "--backbone", "tiny", "--n_trials", "1"]
    for part in ("enc", "dif"):
        file = Experiment(tmp_path, "x", "digits").part_dir(part) / "epoch1.weights.h5"
        file.parent.mkdir(parents=True)
        file.write_text(part)
        write_card(file, {})
    plans = [hyp_opt.plan(hyp_opt.parse_args([*common, "--train_model", part, *(autoguide if part == "dif" else [])]))
             for part in ("enc", "dif")]  # fmt: skip
    own = {part: tiny.weights_hash(part) for part in ("unet", "decoder")}
    assert plans[0].inputs["weights"] == own
    assert plans[1].inputs["weights"] == (own if autoguide else {"decoder": own["decoder"]})
    assert all(known.splits.train is None for known in plans)  # memory: a search reads none
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("unet", "decoder"):
        (elsewhere / f"{name}.weights.h5").write_text("other")
    args = hyp_opt.parse_args([*common, "--train_model", "enc"])
    study = new_study("sqlite://", tmp_path)
    claim_study(study, args, plans[0], "float32")
    study.enqueue_trial({})
    args.weights_dir = elsewhere
    with pytest.raises(UserError, match=r"other inputs: weights.decoder \w{8} \(now \w{8}\)|weights.unet \w{8} \(now"):
        claim_study(study, args, hyp_opt.plan(args), "float32")


def test_a_search_beside_a_training_is_refused_and_over_an_unfinished_one_says_so(tiny, tmp_path, caplog):
    from Models.weight_cards import write_card

    common = ["--dataset", "digits", "--exp", "x", "--root", str(tmp_path), "--backbone", "tiny", "--train_model", "enc"]
    folder = Experiment(tmp_path, "x", "digits").part_dir("enc")
    folder.mkdir(parents=True)
    for epoch in (1, 4):
        (folder / f"epoch{epoch}.weights.h5").write_text("w")
        write_card(folder / f"epoch{epoch}.weights.h5", {})
    hyp_opt.plan(hyp_opt.parse_args(common))
    assert "is not finished" not in caplog.text
    (folder / "state.npz").touch()
    hyp_opt.plan(hyp_opt.parse_args(common))
    assert f"the training in {folder} is not finished: this search sees its epochs of now, 1 to 4" in caplog.text
    with FileLock(folder / ".lock"):
        with pytest.raises(PassingError, match="is writing in"):
            hyp_opt.plan(hyp_opt.parse_args(common))
        hyp_opt.plan(hyp_opt.parse_args([*common, "--no-optimize"]))


def test_workers_that_begin_together_name_one_study(tiny, tmp_path, monkeypatch, caplog):
    """The settings are those of the first; another one's are refused before its first trial is of them."""
    from Search import stage

    args = hyp_opt.parse_args(["--dataset", "digits", "--exp", "x", "--root", str(tmp_path), "--backbone", "tiny",
                               "--train_model", "enc", "--warm_start", "--storage", f"sqlite:///{tmp_path}/s.db"])  # fmt: skip
    experiment = Experiment(tmp_path, "x", "digits")
    known = SimpleNamespace(
        experiment=experiment, folder=experiment.search_dir("enc"), address=args.storage, inputs={"classes": ["a"]},
        hashes={"1": "a"}, epochs={1: None, 9: None}, spec=SimpleNamespace(name="digits"), adopted={},
        best_file=experiment.search_dir("enc") / "best.json",
    )  # fmt: skip
    first = stage.begin_study(args, known)
    second = stage.begin_study(args, known)
    assert len(trials(first, TrialState.WAITING)) == len(trials(second, TrialState.WAITING)) == 2
    other = SimpleNamespace(**vars(known) | {"address": f"sqlite:///{tmp_path}/other.db"})
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):  # killed between the two that are queued
        enqueue, queued = optuna.Study.enqueue_trial, []
        patch.setattr(
            optuna.Study, "enqueue_trial", lambda *one, **how: queued and 1 / 0 or queued.append(enqueue(*one, **how))
        )
        stage.begin_study(args, other)
    third = stage.begin_study(args, other)
    assert [t.params for t in trials(third)] == [t.params for t in trials(first)] and len(trials(third)) == 2
    args.warm_start = False
    cold = stage.begin_study(args, SimpleNamespace(**vars(known) | {"address": f"sqlite:///{tmp_path}/cold.db"}))
    run_trials(cold, square, 1)
    args.warm_start = True
    stage.begin_study(args, SimpleNamespace(**vars(known) | {"address": f"sqlite:///{tmp_path}/cold.db"}))
    assert not args.warm_start and "--warm_start comes too late" in caplog.text
    args.num_imgs += 1
    with pytest.raises(UserError, match="other arguments: --num_imgs"):
        stage.begin_study(args, known)


def test_the_budget_is_a_total(address, tmp_path):
    for budget in (3, 5, 5):
        study = new_study(address, tmp_path)
        assert run_trials(study, square, budget)
        assert len(trials(study)) == budget


def test_a_continued_search_is_the_uninterrupted_one(tmp_path):
    found = []
    for name, budgets in (("whole", [14]), ("parts", [2, 5, 11, 14])):
        for budget in budgets:  # beyond the ten random trials that TPE begins with
            study = new_study(f"sqlite:///{tmp_path}/{name}.db", tmp_path)
            run_trials(study, square, budget)
        found.append(params(study))
    assert found[0] == found[1] and len({str(p) for p in found[0]}) == 14
    other = new_study(f"sqlite:///{tmp_path}/other.db", tmp_path, seed=6)
    run_trials(other, square, 3)
    assert params(other) != found[0][:3]


def test_failed_trials_are_beyond_the_budget_and_pruned_ones_within(address, tmp_path):
    def moody(trial):
        if trial.number % 3 == 0:
            raise optuna.TrialPruned
        if trial.number % 3 == 1 and not trials(study, TrialState.FAIL):
            raise KeyboardInterrupt
        return square(trial)

    study = new_study(address, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_trials(study, moody, 4)
    assert run_trials(study, moody, 4)
    states = [t.state.name for t in trials(study)]
    assert states == ["PRUNED", "FAIL", "COMPLETE", "PRUNED", "COMPLETE"]


def test_a_stopped_trial_is_tried_again(address, tmp_path):
    """However often it is stopped: its settings may be those that a search begins with."""
    study = new_study(address, tmp_path)
    study.enqueue_trial({"x": 0.25, "y": 3})

    def stopped(trial):
        square(trial)
        raise KeyboardInterrupt

    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            run_trials(study, stopped, 2)
    assert run_trials(study, square, 2)
    done = trials(study, TrialState.COMPLETE)
    assert done[0].params == {"x": 0.25, "y": 3} and done[1].params != done[0].params
    assert not trials(study, TrialState.WAITING)


@pytest.mark.parametrize("error", [OSError(errno.ESTALE, "stale"), UserError("out of memory"), ValueError("odd")])
def test_a_trial_that_an_error_has_ended_is_tried_again_a_few_times(error, address, tmp_path):
    """It may pass, and the settings may be those that a search begins with; settings that never work drop out."""
    study = new_study(address, tmp_path)
    study.enqueue_trial({"x": 0.25, "y": 3})

    def failing(trial):
        square(trial)
        raise error

    with pytest.raises(type(error)):
        run_trials(study, failing, 1)
    assert run_trials(study, square, 1)
    assert trials(study, TrialState.COMPLETE)[0].params == {"x": 0.25, "y": 3}
    study.enqueue_trial({"x": 0.5, "y": 2})
    for _ in range(5):
        with pytest.raises(type(error)):
            run_trials(study, failing, 2)
    assert [t.params["x"] for t in trials(study, TrialState.FAIL)].count(0.5) == 4


def test_a_heart_beats_on_after_the_database_was_away(tmp_path, monkeypatch):
    storage = open_storage(f"sqlite:///{tmp_path}/study.db")
    beats = []

    def away(self, trial_id):
        beats.append(trial_id)
        raise optuna.exceptions.StorageInternalError("gone for a moment")

    monkeypatch.setattr(optuna.storages.RDBStorage, "record_heartbeat", away)
    storage.record_heartbeat(7)
    assert beats == [7]


def test_a_restart_is_refused_while_a_worker_measures(tmp_path):
    address, best = f"sqlite:///{tmp_path}/study.db", tmp_path / "best.json"
    run_trials(new_study(address, tmp_path), square, 1)
    best.write_text("{}")
    with locked(best), pytest.raises(UserError, match="a worker repeats or measures the best trials of this search"):
        delete_study(address, "s", tmp_path / "study", best)
    assert best.exists() and delete_study(address, "s", tmp_path / "study", best) == 1


def test_a_journal_whose_lock_was_taken_away_loses_no_line(tmp_path):
    """A writer that was silent for long: another one has written meanwhile."""
    file = tmp_path / "study.log"
    file.write_text('{"n":0}\n')

    class TakenAway:
        def acquire(self):
            return True

        def release(self):
            raise RuntimeError("did not possess lock")

    journal = WholeLines(file, TakenAway())
    look = search_journal.end_of_lines

    def slow(opened):
        end = look(opened)
        with open(file, "ab") as other:
            other.write(b'{"n":1}\n')
        return end

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_journal, "end_of_lines", slow)
        journal.append_logs([{"n": 2}])
    assert [line["n"] for line in map(json.loads, file.read_text().splitlines())] == [0, 1, 2]


@pytest.mark.parametrize("name", ["a%20b", "{x}", "what?", "a b", "#1"])
def test_a_study_lies_where_its_folder_is_whatever_its_name(tmp_path, name):
    (tmp_path / name).mkdir()
    address = hyp_opt.sqlite_address(tmp_path / name / "study.db")
    assert study_file(address) == tmp_path / name / "study.db"
    run_trials(new_study(address, tmp_path), square, 1)
    assert sorted(path.name for path in tmp_path.rglob("*.db")) == ["study.db"]
    assert (tmp_path / name / "study.db").exists()


def test_home_is_understood_in_addresses(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert study_file("sqlite:///~/s.db?mode=rw") == study_file("journal:~/s.db") == tmp_path / "s.db"
    assert study_file("sqlite://") is study_file("postgresql://x/y") is None


def test_a_study_that_another_machine_is_at_is_not_deleted(tmp_path):
    study = new_study(f"sqlite:///{tmp_path}/study.db", tmp_path)
    study.ask().set_user_attr("worker", this_worker() | {"host": "another"})
    with pytest.raises(UserError, match=r"process \d+ of another is at trial 0 of the study s: stop it first, or, if it was"):
        delete_study(f"sqlite:///{tmp_path}/study.db", "s", tmp_path / "study", tmp_path / "best.json")


def test_timeout(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(studies, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep))

    def objective(trial):
        now[0] += 0.3
        return 0.0

    study = new_study(f"sqlite:///{tmp_path}/study.db", tmp_path)
    assert not run_trials(study, objective, 100, timeout=0.8)
    assert len(trials(study, TrialState.COMPLETE)) == 3


def test_three_workers_share_one_budget(address, tmp_path):
    workers = [worker(address, tmp_path, 12, 0.2) for _ in range(3)]
    assert [w.wait(120) for w in workers] == [0, 0, 0], [w.stderr.read() for w in workers]
    study = new_study(address, tmp_path)
    done = trials(study, TrialState.COMPLETE)
    assert len(done) == 12 and not trials(study, TrialState.RUNNING, TrialState.WAITING)
    assert sorted(t.number for t in trials(study)) == list(range(len(trials(study))))
    assert len({t.user_attrs["worker"]["pid"] for t in done}) > 1  # on a busy machine one may come too late
    assert len({t.params["x"] for t in done}) == 12


def test_a_killed_workers_trial_is_repeated(address, tmp_path):
    victim = worker(address, tmp_path, 3, 1000)
    study = new_study(address, tmp_path)
    deadline = time.time() + 60
    while not any(t.params and "worker" in t.user_attrs for t in trials(study, TrialState.RUNNING)):
        assert victim.poll() is None and time.time() < deadline
        time.sleep(0.1)
    sweep_stale_trials(study, {})
    assert len(trials(study, TrialState.RUNNING)) == 1  # its worker lives
    victim.kill()
    victim.wait()
    assert run_trials(study, lambda trial: trial.suggest_float("x", 0, 1), 3)
    states = [t.state.name for t in trials(study)]
    assert states == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert trials(study)[1].params == trials(study)[0].params


class Clock:
    """An observer's own clock."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def trial_elsewhere(study, alive):
    """A running trial of a worker on another machine that signed at a moment of that machine's clock."""
    trial = study.ask()
    trial.set_user_attr("worker", {"host": "elsewhere", "pid": os.getpid(), "started": 1})
    trial.set_user_attr("alive", alive)
    return trial


def states(study):
    return [t.state.name for t in trials(study)]


@pytest.mark.parametrize("skew", [0, -8 * 3600, 8 * 3600])
def test_a_worker_elsewhere_is_dead_if_it_signs_no_more_whatever_its_clock_says(skew, tmp_path):
    study = new_study(f"journal:{tmp_path}/study.log", tmp_path)
    signs, silent = (trial_elsewhere(study, time.time() + skew) for _ in range(2))
    seen, clock = {}, Clock()
    for _ in range(3):
        sweep_stale_trials(study, seen, clock)
        assert states(study) == ["RUNNING", "RUNNING"]
        clock.now += GRACE / 3
        signs.set_user_attr("alive", time.time() + skew)
    clock.now += 1
    sweep_stale_trials(study, seen, clock)
    assert states(study) == ["RUNNING", "FAIL", "WAITING"]
    assert not set(trials(study)[2].user_attrs) & {"worker", "alive"}
    assert trials(study)[2].system_attrs["failed_trial"] == silent.number


def test_half_a_line_of_a_journal_spoils_nothing(tmp_path, monkeypatch):
    """A full disk leaves one, or a kill: the next line stands in its place."""
    file = tmp_path / "study.log"
    study = new_study(f"journal:{file}", tmp_path)
    study.enqueue_trial({"x": 0.5, "y": 1})
    with open(file, "ab") as journal:
        journal.write(b'{"op_code":4,"worker_')
    study.enqueue_trial({"x": 0.25, "y": 2})
    whole, sync = file.read_bytes(), os.fsync

    def full(number):
        sync(number)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        study.enqueue_trial({"x": 0.0, "y": 3})
    monkeypatch.undo()
    assert file.read_bytes() == whole
    assert states(new_study(f"journal:{file}", tmp_path)) == ["WAITING", "WAITING"]


@pytest.mark.parametrize("content, end", [(b"", 0), (b"ab", 0), (b"a\nbc\n", 5), (b"a\nbcdefgh", 2), (b"\n" + 9 * b"x", 1)])
def test_where_the_last_whole_line_ends(content, end):
    for piece in (1, 2, 3, 100):
        assert end_of_lines(io.BytesIO(content), piece) == end


def test_a_first_look_declares_nobody_dead(tmp_path):
    study = new_study(f"journal:{tmp_path}/study.log", tmp_path)
    trial_elsewhere(study, time.time() - 86400)
    sweep_stale_trials(study, {})
    assert states(study) == ["RUNNING"]


def test_a_database_trusts_its_heartbeats_alone(tmp_path):
    study = new_study(f"sqlite:///{tmp_path}/study.db", tmp_path)
    trial = trial_elsewhere(study, 0)
    study._storage.record_heartbeat(trial._trial_id)
    seen, clock = {}, Clock()
    for _ in range(3):  # hours between its reports
        sweep_stale_trials(study, seen, clock)
        clock.now += 100 * GRACE
    assert states(study) == ["RUNNING"]
    with sqlite3.connect(tmp_path / "study.db") as database:
        database.execute(f"UPDATE trial_heartbeats SET heartbeat = datetime('now', '-{GRACE + 60} seconds')")
    sweep_stale_trials(study, seen, clock)
    assert states(study) == ["FAIL", "WAITING"]


def test_a_worker_that_died_before_it_named_itself_is_noticed(address, tmp_path):
    study = new_study(address, tmp_path)
    study.ask()
    seen, clock = {}, Clock()
    sweep_stale_trials(study, seen, clock)
    assert states(study) == ["RUNNING"]
    clock.now += GRACE + 1
    sweep_stale_trials(study, seen, clock)
    assert states(study) == ["FAIL", "WAITING"]


def test_a_repeated_trial_does_not_bear_the_name_of_the_dead(address, tmp_path):
    study = new_study(address, tmp_path)
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    trial.set_user_attr("worker", this_worker() | {"pid": 2**22 + 1})
    trial.set_user_attr("saved_epoch", 3)
    sweep_stale_trials(study, {})
    again = study.ask()  # has begun, and has not named itself yet
    sweep_stale_trials(study, {})
    assert states(study) == ["FAIL", "RUNNING"]
    assert again.params == trial.params and again.user_attrs == {"saved_epoch": 3}


def test_a_silent_objective_is_signed_by_a_thread(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "HEARTBEAT", 0.02)
    study = new_study(f"journal:{tmp_path}/study.log", tmp_path)
    signs = set()

    def silent(trial):
        while len(signs) < 4:
            signs.add(trials(study)[0].user_attrs.get("alive"))
            time.sleep(0.005)
        return 0.0

    assert run_trials(study, silent, 1)
    assert None not in signs and not [t for t in threading.enumerate() if t.name == "sign of life"]


def test_a_database_needs_no_signatures(tmp_path):
    study = new_study(f"sqlite:///{tmp_path}/study.db", tmp_path)
    run_trials(study, square, 1)
    assert set(trials(study)[0].user_attrs) == {"worker", "seconds"}


def test_signing_outlives_an_error_and_ends_with_the_trial(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "HEARTBEAT", 0.01)
    study = new_study(f"journal:{tmp_path}/study.log", tmp_path)
    trial, calls = study.ask(), []
    errors = iter([None, OSError("disk full"), None, optuna.exceptions.UpdateFinishedTrialError()])

    def failing(trial):
        calls.append(trial)
        if error := next(errors):
            raise error

    monkeypatch.setattr(workers, "sign_of_life", failing)
    with signing(study, trial):
        (thread,) = [t for t in threading.enumerate() if t.name == "sign of life"]
        thread.join(10)
        assert not thread.is_alive() and len(calls) == 4


def test_who_runs_here():
    mine = this_worker()
    assert mine["host"] == machine() and runs_here(mine)
    assert runs_here(mine | {"pid": 2**22 + 1}) is False
    assert runs_here(mine | {"started": mine["started"] - 5}) is False  # another process of the same number
    assert runs_here(mine | {"host": "elsewhere"}) is None and runs_here(None) is None
    assert runs_here({"host": "laptop", "pid": 1, "started": 12345}) is None  # as earlier versions wrote it


def test_a_process_whose_start_is_hidden_counts_as_running(monkeypatch):
    mine = this_worker()

    def denied(pid):
        raise psutil.AccessDenied(pid)

    monkeypatch.setattr(workers, "process_start", denied)
    assert runs_here(mine)


def given_away(study, number):
    """What a sweep of another host does."""
    study.tell(number, state=TrialState.FAIL)
    retry(study, study.trials[number])


@pytest.mark.parametrize("ends", ["report", "value", "prune", "attribute"])
def test_a_worker_goes_on_when_its_trial_was_given_away(ends, address, tmp_path):
    study, other = new_study(address, tmp_path), new_study(address, tmp_path)
    done = []

    def objective(trial):
        x = trial.suggest_float("x", 0, 1)
        if trial.number == 1:
            given_away(other, 1)
            if ends == "report":
                trial.report(x, 1)
            if ends == "attribute":
                trial.set_user_attr("saved_epoch", 1)
            if ends == "prune":
                raise optuna.TrialPruned
        return x

    assert run_trials(study, objective, 3, on_trial=lambda study, trial: done.append(trial.number))
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"] and done == [0, 2, 3]
    assert trials(study)[2].params == trials(study)[1].params


@pytest.mark.parametrize("error", [ValueError, ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("lost", [False, True])
def test_errors_of_the_objective_come_through(error, lost, address, tmp_path):
    study, other = new_study(address, tmp_path), new_study(address, tmp_path)

    def objective(trial):
        if lost:
            given_away(other, trial.number)
        raise error("mine")

    with pytest.raises(error, match="mine"):
        run_trials(study, objective, 1)


def test_a_process_whose_trial_was_given_away_goes_on(address, tmp_path):
    process = worker(address, tmp_path, 2, 2.5)
    study = new_study(address, tmp_path)
    deadline = time.time() + 60
    while not any(t.params for t in trials(study, TrialState.RUNNING)):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.05)
    (number,) = [t.number for t in trials(study, TrialState.RUNNING)]
    given_away(study, number)
    assert process.wait(120) == 0, process.stderr.read()
    assert sorted(states(study)) == ["COMPLETE", "COMPLETE", "FAIL"]


def test_storages_that_cannot_be_opened(tmp_path):
    with pytest.raises(UserError, match="cannot be opened"):
        open_storage("no such address")
    with pytest.raises(UserError, match="there is no study s in"):
        open_study(f"sqlite:///{tmp_path}/study.db", "s", 1, pruner("none", 1), False, tmp_path / "study")


def test_a_full_disk_does_not_pass_by_itself(tmp_path):
    address = f"sqlite:///{tmp_path}/study.db"
    with pytest.raises(UserError, match="cannot be written: .*database or disk is full") as error:
        with database_errors(address), sqlalchemy.create_engine(address).begin() as database:
            database.exec_driver_sql("create table rows (content)")
            database.exec_driver_sql("pragma max_page_count = 3")
            database.exec_driver_sql("insert into rows values (zeroblob(100000))")
    assert type(error.value) is UserError


@pytest.mark.parametrize("name, pruned", [("hyperband", True), ("halving", True), ("median", True), ("none", False)])
def test_pruners_stop_the_bad_and_spare_the_best(name, pruned, tmp_path):
    def climbing(trial):
        best = trial.suggest_float("best", 0, 1)
        for epoch in range(1, 40):
            trial.report(best * epoch / 39, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return best

    study = open_study(f"journal:{tmp_path}/study.log", "s", 1, pruner(name, 39), True, tmp_path / "study")
    run_trials(study, climbing, 20)
    stopped = trials(study, TrialState.PRUNED)
    assert bool(stopped) == pruned
    if pruned:
        assert len(stopped) >= 5 and study.best_value > max(t.params["best"] for t in stopped) - 0.1


def test_a_study_is_deleted_unless_someone_is_at_it(address, tmp_path):
    assert delete_study(address, "s", tmp_path / "study", tmp_path / "best.json") == 0
    run_trials(new_study(address, tmp_path), square, 3)
    assert delete_study(address, "s", tmp_path / "study", tmp_path / "best.json") == 3
    assert trials(new_study(address, tmp_path)) == []
    at_it = worker(address, tmp_path, 1, 60)
    while not trials(new_study(address, tmp_path), TrialState.RUNNING):
        assert at_it.poll() is None
        time.sleep(0.1)
    while not trials(new_study(address, tmp_path), TrialState.RUNNING)[0].user_attrs.get("worker"):
        time.sleep(0.1)
    with pytest.raises(UserError, match=f"process {at_it.pid} is at trial 0"):
        delete_study(address, "s", tmp_path / "study", tmp_path / "best.json")
    at_it.kill()
    at_it.wait()
    assert delete_study(address, "s", tmp_path / "study", tmp_path / "best.json") == 1


@pytest.mark.parametrize("lives", [True, False])
def test_a_journal_that_another_machine_writes_to_is_not_deleted(lives, tmp_path, monkeypatch):
    """It has no heartbeats: the signatures of the workers are watched."""
    address = f"journal:{tmp_path}/study.log"
    study = new_study(address, tmp_path)
    trial, dead = study.ask(), study.ask()
    trial.set_user_attr("worker", this_worker() | {"host": "node7"})
    dead.set_user_attr("worker", this_worker() | {"pid": 2**22 + 1})  # killed here
    for each in (trial, dead):
        workers.sign_of_life(each)

    def waited(seconds):
        assert seconds > workers.HEARTBEAT
        if lives:
            workers.sign_of_life(trial)

    monkeypatch.setattr(workers.time, "sleep", waited)
    if lives:
        with pytest.raises(UserError, match=r"process \d+ of node7 is at trial 0 of the study s: stop it first"):
            delete_study(address, "s", tmp_path / "study", tmp_path / "best.json")
    else:
        assert delete_study(address, "s", tmp_path / "study", tmp_path / "best.json") == 2


def test_errors_of_the_database_are_told_from_others():
    lost = sqlalchemy.exc.OperationalError("SELECT 1", {}, Exception("server closed the connection"))
    with pytest.raises(DatabaseError, match="--storage here refuses: .*server closed the connection"), database_errors("here"):
        raise lost
    with pytest.raises(DatabaseError), database_errors("here"):
        try:
            raise optuna.exceptions.StorageInternalError from lost
        except optuna.exceptions.StorageInternalError:
            raise UnboundLocalError from None  # what Optuna 5.0.0 does
    with pytest.raises(ZeroDivisionError), database_errors("here"):
        raise ZeroDivisionError
    with pytest.raises(UserError, match="^mine$"), database_errors("here"):
        raise UserError("mine") from lost


def test_a_damaged_study_is_one_line(tmp_path):
    address = f"sqlite:///{tmp_path}/study.db"
    study = new_study(address, tmp_path)
    run_trials(study, square, 2)
    with sqlite3.connect(tmp_path / "study.db") as database:
        database.execute("UPDATE trials SET state = 'NONSENSE'")
    with pytest.raises(UserError, match="the study s in .* is damaged"):
        new_study(address, tmp_path)


def test_a_study_of_a_killed_worker_is_deleted_without_proc(address, tmp_path, monkeypatch):
    study = new_study(address, tmp_path)
    study.ask().set_user_attr("worker", this_worker() | {"pid": 2**22 + 1})
    study.ask().set_user_attr("worker", {"host": "laptop", "pid": os.getpid(), "started": None})  # of earlier versions
    assert delete_study(address, "s", tmp_path / "study", tmp_path / "best.json") == 2


def random_trials(study):
    """Numbers of the trials that TPE has drawn at random: it notes what it draws otherwise."""
    return [t.number for t in trials(study) if not any(key.startswith("tpe:relative_params") for key in t.system_attrs)]


def climbing(trial):
    best, speed = trial.suggest_float("best", 0, 1), trial.suggest_float("speed", 0.5, 1)
    for epoch in range(1, 40):
        trial.report(best * (epoch / 39) ** speed, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return best


@pytest.mark.parametrize("name", ["hyperband", "none"])
def test_ten_trials_at_most_are_random(name, tmp_path):
    study = open_study(f"journal:{tmp_path}/study.log", "s", 1, pruner(name, 39), True, tmp_path / "study")
    run_trials(study, climbing, 40)
    assert random_trials(study) == list(range(RANDOM_TRIALS))


def test_trials_that_run_side_by_side_are_random_ten_times_at_most_too(address, tmp_path):
    study = open_study(address, "s", 1, pruner("hyperband", 39), True, tmp_path / "study")
    running = []
    for _ in range(24):  # as four workers have them
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        trial.should_prune()  # Hyperband has brackets from then on
        running.append(trial)
        if len(running) == 4:
            study.tell(running.pop(0), 0.5)
    assert random_trials(study) == list(range(RANDOM_TRIALS))


SECRET = "s3cret-Word"


@pytest.mark.parametrize("address", [
    f"postgresql+psycopg://opt:{SECRET}@127.0.0.1:1/optuna", f"nodatabase://opt:{SECRET}@host/optuna",
    f"postgresql+psycopg://127.0.0.1:1/optuna?user=opt&password={SECRET}", f"postgres//opt:{SECRET}@host",
])  # fmt: skip
def test_passwords_are_not_told(address, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise sqlalchemy.exc.OperationalError(address, {}, Exception(f"no {SECRET} at {address}"))

    monkeypatch.setattr(studies.optuna.storages, "RDBStorage", refuse)
    told = [masked(address)]
    with pytest.raises(UserError) as opened:
        check_address(address, create=True)
        open_storage(address)
    with pytest.raises(DatabaseError) as used, database_errors(address):
        refuse()
    told += [str(opened.value), str(used.value)]
    assert not [text for text in told if SECRET in text] and all("***" in text for text in told)


@pytest.mark.parametrize("address, said", [
    ("", "names nothing"), ("journal:", "names nothing"), ("sqlite:///", "is a database in memory"), ("sqlite://", "in memory"),
    ("postgresql://u:p@h:abc/db", "cannot be opened: invalid literal"),
])  # fmt: skip
def test_what_is_no_address_is_one_line(address, said):
    with pytest.raises(UserError, match=said):
        check_address(address, create=True)


def test_a_worker_has_a_heartbeat_before_it_has_a_name(tmp_path, monkeypatch):
    """Of a trial without one nobody would say that it has stopped."""
    study = new_study(f"sqlite:///{tmp_path}/study.db", tmp_path)
    trial = study.ask()
    workers.first_heartbeat(study, trial)
    with sqlite3.connect(tmp_path / "study.db") as database:
        assert database.execute("SELECT COUNT(*) FROM trial_heartbeats").fetchone() == (1,)
    journal = new_study(f"journal:{tmp_path}/study.log", tmp_path)
    workers.first_heartbeat(journal, journal.ask())  # which has none
    order = []
    monkeypatch.setattr(studies, "first_heartbeat", lambda study, trial: order.append("worker" in trial.user_attrs))
    study.tell(trial, 0.5)  # else its end would be waited for
    run_trials(study, square, 2)
    assert order == [False]


def test_a_password_is_not_told_however_it_is_written():
    with pytest.raises(DatabaseError, match="refuses: no ... for opt. What") as told, database_errors("x://opt:a%20b@h"):
        raise optuna.exceptions.StorageInternalError("no a b for opt")
    assert "x://opt:***@h" in str(told.value)
