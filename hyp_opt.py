"""Search inference steps, guidance scale and epoch by Bayesian optimisation of validation accuracy.

python hyp_opt.py --dataset cifar10 --exp 0001 --train_model enc
python hyp_opt.py --dataset cifar10 --exp 0001 --train_model dif --enc_epoch 31 --is_1 31 --ugs_1 1.19
"""

import argparse
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from cli.flags import (
    add_classifier_flags,
    add_model_flags,
    add_spacing_flag,
    check_batch_size,
    finish_args,
    integer,
    new_parser,
    number,
)  # fmt: skip
from cli.process import logging_to, run, telling_what_is_saved
from Data.registry import DatasetSpec, dataset_spec
from Experiment import presets
from Experiment.errors import UserError
from Experiment.files import merge_json, read_json, write_json
from Experiment.locks import locked
from Experiment.paths import Experiment
from Experiment.records import describe_run
from Experiment.results import PIPELINE_SCHEMA, read_results
from Models.weight_names import chosen_epochs, saved_epochs

log = logging.getLogger("experiment")

SELECTED = {"val": "validation", "test": "TEST"}
STAGE_NAMES = {"enc": "After Transfer Learning", "dif": "After Fine-Tuning"}


def parse_args(argv=None):
    parser = new_parser(__doc__)
    parser.add_argument(
        "--optimize",
        default=True,
        action=argparse.BooleanOptionalAction,
        help="search; --no-optimize only reports an earlier search (--optimize)",
    )
    parser.add_argument(
        "--train_model",
        default="enc",
        choices=["enc", "dif"],
        help="search after training the Class Encoder (enc) or the UNet (dif) (enc)",
    )
    parser.add_argument("--enc_epoch", default=0, type=integer(0), help="Class Encoder of the second search (0)")
    parser.add_argument("--num_imgs", default=presets.TRIAL_IMAGES, type=integer(1), help="images of a trial (4000)")
    parser.add_argument(
        "--is_1",
        default=presets.INFERENCE_STEPS,
        type=integer(1, 1000),
        help="best inference steps of the first search: upper bound of the second (50)",
    )
    parser.add_argument(
        "--ugs_1",
        default=presets.GUIDANCE_SCALE,
        type=number(0, 1000, above=True),
        help="best guidance scale of the first search: half the upper bound of the second (7.5)",
    )
    parser.add_argument("--save_plots", action="store_true", help="write the ten plots")
    parser.add_argument("--n_trials", type=integer(1), help="finished trials in all, over all runs (enc 50, dif 40)")
    parser.add_argument("--timeout", type=number(0, above=True), help="seconds after which no trial is begun")
    parser.add_argument(
        "--storage",
        help="where the study lies: sqlite:///FILE, journal:FILE, postgresql://... (SQLite beside the plots)",
    )
    parser.add_argument(
        "--pruner",
        default="hyperband",
        choices=["hyperband", "halving", "median", "none"],
        help="what stops bad trials early (hyperband)",
    )
    parser.add_argument(
        "--rungs",
        default=3,
        type=integer(1, 6),
        help="a trial begins with 1/4 of its images, goes on with 1/2, then all; 1: all at once (3)",
    )
    parser.add_argument("--warm_start", action="store_true", help="try the paper's best settings first")
    parser.add_argument(
        "--is_min", default=presets.STEPS_RANGE[0], type=integer(1, 1000), help="fewest inference steps (5)"
    )
    parser.add_argument("--is_max", type=integer(1, 1000), help="most inference steps (enc 50; dif --is_1)")
    parser.add_argument("--ugs_max", type=number(0, 1000, above=True), help="largest scale (enc 7.5; dif 2 * --ugs_1)")
    parser.add_argument("--test_imgs", type=integer(1), help="images of the final measurement on test (--num_imgs)")
    parser.add_argument(
        "--gen_batch_size",
        default=presets.GENERATION_BATCH,
        type=integer(1),
        help="most images generated at a time (250; on a processor 16, mini 96)",
    )
    parser.add_argument(
        "--epochs", default=presets.TRIAL_EPOCHS, type=integer(1), help="most epochs of a trial's classifier (100)"
    )
    parser.add_argument(
        "--select_on",
        default="val",
        choices=["val", "test"],
        help="images whose accuracy is maximised; test as published, which is no fair test (val)",
    )
    add_classifier_flags(parser)
    add_spacing_flag(parser)
    add_model_flags(parser)
    parser.add_argument("--restart", action="store_true", help="throw away the study that is there")
    args = finish_args(parser, argv)
    first = args.train_model == "enc"
    args.n_trials = args.n_trials or presets.TRIALS[args.train_model]
    args.is_max = args.is_max or (presets.STEPS_RANGE[1] if first else args.is_1)
    args.ugs_max = args.ugs_max or (presets.SCALE_MAX if first else 2 * args.ugs_1)
    args.test_imgs = args.test_imgs or args.num_imgs
    check_batch_size(args, presets.CLASSIFIER_BATCH, args.num_imgs)
    if args.restart and not args.optimize:
        parser.error("argument --restart: not allowed with --no-optimize")
    if args.is_min > args.is_max:
        parser.error(f"argument --is_min: {args.is_min} is more than the most inference steps, {args.is_max}")
    return args


