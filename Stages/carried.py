"""Which files of an experiment travel, and the pipeline's own root, which tasks on other machines take them from and bring them to.

The truth stays in the root, so a task whose node is lost goes on elsewhere from what had arrived. Each file is whole or not there,
but for what only grows, of which new bytes are added as they come.
"""

import contextlib
import functools
import os
import sqlite3
from pathlib import Path, PurePosixPath

from Data.synthetic import RECORD
from Experiment.errors import UserError
from Experiment.files import change_json
from Experiment.paths import REAL_DATA, Experiment

PIECE = 8 * 2**20  # bytes that travel at a time
PARTIAL = ".partial-carried-"
LOG, PENDING, DATABASE = "log.txt", ".pending-", ".db"
# What stages have no use for, as beginnings of names.
NEEDLESS = {
    "SD_adapting": ("Data/Synthetic", "Checkpoints/Classifiers", "Images"),
    "hyp_opt": ("Data/Synthetic", "Images"),
    "generate_dataset": ("Data/Latents",),
    "classifier_training": ("Checkpoints/DDPM", "Data/Latents", "Images"),
}


@functools.cache
def places(exp, dataset):
    """Names below a root of the folders and files that tasks write."""
    experiment = Experiment("", exp, dataset)
    found = [
        experiment.part_dir("enc").parent, Path("Checkpoints/Classifiers", f"Exp_{exp}"), experiment.synthetic_root,
        experiment.search_dir("enc").parent, experiment.images_dir, experiment.latents_dir, experiment.split_file.parent,
        experiment.cas_file, experiment.pipeline_file,
    ]  # fmt: skip
    return tuple(path.as_posix() for path in found)


def is_own(name):
    """Whether a file belongs to one machine: locks, what is being written, and what SQLite keeps beside a database."""
    return name.startswith((".lock", ".partial")) or name.endswith((".lock", "-journal", "-wal", "-shm"))


def is_real(name, dataset):
    """Whether a name is that of an official file of a dataset, such as Data/Real/cifar-10-binary.tar.gz."""
    parts = PurePosixPath(name).parts
    return name.startswith(f"{REAL_DATA}/") and parts[2].lower().replace("-", "").startswith(dataset)


