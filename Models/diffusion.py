"""The arithmetic of diffusion on tensors: pure functions, no weights, no state."""

import math

from keras import ops

TIMESTEP_EMBEDDING_DIM, MAX_PERIOD = 320, 10_000.0
LOG_VARIANCE_RANGE = (-30.0, 20.0)


def timestep_embedding(timesteps):
    """Sinusoidal embedding of timesteps (B,) -> (B, 320), cosines first, in float32."""
    half = TIMESTEP_EMBEDDING_DIM // 2
    # In float32 throughout, as published: at timestep 999 an exact frequency would differ in the fifth digit.
    frequencies = ops.exp(-math.log(MAX_PERIOD) * ops.cast(ops.arange(half), "float32") / half)
    angles = ops.cast(timesteps, "float32")[:, None] * frequencies[None, :]  # (B, 160)
    return ops.concatenate([ops.cos(angles), ops.sin(angles)], axis=-1)  # (B, 320)


def sample_latents(moments, noise, latent_scale):
    """Draw latents (B, h, w, 4) from VAE moments (B, h, w, 8) = mean and log-variance, with given noise."""
    mean, log_variance = ops.split(moments, 2, axis=-1)
    deviation = ops.exp(0.5 * ops.clip(log_variance, *LOG_VARIANCE_RANGE))
    return latent_scale * (mean + deviation * noise)


def alpha_bar_at(schedule, timesteps):
    """abar at timesteps (B,), as (B, 1, 1, 1)."""
    return ops.take(ops.convert_to_tensor(schedule.alphas_cumprod), timesteps)[:, None, None, None]


def add_noise(latents, noise, alpha_bar):
    """Forward process (Ho et al. 2020, eq. 4): latents and noise (B, h, w, c), abar that broadcasts -> (B, h, w, c)."""
    return ops.sqrt(alpha_bar) * latents + ops.sqrt(1.0 - alpha_bar) * noise


class Epsilon:
    """The network predicts the noise: Stable Diffusion 1.x and 2.x-base."""

    @staticmethod
    def target(latents, noise, alpha_bar):
        """What the network should give, for `latents` noised by `noise`."""
        return noise

    @staticmethod
    def to_noise(prediction, noisy_latents, alpha_bar):
        """The noise that a prediction for `noisy_latents` stands for."""
        return prediction


class Velocity:
    """The network predicts v = sqrt(abar) eps - sqrt(1 - abar) x_0 (Salimans & Ho 2022, appendix D)."""

    @staticmethod
    def target(latents, noise, alpha_bar):
        return ops.sqrt(alpha_bar) * noise - ops.sqrt(1.0 - alpha_bar) * latents

    @staticmethod
    def to_noise(prediction, noisy_latents, alpha_bar):
        return ops.sqrt(alpha_bar) * prediction + ops.sqrt(1.0 - alpha_bar) * noisy_latents


PREDICTION_TYPES = {"epsilon": Epsilon, "v_prediction": Velocity}
