"""Solvers of the sampling equation. A solver says what it needs of a step, and carries a state from step to step."""

import numpy as np
from keras import ops


class DDIM:
    """Deterministic DDIM (Song et al. 2021, eq. 12 with eta = 0). Its state is the latents."""

    @staticmethod
    def coefficients(schedule, timesteps):
        """What the steps need beside the noise, each float32 (n,): abar at each visited timestep and at the next.

        Args:
            schedule: A `NoiseSchedule`.
            timesteps: int32 (n,), from noisy to clean. The last step goes to abar = 1.
        """
        alpha_bar = schedule.alphas_cumprod[timesteps]
        return {"alpha_bar": alpha_bar, "alpha_bar_next": np.append(alpha_bar[1:], np.float32(1.0))}

    @staticmethod
    def first_state(latents):
        """The state before the first step, a tensor or a tuple of them, from initial noise (B, h, w, c)."""
        return latents

    @staticmethod
    def latents(state):
        """The latents (B, h, w, c) of a state."""
        return state

    @staticmethod
    def step(state, noise, coefficients):
        """The state after a step, from the noise (B, h, w, c) that was predicted for its latents."""
        alpha_bar, alpha_bar_next = coefficients["alpha_bar"], coefficients["alpha_bar_next"]
        clean = (state - ops.sqrt(1.0 - alpha_bar) * noise) / ops.sqrt(alpha_bar)
        return ops.sqrt(alpha_bar_next) * clean + ops.sqrt(1.0 - alpha_bar_next) * noise


SOLVERS = {"ddim": DDIM}
