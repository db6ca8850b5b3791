"""A script as a process: signals, logging, one-line errors and exit codes."""

import logging
import logging.handlers
import math
import signal
import sys
from pathlib import Path

from Experiment.errors import UserError
from Experiment.locks import claim

log = logging.getLogger("experiment")


def start_logging():
    """Log plain lines to the terminal. `log_to` writes them to a file too, those that came before it included."""
    to_terminal = logging.StreamHandler(sys.stdout)
    to_terminal.setLevel(logging.INFO)
    log.handlers[:] = [to_terminal, logging.handlers.MemoryHandler(1000, flushLevel=math.inf)]
    log.setLevel(logging.DEBUG)
    logging.raiseExceptions = False  # a full disk is told once, not with every line
    log.propagate = False


def log_to(folder):
    """Log to `log.txt` in the run's folder, with the time."""
    folder.mkdir(parents=True, exist_ok=True)
    to_file = logging.FileHandler(folder / "log.txt")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    for waiting in [handler for handler in log.handlers if isinstance(handler, logging.handlers.MemoryHandler)]:
        log.removeHandler(waiting)
        waiting.setTarget(to_file)
        waiting.close()
    log.addHandler(to_file)


def begin_writing(folder, part=""):
    """Claim the run's folder, or a part of it, and log there. To be called when all input has been found good."""
    claim(folder, part)
    log_to(folder)


def tell_if_interrupted(saved):
    """Have the line that Ctrl-C or SIGTERM ends with say what is saved: `saved` is called then and returns text."""
    run.saved = saved


class Terminated(KeyboardInterrupt):
    """SIGTERM, which a scheduler sends before it kills, is treated as Ctrl-C is."""


def terminate(signum, frame):
    raise Terminated


def run(main, parse_args):
    """Run a script: a user's mistake ends in one line on stderr and exit code 2, Ctrl-C in 130, SIGTERM in 143.

    So does an error of the file system (a full disk, a folder that is read-only or gone), which the user has to mend, and
    a lack of memory.
    """
    signal.signal(signal.SIGTERM, terminate)
    start_logging()
    tell_if_interrupted(lambda: "nothing is lost that was saved before")
    name = Path(sys.argv[0]).name
    again = "the same command"
    try:
        args = parse_args()
        if getattr(args, "restart", False):
            again += " without --restart"
        main(args)
    # What TensorFlow raises when memory lacks cannot be imported here.
    except Exception as error:
        lacking = isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError"
        if not isinstance(error, (UserError, OSError)) and not lacking:
            raise
        if not isinstance(error, UserError):
            log.debug("where it happened", exc_info=True)  # to log.txt alone
        message = "out of memory: try a smaller --batch_size" if lacking else " ".join(str(error).split())
        print(f"{name}: error: {message}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        try:
            saved = run.saved()
        except (UserError, OSError) as error:  # the folder may be gone
            saved = f"what is saved cannot be read ({error})"
        print(f"{name}: interrupted; {saved}: {again} goes on from there", file=sys.stderr)
        sys.exit(143 if isinstance(stop, Terminated) else 130)
