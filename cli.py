"""What the four command lines share: flag types, common flags, quiet start-up, one-line errors."""

import argparse
import difflib
import logging
import logging.handlers
import math
import os
import re
import signal
import sys
import tempfile
from pathlib import Path

from Data.registry import DATASETS
from experiment import REPOSITORY, UserError, claim

log = logging.getLogger("experiment")

BACKBONE_NAMES = ("sd1", "sd2", "mini")
CLASSIFIER_BATCH_SIZE = 256
PRECISIONS = ("auto", "float32", "mixed_bfloat16")


def integer(minimum, maximum=1_000_000):
    """An argparse type: a whole number in a range."""

    def parse(text):
        value = int(text)
        if not minimum <= value <= maximum:
            raise argparse.ArgumentTypeError(f"must be in {minimum}..{maximum}, received {text}")
        return value

    parse.__name__ = "whole number"
    return parse


def number(minimum, maximum=math.inf, above=False):
    """An argparse type: a finite number of at least (or, with `above`, more than) the minimum."""

    def parse(text):
        value = float(text)
        if not math.isfinite(value) or value < minimum or value > maximum or (above and value == minimum):
            bounds = f"{'more than' if above else 'at least'} {minimum:g}"
            bounds += f" and at most {maximum:g}" if maximum < math.inf else ""
            raise argparse.ArgumentTypeError(f"must be {bounds}, received {text}")
        return value

    parse.__name__ = "number"
    return parse


def boolean(text):
    """An argparse type for the published True/False flags."""
    if text.lower() in ("true", "1", "yes"):
        return True
    if text.lower() in ("false", "0", "no"):
        return False
    raise argparse.ArgumentTypeError(f"must be True or False, received {text}")


