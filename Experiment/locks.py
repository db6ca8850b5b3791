"""Which process may write where, and what killed processes leave behind.

Locks are the operating system's, by way of filelock: they end with their process, however it ends. On a file system without
them (Lustre without `-o flock`) filelock makes a file in their place: that of a process of another host that was killed stays.
"""

import contextlib
import functools
import hashlib
import logging
import os
import platform
import uuid
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from Experiment.errors import PassingError, UserError

log = logging.getLogger("experiment")

CLAIMED = {}  # {lock file: held lock} of `claim`
PATIENCE = 30  # s: of a wait for a lock, before a line tells of it
CLAIMING = 60  # s: longest wait for another process that is just claiming the same folder; it takes milliseconds


@functools.cache
def machine():
    """The name of this machine: that of the host, and a hash that tells containers and hosts of one name apart.

    Two processes with the same name see the same processes, so that one can judge by its number whether the other runs.
    Containers differ by their network address or by the moment when their first process began.
    """
    address = uuid.getnode()
    if address >> 40 & 1:
        address = 0  # there is no network card: it is random, another one in every process
    try:
        first = process_start(1)
    except psutil.Error:
        first = None  # not for us to see
    return f"{platform.node()}-{hashlib.sha256(f'{address} {first}'.encode()).hexdigest()[:8]}"


def process_start(pid):
    """Seconds from this machine's start to a process's, which no change of the clock moves; None if it is gone."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return round(process.create_time() - psutil.boot_time(), 2)
    except psutil.NoSuchProcess:
        return None


def partial_path(path):
    """The name beside `path` under which this process writes it until it is whole."""
    return path.with_name(f".partial-{machine()}-{os.getpid()}-{path.name}")


def is_running(pid):
    """Whether a process of this machine with that number, given as text, is there."""
    try:
        return psutil.pid_exists(int(pid))
    except (ValueError, OverflowError):
        return True  # no number to judge by


def writer_is_gone(partial):
    """Whether a temporary file was left by a process of this machine that was killed."""
    ours = f".partial-{machine()}-"
    return partial.name.startswith(ours) and not is_running(partial.name.removeprefix(ours).split("-")[0])


@contextlib.contextmanager
def locked(path, wait=True):
    """Hold a lock that belongs to `path` (in a file beside it), waiting for whoever else holds it.

    Raises:
        Timeout: Another process holds it, and it is not to be waited for.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"), poll_interval=0.02)
    try:
        lock.acquire(timeout=PATIENCE if wait else 0)
    except Timeout:
        if not wait:
            raise
        log.info("waiting for another process, which holds %s (if none runs: cluster/README.md, locks)", lock.lock_file)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def guarded(folder):
    """Be the only one that claims in a folder, for a block.

    Raises:
        PassingError: Another process has been at it for long.
    """
    guard = FileLock(folder / ".lock.guard", timeout=CLAIMING)
    try:
        guard.acquire()
    except Timeout:
        raise PassingError(f"{guard.lock_file} is held by another process: wait for it (cluster/README.md, locks).") from None
    try:
        yield
    finally:
        guard.release()


def claim(folder, part="", create=True):
    """Make this process the only one that writes in a folder, or in a part of it, until `release` or its end.

    Parts may be claimed side by side, but not beside the whole. Temporary files that an earlier process left in the folder
    when it was killed are removed.

    Args:
        folder: The folder; made where it is missing.
        part: Name of the part, empty for the whole.
        create: Whether to claim what nobody has claimed before. If not, nothing is made: this reports a running process
            early, before the input is known to be good.

    Returns:
        Whether the claim is new, so that it is the caller's to release.

    Raises:
        PassingError: Another process writes there.
    """
    folder = Path(folder)
    whole, ours = folder / ".lock", folder / f".lock{part}"
    if ours in CLAIMED or not (create or ours.exists()):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    # Claims of one folder are made one after the other, so that each sees those before it.
    with guarded(folder):
        parts = sorted(lock for lock in folder.glob(".lock?*") if lock.suffix not in (".guard", ".holder"))
        for lock in [whole] if part else parts:
            take(lock).release()
        CLAIMED[ours] = take(ours)
        holder_file(ours).write_text(f"process {os.getpid()} on {platform.node()}")
    remove_partial_files(folder, of_dead_only=bool(part))
    return True


def holder_file(lock):
    """Where the holder of a lock names itself: not in the lock file, which only its holder can read on Windows."""
    return lock.with_name(f"{lock.name}.holder")


def take(lock):
    """The lock of a lock file, held.

    Raises:
        PassingError: Another process holds it, which it names. It may be the predecessor of this one, which still saves.
    """
    held = FileLock(lock, blocking=False, thread_local=False)
    try:
        held.acquire()
    except Timeout:
        holder = "another process"
        with contextlib.suppress(OSError):
            holder = holder_file(lock).read_text() or holder
        raise PassingError(
            f"{holder} is writing in {lock.parent}: wait for it, or use another folder (another --exp)."
        ) from None
    return held


def release(folder, part=""):
    """Give up what `claim` has claimed, if it is ours."""
    lock = Path(folder) / f".lock{part}"
    held = CLAIMED.pop(lock, None)
    if held:
        with contextlib.suppress(OSError):  # the folder may be gone
            holder_file(lock).unlink()
        held.release()


@contextlib.contextmanager
def claimed(folder, part=""):
    """Hold the claim to a folder, or to a part of it, for a block. What was claimed before it stays so after it."""
    new = claim(folder, part)
    try:
        yield
    finally:
        if new:
            release(folder, part)


def refuse_if_claimed(folder, part=""):
    """Report early that another process writes in a folder (UserError). Nothing is made, and nothing stays claimed."""
    if claim(folder, part, create=False):
        release(folder, part)


def refuse_if_written(folder):
    """Report that another process writes in a folder which this one is to read (PassingError). Nothing is claimed or removed.

    Those who only look may do so at the same moment.
    """
    locks = sorted(lock for lock in folder.glob(".lock*") if lock.suffix not in (".guard", ".holder"))
    if locks and os.access(folder, os.W_OK):  # else nobody here writes in it
        with guarded(folder):
            for lock in locks:
                take(lock).release()


def check_claims(path):
    """Raise a UserError if `path` is to be written in a claimed folder that somebody has deleted or replaced since."""
    for lock in CLAIMED:
        if lock.parent in path.parents and not lock.exists():
            raise UserError(f"{lock.parent} has been deleted while this process was writing in it: run the same command again.")


def remove_partial_files(folder, of_dead_only=False):
    """Remove what `atomic_path` and others were writing in a folder and its folders when they were killed.

    Args:
        of_dead_only: Whether other processes may be writing there: then only what processes of this machine have left that
            are gone.
    """
    for pattern in (".partial-*", "*/.partial-*"):
        for left in folder.glob(pattern):
            if not of_dead_only or writer_is_gone(left):
                left.unlink(missing_ok=True)
