"""Accuracy by size of the synthetic training set."""

from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from Experiment.levers import in_words, levers_on
from Experiment.results import curve_recipes, interval_of, recorded_training, told_apart
from Experiment.text import plain
from figures import plt, save_figure

# Colours of Okabe and Ito, which colour-blind readers tell apart; the markers do the same in grey print.
SOURCE_STYLES = [("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D")]
RECIPE_FILLS = ("full", "none", "left", "bottom")  # of markers
LEAST_HEIGHT = 0.04  # of an axis of accuracies: smaller differences do not fill it


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