def experiment_name(text):
    """An argparse type: a name that is safe as a folder."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", text):
        raise argparse.ArgumentTypeError(
            f"must be 1 to 64 letters, digits, '_', '-' or '.', beginning with a letter or digit, received {text!r}"
        )
    return text


def dataset_name(text):
    """An argparse type: a name of the registry, or the path of an image folder or npz file."""
    if text in DATASETS or (text and Path(text).exists()):
        return text
    near = difflib.get_close_matches(text, DATASETS, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise argparse.ArgumentTypeError(
        f"must be one of {', '.join(DATASETS)}, or the path of an image folder or .npz file, received {text!r}{hint}"
    )


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage is what --help is for."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())} (--help lists the flags)\n")


def new_parser(doc, exp_required=False):
    """A parser with the flags that all four scripts take."""
    parser = Parser(description=doc.strip().splitlines()[0])
    parser.add_argument("--dataset", default="cifar10", type=dataset_name, metavar="NAME",
                        help=f"{', '.join(DATASETS)}, or the path of your own image folder or .npz file (cifar10)")  # fmt: skip
    parser.add_argument("--exp", required=exp_required, default="0001", type=experiment_name,
                        help="identifier of the experiment, names its folders" + ("" if exp_required else " (0001)"))  # fmt: skip
    parser.add_argument("--backbone", default="sd1", choices=BACKBONE_NAMES, help="pretrained Stable Diffusion (sd1)")
    parser.add_argument("--root", default=REPOSITORY, type=Path, help="folder of all outputs (the repository)")
    parser.add_argument("--data_dir", type=Path, help="folder with the dataset's official files (ROOT/Data/Real)")
    parser.add_argument("--seed", default=1234, type=integer(0, 2**63 - 1), help="seed of everything random (1234)")
    parser.add_argument("--deterministic", action="store_true",
                        help="the same bits in every run on a GPU too, at a cost; on a processor they are so anyway")  # fmt: skip
    parser.add_argument("--skip_broken", action="store_true", help="leave broken images of an image folder out")
    return parser


def add_model_flags(parser):
    """The flags of the three scripts that run the diffusion model."""
    parser.add_argument("--precision", default="auto", choices=PRECISIONS,
                        help="arithmetic of the UNet; auto: mixed_bfloat16 where the hardware has it (auto)")  # fmt: skip
    parser.add_argument("--weights_dir", type=Path, help="folder with the backbone's weight files (else downloaded)")


def add_spacing_flag(parser):
    parser.add_argument("--timestep_spacing", default="leading", choices=["leading", "linspace"],
                        help="leading as published, linspace as in keras-cv 0.9 (leading)")  # fmt: skip


def check_batch_size(args, default, images):
    """Refuse a training batch larger than the dataset. The default may be: a small dataset is then one batch.

    Raises:
        UserError: Another batch size than the default is more than the number of training images.
    """
    if default != args.batch_size > images:
        raise UserError(f"argument --batch_size: {args.batch_size} is more than the {images} training images.")


def add_classifier_flags(parser):
    """The flags of the two scripts that train a classifier on generated images."""
    parser.add_argument("--batch_size", default=CLASSIFIER_BATCH_SIZE, type=integer(1), help="images a step of the classifier (256)")
    parser.add_argument("--classifier", default="resnet20", choices=["resnet20", "resnet20_16"],
                        help="resnet20 as published (64 filters), or resnet20_16, a quarter as wide (resnet20)")  # fmt: skip
    parser.add_argument("--resize", default="bilinear", choices=["bilinear", "antialias"],
                        help="how generated images shrink to the dataset's size (bilinear, as published)")  # fmt: skip


def finish_args(parser, argv=None):
    """Parse, fill in what depends on other flags, and check what can be checked before anything heavy is loaded."""
    args = parser.parse_args(argv)
    args.root = args.root.expanduser().resolve()
    args.data_dir = (args.data_dir or args.root / "Data" / "Real").expanduser().resolve()
    if args.dataset not in DATASETS:
        args.dataset = str(Path(args.dataset).expanduser().resolve())
    if getattr(args, "weights_dir", None):
        args.weights_dir = args.weights_dir.expanduser().resolve()
        if not args.weights_dir.is_dir():
            parser.error(f"argument --weights_dir: there is no folder {args.weights_dir}")
    return args


def share_cores(backbone):
    """Let the mini backbone use half of the cores for an operation, and run two operations at a time.

    Its operations are too small to be shared by all cores: so it trains and generates a quarter faster (measured on 2
    cores). To be called before TensorFlow is imported; what the user has set stays.
    """
    if backbone == "mini":
        os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(max(1, (os.cpu_count() or 1) // 2)))


# For glibc's malloc: arrays from 256 KB on go back to the system when they are freed; one heap for all threads; pages of
# 2 MB where the system allows them, since fresh memory for every array is a page fault every 4 KB else.
GIVE_BACK = "glibc.malloc.mmap_threshold=262144:glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1"


def give_memory_back():
    """Let TensorFlow, which is not imported yet, give memory back as soon as it is free.

    Its own allocator keeps what it once had, and so does glibc's malloc with arrays below a threshold that grows to 32 MB.
    glibc reads its settings when a process begins, so this one begins again, under the same number. Elsewhere than on
    Linux that is left out. What the user has set stays.
    """
    os.environ.setdefault("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", "1")
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = GIVE_BACK
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def import_keras(spare_memory=False):
    """Import Keras and find the devices without the notes that TensorFlow writes; if it fails, they are shown.

    They are written by C++ code straight to file descriptor 2 before any log level counts. Later ones are left out, those
    that it calls errors too: it says so of an operation that its library lacks, and what does go wrong is also raised.

    Args:
        spare_memory: Whether to take the least memory. The process may begin again: see `give_memory_back`.
    """
    if spare_memory:
        give_memory_back()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryFile() as notes:
        terminal = os.dup(2)
        os.dup2(notes.fileno(), 2)
        try:
            import keras

            if keras.backend.backend() == "tensorflow":
                import tensorflow as tf

                for gpu in tf.config.list_physical_devices("GPU"):
                    tf.config.experimental.set_memory_growth(gpu, True)
                if spare_memory:  # rewriting sd1's training graph takes a minute and makes no step faster
                    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
                    forget_where_operations_come_from()
        except BaseException:
            notes.seek(0)
            os.write(terminal, notes.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
    return keras


def forget_where_operations_come_from():
    """Let TensorFlow keep no call stack for each operation of a graph.

    It only quotes them in error messages, and those of sd1's training step are 0.6 GB. There is no public switch.
    """
    from tensorflow.python.framework import ops

    ops.pywrap_tf_session.TF_SetOpStackTrace = lambda operation, stack: None


def make_repeatable(args):
    """Seed Keras and, with --deterministic, take only operations whose results do not depend on timing.

    On a processor none of those that the project uses does: there the flag changes nothing but the time.
    """
    import keras

    keras.utils.set_random_seed(args.seed % 2**32)
    if args.deterministic and keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()


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
