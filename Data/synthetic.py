"""Synthetic datasets on disk: PNGs in folders, as published, or in tars, and the manifest that describes them."""

import functools
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

from Data.marking import marked
from Data.numbering import Balanced
from Data.set_hashes import class_hashes, combined, keep_hashes, set_hashes
from Data.sinks import FolderSink, TarSink
from Data.stores import FILES, MEMBER, TAR_PATTERN, TARS, class_folders, image_name, open_store
from Experiment.errors import PassingError, UserError
from Experiment.files import read_json, write_json
from Experiment.levers import levers_on, without_off
from Experiment.paths import size_from_name
from Experiment.records import short
from Experiment.text import first_ten

log = logging.getLogger("experiment")

MANIFEST, RECORD = "manifest.json", "generation.json"  # of a complete set, and of one that is begun
WAITING_WRITES = 512  # bound of the queue between sampler and disk
# What images are made with, their number aside: sets that agree in it are of one recipe.
RECIPE = ("enc_epoch", "dif_epoch", "inf_steps", "ugs", "seed", "weights", "backbone", "precision", "image_size",
          "timestep_spacing")  # fmt: skip


class SyntheticWriter:
    """Writes images as they come, on a few threads with a bounded queue, and the manifest when all are there.

    Args:
        folder: Folder of the dataset.
        counts: Number of images of each class.
        block: Images that are computed together: shards are made of whole blocks.
        numbering: Which image has which number, see `Data.numbering`; None: balanced.
        mark: Whether each file says that it is generated (see Data/marking.py); hashes are the same either way.
        store: How they lie on the disk, see Data/stores.py; their bytes are the same.
    """

    def __init__(self, folder, counts, block=1, numbering=None, mark=True, store=FILES):
        self.folder, self.counts, self.block, self.mark = Path(folder), counts, block, mark
        self.numbering = numbering or Balanced(len(counts))
        self.class_folders = class_folders(folder, len(counts))
        self.pool = ThreadPoolExecutor(max(2, os.cpu_count() // 2))
        self.waiting = deque()
        self.hashes, self.store = {}, store
        self.sink = (TarSink if store == TARS else FolderSink)(self)

    def begin(self):
        """Make the folders, and finish what a killed process was about to."""
        self.sink.begin()

    def place(self, number):
        """Label and index of an image."""
        return tuple(map(int, self.numbering.places(int(number))))

    def file(self, number):
        """Path of an image, in folders."""
        label, index = self.place(number)
        return self.class_folders[label] / image_name(index)

    @property
    def end(self):
        """A number above all others."""
        balanced = isinstance(self.numbering, Balanced)  # else the first images are those of these counts
        return max(self.counts) * len(self.counts) if balanced else sum(self.counts)

    @functools.cached_property
    def numbers(self):
        """Numbers, int64 (n,), ascending, of all images."""
        numbers = np.arange(self.end)
        labels, indices = self.numbering.places(numbers)
        return numbers[indices < np.array(self.counts)[labels]]

    def shard(self, shard=(1, 1)):
        """Those of a shard (I, N): the Ith of N equal runs of blocks, or of tars."""
        unit = self.sink.unit
        first, last = (-(-self.end // unit) * i // shard[1] * unit for i in (shard[0] - 1, shard[0]))
        return self.numbers[(self.numbers >= first) & (self.numbers < last)]

    def missing(self, shard=(1, 1)):
        """Numbers, int64 (n,), ascending, of the images of a shard that are not there yet."""
        numbers = self.shard(shard)
        return numbers[~self.sink.there(numbers)]

    def is_whole(self, shard):
        """Whether all images of a shard are where readers find them: none waits for the rest of its tar."""
        return self.sink.whole(self.shard(shard))

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
        memory = io.BytesIO()
        # Level 1 is several times faster than the default, for a few per cent of size.
        Image.fromarray(image).save(memory, format="PNG", compress_level=1)
        png = memory.getvalue()
        if self.sink.put(number, marked(png) if self.mark else png):
            self.hashes[self.place(number)] = hashlib.sha256(png).digest()

    def drain(self):
        """Wait for the queue; an error of a writing thread is raised here."""
        while self.waiting:
            self.waiting.popleft().result()
        self.sink.sync()

    def finish(self, settings):
        """Write the manifest: settings, counts and, for each class, a hash of its files' hashes. Returns the hashes."""
        self.drain()
        stored = {"store": self.store}
        store = open_store(self.folder, len(self.counts), stored)
        names = [[f"{folder.name}/{image_name(i)}" for i in range(n)] for folder, n in zip(self.class_folders, self.counts)]
        if self.store != FILES and store.names != names:
            raise PassingError(f"{self.folder} has not the images {self.counts} a class: run the same command again.")
        digests = class_hashes(names, store.read, self.hashes)
        manifest = {"total": sum(self.counts), "counts": self.counts, "sha256": digests, **without_off(stored), **settings}
        write_json(self.folder / MANIFEST, manifest)
        keep_hashes(self.folder, store, digests)
        return digests

    def close(self):
        self.pool.shutdown(cancel_futures=True)


def open_set(folder, num_classes):
    """The store of a synthetic dataset (see Data/stores.py): `names` of its images, one list a class, and their bytes.

    Raises:
        UserError: They cannot be read, or the manifest counts other images than there are.
    """
    manifest = read_manifest(folder)
    store = open_store(folder, num_classes, manifest)
    there = [len(of_class) for of_class in store.names]
    if manifest and manifest.get("counts") != there:
        if others := [name for of_class in store.names for name in of_class if not MEMBER.fullmatch(name)]:
            raise UserError(f"{folder} holds images that its manifest does not count: {first_ten(others)}. Remove them.")
        raise UserError(
            f"{Path(folder) / MANIFEST} counts {manifest.get('counts')} images a class, but there are {there}: the command "
            "that made the set makes what is missing."
        )
    return store


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

    Raises:
        UserError: It is of other classes, or not complete.
    """
    manifest = read_manifest(folder) or {}
    theirs = manifest.get("classes", list(classes))
    if theirs != list(classes):
        named = first_ten(map(str, theirs), ", ") if isinstance(theirs, list) else theirs
        raise UserError(f"{folder} is of other classes: {named}. The dataset has {first_ten(classes, ', ')}.")
    if not manifest and (Path(folder) / RECORD).exists():
        raise UserError(f"{folder} is not complete: the command that began it makes what is missing.")
    hashes = set_hashes(Path(folder), open_set(folder, len(classes)))
    if manifest.get("sha256", hashes) != hashes:
        log.warning("the images in %s are not those that its manifest speaks of: they have been changed since", folder)
    return {"sha256": combined(hashes), **(recipe(folder) if manifest else {})}


def complete_sets(root, num_classes):
    """The complete synthetic datasets below `root`: {folder: number of images}.

    A folder counts by its manifest; a published one, which has none, by its files.
    """
    sizes = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []:
        if manifest := read_manifest(folder):
            sizes[folder] = manifest["total"]
        elif size_from_name(folder.name) and not (folder / RECORD).exists():
            if any(folder.glob("class_*")) or any(folder.glob(TAR_PATTERN)):
                sizes[folder] = sum(map(len, open_set(folder, num_classes).names))
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
