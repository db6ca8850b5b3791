"""How like the real images a set is, from features (N, d) of both: KID, precision, recall, density, coverage.

Formulas and sources: Audit/README.md. Values depend on the feature space, on the number of images, and on k: each is
reported with them.
"""

import numpy as np

from Audit.neighbours import by_block, in_threads, squared_radii
from Experiment.randomness import random_stream

K = 5  # neighbours of the k-nearest-neighbour metrics
SUBSETS, SUBSET = 100, 1000  # of KID: how many, and their most images
LEAST = K + 1  # images for any of them


def polynomial_kernel(x, y):
    """(x . y / d + 1)^3 of rows (N, d) and (M, d): (N, M)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def squared_mmd(x, y):
    """The unbiased estimate of the squared maximum mean discrepancy of rows (m, d) and (m, d); it may be below 0."""
    m = len(x)
    within = sum(kernel.sum() - np.trace(kernel) for kernel in (polynomial_kernel(x, x), polynomial_kernel(y, y)))
    return within / (m * (m - 1)) - 2 * polynomial_kernel(x, y).mean()


def kid(real, fake, seed, subsets=SUBSETS, most=SUBSET):
    """Kernel Inception Distance: the mean over random subsets, their standard deviation, and the images of a subset.

    A subset has at most half of the images: subsets of all of them would be the same, and show no spread.
    """
    size = min(most, len(real) // 2, len(fake) // 2)

    def of_subset(subset, _):
        stream = random_stream(seed, "audit_subset", KID_ADDRESS, subset)
        return squared_mmd(*(np.asarray(x[stream.permutation(len(x))[:size]], "float64") for x in (real, fake)))

    found = in_threads(of_subset, subsets)
    return float(np.mean(found)), float(np.std(found)), size


KID_ADDRESS = 1  # in the random numbers of an audit; others: Audit/material.py


def manifold_metrics(real, fake, k=K):
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020).

    Args:
        real, fake: Features (N, d) and (M, d), more than k of each.
        k: Neighbours; a ball about each image reaches to its kth nearest other one of its kind.
    """
    real_radii, fake_radii = squared_radii(real, k), squared_radii(fake, k)

    def of_block(rows, found):
        inside = (found < real_radii[rows, None]).sum(axis=0)
        return inside, (found < fake_radii[None]).any(axis=1), found.min(axis=1) < real_radii[rows]

    inside, recalled, covered = zip(*by_block(real, fake, of_block))
    balls = np.sum(inside, axis=0)  # (M,): of real images, in which a generated one lies
    recalled, covered = np.concatenate(recalled), np.concatenate(covered)
    return {
        "precision": float((balls > 0).mean()),
        "recall": float(recalled.mean()),
        "density": float(balls.mean() / k),
        "coverage": float(covered.mean()),
    }


def frechet_distance(real, fake):
    """|mean difference|^2 + trace(A + B - 2 (A B)^(1/2)) of Gaussians fitted to features (N, d) and (M, d).

    The trace of the root is the sum of the roots of the eigenvalues of A^(1/2) B A^(1/2), which is symmetric: so it is real
    and exact where there are fewer images than features too.
    """
    real, fake = np.asarray(real, "float64"), np.asarray(fake, "float64")
    a, b = np.cov(real, rowvar=False), np.cov(fake, rowvar=False)
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ b @ root).clip(0)).sum()
    return float(((real.mean(axis=0) - fake.mean(axis=0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * shared)


def quality(real, fake, seed, fid=False):
    """All of them for features (N, d) and (M, d), with what they depend on; without figures where images are too few.

    Features are scaled so that the mean square of the real ones is 1: KID does not depend on how large they are.
    """
    facts = {"real": len(real), "generated": len(fake), "k": K}
    if min(len(real), len(fake)) < LEAST:
        return facts | {"missing": f"{min(len(real), len(fake))} images, {LEAST} are needed"}
    scale = np.sqrt(np.mean(np.square(real, dtype="float64"))) or 1.0
    real, fake = real / scale, fake / scale
    mean, spread, size = kid(real, fake, seed)
    found = facts | {"kid": mean, "kid_spread": spread, "kid_subset": size, **manifold_metrics(real, fake)}
    return found | ({"fid": frechet_distance(real, fake)} if fid else {})
