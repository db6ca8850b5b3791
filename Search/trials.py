"""A trial of the search: its settings, and its objective, the accuracy of a classifier trained on what they generate."""

import uuid
from statistics import median

import keras
import numpy as np
import optuna

from Experiment import presets
from Search.context import Unusable
from Search.settings import as_params, settings_of, suggest_settings


def suggest(trial, context):
    """The `Settings` of a new trial."""
    suggest_settings(trial, context.args, max(context.epochs))
    trial.set_user_attr("saved_epoch", context.nearest_epoch(trial.params["epoch"]))
    trial.set_user_attr("id", uuid.uuid4().hex)  # a trial of another study may have the same number and settings
    return settings_of(trial)


def climb(context, settings, seed, on_rung, on_epoch):
    """Best validation accuracy of a classifier trained on images of some settings; with --select_on test that on test, of the
    best epoch on validation of its last rung.

    It climbs rungs: the classifier begins on a quarter of the images, goes on with half of them, then all; the images of
    the next rung are made when it is reached. An epoch has as many steps on every rung, so that accuracies after equal
    epochs can be compared, and bad settings are pruned before most of their images exist.

    Args:
        context: A `Context`.
        settings: Its `Settings`.
        seed: Of the images and of the classifier's batches.
        on_rung: Called with a rung's name when it begins.
        on_epoch: Called with the number and the logs of every epoch.

    Raises:
        Unusable: An image is bad, or the loss is not finite.
    """
    steps, scale, epoch, levers = settings
    rungs = context.rungs()
    context.load(epoch)

    def check(epoch, logs):
        if not np.isfinite(logs["loss"]):
            raise Unusable("the classifier's loss is not finite")
        on_epoch(epoch, logs)

    parts, reached, made, done = [], [], 0, 0
    for rung, (last_epoch, count) in enumerate(rungs, start=1):
        on_rung(f"{rung}/{len(rungs)}")
        whole = context.whole_blocks(count)
        if whole > made:
            parts.append(context.images(steps, scale, np.arange(made, whole), seed, **levers))
        images = np.concatenate(parts)[:count]
        history = context.train(
            images,
            context.labels(count),
            seed=seed,
            epochs=last_epoch,
            first_epoch=done,
            steps=-(-context.args.num_imgs // context.args.batch_size),
            callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=check)],
        )
        reached += history["val_accuracy"]
        made, done = whole, last_epoch
    return max(reached) if context.test is None else context.scores(context.test)["top_1_accuracy"]


def objective(trial, context):
    """The value of a trial, see `climb`.

    The pruner sees the best validation accuracy so far: one bad epoch prunes no good trial. A trial whose images are bad or
    whose classifier diverges is pruned, with the reason in its attribute `pruned_because`.

    Real images are read from the validation split alone, unless --select_on test asks for the published protocol: there the
    finished classifier's accuracy on test is maximised.
    """
    settings = suggest(trial, context)
    best = 0.0

    def report(epoch, logs):
        nonlocal best
        best = max(best, logs["val_accuracy"])
        trial.report(best, epoch + 1)
        if trial.should_prune():
            raise optuna.TrialPruned

    try:
        value = climb(context, settings, context.args.seed, lambda name: trial.set_user_attr("rung", name), report)
    except Unusable as error:
        trial.set_user_attr("pruned_because", str(error))
        raise optuna.TrialPruned(str(error)) from None
    if context.args.objective == "pareto" and context.pace:
        trial.set_user_attr("seconds_an_image", round(context.pace, 5))
    return value


def accuracy_again(context, trial, seed):
    """Best accuracy of a trial's settings with another seed: other images, and another order of them in training.

    Raises:
        Unusable: It gives none.
    """
    return climb(context, settings_of(trial), seed, lambda name: None, lambda epoch, logs: None)


def warm_start(args, study, epochs, dataset):
    """Let the search begin with settings that the paper found, within the bounds of this search.

    They are the median of the paper's datasets. Those that it found for this very dataset are left out, for they were
    chosen on its test images: with --select_on test, as published, they are taken instead. The same settings are tried with
    the last Class Encoder too: the paper's share of few epochs may be one that has hardly learned. After fine-tuning, the
    first search's settings are tried instead: the final ones are then better than those, or they are those.

    Args:
        args: The script's arguments.
        study: A study without trials.
        epochs: Numbers of the saved epochs.
        dataset: Name of the dataset.
    """
    known = presets.SEARCH_RESULTS[args.train_model]
    if args.select_on == "test" and dataset in known:
        paper = known[dataset]
    else:
        paper = [median(values) for values in zip(*(known[name] for name in known if name != dataset))]
    first = (args.is_1, args.ugs_1, vars(args).get("levers_1", {})) if args.train_model == "dif" else (*paper[1:], {})
    found = [(*paper, {}), (1, *first)]
    for share, steps, scale, levers in found:
        settings = {
            "is": min(max(round(steps), args.is_min), args.is_max),
            "ugs": min(round(scale, 4), args.ugs_max),
            "epoch": max(1, round(share * max(epochs))),
            **as_params(args, levers),
        }
        study.enqueue_trial(settings, skip_if_exists=True)
