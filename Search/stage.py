"""The parts of the stage: begin a study, run its trials, repeat the best, look at test, report, remove what is not chosen."""

import functools
import logging
import time
from statistics import mean

from optuna.trial import TrialState

from Experiment.errors import PassingError, UserError
from Experiment.files import read_json, write_json
from Experiment.locks import claimed, locked
from Experiment.machine import device_name
from Experiment.pictures import try_to_draw
from Experiment.progress import progress
from Experiment.records import describe_run, masked
from Experiment.results import EXTENDED
from Models.runtime import resolve_precision
from Models.weight_cards import weights_hashes
from Models.weight_names import enc_epochs_in_use, own_epochs, remove_files, saved_epochs
from result_plots import experiment_pipeline_bars
from Search.inputs import claim_study, removed_epochs
from Search.pareto import PARETO, report_pareto
from Search.pictures import PLOTS, search_plots
from Search.repeats import (
    chosen,
    missing_repeats,
    ranked,
    recorded,
    run_missing_repeats,
    said_mean,
    wanted_repeats,
)  # fmt: skip
from Search.report import BEST_AND_WORST, contact_sheet, measure, progress_lines, trial_line, write_trials
from Search.settings import as_flags, levers_used, settings_of
from Search.steps import forget_steps, lacks_steps, note_steps, with_origin
from Search.studies import FINISHED, delete_study, open_study, pruner, run_trials
from Search.trials import objective, warm_start
from Search.workers import sweep_stale_trials, trials

WARM = "warm_started"  # of a study: what is tried first is queued
SELECTED = {"val": "validation", "test": "TEST"}

log = logging.getLogger("experiment")


def begin_study(args, known):
    """Open the study, afresh with --restart, and see that its settings and inputs are these.

    Raises:
        UserError: They are others.
    """
    name, lock = known.experiment.study_name(args.train_model), known.folder.parent / "study"
    if args.restart:
        thrown_away = delete_study(known.address, name, lock, known.best_file)
        for file in [*known.folder.glob("*.png"), *known.folder.glob("*.csv")]:  # they show its trials
            if not file.name.startswith("."):  # a worker that still draws
                file.unlink(missing_ok=True)
        forget_steps(known.experiment, args.train_model)
        try_to_draw("the steps that are left", experiment_pipeline_bars, args.root, args.exp)
        log.info("throwing away the study %s with %d trials", name, thrown_away)
        known.thrown_away = True
    study = open_study(known.address, name, args.seed, pruner(args.pruner, args.epochs), args.optimize, lock)
    with locked(lock):  # workers that begin together: the first one names the settings, and what is tried first
        claim_study(study, args, known, resolve_precision(args.precision))
        if args.optimize:
            refuse_result_of_another(known, study)
            if args.warm_start and not study.user_attrs.get(WARM):
                begin_warm(args, known, study)
    return study


def begin_warm(args, known, study):
    """Queue what is tried first. A study that is being queued by a process that was killed is queued again."""
    begun = trials(study)
    if any(trial.state != TrialState.WAITING for trial in begun):
        # Where some are of settings that were queued, an earlier version has done it, which left no mark.
        if not any("fixed_params" in trial.system_attrs for trial in begun):
            log.warning("--warm_start comes too late: the study has trials already")
            args.warm_start = False
        return
    warm_start(args, study, known.epochs, known.spec.name)
    study.set_user_attr(WARM, True)


def refuse_result_of_another(known, study):
    """Raise a UserError if the result that is there is of none of the study's trials, and would be lost to an empty study."""
    found = read_json(known.best_file) if known.best_file.exists() else None
    if found and not any(is_of(found, trial) for trial in trials(study, TrialState.COMPLETE)):
        there = found.get("run", {}).get("arguments", {}).get("storage")
        raise UserError(
            f"{known.best_file} is not of the study {study.study_name} in {masked(known.address)}, which has "
            f"{len(trials(study, *FINISHED))} finished trials: give the --storage of that search "
            f"({masked(there) if there else 'none'}), use another --exp, or --restart to search afresh."
        )


def announce(args, known, study):
    """One line: what is searched, how much of it is there, where to."""
    if args.select_on == "test":
        log.warning("settings are chosen on TEST images, as published: the accuracies below are too good")
    log.info(
        "search %s: %d of %d trials there, steps %d..%d, scale 0..%g, epoch 1..%d, %d images a trial, %s, seed %d, %s -> %s",
        study.study_name, len(trials(study, *FINISHED)), args.n_trials, args.is_min, args.is_max, args.ugs_max,
        max(known.epochs), args.num_imgs, resolve_precision(args.precision), args.seed, device_name(), known.folder,
    )  # fmt: skip


