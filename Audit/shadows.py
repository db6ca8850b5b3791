"""Shadow classifiers: the same recipe on random halves of the images, so that one knows what having learnt from an image does."""

import hashlib
from dataclasses import asdict, dataclass

import numpy as np

from Audit.attacks import confidence
from Data.registry import augmentations, tell_augmentations
from Experiment import presets
from Experiment.errors import UserError
from Experiment.files import atomic_path, plain_arrays
from Experiment.progress import progress
from Experiment.randomness import random_stream, repeat_seed
from Experiment.records import short
from Models.augment import Augment
from Models.classifier import Classifier
from Models.recipes import Recipe
from Models.runtime import make_repeatable

PIECE = 2048


@dataclass(frozen=True)
class ShadowRecipe:
    """How the classifier that is attacked has learnt, and so its shadows.

    Attributes:
        classifier: A key of `CLASSIFIERS`.
        epochs, batch_size, optimizer, augment: As in classifier_training.py.
        seed: Decides the halves and the trainings.
        data: What identifies the real images.
        tf32: As in classifier_training.py; on record where it is on.
    """

    classifier: str
    epochs: int
    batch_size: int
    optimizer: str
    augment: str
    seed: int
    data: str
    tf32: bool = False

    def settings(self):
        return {name: str(value) for name, value in asdict(self).items() if name != "tf32" or value}

    @property
    def key(self):
        """Name of the folder of its shadows: those of other recipes stay."""
        return hashlib.sha256(repr(self.settings()).encode()).hexdigest()[:8]


def half(count, shadow, seed):
    """Which images, bool (count,), the shadow learns from: shadows come in pairs, of a random half and of the other one."""
    chosen = np.zeros(count, bool)
    chosen[random_stream(seed, "shadow", shadow // 2).permutation(count)[: count // 2]] = True
    return chosen if shadow % 2 == 0 else ~chosen


def shadow_confidences(recipe, count, spec, splits, folder):
    """Confidences float32 (S, N) of shadow classifiers in the pool's images, and bool (S, N): what each has learnt from.

    The pool is the training images followed by the test images. Validation images choose the epoch, as for the classifier
    that is attacked. What a shadow has said is kept: a stopped run goes on with the next one, within it after the last saved
    epoch, and more shadows add to those that are there.

    Args:
        recipe: A `ShadowRecipe`.
        count: How many shadows.
        spec: The `DatasetSpec`.
        splits: The real `Splits`.
        folder: Where they are kept.
    """
    images, labels = (np.concatenate(pair) for pair in zip(splits.train, splits.test))
    inside = np.stack([half(len(labels), shadow, recipe.seed) for shadow in range(count)])
    found, classifier = np.empty((count, len(labels)), "float32"), None
    with progress(count, "shadow", lines=True) as part:
        for shadow in range(count):
            file = folder / f"shadow_{shadow:03d}.npz"
            if not file.exists():
                if classifier is None:
                    how = Recipe(recipe.optimizer, recipe.epochs)
                    classifier = Classifier(recipe.classifier, spec.resolution, spec.num_classes, how)
                    tell_augmentations(spec, recipe.augment)
                train_shadow(classifier, recipe, spec, (images, labels), inside[shadow], splits.val, file, shadow)
            found[shadow] = kept(file, recipe.settings(), len(labels))
            part.reach(shadow + 1)
    return found, inside


def train_shadow(classifier, recipe, spec, pool, inside, val, file, shadow):
    """Train a shadow on the images inside, and write its confidence float32 (N,) in all of them."""
    images, labels = pool
    seed, settings = repeat_seed(recipe.seed, shadow + 2), recipe.settings()  # the first is the user's own
    make_repeatable(seed)
    classifier.draw_weights()
    train = images[inside], labels[inside]
    names = augmentations(spec, recipe.augment)
    augment = Augment(names, len(train[1]), seed) if names else None
    classifier.fit(
        train, val, epochs=recipe.epochs, batch_size=min(recipe.batch_size, len(train[1])), seed=seed, augment=augment,
        patience=presets.CLASSIFIER_PATIENCE, state_file=file.with_suffix(".state.npz"), settings=settings, verbose=0,
    )  # fmt: skip
    with atomic_path(file) as partial:
        np.savez(partial, confidence=confidence_of(classifier, images, labels), **settings)
    file.with_suffix(".state.npz").unlink(missing_ok=True)


def confidence_of(classifier, images, labels):
    """A classifier's confidence float32 (N,) in the true classes of images."""
    pieces = (slice(start, start + PIECE) for start in range(0, len(labels), PIECE))
    return np.concatenate([confidence(classifier.probabilities(images[p]), labels[p]) for p in pieces])


def kept(file, settings, count):
    """What a shadow has said, float32 (N,).

    Raises:
        UserError: It is of another recipe or of other data.
    """
    with plain_arrays(file) as data:
        differing = [name for name, value in settings.items() if name not in data.files or str(data[name]) != value]
        if differing or data["confidence"].shape != (count,):
            there = ", ".join(f"{name} {short(data[name]) if name in data.files else '?'}" for name in differing)
            raise UserError(f"{file} is of another recipe or other data ({there}): remove {file.parent}.")
        return data["confidence"]