def travels(name, exp, dataset):
    """Whether a name below a root is one of those that tasks may write. A folder's ends in a slash."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or is_own(path.name):
        return False
    return any(path.is_relative_to(place) for place in places(exp, dataset))


def grows(name):
    """Whether a file only ever gets longer."""
    file = PurePosixPath(name).name
    return file == LOG or file.startswith(PENDING)


def seen(found):
    """What tells whether a file has changed, of its `os.stat_result`: (bytes, time of the last change in ns, inode)."""
    return found.st_size, found.st_mtime_ns, found.st_ino


def files_below(place, around=()):
    """Files at or below a path, those behind links too, and folders that have none of them. Links that lead back are left out."""
    place, real = Path(place), os.path.realpath(place)
    if not place.is_dir():
        if place.is_file():
            yield place
    elif real not in around:
        try:
            inside = sorted(place.iterdir())
        except FileNotFoundError:  # removed since
            return
        if all(is_own(path.name) for path in inside):
            yield place
        for path in inside:
            yield from files_below(path, (*around, real))


def look(root, exp, dataset):
    """{name: what `seen` says} of what travels below a root, official files of the dataset too; empty folders end in a slash."""
    found = {}
    for top in (*places(exp, dataset), REAL_DATA):
        for path in files_below(root / top):
            name = path.relative_to(root).as_posix()
            if not is_own(path.name) and (top != REAL_DATA or is_real(name, dataset)):
                with contextlib.suppress(FileNotFoundError):
                    now = path.stat()
                    is_folder = path.is_dir()
                    found[f"{name}/" if is_folder else name] = (0, now.st_mtime_ns, 0) if is_folder else seen(now)
    return found


def is_result(name):
    """Whether several tasks add to a file."""
    return name.startswith("CAS Results/")


def edits(before, now, path=()):
    """What has changed between nested dictionaries: [(path, value)] of what is new or other, [(path,)] of what is gone."""
    found = [((*path, key),) for key in before if key not in now]
    for key, value in now.items():
        old = before.get(key, {})
        if value and isinstance(value, dict) and isinstance(old, dict):
            found += edits(old, value, (*path, key))
        elif key not in before or value != old:
            found.append(((*path, key), value))
    return found


def edited(content, changes):
    """Nested dictionaries after `edits` of others; what these others do not name stays."""
    for (*above, last), *value in changes:
        inner = content
        for key in above:
            if not isinstance(inner.get(key), dict):
                inner[key] = {}
            inner = inner[key]
        if not value:
            inner.pop(last, None)
        elif value[0] != {} or not isinstance(inner.get(last), dict):
            inner[last] = value[0]
    return content


class Root:
    """The pipeline's own root.

    Args:
        root: The folder.
        exp, dataset: Of the experiment.
    """

    def __init__(self, root, exp, dataset):
        self.root, self.exp, self.dataset, self.ends = Path(root).resolve(), exp, dataset, {}

    def place(self, name):
        """The path of a name that a task may write.

        Raises:
            UserError: It is none of the experiment's, or lies behind a link that leads out of the root.
        """
        if not travels(name, self.exp, self.dataset):
            raise UserError(f"--carry: {name!r} is no file of the experiment: a task may not write it.")
        path = self.root / name
        if not path.resolve().is_relative_to(self.root):
            raise UserError(
                f"--carry writes nothing outside of {self.root}, where a link leads to on the way to {path}: "
                "name the place that it leads to with --root, or leave --carry out."
            )
        return path

    def begin(self):
        """Remove what killed tasks were sending.

        Raises:
            UserError: A folder that tasks write is a link that leads out of the root.
        """
        for top in places(self.exp, self.dataset):
            self.place(top)
            for path in files_below(self.root / top):
                if path.name.startswith(PARTIAL) and path.parent.resolve().is_relative_to(self.root):
                    path.unlink(missing_ok=True)

    def listing(self, script):
        """{name: what `seen` says} of what a script may need."""
        found = look(self.root, self.exp, self.dataset)
        found = {name: what for name, what in found.items() if not name.startswith(NEEDLESS.get(script, ()))}
        for name in found:
            if name.endswith(DATABASE):
                found[name] = settled(self.root / name)
        return found

    def read(self, name, offset, wanted):
        """Bytes of a file from a place on, `PIECE` at most; None where it is no longer what `seen` said, or gone."""
        with contextlib.suppress(FileNotFoundError), open(self.root / name, "rb") as file:
            file.seek(offset)
            data = file.read(min(PIECE, wanted[0] - offset))
            if data and (grows(name) or seen(os.fstat(file.fileno())) == tuple(wanted)):
                return data
        return None

    def write(self, name, task, offset, data, last):
        """Take a piece of a file. With the last one the file is there.

        Args:
            task: Tells the pieces of different tasks apart.
            last: (time of change in ns, whether the task had no such file before) with the last piece, else None.

        Raises:
            UserError: A task beside this one has begun the same set with other settings.
        """
        path = self.place(name)
        arriving = path.with_name(f"{PARTIAL}{task}-{path.name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(arriving, "r+b" if offset else "wb") as file:
            file.seek(offset)
            file.write(data)
            if last:
                file.flush()
                os.fsync(file.fileno())
        if last:
            time, is_new = last
            if path.name == RECORD and is_new and path.exists() and path.read_bytes() != arriving.read_bytes():
                arriving.unlink()
                raise UserError(f"a task beside this one has begun {path.parent} with other settings")
            os.utime(arriving, ns=(time, time))
            os.replace(arriving, path)

    def grow(self, name, task, offset, data):
        """Add what a task has added to a file that grows: to a log once, whoever else writes there; else at its place."""
        path = self.place(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name == LOG:
            # A call may come again whose answer was lost.
            start = min(self.ends.get((task, name), offset), offset + len(data))
            with open(path, "ab") as file:
                file.write(data[max(0, start - offset) :])
            self.ends[task, name] = offset + len(data)
        else:
            with open(path, "r+b" if offset else "wb") as file:
                file.seek(offset)
                file.write(data)

    def merge(self, name, changes):
        """Put `edits` into a file of results, to which other tasks add theirs."""
        change_json(self.place(name), lambda content: edited(content, changes))

    def folder(self, name):
        self.place(name).mkdir(parents=True, exist_ok=True)

    def remove(self, names):
        """Remove files, and folders that are empty."""
        for name in names:
            path = self.place(name)
            if name.endswith("/"):
                with contextlib.suppress(OSError):  # others have files there, or it is gone
                    path.rmdir()
            else:
                path.unlink(missing_ok=True)


def settled(path):
    """What `seen` says of a database after SQLite has put into it, or undone, what a killed process has left beside it."""
    if any(path.with_name(path.name + end).exists() for end in ("-journal", "-wal")):
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("select count(*) from sqlite_master").fetchone()
    return seen(path.stat())
