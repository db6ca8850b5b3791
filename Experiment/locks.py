"""Which process may write where, and what killed processes leave behind."""

import contextlib
import os
import platform
from pathlib import Path

from Experiment.errors import UserError

CLAIMED = {}  # lock files of `claim`, held open


def partial_path(path):
    """The name beside `path` under which this process writes it until it is whole."""
    return path.with_name(f".partial-{platform.node()}-{os.getpid()}-{path.name}")


def is_running(pid):
    """Whether a process of this machine with that number, given as text, is there."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OverflowError, PermissionError):
        pass  # no number of ours to judge by, or another user's process
    return True


def writer_is_gone(partial):
    """Whether a temporary file was left by a process of this machine that was killed."""
    ours = f".partial-{platform.node()}-"
    return partial.name.startswith(ours) and not is_running(partial.name.removeprefix(ours).split("-")[0])


@contextlib.contextmanager
def locked(path):
    """Hold a lock that belongs to `path` (in a file beside it), waiting for whoever else holds it."""
    import fcntl

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def claim(folder, part="", create=True):
    """Make this process the only one that writes in a folder, or in a part of it, until it ends, however it ends.

    Parts may be claimed side by side, but not beside the whole. Temporary files that an earlier process left in the folder
    when it was killed are removed.

    Args:
        folder: The folder; made where it is missing.
        part: Name of the part, empty for the whole.
        create: Whether to claim what nobody has claimed before. If not, nothing is made: so it can be told of another
            process at once, before the input is known to be good.

    Raises:
        UserError: Another process writes there.
    """
    import fcntl

    folder = Path(folder)
    lock = folder / f".lock{part}"
    if lock in CLAIMED or not (create or lock.exists()):
        return
    folder.mkdir(parents=True, exist_ok=True)
    locks = {".lock": fcntl.LOCK_SH, f".lock{part}": fcntl.LOCK_EX}  # one and the same where it is the whole
    with contextlib.ExitStack() as stack:
        files = {folder / name: stack.enter_context(open(folder / name, "a+")) for name in locks}
        for file, kind in zip(files.values(), locks.values()):
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read() or "another process"
                raise UserError(f"{holder} is writing in {folder}: wait for it, or use another --exp.") from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
        CLAIMED.update(files)
        stack.pop_all()  # closing them would give the folder up
    remove_partial_files(folder, of_dead_only=bool(part))


def check_claims(path):
    """Raise a UserError if `path` is to be written in a claimed folder that somebody has deleted or replaced since."""
    for lock in CLAIMED:
        if lock.parent in path.parents and not lock.exists():
            raise UserError(
                f"{lock.parent} has been deleted while this process was writing in it: run the same command again."
            )


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
