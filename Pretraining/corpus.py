"""The corpus: printed characters and crops of photographs, made on all cores and kept for a restart."""

import json
import logging
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from Experiment.files import atomic_path, plain_arrays
from Experiment.progress import duration
from Experiment.randomness import random_stream
from Pretraining.crops import all_words, crops_part
from Pretraining.glyphs import PARTS, WORDS, make_corpus
from Pretraining.photographs import listed_photographs

log = logging.getLogger("experiment")

ORDER = 2**32  # an address beyond the numbers of photographs


@dataclass(frozen=True)
class Recipe:
    """What a corpus is made of. Its `identity` is what weights are compared by.

    Attributes:
        seed: Of everything random.
        images: How many.
        glyphs: How many of them are printed characters.
        folder: Of the tar files, if there are photographs.
        sources: {tar file: SHA-256}.
    """

    seed: int
    images: int
    glyphs: int
    folder: object = None
    sources: dict | None = None

    @property
    def identity(self):
        # Their number, too: a tar file that is gone is a name that is no longer compared.
        sources = {"tars": len(self.sources), **self.sources} if self.sources else {}
        return {"--seed": self.seed, "--images": self.images, "glyphs": self.glyphs, **sources}

    def categories(self):
        """Names of the photographs' categories."""
        return listed_photographs(self.folder, self.sources)[1] if self.sources else []

    def words(self):
        """{word of a caption: how many values it takes}."""
        return all_words(self.categories()) if self.sources else dict(WORDS)


def photograph_crops(recipe, count, processes):
    """Crops of all photographs, as many of each: images uint8 (count, 32, 32, 3), captions int32 (count, 8)."""
    tasks = [(recipe.folder, list(recipe.sources), recipe.seed, part, PARTS, count) for part in range(PARTS)]
    with ProcessPoolExecutor(processes) as pool:
        made = [part for part in pool.map(crops_part, tasks) if part]
    return [np.concatenate(arrays) for arrays in zip(*made)]


def make(recipe, processes=None):
    """The corpus in a random order: images uint8 (N, 32, 32, 3), captions int32 (N, 8).

    A function of the recipe: neither the number of processes nor the folder of the tar files makes a difference.
    """
    images, captions = make_corpus(recipe.seed, recipe.glyphs, processes)
    if recipe.sources:
        crops = photograph_crops(recipe, recipe.images - recipe.glyphs, processes)
        order = random_stream(recipe.seed, "crops", ORDER).permutation(recipe.images)
        images, captions = (np.concatenate([ours, theirs])[order] for ours, theirs in zip((images, captions), crops))
    return images, captions


def corpus(recipe, state=None, processes=None):
    """What `make` returns, from the folder of an interrupted run if it is there, and the seconds that it took to make."""
    path, identity = state and state / "corpus.npz", json.dumps(recipe.identity, sort_keys=True)
    if path and path.exists():
        with plain_arrays(path) as data:
            if str(data["identity"]) == identity:
                return data["images"], data["captions"], float(data["seconds"])
    started = time.time()
    images, captions = make(recipe, processes)
    seconds = time.time() - started
    log.info("corpus: %d images, %d of them glyphs, in %s", len(images), recipe.glyphs, duration(seconds))
    if path:
        with atomic_path(path) as partial:
            np.savez(partial, images=images, captions=captions, seconds=seconds, identity=identity)
    return images, captions, seconds
