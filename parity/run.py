"""Show that this project computes what the published stack computes, from that stack's own weight files.

    python parity/run.py [--tmp FOLDER] [--keep] [--python python3.11]

It makes a second environment with the published stack in a temporary folder, lets published_side.py save full-size
`sd1` parts with random weights and what they compute, and lets our_side.py load and compare them, both on the
processor in float32. The folder is removed whatever happens. Exit code 1: something differs.

It takes 6 GB of disk and as much memory, and is for Linux on x86-64: elsewhere TensorFlow 2.13.1 is other packages.
"""

import argparse
import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
DISK_NEEDED = 7  # GB; 6 are used
PUBLISHED_PYTHON = "3.11"


def parse_args():
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tmp", type=Path, help="make the temporary folder in this one (the system's)")
    parser.add_argument("--keep", action="store_true", help="leave the temporary folder")
    parser.add_argument("--python", help="the published stack's Python 3.11 (this one, or python3.11)")
    args = parser.parse_args()
    if args.tmp and not args.tmp.is_dir():
        parser.error(f"--tmp {args.tmp} is not a folder")
    args.python = args.python or (sys.executable if is_published_python(sys.executable) else "python3.11")
    if not is_published_python(args.python):
        parser.error(f"--python must name a Python {PUBLISHED_PYTHON} for the published stack; {args.python} is none")
    free = shutil.disk_usage(args.tmp or tempfile.gettempdir()).free / 1e9
    if free < DISK_NEEDED:
        parser.error(f"{DISK_NEEDED} GB of disk are needed, {free:.1f} are free: name another folder by --tmp")
    return args


def is_published_python(python):
    show_version = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        found = subprocess.run([python, "-c", show_version], capture_output=True, text=True)
    except OSError:
        return False
    return found.stdout.strip() == PUBLISHED_PYTHON


@contextlib.contextmanager
def temporary_folder(parent, keep):
    """A new folder, removed at the end, by an error, by Ctrl-C and when the process is told to stop."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    folder = Path(tempfile.mkdtemp(prefix="parity-", dir=parent)).resolve()
    try:
        yield folder
    finally:
        used = sum(path.lstat().st_blocks for path in folder.rglob("*")) * 512 / 1e9
        print(f"disk used: {used:.1f} GB; {'kept in' if keep else 'removed'} {folder}", flush=True)
        if not keep:
            shutil.rmtree(folder)


@contextlib.contextmanager
def step(what):
    print(f"== {what}", flush=True)
    started = time.time()
    yield
    print(f"   {time.time() - started:.0f} s\n", flush=True)


def run(command, environment, quiet=False):
    """Run a command. Returns its exit code; a quiet one is shown only when it fails."""
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True} if quiet else {}
    # In a session of its own: what it has started must end with it, or would go on writing to the folder.
    with subprocess.Popen(command, env=environment, start_new_session=True, **output) as process:
        try:
            shown, _ = process.communicate()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode and quiet:
        print(shown)
    return process.returncode


def compare(args, folder):
    """Both sides. Returns the exit code."""
    # Graphics cards may multiply in TensorFloat-32. Keras's settings and what pip unpacks belong in the folder too.
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "KERAS_HOME": str(folder),
        "TMPDIR": str(folder),
    }
    # KerasCV 0.6.1 takes a backend for a wish to run on Keras Core, and a foreign path brings foreign packages.
    foreign = ("KERAS_BACKEND", "PYTHONPATH", "PYTHONHOME")
    published = {name: value for name, value in environment.items() if name not in foreign}

    python = str(folder / "published" / "bin" / "python")
    with step("the published stack"):
        install = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps"]
        for command in ([args.python, "-m", "venv", folder / "published"], [*install, "-r", HERE / "requirements.txt"]):
            if run(command, published, quiet=True):
                return "the published stack cannot be installed"
    with step("the published side: random weights, saved, and what they compute"):
        if run([python, HERE / "published_side.py", folder], published):
            return "the published side failed"
    with step("our side: the same files, loaded as released checkpoints are"):
        if code := run([sys.executable, HERE / "our_side.py", folder], environment):
            return code
    with step("the published training step, in a small network of the same blocks"):
        if run([python, HERE / "published_training.py", folder], published):
            return "the published training failed"
    with step("our training step, from the same weights and numbers"):
        return run([sys.executable, HERE / "our_training.py", folder], environment)


def main():
    args = parse_args()
    started = time.time()
    with temporary_folder(args.tmp, args.keep) as folder:
        result = compare(args, folder)
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6  # from kB
    print(f"{time.time() - started:.0f} s on {os.cpu_count()} cores, at most {memory:.1f} GB of memory")
    return result


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
