"""Synthetic datasets on disk: a tree of PNGs in the published form, and the manifest that describes it."""

import hashlib
import io
import logging
import os
import re
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from Data.marking import marked, unmarked
from Data.numbering import Balanced
from Data.pictures import first_ten, in_chunks
from Experiment.errors import UserError
from Experiment.files import read_json, write_json
from Experiment.levers import levers_on
from Experiment.locks import partial_path
from Experiment.paths import size_from_name
from Experiment.records import short

log = logging.getLogger("experiment")

MANIFEST = "manifest.json"
WAITING_WRITES = 512  # bound of the queue between sampler and disk
# What images are made with, their number aside: sets that agree in it are of one recipe.
RECIPE = ("enc_epoch", "dif_epoch", "inf_steps", "ugs", "seed", "weights", "backbone", "precision", "image_size",
          "timestep_spacing")  # fmt: skip


def balanced_counts(total, num_classes):
    """How many images each class gets: the remainder of the division goes to the first classes, one each."""
    return Balanced(num_classes).counts(total)


def class_folders(folder, num_classes):
    """Paths of the class folders, whose names sort as labels do: class_00, and class_000 for more than 100 classes.

    Published folders of more than 100 classes have two digits (class_100 after class_99): one that is there stays so.
    """
    folder, digits = Path(folder), max(2, len(str(num_classes - 1)))
    if (folder / "class_00").is_dir():
        digits = 2
    return [folder / f"class_{label:0{digits}d}" for label in range(num_classes)]


def image_name(index):
    return f"img_{index}.png"


