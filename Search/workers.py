"""Which trials of a shared study have a worker that lives, and what becomes of the others.

A database keeps heartbeats by its own clock. Elsewhere (`journal:`) the worker's process signs its running trial every
HEARTBEAT seconds, and those who look on time how long a signature stays the same: by their own clock, so that clocks and
time zones of other hosts do not matter.
"""

import contextlib
import copy
import logging
import os
import threading
import time
import warnings

import optuna
import psutil
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages._heartbeat import is_heartbeat_enabled
from optuna.trial import TrialState

from Experiment.locks import machine, process_start

HEARTBEAT, GRACE = 30, 120  # s: between signs of life of a trial, and without one before it counts as dead
RETRIES = 3  # of a trial whose worker died

log = logging.getLogger("experiment")

# Heartbeats and retries are "experimental" in Optuna since 2.8: nothing that a user could act on.
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def trials(study, *states):
    return study.get_trials(deepcopy=False, states=states or None)


def this_worker():
    return {"host": machine(), "pid": os.getpid(), "started": process_start(os.getpid())}


def runs_here(worker):
    """Whether a trial's worker runs on this machine: None for one of another machine, which cannot be known."""
    if not worker or worker.get("host") != machine():
        return None
    try:
        started = process_start(worker["pid"])
    except psutil.AccessDenied:  # another user's process, which does not show when it began
        return True
    return started is not None and abs(started - worker["started"]) < 1


def first_heartbeat(study, trial):
    """Be sure that a database knows of a trial's heartbeat before its worker has a name: of one without any nobody would say
    that it has stopped."""
    if is_heartbeat_enabled(study._storage):
        database = getattr(study._storage, "_backend", study._storage)
        optuna.storages.RDBStorage.record_heartbeat(database, trial._trial_id)


def sign_of_life(trial):
    """Note that a trial's worker is alive: for storages that have no heartbeat of their own."""
    trial.set_user_attr("alive", time.time())


@contextlib.contextmanager
def signing(study, trial):
    """Sign a trial every HEARTBEAT seconds during a block, in a thread, unless the storage does that itself."""
    if is_heartbeat_enabled(study._storage):
        yield
        return
    over = threading.Event()

    def sign():
        while not over.wait(HEARTBEAT):
            try:
                sign_of_life(trial)
            except UpdateFinishedTrialError:
                return  # it was given away; the next report of the trial says so
            except Exception:  # a full disk, say: it may pass, and ends the trial if it does not
                log.debug("trial %d could not be signed", trial.number, exc_info=True)

    sign_of_life(trial)
    thread = threading.Thread(target=sign, name="sign of life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def retry(study, trial, most=RETRIES):
    """Queue a failed trial again, with its settings and without what its worker noted of itself; not more than `most` times."""
    trial = copy.deepcopy(trial)
    trial.user_attrs = {k: v for k, v in trial.user_attrs.items() if k not in ("worker", "alive", "seconds")}
    optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=most)(study, trial)


def trial_at_work(study):
    """A running trial whose worker lives, or may, and whether that runs here; None where there is none.

    Without heartbeats the workers of other machines are watched for a while, if there are any that have ever signed.
    """
    beats = is_heartbeat_enabled(study._storage)
    if beats:
        optuna.storages.fail_stale_trials(study)
    running = [trial for trial in trials(study, TrialState.RUNNING) if trial.user_attrs.get("worker")]
    lives = [runs_here(trial.user_attrs["worker"]) for trial in running]
    if True in lives:
        return running[lives.index(True)], True
    elsewhere = [trial for trial, here in zip(running, lives) if here is None]
    if beats:
        found = [trial for trial in elsewhere if trial.user_attrs["worker"].get("started") is not None]
        return (found[0], False) if found else None
    signs = {trial.number: trial.user_attrs["alive"] for trial in elsewhere if "alive" in trial.user_attrs}
    if not signs:
        return None
    log.info("looking for %d s whether workers of other machines are still at this search", 2 * HEARTBEAT)
    time.sleep(2 * HEARTBEAT)
    later = [trial for trial in trials(study, TrialState.RUNNING) if runs_here(trial.user_attrs.get("worker")) is None]
    signed = [trial for trial in later if signs.get(trial.number) != trial.user_attrs.get("alive")]
    return (signed[0], False) if signed else None


def sweep_stale_trials(study, seen, clock=time.monotonic):
    """Requeue trials whose worker died: they fail, and are repeated with the same settings.

    A worker is dead if its process on this machine is gone, if the storage misses its heartbeat, or, where the storage has
    none, if `seen` has held the same sign of life for more than GRACE seconds. So has one that died before it named itself.

    Args:
        seen: What this process has seen before, {trial number: (signs, when)}: empty at first; it is brought up to date.
        clock: Seconds, of this process alone.
    """
    optuna.storages.fail_stale_trials(study)
    for trial in trials(study, TrialState.RUNNING):
        worker = trial.user_attrs.get("worker")
        signs = (worker, trial.user_attrs.get("alive"))
        if trial.number not in seen or seen[trial.number][0] != signs:
            seen[trial.number] = (signs, clock())
        here = runs_here(worker)
        heard = here or (worker and is_heartbeat_enabled(study._storage))
        silent = clock() - seen[trial.number][1] > GRACE
        if here is False or (silent and not heard):
            with contextlib.suppress(ValueError, UpdateFinishedTrialError):  # another worker has told it just now
                study.tell(trial.number, state=TrialState.FAIL)
                retry(study, study.trials[trial.number])