@dataclass
class Plan:
    """What is known of a search before anything heavy is loaded.

    Attributes:
        spec: The dataset's.
        experiment: Where everything lies.
        folder: Of the report; the study's database lies beside it.
        epochs: {epoch: file} of what is searched.
        epoch_files: Files of the epochs that stay as they are.
        address: Where the study lies.
        done: None: a search always reports.
    """

    spec: DatasetSpec
    experiment: Experiment
    folder: Path
    epochs: dict
    epoch_files: dict
    address: str
    done: None = None


def plan(args):
    """Look at what is there.

    Raises:
        UserError: The search cannot begin: there are no weights, or the results are broken.
    """
    spec = dataset_spec(args.dataset, args.skip_broken, args.resolution, args.background)
    experiment = Experiment(args.root, args.exp, spec.name)
    folder, weights = experiment.search_dir(args.train_model), experiment.part_dir(args.train_model)
    epochs = saved_epochs(weights)
    if not epochs:
        raise UserError(
            f"there are no weights in {weights}: run SD_adapting.py --train_model {args.train_model} first."
        )
    epoch_files = chosen_epochs(experiment, args.enc_epoch if args.train_model == "dif" else 0, 0)
    if args.optimize and experiment.pipeline_file.exists():
        read_results(experiment.pipeline_file, PIPELINE_SCHEMA)  # reject a broken file before days of search
    address = args.storage or f"sqlite:///{folder.parent / 'study.db'}"
    return Plan(spec, experiment, folder, epochs, epoch_files, address)


def search(args, known=None):
    """Steps 2 and 4 of the paper: find the settings of the best validation accuracy, then look at test once.

    Args:
        args: What `parse_args` returns.
        known: What `plan` has found, if it was asked before.

    Returns:
        The content of best.json; None where the time was over before the budget of trials was.
    """
    import optuna

    from Search.studies import FINISHED, check_address, database_errors, trials
    from Search.trials import prepare

    started = time.time()
    known = known or plan(args)
    check_address(known.address, create=args.optimize)
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # each trial has its own line here
    with database_errors(known.address):
        # A first search tells all that may be wrong with its input before it writes anything.
        new = args.optimize and not known.folder.exists()
        ready = prepare(args, known.spec, known.experiment, known.epochs, known.epoch_files) if new else None
        study = begin_study(args, known)

        def finished_trials():
            return len(trials(study, *FINISHED))

        with (
            logging_to(known.folder),
            telling_what_is_saved(lambda: f"{finished_trials()} of {args.n_trials} trials are finished"),
        ):
            announce(args, known, study)
            best_file = known.folder / "best.json"
            if args.optimize and (finished_trials() < args.n_trials or not best_file.exists()):
                splits, context = ready or prepare(args, known.spec, known.experiment, known.epochs, known.epoch_files)
                if not run_budget(args, known, study, context):
                    return None
                measure_best(args, known, study, context, splits.test, started)
            elif args.optimize:
                log.info("finished already: this is its report")
            report(args, known, study, started)
            return read_json(best_file) if best_file.exists() else None