class SyntheticWriter:
    """Writes images as they come, on a few threads with a bounded queue, and the manifest when all are there.

    Args:
        folder: Folder of the dataset.
        counts: Number of images of each class.
        block: Images that are computed together: shards are made of whole blocks.
        numbering: Which image has which number, see `Data.numbering`; None: balanced.
        mark: Whether each file says that it is generated (see Data/marking.py); hashes are the same either way.
    """

    def __init__(self, folder, counts, block=1, numbering=None, mark=True):
        self.folder, self.counts, self.block, self.mark = Path(folder), counts, block, mark
        self.numbering = numbering or Balanced(len(counts))
        self.class_folders = class_folders(folder, len(counts))
        self.pool = ThreadPoolExecutor(max(2, os.cpu_count() // 2))
        self.waiting = deque()
        self.hashes = {}

    def begin(self):
        """Make the class folders. Later ones are not made: a folder that is deleted in mid-run is an error."""
        for folder in self.class_folders:
            folder.mkdir(parents=True, exist_ok=True)

    def place(self, number):
        """Label and index of an image."""
        return tuple(map(int, self.numbering.places(int(number))))

    def file(self, number):
        """Path of an image."""
        label, index = self.place(number)
        return self.class_folders[label] / image_name(index)

    def shard(self, shard=(1, 1)):
        """Numbers, int64 (n,), ascending, of the images of a shard (I, N): the Ith of N equal runs of blocks."""
        counts = np.array(self.counts)
        balanced = isinstance(self.numbering, Balanced)  # else the first images are those of these counts
        numbers = np.arange(counts.max() * len(counts) if balanced else counts.sum())
        labels, indices = self.numbering.places(numbers)
        blocks = -(-len(numbers) // self.block)
        numbers = numbers[indices < counts[labels]]
        first, last = (blocks * i // shard[1] * self.block for i in (shard[0] - 1, shard[0]))
        return numbers[(numbers >= first) & (numbers < last)]

    def missing(self, shard=(1, 1)):
        """Numbers, int64 (n,), ascending, of the images of a shard that are not there yet."""
        there = [set(os.listdir(folder)) if folder.is_dir() else () for folder in self.class_folders]
        places = ((number, *self.place(number)) for number in self.shard(shard))
        return np.array([number for number, label, index in places if image_name(index) not in there[label]], int)

    def progress(self, shard=(1, 1)):
        """How many images of a shard are there, and how many it has."""
        whole = len(self.shard(shard))
        return whole - len(self.missing(shard)), whole

    def write(self, number, image):
        """Queue one image uint8 (H, W, 3); waits only when the disk is far behind."""
        self.waiting.append(self.pool.submit(self._save, number, image))
        while len(self.waiting) > WAITING_WRITES:
            self.waiting.popleft().result()

    def _save(self, number, image):
        path = self.file(number)
        partial = partial_path(path)
        memory = io.BytesIO()
        # Level 1 is several times faster than the default, for a few per cent of size.
        Image.fromarray(image).save(memory, format="PNG", compress_level=1)
        png = memory.getvalue()
        self.hashes[self.place(number)] = hashlib.sha256(png).digest()
        try:
            with open(partial, "wb") as file:
                file.write(marked(png) if self.mark else png)
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
        """Write the manifest: settings, counts and, for each class, a hash of its files' hashes. Returns the hashes."""
        self.drain()
        files = [
            [folder / image_name(index) for index in range(n)] for folder, n in zip(self.class_folders, self.counts)
        ]
        digests = class_hashes(files, self.hashes)
        manifest = {"total": sum(self.counts), "counts": self.counts, "sha256": digests, **settings}
        write_json(self.folder / MANIFEST, manifest)
        return digests

    def close(self):
        self.pool.shutdown(cancel_futures=True)


def class_hashes(files, known=None):
    """For each class, a SHA-256 of its files' SHA-256, in their order; the mark of generated images does not count.

    Args:
        files: One list of paths a class.
        known: {(label, index): digest of a file}; the other files are read.
    """
    hashes = []
    for label, of_class in enumerate(files):
        digests = [(known or {}).get((label, index)) for index in range(len(of_class))]
        unread = [index for index, digest in enumerate(digests) if digest is None]

        def read(i, of_class=of_class, digests=digests, unread=unread):
            digests[unread[i]] = hashlib.sha256(unmarked(Path(of_class[unread[i]]).read_bytes())).digest()

        in_chunks(read, len(unread))
        hashes.append(hashlib.sha256(b"".join(digests)).hexdigest())
    return hashes


def number_in(name):
    """What image files are sorted by: their number, then their name: img_2 before img_10."""
    number = os.path.splitext(name)[0].rpartition("_")[2]
    return int(number) if number.isdecimal() else 0, name


def image_names(folder, num_classes):
    """Names of the images below the folder of a synthetic dataset, `class_00/img_0.png`: one list a class, in order.

    They are text, not paths: of 400,000 images those would take more memory than the images of 8 px.

    Raises:
        UserError: Class folders are missing or too many, or the manifest counts other images than there are.
    """
    folder, expected = Path(folder), [path.name for path in class_folders(folder, num_classes)]
    there = {p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")}
    if difference := sorted(there ^ set(expected)):
        raise UserError(
            f"{folder} must hold the folders {expected[0]}..{expected[-1]}. Missing or too many: "
            f"{', '.join(difference[:10])}"
        )
    images = []
    for name in expected:
        every = [file for file in os.listdir(folder / name) if not file.startswith(".")]
        files = [file for file in every if file.lower().endswith(".png")]
        if len(files) < len(every):
            log.warning("%s: %d files are not PNG and are not used", folder / name, len(every) - len(files))
        images.append([f"{name}/{file}" for file in sorted(files, key=number_in)])
    manifest = read_manifest(folder)
    if manifest and manifest.get("counts") != [len(of_class) for of_class in images]:
        raise UserError(
            f"{folder / MANIFEST} counts {manifest.get('counts')} images a class, but there are "
            f"{[len(of_class) for of_class in images]}: the command that made the set makes what is missing."
        )
    return images


def synthetic_files(folder, num_classes):
    """Paths of the images of a synthetic dataset: one list a class, in label order. Raises what `image_names` raises."""
    return [[Path(folder) / name for name in of_class] for of_class in image_names(folder, num_classes)]


def read_manifest(folder):
    """The manifest of a folder, None for a published one, which has none.

    Raises:
        UserError: It is not what generate_dataset.py writes.
    """
    file = Path(folder) / MANIFEST
    manifest = read_json(file) if file.exists() else None
    if manifest is not None and not isinstance(manifest.get("total"), int):
        raise UserError(f"{file} says no total: the folder is not what generate_dataset.py made.")
    return manifest


def recipe(folder):
    """What the images of a folder are made with, {setting: value}; of a published one its name without the size."""
    folder, manifest = Path(folder), read_manifest(folder)
    if manifest is None:
        return {"name": re.sub(r"^\d+(\.\d+)?k?(?=Enc|$)", "", folder.name)}
    found = {key: manifest.get(key) for key in RECIPE} | levers_on(manifest)
    if manifest.get("select_on") == "test":  # a curve of such settings is another one, and says so
        found["select_on"] = "test"
    if isinstance(found["weights"], dict):  # an earlier version has the pretrained UNet beside the one in its place
        left_out = "unet" if "dif" in found["weights"] else ""
        found["weights"] = {part: short(value) for part, value in found["weights"].items() if part != left_out}
    return found


def set_identity(folder, classes):
    """What identifies a set wherever it lies: {"sha256": hash of its content, setting: value}.

    A manifest knows settings and the hashes of its files; a published folder's files are read.

    Raises:
        UserError: It is of other classes.
    """
    manifest = read_manifest(folder) or {}
    theirs = manifest.get("classes", list(classes))
    if theirs != list(classes):
        named = first_ten(map(str, theirs), ", ") if isinstance(theirs, list) else theirs
        raise UserError(f"{folder} is of other classes: {named}. The dataset has {first_ten(classes, ', ')}.")
    return {"sha256": content_hash(folder, len(classes), manifest), **(recipe(folder) if manifest else {})}


def images_are_newer(folder, num_classes):
    """Whether an image has been written, moved or replaced after the manifest, which is written last.

    Then its hashes prove nothing. A copy that keeps times, and a move, leave a trace in the time of the last change alone.
    """

    def changed(found):
        return max(found.st_mtime_ns, found.st_ctime_ns)

    written = changed((Path(folder) / MANIFEST).stat())
    for of_class in class_folders(folder, num_classes):
        with os.scandir(of_class) as files:
            if any(changed(file.stat()) > written for file in files):
                return True
    return False


def content_hash(folder, num_classes, manifest):
    """A hash of all images, the same with and without a manifest."""
    hashes = manifest.get("sha256")
    if not isinstance(hashes, list) or len(hashes) != num_classes or images_are_newer(folder, num_classes):
        hashes = class_hashes(synthetic_files(folder, num_classes))
    return hashlib.sha256("\n".join(map(str, hashes)).encode()).hexdigest()


def complete_sets(root, num_classes):
    """The complete synthetic datasets below `root`: {folder: number of images}.

    A folder counts by its manifest; a published one, which has none, by its files.
    """
    sizes = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []:
        if manifest := read_manifest(folder):
            sizes[folder] = manifest["total"]
        elif size_from_name(folder.name) and any(folder.glob("class_*")) and not (folder / "generation.json").exists():
            sizes[folder] = sum(map(len, image_names(folder, num_classes)))
    return sizes


def find_synthetic(root, num_classes, wanted):
    """The smallest complete synthetic dataset below `root` that has at least `wanted` images.

    Raises:
        UserError: There is none, or those that fit are of several recipes; it names those that are there.
    """
    sizes = complete_sets(root, num_classes)
    fitting = {folder: size for folder, size in sizes.items() if size >= wanted}
    if not fitting:
        there = ", ".join(f"{folder.name} ({size} images)" for folder, size in sizes.items()) or "none"
        raise UserError(
            f"no synthetic dataset in {root} has {wanted} images. There: {there}. Run generate_dataset.py, "
            "or name a folder with --synthetic_dir."
        )
    best = [folder for folder, size in fitting.items() if size == min(fitting.values())]
    if len(best) > 1 or any(recipe(folder) != recipe(best[0]) for folder in fitting):
        raise UserError(
            "several synthetic datasets, of different settings or of one size, fit: "
            f"{', '.join(folder.name for folder in fitting)}; choose with --synthetic_dir."
        )
    return best[0]
