"""Work on many images, on all cores."""

import os
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from Experiment.progress import progress

CHUNK = 64  # images a task of the thread pool


def in_chunks(work, count):
    """Call `work(i)` for every i below `count`, on all cores; one task of the pool does many."""

    def some(start):
        for i in range(start, min(start + CHUNK, count)):
            work(i)

    Image.init()  # not safe to do for the first time in several threads at once
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress(count, "image") as part:
        for _ in pool.map(some, range(0, count, CHUNK)):
            part.reach(min(part.done + CHUNK, count))
