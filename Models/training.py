"""What fit() needs around the adaptation model: batches, saving, exact resuming."""

import itertools
import json
import zipfile

import keras
import numpy as np

from Experiment.errors import UserError
from Experiment.files import atomic_path, plain_arrays, write_csv
from Experiment.randomness import random_stream
from Experiment.records import changed_arguments
from Models.faster_layers import after
from Models.noise_schedule import NUM_TRAIN_TIMESTEPS
from Models.weights import epoch_path, save_weights


def noisy_batches(moments, labels, num_classes, batch_size, seed, first_epoch):
    """Endless batches for `denoising_model`, from the beginning of `first_epoch` on.

    The order of an epoch is a function of (seed, epoch); noise and timestep of a sample of (seed, epoch, sample): so
    a run that was interrupted goes on exactly where it would have been.

    Args:
        moments: float32 (N, h, w, 8).
        labels: int (N,).
        first_epoch: 0 at the start.

    Yields:
        ({moments, latent_noise, noise, timestep, label}, noise), each of at most `batch_size` samples.
    """
    one_hot = np.eye(num_classes, dtype="float32")
    shape = (*moments.shape[1:3], moments.shape[3] // 2)
    epoch = first_epoch
    while True:
        order = random_stream(seed, "order", epoch).permutation(len(labels))
        for start in range(0, len(labels), batch_size):
            index = order[start : start + batch_size]
            noise = np.empty((2, len(index), *shape), "float32")  # of the latents, and of the forward process
            timesteps = np.empty(len(index), "int32")
            for i, sample in enumerate(index):
                stream = random_stream(seed, "training_noise", epoch, int(sample))
                noise[:, i] = stream.standard_normal((2, *shape), dtype="float32")
                timesteps[i] = stream.integers(NUM_TRAIN_TIMESTEPS)
            yield (
                {
                    "moments": np.asarray(moments[index]),
                    "latent_noise": noise[0],
                    "noise": noise[1],
                    "timestep": timesteps,
                    "label": one_hot[labels[index]],
                },
                noise[1],
            )
        epoch += 1


def fast_feed(batches):
    """What to give fit() instead of a generator of (inputs, targets) whose samples are of float32 or int32.

    Keras wraps a generator into a tf.data pipeline whose self-tuning thread can hold up the end of fit() by 5 seconds:
    too long for the many short fits of a search. This is the same pipeline without self-tuning.
    """
    if keras.backend.backend() != "tensorflow":
        return batches
    import tensorflow as tf

    first = next(batches)
    of_any_batch = keras.tree.map_structure(lambda a: tf.TensorSpec((None, *a.shape[1:]), a.dtype), first)
    dataset = tf.data.Dataset.from_generator(lambda: itertools.chain([first], batches), output_signature=of_any_batch)
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.prefetch(4).with_options(options)


class SequentialAdam(keras.optimizers.Adam):
    """Adam with decoupled weight decay and clipped global norm that updates one weight after another.

    The stock optimizer makes a clipped copy of every gradient, and TensorFlow begins all updates at once, each with
    arrays of its own: with a UNet of 0.86 G parameters that takes several GB. The numbers are the same.

    Args:
        learning_rate: A number or schedule.
        decay: Decoupled weight decay.
        clip: Most global norm of the gradients.
        gradient_dtype: What gradients of matrices and kernels are kept in until the norm is known. With mixed precision
            they are computed in bfloat16, and lose nothing in it.
        epsilon: Adam's.
    """

    def __init__(self, learning_rate, decay, clip, gradient_dtype="float32", epsilon=1e-8):
        super().__init__(learning_rate, epsilon=epsilon)
        self.decay, self.clip, self.gradient_dtype = decay, clip, gradient_dtype

    def apply(self, grads, trainable_variables=None):
        grads = [keras.ops.cast(g, self.gradient_dtype) if len(g.shape) > 1 else g for g in grads]
        norm = keras.ops.sqrt(sum(keras.ops.sum(keras.ops.square(keras.ops.cast(g, "float32"))) for g in grads))
        self.factor, self.last, self.numbers = self.clip / keras.ops.maximum(norm, self.clip), [], None
        super().apply(grads, trainable_variables)

    def update_step(self, gradient, variable, learning_rate):
        if (
            self.numbers is None
        ):  # shared by all updates: 9,000 operations and 0.2 GB less in sd1's graph than one for each weight
            rate = keras.ops.cast(learning_rate, "float32")
            step = keras.ops.cast(self.iterations + 1, "float32")
            numbers = (self.beta_1**step, self.beta_2**step, rate, self.beta_1, self.beta_2, self.epsilon)
            self.numbers = rate * self.decay, [keras.ops.convert_to_tensor(n, "float32") for n in numbers]
        with after(*self.last):
            decay, numbers = self.numbers
            self.assign_sub(variable, variable * decay)
            gradient = keras.ops.cast(gradient, "float32") * self.factor
            if keras.backend.backend() == "tensorflow":
                self.last = [self.fused_update(gradient, variable, *numbers)]
            else:
                super().update_step(gradient, variable, learning_rate)

    def fused_update(self, gradient, variable, power_1, power_2, rate, beta_1, beta_2, epsilon):
        """Adam's update as one operation, which needs no arrays of its own."""
        import tensorflow as tf

        index = self._get_variable_index(variable)
        return tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=power_1,
            beta2_power=power_2,
            lr=rate,
            beta1=beta_1,
            beta2=beta_2,
            epsilon=epsilon,
            grad=gradient,
        )


