"""Show that this project computes what diffusers computes, from weights of diffusers and of the original layout, and back.

    python parity/run_diffusers.py [--tmp FOLDER] [--keep] [--peer PYTHON] [--backbones sd1 sd2]

Everything runs on the processor in float32, one process at a time; diffusers in an environment of its own, which `make
bench` uses too. For each backbone: diffusers_side.py, our_diffusers_side.py, our_export.py, run_card.py. Exit code 1:
something differs. It takes 13 GB of disk and 9 GB of memory.
"""

import argparse
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

from run import HERE, run, step, temporary_folder

sys.path.insert(0, str(HERE.parent))

from bench.environment import peer_python  # noqa: E402

DISK_NEEDED = 13  # GB


def parse_args():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--tmp", type=Path, help="make the temporary folder in this one (the system's)")
    parser.add_argument("--keep", action="store_true", help="leave the temporary folder")
    parser.add_argument("--peer", type=Path, help="a Python with torch and diffusers (else .venv-peer is made)")
    parser.add_argument("--backbones", nargs="+", default=["sd1", "sd2"], choices=["sd1", "sd2"])
    args = parser.parse_args()
    free = shutil.disk_usage(args.tmp or tempfile.gettempdir()).free / 1e9
    if free < DISK_NEEDED:
        parser.error(f"{DISK_NEEDED} GB of disk are needed, {free:.1f} are free: name another folder by --tmp")
    return args


def compare(args, folder, environment):
    """All steps for each backbone. Returns the exit code."""
    peer = str(args.peer or peer_python() or "")
    if not peer:
        return "diffusers cannot be installed"
    codes = []
    for name in args.backbones:
        place = folder / name
        place.mkdir()
        with step(f"{name}: diffusers makes random weights, saves them both ways, and computes"):
            if run([peer, HERE / "diffusers_side.py", place, name], environment):
                return "the side of diffusers failed"
        with step(f"{name}: our side, from the folder and from the file"):
            for job in ("folder", "file", "numerics", "control"):
                codes += [run([sys.executable, HERE / "our_diffusers_side.py", place, name, job], environment)]
        (place / "original.safetensors").unlink()
        with step(f"{name}: an export of ours"):
            codes += [run([sys.executable, HERE / "our_export.py", place, name], environment)]
        with step(f"{name}: the example of its card, run by diffusers"):
            codes += [run([peer, HERE / "run_card.py", place], environment)]
        shutil.rmtree(place, ignore_errors=args.keep)
    return max(codes)


def main():
    args = parse_args()
    started = time.time()
    with temporary_folder(args.tmp, args.keep) as folder:
        environment = {
            **os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_HOME": str(folder),
            "TMPDIR": str(folder), "HF_HUB_OFFLINE": "1", "DIFFUSERS_VERBOSITY": "error",
        }  # fmt: skip
        result = compare(args, folder, environment)
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6  # from kB
    print(f"{time.time() - started:.0f} s on {os.cpu_count()} cores, at most {memory:.1f} GB of memory")
    return result


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
