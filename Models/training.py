"""The training of what is adapted: the compiled model, what is saved after an epoch, and the fit."""

import keras
import numpy as np

from Experiment.errors import UserError
from Experiment.files import write_csv
from Experiment.pictures import try_to_draw
from Models.adapter import WholeNetwork
from Models.denoising import denoising_model
from Models.faster_layers import checkpoint_gradients
from Models.feed import in_parts, noisy_batches, padded, with_targets
from Models.fit_progress import fit_progress
from Models.optimizer import paper_optimizer
from Models.runtime import devices_of, fast_feed, jit_compile, one_shape, precision
from Models.weight_names import epoch_path, own_epochs, remove_files


def compile_model(adapted, lr, steps, precision_name, gradient_checkpointing=False, average_power=None):
    """The denoising model with the paper's optimizer, in which only the adapted part learns.

    Args:
        adapted: A `WholeNetwork` or another adaptation.
        lr: First learning rate.
        steps: Steps of the whole training, over which the rate falls to 0.
        precision_name: `float32` or `mixed_bfloat16`, as the networks were built.
        gradient_checkpointing: Whether the UNet's blocks are computed again for the gradients.
        average_power: As in `AveragingAdam`.
    """
    diffusion, backbone = adapted.diffusion, adapted.diffusion.backbone
    if gradient_checkpointing:
        checkpoint_gradients(diffusion.unet)
    adapted.freeze_the_rest()
    # Measured with mini on 2 cores: cut in two, the encoder learns 1.8 times as fast, the UNet 1.15 to 1.2 times.
    side_by_side = 1 if gradient_checkpointing else backbone.side_by_side
    with precision(precision_name, trainable=True):
        model = denoising_model(
            diffusion.unet, diffusion.encoder, backbone.latent_scale, side_by_side, backbone.schedule,
            backbone.prediction_type,
        )  # fmt: skip
    # The encoder computes in float32 whatever the precision; gradients of low-rank updates are scaled in float32.
    # The sum of two halves' gradients has digits that bfloat16 has not.
    bfloat16 = (
        isinstance(adapted, WholeNetwork) and adapted.part == "dif" and precision_name == "mixed_bfloat16" and side_by_side == 1
    )
    optimizer = paper_optimizer(lr, steps, "bfloat16" if bfloat16 else "float32", average_power)
    model.compile(optimizer, "mse", jit_compile=jit_compile())
    model.optimizer.build(model.trainable_variables)
    return model


def bytes_needed(adapted, epochs, freq, keep=None, done=0):
    """Bytes that a training has still to write at most: its epochs, and a state of which there are two while it is replaced.

    Of what `done` epochs have left, the epochs and one state are on the disk already.
    """
    epoch, state = adapted.bytes
    saves = -(-(epochs - done) // freq) + 1
    return epoch * min(saves, keep + 1 if keep else saves) + (1 if done else 2) * state


def fit_epochs(model, saver, moments, labels, num_classes, batch_size, seed, done, transforms=(), weights=None):
    """Train from epoch `done` on to the last one of the saver.

    Args:
        model: What `compile_model` returns.
        saver: A `SaveEpochs`.
        moments: float32 (N, h, w, 8).
        labels: int (N,).
        num_classes, batch_size, seed: As in `noisy_batches`.
        done: Epochs of this run that are done. Noise is addressed by the number of the epoch in its file's name, so a
            run that continues another one draws its own.
        transforms, weights: As in `noisy_batches` and `with_targets`.
    """
    schedule = saver.adapted.diffusion.backbone.schedule
    first, devices = saver.offset + done, devices_of(model)

    def batches():
        noisy = noisy_batches(moments, labels, num_classes, batch_size, seed, first, schedule.num_timesteps, transforms)
        made = with_targets(noisy, weights)
        if devices > 1 or one_shape():
            made = padded(made, -(-min(batch_size, len(labels)) // devices) * devices)
        return in_parts(made, devices) if devices > 1 else made

    steps = -(-len(labels) // batch_size)
    with fit_progress(steps, saver.last, done) as (verbose, shown):
        model.fit(
            fast_feed(batches, model), steps_per_epoch=steps, epochs=saver.last, initial_epoch=done,
            callbacks=[saver, *shown], shuffle=False, verbose=verbose,
        )  # fmt: skip


class SaveEpochs(keras.callbacks.Callback):
    """Weights every `freq` epochs, at the first and the last; history and state with each.

    Args:
        adapted: What learns: a `WholeNetwork` or another adaptation.
        folder: Where its epochs go.
        state: A `FitState`.
        freq: Epochs between saves.
        last: Number of the last epoch of this run, counted from 1.
        offset: Added to the numbers in file names: epochs that earlier training had.
        losses: Losses of the epochs before this process.
        on_save: Called with the number of each saved epoch and whether it is the last. It draws pictures: what goes
            wrong in it is a warning, and the training goes on.
        earlier: Rows of the history of earlier training.
        keep: How many epochs of this run stay on the disk, from the last one back; None: all.
    """

    def __init__(self, adapted, folder, state, freq, last, offset, losses, on_save, earlier=(), keep=None):
        super().__init__()
        self.adapted, self.folder, self.state, self.freq, self.last = adapted, folder, state, freq, last
        self.offset, self.on_save, self.losses, self.earlier, self.keep = offset, on_save, losses, earlier, keep

    @property
    def history(self):
        """Rows of epoch and loss."""
        own = [{"epoch": self.offset + i, "loss": loss} for i, loss in enumerate(self.losses, start=1)]
        return [*self.earlier, *own]

    def on_epoch_end(self, epoch, logs=None):
        done = epoch + 1
        number = self.offset + done
        self.losses.append(float(logs["loss"]))
        if not np.isfinite(logs["loss"]):
            raise UserError(f"the loss of epoch {number} is {logs['loss']}: try a smaller --lr, or --precision float32.")
        if done % self.freq == 0 or done in (1, self.last):
            self.adapted.save(epoch_path(self.folder, number))
            write_csv(self.folder / "history.csv", self.history)
            self.state.save(done, {"loss": self.losses})
            self.finish_saving(done)

    def finish_saving(self, done):
        """What follows once the state is saved. Also where a process goes on: the one before may have been killed here."""
        if done:
            self.drop_early_epochs()
            try_to_draw(f"epoch {self.offset + done}", self.on_save, self.offset + done, done == self.last)

    def drop_early_epochs(self):
        """Remove the epochs of this run that are no longer to be kept."""
        written = range(self.offset + 1, self.offset + self.last + 1)  # others there are of other runs, or published
        own = [file for number, file in own_epochs(self.folder).items() if number in written]
        remove_files(own[: -self.keep] if self.keep else [])
