"""How well an attack tells images that were trained on from others: AUC, true positives, and the likelihood-ratio attack."""

import numpy as np
from scipy.optimize import brentq
from scipy.stats import nhypergeom, norm

from Experiment.intervals import CONFIDENCE, auc, percentiles
from Experiment.randomness import random_stream

FALSE_POSITIVES = 0.01
RESAMPLES = 1000
BOOTSTRAP = 1  # address of the random numbers
TINY, LEAST = 1e-12, 1e-30  # an area next to 0 or 1; a probability that has a logarithm


def auc_interval(value, members, others):
    """The 95 % interval (low, high) of an AUC, from the numbers of images: Newcombe's (2006, method 5, doi 10.1002/sim.2324).

    It holds near 1 too, where a bootstrap knows of no other scores: of full separation that says [1, 1].
    """
    z, mean = norm.ppf((1 + CONFIDENCE) / 2), (members + others) / 2

    def beyond(true):
        shape = 1 + (mean - 1) * ((1 - true) / (2 - true) + true / (1 + true))
        return (value - true) ** 2 - z**2 * true * (1 - true) * shape / (members * others)

    low = brentq(beyond, 0, min(value, 1 - TINY)) if value else 0.0
    high = brentq(beyond, max(value, TINY), 1) if value < 1 else 1.0
    return low, high


def true_positives(members, others):
    """The share of the members, scores (N,), above a threshold that at most 1 % of the others, (M,), exceed."""
    threshold = np.sort(others)[::-1][int(FALSE_POSITIVES * len(others))]
    return float((members > threshold).mean())


def chance_of(others):
    """What `true_positives` gives on average for scores of pure chance, from the number of others.

    The threshold is the score of one of the others, so of few of them it lets more than 1 % through.
    """
    return (int(FALSE_POSITIVES * others) + 1) / (others + 1)


def by_chance(members, others):
    """The probability that scores of pure chance find as many members as these do, or more.

    In descending order of scores, the members before the (k + 1)th of the others follow a negative hypergeometric
    distribution. Of an extreme score like this threshold a bootstrap tells too little: resamples seldom lack it.
    """
    found = round(true_positives(members, others) * len(members))
    law = nhypergeom(len(members) + len(others), len(members), int(FALSE_POSITIVES * len(others)) + 1)
    return float(law.sf(found - 1))


def strength(members, others):
    """An attack's success from its scores of members (N,) and of others (M,), with 95 % intervals over images.

    Returns:
        {"auc", "auc_interval", "tpr", "tpr_interval", "chance", "p", "members", "others"}; `tpr` is at 1 % false positives,
        `chance` what scores of pure chance have in its place, and `p` how often they have as much or more.
    """
    stream = random_stream(0, "bootstrap", BOOTSTRAP)
    drawn = ([side[stream.integers(len(side), size=len(side))] for side in (members, others)] for _ in range(RESAMPLES))
    found, value = [true_positives(*sides) for sides in drawn], auc(members, others)
    return {
        "auc": value, "auc_interval": list(auc_interval(value, len(members), len(others))),
        "tpr": true_positives(members, others), "tpr_interval": list(percentiles(found)),
        "chance": chance_of(len(others)), "p": by_chance(members, others), "members": len(members), "others": len(others),
    }  # fmt: skip


def confidence(probabilities, labels):
    """ln(p / (1 - p)) of the true class, float32 (N,), from probabilities (N, C) and labels (N,)."""
    probabilities, rows = np.asarray(probabilities, "float64"), np.arange(len(labels))
    true, others = probabilities[rows, labels], probabilities.copy()
    others[rows, labels] = 0  # summed without it: of a difference no digits would be left
    return (np.log(true + LEAST) - np.log(others.sum(axis=1) + LEAST)).astype("float32")


def likelihood_ratio(target, shadows, inside):
    """How much more likely a classifier's confidence in each image is if it has learnt from it: log ratio (N,).

    The attack of Carlini et al. (2022, section VI) with one variance for all images, as they advise for few shadows.

    Args:
        target: Confidence (N,) of the classifier that is attacked.
        shadows: That of each shadow classifier, (S, N).
        inside: bool (S, N): whether a shadow has learnt from an image; each image is inside of one and outside of one.
    """
    of_sides = [gaussians(shadows, where) for where in (inside, ~inside)]
    (mean_in, spread_in), (mean_out, spread_out) = of_sides
    return log_density(target, mean_in, spread_in) - log_density(target, mean_out, spread_out)


def gaussians(values, where):
    """Mean (N,) of the values (S, N) where a mask is set, and the deviation about these means, one for all images.

    Where each image has one value alone there is nothing about the means: then it is the deviation of all values.
    """
    count = where.sum(axis=0)
    mean = np.where(where, values, 0).sum(axis=0, dtype="float64") / count
    freedom = (count - 1).sum()
    if freedom:
        variance = np.where(where, (values - mean) ** 2, 0).sum() / freedom
    else:
        variance = values[where].var()
    return mean, np.sqrt(variance) + 1e-6


def log_density(x, mean, spread):
    return -0.5 * ((x - mean) / spread) ** 2 - np.log(spread)
