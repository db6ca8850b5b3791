"""Studies that several processes share: budget, repeated trials of workers that died, addressed randomness."""

import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import sqlalchemy.exc
from optuna.trial import TrialState

from Experiment.errors import UserError
from Search.studies import (
    DatabaseError,
    database_errors,
    delete_study,
    open_storage,
    open_study,
    pruner,
    run_trials,
    sweep_stale_trials,
    trials,
)  # fmt: skip

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


def test_timeout(tmp_path):
    study = new_study(f"sqlite:///{tmp_path}/study.db", tmp_path)
    assert not run_trials(study, lambda trial: time.sleep(0.3) or 0.0, 100, timeout=0.8)
    assert 2 <= len(trials(study, TrialState.COMPLETE)) <= 4


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
    time.sleep(2.5)
    sweep_stale_trials(study)
    assert len(trials(study, TrialState.RUNNING)) == 1  # its worker lives
    victim.kill()
    victim.wait()
    assert run_trials(study, lambda trial: trial.suggest_float("x", 0, 1), 3)
    states = [t.state.name for t in trials(study)]
    assert states == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert trials(study)[1].params == trials(study)[0].params


def test_silence_of_another_host_counts_as_death(tmp_path):
    study = new_study(f"journal:{tmp_path}/study.log", tmp_path)
    for alive in (time.time(), time.time() - 3600):
        trial = study.ask()
        trial.set_user_attr("worker", {"host": "elsewhere", "pid": os.getpid(), "started": 1})
        trial.set_user_attr("alive", alive)
    time.sleep(2.1)
    sweep_stale_trials(study)
    assert [t.state.name for t in trials(study)] == ["RUNNING", "FAIL", "WAITING"]


def test_storages_that_cannot_be_opened(tmp_path):
    with pytest.raises(UserError, match="cannot be opened"):
        open_storage("no such address")
    with pytest.raises(UserError, match="there is no study s in"):
        open_study(f"sqlite:///{tmp_path}/study.db", "s", 1, pruner("none", 1), False, tmp_path / "study")


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
    assert delete_study(address, "s", tmp_path / "study") == 0
    run_trials(new_study(address, tmp_path), square, 3)
    assert delete_study(address, "s", tmp_path / "study") == 3
    assert trials(new_study(address, tmp_path)) == []
    at_it = worker(address, tmp_path, 1, 60)
    while not trials(new_study(address, tmp_path), TrialState.RUNNING):
        assert at_it.poll() is None
        time.sleep(0.1)
    time.sleep(0.5)  # it names itself within its trial
    with pytest.raises(UserError, match=f"process {at_it.pid} is at trial 0"):
        delete_study(address, "s", tmp_path / "study")
    at_it.kill()
    at_it.wait()
    assert delete_study(address, "s", tmp_path / "study") == 1


def test_errors_of_the_database_are_told_from_others():
    lost = sqlalchemy.exc.OperationalError("SELECT 1", {}, Exception("server closed the connection"))
    with (
        pytest.raises(DatabaseError, match="--storage here refuses: .*server closed the connection"),
        database_errors("here"),
    ):
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
