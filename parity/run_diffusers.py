"""Show that this project computes what diffusers computes, from weights of diffusers and of the original layout, and back.

    python parity/run_diffusers.py [--shapes sd1 sd2 sd2-v] [--tiny] [--tmp FOLDER] [--keep] [--peer PYTHON]

Everything runs on the processor in float32, one process at a time; diffusers in an environment of its own, which `make
bench` uses too. The shapes are those of Stable Diffusion 1.5, 2.1-base and 2.1 (which predicts v), in full size; with --tiny
of the same structure, in two levels. For each in turn: diffusers_side.py, our_diffusers_side.py, our_export.py, run_card.py;
its files are removed before the next one begins. At the end a line for each. Exit code 1: something differs.
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
from shapes import FULL, SHAPES

sys.path.insert(0, str(HERE.parent))

from bench.environment import peer_python  # noqa: E402

DISK_NEEDED = 13  # GB for a shape in full size; all of them at once with --keep
DISK_OF_TINY = 1


def parse_args():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=list(FULL), choices=list(FULL), help="which shapes (all)")
    parser.add_argument("--tiny", action="store_true", help="small networks: to try the comparison itself in minutes")
    parser.add_argument("--tmp", type=Path, help="make the temporary folder in this one (the system's)")
    parser.add_argument("--keep", action="store_true", help="leave the temporary folder, of which each shape fills one")
    parser.add_argument("--peer", type=Path, help="a Python with torch, diffusers and peft (else .venv-peer is made)")
    args = parser.parse_args()
    if args.tmp and not args.tmp.is_dir():
        parser.error(f"--tmp {args.tmp} is not a folder")
    free = shutil.disk_usage(args.tmp or tempfile.gettempdir()).free / 1e9
    needed = (DISK_OF_TINY if args.tiny else DISK_NEEDED) * (len(args.shapes) if args.keep else 1)
    if free < needed:
        parser.error(f"{needed} GB of disk are needed, {free:.1f} are free: name another folder by --tmp")
    return args


def compare_shape(shape, place, peer, environment):
    """All steps for one shape. Returns {what was compared: its exit code}."""
    name, found = shape.name, {}
    with step(f"{name}: diffusers makes random weights, saves them both ways, and computes"):
        found["diffusers"] = run([peer, HERE / "diffusers_side.py", place, name], environment)
    if found["diffusers"]:
        return found
    with step(f"{name}: our side, from the folder and from the file"):
        for job in ("folder", "file", "numerics", "control"):
            found[job] = run([sys.executable, HERE / "our_diffusers_side.py", place, name, job], environment)
    (place / "original.safetensors").unlink()
    with step(f"{name}: exports of ours, of a whole UNet and of low-rank updates"):
        found["exports"] = run([sys.executable, HERE / "our_export.py", place, name], environment)
    with step(f"{name}: the examples of their cards, run by diffusers"):
        for export in ("export", "updates") if not found["exports"] else ():
            found[f"card of {export}"] = run([peer, HERE / "run_card.py", place, export], environment)
    return found


def compare(args, folder, environment):
    """Compare each shape, and print a line for each. Returns the exit code."""
    peer = str(args.peer or peer_python() or "")
    if not peer:
        return "diffusers cannot be installed"
    lines, failed = [], False
    for name in args.shapes:
        shape, started = SHAPES[f"tiny-{name}" if args.tiny else name], time.time()
        place = folder / shape.name
        place.mkdir()
        found = compare_shape(shape, place, peer, environment)
        if not args.keep:
            shutil.rmtree(place)
        bad = [what for what, code in found.items() if code]
        failed |= bool(bad)
        said = f"NOT the same: {', '.join(bad)}" if bad else f"the same: {', '.join(found)}"
        lines.append(f"{shape.name} ({shape.prediction_type}), {time.time() - started:.0f} s: {said}")
    print("\n".join(lines), flush=True)
    return int(failed)


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
