"""How sure an accuracy is, and a difference of two: 95 % intervals over test images and repeats of the training.

Right and wrong predictions are hits (R, N): a row for each repeat, a column for each test image.
"""

import numpy as np
from scipy.stats import binomtest, mannwhitneyu, t

from Experiment.randomness import random_stream

CONFIDENCE = 0.95
RESAMPLES, PIECE = 2000, 100  # bootstrap samples in all, and at a time


def binomial_interval(accuracy, images, confidence=CONFIDENCE):
    """Wilson's interval (low, high) of an accuracy that was measured once, on so many test images."""
    found = binomtest(round(accuracy * images), images).proportion_ci(confidence, "wilson")
    return float(found.low), float(found.high)


def accuracy_interval(hits):
    """The interval (low, high) of the mean of hits (R, N): Wilson's, of one repeat and where all are alike.

    Of more repeats it is Wilson's of as many images as one training would need to be as sure, see `spread`.
    """
    accuracy, (deviation, freedom) = hits.mean(), spread(hits)
    if len(hits) == 1 or (hits == 1).all() or not hits.any():  # means over repeats lie between
        return binomial_interval(accuracy, hits.shape[1])
    images, quantile = accuracy * (1 - accuracy) / deviation**2, t.ppf((1 + CONFIDENCE) / 2, freedom)
    middle = (accuracy + quantile**2 / (2 * images)) / (1 + quantile**2 / images)
    half = np.sqrt(accuracy * (1 - accuracy) / images + quantile**2 / (4 * images**2)) * quantile / (1 + quantile**2 / images)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def difference_interval(ours, theirs):
    """The interval (low, high) of a difference of two accuracies on the same images, hits (R, N) and (S, N).

    Two images more, one that each side alone has right in all repeats, keep it from saying much where the sides disagree on
    few images or on none, as Bonett and Price (2012, doi 10.3102/1076998611411915) do it for two single runs. A side of one
    repeat is taken to vary as the other side's repeats do.
    """
    only_ours, only_theirs = np.array([True, False]), np.array([False, True])
    ours, theirs = (np.hstack([side, np.tile(one, (len(side), 1))]) for side, one in
                    ((ours, only_ours), (theirs, only_theirs)))  # fmt: skip
    difference, (deviation, freedom) = float(ours.mean() - theirs.mean()), spread(ours, theirs)
    half = float(t.ppf((1 + CONFIDENCE) / 2, freedom) * deviation)
    return max(-1.0, difference - half), min(1.0, difference + half)


def spread(*sides):
    """Standard deviation of the mean of hits (R, N), or of the difference of two sides' means, and its degrees of freedom.

    Over images it is that of bootstrap samples. Of few repeats nobody knows how much trainings vary: the degrees of freedom
    are those of Welch and Satterthwaite, in which what comes from the images counts as known. Without repeats on any side
    they are infinite, and the deviation is that of these trainings alone.
    """
    repeats = np.array([len(side) for side in sides])
    if repeats.max() == 1:  # exact: what the bootstrap estimates
        each = sides[0][0] - sides[1][0].astype(float) if len(sides) == 2 else sides[0][0]
        return float(each.std() / np.sqrt(each.size)), np.inf
    means = resampled_means(*sides)
    variance = (means[0] - means[1] if len(sides) == 2 else means[0]).var()
    of_training = [side.mean(axis=1).var(ddof=1) if len(side) > 1 else 0.0 for side in sides]
    if repeats.min() == 1:
        (several,) = np.flatnonzero(repeats > 1)
        lent = of_training[several]
        parts = [(lent * (1 + 1 / repeats[several]), repeats[several] - 1)]
        variance += lent
    else:
        parts = [(of_side / count, count - 1) for of_side, count in zip(of_training, repeats)]
    uncertain = sum(part**2 / freedom for part, freedom in parts)
    return float(np.sqrt(variance)), float(variance**2 / uncertain) if uncertain else np.inf


def percentiles(values):
    """The interval (low, high) that holds the middle 95 % of bootstrapped values."""
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
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


def auc(positives, negatives):
    """Area under the ROC curve, 0..1, of scores (N,) of what should be high and (M,) of what should be low.

    It is the share of pairs that are in order, the Mann-Whitney statistic; equal scores count half.
    """
    sides = [np.asarray(side, float) for side in (positives, negatives)]  # of float32 it would round the ranks, too
    return float(mannwhitneyu(*sides, method="asymptotic").statistic / (len(positives) * len(negatives)))


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


def reserve(ours, theirs):
    """What goes with the word of a comparison of hits (R, N) and (S, N): "" where both sides have several trainings.

    One training beside several is taken to vary as those do. If it varies more, 95 % is too much to say: with six times the
    deviation the interval holds the difference in 7 of 10 cases.
    """
    fewest, most = sorted([len(ours), len(theirs)])
    if fewest > 1:
        return ""
    return "of these two trainings" if most == 1 else "if the one training varies as the others do"


def verdict(interval, reserve=""):
    """`better`, `worse`, or `no difference shown`, of an interval of a difference of accuracies, with its `reserve`."""
    low, high = interval
    found = "better" if low > 0 else "worse" if high < 0 else "no difference shown"
    return f"{found}, {reserve}" if reserve else found


def in_words(difference, interval, other, reserve=""):
    """A difference of accuracies as a line has it: `1.2 points below real, 95 % interval -2.9 to +0.4: ...`."""
    side = "above" if difference > 0 else "below"
    place = f"{100 * abs(difference):.1f} points {side} {other}" if difference else f"equal to {other}"
    low, high = (100 * x for x in interval)
    return f"{place}, {100 * CONFIDENCE:.0f} % interval {low:+.1f} to {high:+.1f}: {verdict(interval, reserve)}"
