"""The best trials, run again with new seeds: the best of many noisy values is too good by construction."""

import logging
from statistics import mean

from optuna.trial import TrialState

from Experiment.errors import UserError
from Experiment.progress import each
from Experiment.randomness import repeat_seed
from Search.context import Unusable
from Search.trials import accuracy_again
from Search.workers import trials

REPEATED = 3  # trials

log = logging.getLogger("experiment")


def best_trials(study):
    """The completed trials of the best values, best first; of equal ones the earlier first.

    Where all of them gave no accuracy when they were run again, the next best one is looked at too, and so on.
    """
    complete = sorted(trials(study, TrialState.COMPLETE), key=lambda trial: (-trial.value, trial.number))
    count = REPEATED
    while count < len(complete) and all(None in recorded(study, trial) for trial in complete[:count]):
        count += 1
    return complete[:count]


def attribute(trial, i):
    """Where the study keeps the value of a trial's ith repeat."""
    return f"repeat {trial.number}.{i}"


def recorded(study, trial):
    """Values of a trial's repeats so far; None is that of one that gave no accuracy."""
    found, kept = [], study.user_attrs
    while attribute(trial, len(found) + 1) in kept:
        found.append(kept[attribute(trial, len(found) + 1)])
    return found


def wanted_repeats(study, args):
    """How many repeats count: as many as asked for, and no fewer than an earlier run has begun."""
    return max(args.repeats, study.user_attrs.get("repeats", 0))


def missing_repeats(study, repeats):
    """[(trial, i)] of the repeats that are still to run, the first of each trial first."""
    there = [(trial, len(recorded(study, trial))) for trial in best_trials(study)]
    return [(trial, i) for i in range(1, repeats + 1) for trial, done in there if i > done]


def run_missing_repeats(study, context, repeats):
    """Run and record the repeats that are missing, each once: by one process at a time."""
    if repeats:
        study.set_user_attr("repeats", repeats)
    while missing := missing_repeats(study, repeats):  # again where all have dropped out
        for trial, i in each(missing, "repeat"):
            run_repeat(study, context, trial, i)


def run_repeat(study, context, trial, i):
    """Run and record the ith repeat of a trial."""
    seed = repeat_seed(context.args.seed, i + 1)
    try:
        value = accuracy_again(context, trial, seed)
        said = f"{value:.4f}"
    except Unusable as error:
        value, said = None, f"drops out: {error}"
    study.set_user_attr(attribute(trial, i), value)
    log.info("trial %3d again, repeat %d -> %s%s", trial.number, i, said, said_mean([trial.value, value]))


def said_mean(values):
    """A mean as a line shows it, with the number of runs; empty for one run alone, or one that gave no accuracy."""
    if len(values) < 2 or None in values:
        return ""
    return f" (mean of {len(values)} runs {mean(values):.4f})"


def ranked(study, repeats):
    """[(trial, values)] of the best trials, best first: values of its first run and of its repeats.

    The mean decides, as soon as no repeat is missing. A trial of which a repeat gave no accuracy comes last.
    """
    runs = [(trial, [trial.value, *recorded(study, trial)[:repeats]]) for trial in best_trials(study)]
    if not missing_repeats(study, repeats):
        runs.sort(key=lambda run: 0 if None in run[1] else -mean(run[1]))
    return sorted(runs, key=lambda run: None in run[1])


def chosen(study, repeats):
    """The trial that the search chooses, and the values of its runs.

    Raises:
        UserError: No completed trial gave an accuracy in every repeat.
    """
    trial, values = ranked(study, repeats)[0]
    if None in values:
        raise UserError("no completed trial gave an accuracy when it was run again: raise --n_trials.")
    return trial, values
