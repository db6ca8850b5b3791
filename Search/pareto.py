"""Accuracy against the cost of an image: the trials than which no cheaper one is as accurate."""

import logging

from optuna.trial import TrialState

from Experiment.files import write_csv
from Models.backbones import BACKBONES
from Models.guidance import guided_steps
from Models.solvers import SOLVERS
from Search.pictures import accuracy_against_cost
from Search.settings import as_flags, settings_of
from Search.workers import trials

PARETO = ("pareto.csv", "pareto.png")

log = logging.getLogger("experiment")


def passes(args, settings):
    """How often the UNet, or the guide's, is run for an image.

    Args:
        args: The script's arguments.
        settings: `Settings` of a trial.
    """
    schedule, solver = BACKBONES[args.backbone].schedule, SOLVERS[settings.levers.get("solver", args.solver)]
    interval = settings.levers.get("interval", args.guidance_interval)
    timesteps = solver.timesteps(schedule, settings.steps, args.timestep_spacing or solver.spacing)
    if interval:
        guided = int(guided_steps(schedule, timesteps, interval).sum())
        return len(timesteps) + (guided if settings.scale != 1 else 0)
    return len(timesteps) * (1 if settings.scale in (0, 1) else 2)


def front(costs, accuracies):
    """Places, by ascending cost, of those than which none is both cheaper and as accurate, or as cheap and more accurate."""
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -accuracies[i]))
    chosen = []
    for i in order:
        if not chosen or accuracies[i] > accuracies[chosen[-1]]:
            chosen.append(i)
    return chosen


def report_pareto(args, study, folder):
    """Log the front, and write it as pareto.csv and pareto.png.

    Args:
        args: The script's arguments.
        study: A study with a completed trial.
        folder: Of the report.
    """
    completed = trials(study, TrialState.COMPLETE)
    settings = [settings_of(trial) for trial in completed]
    costs, accuracies = [passes(args, s) for s in settings], [trial.value for trial in completed]
    best, rows = front(costs, accuracies), []
    for i in best:
        seconds, flags = completed[i].user_attrs.get("seconds_an_image"), as_flags(args, settings[i])
        said = "" if seconds is None else f", {seconds:.3g} s an image"
        log.info("%3d passes%s: accuracy %.4f, trial %d, %s", costs[i], said, accuracies[i], completed[i].number, flags)
        rows.append(
            {"passes": costs[i], "seconds": "" if seconds is None else seconds, "accuracy": accuracies[i],
             "trial": completed[i].number, "flags": flags}
        )  # fmt: skip
    table, picture = (folder / name for name in PARETO)
    write_csv(table, rows)
    accuracy_against_cost(costs, accuracies, best, picture, study.study_name)
    log.info("accuracy against passes -> %s, %s", table, picture)
