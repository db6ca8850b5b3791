"""A trial of the search: its settings, and its objective, the accuracy of a classifier trained on what they generate."""

import argparse
import logging
from dataclasses import dataclass
from statistics import median

import keras
import numpy as np
import optuna

from Data.loaders import load_splits, resize_images
from Data.registry import DatasetSpec
from Experiment import presets
from Experiment.errors import UserError
from Models.adapter import WholeNetwork, load_diffusion
from Models.backbones import BACKBONES
from Models.classifier import Classifier
from Models.runtime import make_repeatable, precision
from Models.sampler import block_size, generate_images
from Search.studies import shown_address, trials

log = logging.getLogger("experiment")

# Arguments that two runs must share to be one study.
SETTINGS = (
    "dataset", "backbone", "seed", "num_imgs", "batch_size", "epochs", "classifier", "is_min", "is_max", "ugs_max",
    "enc_epoch", "select_on", "resize", "timestep_spacing", "rungs", "pruner", "precision", "test_imgs", "is_1", "ugs_1",
    "skip_broken",
)  # fmt: skip


@dataclass
class Context:
    """All that a trial needs besides its settings.

    Attributes:
        args: The script's arguments.
        spec: The dataset's.
        adapted: What was adapted, a `WholeNetwork`: epochs are loaded into it.
        sampler: A `Sampler`.
        block: Images that are computed together.
        classifier: A `Classifier`.
        epochs: {epoch: file}.
        chosen_on: Images and labels whose accuracy is maximised.
    """

    args: argparse.Namespace
    spec: DatasetSpec
    adapted: WholeNetwork
    sampler: object
    block: int
    classifier: object
    epochs: dict
    chosen_on: tuple

    def load(self, epoch):
        """Load the searched part's weights of an epoch."""
        self.adapted.load(self.epochs[epoch])

    def nearest_epoch(self, epoch):
        """The saved epoch nearest to a suggested one: weights may have been saved every few epochs only."""
        return min(self.epochs, key=lambda saved: abs(saved - epoch))

    def whole_blocks(self, count):
        """The number of images of the whole blocks that hold the first `count`."""
        return -(-count // self.block) * self.block

    def images(self, steps, scale, numbers):
        """Images of the loaded weights as the classifier sees them, uint8 (N, px, px, 3)."""
        made = generate_images(
            self.sampler,
            self.adapted.diffusion.encoder,
            numbers,
            num_steps=steps,
            scale=scale,
            seed=self.args.seed,
            block=self.block,
            spacing=self.args.timestep_spacing,
        )
        return np.concatenate([resize_images(images, self.spec.resolution, self.args.resize) for _, images in made])

    def labels(self, count):
        """Labels (count,) of the first images."""
        return np.arange(count) % self.spec.num_classes

    def rungs(self):
        """[(last epoch, images)] of the rungs of a trial: one at a half of the images, say, lasts half of the epochs."""
        args, rungs = self.args, []
        for share in (2 ** -(args.rungs - 1 - i) for i in range(args.rungs)):  # 1/4, 1/2, 1
            rung = max(1, round(args.epochs * share)), max(1, round(args.num_imgs * share))
            if rungs and (rungs[-1][0] == rung[0] or rungs[-1][1] == rung[1]):
                rungs.pop()  # too few epochs or images for two rungs
            rungs.append(rung)
        return rungs

    def train(self, images, labels, **how):
        """Train the classifier on synthetic images; returns its history, with the real validation accuracy."""
        how = {"epochs": self.args.epochs, **how}
        history, _ = self.classifier.fit(
            (images, labels),
            self.chosen_on,
            batch_size=self.args.batch_size,
            seed=self.args.seed,
            patience=presets.TRIAL_PATIENCE,
            verbose=0,
            **how,
        )
        return history


def prepare(args, spec, experiment, epochs, epoch_files):
    """The dataset's splits, and what the trials share.

    Args:
        args: The script's arguments.
        spec: The dataset's.
        experiment: Where everything lies.
        epochs: {epoch: file} of what is searched.
        epoch_files: Files of the epochs that stay as they are, for `load_diffusion`.
    """
    make_repeatable(args.seed, args.deterministic)
    splits = load_splits(spec, args.data_dir, args.seed, spec.resolution, experiment)
    classifier = Classifier(args.classifier, spec.resolution, spec.num_classes)
    backbone = BACKBONES[args.backbone]
    with precision(args.precision):
        diffusion = load_diffusion(backbone, spec.num_classes, args.weights_dir, **epoch_files)
    adapted = WholeNetwork(diffusion, args.train_model)
    for file in epochs.values():
        adapted.check(file)
    chosen_on = splits.test if args.select_on == "test" else splits.val
    block = block_size(backbone, args.gen_batch_size)
    return splits, Context(args, spec, adapted, diffusion.sampler(), block, classifier, epochs, chosen_on)


def suggest(trial, context):
    """The settings of a trial: inference steps, guidance scale and epoch in the paper's ranges."""
    args = context.args
    steps = trial.suggest_int("is", args.is_min, args.is_max)
    scale = trial.suggest_float("ugs", 0.0, args.ugs_max)
    epoch = trial.suggest_int("epoch", 1, max(context.epochs))
    return steps, scale, context.nearest_epoch(epoch)


def objective(trial, context):
    """Best validation accuracy of a classifier trained on images of the suggested settings.

    A trial climbs rungs: the classifier begins on a quarter of the images, goes on with half of them, then all; the
    images of the next rung are made when it is reached. An epoch has as many steps on every rung, so that accuracies
    after equal epochs can be compared, and bad settings are pruned before most of their images exist.

    Real images are read from the validation split alone (with --select_on test, as published, from the test split).
    """
    args, rungs = context.args, context.rungs()
    steps, scale, epoch = suggest(trial, context)
    trial.set_user_attr("saved_epoch", epoch)
    context.load(epoch)

    def report(epoch, logs):
        if not np.isfinite(logs["loss"]):
            raise optuna.TrialPruned("the classifier's loss is not finite")
        trial.report(logs["val_accuracy"], epoch + 1)
        if trial.should_prune():
            raise optuna.TrialPruned

    parts, accuracies, made, done = [], [], 0, 0
    for rung, (last_epoch, count) in enumerate(rungs, start=1):
        trial.set_user_attr("rung", f"{rung}/{len(rungs)}")
        whole = context.whole_blocks(count)
        if whole > made:
            parts.append(context.images(steps, scale, np.arange(made, whole)))
        images = np.concatenate(parts)[:count]
        history = context.train(
            images,
            context.labels(count),
            epochs=last_epoch,
            first_epoch=done,
            steps=-(-args.num_imgs // args.batch_size),
            callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=report)],
        )
        accuracies += history["val_accuracy"]
        made, done = whole, last_epoch
    return max(accuracies)


