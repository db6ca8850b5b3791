"""A task's copy of what its stage needs, where nodes share no folder: fetched before it begins, and carried back while it runs."""

import contextlib
import errno
import glob
import json
import os
import shutil
import sqlite3
import tempfile
import time
from pathlib import Path

from Data.synthetic import RECORD
from Experiment.errors import PassingError, UserError
from Experiment.locks import is_running, machine, partial_path
from Experiment.paths import FIT_STATE, REAL_DATA
from Experiment.text import one_line
from Stages.carried import DATABASE, PENDING, PIECE, edits, grows, is_result, look, seen

EVERY = 10  # s between looks at what has changed in a copy
PAUSES = (1, 2, 5, 10, 20, 30)  # s before fetching, and the last sending, are tried again
ROUNDS = 100  # of fetching, while files change that were to be fetched
GRAIN = 50_000_000  # ns in which changes may bear the same time
MARK = ".carried"  # tells that a copy is whole
UNFINISHED = (FIT_STATE, PENDING)  # goes when what came of it is there


class BrokenCopy(PassingError):
    """A copy has lost files, of which nobody can tell whether the task has removed them."""


def reason(error):
    """Why something failed, in one line. Ray wraps what was raised elsewhere, here in the pipeline's root."""
    cause = getattr(error, "cause", None)
    said, error = one_line(cause or error)[:300], cause or error
    if type(error).__name__ in ("ObjectStoreFullError", "OutOfDiskError"):
        return f"Ray's object store has no room: {said}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {'the pipeline' if cause else 'this node'} is full: {said}"
    return said or type(error).__name__


def is_refused(error):
    """Whether something failed because it may not be, so that it fails again however often it is tried."""
    cause = getattr(error, "cause", None) or error
    return isinstance(cause, UserError) and not isinstance(cause, PassingError)


def news(tell):
    """A function that tells why something has failed, unless that is what it has told last; None makes it forget."""
    last = None

    def told(error):
        nonlocal last
        why = error and f"{reason(error)}: tried again"
        if why and why != last:
            tell(why)
        last = why

    return told


def again(action, tell, stopped=None):
    """Do something until it succeeds, with `PAUSES` between.

    Args:
        action: The function.
        tell: Called with why it has failed, whenever that is another reason than before.
        stopped: An event after which nothing is tried again.

    Raises:
        Exception: The last one.
    """
    told = news(tell)
    for pause in PAUSES:
        try:
            return action()
        except BrokenCopy:
            raise
        except Exception as error:  # of the network, a disk, or Ray: whatever it is may pass
            if is_refused(error) or stopped and stopped.is_set():
                raise
            told(error)
            time.sleep(pause)
    return action()


