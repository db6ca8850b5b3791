"""What a search tells: a line a trial, the measurement on test, a table, a sheet of samples, its plots."""

import logging
import time
from statistics import mean

import numpy as np

from Data.registry import class_names
from Experiment import presets
from Experiment.errors import UserError
from Experiment.files import write_csv
from Experiment.intervals import binomial_interval
from Experiment.progress import each
from Experiment.randomness import repeat_seed
from Models.sampler import first_of_each_class
from Search.repeats import recorded
from Search.settings import Settings, sampling_of, searched_levers, settings_of
from Search.studies import FINISHED
from Search.workers import trials
from sheets import MAX_SHEET_ROWS, SHEET_COLUMNS, side_by_side

log = logging.getLogger("experiment")

BEST_AND_WORST = "best_and_worst.png"
MEASUREMENT = 2**32  # the repeat whose seed is that of the measurement on test: no trial runs so often


def trial_line(trial):
    """Number, settings and result of a trial."""
    p, rung, why = trial.params, trial.user_attrs.get("rung", "1"), trial.user_attrs.get("pruned_because")
    pruned = f"pruned on rung {rung}, epoch {trial.last_step or 1}" + (f": {why}" if why else "")
    result = {"COMPLETE": f"{trial.value or 0:.4f}", "PRUNED": pruned}
    settings = f"steps {p['is']:2d}, scale {p['ugs']:4.2f}, epoch {p['epoch']:2d}" if "epoch" in p else "not begun"
    if levers := searched_levers(p):
        settings += f", solver {levers['solver']}" if "solver" in levers else ""
        settings += ", guided from {1:g} to {0:g}".format(*levers["interval"]) if "interval" in levers else ""
    return f"trial {trial.number:3d}: {settings} -> {result.get(trial.state.name, trial.state.name.lower())}"


def progress_lines(study, budget, part):
    """A function for `run_trials` that logs a line after each trial: its result, the best, the time left.

    Args:
        study: The study.
        budget: Trials in all.
        part: The `progress` of the trials.
    """
    started, there = time.time(), len(trials(study, *FINISHED))

    def line(study, trial):
        finished = trials(study, *FINISHED)
        seconds = time.time() - started
        left = seconds / max(1, len(finished) - there) * (budget - len(finished))
        best = max((t.value for t in finished if t.state.name == "COMPLETE"), default=float("nan"))
        log.info(
            "%s   best %.4f   %d of %d, %.0f s, %.0f s left",
            trial_line(trial), best, len(finished), budget, seconds, max(0, left),
        )  # fmt: skip
        part.reach(len(finished), f"best {best:.4f}")

    return line


def measure(args, context, test, best):
    """Accuracy on test of the default and of the best settings: the only look at the test images.

    Returns:
        {"no_opt": {...}, "opt": {...}} in the published schema, with 95 % intervals of the accuracies, the epoch, and the
        number of images that the classifier has learnt from.

    Raises:
        UserError: An image is not finite or of one value, or a classifier's loss is not finite.
    """
    first = args.train_model == "enc"
    default = (presets.STEPS_OF_SOLVER[args.solver], presets.GUIDANCE_SCALE) if first else (args.is_1, args.ugs_1)
    levers = vars(args).get("levers_1", {})  # of the first search, where this one searches them too
    settings = {"no_opt": Settings(*default, max(context.epochs), levers), "opt": settings_of(best)}
    results, count = {}, args.test_imgs
    # Of its own: with the seed of the trials the chosen one would bring the luck along by which it was chosen.
    seed = args.seed if args.select_on == "test" else repeat_seed(args.seed, MEASUREMENT)
    for name, (steps, scale, epoch, levers) in each(settings.items(), "measurement"):
        context.load(epoch)
        images = context.images(steps, scale, np.arange(count), seed, **levers)
        history = context.train(images, context.labels(count), seed=seed)
        if not np.isfinite(history["loss"]).all():
            raise UserError(
                f"the loss of the classifier that is tested is not finite ({name}: steps {steps}, scale {scale:g})."
            )
        scores = context.scores(test)
        top = {"top_1": scores["top_1_accuracy"], "top_5": scores["top_5_accuracy"]}
        intervals = {key: list(binomial_interval(value, len(test.labels))) for key, value in top.items()}
        sampling = sampling_of(args, steps, levers)
        results[name] = top | {"interval": intervals, **sampling, "ugs": scale, "epoch": epoch, "images": count}
        log.info(
            "test, %-6s: steps %d, scale %.2f, epoch %d, %d images -> top-1 %.4f, top-5 %.4f",
            name, steps, scale, epoch, count, *top.values(),
        )  # fmt: skip
    return results


def contact_sheet(context, study, best, folder):
    """Samples of the best and of the worst trial, one row a class, bad images too. Returns the file."""

    def gave(trial):
        if trial.value is None:
            return trial.user_attrs.get("pruned_because", "pruned before it had an accuracy")
        return f"{trial.value:.3f}{' when pruned' * (trial.state.name == 'PRUNED')}"

    ended = trials(study, *FINISHED)
    worst = min(ended, key=lambda trial: -1 if trial.value is None else trial.value)  # of a pruned trial: its last
    numbers, labels = first_of_each_class(context.spec.num_classes, SHEET_COLUMNS, MAX_SHEET_ROWS)
    sheets, titles = [], []
    for kind, trial in (("best", best), ("worst", worst)):
        steps, scale, epoch, levers = settings_of(trial)
        context.load(epoch)
        sheets.append(context.images(steps, scale, numbers, bad_too=True, **levers))
        titles.append(f"{kind}: trial {trial.number}, {steps} steps, scale {scale:.2f}, epoch {epoch}: {gave(trial)}")
    return side_by_side(*sheets, labels, class_names(context.spec), folder / BEST_AND_WORST, titles)


def repeats_of(study, trial):
    """Columns of the table: values of a trial's repeats, and their mean with that of its first run."""
    values = recorded(study, trial)
    numbers = [] if None in values else [trial.value, *values]
    return {
        "repeats": " ".join("none" if value is None else str(value) for value in values),
        "mean": mean(numbers) if len(numbers) > 1 else "",
    }


def seconds_of(trial):
    """How long a trial took by the clock on the wall, whose hour of summer time is taken out where that is known."""
    if not trial.datetime_complete or not trial.datetime_start:
        return ""
    return round(trial.datetime_complete.timestamp() - trial.datetime_start.timestamp(), 1)


def write_trials(study, folder):
    """A table of all trials as trials.csv. Returns the file."""
    levers = dict.fromkeys(k for t in study.get_trials(deepcopy=False) for k in searched_levers(t.params))
    rows = [
        {
            "trial": t.number,
            "state": t.state.name,
            **{k: t.params.get(k, "") for k in ("is", "ugs", "epoch")},
            **{k: str(searched_levers(t.params).get(k, "")) for k in levers},
            "saved_epoch": t.user_attrs.get("saved_epoch", ""),
            "accuracy": "" if t.value is None else t.value,
            "epochs_trained": t.last_step or "",
            "rung": t.user_attrs.get("rung", ""),
            "pruned_because": t.user_attrs.get("pruned_because", ""),
            **repeats_of(study, t),
            "seconds": t.user_attrs.get("seconds", seconds_of(t)),
        }
        for t in study.get_trials(deepcopy=False)
    ]
    write_csv(folder / "trials.csv", rows)
    return folder / "trials.csv"
