"""Optuna studies that several processes share: storages, a total budget of trials, and trials whose worker died."""

import contextlib
import os
import re
import socket
import time
import warnings
from pathlib import Path

import optuna
import sqlalchemy.exc
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import TrialState

from Experiment.errors import UserError
from Experiment.locks import locked

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
HEARTBEAT, GRACE = 30, 120  # s: between signs of life of a trial, and without one before it counts as dead
RETRIES = 3  # of a trial whose worker died
POLL = 2  # s: between looks at the trials of other workers

# Heartbeats and retries are "experimental" in Optuna since 2.8: nothing that a user could act on.
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
retry = RetryHeartbeatStaleTrialCallback(max_retry=RETRIES)


class DatabaseError(UserError):
    """The database refused: it may be down, or another process may be creating the same tables at this moment."""


@contextlib.contextmanager
def database_errors(address):
    """Tell of a database that refuses, goes away or is damaged in one line.

    Raises:
        DatabaseError: In place of what database, driver and Optuna raise; also where Optuna raises something else while
            it handles that (5.0.0 does so when the connection is lost within a trial).
    """
    try:
        yield
    except Exception as error:
        causes, cause = [], error
        while cause and cause not in causes:
            causes.append(cause)
            cause = cause.__cause__ or cause.__context__
        refused = [
            c for c in causes if isinstance(c, (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError))
        ]
        if not refused or isinstance(error, UserError):
            raise
        said = " ".join(str(refused[-1]).split())[:300]
        raise DatabaseError(
            f"--storage {address} refuses: {said}. What it has recorded is kept; run again when it is back."
        ) from None


class SurplusTrial(Exception):
    """Another worker has begun the last trial of the budget at the same moment."""


class AddressedTPESampler(BaseSampler):
    """TPE whose randomness is a function of (seed, trial number), not of what this process has drawn before.

    So a search that is continued, or shared by several processes, neither repeats suggestions nor depends on where it
    was interrupted.
    """

    def __init__(self, seed):
        self.seed, self.number, self.sampler = seed, None, None

    def of(self, trial):
        if trial.number != self.number:
            self.number, self.sampler = trial.number, TPESampler(seed=(self.seed + 1000003 * trial.number) % 2**32)
        return self.sampler

    def infer_relative_search_space(self, study, trial):
        return self.of(trial).infer_relative_search_space(study, trial)

    def sample_relative(self, study, trial, search_space):
        return self.of(trial).sample_relative(study, trial, search_space)

    def sample_independent(self, study, trial, param_name, param_distribution):
        return self.of(trial).sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study, trial):
        self.of(trial).before_trial(study, trial)

    def after_trial(self, study, trial, state, values):
        self.of(trial).after_trial(study, trial, state, values)


def pruner(name, epochs):
    """A pruner of trials that report after each of at most `epochs` epochs.

    Hyperband is the published one. Its first rung lies at 1/13 of the epochs and the next at 3/13, where trials
    would go on to more images.
    """
    first = max(1, round(epochs / 13))
    return {
        "hyperband": lambda: optuna.pruners.HyperbandPruner(min_resource=first, max_resource=epochs),
        "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=3),
        "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=first),
        "none": optuna.pruners.NopPruner,
    }[name]()


def check_address(address, create):
    """Tell, without opening or making anything, of an address that can be none.

    Args:
        address: As in `open_storage`.
        create: Whether a file may be made; else it must be there.

    Raises:
        UserError: It is no address, or there is no such file.
    """
    if not address.startswith("journal:"):
        try:
            sqlalchemy.make_url(address)
        except sqlalchemy.exc.ArgumentError as error:
            raise UserError(f"--storage {address} cannot be opened: {error}") from None
    file = re.match(r"(?:journal:|sqlite:///)(.+)", address)
    if file and not create and not Path(file[1]).expanduser().exists():
        raise UserError(f"there is no study to report, for there is no file {file[1]}: run with --optimize.")


