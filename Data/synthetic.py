"""Synthetic datasets on disk: a tree of PNGs in the published form, and the manifest that describes it."""

import hashlib
import io
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from Data.loaders import read_images
from Experiment.errors import UserError
from Experiment.files import read_json, write_json
from Experiment.locks import partial_path
from Experiment.paths import size_from_name
from Experiment.randomness import random_stream

MANIFEST = "manifest.json"
WAITING_WRITES = 512  # bound of the queue between sampler and disk


def balanced_counts(total, num_classes):
    """How many images each class gets: the remainder of the division goes to the first classes, one each."""
    return [total // num_classes + (label < total % num_classes) for label in range(num_classes)]


def class_folder(folder, label):
    return folder / f"class_{label:02d}"


def image_file(folder, label, index):
    return class_folder(folder, label) / f"img_{index}.png"


class SyntheticWriter:
    """Writes images as they come, on a few threads with a bounded queue, and the manifest when all are there.

    Image n is the (n // C)th of class n % C, of C classes.

    Args:
        folder: Folder of the dataset.
        counts: Number of images of each class.
        block: Images that are computed together: shards are made of whole blocks.
    """

    def __init__(self, folder, counts, block=1):
        self.folder, self.counts, self.block = Path(folder), counts, block
        self.pool = ThreadPoolExecutor(max(2, os.cpu_count() // 2))
        self.waiting = deque()
        self.hashes = {}

    def begin(self):
        """Make the class folders. Later ones are not made: a folder that is deleted in mid-run is an error."""
        for label in range(len(self.counts)):
            class_folder(self.folder, label).mkdir(parents=True, exist_ok=True)

    def place(self, number):
        """Label and index of an image."""
        index, label = divmod(int(number), len(self.counts))
        return label, index

    def shard(self, shard=(1, 1)):
        """Numbers, int64 (n,), ascending, of the images of a shard (I, N): the Ith of N equal runs of blocks."""
        counts = np.array(self.counts)
        numbers = np.arange(counts.max() * len(counts))
        numbers = numbers[numbers // len(counts) < counts[numbers % len(counts)]]
        blocks = -(-(counts.max() * len(counts)) // self.block)
        first, last = (blocks * i // shard[1] * self.block for i in (shard[0] - 1, shard[0]))
        return numbers[(numbers >= first) & (numbers < last)]

    def missing(self, shard=(1, 1)):
        """Numbers, int64 (n,), ascending, of the images of a shard that are not there yet."""
        return np.array([n for n in self.shard(shard) if not image_file(self.folder, *self.place(n)).exists()], int)

    def progress(self, shard=(1, 1)):
        """How many images of a shard are there, and how many it has."""
        whole = len(self.shard(shard))
        return whole - len(self.missing(shard)), whole

    def write(self, number, image):
        """Queue one image uint8 (H, W, 3); waits only when the disk is far behind."""
        self.waiting.append(self.pool.submit(self._save, *self.place(number), image))
        while len(self.waiting) > WAITING_WRITES:
            self.waiting.popleft().result()

    def _save(self, label, index, image):
        path = image_file(self.folder, label, index)
        partial = partial_path(path)
        memory = io.BytesIO()
        # Level 1 is several times faster than the default, for a few per cent of size.
        Image.fromarray(image).save(memory, format="PNG", compress_level=1)
        self.hashes[label, index] = hashlib.sha256(memory.getbuffer()).digest()
        try:
            with open(partial, "wb") as file:
                file.write(memory.getbuffer())
                file.flush()
                os.fsync(file.fileno())  # else a power cut may leave an empty file under the final name
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def drain(self):
        """Wait for the queue; an error of a writing thread is raised here."""
        while self.waiting:
            self.waiting.popleft().result()

    def finish(self, settings):
        """Write the manifest: settings, counts and, for each class, a hash of its files' hashes."""
        self.drain()
        digests = []
        for label, count in enumerate(self.counts):
            digest = hashlib.sha256()
            for index in range(count):
                known = self.hashes.get((label, index))
                digest.update(known or hashlib.sha256(image_file(self.folder, label, index).read_bytes()).digest())
            digests.append(digest.hexdigest())
        write_json(
            self.folder / MANIFEST, {"total": sum(self.counts), "counts": self.counts, "sha256": digests, **settings}
        )

    def close(self):
        self.pool.shutdown(cancel_futures=True)


def image_side(files):
    """Side of the stored images, px, from the first of lists of files."""
    with Image.open(next(of_class[0] for of_class in files if of_class)) as image:
        return image.width


def sort_by_index(paths):
    """Image files in the order of their numbers, then names: img_2 before img_10."""
    return sorted(paths, key=lambda p: (int(p.stem.split("_")[-1]) if p.stem.split("_")[-1].isdigit() else 0, p.name))


def synthetic_files(folder, num_classes):
    """The image files of a synthetic dataset: one list a class, in label order.

    Raises:
        UserError: Class folders are missing or too many, or the manifest counts other images than there are.
    """
    folder = Path(folder)
    names = {p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")}
    expected = {class_folder(folder, label).name for label in range(num_classes)}
    if names != expected:
        difference = sorted(names ^ expected)
        raise UserError(
            f"{folder} must hold the folders class_00..class_{num_classes - 1:02d}. Missing or too many: "
            f"{', '.join(difference[:10])}"
        )
    files = [sort_by_index(class_folder(folder, label).glob("[!.]*.png")) for label in range(num_classes)]
    if (folder / MANIFEST).exists():
        counts = read_json(folder / MANIFEST).get("counts")
        if counts != [len(of_class) for of_class in files]:
            raise UserError(
                f"{folder / MANIFEST} counts {counts} images a class, but there are {[len(f) for f in files]}."
            )
    return files


def find_synthetic(root, num_classes, wanted):
    """The smallest complete synthetic dataset below `root` that has at least `wanted` images.

    A folder counts by its manifest; a published one, which has none, by its files.

    Raises:
        UserError: There is none, or two of the same size fit; it names those that are there.
    """
    sizes = {}
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if (folder / MANIFEST).exists():
            sizes[folder] = read_json(folder / MANIFEST).get("total")
            if not isinstance(sizes[folder], int):
                raise UserError(f"{folder / MANIFEST} says no total: the folder is not what generate_dataset.py made.")
        elif size_from_name(folder.name) and any(folder.glob("class_*")) and not (folder / "generation.json").exists():
            sizes[folder] = sum(len(files) for files in synthetic_files(folder, num_classes))
    fitting = {folder: size for folder, size in sizes.items() if size >= wanted}
    best = [folder for folder, size in fitting.items() if size == min(fitting.values())]
    if len(best) == 1:
        return best[0]
    there = ", ".join(f"{folder.name} ({size} images)" for folder, size in sizes.items()) or "none"
    if best:
        raise UserError(
            f"several synthetic datasets fit: {', '.join(f.name for f in best)}; choose with --synthetic_dir."
        )
    raise UserError(
        f"no synthetic dataset in {root} has {wanted} images. There: {there}. Run generate_dataset.py, "
        "or name a folder with --synthetic_dir."
    )


def load_synthetic(folder, num_classes, side, wanted, seed, mode="bilinear"):
    """A class-balanced subset of a synthetic dataset, drawn by seed: images uint8 (wanted, side, side, 3), labels.

    Raises:
        UserError: A class has too few images.
    """
    files = synthetic_files(folder, num_classes)
    paths, labels = [], []
    for label, count in enumerate(balanced_counts(wanted, num_classes)):
        if count > len(files[label]):
            raise UserError(f"{folder}: class {label} has {len(files[label])} images, {count} are needed.")
        chosen = random_stream(seed, "subset", label).permutation(len(files[label]))[:count]
        paths += [files[label][i] for i in sorted(chosen)]
        labels += [label] * count
    return read_images(paths, side, mode), np.array(labels, np.int32)