def begin_study(args, known):
    """Open the study, afresh with --restart, and see that its settings are these.

    Raises:
        UserError: They are others.
    """
    from Search.studies import delete_study, open_study, pruner
    from Search.trials import claim_study

    name, lock = known.experiment.study_name(args.train_model), known.folder.parent / "study"
    if args.restart:
        thrown_away = delete_study(known.address, name, lock)
        log.info("throwing away the study %s with %d trials", name, thrown_away)
        (known.folder / "best.json").unlink(missing_ok=True)
    study = open_study(known.address, name, args.seed, pruner(args.pruner, args.epochs), args.optimize, lock)
    claim_study(study, args, known.epochs, known.address)
    return study


def announce(args, known, study):
    """One line: what is searched, how much of it is there, where to."""
    from Search.studies import FINISHED, trials

    if args.select_on == "test":
        log.warning("settings are chosen on TEST images, as published: the accuracies below are too good")
    log.info(
        "search %s: %d of %d trials there, steps %d..%d, scale 0..%g, epoch 1..%d, %d images a trial, seed %d -> %s",
        study.study_name, len(trials(study, *FINISHED)), args.n_trials, args.is_min, args.is_max, args.ugs_max,
        max(known.epochs), args.num_imgs, args.seed, known.folder,
    )  # fmt: skip


def run_budget(args, known, study, context):
    """Run the trials that are missing. Returns whether the budget is complete.

    Raises:
        UserError: No trial was completed.
    """
    from optuna.trial import TrialState

    from Search.report import progress_lines
    from Search.studies import FINISHED, run_trials, trials
    from Search.trials import objective, warm_start

    if args.warm_start and not trials(study):
        warm_start(args, study, known.epochs)
    lines = progress_lines(study, args.n_trials)
    if not run_trials(study, lambda trial: objective(trial, context), args.n_trials, args.timeout, lines):
        finished = len(trials(study, *FINISHED))
        log.info(
            "%g s are over: %d of %d trials are finished, the same command goes on",
            args.timeout,
            finished,
            args.n_trials,
        )
        return False
    if not trials(study, TrialState.COMPLETE):
        raise UserError(f"none of the {args.n_trials} trials was completed: all were pruned. Raise --n_trials.")
    return True


def measure_best(args, known, study, context, test, started):
    """Look at the test images, once: of several workers one measures."""
    from plots import experiment_pipeline_bars
    from Search.report import contact_sheet, measure

    best_file = known.folder / "best.json"
    with locked(best_file):
        best = study.best_trial
        if best_file.exists() and read_json(best_file).get("trial") == best.number:
            return
        results = measure(args, context, test, best)
        stage = {known.spec.name: {STAGE_NAMES[args.train_model]: results}}
        merge_json(known.experiment.pipeline_file, stage)
        experiment_pipeline_bars(args.root, args.exp)
        if args.save_plots:
            log.info("  %s", contact_sheet(context, study, known.folder))
        found = {
            "trial": best.number,
            "is": best.params["is"],
            "ugs": best.params["ugs"],
            "epoch": best.user_attrs["saved_epoch"],
            f"{args.select_on}_accuracy": best.value,
            "test": results,
            "run": describe_run(args, started),
        }
        write_json(best_file, found)


def report(args, known, study, started):
    """Table, plots, and a line with the best settings.

    Raises:
        UserError: No trial is complete.
    """
    from optuna.trial import TrialState

    from plots import search_plots
    from Search.report import trial_line, write_trials
    from Search.studies import FINISHED, trials

    if not trials(study, TrialState.COMPLETE):
        raise UserError(f"the study {study.study_name} has no completed trial yet.")
    best = study.best_trial
    table = write_trials(study, known.folder)
    if not args.optimize:
        for trial in trials(study):
            log.info(trial_line(trial))
    if args.save_plots:
        for plot in search_plots(study, known.folder):
            log.info("  %s", plot)
    log.info("all trials -> %s", table)
    log.info(
        "best of %d trials: --inf_steps %d --ugs %g --%s_epoch %d, %s accuracy %.4f, %.0f s -> %s",
        len(trials(study, *FINISHED)), best.params["is"], best.params["ugs"], args.train_model,
        best.user_attrs["saved_epoch"], SELECTED[args.select_on], best.value, time.time() - started,
        known.folder / "best.json",
    )  # fmt: skip


if __name__ == "__main__":
    run(search, parse_args, plan)
