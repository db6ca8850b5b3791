"""A trial of the search: its settings, and its objective, the accuracy of a classifier trained on what they generate."""

import argparse
import logging
import time
import uuid
from dataclasses import dataclass, field
from statistics import median

import keras
import numpy as np
import optuna

from Data.registry import DatasetSpec, augmentations, tell_augmentations
from Data.resizing import resize_images
from Experiment import presets
from Experiment.errors import UserError
from Experiment.progress import each
from Models.adapter import WholeNetwork, load_diffusion, load_guide
from Models.augment import Augment
from Models.backbones import BACKBONES
from Models.classifier import Classifier, accuracies
from Models.devices import start_devices
from Models.recipes import Recipe
from Models.runtime import make_repeatable, precision
from Models.sampler import block_size, generate_images
from Models.weight_cards import read_card
from Search.settings import as_params, settings_of, suggest_settings

log = logging.getLogger("experiment")


class Unusable(UserError):
    """Settings that give no accuracy: images that are not finite or of one value, or a classifier that diverges."""


@dataclass
class Context:
    """All that a trial needs besides its settings.

    Attributes:
        args: The script's arguments.
        spec: The dataset's.
        adapted: What was adapted, a `WholeNetwork`: epochs are loaded into it.
        sampler: A `Sampler` with the user's solver.
        block: Images that are computed together.
        classifier: A `Classifier`.
        epochs: {epoch: file}.
        val: Validation images and labels: they decide a classifier's rate, its end and its best epoch.
        test: With --select_on test, as published, the images whose accuracy is maximised; else None: it is that of `val`.
        others: {solver: `Sampler`} of other solvers, in use.
        pace: Seconds for an image of the block that was made last.
        hashes: {epoch as text: SHA-256} of the weights with which the search began.
    """

    args: argparse.Namespace
    spec: DatasetSpec
    adapted: WholeNetwork
    sampler: object
    block: int
    classifier: object
    epochs: dict
    val: tuple
    test: tuple | None = None
    others: dict = field(default_factory=dict)
    pace: float | None = None
    hashes: dict = field(default_factory=dict)

    def load(self, epoch):
        """Load the searched part's weights of an epoch.

        Raises:
            UserError: They are others than those with which the search began.
        """
        file, known = self.epochs[epoch], self.hashes.get(str(epoch))
        if known and read_card(file)["sha256"] != known:
            raise UserError(f"{file} has changed since this search began: the same command says what is to be done.")
        self.adapted.load(file)

    def nearest_epoch(self, epoch):
        """The saved epoch nearest to a suggested one: weights may have been saved every few epochs only."""
        return min(self.epochs, key=lambda saved: abs(saved - epoch))

    def whole_blocks(self, count):
        """The number of images of the whole blocks that hold the first `count`."""
        return -(-count // self.block) * self.block

    def sampler_of(self, solver):
        """The sampler of a solver; another than the user's is built when it is first asked for."""
        if solver == self.args.solver:
            return self.sampler
        if solver not in self.others:
            self.others[solver] = self.adapted.diffusion.sampler(solver, self.sampler.guide)
        return self.others[solver]

    def images(self, steps, scale, numbers, seed=None, bad_too=False, solver=None, interval=None):
        """Images of the loaded weights as the classifier sees them, uint8 (N, px, px, 3).

        Args:
            steps, scale: Settings of the sampler.
            numbers: int (N,), ascending: which images.
            seed: Of the initial noise; without it the user's.
            bad_too: Whether images may be of one value or hold NaN.
            solver, interval: Where they are searched; else the user's.

        Raises:
            Unusable: One is, or does.
        """
        made = generate_images(
            self.sampler_of(solver or self.args.solver),
            self.adapted.diffusion.encoder,
            numbers,
            num_steps=steps,
            scale=scale,
            seed=self.args.seed if seed is None else seed,
            block=self.block,
            spacing=self.args.timestep_spacing,
            interval=interval or self.args.guidance_interval,
        )
        parts, count, begun = [], 0, time.perf_counter()
        for _, images, good in each(made, "image", len(numbers), lambda block: len(block[0])):
            self.pace, begun = (time.perf_counter() - begun) / self.block, time.perf_counter()
            count += len(good)
            if not (good.all() or bad_too):
                raise Unusable(
                    f"{np.sum(~good)} of the first {count} images with {steps} steps and scale {scale:g} hold NaN or are "
                    "of one value: look at --precision and the weights"
                )
            parts.append(resize_images(images, self.spec.resolution, self.args.resize))
        return np.concatenate(parts)

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
        how = {"epochs": self.args.epochs, "seed": self.args.seed, **how}
        if names := augmentations(self.spec, self.args.augment):
            rung = how.get("first_epoch", 0)  # where it begins
            how["augment"] = Augment(names, len(images), how["seed"], rung)
        history, _ = self.classifier.fit(
            (images, labels), self.val, batch_size=self.args.batch_size, patience=presets.TRIAL_PATIENCE, verbose=0, **how
        )
        return history

    def scores(self, split):
        """Accuracies of the classifier that was trained last, at its best epoch on validation."""
        return accuracies(self.classifier.probabilities(split.images), split.labels)


def prepare(args, known):
    """What the trials share: a `Context`.

    Args:
        args: The script's arguments.
        known: What is known of the search: `spec`, `splits`, `epochs` {epoch: file} of what is searched, and `epoch_files`,
            those of the epochs that stay as they are, for `load_diffusion`.

    Raises:
        UserError: Weights do not fit.
    """
    start_devices(args)
    spec, backbone = known.spec, BACKBONES[args.backbone]
    tell_augmentations(spec, args.augment)
    recipe = Recipe(args.optimizer, args.epochs)
    classifier = Classifier(args.classifier, spec.resolution, spec.num_classes, recipe)
    # A fresh Class Encoder is that of training and generation, which draw nothing before it.
    make_repeatable(args.seed, args.deterministic)
    with precision(args.precision):
        diffusion = load_diffusion(backbone, spec.num_classes, args.weights_dir, **first_epochs(args, known))
        guide = None
        if args.autoguide is not None:
            guide = load_guide(backbone, args.train_model, known.guide, spec.num_classes, args.weights_dir)
    adapted = WholeNetwork(diffusion, args.train_model)
    for file in known.epochs.values():
        adapted.check(file)
    block = block_size(backbone, args.gen_batch_size)
    sampler = diffusion.sampler(args.solver, guide)
    test = known.splits.test if args.select_on == "test" else None
    return Context(args, spec, adapted, sampler, block, classifier, known.epochs, known.splits.val, test, hashes=known.hashes)


def first_epochs(args, known):
    """Epoch files to begin with. In a search of the UNet's epochs the first of them takes the place of the pretrained one,
    which is then neither read nor downloaded."""
    first = {"dif": next(iter(known.epochs.values()))} if args.train_model == "dif" else {}
    return known.epoch_files | first


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
