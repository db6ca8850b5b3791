"""A script as a process: signals, logging, one-line errors and exit codes. Nothing here is needed to call a stage."""

import _thread
import contextlib
import logging
import logging.handlers
import math
import re
import signal
import sys
import tempfile
import threading
import traceback
from pathlib import Path

from cli.startup import import_keras
from Experiment.errors import UserError, exit_code
from Experiment.locks import claimed
from Experiment.progress import GOES_ON, INTERRUPTED, close_bars, write_above_bars
from Experiment.records import software
from Experiment.text import one_line

NO_ROOM = "RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "CUDA_ERROR_OUT_OF_MEMORY", "ALLOC_FAILED"

log = logging.getLogger("experiment")

AGAIN = 5.0  # seconds until a stop that was swallowed is raised again


class TerminalHandler(logging.StreamHandler):
    """Writes lines to the terminal, above the bars that it may show."""

    def emit(self, record):
        with write_above_bars(self.stream):
            super().emit(record)


def start_logging():
    """Log plain lines to the terminal. `logging_to` writes them to a file too, including those that came before it."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # else a line with a letter that it lacks would be lost
    to_terminal = TerminalHandler(sys.stdout)
    to_terminal.setLevel(logging.INFO)
    log.handlers[:] = [to_terminal, logging.handlers.MemoryHandler(1000, flushLevel=math.inf)]
    log.setLevel(logging.DEBUG)
    logging.raiseExceptions = False  # a full disk is reported once, not with every line
    log.propagate = False


@contextlib.contextmanager
def logging_to(folder):
    """Log to `log.txt` in the run's folder within the block, with the time; an error that ends it too."""
    folder.mkdir(parents=True, exist_ok=True)
    to_file = logging.FileHandler(folder / "log.txt", encoding="utf-8", errors="backslashreplace")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    for waiting in [handler for handler in log.handlers if isinstance(handler, logging.handlers.MemoryHandler)]:
        log.removeHandler(waiting)
        waiting.setTarget(to_file)
        waiting.close()
    log.addHandler(to_file)
    try:
        yield
    except Exception as error:
        if not isinstance(error, UserError):
            log.debug("where it happened", exc_info=True)  # to log.txt alone
            error.logged = True
        raise
    finally:
        log.removeHandler(to_file)
        to_file.close()


@contextlib.contextmanager
def telling_what_is_saved(saved, again=GOES_ON):
    """Let the line that Ctrl-C or SIGTERM ends with say what is saved: `saved` is called then and returns text.

    Args:
        saved: The function.
        again: What the same command does when it is given again.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.saved, stop.again = saved, again
        raise


@contextlib.contextmanager
def writing_in(folder, part="", saved=lambda: "nothing is lost that was saved before"):
    """Claim the run's folder, or a part of it, and log there. To be entered when all input has been found good."""
    with claimed(folder, part), logging_to(folder), telling_what_is_saved(saved):
        tell_software(folder)
        yield


def tell_software(folder):
    """Note in the log of a run's folder which code and packages it is of; warn where those of the run before it were others.

    What that one has left half done goes on, and is then of both.
    """
    said = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
    before, now = re.findall(r" software: (.*)$", said, re.MULTILINE), software()
    if before and before[-1] != now:
        log.warning("the run before this one in %s was of other code or packages: %s (now %s)", folder, before[-1], now)
    if before[-1:] != [now]:
        log.debug("software: %s", now)  # to log.txt alone


class Terminated(KeyboardInterrupt):
    """SIGTERM, which a scheduler sends before it kills, and a terminal that is closed are treated as Ctrl-C is."""


class Stops:
    """Ctrl-C, SIGTERM and SIGHUP (unless nohup has it ignored) as exceptions that end the run within the block, whatever library is at work.

    Keras has a dozen bare `except:` on the way through a network's layers, in each of which a Ctrl-C vanishes. So it is
    raised again until it has reached the end of the block.
    """

    def __enter__(self):
        self.timer = None
        signals = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
            signals.append(signal.SIGHUP)
        self.before = {signum: signal.signal(signum, self.stop) for signum in signals}

    def stop(self, signum, frame):
        sys.unraisablehook = lambda unraisable: None  # contexts of TensorFlow that are torn apart have nothing to tell
        self.over()
        self.timer = threading.Timer(AGAIN, _thread.interrupt_main, [signum])
        self.timer.daemon = True
        self.timer.start()
        raise KeyboardInterrupt if signum == signal.SIGINT else Terminated

    def over(self):
        if self.timer:
            self.timer.cancel()

    def __exit__(self, *error):
        self.over()
        for signum, handler in self.before.items():
            signal.signal(signum, handler)


