"""What runs on a node of a Ray cluster: a script as a process whose lines go to the board."""

import contextlib
import ctypes
import functools
import hashlib
import logging
import signal
import socket
import threading
import time

from Experiment.files import file_hash
from Experiment.paths import REPOSITORY
from Experiment.records import installed_versions
from Stages.running import start_process

log = logging.getLogger("experiment")

LOOK = 0.5  # s between looks at a process
PR_SET_PDEATHSIG = 1  # of Linux's prctl


def die_with_parent():
    """Let Linux kill this process when the task that began it is gone: it would go on writing beside its successor."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@functools.cache
def software():
    """What must be the same on all nodes, as text: the code of this checkout, and the versions of what computes."""
    folders = [REPOSITORY, *(path for path in REPOSITORY.iterdir() if path.is_dir() and not path.name.startswith("."))]
    code = hashlib.sha256()
    for file in sorted(file for folder in folders for file in folder.glob("*.py")):
        code.update(f"{file.relative_to(REPOSITORY)} {file_hash(file)}\n".encode())
    versions = [f"{name} {version}" for name, version in installed_versions().items()]
    return ", ".join([f"code {code.hexdigest()[:12]}", *versions])


def run_command(command, live, board, key, wanted):
    """What a task does: run a script on its node, and send its lines to the board. Returns the exit code.

    A stop of the pipeline cancels the task, which is a KeyboardInterrupt here: the script is told once, and may save
    what it has.

    Args:
        command: Script and flags.
        live: Whether messages of progress are wanted.
        board: The `Board`.
        key: Under which the board keeps its lines.
        wanted: The `software` of the pipeline; a node of another one is refused.
    """
    if (own := software()) != wanted:
        ours, theirs = (
            " ".join(sorted(set(a.split(", ")) - set(b.split(", ")))) for a, b in ((wanted, own), (own, wanted))
        )
        line = f"{command[0]}: error: node {socket.gethostname()} has {theirs or 'less'} where the pipeline has {ours or 'less'}"
        board.put.remote(key, line, True)
        deliver(board)
        return 2
    # Where Ray was begun in the background of a shell, interrupts are ignored, and so would the cancelling be.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = start_process(command, live, die_with_parent)

    def send(output, is_error):
        for line in output:
            board.put.remote(key, line, is_error)

    readers = [threading.Thread(target=send, args=pair) for pair in ((process.stdout, False), (process.stderr, True))]
    for reader in readers:
        reader.start()
    stopped = False
    while process.returncode is None or any(reader.is_alive() for reader in readers):
        try:
            process.poll()  # not wait(), in which Ray's interrupt would be noticed at its end only
            time.sleep(LOOK)
        except KeyboardInterrupt:  # comes again and again until the task ends
            if not stopped:
                process.terminate()
            stopped = True
    deliver(board)
    return process.returncode


def deliver(board):
    """Wait until the board has all lines of this task, the last of which says why it ends: calls of one caller keep their order."""
    import ray

    while True:
        try:
            ray.get(board.take.remote(None))
        except KeyboardInterrupt:  # of a stop, which comes again and again
            continue
        except ray.exceptions.RayActorError:
            log.debug("the board is begun again: results do not depend on what it knew")
        return


class Board:
    """What tasks have said and nobody has read yet: {key: [(line, whether it is of stderr)]}."""

    def __init__(self):
        self.lines = {}

    def put(self, key, line, is_error):
        self.lines.setdefault(key, []).append((line, is_error))

    def take(self, key):
        return self.lines.pop(key, [])