def is_finished(args, known, study):
    """Whether the budget of trials is complete, the best are repeated, and the chosen one is measured on test."""
    if len(trials(study, *FINISHED)) < args.n_trials or not known.best_file.exists():
        return False
    found, repeats = read_json(known.best_file), wanted_repeats(study, args)
    if EXTENDED in found:
        return False
    if "repeats" not in found:  # of an earlier version, which repeated nothing
        return any(is_of(found, trial) for trial in trials(study, TrialState.COMPLETE))
    return not missing_repeats(study, repeats) and is_of(found, chosen(study, repeats)[0])


def is_of(found, trial):
    """Whether the content of a best.json is of this trial: one of another study may have the same number.

    Those of earlier versions do not name their trial's id.
    """
    steps, scale, epoch, _ = settings_of(trial)
    now = {"trial": trial.number, "id": trial.user_attrs.get("id"), "is": steps, "ugs": scale, "epoch": epoch}
    return all(found.get(name, value) == value for name, value in now.items())


def check_epochs(known, study):
    """Raise a UserError if --prune has removed an epoch that trials may need."""
    if gone := sorted(removed_epochs(study) - {str(epoch) for epoch in known.epochs}, key=int):
        raise UserError(
            f"--prune has removed the epochs {', '.join(gone)}, among which a search that goes on would choose: "
            "train them again, or use another --exp."
        )


def remove_drawn(folder):
    """Remove what was drawn of the trials so far, and their front: of a search that goes on it would tell an earlier state."""
    for name in (*(f"{plot}.png" for plot in PLOTS), BEST_AND_WORST, *PARETO):
        (folder / name).unlink(missing_ok=True)


def run_budget(args, known, study, context):
    """Run the trials that are missing. Pictures of the trials before go as the first one begins.

    Raises:
        PassingError: The time was over before the budget was complete: nothing may take this for a finished search.
        UserError: No trial was completed.
    """
    remove_once = functools.cache(remove_drawn)  # what somebody lets draw while the search runs stays

    def tried(trial):
        # Before there was a trial a worker that began at the same moment may have named other settings.
        claim_study(study, args, known, resolve_precision(args.precision))
        remove_once(known.folder)
        return objective(trial, context)

    finished = len(trials(study, *FINISHED))
    if finished < args.n_trials and known.best_file.exists():
        with locked(known.best_file):  # what it holds is not the result of this search
            write_json(known.best_file, read_json(known.best_file) | {EXTENDED: args.n_trials})
    with progress(args.n_trials, "trial", finished) as part:
        lines = progress_lines(study, args.n_trials, part)
        complete = run_trials(study, tried, args.n_trials, args.timeout, lines)
    if not complete:
        finished, budget = len(trials(study, *FINISHED)), args.n_trials
        raise PassingError(
            f"{args.timeout:g} s are over: {finished} of {budget} trials are finished, the same command goes on."
        )
    if not trials(study, TrialState.COMPLETE):
        raise UserError(f"none of the {args.n_trials} trials was completed: all were pruned. Raise --n_trials.")


def measure_best(args, known, study, context, started):
    """Repeat the best trials on validation, then look at the test images, once: of several workers one does so.

    Raises:
        UserError: A result that is measured is none: see `chosen` and `measure`.
    """
    with locked(known.best_file):
        repeats = wanted_repeats(study, args)
        run_missing_repeats(study, context, repeats)
        best, values = chosen(study, repeats)
        runs = {str(trial.number): recorded(study, trial)[:repeats] for trial, _ in ranked(study, repeats) if repeats}
        earlier = read_json(known.best_file) if known.best_file.exists() else {}
        earlier = earlier if is_of(earlier, best) else {}
        if earlier and earlier.get("repeats", {}) == runs and EXTENDED not in earlier:
            return
        results = earlier.get("test")
        if not results:
            results = measure(args, context, known.splits.test, best)
            if args.select_on == "test":
                results["opt"] |= {"select_on": "test"}
            results = with_origin(results, args, known)
            note(args, known, results)
        else:
            note_if_gone(args, known, results)
        if args.save_plots:  # of a search that goes on another trial may be the worst
            sheet = try_to_draw("best and worst", contact_sheet, context, study, best, known.folder)
            log.info("  %s", sheet or "no sheet of the best and the worst")
        steps, scale, epoch, levers = settings_of(best)
        inputs = {**known.inputs, "epoch": known.hashes[str(epoch)]}
        found = {
            "trial": best.number,
            "id": best.user_attrs.get("id"),
            "is": steps,
            "ugs": scale,
            "epoch": epoch,
            **levers_used(args, levers),
            f"{args.select_on}_accuracy": mean(values),
            "first_value": best.value,
            "repeats": runs,
            "test": results,
            "run": describe_run(args, started, inputs, precision_used=resolve_precision(args.precision)),
        }
        write_json(known.best_file, found)


