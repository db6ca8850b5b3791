"""Flags of the search: what is searched, how and for how long, and how a trial is measured."""

import argparse

from cli.best import epoch_or_best
from cli.flags import integer, number
from Experiment import presets


def add_search_flags(add):
    """What is searched, how, and for how long."""
    add("--optimize", default=True, action=argparse.BooleanOptionalAction,
        help="search; --no-optimize only reports an earlier search (--optimize)")  # fmt: skip
    add("--train_model", default="enc", choices=["enc", "dif"],
        help="search after training the Class Encoder (enc) or the UNet (dif) (enc)")  # fmt: skip
    add("--enc_epoch", type=epoch_or_best, help="Class Encoder of the second search, or best (0)")
    add("--is_1", type=integer(1, 1000),
        help="best inference steps of the first search: upper bound of the second (50)")  # fmt: skip
    add("--ugs_1", type=number(0, 1000, above=True),
        help="best guidance scale of the first search: half the upper bound of the second (7.5)")  # fmt: skip
    add("--is_min", default=presets.STEPS_RANGE[0], type=integer(1, 1000), help="fewest inference steps (5)")
    add("--is_max", type=integer(1, 1000), help="most inference steps (enc 50, with --solver dpmpp 15; dif --is_1)")
    add("--ugs_max", type=number(0, 1000, above=True), help="largest scale (enc 7.5; dif 2 * --ugs_1)")
    add("--warm_start", action="store_true", help="try the paper's best settings for other datasets first")
    add("--n_trials", type=integer(1), help="finished trials in all, over all runs (enc 50, dif 40)")
    add("--timeout", type=number(0, above=True), help="seconds after which no trial is begun")
    add("--storage", help="where the study lies: sqlite:///FILE, journal:FILE, postgresql://... (SQLite beside the plots)")
    add("--pruner", default="hyperband", choices=["hyperband", "halving", "median", "none"],
        help="what stops bad trials early (hyperband)")  # fmt: skip
    add("--restart", action="store_true", help="throw away the study that is there")


def add_measurement_flags(add):
    """How a trial is measured, and what becomes of the best."""
    add("--num_imgs", default=presets.TRIAL_IMAGES, type=integer(1), help="images of a trial (4000)")
    add("--rungs", default=3, type=integer(1, 6),
        help="a trial begins with 1/4 of its images, goes on with 1/2, then all; 1: all at once (3)")  # fmt: skip
    add("--gen_batch_size", default=presets.GENERATION_BATCH, type=integer(1),
        help="most images generated at a time (250; on a processor 16 or 96)")  # fmt: skip
    add("--epochs", default=presets.TRIAL_EPOCHS, type=integer(1), help="most epochs of a trial's classifier (100)")
    add("--select_on", default="val", choices=["val", "test"],
        help="images whose accuracy is maximised; test as published, which is no fair test (val)")  # fmt: skip
    add("--repeats", type=integer(0, 100),
        help="times that the best three trials are run again with new seeds; the mean decides (1; with --select_on test 0)")  # fmt: skip
    add("--test_imgs", type=integer(1), help="images of the final measurement on test (--num_imgs)")
    add("--save_plots", action="store_true", help="write the ten plots")
    add("--prune", action="store_true", help="report, and remove the epochs that the finished search has not chosen")


def complete_bounds(args):
    """Fill in the bounds of the search that are not given. Returns what is wrong with them, or None."""
    first = args.train_model == "enc"
    most = presets.DPMPP_STEPS_MAX if args.solver == "dpmpp" else presets.STEPS_RANGE[1]
    args.is_max = args.is_max or (most if first else args.is_1)
    args.ugs_max = args.ugs_max or (presets.SCALE_MAX if first else 2 * args.ugs_1)
    if args.is_min > args.is_max:
        return f"argument --is_min: {args.is_min} is more than the most inference steps, {args.is_max}"
    return None
