"""How sure an accuracy is, and a difference of two: 95 % intervals over test images and repeats of the training.

Right and wrong predictions are hits (R, N): a row for each repeat, a column for each test image.
"""

import numpy as np
from scipy.stats import binomtest, norm

from Experiment.randomness import random_stream

CONFIDENCE = 0.95
RESAMPLES, PIECE = 2000, 100  # bootstrap samples in all, and at a time


def binomial_interval(accuracy, images, confidence=CONFIDENCE):
    """Wilson's interval (low, high) of an accuracy that was measured once, on so many test images."""
    found = binomtest(round(accuracy * images), images).proportion_ci(confidence, "wilson")
    return float(found.low), float(found.high)


def accuracy_interval(hits, confidence=CONFIDENCE):
    """The interval (low, high) of the mean of hits (R, N): Wilson's for one repeat and where all are alike, else bootstrapped."""
    if len(hits) == 1 or hits.all() or not hits.any():
        return binomial_interval(hits.mean(), hits.shape[1], confidence)
    return percentiles(np.clip(resampled_means(hits)[0], 0, 1), confidence)


def difference_interval(ours, theirs, confidence=CONFIDENCE):
    """The interval (low, high) of a difference of two accuracies on the same images, hits (R, N) and (S, N).

    Of two single runs it is that of Bonett and Price (2012, doi 10.3102/1076998611411915): where the two disagree on few
    images, or on none, a bootstrap is too narrow.
    """
    if len(ours) == len(theirs) == 1:
        images = ours.shape[1] + 2
        better, worse = (((one & ~other).sum() + 1) / images for one, other in ((ours, theirs), (theirs, ours)))
        half = norm.ppf((1 + confidence) / 2) * np.sqrt((better + worse - (better - worse) ** 2) / images)
        return max(-1.0, float(better - worse - half)), min(1.0, float(better - worse + half))
    ours, theirs = resampled_means(ours, theirs)
    return percentiles(ours - theirs, confidence)


def percentiles(values, confidence):
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def resampled_means(*sides):
    """Means of hits in bootstrap samples: images, which the sides share, and the repeats of each are drawn anew.

    Drawing both at once is Owen's pigeonhole bootstrap (doi 10.1214/07-AOAS122); with one repeat it is the plain one.

    Args:
        sides: Hits (R, N) each, of the same N images; R may differ.

    Returns:
        (sides, RESAMPLES)
    """
    stream, count = random_stream(0, "bootstrap"), sides[0].shape[1]
    found = []
    for _ in range(RESAMPLES // PIECE):
        images = stream.integers(count, size=(PIECE, count)) + count * np.arange(PIECE)[:, None]
        times = np.bincount(images.ravel(), minlength=PIECE * count).reshape(PIECE, count)  # each image is drawn
        times = times.astype("float32")  # exact: whole numbers
        # Not by @: threads of BLAS wait for each other for seconds where other processes use the cores.
        means = [np.einsum("rn,bn->rb", side.astype("float32"), times).astype(float) / count for side in sides]
        found.append([resampled_repeats(of_side, stream) for of_side in means])
    return np.concatenate(found, axis=1)


def resampled_repeats(means, stream):
    """Means (B,) over repeats drawn with replacement, from those of each repeat (R, B).

    The mean of R of R varies by (R - 1) / R less than that of R new ones: its deviation is widened accordingly.
    """
    repeats = len(means)
    if repeats == 1:
        return means[0]
    drawn = stream.multinomial(repeats, [1 / repeats] * repeats, means.shape[1]).T / repeats  # (R, B)
    widened = np.sqrt(repeats / (repeats - 1))
    return means.mean(axis=0) + widened * ((drawn - 1 / repeats) * means).sum(axis=0)


def mcnemar(ours, theirs):
    """The exact p-value of McNemar's test that two classifiers are equally good, from their hits (N,)."""
    only_ours, only_theirs = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    differing = only_ours + only_theirs
    return float(binomtest(only_ours, differing).pvalue) if differing else 1.0


def unpaired_interval(ours, theirs, images, confidence=CONFIDENCE):
    """Newcombe's interval (low, high) of a difference of two accuracies as if their test images were different ones.

    It is what published accuracies allow. Those of classifiers that fail on the same images differ more surely than it says.
    """
    (low, high), (their_low, their_high) = (binomial_interval(x, images, confidence) for x in (ours, theirs))
    return (
        ours - theirs - np.hypot(ours - low, their_high - theirs).item(),
        ours - theirs + np.hypot(high - ours, theirs - their_low).item(),
    )


def verdict(interval):
    """`better`, `worse`, or `no difference shown`, of an interval of a difference of accuracies."""
    low, high = interval
    return "better" if low > 0 else "worse" if high < 0 else "no difference shown"


def in_words(difference, interval, other):
    """A difference of accuracies as a line has it: `1.2 points below real, 95 % interval -2.9 to +0.4: ...`."""
    side = "above" if difference > 0 else "below"
    place = f"{100 * abs(difference):.1f} points {side} {other}" if difference else f"equal to {other}"
    low, high = (100 * x for x in interval)
    return f"{place}, {100 * CONFIDENCE:.0f} % interval {low:+.1f} to {high:+.1f}: {verdict(interval)}"
