"""Distances between many images in a feature space, block by block: memory does not grow with their number."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_limits

BLOCK = 1024  # rows of a block
REFERENCE = 8192  # rows that a block is compared with at a time
CANDIDATES = 4  # that float32 finds, and float64 decides between


def squared_distances(x, y):
    """Squared Euclidean distances (N, M) of rows (N, d) and (M, d), in the precision of the rows."""
    found = (x * x).sum(axis=1)[:, None] + (y * y).sum(axis=1)[None] - 2 * (x @ y.T)
    return np.maximum(found, 0, out=found)


def in_threads(work, count, size=1):
    """[work(start, end)] for each piece of so many of `count` things, on all cores, in order.

    Each piece has one thread: those of BLAS wait for each other for seconds where other processes use the cores.
    """
    starts = range(0, count, size)
    with threadpool_limits(1), ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda start: work(start, min(start + size, count)), starts))


def by_block(x, y, reduce):
    """reduce(rows, squared distances float64 (len(rows), M)) of each block of rows of (N, d) to all of (M, d), as a list."""
    x, y = np.asarray(x, "float64"), np.asarray(y, "float64")
    return in_threads(lambda a, b: reduce(slice(a, b), squared_distances(x[a:b], y)), len(x), BLOCK)


def squared_radii(x, k):
    """Squared distance of each row (N, d) to its kth nearest other row: (N,)."""
    return np.concatenate(by_block(x, x, lambda rows, found: np.partition(found, k, axis=1)[:, k]))


def nearest(queries, reference, same=False):
    """The nearest row of a reference for each query.

    Args:
        queries: (N, d).
        reference: (M, d).
        same: Whether both are the same rows: then a row is not its own neighbour.

    Returns:
        Distances float32 (N,) and indices int64 (N,) into the reference.
    """
    middle = np.asarray(reference[:REFERENCE], "float32").mean(axis=0)  # small numbers, small rounding errors

    def of_block(start, end):
        block = np.asarray(queries[start:end], "float32")
        there = candidates(block - middle, reference, middle, start if same else None)
        exact = ((block[:, None].astype("float64") - reference[there]) ** 2).sum(axis=2)  # (B, candidates)
        if same:
            exact[there == np.arange(start, end)[:, None]] = np.inf
        best, own = exact.argmin(axis=1), np.arange(len(block))
        return np.sqrt(exact[own, best]).astype("float32"), there[own, best]

    return tuple(map(np.concatenate, zip(*in_threads(of_block, len(queries), BLOCK))))


def candidates(block, reference, middle, own):
    """Indices (B, candidates) of rows of the reference that are nearest to a block by float32; `own` is the block's place in it."""
    places, values = [], []
    for start in range(0, len(reference), REFERENCE):
        found = squared_distances(block, np.asarray(reference[start : start + REFERENCE], "float32") - middle)
        if own is not None:
            rows = np.arange(len(block))
            inside = (rows + own >= start) & (rows + own < start + found.shape[1])
            found[rows[inside], rows[inside] + own - start] = np.inf
        most = min(CANDIDATES, found.shape[1])
        best = np.argpartition(found, most - 1, axis=1)[:, :most]
        places.append(best + start)
        values.append(np.take_along_axis(found, best, axis=1))
    places, values = np.concatenate(places, axis=1), np.concatenate(values, axis=1)
    most = min(CANDIDATES, places.shape[1])
    return np.take_along_axis(places, np.argpartition(values, most - 1, axis=1)[:, :most], axis=1)
