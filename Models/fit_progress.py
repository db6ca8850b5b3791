"""The progress of a fit: a callback, and how much Keras is to say itself."""

import contextlib

import keras

from Experiment.progress import progress, shown_live


class ShowSteps(keras.callbacks.Callback):
    """Tells a part of a run, counted in steps, how far a fit is.

    It looks at the beginning of a step, when the one before it is done: Keras waits for the losses of each.
    """

    def __init__(self, part, steps):
        super().__init__()
        self.part, self.steps, self.epoch = part, steps, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        self.part.reach(self.epoch * self.steps + batch)

    def on_epoch_end(self, epoch, logs=None):
        said = ", ".join(f"{name} {logs[name]:.4f}" for name in ("loss", "val_accuracy") if name in logs)
        self.part.reach((epoch + 1) * self.steps, f"epoch {epoch + 1}, {said}")
        self.part.told()


@contextlib.contextmanager
def fit_progress(steps, epochs, done, verbose=2):
    """Show a fit's progress within the block. Yields how much Keras is to say, and the callbacks.

    Where nothing is shown live, an epoch of more than a minute has a line a minute besides Keras's at its end.

    Args:
        steps: Of an epoch.
        epochs: Number of the last epoch.
        done: Epochs that an earlier run has done.
        verbose: Keras's: 0 shows nothing; 2 is a line an epoch, where no bar is seen.
    """
    if not verbose:
        yield 0, []
        return
    with progress(steps * epochs, "step", steps * done, lines=True) as part:
        yield 0 if shown_live() else verbose, [ShowSteps(part, steps)]
