"""Optuna studies that several processes share: samplers, pruners and a total budget of trials."""

import contextlib
import logging
import time

import optuna
from filelock import Timeout
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import TrialState

from Experiment.errors import UserError
from Experiment.locks import locked
from Experiment.records import masked
from Search.storages import DatabaseError, open_storage
from Search.workers import GRACE, first_heartbeat, retry, signing, sweep_stale_trials, this_worker, trial_at_work, trials

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
RANDOM_TRIALS = 10  # that a search begins with
POLL = 2  # s: between looks at the trials of other workers

log = logging.getLogger("experiment")


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
            # Not by `trials`: Hyperband hands on a study that shows the trials of one bracket alone.
            begun = study._get_trials(deepcopy=False, states=(*FINISHED, TrialState.RUNNING))
            begun = sum(t.number < trial.number for t in begun)
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


@contextlib.contextmanager
def nobody_measures(best_file):
    """Hold the lock of a search's result, in which the best trials are repeated and measured, for a block.

    Raises:
        UserError: A worker holds it. What it notes afterwards would go into the study that takes the place of this one.
    """
    try:
        with locked(best_file, wait=False):
            yield
    except Timeout:
        raise UserError(f"a worker repeats or measures the best trials of this search ({best_file}): stop it first.") from None


def delete_study(address, name, lock_file, best_file):
    """Delete a study, if it is there, and before it the file of its result. Returns how many trials it had.

    Raises:
        UserError: A worker is at it.
    """
    with locked(lock_file), nobody_measures(best_file):
        storage = open_storage(address)
        there = name in optuna.get_all_study_names(storage=storage)
        study = optuna.load_study(study_name=name, storage=storage) if there else None
        if there and (found := trial_at_work(study)):
            trial, here = found
            worker = trial.user_attrs["worker"]
            where = "" if here else f" of {worker['host']}"
            wait = "" if here else f", or, if it was killed, wait {GRACE // 60} minutes"
            raise UserError(
                f"process {worker['pid']}{where} is at trial {trial.number} of the study {name}: stop it first{wait}."
            )
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
        first_heartbeat(study, trial)
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
        try_again(study, number, most=None)
        raise
    except (ValueError, AssertionError, UpdateFinishedTrialError) as error:
        # Optuna 5.0.0 raises any of these when it is to tell the result of a trial that has failed already.
        if error is raised and not isinstance(error, UpdateFinishedTrialError):
            try_again(study, number)
        if error is raised or number is None or study.trials[number].state is not TrialState.FAIL:
            raise
        if not isinstance(raised, (UpdateFinishedTrialError, optuna.TrialPruned, SurplusTrial, type(None))):
            raise raised from None
        log.warning("trial %d was silent for too long and has been given to another worker", number)
    except Exception as error:
        if error is raised:
            try_again(study, number)
        raise


def try_again(study, number, **most):
    """Queue the settings of a trial that an interruption or an error has ended: they may be those that a search begins with."""
    with contextlib.suppress(Exception):  # a database that is gone: what has ended the trial is told
        given_away = any(number in trial.system_attrs.get("retry_history", ()) for trial in trials(study))
        if number is not None and study.trials[number].state is TrialState.FAIL and not given_away:
            retry(study, study.trials[number], **most)
