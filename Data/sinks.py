"""How the images of a synthetic set come to the disk: as files, or in tars. Data/stores.py reads both.

An image is either whole or not there, whenever the process is killed.
"""

import contextlib
import os
import re
import struct
import threading
import uuid
import zlib
from collections import defaultdict

import numpy as np

from Data.stores import TAR_IMAGES, image_name, tar_file
from Data.tar import TarWriter
from Experiment.errors import PassingError
from Experiment.files import atomic_path
from Experiment.locks import partial_path

# Images of a tar that is not whole are kept in a log beside it, `.pending-000003-<process>`: a number, a length, a checksum
# and a PNG each. A log is simpler than a folder of single files (one file a tar, however many images wait) and than a tar
# that grows (images come in the order of threads, and a tar has no checksum of what a power cut leaves). A process
# appends to a log of its own alone. So nothing stands behind a torn end, which readers pass over, and no log needs mending.
RECORD = struct.Struct("<QQI")
PENDING = re.compile(r"\.pending-(\d{6,})-[0-9a-f]{8}")


class FolderSink:
    """Files in class folders.

    Args:
        writer: The `SyntheticWriter`.

    Attributes:
        unit: Shards are made of whole runs of so many numbers.
    """

    def __init__(self, writer):
        self.writer, self.folders, self.unit = writer, writer.class_folders, writer.block

    def begin(self):
        """Make the class folders. Later ones are not made: a folder that is deleted in mid-run is an error."""
        for folder in self.folders:
            folder.mkdir(parents=True, exist_ok=True)

    def there(self, numbers):
        """Which images of numbers int (n,), ascending, are there, bool (n,)."""
        names = [set(os.listdir(folder)) if folder.is_dir() else () for folder in self.folders]
        labels, indices = (each.tolist() for each in self.writer.numbering.places(numbers))
        return np.array([image_name(index) in names[label] for label, index in zip(labels, indices)], bool)

    def whole(self, numbers):
        """Whether readers find all images of numbers int (n,), ascending."""
        return self.there(numbers).all()

    def put(self, number, png):
        """Store the bytes of an image. Returns whether they are what is there now."""
        path = self.writer.file(number)
        # Beside the class folders: what a killed process leaves there would be an image to those who read the folder.
        partial = partial_path(self.writer.folder / f"{path.parent.name}-{path.name}")
        try:
            with open(partial, "wb") as file:
                file.write(png)
                file.flush()
                os.fsync(file.fileno())  # else a power cut may leave an empty file under the final name
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        return True

    def sync(self):
        """Be sure that what was put outlives a power cut."""


class TarSink:
    """Tars of whole blocks of consecutive numbers: which image is in which follows from its number.

    So any shards make the same ones, each of them whole tars. Images wait in a log until all of their tar are there; then
    it is written in the order of their numbers, takes its name, and the log goes.

    Args: As of a `FolderSink`.
    """

    def __init__(self, writer):
        self.writer, self.folder = writer, writer.folder
        self.unit = max(1, TAR_IMAGES // writer.block) * writer.block
        self.lock, self.lacking, self.unsynced, self.own = threading.Lock(), {}, set(), new_name()

    def begin(self):
        """Make the folder, and finish what a killed process was about to: tars whose images are all there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for tar in sorted(self.logs()):
            if self.there(self.numbers_of(tar)).all():
                self.pack(tar)

    def there(self, numbers):
        tars = numbers // self.unit
        wanted, logs = np.unique(tars), self.logs()
        waiting = [number for tar in wanted for log in logs.get(tar, ()) for number, _, _ in records(log)]
        # Looked at after the logs, which go when the tar is there.
        whole = [tar for tar in wanted if tar_file(self.folder, tar).exists()]
        return np.isin(numbers, waiting) | np.isin(tars, whole)

    def whole(self, numbers):
        return all(tar_file(self.folder, tar).exists() for tar in np.unique(numbers // self.unit))

    def put(self, number, png):
        tar = number // self.unit
        with self.lock:
            if tar not in self.lacking:
                numbers = self.numbers_of(tar)
                self.lacking[tar] = np.zeros(self.unit, bool)
                self.lacking[tar][numbers[~self.there(numbers)] % self.unit] = True
            lacking = self.lacking[tar]
            if not lacking[number % self.unit]:
                return False
            self.append(self.folder / f".pending-{tar:06d}-{self.own}", number, png)
            lacking[number % self.unit] = False
            if not lacking.any():
                self.pack(tar)
        return True

    def append(self, log, number, png):
        try:
            with open(log, "ab") as file:
                file.write(RECORD.pack(number, len(png), zlib.crc32(png)) + png)
        except BaseException:
            self.own = new_name()  # nothing may stand behind what is torn
            raise
        self.unsynced.add(log)

    def pack(self, tar):
        """Make a tar of its log, unless another process has; then remove the log."""
        path, logs = tar_file(self.folder, tar), self.logs()[tar]
        held = {number: (log, offset, size) for log in logs for number, offset, size in records(log)}
        if not path.exists():  # looked at after the logs, as above
            try:
                self.write(path, self.numbers_of(tar).tolist(), held)
            except FileNotFoundError:  # of a log
                if not path.exists():  # by another process, which took the logs away
                    raise
        for log in logs:
            self.unsynced.discard(log)
            log.unlink(missing_ok=True)

    def write(self, path, numbers, held):
        """Write a tar from what logs hold, {number: (log, offset, size)}."""
        if not held.keys() >= set(numbers):
            raise PassingError(f"images that waited for {path} are gone: run the same command again.")
        with atomic_path(path) as partial, contextlib.closing(TarWriter(partial)) as packed:
            for number in numbers:
                log, offset, size = held[number]
                with open(log, "rb") as file:
                    file.seek(offset)
                    self.add(packed, number, file.read(size))

    def add(self, packed, number, png):
        """Add an image and its label to a tar."""
        label, index = self.writer.place(number)
        name = f"{self.writer.class_folders[label].name}/{image_name(index)}"
        packed.add(name, png)
        packed.add(f"{name.removesuffix('png')}cls", str(label).encode())

    def numbers_of(self, tar):
        """Numbers, int64 (n,), ascending, of the images of a tar."""
        first, last = np.searchsorted(self.writer.numbers, (tar * self.unit, (tar + 1) * self.unit))
        return self.writer.numbers[first:last]

    def logs(self):
        """{number of a tar that is not whole: paths of its logs}."""
        found = defaultdict(list)
        for name in sorted(os.listdir(self.folder)) if self.folder.is_dir() else ():
            if known := PENDING.fullmatch(name):
                found[int(known[1])].append(self.folder / name)
        return found

    def sync(self):
        with self.lock:
            for log in self.unsynced:
                with contextlib.suppress(FileNotFoundError), open(log, "rb+") as file:  # gone: another process packed it
                    os.fsync(file.fileno())
            self.unsynced.clear()


def new_name():
    """What tells the logs of a process from those of all others, also of other machines."""
    return uuid.uuid4().hex[:8]


def records(log):
    """Yield number, offset and size, bytes, of each image in a log that is whole; what is torn ends it."""
    try:
        file = open(log, "rb")
    except FileNotFoundError:  # another process has packed it
        return
    with file:
        end = os.fstat(file.fileno()).st_size
        while len(head := file.read(RECORD.size)) == RECORD.size:
            number, size, known = RECORD.unpack(head)
            start = file.tell()
            if not size or start + size > end or zlib.crc32(file.read(size)) != known:
                return
            yield number, start, size
