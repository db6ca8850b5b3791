"""The noise schedule of Stable Diffusion: pure functions, no state.

The forward process is x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps (Ho et al. 2020, eq. 4) with the
"scaled linear" betas of Stable Diffusion: linear in sqrt(beta) from 0.00085 to 0.012 over 1000 timesteps.
"""

import math

import numpy as np
from keras import ops

NUM_TRAIN_TIMESTEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012
TIMESTEP_EMBEDDING_DIM = 320
TIMESTEP_SPACINGS = ("leading", "linspace")

BETAS = np.linspace(BETA_START**0.5, BETA_END**0.5, NUM_TRAIN_TIMESTEPS) ** 2
ALPHAS_CUMPROD = np.cumprod(1.0 - BETAS).astype("float32")  # (1000,)


def timestep_embedding(timesteps, dim=TIMESTEP_EMBEDDING_DIM, max_period=10_000.0):
    """Sinusoidal embedding of timesteps (B,) -> (B, dim), cosines first, in float32."""
    half = dim // 2
    # In float32 throughout, as published: at timestep 999 an exact frequency would differ in the fifth digit.
    frequencies = ops.exp(-math.log(max_period) * ops.cast(ops.arange(half), "float32") / half)
    angles = ops.cast(timesteps, "float32")[:, None] * frequencies[None, :]  # (B, dim/2)
    return ops.concatenate([ops.cos(angles), ops.sin(angles)], axis=-1)  # (B, dim)


def add_noise(latents, noise, timesteps):
    """Forward process at timesteps (B,): latents and noise (B, h, w, c) -> noisy latents (B, h, w, c)."""
    alpha_bar = ops.take(ops.convert_to_tensor(ALPHAS_CUMPROD), timesteps)[:, None, None, None]
    return ops.sqrt(alpha_bar) * latents + ops.sqrt(1.0 - alpha_bar) * noise


def sampling_timesteps(num_steps, spacing="leading"):
    """Timesteps that DDIM visits, from noisy to clean: int32 (n,).

    `leading` is what the published results used (keras-cv 0.6.1): range(1, 1000, 1000 // num_steps), so n can
    exceed num_steps (15 gives 16, 30 gives 31). `linspace` is keras-cv 0.9: num_steps evenly spread over 0..999.

    Raises:
        ValueError: num_steps outside 1..1000, or an unknown spacing.
    """
    if not 1 <= num_steps <= NUM_TRAIN_TIMESTEPS:
        raise ValueError(f"The number of inference steps must be in 1..{NUM_TRAIN_TIMESTEPS}. Received: {num_steps}")
    if spacing == "leading":
        return np.arange(1, NUM_TRAIN_TIMESTEPS, NUM_TRAIN_TIMESTEPS // num_steps, dtype="int32")[::-1].copy()
    if spacing == "linspace":
        steps = np.linspace(0, NUM_TRAIN_TIMESTEPS - 1, num_steps)
        return steps.round().astype("int32")[::-1].copy()
    raise ValueError(f"The timestep spacing must be one of {TIMESTEP_SPACINGS}. Received: {spacing}")


def alpha_bar_pairs(timesteps):
    """abar at each visited timestep and at the next one; the last step goes to abar = 1. Two float32 (n,)."""
    alpha_bar = ALPHAS_CUMPROD[timesteps]
    return alpha_bar, np.append(alpha_bar[1:], np.float32(1.0))


def ddim_step(latents, noise_prediction, alpha_bar, alpha_bar_next):
    """One deterministic DDIM step (Song et al. 2021, eq. 12 with eta = 0), shapes (B, h, w, c)."""
    clean = (latents - ops.sqrt(1.0 - alpha_bar) * noise_prediction) / ops.sqrt(alpha_bar)
    return ops.sqrt(alpha_bar_next) * clean + ops.sqrt(1.0 - alpha_bar_next) * noise_prediction
