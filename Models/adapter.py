"""The adaptation step (paper, steps 1 and 3) as a stock keras.Model: fit() is the whole training loop."""

import keras
from keras import ops

from Models import noise_schedule

LOG_VARIANCE_RANGE = (-30.0, 20.0)


def sample_latents(moments, noise, latent_scale):
    """Draw latents (B, h, w, 4) from VAE moments (B, h, w, 8) = mean and log-variance, with given noise."""
    mean, log_variance = ops.split(moments, 2, axis=-1)
    deviation = ops.exp(0.5 * ops.clip(log_variance, *LOG_VARIANCE_RANGE))
    return latent_scale * (mean + deviation * noise)


class NoisyLatents(keras.layers.Layer):
    """Moments, latent noise, noise, timesteps -> the UNet's noisy latents and timestep embedding, in float32."""

    def __init__(self, latent_scale, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.latent_scale = latent_scale

    def call(self, moments, latent_noise, noise, timesteps):
        latents = sample_latents(moments, latent_noise, self.latent_scale)  # (B, h, w, 4)
        noisy_latents = noise_schedule.add_noise(latents, noise, timesteps)
        return noisy_latents, noise_schedule.timestep_embedding(timesteps)  # (B, h, w, 4), (B, 320)


class Parts(keras.layers.Layer):
    """Cuts arrays with a common first axis into a number of parts: the arrays of the first part, then of the next.

    No part is empty: of a batch with fewer samples than parts the later parts hold the last sample again.
    """

    def __init__(self, parts, **kwargs):
        super().__init__(dtype="float32", autocast=False, **kwargs)
        self.parts = parts

    def call(self, arrays):
        samples = ops.shape(arrays[0])[0]
        size = ops.maximum(samples // self.parts, 1)
        starts = [ops.minimum(size * i, samples - 1) for i in range(self.parts)]
        ends = [*(start + size for start in starts[:-1]), samples]
        return [[array[start:end] for array in arrays] for start, end in zip(starts, ends)]

    def compute_output_shape(self, shapes):
        return [[(None, *shape[1:]) for shape in shapes] for _ in range(self.parts)]


class Whole(keras.layers.Layer):
    """Puts what was computed of each part together, in float32, as many samples as `like` has."""

    def __init__(self, **kwargs):
        super().__init__(dtype="float32", **kwargs)

    def call(self, parts, like):
        return ops.concatenate(parts, axis=0)[: ops.shape(like)[0]]


def denoising_model(unet, context_encoder, latent_scale, parts=1):
    """The model whose mean squared error against the noise is the loss of both adaptation steps.

    Args:
        unet: Backbone UNet: `latent`, `timestep_embedding`, `context` -> noise (B, h, w, 4).
        context_encoder: What makes the context (the Class Encoder): its input (B, C) -> (B, tokens, width).
        latent_scale: Factor that gives latents unit variance (0.18215 for Stable Diffusion).
        parts: Into how many parts a batch is cut, for which the UNet is computed side by side: the operations of a
            small one keep no more than one core busy.

    Returns:
        A keras.Model with inputs `moments` (B, h, w, 8), `latent_noise` and `noise` (B, h, w, 4),
        `timestep` (B,) and `label` (B, C); its output is the predicted noise (B, h, w, 4), float32.
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
    noisy_latents, time = NoisyLatents(latent_scale)(
        inputs["moments"], inputs["latent_noise"], inputs["noise"], inputs["timestep"]
    )
    arrays = [noisy_latents, time, context_encoder(inputs["label"])]
    if parts == 1:
        prediction = unet(arrays)  # (B, h, w, 4)
    else:
        prediction = Whole()([unet(part) for part in Parts(parts)(arrays)], noisy_latents)
    # The loss is taken in float32 whatever the precision of the UNet.
    prediction = keras.layers.Activation("linear", dtype="float32", name="prediction")(prediction)
    return keras.Model(inputs, prediction, name="denoising_model")