class Copy:
    """A task's copy.

    Args:
        call: Function of a method's name and its arguments, which `Root` answers.
        script: Name of the stage's script.
        exp, dataset: Of the experiment.

    Attributes:
        folder: The copy's root.
    """

    def __init__(self, call, script, exp, dataset):
        self.call, self.script, self.exp, self.dataset = call, script, exp, dataset
        ours = f"carried-{machine()}-"  # a temporary folder may be shared by machines
        for left in Path(tempfile.gettempdir()).glob(glob.escape(ours) + "*"):
            if not is_running(left.name.removeprefix(ours).split("-")[0]):  # of a task that was killed
                shutil.rmtree(left, ignore_errors=True)
        self.folder = Path(tempfile.mkdtemp(prefix=f"{ours}{os.getpid()}-"))
        # Never opened again, so the oldest file: what cleans by age takes it first. Those who heed locks leave all of it.
        (self.folder / MARK).touch()
        self.mark = seen((self.folder / MARK).stat())
        self.held = hold(self.folder)
        self.fetched, self.known, self.results = {}, {}, {}

    def check(self):
        """Raise a `BrokenCopy` unless the copy is what it was: a folder that a cleaner has emptied says nothing."""
        try:
            whole = seen((self.folder / MARK).stat()) == self.mark
        except FileNotFoundError:
            whole = False
        if not whole:
            raise BrokenCopy(f"somebody has removed files of {self.folder}: nothing is sent from it any more")

    def fetch(self):
        """Get all files that the script may need, as they were at one moment.

        Raises:
            PassingError: They keep changing.
        """
        for _ in range(ROUNDS):
            wanted = {name: tuple(what) for name, what in self.call("listing", self.script).items()}
            for name in self.fetched.keys() - wanted:
                (self.folder / name).unlink(missing_ok=True)
                del self.fetched[name]
            missing = (name for name, what in wanted.items() if self.fetched.get(name) != what)
            if all(self.fetch_one(name, wanted[name]) for name in missing):
                break
        else:
            raise PassingError("the files of the experiment keep changing: another pipeline is at work")
        self.known = look(self.folder, self.exp, self.dataset)
        self.results = {name: content(self.folder / name) for name in self.known if is_result(name)}

    def fetch_one(self, name, what):
        """Get a file. Returns whether it still is what `seen` said of it."""
        path, (size, changed, _), offset = self.folder / name, what, 0
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
            return True
        path.parent.mkdir(parents=True, exist_ok=True)
        self.fetched[name] = None
        with open(path, "wb") as file:
            while offset < size:
                data = self.call("read", name, offset, what)
                if not data:
                    return False
                file.write(data)
                offset += len(data)
        os.utime(path, ns=(time.time_ns(), changed))
        self.fetched[name] = what
        return True

    def send(self, final=False):
        """Carry back what has changed, in the order in which it did: what says that something is finished comes after it.

        Args:
            final: Whether nobody writes any more.

        Raises:
            BrokenCopy: The copy is not whole.
            PassingError: Files change after their writer has ended.
        """
        self.check()
        start = time.time_ns()
        now = look(self.folder, self.exp, self.dataset)
        self.check()
        for name in self.known.keys() - now:  # a folder is only seen as long as it is empty
            if name.endswith("/") and (self.folder / name).is_dir():
                del self.known[name]
        gone = {name for name in self.known.keys() - now if not (name.startswith(REAL_DATA) or is_result(name))}
        folders = {f"{Path(name).parent.as_posix()}/" for name in gone}
        gone |= {name for name in folders if not (self.folder / name).exists()}
        late = {name for name in gone if Path(name).name.startswith(UNFINISHED)}
        self.remove(gone - late)
        changed = [name for name, what in now.items() if what != self.known.get(name) and not name.startswith(REAL_DATA)
                   and not (name.endswith("/") and name in self.known)]  # fmt: skip
        for name in sorted(changed, key=lambda name: (now[name][1], rank(name), name)):
            # What is newer than the look may speak of what it has missed.
            if not final and now[name][1] > start - GRAIN or not self.send_one(name, now[name]):
                break
            self.known[name] = now[name]
        else:
            self.remove(late)
            return
        if final:
            raise PassingError(f"{self.folder / name} changes though its task has ended")

    def remove(self, names):
        if names:
            self.call("remove", sorted(names, reverse=True))  # files before their folders
            for name in names:
                self.known.pop(name, None)

    def send_one(self, name, what):
        """Send a file. Returns whether it still is what `seen` said of it."""
        path = self.folder / name
        try:
            if name.endswith("/"):
                self.call("folder", name)
            elif is_result(name):
                now = content(path)
                if changes := edits(self.results.get(name, {}), now):
                    self.call("merge", name, changes)
                self.results[name] = now
            elif path.suffix == DATABASE:
                with snapshot(path) as whole:
                    return self.send_pieces(name, whole, seen(whole.stat()), what[1])
            elif grows(name):
                before = self.known.get(name, (0,))[0]
                with open(path, "rb") as file:
                    first = file.seek(before if before <= what[0] else 0)
                    for offset in range(first, max(what[0], first + 1), PIECE):
                        self.call("grow", name, self.folder.name, offset, file.read(min(PIECE, what[0] - offset)))
            else:
                return self.send_pieces(name, path, what, what[1])
        except FileNotFoundError:
            if path.exists():  # it is another one that is not there
                raise
            return False
        return True

    def send_pieces(self, name, path, what, changed):
        """Send a file whole, unless it is no longer what `seen` said of it."""
        is_new = name not in self.known
        with open(path, "rb") as file:
            for offset in range(0, max(what[0], 1), PIECE):
                data = file.read(PIECE)
                if seen(os.fstat(file.fileno())) != tuple(what):
                    return False
                last = (changed, is_new) if offset + PIECE >= what[0] else None
                self.call("write", name, self.folder.name, offset, data, last)
        return True

    def keep_sending(self, ended, tell):
        """Carry back what changes, every `EVERY` seconds and in the end, whatever fails between.

        Args:
            ended: An event: the script has ended.
            tell: Called with why it fails, whenever that is another reason than before.

        Raises:
            Exception: The last one, of the last sending; at once where the root refuses what is sent.
        """
        told = news(tell)
        while not ended.wait(EVERY):
            try:
                self.send()
                told(None)
            except Exception as error:  # as in `again`
                if is_refused(error):
                    raise
                told(error)
        again(lambda: self.send(final=True), tell)

    def keep(self):
        """Put the copy where no later task cleans it away. Returns the place."""
        kept = self.folder.with_name(f"unsent-{self.folder.name}")
        with contextlib.suppress(FileNotFoundError):
            self.folder.rename(kept)
        self.let_go()
        return kept

    def let_go(self):
        if self.held is not None:
            os.close(self.held)

    def close(self):
        self.let_go()
        shutil.rmtree(self.folder, ignore_errors=True)


def hold(folder):
    """Lock a folder, as systemd's cleaner of temporary files heeds it. Returns a file descriptor; None on Windows."""
    try:
        import fcntl
    except ImportError:
        return None
    held = os.open(folder, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    return held


def rank(name):
    """Of files of the same time: which go first."""
    file = Path(name).name
    return 0 if file == RECORD else 2 if file.endswith(".json") else 1


def content(path):
    """The content of a file of results; {} of a broken one, which its script sets aside."""
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


@contextlib.contextmanager
def snapshot(path):
    """A whole state of a database that is in use, as a file."""
    copy = partial_path(path)
    try:
        with contextlib.closing(sqlite3.connect(path)) as source, contextlib.closing(sqlite3.connect(copy)) as target:
            source.backup(target)
        yield copy
    finally:
        copy.unlink(missing_ok=True)
