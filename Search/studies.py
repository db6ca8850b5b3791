"""Optuna studies that several processes share: storages, samplers, pruners and a total budget of trials."""

import contextlib
import logging
import re
import sys
import time
from pathlib import Path
from urllib.parse import unquote

import optuna
import sqlalchemy.exc
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import journal
from optuna.storages._heartbeat import is_heartbeat_enabled
from optuna.trial import TrialState

from Experiment.errors import PassingError, UserError
from Experiment.locks import locked
from Experiment.records import PASSWORD, masked
from Search.journal import WholeLines
from Search.workers import GRACE, HEARTBEAT, retry, runs_here, signing, sweep_stale_trials, this_worker, trials

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
RANDOM_TRIALS = 10  # that a search begins with
POLL = 2  # s: between looks at the trials of other workers

log = logging.getLogger("experiment")


class DatabaseError(PassingError):
    """The database refused: it may be down, or another process may be creating the same tables at this moment."""


@contextlib.contextmanager
def database_errors(address):
    """Turn what a database raises when it refuses, goes away or is damaged into an error of one line.

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
        said = " ".join(without_password(refused[-1], address).split())[:300]
        raise DatabaseError(
            f"--storage {masked(address)} refuses: {said}. What it has recorded is kept; run again when it is back."
        ) from None


def without_password(error, address):
    """What an error of the database says, without the password of the address that led to it."""
    said = str(error).replace(address, masked(address))
    secrets = [found[2] for found in PASSWORD.finditer(address)]
    for secret in {*secrets, *map(unquote, secrets)} - {""}:
        said = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", said)
    return masked(said)


class SurplusTrial(Exception):
    """Another worker has begun the last trial of the budget at the same moment."""


class AddressedTPESampler(BaseSampler):
    """TPE whose randomness is a function of (seed, trial number), not of what this process has drawn before.

    So a search that is continued, or shared by several processes, neither repeats suggestions nor depends on where it
    was interrupted. The first RANDOM_TRIALS of the study are random, those that run at the same time included; where none
    has finished yet there is nothing to learn from, and more are.
    """

    def __init__(self, seed):
        self.seed, self.number, self.sampler = seed, None, None

    def of(self, study, trial):
        if trial.number != self.number:
            begun = sum(t.number < trial.number for t in trials(study, *FINISHED, TrialState.RUNNING))
            self.sampler = TPESampler(
                seed=(self.seed + 1000003 * trial.number) % 2**32,
                n_startup_trials=RANDOM_TRIALS if begun < RANDOM_TRIALS else 1,
            )
            self.number = trial.number
        return self.sampler

    def infer_relative_search_space(self, study, trial):
        return self.of(study, trial).infer_relative_search_space(study, trial)

    def sample_relative(self, study, trial, search_space):
        return self.of(study, trial).sample_relative(study, trial, search_space)

    def sample_independent(self, study, trial, param_name, param_distribution):
        return self.of(study, trial).sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study, trial):
        self.of(study, trial).before_trial(study, trial)

    def after_trial(self, study, trial, state, values):
        self.of(study, trial).after_trial(study, trial, state, values)


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
    """Refuse what cannot be an address of a study, without opening or making anything.

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
            said = without_password(error, address)
            raise UserError(f"--storage {masked(address)} cannot be opened: {said}") from None
    file = study_file(address)
    if file and not create and not file.exists():
        raise UserError(f"there is no study to report, for there is no file {file}: run with --optimize.")


def study_file(address):
    """The file that an address names; None where it names a server, or the memory."""
    if address.startswith("journal:"):
        return Path(address.removeprefix("journal:")).expanduser().resolve()
    try:
        url = sqlalchemy.make_url(address)
    except sqlalchemy.exc.ArgumentError:
        return None  # it is no address: who opens it says so
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        return None
    return Path(url.database).expanduser().absolute()


def open_storage(address):
    """The storage of `sqlite:///FILE`, `journal:FILE`, `postgresql://...` or any other address of SQLAlchemy.

    Raises:
        UserError: It cannot be opened (`DatabaseError`: perhaps it can be soon).
    """
    if address.startswith("journal:"):
        file = study_file(address)
        file.parent.mkdir(parents=True, exist_ok=True)
        # Symbolic links, which lock on old NFS too, are not for everybody to make on Windows.
        lock = journal.JournalFileOpenLock if sys.platform == "win32" else journal.JournalFileSymlinkLock
        return optuna.storages.JournalStorage(WholeLines(file, lock(str(file))))
    where = address
    if file := study_file(address):
        file.parent.mkdir(parents=True, exist_ok=True)
        where = sqlalchemy.make_url(address).set(database=str(file)).render_as_string()
        where = where.replace("{", "{{").replace("}", "}}")  # Optuna fills in what stands in braces
    try:
        return optuna.storages.RDBStorage(
            where,
            engine_kwargs={"connect_args": {"timeout": 60}} if address.startswith("sqlite") else {},
            heartbeat_interval=HEARTBEAT,
            grace_period=GRACE,
            heartbeat_stale_trial_callback=retry,
        )
    except ImportError as error:
        hint = ' (pip install "psycopg[binary]")' if "psycopg" in str(error) else ""
        raise UserError(f"--storage {masked(address)} needs a package that is not installed: {error}{hint}") from None
    # What a database or its driver raises has no common type but Exception.
    except Exception as error:
        # The general class, which is none of its subclasses: the file is damaged, or no database. It stays so.
        passing = isinstance(error, sqlalchemy.exc.DBAPIError) and type(error) is not sqlalchemy.exc.DatabaseError
        kind = DatabaseError if passing else UserError
        said = without_password(error, address)
        raise kind(f"--storage {masked(address)} cannot be opened: {said}") from None


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
                    raise UserError(f"there is no study {name} in {masked(address)} to report: run with --optimize.")
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
                raise UserError(f"the study {name} in {masked(address)} is damaged: {error}") from None


