"""Membership: is an image known to have been trained on? Asked of the model that made the set, and of classifiers."""

import hashlib
import json
import logging

import numpy as np

from Audit.attacks import likelihood_ratio, strength
from Audit.denoising import denoising_losses
from Audit.shadows import ShadowRecipe, confidence_of, shadow_confidences
from Data.latents import cached_moments, moments_file
from Experiment.errors import UserError
from Experiment.files import atomic_path, plain_arrays, read_json
from Experiment.levers import without_off
from Experiment.paths import TRAINING_RECORD
from Experiment.randomness import random_stream
from Models.adapter import load_diffusion
from Models.backbones import BACKBONES
from Models.classifier import Classifier
from Models.moments import moments_encoder
from Models.runtime import make_repeatable, precision, resolve_precision
from Models.trained import load_best

log = logging.getLogger("experiment")

LOSSES_ADDRESS = 6  # of random numbers; others: Audit/material.py


def ask_model(args, known, found):
    """The attack by denoising loss; None where it cannot be made or is not wanted, which `found` then says."""
    what = "The denoising loss of the model that made the set"
    if not args.losses:
        found["missing"].append(f"{what}: left out by --losses 0")
        return None
    if not known.epochs:
        return None  # the plan has said why
    made_with = known.source.manifest.get("seed", args.seed)
    key = {
        "epochs": known.inputs["weights"],
        "data": known.inputs["data"],
        "seed": args.seed,
        "losses": args.losses,
        "precision": resolve_precision(args.precision),
        **without_off({"tf32": args.tf32}),
        **({} if known.epochs["enc"] else {"fresh_encoder": made_with}),
    }
    kept = (
        known.experiment.seen_dir / f"{known.spec.name}_losses_{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}.npz"
    )
    if kept.exists():
        with plain_arrays(kept) as losses:
            return strength_of_losses(losses["train"], losses["val"])
    try:
        moments, labels = chosen_moments(args, known, BACKBONES[args.backbone])
        make_repeatable(made_with)  # for a fresh Class Encoder
        with precision(args.precision):
            classes = len(known.inputs["classes"])
            diffusion = load_diffusion(BACKBONES[args.backbone], classes, args.weights_dir, **known.epochs, decoder=False)
    except UserError as error:  # pretrained weights that are not to be had
        found["missing"].append(f"{what}: {error}")
        found["later"] = True  # the same command may have them
        return None
    log.info("denoising loss of %d training and %d validation images", *map(len, labels.values()))
    losses = denoising_part(diffusion, moments, labels, args.seed)
    with atomic_path(kept) as partial:
        np.savez(partial, **losses)
    return strength_of_losses(**losses)


def chosen_moments(args, known, backbone):
    """Moments float32 (n, h, w, 8) and labels int (n,) of training and validation images, drawn by seed: two dicts."""
    encode, moments, labels = moments_encoder(backbone, args.weights_dir), {}, {}
    of_dataset = (known.experiment, backbone, args.weights_dir)
    for i, split in enumerate(("train", "val")):
        images, of_split = getattr(known.native, split)
        stream = random_stream(args.seed, "audit_subset", LOSSES_ADDRESS, i)
        rows = np.sort(stream.permutation(len(of_split))[: args.losses])
        of_all = moments_file(*of_dataset, images)
        if of_all.exists():  # of the adaptation
            moments[split] = np.asarray(cached_moments(of_all, images, encode)[rows])
        else:
            moments[split] = np.asarray(cached_moments(moments_file(*of_dataset, images[rows]), images[rows], encode))
        labels[split] = of_split[rows]
    return moments, labels


def ask_classifiers(args, known, real, found):
    """The attack on classifiers, {name: strength}; empty where it is not wanted, which `found` then says.

    Args:
        real: Folder of the classifier that has learnt from the real images: its recipe is that of the shadows.
    """
    if not args.shadows:
        found["missing"].append("The attack on classifiers: left out by --shadows 0")
        return {}
    of_real = "real" if real.name == "real" else "teacher"
    targets = known.targets if "real" in known.targets else {of_real: real, **known.targets}
    if len(targets) == 1 and not any(text.startswith("Attack on the classifier x") for text in known.missing):
        found["missing"].append(
            "An attack on a classifier that has learnt from the set: classifier_training.py has trained none"
        )
    theirs = read_json(real / TRAINING_RECORD)["arguments"]
    recipe = ShadowRecipe(
        args.classifier, args.shadow_epochs or theirs["epochs"], theirs["batch_size"], theirs.get("optimizer", "adam"),
        theirs.get("augment", "none"), args.seed, "".join(known.inputs["data"][name][:16] for name in ("train", "val", "test")),
        args.tf32,
    )  # fmt: skip
    folder = known.experiment.classifier_dir(args.classifier, "shadows") / recipe.key
    return classifiers_part(targets, recipe, args.shadows, known.spec, known.splits, folder)


def denoising_part(diffusion, moments, labels, seed):
    """Denoising losses {"train", "val"}: float64 (n,) of each image.

    Args:
        diffusion: A `Diffusion` with the epochs that made the set.
        moments: {"train", "val"}: VAE moments float32 (n, h, w, 8).
        labels: {"train", "val"}: int (n,).
        seed: The user's seed.
    """
    losses, first = {}, 0
    for name, of_split in labels.items():
        numbers = first + np.arange(len(of_split))
        losses[name] = denoising_losses(diffusion, moments[name], of_split, numbers, seed)
        first += len(numbers)
    return losses


def strength_of_losses(train, val):
    """The attack that takes a low loss for a member, and the mean losses of both sides."""
    return strength(-train, -val) | {"loss_members": float(train.mean()), "loss_others": float(val.mean())}


def classifiers_part(targets, recipe, count, spec, splits, folder):
    """The likelihood-ratio attack on classifiers: {name: `strength`} on training images against test images.

    Args:
        targets: {name: folder of the trained classifier}.
        recipe, count, spec, splits, folder: As in `shadow_confidences`; `folder` is that of the shadows.
    """
    log.info(
        "%d shadow classifiers, each on half of %d images -> %s",
        count,
        len(splits.train.labels) + len(splits.test.labels),
        folder,
    )
    shadows, inside = shadow_confidences(recipe, count, spec, splits, folder)
    classifier, members, found = (
        Classifier(recipe.classifier, spec.resolution, spec.num_classes),
        len(splits.train.labels),
        {},
    )
    for name, place in targets.items():
        load_best(classifier, place)
        said = np.concatenate([confidence_of(classifier, *split) for split in (splits.train, splits.test)])
        scores = likelihood_ratio(said, shadows, inside)
        found[name] = strength(scores[:members], scores[members:])
    return found