def memory_flags(args):
    """The flags of a script that make it take less memory, as a message names them."""
    names = [name for name in ("gen_batch_size", "batch_size") if hasattr(args, name)]
    said = "a smaller " + " or ".join(f"--{name}" for name in names or ["batch_size"])
    if getattr(args, "train_model", None) == "dif":  # weights, gradients and Adam take the most, whatever the batch
        savers = {"lora_rank": "--lora_rank 4", "gradient_checkpointing": "--gradient_checkpointing"}
        said = ", ".join([*(flag for name, flag in savers.items() if getattr(args, name, True) in (None, False)), said])
    return said


def lacks_memory(error):
    """Whether an error says that memory is short. What TensorFlow raises then has many names, and cannot be imported here.

    On a GPU a convolution or a matrix product, for which a library finds no room, ends in `NotFoundError` or `InternalError`.
    """
    of_tensorflow = type(error).__module__.startswith("tensorflow") and any(said in str(error) for said in NO_ROOM)
    return isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError" or of_tensorflow


def write_traceback(error):
    """Where an error happened that no log.txt holds, as a file among the system's temporary ones. Returns the words for it."""
    try:
        with tempfile.NamedTemporaryFile("w", prefix="error-", suffix=".txt", delete=False, errors="backslashreplace") as file:
            file.writelines(traceback.format_exception(error))
    except OSError:  # that disk is full too: the error's own line is what counts
        return ""
    return f" (where it happened: {file.name})"


def run(stage, parse_args, plan, starts_keras=True):
    """Run a script: a user's mistake ends in one line on stderr and exit code 2, Ctrl-C in 130, SIGTERM in 143.

    So does an error of the file system (a full disk, a folder that is read-only or gone), which the user has to mend, and
    a lack of memory. What may be over when the command is given again, a database that is away for one, has code 75.

    Args:
        stage: Function of the arguments and of what `plan` has found: the work.
        parse_args: Function that returns the arguments.
        plan: Function of the arguments that looks at what is there before anything heavy is loaded. What it returns has
            a member `done`: a line where there is nothing to do.
        starts_keras: Whether the stage needs Keras; the pipeline, which starts other processes, does not.
    """
    start_logging()
    name, known = Path(sys.argv[0]).name, None
    try:
        with Stops():
            args = parse_args()
            known = plan(args)
            if known.done:
                print(known.done)
            else:
                if starts_keras:
                    import_keras(args)
                stage(args, known)
    except Exception as error:
        lacking = lacks_memory(error)
        if not isinstance(error, (UserError, OSError)) and not lacking:
            raise
        close_bars()
        message = f"out of memory: try {memory_flags(args)}" if lacking else one_line(error)
        if not (isinstance(error, UserError) or lacking or hasattr(error, "logged")):
            message += write_traceback(error)
        print(f"{name}: error: {message}", file=sys.stderr)
        sys.exit(exit_code(error))
    except KeyboardInterrupt as stop:
        with contextlib.suppress(OSError):  # a terminal that is gone
            close_bars()
        try:
            saved = getattr(stop, "saved", lambda: "nothing is lost that was saved before")()
        except Exception as error:  # the folder may be gone, or the database: what has ended the stage is told
            saved = f"what is saved cannot be read ({error})"
        again = "the same command" + (" without --restart" if getattr(known, "thrown_away", False) else "")
        then = getattr(stop, "again", GOES_ON)
        with contextlib.suppress(OSError):
            print(f"{name}: {INTERRUPTED}{saved}: {again} {then}", file=sys.stderr)
        sys.exit(143 if isinstance(stop, Terminated) else 130)
