"""Curves, bars and matrices, drawn from results. Each function returns the file it wrote."""

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from Experiment.levers import in_words, levers_on
from Experiment.results import (
    CHOSEN_ON_TEST,
    FOUR_STEPS,
    all_doubts,
    curve_recipes,
    interval_of,
    recorded_training,
    step_3_otherwise,
    steps_trained_otherwise,
    told_apart,
)
from Experiment.text import plain
from figures import plt, save_figure

SCORES = ("top_1", "top_5")
# Colours of Okabe and Ito, which colour-blind readers tell apart; the markers do the same in grey print.
SOURCE_STYLES = [("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D")]
RECIPE_FILLS = ("full", "none", "left", "bottom")  # of markers
STEP_COLOURS = "#A6CEE9", "#0072B2", "#F7C49A", "#D55E00"  # a hue for what was trained, dark once it was optimised
LEAST_HEIGHT = 0.04  # of an axis of accuracies: smaller differences do not fill it


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


def accuracy_limits(values):
    """Axis limits that let differences be seen, but do not blow up less than `LEAST_HEIGHT` to the whole height."""
    low, high = min(values), max(values)
    widened = max(high - low, LEAST_HEIGHT)
    low = min(max((low + high - widened) / 2, 0), 1 - widened)  # about the middle, but within 0..1
    high = low + widened
    margin = 0.06 * (high - low)  # keeps markers off the frame
    return low - margin, high + margin


def heights(entries, score):
    """The accuracies of entries, and the ends of their intervals."""
    return [height for entry in entries for height in (entry[score], *(interval_of(entry, score) or ()))]


def epochs_of(entries):
    """The most epochs that each classifier may have learnt for, as a set of whole numbers: those on record."""
    return {count for entry in entries if isinstance(count := recorded_training(entry).get("epochs"), int)}


def epochs_along(entries, others):
    """What the legend says of the epochs of a line's classifiers: empty where `others` have the same, or none is on record."""
    epochs = epochs_of(entries)
    if len(epochs) > 1:
        return f", in at most {min(epochs)} to {max(epochs)} epochs"
    return f", in at most {min(epochs)} epochs" if epochs and epochs_of(others) - epochs else ""


def levers_along(entries):
    """What the legend says of the levers of a line's classifiers, where all have the same: else its parts are told apart."""
    found = {in_words(recorded_training(entry)) for entry in entries}
    return f" ({levers})" if len(found) == 1 and (levers := found.pop()) else ""


def levers_beside(results):
    """What the legend says of the levers of the training on real images, where one of the others had other levers."""
    trainings = {size: training for size, entry in results.items() if (training := recorded_training(entry))}
    real = levers_on(trainings.get("real", {}))
    if "real" not in trainings or all(levers_on(training) == real for training in trainings.values()):
        return ""
    return f" ({in_words(real) or 'no levers'})"


def epochs_beside(results):
    """The same of its epochs, where none of the others had as many."""
    others = [entry for size, entry in results.items() if size != "real"]
    real = epochs_of([results["real"]])
    return "" if real <= epochs_of(others) else epochs_along([results["real"]], others)


def tests_beside(results):
    """What the legend says of the real result where one of the others was tested on other images."""
    tests = {entry["test"] for entry in results.values() if "test" in entry}
    return " (other test images)" if "test" in results["real"] and len(tests) > 1 else ""


def plot_points(axis, results, score, label, **style):
    """The line of one source, and intervals as upright lines. Points from sets of other settings than the first have another marker and legend line."""
    sizes = sorted(int(key[1:]) for key in results if key != "real")
    accuracies = [results[f"x{size}"][score] for size in sizes]
    for size in sizes:
        if interval := interval_of(results[f"x{size}"], score):
            axis.vlines(size, *interval, color=style["color"], alpha=0.45, linewidth=1.2)
    entries = [results[f"x{size}"] for size in sizes]
    recipes, label = curve_recipes(entries), label + levers_along(entries) + epochs_along(entries, results.values())
    kinds = [recipe for i, recipe in enumerate(recipes) if recipe not in recipes[:i]]
    names = [f" ({name})" for name in told_apart(kinds)] if len(kinds) > 1 else [""] * len(kinds)
    for i, (kind, name) in enumerate(zip(kinds, names)):
        places = [place for place, recipe in enumerate(recipes) if recipe == kind]
        style |= {"fillstyle": RECIPE_FILLS[i % len(RECIPE_FILLS)], "label": label + name, "ms": 5}
        if i == 0:  # the line, with the markers of the first kind
            axis.plot(sizes, accuracies, markevery=None if len(kinds) == 1 else places, **style)
        else:
            axis.plot([sizes[p] for p in places], [accuracies[p] for p in places], linestyle="", **style)
    return sizes


def cas_curve(sources, path, title=""):
    """Test accuracy by size of the synthetic training set, top-1 left and top-5 right; real training data dashed.

    Upright lines, and the band about the dashes, are 95 % intervals, where the entries have any (`interval`).

    Args:
        sources: {label: {"real" | "x1" | "x2" ...: {"top_1_accuracy": 0..1, "top_5_accuracy": 0..1}}}. Any entry may
            be missing. Where the entries of a source come from sets of several settings (`set`), markers and legend say
            which.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    largest = 10  # the published sizes are 1x to 10x
    for axis, score in zip(axes, ("top_1_accuracy", "top_5_accuracy")):
        for i, (label, results) in enumerate(sources.items()):
            colour, marker = SOURCE_STYLES[i % len(SOURCE_STYLES)]
            name = f"{label}, trained on synthetic"
            sizes = plot_points(axis, results, score, name, color=colour, marker=marker)
            largest = max([largest, *sizes])
            if "real" in results:
                dashes = (5 * i, (5, 5))  # the second source's fill the gaps of the first's where the two coincide
                told = f"{label}, trained on real{levers_beside(results)}{epochs_beside(results)}{tests_beside(results)}"
                axis.axhline(results["real"][score], color=colour, linestyle=dashes, label=told)
                if interval := interval_of(results["real"], score):
                    axis.axhspan(*interval, color=colour, alpha=0.1, linewidth=0)
        axis.set(
            xlabel="size of the synthetic training set",
            ylabel="accuracy on real test images",
            title=score[:5].replace("_", "-"),
            xlim=(1 - largest / 25, largest * 1.04),
        )
        axis.set_ylim(accuracy_limits([x for results in sources.values() for x in heights(results.values(), score)]))
        axis.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        axis.xaxis.set_major_formatter("{x:.0f}x")
        axis.grid(alpha=0.3)
    figure.suptitle(plain(title))
    lines = sorted(axes[0].get_lines(), key=Line2D.is_dashed)  # so that each kind has its column
    figure.legend(handles=lines, loc="outside lower center", ncols=2, handlelength=3, frameon=False)
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
