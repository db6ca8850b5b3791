"""What runs on a node of a Ray cluster: a script as a process whose lines go to the board, and files where they travel."""

import contextlib
import ctypes
import functools
import hashlib
import platform
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from Experiment.errors import MAY_PASS
from Experiment.files import file_hash
from Experiment.paths import REPOSITORY
from Experiment.records import installed_versions
from Stages.carried import Copy
from Stages.running import start_process

LOOK = 0.5  # s between looks at a process
PR_SET_PDEATHSIG = 1  # of Linux's prctl


def one_line(error):
    return " ".join(str(error).split())


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
    return ", ".join([f"code {code.hexdigest()[:12]}", f"Python {platform.python_version()}", *versions])


def run_command(command, live, board, key, wanted, carried=None):
    """What a task does: run a script on its node, and send its lines to the board. Returns the exit code.

    A stop of the pipeline cancels the task, which is a KeyboardInterrupt here: the script is told once, and may save
    what it has.

    Args:
        command: Script and flags.
        live: Whether messages of progress are wanted.
        board: The `Board`.
        key: Under which the board keeps its lines.
        wanted: The `software` of the pipeline; a node of another one is refused.
        carried: The experiment, (exp, dataset), whose files travel by way of the board; None where the node sees them.
    """
    if (own := software()) != wanted:
        ours, theirs = (
            " ".join(sorted(set(a.split(", ")) - set(b.split(", ")))) for a, b in ((wanted, own), (own, wanted))
        )
        line = f"{command[0]}: error: node {socket.gethostname()} has {theirs or 'less'} where the pipeline has {ours or 'less'}"
        board.put.remote(key, line, True)
        return 2
    if not carried:
        return follow_process(start_process(command, live, die_with_parent), board, key)
    import ray

    copy = Copy(
        lambda method, *args: ray.get(board.files.remote(method, *args)), command[0].removesuffix(".py"), *carried
    )
    try:
        copy.fetch()
        process = start_process((*command, "--root", str(copy.folder)), live, die_with_parent)
        ended = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(copy.keep_sending, ended)
            code = follow_process(process, board, key)
            ended.set()
            while not sending.done():  # of a stopped task too: what it has saved is on this node alone
                with contextlib.suppress(KeyboardInterrupt):
                    time.sleep(LOOK)
            sending.result()
        return code
    except (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError) as error:
        where = socket.gethostname()
        line = f"{command[0]}: error: the object store of {where} has no room for the files that travel: {one_line(error)[:200]}"
        board.put.remote(key, line, True)
        return MAY_PASS
    finally:
        copy.close()


def follow_process(process, board, key):
    """Send the lines of a process to the board until it ends. Returns its exit code."""

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
    return process.returncode


class Board:
    """What tasks have said and nobody has read yet: {key: [(line, whether it is of stderr)]}. And the files of the pipeline's root.

    Args:
        root: The `Root` that tasks carry files from and to; None where they see it.
    """

    def __init__(self, root=None):
        self.lines, self.root = {}, root

    def files(self, method, *args):
        return getattr(self.root, method)(*args)

    def put(self, key, line, is_error):
        self.lines.setdefault(key, []).append((line, is_error))

    def take(self, key):
        return self.lines.pop(key, [])