def paper_optimizer(learning_rate, steps, gradient_dtype="float32"):
    """Adam with cosine decay to 0, decoupled weight decay 0.004 and clipped global norm (paper, section 3)."""
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    return SequentialAdam(schedule, decay=0.004, clip=10.0, gradient_dtype=gradient_dtype)


def refuse_other_settings(path, before, now):
    """Raise a UserError if the interrupted run whose state lies at `path` had other settings than this one."""
    shown = changed_arguments(before, now)
    if shown:
        raise UserError(
            f"{path.parent} holds an interrupted run with other arguments: {shown}. "
            "Give those, or --restart to replace it."
        )


class TrainingState:
    """All that a run needs to go on as if nothing had happened, in one file: weights, optimizer, history.

    Nothing else has state: order and noise are functions of seed and epoch.

    Args:
        model: The compiled model.
        trained: The part of it that learns.
        path: The file.
        settings: {name: value} of the arguments that a continued run must share with the interrupted one.
    """

    def __init__(self, model, trained, path, settings):
        self.model, self.trained, self.path, self.settings = model, trained, path, settings
        self.epoch = 0  # the last that is saved

    @property
    def variables(self):
        return [*self.trained.variables, *self.model.optimizer.variables]

    def save(self, epoch, history):
        """Save after `epoch` epochs, with the history's rows so far."""
        facts = {"epoch": epoch, "losses": [row["loss"] for row in history], "settings": json.dumps(self.settings)}
        with atomic_path(self.path) as partial, zipfile.ZipFile(partial, "w") as archive:
            # What np.savez does, but one array at a time: all of them are 10 GB in sd1.
            for name, value in itertools.chain(facts.items(), ((f"v{i}", v) for i, v in enumerate(self.variables))):
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.asarray(value), allow_pickle=False)
        self.epoch = epoch

    def load(self):
        """Restore and return (epochs done, losses so far); (0, []) where there is nothing to go on from.

        Raises:
            UserError: The file is of another model, or of a run with other settings.
        """
        if not self.path.exists():
            return 0, []
        with plain_arrays(self.path) as data:
            refuse_other_settings(self.path, json.loads(str(data["settings"])), self.settings)
            variables, other_model = (
                self.variables,
                UserError(f"{self.path} is of another model: start afresh with --restart."),
            )
            if len(data.files) != len(variables) + 3:
                raise other_model
            for i, variable in enumerate(variables):
                array = data[f"v{i}"]
                if array.shape != tuple(variable.shape):
                    raise other_model
                variable.assign(array)
            self.epoch = int(data["epoch"])
            return self.epoch, data["losses"].tolist()


class SaveEpochs(keras.callbacks.Callback):
    """Weights every `freq` epochs, at the first and the last; history and state with each.

    Args:
        part: The keras.Model that learns.
        folder: Where its epochs go.
        state: A `TrainingState`.
        freq: Epochs between saves.
        last: Number of the last epoch of this run, counted from 1.
        offset: Added to the numbers in file names: epochs that earlier training had.
        losses: Losses of the epochs before this process.
        on_save: Called with the number of each saved epoch and whether it is the last.
    """

    def __init__(self, part, folder, state, freq, last, offset, losses, on_save):
        super().__init__()
        self.part, self.folder, self.state, self.freq, self.last = part, folder, state, freq, last
        self.offset, self.on_save = offset, on_save
        self.history = [{"epoch": offset + i, "loss": loss} for i, loss in enumerate(losses, start=1)]

    def on_epoch_end(self, epoch, logs=None):
        done = epoch + 1
        number = self.offset + done
        self.history.append({"epoch": number, "loss": float(logs["loss"])})
        if not np.isfinite(logs["loss"]):
            raise UserError(
                f"the loss of epoch {number} is {logs['loss']}: try a smaller --lr, or --precision float32."
            )
        if done % self.freq == 0 or done in (1, self.last):
            save_weights(self.part, epoch_path(self.folder, number))
            write_csv(self.folder / "history.csv", self.history)
            self.on_save(number, done == self.last)
            self.state.save(done, self.history)  # last: a run that goes on after it misses nothing
