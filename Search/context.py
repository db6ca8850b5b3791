"""What all trials of a search share: the adapted model, its images, and the classifier that learns from them."""

import argparse
import time
from dataclasses import dataclass, field

import numpy as np

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