def delete_study(address, name, lock_file, best_file=None):
    """Delete a study, if it is there, and before it the file of its result. Returns how many trials it had.

    Raises:
        UserError: A worker is at it.
    """
    with locked(lock_file):
        storage = open_storage(address)
        there = name in optuna.get_all_study_names(storage=storage)
        study = optuna.load_study(study_name=name, storage=storage) if there else None
        beats = there and is_heartbeat_enabled(study._storage)
        if beats:
            optuna.storages.fail_stale_trials(study)
        for trial in trials(study, TrialState.RUNNING) if there else ():
            worker = trial.user_attrs.get("worker") or {}
            here = runs_here(worker)
            if here or (here is None and beats and worker.get("started") is not None):
                where = "" if here else f" of {worker['host']}"
                wait = "" if here else f", or, if it was killed, wait {GRACE // 60} minutes"
                raise UserError(
                    f"process {worker['pid']}{where} is at trial {trial.number} of the study {name}: stop it first{wait}."
                )
        if best_file:
            best_file.unlink(missing_ok=True)  # first: it may not outlive its study
        count = len(trials(study)) if there else 0
        if there:
            optuna.delete_study(study_name=name, storage=storage)
        return count


def run_trials(study, objective, budget, timeout=None, on_trial=None):
    """Run trials until the study has `budget` finished ones, by this and all other workers; failed ones do not count.

    Args:
        objective: Function of a trial.
        timeout: Seconds after which no trial is begun.
        on_trial: Called with (study, trial) after each trial of this worker.

    Returns:
        Whether the budget is complete.
    """
    started, seen = time.monotonic(), {}

    def within_budget(trial):
        trial.set_user_attr("worker", this_worker())
        before = [t for t in trials(study, *FINISHED, TrialState.RUNNING) if t.number < trial.number]
        if len(before) >= budget:
            raise SurplusTrial
        begun = time.monotonic()  # the trial's own times are those of a wall clock, which summer time sets
        try:
            with signing(study, trial):
                return objective(trial)
        finally:
            with contextlib.suppress(UpdateFinishedTrialError):
                trial.set_user_attr("seconds", round(time.monotonic() - begun, 1))

    callbacks = [lambda study, trial: trial.state in FINISHED and on_trial and on_trial(study, trial)]
    while timeout is None or time.monotonic() - started < timeout:
        sweep_stale_trials(study, seen)
        if len(trials(study, *FINISHED)) >= budget:
            return True
        if len(trials(study, *FINISHED, TrialState.RUNNING)) >= budget:
            time.sleep(POLL)  # the last ones are others' work, and come back to us if their workers die
            continue
        run_one_trial(study, within_budget, callbacks)
    return len(trials(study, *FINISHED)) >= budget


def run_one_trial(study, objective, callbacks):
    """Run one trial. It is none of our business any more if another worker, to whom ours seemed dead, took it away."""
    number, raised = None, None

    def noted(trial):
        nonlocal number, raised
        number = trial.number
        try:
            return objective(trial)
        except BaseException as error:
            raised = error
            raise

    try:
        study.optimize(noted, n_trials=1, catch=(SurplusTrial,), callbacks=callbacks)
    except KeyboardInterrupt:
        # Its settings are tried when the search goes on: they may be those that a search begins with.
        if number is not None and study.trials[number].state is TrialState.FAIL:
            retry(study, study.trials[number], most=None)
        raise
    except (ValueError, AssertionError, UpdateFinishedTrialError) as error:
        # Optuna 5.0.0 raises any of these when it is to tell the result of a trial that has failed already.
        if error is raised or number is None or study.trials[number].state is not TrialState.FAIL:
            raise
        if not isinstance(raised, (UpdateFinishedTrialError, optuna.TrialPruned, SurplusTrial, type(None))):
            raise raised from None
        log.warning("trial %d was silent for too long and has been given to another worker", number)
