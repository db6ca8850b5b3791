"""The published plots of a study, by Optuna, and accuracy against cost."""

import logging
import warnings

import matplotlib
import numpy as np
from matplotlib.ticker import MaxNLocator

from figures import plt, save_figure

MOST_LEGEND_TRIALS = 10
FEWEST_TRIALS = 4


def too_few_to_draw(study, params=()):
    """Why a contour over two parameters would be empty, or the parameters' importances mean nothing; or None.

    Args:
        study: The study.
        params: Names of the parameters of a contour.
    """
    completed = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    if len(completed) < FEWEST_TRIALS:
        return f"{len(completed)} completed trials are fewer than {FEWEST_TRIALS}"
    same = [name for name in params if len({trial.params.get(name) for trial in completed}) < 2]
    if len({trial.value for trial in completed}) < 2:
        same.append("accuracy")
    return f"all completed trials have the same {' and the same '.join(same)}" if same else None


def contour(plots, study, *params):
    if why := too_few_to_draw(study, params):
        raise ValueError(why)
    return plots.plot_contour(study, params=list(params))


def importances(plots, study):
    if why := too_few_to_draw(study):
        raise ValueError(why)
    return plots.plot_param_importances(study)


PLOTS = {  # by name: functions of Optuna's module of plots, which is slow to import, and a study
    "history": lambda plots, study: plots.plot_optimization_history(study),
    "contour_is_ugs": lambda plots, study: contour(plots, study, "is", "ugs"),
    "contour_is_epoch": lambda plots, study: contour(plots, study, "is", "epoch"),
    "contour_epoch_ugs": lambda plots, study: contour(plots, study, "epoch", "ugs"),
    "intermediate_values": lambda plots, study: plots.plot_intermediate_values(study),
    "parallel_coordinate": lambda plots, study: plots.plot_parallel_coordinate(study),
    "param_importances": importances,
    "rank": lambda plots, study: plots.plot_rank(study),
    "slice": lambda plots, study: plots.plot_slice(study),
    "timeline": lambda plots, study: plots.plot_timeline(study),
}


def search_plots(study, folder):
    """The ten published plots of a study; one that cannot be drawn does not lose the others. Yields their files.

    One that would be empty, since the trials are so few or so alike, is left out.
    """
    import optuna.visualization.matplotlib as optuna_plots

    for name, draw in PLOTS.items():
        # Optuna sets the ggplot style for the whole process: keep it away from the next figures. Users can
        # act on no warning of Matplotlib and pandas, except that of bars that mean nothing.
        with matplotlib.rc_context(), warnings.catch_warnings(action="ignore"):
            warnings.filterwarnings("error", ".*Parameter importances will be equal")
            try:
                axis = np.ravel(draw(optuna_plots, study))[0]
                legend = axis.get_legend() if name == "intermediate_values" else None
                if legend and len(study.trials) > MOST_LEGEND_TRIALS:
                    legend.remove()  # one entry a trial would dwarf the picture
                file = save_figure(axis.figure, folder / f"{name}.png")
            except (ValueError, RuntimeError, ZeroDivisionError, UserWarning) as error:
                logging.getLogger("experiment").warning("%s is not drawn: %s", name, error)
                (folder / f"{name}.png").unlink(missing_ok=True)  # an earlier one shows other trials
                continue
        yield file


def accuracy_against_cost(costs, accuracies, best, path, title):
    """Accuracy of trials against the passes of an image; those at the places `best` are joined. Returns the file."""
    figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
    axis.plot(costs, accuracies, "o", color="0.6", ms=4, label="trials")
    axis.plot([costs[i] for i in best], [accuracies[i] for i in best], "o-", label="none cheaper is as accurate")
    axis.set(xlabel="passes of the UNet for an image", ylabel="accuracy", title=title)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    axis.legend()
    return save_figure(figure, path)
