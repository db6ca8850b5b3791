"""Training and testing of the classifier (paper, step 6): one piece of code for CAS and for the search."""

import time

import keras
import numpy as np

from Experiment import presets
from Experiment.errors import UserError
from Experiment.randomness import random_stream
from Models.classifiers import CLASSIFIERS
from Models.fit_progress import fit_progress
from Models.fit_state import FitState
from Models.runtime import fast_feed

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
        self.state, self.stopping, self.history, self.best, self.share, self.due = (
            state,
            stopping,
            history,
            best,
            share,
            0.0,
        )

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


def watchers(patience):
    """Callbacks that look at validation accuracy: what lowers the learning rate, and what ends the training.

    Args:
        patience: Epochs without progress before either.
    """
    lowers, ends = patience
    return (
        keras.callbacks.ReduceLROnPlateau(
            "val_accuracy", factor=0.1, patience=lowers, min_lr=presets.LEARNING_RATE_FLOOR, mode="max"
        ),
        keras.callbacks.EarlyStopping("val_accuracy", patience=ends, restore_best_weights=True, mode="max"),
    )


class Classifier:
    """A compiled ResNet20 that can be trained again and again from the same first weights.

    A search trains dozens of them: re-initialising keeps the compiled graph, and equal first weights take one source
    of noise out of the comparison.

    Args:
        name: A key of `CLASSIFIERS`.
        resolution: Side of the images, px.
        num_classes: Number of classes.
    """

    def __init__(self, name, resolution, num_classes):
        self.num_classes = num_classes
        self.model = CLASSIFIERS[name](resolution, num_classes)
        self.model.compile(
            keras.optimizers.Adam(),
            keras.losses.CategoricalCrossentropy(label_smoothing=presets.LABEL_SMOOTHING),
            metrics=["accuracy"],
        )
        self.model.optimizer.build(self.model.trainable_variables)
        self.first = [v.numpy() for v in self.variables]
        self.scaled = None, None  # validation images as they came, and as the model takes them

    @property
    def variables(self):
        return self.model.variables + self.model.optimizer.variables

    def batches(self, images, labels, batch_size, seed, first_epoch=0):
        """Endless shuffled batches; the order of an epoch is a function of (seed, epoch)."""
        epoch = first_epoch
        while True:
            order = random_stream(seed, "order", epoch).permutation(len(labels))
            for start in range(0, len(labels), batch_size):
                index = order[start : start + batch_size]
                yield self.scale(images[index]), self.one_hot(labels[index])
            epoch += 1

    @staticmethod
    def scale(images):
        return images.astype("float32") / 255

    def validation_data(self, val):
        """(images, one-hot labels) as the model takes them; kept, since a search validates on the same images always."""
        if self.scaled[0] is not val:
            self.scaled = val, (self.scale(val[0]), self.one_hot(val[1]))
        return self.scaled[1]

    def one_hot(self, labels):
        return np.eye(self.num_classes, dtype="float32")[labels]

    def fit(self, train, val, *, epochs, batch_size, seed, patience, callbacks=(), verbose=2, first_epoch=0, steps=None,
            state_file=None, settings=None, save_share=0.02):  # fmt: skip
        """Train from the first weights and end with those of the epoch of best validation accuracy.

        Args:
            train, val: (images uint8 (N, H, W, 3), labels int (N,)).
            epochs: Number of the last epoch.
            patience: Epochs without progress before (a tenth of the learning rate, the end): (10, 25) in the paper,
                (25, 50) within its search.
            first_epoch: Number of epochs that are done: if not 0, training goes on from the weights as they are.
            steps: Batches that count as an epoch, if not all of the images once.
            state_file: Where the state is kept, as often as takes `save_share` of the time; if it is there, training goes
                on from it.
            settings: {name: value} of the arguments that a continued run must share with the interrupted one.

        Returns:
            History {metric: values by epoch} and the seconds of each epoch.
        """
        if not first_epoch:
            for variable, value in zip(self.variables, self.first):
                variable.assign(value)
        times, plateau, stopping = EpochTimes(), *watchers(patience)
        callbacks = [keras.callbacks.TerminateOnNaN(), plateau, stopping, times, *callbacks]
        history = {}
        if state_file:
            counting = [
                (plateau, ("best", "wait", "cooldown_counter")),
                (stopping, ("best", "wait", "best_epoch")),
                (times, ("seconds",)),
            ]
            state = FitState(state_file, settings or {}, self.variables, counting)
            first_epoch, history, best = state.load()
            if first_epoch and len(best) != len(self.model.weights):
                raise UserError(f"{state_file} is of another model: start afresh with --restart.")
            callbacks.append(KeepState(state, stopping, history, best, save_share))
        steps = steps or -(-len(train[1]) // batch_size)
        with fit_progress(steps, epochs, first_epoch, verbose) as (verbose, shown):
            fitted = self.model.fit(
                fast_feed(self.batches(*train, batch_size, seed, first_epoch)),
                steps_per_epoch=steps,
                initial_epoch=first_epoch,
                validation_data=self.validation_data(val),
                validation_batch_size=VALIDATION_BATCH,
                epochs=epochs,
                shuffle=False,  # the batches are
                verbose=verbose,
                callbacks=[*shown, *callbacks],
            )
        return history or fitted.history, times.seconds

    def probabilities(self, images, batch_size=256):
        """Class probabilities (N, C) of images uint8 (N, H, W, 3)."""
        parts = [
            self.model.predict_on_batch(self.scale(images[i : i + batch_size]))
            for i in range(0, len(images), batch_size)
        ]
        return np.concatenate(parts)


def accuracies(probabilities, labels):
    """Top-1 and top-5 accuracy, accuracy of each class (NaN where it has no image) and the confusion matrix.

    Args:
        probabilities: (N, C).
        labels: int (N,).

    Returns:
        Dict with `top_1_accuracy`, `top_5_accuracy`, `class_accuracies` (C,), `confusion` int (C, C): row true class,
        column prediction.
    """
    num_classes = probabilities.shape[1]
    # A stable sort: equal probabilities rank by class number, as argmax does.
    ranking = np.argsort(-probabilities, axis=1, kind="stable")
    confusion = np.zeros((num_classes, num_classes), int)
    np.add.at(confusion, (labels, ranking[:, 0]), 1)
    with np.errstate(invalid="ignore"):
        class_accuracies = np.diag(confusion) / confusion.sum(axis=1)
    return {
        "top_1_accuracy": float(np.mean(ranking[:, 0] == labels)),
        "top_5_accuracy": float(np.mean((ranking[:, :TOP_K] == labels[:, None]).any(axis=1))),
        "class_accuracies": class_accuracies,
        "confusion": confusion,
    }
