"""What runs on a node of a Ray cluster: a script as a process whose lines go to the board, and files where they travel."""

import contextlib
import ctypes
import logging
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from Experiment.errors import MAY_PASS
from Experiment.records import software
from Stages.copies import Copy, again, is_refused, reason
from Stages.running import start_process

log = logging.getLogger("experiment")

LOOK = 0.5  # s between looks at a process
PR_SET_PDEATHSIG = 1  # of Linux's prctl


def die_with_parent():
    """Let Linux kill this process when the task that began it is gone: it would go on writing beside its successor."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def absent(paths):
    """This node's name, and those of the paths that it does not have."""
    return socket.gethostname(), [path for path in paths if not Path(path).exists()]


def run_command(command, live, board, key, wanted, carried=None):
    """What a task does: run a script on its node, and send its lines to the board. Returns the exit code.

    A stop of the pipeline cancels the task, which is an interrupt here: the script is told once, and may save what it has.

    Args:
        command: Script and flags.
        live: Whether messages of progress are wanted.
        board: The `Board`.
        key: Under which the board keeps its lines.
        wanted: The `software` of the pipeline; a node of another one is refused.
        carried: Where files travel by way of the board: the pipeline's root as text, and exp and dataset of the experiment.
    """

    def tell(line, is_error=True):
        if carried and is_error:
            log.error(line.rstrip())  # to the node's own log too: the board may be what fails
        board.put.remote(key, line, is_error)

    if (own := software()) != wanted:
        ours, theirs = (" ".join(sorted(set(a.split(", ")) - set(b.split(", ")))) for a, b in ((wanted, own), (own, wanted)))
        tell(f"{command[0]}: error: node {socket.gethostname()} has {theirs or 'less'} where the pipeline has {ours or 'less'}")
        deliver(board)
        return 2
    # Where Ray was begun in the background of a shell, interrupts are ignored, and so would the cancelling be. It comes again
    # and again until the task ends, wherever that is: so it is noted, not raised.
    stopped = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: stopped.set())
    if carried:
        code = run_in_copy(command, live, board, tell, stopped, *carried)
    else:
        code = follow_process(start_process(command, live, die_with_parent), tell, stopped)
    deliver(board)
    return code


def run_in_copy(command, live, board, tell, stopped, root, exp, dataset):
    """Run a script in a `Copy` of the root. Returns its exit code; `MAY_PASS` where files could not travel."""
    import ray

    def call(method, *args):
        return ray.get(board.files.remote(method, *args))

    def say(why):
        tell(f"--carry, node {socket.gethostname()}: {why}")

    def fetching(*asked):
        if stopped.is_set():
            raise InterruptedError
        return call(*asked)

    copy = None
    try:
        copy = Copy(fetching, command[0].removesuffix(".py"), exp, dataset)
        again(copy.fetch, say, stopped)
    except Exception as error:  # as in `again`
        if copy:
            copy.close()
        if stopped.is_set():
            return 128 + signal.SIGTERM
        say(f"files cannot be fetched ({reason(error)})")
        return MAY_PASS
    copy.call = call
    process = start_process((*command, "--root", str(copy.folder)), live, die_with_parent)
    ended = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(copy.keep_sending, ended, say)
        sending.add_done_callback(lambda done: done.exception() and stopped.set())  # what the script makes is of no use
        try:
            code = follow_process(process, lambda line, is_error: tell(line.replace(str(copy.folder), root), is_error), stopped)
        finally:
            ended.set()
    if (error := sending.exception()) and is_refused(error):
        say(reason(error))
        copy.close()
        return 2
    if error:
        say(f"what {command[0]} has made could not be sent ({reason(error)}): it lies in {copy.keep()}")
        return MAY_PASS
    copy.close()
    return code


def follow_process(process, tell, stopped):
    """Tell the lines of a process until it ends; stop it when the event is set. Returns its exit code."""

    def send(output, is_error):
        for line in output:
            tell(line, is_error)

    readers = [threading.Thread(target=send, args=pair) for pair in ((process.stdout, False), (process.stderr, True))]
    for reader in readers:
        reader.start()
    told = False
    while process.returncode is None or any(reader.is_alive() for reader in readers):
        process.poll()
        if stopped.is_set() and not told:
            process.terminate()
            told = True
        time.sleep(LOOK)
    return process.returncode


def deliver(board):
    """Wait until the board has all lines of this task, the last of which says why it ends: calls of one caller keep their order."""
    import ray

    try:
        ray.get(board.take.remote(None))
    except ray.exceptions.RayActorError:
        log.debug("the board is begun again: results do not depend on what it knew")


class Board:
    """What tasks have said and nobody has read yet: {key: [(line, whether it is of stderr)]}; and the files of the root.

    Args:
        root: The `Root` that tasks take files from and bring them to; None where they see it.
    """

    def __init__(self, root=None):
        self.lines, self.root = {}, root

    def files(self, method, *args):
        """What a method of the root returns. Calls come one after the other, so that a listing is of one moment."""
        return getattr(self.root, method)(*args)

    def put(self, key, line, is_error):
        self.lines.setdefault(key, []).append((line, is_error))

    def take(self, key):
        return self.lines.pop(key, [])
