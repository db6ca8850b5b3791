"""The denoising model: a stock keras.Model whose mean squared error is the loss of both adaptation steps (paper, steps 1 and 3)."""

import keras
from keras import ops

from Models.diffusion import PREDICTION_TYPES, add_noise, alpha_bar_at, sample_latents, timestep_embedding
from Models.noise_schedule import STABLE_DIFFUSION
from Models.runtime import traced_once


class NoisyLatents(keras.layers.Layer):
    """Moments, latent noise, noise, timesteps -> noisy latents, timestep embedding, target; in float32.

    Args:
        latent_scale: Factor that gives latents unit variance.
        schedule: A `NoiseSchedule`.
        prediction: A class of `PREDICTION_TYPES`.
    """

    def __init__(self, latent_scale, schedule, prediction, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.latent_scale, self.schedule, self.prediction = latent_scale, schedule, prediction

    def call(self, moments, latent_noise, noise, timesteps):
        latents = sample_latents(moments, latent_noise, self.latent_scale)  # (B, h, w, 4)
        alpha_bar = alpha_bar_at(self.schedule, timesteps)  # (B, 1, 1, 1)
        noisy_latents = add_noise(latents, noise, alpha_bar)
        target = self.prediction.target(latents, noise, alpha_bar)
        return noisy_latents, timestep_embedding(timesteps), target  # (B, h, w, 4), (B, 320), (B, h, w, 4)


class SideBySide(keras.layers.Layer):
    """A network that is computed for parts of a batch side by side: the operations of a small one keep one core busy.

    No part is empty: of a batch with fewer samples than parts the later parts hold the last sample again.

    Args:
        network: Of several arrays with a common first axis.
        parts: Their number.
    """

    def __init__(self, network, parts, **kwargs):
        super().__init__(dtype="float32", autocast=False, **kwargs)
        self.network, self.parts = network, parts

    def call(self, arrays):
        """Outputs in float32, as many samples as there are in `arrays`."""
        samples = ops.shape(arrays[0])[0]
        size = ops.maximum(samples // self.parts, 1)
        starts = [ops.minimum(size * i, samples - 1) for i in range(self.parts)]
        ends = [*(start + size for start in starts[:-1]), samples]
        network = traced_once(lambda *part: self.network(list(part)))
        made = [network(*(array[start:end] for array in arrays)) for start, end in zip(starts, ends)]
        return ops.cast(ops.concatenate(made, axis=0)[:samples], "float32")

    def compute_output_shape(self, shapes):
        return self.network.compute_output_shape(shapes)


class MeasuredAgainstNoise(keras.layers.Layer):
    """Shifts a prediction by noise - target, so that its squared error against the noise is that against the target."""

    def __init__(self, **kwargs):
        super().__init__(dtype="float32", **kwargs)

    def call(self, prediction, noise, target):
        return prediction + (noise - target)


def denoising_model(unet, context_encoder, latent_scale, side_by_side=1, schedule=STABLE_DIFFUSION, prediction_type="epsilon"):
    """The model whose mean squared error against the noise is the loss of both adaptation steps.

    Args:
        unet: Backbone UNet: `latent`, `timestep_embedding`, `context` -> prediction (B, h, w, 4).
        context_encoder: What makes the context (the Class Encoder): its input (B, C) -> (B, tokens, width).
        latent_scale: Factor that gives latents unit variance (0.18215 for Stable Diffusion).
        side_by_side: Into how many parts a batch is cut, for which the UNet is computed side by side: the operations of
            a small one keep no more than one core busy.
        schedule: The backbone's `NoiseSchedule`.
        prediction_type: What the UNet predicts, a key of `PREDICTION_TYPES`.

    Returns:
        A keras.Model with inputs `moments` (B, h, w, 8), `latent_noise` and `noise` (B, h, w, 4), `timestep` (B,) and
        `label` (B, C). Its output (B, h, w, 4), float32, is to be compared with the noise: the predicted noise, or for
        another prediction type the noise plus the error of the prediction.
        Which part learns is the caller's choice: set `trainable` of either before compiling.
    """
    latent_shape = unet.input_shape[0][1:]
    condition = context_encoder.inputs[0]
    inputs = {
        "moments": keras.Input((*latent_shape[:2], 2 * latent_shape[2]), name="moments"),
        "latent_noise": keras.Input(latent_shape, name="latent_noise"),
        "noise": keras.Input(latent_shape, name="noise"),
        "timestep": keras.Input((), dtype="int32", name="timestep"),
        "label": keras.Input(condition.shape[1:], dtype=condition.dtype, name="label"),
    }
    noisy_latents, time, target = NoisyLatents(latent_scale, schedule, PREDICTION_TYPES[prediction_type])(
        inputs["moments"], inputs["latent_noise"], inputs["noise"], inputs["timestep"]
    )
    arrays = [noisy_latents, time, context_encoder(inputs["label"])]
    if side_by_side == 1:
        prediction = unet(arrays)  # (B, h, w, 4)
    else:
        prediction = SideBySide(unet, side_by_side)(arrays)
    # The loss is taken in float32 whatever the precision of the UNet.
    prediction = keras.layers.Activation("linear", dtype="float32", name="prediction")(prediction)
    if prediction_type != "epsilon":
        prediction = MeasuredAgainstNoise()(prediction, inputs["noise"], target)
    return keras.Model(inputs, prediction, name="denoising_model")