def claim_study(study, args, epochs, address):
    """Note the settings in a study without trials, or compare them with those of one that has some.

    Raises:
        UserError: They differ; it shows both.
    """
    settings = {name: getattr(args, name) for name in SETTINGS} | {"last_epoch": max(epochs)}
    before = study.user_attrs.get("settings", {})
    shown = ", ".join(f"{k} {before[k]} (now {v})" for k, v in settings.items() if k in before and before[k] != v)
    if shown and trials(study):
        raise UserError(
            f"the study {study.study_name} in {shown_address(address)} has other settings: {shown}. Use another --exp."
        )
    study.set_user_attr("settings", settings)


def warm_start(args, study, epochs):
    """Let the search begin with the settings that the paper found, within the bounds of this search.

    A dataset that is not the paper's begins with the median of the paper's six. After fine-tuning, the first search's
    settings are tried too: the final ones are then better than those, or they are those.
    """
    known = presets.SEARCH_RESULTS[args.train_model]
    found = [known.get(args.dataset) or [median(values) for values in zip(*known.values())]]
    if args.train_model == "dif":
        found.append((1, args.is_1, args.ugs_1))
    for share, steps, scale in found:
        settings = {
            "is": min(max(round(steps), args.is_min), args.is_max),
            "ugs": round(min(scale, args.ugs_max), 4),
            "epoch": max(1, round(share * max(epochs))),
        }
        study.enqueue_trial(settings, skip_if_exists=True)
