"""How a classifier learns: the paper's way, and the other ways that flags choose."""

from dataclasses import dataclass

import keras

from Experiment import presets

# GaFi (github.com/sup3rgiu/GaFi-Pipeline): SGD with momentum, a tenth of the rate after 60 and after 80 % of the epochs.
# A step at the first rate takes 1e-4 of a weight away; Keras multiplies its weight decay with the rate.
SGD_RATE, SGD_MOMENTUM, SGD_DECAY = 0.1, 0.9, 1e-4
FALLS = 0.6, 0.8
ADAM_RATE = 0.001  # Keras's, which the published code leaves as it is


@dataclass(frozen=True)
class Recipe:
    """What of a training does not depend on its images.

    Attributes:
        optimizer: `adam` (the paper's: a tenth of the rate where validation accuracy stalls), `adam_steps` (the same
            falls as SGD's) or `sgd` (GaFi's).
        epochs: Epochs of a whole training, by which the rate of the last two falls.
        smoothing: Label smoothing of the loss; 0 where targets are a teacher's.
    """

    optimizer: str = "adam"
    epochs: int = presets.CLASSIFIER_EPOCHS
    smoothing: float = presets.LABEL_SMOOTHING

    def new_optimizer(self):
        if self.optimizer != "sgd":
            return keras.optimizers.Adam(ADAM_RATE)
        return keras.optimizers.SGD(SGD_RATE, momentum=SGD_MOMENTUM, nesterov=True, weight_decay=SGD_DECAY / SGD_RATE)

    def watchers(self, patience):
        """Callbacks: what sets the learning rate, and what keeps the best weights and may end the training.

        Args:
            patience: Epochs without progress in validation accuracy before (a tenth of the learning rate, the end) of
                `adam`. The others do all of their epochs: much of the progress comes when the rate falls.

        Returns:
            Two callbacks, and of each what it counts: names of its attributes.
        """
        lowers, ends = patience
        if self.optimizer == "adam":
            rate = keras.callbacks.ReduceLROnPlateau(
                "val_accuracy", factor=0.1, patience=lowers, min_lr=presets.LEARNING_RATE_FLOOR, mode="max"
            )
            counted = ("best", "wait", "cooldown_counter")
        else:
            falling = falling_rate(SGD_RATE if self.optimizer == "sgd" else ADAM_RATE, self.epochs)
            rate, ends, counted = keras.callbacks.LearningRateScheduler(falling), self.epochs, ()
        stopping = keras.callbacks.EarlyStopping("val_accuracy", patience=ends, restore_best_weights=True, mode="max")
        return (rate, counted), (stopping, ("best", "wait", "best_epoch"))


PUBLISHED = Recipe()


def falling_rate(first, epochs):
    """The learning rate by epoch, from 0, for a training of so many epochs that begins with the rate `first`."""

    def rate(epoch):
        return first * 0.1 ** sum(epoch >= round(share * epochs) for share in FALLS)

    return rate
