"""Distances between many images in a feature space, block by block: memory does not grow with their number."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_limits

BLOCK, WIDE_BLOCK = 1024, 256  # rows of a block; of one that is compared with all others at once
MOST_THREADS = 8  # each of which holds blocks
REFERENCE = 1024  # rows that a block is compared with at a time
CANDIDATES = 4  # that float32 finds, and float64 decides between


def squared_distances(x, y):
    """Squared Euclidean distances (N, M) of rows (N, d) and (M, d), in the precision of the rows."""
    found = (x * x).sum(axis=1)[:, None] + (y * y).sum(axis=1)[None] - 2 * (x @ y.T)
    return np.maximum(found, 0, out=found)


def in_threads(work, count, size=1):
    """[work(start, end)] for each piece of so many of `count` things, side by side, in order.

    Each piece has one thread: those of BLAS wait for each other for seconds where other processes use the cores.
    """
    starts = range(0, count, size)
    with threadpool_limits(1), ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count())) as pool:
        return list(pool.map(lambda start: work(start, min(start + size, count)), starts))


def by_block(x, y, reduce):
    """reduce(rows, squared distances float64 (len(rows), M)) of each block of rows of (N, d) to all of (M, d), as a list."""
    x, y = np.asarray(x, "float64"), np.asarray(y, "float64")
    return in_threads(lambda a, b: reduce(slice(a, b), squared_distances(x[a:b], y)), len(x), WIDE_BLOCK)


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
    reference = np.asarray(reference, "float32")
    middle = reference.mean(axis=0)  # small numbers, small rounding errors
    centred = reference - middle
    squares = (centred * centred).sum(axis=1)

    def of_block(start, end):
        block = np.asarray(queries[start:end], "float32")
        there = candidates(block - middle, centred, squares, start if same else None)
        exact = ((block[:, None].astype("float64") - reference[there]) ** 2).sum(axis=2)  # (B, candidates)
        if same:
            exact[there == np.arange(start, end)[:, None]] = np.inf
        best, own = exact.argmin(axis=1), np.arange(len(block))
        return np.sqrt(exact[own, best]).astype("float32"), there[own, best]

    return tuple(map(np.concatenate, zip(*in_threads(of_block, len(queries), BLOCK))))


def candidates(block, reference, squares, own):
    """Indices (B, up to CANDIDATES): the nearest of each run of REFERENCE rows by float32, and of these the nearest.

    Args:
        block, reference: (B, d) and (M, d), centred.
        squares: (M,): squared lengths of the reference.
        own: Place of the block in the reference, where it is a part of it.
    """
    rows, places, values = np.arange(len(block)), [], []
    for start in range(0, len(reference), REFERENCE):
        found = block @ (-2 * reference[start : start + REFERENCE].T)  # less the square of the row, which is the same for all
        found += squares[start : start + REFERENCE]
        if own is not None:
            inside = (rows + own >= start) & (rows + own < start + found.shape[1])
            found[rows[inside], rows[inside] + own - start] = np.inf
        best = found.argmin(axis=1)
        places.append(best + start)
        values.append(found[rows, best])
    places, values = np.stack(places, axis=1), np.stack(values, axis=1)  # (B, runs)
    most = min(CANDIDATES, places.shape[1])
    return np.take_along_axis(places, np.argpartition(values, most - 1, axis=1)[:, :most], axis=1)
