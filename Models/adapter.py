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


def denoising_model(unet, context_encoder, latent_scale):
    """The model whose mean squared error against the noise is the loss of both adaptation steps.

    Args:
        unet: Backbone UNet: `latent`, `timestep_embedding`, `context` -> noise (B, h, w, 4).
        context_encoder: What makes the context (the Class Encoder): its input (B, C) -> (B, tokens, width).
        latent_scale: Factor that gives latents unit variance (0.18215 for Stable Diffusion).

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
    prediction = unet([noisy_latents, time, context_encoder(inputs["label"])])  # (B, h, w, 4)
    # The loss is taken in float32 whatever the precision of the UNet.
    prediction = keras.layers.Activation("linear", dtype="float32", name="prediction")(prediction)
    return keras.Model(inputs, prediction, name="denoising_model")
