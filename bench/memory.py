"""Memory of loading one's own data: python -m bench.memory [COUNT] (100,000 images of 32 px, as a folder and as npz)."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

SIDE, CLASSES = 32, 10


def write_folder(folder, count):
    rng = np.random.default_rng(0)
    for label in range(CLASSES):
        (folder / f"class{label}").mkdir(parents=True)
        for i in range(count // CLASSES):
            pixels = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"class{label}" / f"{i:06d}.png", compress_level=1)


def write_npz(path, count, channels):
    rng, shares = np.random.default_rng(0), {"train": count * 7 // 10, "val": count // 10, "test": count // 5}
    arrays = {f"{s}_images": rng.integers(0, 256, (n, SIDE, SIDE, *channels), np.uint8) for s, n in shares.items()}
    np.savez(path, **arrays, **{f"{s}_labels": np.arange(n) % CLASSES for s, n in shares.items()})


def memory(name):
    """VmRSS or VmHWM (its peak) of this process, MiB; Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def measure(path, root):
    """Print the peak of memory above that after the imports, as a share of the arrays."""
    import sklearn.model_selection  # noqa: F401  what is imported is not what is loaded

    from Data.loaders import load_splits
    from Data.registry import dataset_spec
    from Experiment.paths import Experiment

    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, started = memory("VmRSS"), time.time()
    spec = dataset_spec(path)
    splits = load_splits(spec, "unused", 1, spec.resolution, Experiment(root, "1", spec.name))
    peak = memory("VmHWM") - before
    arrays = sum(split.images.nbytes + split.labels.nbytes for split in splits) / 2**20
    seconds = time.time() - started
    print(f"{path.name}: arrays {arrays:.0f} MiB, peak {peak:.0f} MiB, {peak / arrays:.2f}, {seconds:.0f} s")


def main(count):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_folder(folder / "folder", count)
        write_npz(folder / "rgb.npz", count, (3,))
        write_npz(folder / "grey.npz", count, ())
        for name in ("folder", "folder", "rgb.npz", "grey.npz"):  # the folder again: with its split on record
            subprocess.run([sys.executable, "-m", "bench.memory", str(folder / name), str(folder / "root")], check=True)


if __name__ == "__main__":
    argument = sys.argv[1] if len(sys.argv) > 1 else "100000"
    main(int(argument)) if argument.isdigit() else measure(Path(argument), sys.argv[2])
