"""Training and testing of the classifier (paper, step 6): one piece of code for CAS and for the search."""

import time

import keras
import numpy as np

from Experiment.errors import UserError
from Experiment.intervals import auc
from Experiment.randomness import random_stream
from Models.classifiers import CLASSIFIERS
from Models.feed import in_parts
from Models.fit_progress import fit_progress
from Models.fit_state import FitState
from Models.recipes import PUBLISHED
from Models.runtime import devices_of, fast_feed, jit_compile

TOP_K = 5
VALIDATION_BATCH = 512


class EpochTimes(keras.callbacks.Callback):
    """Keeps the wall time of every epoch, s, as `seconds`."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self.start)


class KeepState(keras.callbacks.Callback):
    """Saves the state of a fit now and then. Must be the last callback: it looks at what the others did in an epoch.

    Args:
        state: A `FitState`, loaded.
        stopping: The EarlyStopping callback, which holds the best weights.
        history: {metric: values} of the epochs before.
        best: The best weights of the epochs before; empty at the start.
        share: Largest share of the time that writing may take: one tiny file an epoch, or a large one now and then.
    """

    def __init__(self, state, stopping, history, best, share):
        super().__init__()
        self.state, self.stopping, self.history, self.best, self.share, self.due = (state, stopping, history, best, share, 0.0)

    def on_train_begin(self, logs=None):
        if self.state.epoch:
            self.state.restore_followers()
            self.stopping.best_weights = self.best

    def on_epoch_end(self, epoch, logs=None):
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(float(value))
        start = time.monotonic()
        if start < self.due or self.stopping.best_weights is None or not np.isfinite(logs["loss"]):
            return
        self.state.save(epoch + 1, self.history, self.stopping.best_weights)
        self.due = start + (time.monotonic() - start) / self.share


class Classifier:
    """A compiled ResNet20 that can be trained again and again from the same first weights.

    A search trains dozens of them: re-initialising keeps the compiled graph, and equal first weights take one source
    of noise out of the comparison.

    Args:
        name: A key of `CLASSIFIERS`.
        resolution: Side of the images, px.
        num_classes: Number of classes.
        recipe: How it learns, a `Recipe`: the paper's by default.
    """

    def __init__(self, name, resolution, num_classes, recipe=PUBLISHED):
        self.name, self.resolution, self.num_classes, self.recipe = name, resolution, num_classes, recipe
        self.model = CLASSIFIERS[name](resolution, num_classes)
        self.model.compile(
            recipe.new_optimizer(),
            keras.losses.CategoricalCrossentropy(label_smoothing=recipe.smoothing),
            metrics=["accuracy"],
            jit_compile=jit_compile(),
        )
        self.model.optimizer.build(self.model.trainable_variables)
        self.first = [v.numpy() for v in self.variables]
        self.scaled = None, None  # validation images as they came, and as the model takes them

    @property
    def variables(self):
        return self.model.variables + self.model.optimizer.variables

    def draw_weights(self):
        """Draw other first weights, as a new classifier has them: Keras' random numbers have been seeded before."""
        drawn = CLASSIFIERS[self.name](self.resolution, self.num_classes).variables
        self.first[: len(drawn)] = [v.numpy() for v in drawn]

    def batches(self, images, labels, batch_size, seed, first_epoch=0, augment=None, slices=1):
        """Endless shuffled batches; the order of an epoch is a function of (seed, epoch). See `fit`."""
        epoch, count = first_epoch, len(labels)
        while True:
            first, last = (count * (epoch % slices + i) // slices for i in (0, 1))
            order = first + random_stream(seed, "order", epoch).permutation(last - first)
            for start in range(0, len(order), batch_size):
                index = order[start : start + batch_size]
                batch = augment(images[index], epoch, index) if augment else images[index]
                yield self.scale(batch), self.targets(labels[index])
            epoch += 1

    @staticmethod
    def scale(images):
        return np.divide(images, 255, dtype="float32")  # with no array between

    def validation_data(self, val):
        """(images, one-hot labels) as the model takes them; kept, since a search validates on the same images always."""
        if self.scaled[0] is not val:
            self.scaled = val, (self.scale(val[0]), self.one_hot(val[1]))
        return self.scaled[1]

    def validation(self, val, devices):
        """What fit() is told of validation."""
        if devices == 1:
            return {"validation_data": self.validation_data(val), "validation_batch_size": VALIDATION_BATCH}
        images, targets = self.validation_data(val)
        size = -(-VALIDATION_BATCH // devices) * devices
        starts = [*range(0, len(targets), size)]
        if len(starts) > 1 and len(targets) - starts[-1] < devices:
            starts.pop()  # as a batch of its own each device would count them all
        cuts = list(zip(starts, [*starts[1:], len(targets)]))

        def batches():
            return in_parts(((images[i:end], targets[i:end]) for i, end in cuts), devices, weigh=False)

        return {"validation_data": fast_feed(batches, self.model), "validation_steps": len(cuts)}

    def one_hot(self, labels):
        return np.eye(self.num_classes, dtype="float32")[labels]

    def targets(self, labels):
        """Targets float32 (B, C) of labels: int (B,), or targets already."""
        return self.one_hot(labels) if labels.ndim == 1 else labels

    def fit(self, train, val, *, epochs, batch_size, seed, patience, callbacks=(), verbose=2, first_epoch=0, steps=None,
            augment=None, slices=1, state_file=None, settings=None, save_share=0.02):  # fmt: skip
        """Train from the first weights and end with those of the epoch of best validation accuracy.

        Args:
            train, val: (images uint8 (N, H, W, 3), labels int (N,)); of `train` they may be targets float32 (N, C).
            epochs: Number of the last epoch.
            patience: Epochs without progress before (a tenth of the learning rate, the end): (10, 25) in the paper,
                (25, 50) within its search.
            first_epoch: Number of epochs that are done: if not 0, training goes on from the weights as they are.
            steps: Batches that count as an epoch, if not all of the images once.
            augment: An `Augment`, or another function of (images (B, H, W, 3), epoch, their numbers (B,)).
            slices: Into how many parts of consecutive images `train` is divided: each epoch sees the next one.
            state_file: Where the state is kept, as often as takes `save_share` of the time; if it is there, training goes
                on from it.
            settings: {name: value} of the arguments that a continued run must share with the interrupted one.

        Returns:
            History {metric: values by epoch} and the seconds of each epoch.
        """
        if not first_epoch:
            for variable, value in zip(self.variables, self.first):
                variable.assign(value)
        times, watchers = EpochTimes(), self.recipe.watchers(patience)
        (rate, _), (stopping, _) = watchers
        callbacks = [keras.callbacks.TerminateOnNaN(), rate, stopping, times, *callbacks]
        history = {}
        if state_file:
            state = FitState(state_file, settings or {}, self.variables, [*watchers, (times, ("seconds",))])
            first_epoch, history, best = state.load()
            if first_epoch and len(best) != len(self.model.weights):
                raise UserError(f"{state_file} is of another model: start afresh with --restart.")
            callbacks.append(KeepState(state, stopping, history, best, save_share))
            if state.counted and state.counted[1]["wait"] >= stopping.patience:
                epochs = first_epoch  # it had stopped when it was interrupted: only the best weights are still to be taken
        steps = steps or -(-len(train[1]) // (slices * batch_size))
        devices = devices_of(self.model)
        if devices > 1 and batch_size % devices and batch_size < len(train[1]):
            raise UserError(f"argument --batch_size: {batch_size} is not a multiple of the {devices} devices.")

        # The last batch of an epoch stays smaller than the others: padded, its copies would count in the statistics of
        # batch normalisation.
        def batches():
            made = self.batches(*train, batch_size, seed, first_epoch, augment, slices)
            return in_parts(made, devices) if devices > 1 else made

        with fit_progress(steps, epochs, first_epoch, verbose) as (verbose, shown):
            fitted = self.model.fit(
                fast_feed(batches, self.model),
                steps_per_epoch=steps,
                initial_epoch=first_epoch,
                **self.validation(val, devices),
                epochs=epochs,
                shuffle=False,  # the batches are
                verbose=verbose,
                callbacks=[*shown, *callbacks],
            )
        return history or fitted.history, times.seconds

    def probabilities(self, images, batch_size=256):
        """Class probabilities (N, C) of images uint8 (N, H, W, 3)."""
        parts = []
        for i in range(0, len(images), batch_size):
            batch = self.scale(images[i : i + batch_size])
            parts.append(self.model.predict_on_batch(batch)[: len(batch)])  # of several devices each gives all
        return np.concatenate(parts)


def accuracies(probabilities, labels):
    """Scores of predictions, and what they are made of.

    Args:
        probabilities: (N, C).
        labels: int (N,).

    Returns:
        Dict with `top_1_accuracy`, `top_5_accuracy`, `balanced_accuracy` (mean over the classes that have images), `auc`,
        `class_accuracies` (C,), NaN where a class has no image, `confusion` int (C, C): row true class, column prediction,
        and `ranking` (N, up to 5): the likeliest classes.
    """
    num_classes = probabilities.shape[1]
    # A stable sort: equal probabilities rank by class number, as argmax does.
    ranking = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP_K]
    confusion = np.zeros((num_classes, num_classes), int)
    np.add.at(confusion, (labels, ranking[:, 0]), 1)
    with np.errstate(invalid="ignore"):
        class_accuracies = np.diag(confusion) / confusion.sum(axis=1)
    return {
        "top_1_accuracy": float(np.mean(ranking[:, 0] == labels)),
        "top_5_accuracy": float(np.mean((ranking == labels[:, None]).any(axis=1))),
        "balanced_accuracy": float(np.nanmean(class_accuracies)),
        "auc": area_under_curve(probabilities, labels),
        "class_accuracies": class_accuracies,
        "confusion": confusion,
        "ranking": ranking,
    }


def area_under_curve(probabilities, labels):
    """Area under the ROC curve, the mean over classes of one against the rest, as MedMNIST reports it.

    Classes without images, or with all of them, have none; None where that is so of every class.
    """
    found = []
    for label, scores in enumerate(probabilities.T):
        positive = labels == label
        if 0 < positive.sum() < len(labels):
            found.append(auc(scores[positive], scores[~positive]))
    return float(np.mean(found)) if found else None
