"""The curve of a training, the matrix of a classifier, and the bars of the four steps. Each function returns the file it wrote."""

import numpy as np
from matplotlib.ticker import MaxNLocator

from Experiment.results import CHOSEN_ON_TEST, FOUR_STEPS, all_doubts, interval_of, step_3_otherwise, steps_trained_otherwise
from Experiment.text import plain
from figures import plt, save_figure

STEP_SCORES = ("top_1", "top_5")
STEP_COLOURS = "#A6CEE9", "#0072B2", "#F7C49A", "#D55E00"  # a hue for what was trained, dark once it was optimised


def loss_curve(history, path, title=""):
    """Loss by epoch, from rows with `epoch` and `loss`."""
    figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
    axis.plot([row["epoch"] for row in history], [row["loss"] for row in history], marker=".")
    axis.set(xlabel="epoch", ylabel="mean squared error of the noise", title=plain(title))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    return save_figure(figure, path)


def confusion_matrix(confusion, classes, path, title=""):
    """Rows: true class; columns: prediction; shades are shares of the row. Counts are written up to 20 classes.

    Args:
        confusion: Counts, int (C, C).
        classes: Names of the C classes.
    """
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = min(3 + 0.4 * len(classes), 14)
    figure, axis = plt.subplots(figsize=(side, side), layout="constrained")
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set(xlabel="predicted", ylabel="true", title=plain(title))
    if len(classes) <= 50:
        names = [plain(name, 16) for name in classes]
        axis.set_xticks(range(len(classes)), names, rotation=90)
        axis.set_yticks(range(len(classes)), names)
    if len(classes) <= 20:
        for (row, column), count in np.ndenumerate(confusion):
            axis.text(
                column,
                row,
                count,
                ha="center",
                va="center",
                fontsize=7,
                color="white" if shares[row, column] > 0.5 else "black",
            )
    return save_figure(figure, path)


def cautions(stages):
    """Lines below the bars of a dataset: what the page says of its steps in full."""
    doubts = all_doubts(entry for steps in stages.values() for entry in steps.values())
    told = {
        "chosen on test": CHOSEN_ON_TEST in doubts,
        "may be too good": set(doubts) - {CHOSEN_ON_TEST},
        "searches differ": steps_trained_otherwise(stages),
        "step 3 of other settings": step_3_otherwise(stages),
    }
    return [text for text, holds in told.items() if holds]


def pipeline_bars(sources, score, path):
    """Test accuracy after each of the four steps of the adaptation: a group of bars for each dataset and source.

    Args:
        sources: {label: {dataset: {stage: {"no_opt" | "opt": {"top_1": 0..1, "top_5": 0..1}}}}}, stages as in
            `FOUR_STEPS`. Steps may be missing; a dataset of several sources has its groups side by side.
        score: `top_1` or `top_5`.
    """
    datasets = dict.fromkeys(dataset for results in sources.values() for dataset in results)
    groups = [(dataset, label) for dataset in datasets for label in sources if dataset in sources[label]]
    figure, axis = plt.subplots(figsize=(max(5.5, 1.8 * len(groups) + 1), 4.2), layout="constrained")
    for i, ((name, (stage, optimised)), colour) in enumerate(zip(FOUR_STEPS.items(), STEP_COLOURS)):
        steps = [sources[label][dataset].get(stage, {}).get(optimised) for dataset, label in groups]
        there = [(group + 0.2 * (i - 1.5), step) for group, step in enumerate(steps) if step]
        bars = [place for place, _ in there], [step[score] for _, step in there]
        axis.bar(*bars, 0.19, color=colour, label=name)
        for place, step in there:
            interval = interval_of(step, score) or (step[score], step[score])
            axis.vlines(place, *interval, color="black", alpha=0.6, linewidth=0.9)
            axis.text(place, interval[1] + 0.005, f"{step[score]:.3f}", ha="center", va="bottom", fontsize=7)
    names = [
        "\n".join([plain(dataset, 24), *([plain(label, 24)] if len(sources) > 1 else []), *cautions(sources[label][dataset])])
        for dataset, label in groups
    ]
    axis.set_xticks(range(len(groups)), names)
    middle, width = (len(groups) - 1) / 2, max(len(groups), 2) + 0.2  # one group alone keeps slender bars
    axis.set(
        ylabel="accuracy on real test images",
        ylim=(0, 1.06),
        xlim=(middle - width / 2, middle + width / 2),
        title=f"{' and '.join(map(plain, sources))}: {score.replace('_', '-')} after each step",
    )
    axis.set_axisbelow(True)
    axis.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4 if len(groups) > 3 else 2, frameon=False)
    return save_figure(figure, path)
