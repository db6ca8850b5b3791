"""A study in a file of one line an event, where file systems lock badly or no database is at hand."""

import contextlib
import json
import os

from optuna.storages.journal import JournalFileBackend


class WholeLines(JournalFileBackend):
    """A journal in which half a line, of a write that failed or was killed, does not spoil what follows.

    Optuna's own appends to it: from then on nobody can read the file.

    Args:
        file: Its path.
        lock: Optuna's lock of it.
    """

    def __init__(self, file, lock):
        super().__init__(str(file), lock)
        self.file, self.lock = file, lock

    def append_logs(self, logs):
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        self.lock.acquire()
        try:
            with open(self.file, "a+b", buffering=0) as file:  # at its end, wherever that is by then
                size, whole = file.seek(0, os.SEEK_END), end_of_lines(file)
                if whole < size:
                    file.truncate(whole)
                written = 0
                try:
                    while written < len(lines):  # a disk that is about to be full takes a part
                        written += file.write(lines[written:])
                    os.fsync(file.fileno())
                except OSError:
                    if file.seek(0, os.SEEK_END) == whole + written:  # nobody else has written since
                        file.truncate(whole)
                    raise
        finally:
            with contextlib.suppress(RuntimeError):  # after a long silence another process has taken the lock away
                self.lock.release()


def end_of_lines(file, piece=65536):
    """Where the last line that is whole ends in an open binary file."""
    place = file.seek(0, os.SEEK_END)
    while place:
        start = max(0, place - piece)
        file.seek(start)
        if (found := file.read(place - start).rfind(b"\n")) >= 0:
            return start + found + 1
        place = start
    return 0