def note(args, known, results):
    """Write the steps of a search into the experiment's results, and draw them."""
    encoders = weights_hashes(saved_epochs(known.experiment.part_dir("enc")), known.inputs["classes"]).values()
    note_steps(known.experiment.pipeline_file, known.spec.name, args.train_model, results, encoders)
    try_to_draw("the steps so far", experiment_pipeline_bars, args.root, args.exp)


def note_if_gone(args, known, results):
    """Write the steps that were measured again where somebody has moved the experiment's results away."""
    if lacks_steps(known.experiment, args.train_model) and "test" in results.get("opt", {}):
        log.info("the steps of this search are not in %s: written again", known.experiment.pipeline_file)
        note(args, known, results)


def report(args, known, study, started):
    """Table, plots, and a line with the best settings.

    Raises:
        UserError: No trial is complete.
    """
    if not trials(study, TrialState.COMPLETE):
        raise UserError(f"the study {study.study_name} has no completed trial yet.")
    repeats = wanted_repeats(study, args)
    best, values = chosen(study, repeats)
    table = write_trials(study, known.folder)
    if not args.optimize:
        for trial in trials(study):
            log.info(trial_line(trial))
        for trial, of_trial in ranked(study, repeats):
            for value in of_trial[1:]:
                said = "no accuracy" if value is None else f"{value:.4f}"
                log.info("trial %3d again -> %s%s", trial.number, said, said_mean(of_trial))
    if args.save_plots:
        for plot in search_plots(study, known.folder):
            log.info("  %s", plot)
        if not (known.folder / BEST_AND_WORST).exists():
            log.info("  samples of the best and the worst trial are drawn as a search ends, with --save_plots")
    log.info("all trials -> %s", table)
    if args.objective == "pareto":
        report_pareto(args, study, known.folder)
    log.info(
        "best of %d trials: %s, %s accuracy %.4f%s, by which it was chosen, %.0f s -> %s",
        len(trials(study, *FINISHED)), as_flags(args, settings_of(best)), SELECTED[args.select_on], mean(values),
        f" (mean of {len(values)} runs)" if len(values) > 1 else "", time.time() - started, known.best_file,
    )  # fmt: skip


def remove_unchosen(args, known, study):
    """Remove the epochs that a finished search has not chosen, after saying which.

    Published ones, and encoders that a fine-tuning has started from, stay.

    Raises:
        UserError: The search is not finished, or somebody is at it, or trains.
    """
    if not is_finished(args, known, study):
        raise UserError(
            f"--prune needs a finished search: {len(trials(study, *FINISHED))} of {args.n_trials} trials are finished, "
            f"{known.best_file} is {'there' if known.best_file.exists() else 'missing'}. "
            "Run the same command without --prune first."
        )
    sweep_stale_trials(study, {})
    if running := trials(study, TrialState.RUNNING):
        raise UserError(f"trial {running[0].number} of the study {study.study_name} is running: wait for its end.")
    best, weights = read_json(known.best_file)["epoch"], known.experiment.part_dir(args.train_model)
    keep = {best, args.autoguide} | (enc_epochs_in_use(known.experiment) if args.train_model == "enc" else set())
    with claimed(weights):
        files = {epoch: file for epoch, file in own_epochs(weights).items() if epoch not in keep}
        numbers, size = ", ".join(map(str, files)) or "none", sum(file.stat().st_size for file in files.values())
        log.info("epoch %d is chosen: removing the epochs %s in %s, %d bytes", best, numbers, weights, size)
        # Noted first: if this process is killed now, the study still knows why epochs are missing.
        study.set_user_attr("removed", sorted({*map(int, removed_epochs(study)), *files}))
        remove_files(files.values())
