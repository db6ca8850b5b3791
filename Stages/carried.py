"""Files of an experiment on nodes that share no folder: each task works in a copy of its own, and what changes there is carried back.

The truth stays in the pipeline's own root, so a task whose node is lost goes on elsewhere from what had arrived. Files are whole
or not there in both places, but for logs, of which each task's lines are added as they come.
"""

import contextlib
import json
import os
import shutil
import sqlite3
import tempfile
from pathlib import Path

from Experiment.files import write_json
from Experiment.locks import is_running, locked, partial_path
from Experiment.paths import Experiment

PIECE = 32 * 2**20  # bytes that travel at a time
EVERY = 10  # s between looks at what has changed in a copy
LOG, DATABASE = "log.txt", ".db"
OWN = (".lock", ".partial")  # how names of what belongs to one machine begin
# What stages have no use for, as beginnings of names.
NEEDLESS = {
    "SD_adapting": ("Data/Synthetic", "Checkpoints/Classifiers", "Images"),
    "hyp_opt": ("Data/Synthetic", "Images"),
    "generate_dataset": ("Data/Latents",),
    "classifier_training": ("Checkpoints/DDPM", "Data/Latents", "Images"),
}


def carried_names(root, exp, dataset):
    """Names below a root of the files of an experiment, and of the data that stages read."""
    root = Path(root)
    experiment = Experiment(root, exp, dataset)
    folders = [
        experiment.part_dir("enc").parent, root / "Checkpoints/Classifiers" / f"Exp_{exp}", experiment.synthetic_root,
        experiment.search_dir("enc").parent, experiment.images_dir, experiment.latents_dir, experiment.split_file.parent,
        root / "Data/Real",
    ]  # fmt: skip
    files = [experiment.cas_file, experiment.pipeline_file]
    for folder in folders:
        files += [Path(place, name) for place, _, names in os.walk(folder) for name in names]
    return [str(file.relative_to(root)) for file in files
            if file.is_file() and not file.name.startswith(OWN) and not file.name.endswith(("-journal", "-wal", "-shm"))]  # fmt: skip


def seen(path):
    """What tells whether a file has changed: (bytes, time of the last change in ns)."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def changed_entries(before, now):
    """What is new or other in nested dictionaries: the same kind of dictionary, of the changes alone."""
    found = {}
    for key, value in now.items():
        if key not in before:
            found[key] = value
        elif isinstance(value, dict) and isinstance(before[key], dict):
            if inner := changed_entries(before[key], value):
                found[key] = inner
        elif value != before[key]:
            found[key] = value
    return found


def merged(old, changes):
    """Nested dictionaries with changes put in."""
    new = dict(old)
    for key, value in changes.items():
        new[key] = merged(old[key], value) if isinstance(value, dict) and isinstance(old.get(key), dict) else value
    return new


class Root:
    """The pipeline's own root, which copies are made of and carried back to.

    Args:
        root: The folder.
        exp, dataset: Of the experiment.
    """

    def __init__(self, root, exp, dataset):
        self.root, self.exp, self.dataset = Path(root), exp, dataset

    def listing(self, script):
        """{name: what `seen` says} of the files that a script may need."""
        names = carried_names(self.root, self.exp, self.dataset)
        return {name: seen(self.root / name) for name in names if not name.startswith(NEEDLESS.get(script, ()))}

    def read(self, name, offset):
        """Bytes of a file from a place on, `PIECE` at most."""
        with open(self.root / name, "rb") as file:
            file.seek(offset)
            return file.read(PIECE)

    def write(self, name, task, offset, data, last):
        """Take a piece of a file. With the last one, (bytes, time), the file is there.

        Args:
            task: Tells the pieces of different tasks apart.
        """
        path = self.root / name
        arriving = path.with_name(f".partial-{task}-{path.name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(arriving, "r+b" if offset else "wb") as file:
            file.seek(offset)
            file.write(data)
            if last:
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
        if last:
            os.utime(arriving, ns=(last[1], last[1]))
            os.replace(arriving, path)

    def append(self, name, data):
        """Add lines to a log."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            file.write(data)

    def merge(self, name, changes):
        """Put changes into a file of results, to which other tasks add theirs."""
        path = self.root / name
        with locked(path):
            old = json.loads(path.read_bytes()) if path.exists() else {}
            write_json(path, merged(old, changes))

    def remove(self, names):
        for name in names:
            (self.root / name).unlink(missing_ok=True)


class Copy:
    """A task's copy of what its stage needs.

    Args:
        call: Function of a method's name and its arguments, which `Root` answers.
        script: Name of the stage's script.
        exp, dataset: Of the experiment.

    Attributes:
        folder: The copy's root.
    """

    def __init__(self, call, script, exp, dataset):
        self.call, self.script, self.exp, self.dataset = call, script, exp, dataset
        for left in Path(tempfile.gettempdir()).glob("carried-*-*"):
            if not is_running(left.name.split("-")[1]):  # of a task that was killed
                shutil.rmtree(left, ignore_errors=True)
        self.folder = Path(tempfile.mkdtemp(prefix=f"carried-{os.getpid()}-"))
        self.known, self.results = {}, {}

    def fetch(self):
        """Get all files that the script may need."""
        for name, (size, time) in self.call("listing", self.script).items():
            path, offset = self.folder / name, 0
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb") as file:
                while offset < size and (data := self.call("read", name, offset)):
                    file.write(data)
                    offset += len(data)
            os.utime(path, ns=(time, time))
            self.known[name] = seen(path)
            if self.is_result(name):
                self.results[name] = json.loads(path.read_bytes())

    def is_result(self, name):
        return name.startswith("CAS Results/") and name.endswith(".json")

    def send(self):
        """Carry back what has changed, and remove what is gone."""
        names = carried_names(self.folder, self.exp, self.dataset)
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # replaced or removed since
                now = seen(self.folder / name)
                if now != self.known.get(name):
                    self.send_one(name, now)
                    self.known[name] = now
        gone = sorted(self.known.keys() - names)
        self.call("remove", gone)
        for name in gone:
            del self.known[name]

    def send_one(self, name, now):
        path = self.folder / name
        if path.name == LOG:
            with open(path, "rb") as file:
                file.seek(min(self.known.get(name, (0, 0))[0], now[0]))
                self.call("append", name, file.read(now[0] - file.tell()))
        elif self.is_result(name):
            content = json.loads(path.read_bytes())
            self.call("merge", name, changed_entries(self.results.get(name, {}), content))
            self.results[name] = content
        elif path.suffix == DATABASE:
            with snapshot(path) as whole:
                self.send_pieces(name, whole, now[1])
        else:
            self.send_pieces(name, path, now[1])

    def send_pieces(self, name, path, time):
        with open(path, "rb") as file:
            size, task = os.fstat(file.fileno()).st_size, self.folder.name
            for offset in range(0, max(size, 1), PIECE):
                last = (size, time) if offset + PIECE >= size else None
                self.call("write", name, task, offset, file.read(min(PIECE, size - offset)), last)

    def keep_sending(self, ended):
        """Carry back what changes, every `EVERY` seconds and once more when the event `ended` is set."""
        while not ended.wait(EVERY):
            self.send()
        self.send()

    def close(self):
        shutil.rmtree(self.folder, ignore_errors=True)


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