def open_storage(address):
    """The storage of `sqlite:///FILE`, `journal:FILE`, `postgresql://...` or any other address of SQLAlchemy.

    Raises:
        UserError: It cannot be opened (`DatabaseError`: perhaps it can be soon).
    """
    if address.startswith("journal:"):
        file = Path(address.removeprefix("journal:")).expanduser().resolve()
        file.parent.mkdir(parents=True, exist_ok=True)
        return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(file)))
    if address.startswith("sqlite:///"):
        Path(address.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    try:
        return optuna.storages.RDBStorage(
            address,
            engine_kwargs={"connect_args": {"timeout": 60}} if address.startswith("sqlite") else {},
            heartbeat_interval=HEARTBEAT,
            grace_period=GRACE,
            heartbeat_stale_trial_callback=retry,
        )
    except ImportError as error:
        hint = ' (pip install "psycopg[binary]")' if "psycopg" in str(error) else ""
        raise UserError(f"--storage {address} needs a package that is not installed: {error}{hint}") from None
    # What a database or its driver raises has no common type but Exception.
    except Exception as error:
        # The general class, which is none of its subclasses: the file is damaged, or no database. It stays so.
        passing = isinstance(error, sqlalchemy.exc.DBAPIError) and type(error) is not sqlalchemy.exc.DatabaseError
        kind = DatabaseError if passing else UserError
        raise kind(f"--storage {address} cannot be opened: {error}") from None


def open_study(address, name, seed, study_pruner, create, lock_file):
    """Create or continue a study.

    Args:
        create: Whether it may be created; else it must be there.
        lock_file: Path whose lock keeps processes of this machine from creating the tables at the same time.

    Raises:
        UserError: It is not there, or damaged, or the storage cannot be opened.
    """
    with locked(lock_file):
        for attempt in range(5):  # processes of other machines may create the tables at the same time too
            try:
                storage = open_storage(address)
                if not create and name not in optuna.get_all_study_names(storage=storage):
                    raise UserError(f"there is no study {name} in {address} to report: run with --optimize.")
                study = optuna.create_study(
                    study_name=name,
                    storage=storage,
                    direction="maximize",
                    load_if_exists=True,
                    sampler=AddressedTPESampler(seed),
                    pruner=study_pruner,
                )
                study.get_trials(deepcopy=False)
                return study
            except DatabaseError:
                if attempt == 4:
                    raise
                time.sleep(1 + attempt)
            except (LookupError, ValueError, TypeError, AttributeError) as error:
                raise UserError(f"the study {name} in {address} is damaged: {error}") from None


def delete_study(address, name, lock_file):
    """Delete a study, if it is there. Returns how many trials it had.

    Raises:
        UserError: A worker of this machine is at it.
    """
    with locked(lock_file):
        storage = open_storage(address)
        if name not in optuna.get_all_study_names(storage=storage):
            return 0
        study = optuna.load_study(study_name=name, storage=storage)
        for trial in trials(study, TrialState.RUNNING):
            worker = trial.user_attrs.get("worker", {})
            if worker.get("host") == socket.gethostname() and process_start(worker["pid"]) == worker["started"]:
                raise UserError(
                    f"process {worker['pid']} is at trial {trial.number} of the study {name}: stop it first."
                )
        count = len(trials(study))
        optuna.delete_study(study_name=name, storage=storage)
        return count


def trials(study, *states):
    return study.get_trials(deepcopy=False, states=states or None)


def this_worker():
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": process_start(os.getpid())}


def process_start(pid):
    """When a process of this machine began, in the kernel's ticks; None where there is no such process (or no /proc)."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19])
    except (OSError, IndexError):
        return None


def sign_of_life(trial):
    """Note that a trial's worker is alive: for storages that have no heartbeat of their own."""
    trial.set_user_attr("alive", time.time())


def sweep_stale_trials(study):
    """Give trials whose worker died back: they fail, and are repeated with the same settings.

    A worker of this machine is dead if its process is gone; one of another if neither the storage's heartbeat nor
    `sign_of_life` was heard for long.
    """
    optuna.storages.fail_stale_trials(study)
    for trial in trials(study, TrialState.RUNNING):
        worker = trial.user_attrs.get("worker")
        began = trial.datetime_start.timestamp() if trial.datetime_start else time.time()
        if worker and worker["host"] == socket.gethostname():
            dead = process_start(worker["pid"]) != worker["started"]
        else:
            dead = time.time() - trial.user_attrs.get("alive", began) > 5 * GRACE
        if dead and time.time() - began > POLL:  # one repeated just now still names the worker that died
            with contextlib.suppress(ValueError):  # another worker has told it just now
                study.tell(trial.number, state=TrialState.FAIL)
                retry(study, study.trials[trial.number])


def run_trials(study, objective, budget, timeout=None, on_trial=None):
    """Run trials until the study has `budget` finished ones, by this and all other workers; failed ones do not count.

    Args:
        objective: Function of a trial.
        timeout: Seconds after which no trial is begun.
        on_trial: Called with (study, trial) after each trial of this worker.

    Returns:
        Whether the budget is complete.
    """
    started = time.time()

    def within_budget(trial):
        trial.set_user_attr("worker", this_worker())
        before = [t for t in trials(study, *FINISHED, TrialState.RUNNING) if t.number < trial.number]
        if len(before) >= budget:
            raise SurplusTrial
        return objective(trial)

    callbacks = [lambda study, trial: trial.state in FINISHED and on_trial and on_trial(study, trial)]
    while timeout is None or time.time() - started < timeout:
        sweep_stale_trials(study)
        if len(trials(study, *FINISHED)) >= budget:
            return True
        if len(trials(study, *FINISHED, TrialState.RUNNING)) >= budget:
            time.sleep(POLL)  # the last ones are others' work, and come back to us if their workers die
            continue
        study.optimize(within_budget, n_trials=1, catch=(SurplusTrial,), callbacks=callbacks)
    return len(trials(study, *FINISHED)) >= budget
