"""Solvers of the sampling equation. A solver says what it needs of a step, and carries a state from step to step."""

import numpy as np
from keras import ops

from Models.noise_schedule import DEFAULT_SPACINGS, TIMESTEP_SPACINGS


class DDIM:
    """Deterministic DDIM (Song et al. 2021, eq. 12 with eta = 0). Its state is the latents."""

    spacing = DEFAULT_SPACINGS["ddim"]

    @staticmethod
    def timesteps(schedule, num_steps, spacing):
        """Timesteps that are visited, from noisy to clean: int32 (n,).

        Args:
            schedule: A `NoiseSchedule`.
            num_steps: Inference steps.
            spacing: One of `TIMESTEP_SPACINGS`.

        Raises:
            ValueError: Either is not possible.
        """
        return schedule.sampling_timesteps(num_steps, spacing)

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


class DPMSolver:
    """DPM-Solver++(2M), deterministic (Lu et al. 2022, arXiv 2211.01095, algorithm 2).

    Two facts about the clean latents make a step: what the network says of them now, and what it said a step before. The
    first step has no step before, and the last one goes to no noise at all, where the second order is not defined: both are
    of first order. The state is the latents, and the clean latents of the step before.
    """

    spacing = DEFAULT_SPACINGS["dpmpp"]

    @staticmethod
    def timesteps(schedule, num_steps, spacing):
        """Timesteps that are visited, from noisy to clean: int32 (num_steps,).

        `linspace` spreads the steps evenly from the noisiest timestep down to, but without, timestep 0. `leading` visits
        multiples of T // (num_steps + 1), plus one. (Both as in the scheduler of diffusers.)

        Raises:
            ValueError: num_steps outside 1..T-1 (`leading`: T/2 - 1, since from there on it would begin in the middle of the
                noise), or an unknown spacing.
        """
        last = schedule.num_timesteps
        most = last // 2 - 1 if spacing == "leading" else last - 1
        if not 1 <= num_steps <= most:
            raise ValueError(f"The number of inference steps must be in 1..{most}. Received: {num_steps}")
        if spacing == "linspace":
            return np.linspace(0, last - 1, num_steps + 1).round().astype("int32")[:0:-1].copy()
        if spacing == "leading":
            return (np.arange(num_steps, 0, -1) * (last // (num_steps + 1)) + 1).astype("int32")
        raise ValueError(f"The timestep spacing must be one of {TIMESTEP_SPACINGS}. Received: {spacing}")

    @staticmethod
    def coefficients(schedule, timesteps):
        """Factors of a step, each float32 (n,), for alpha = sqrt(abar), sigma = sqrt(1 - abar), lambda = ln(alpha / sigma).

        A step from s to t, h = lambda_t - lambda_s, is x_t = keep x_s + clean x_0 + change (x_0 - x_0 of the step before)
        with keep = sigma_t / sigma_s, clean = alpha_t (1 - e^-h), change = clean h / (2 h of the step before).
        """
        alpha_bar = schedule.alphas_cumprod[timesteps]
        now = alpha_bar.astype("float64")
        after = np.append(now[1:], 1.0)
        keep = np.sqrt((1.0 - after) / (1.0 - now))
        clean = np.sqrt(after) - keep * np.sqrt(now)  # alpha_t e^-h = sigma_t alpha_s / sigma_s
        change = np.zeros(len(now))
        log_ratio = 0.5 * np.log(now / (1.0 - now))  # lambda
        steps = np.diff(log_ratio)
        change[1:-1] = 0.5 * clean[1:-1] * steps[1:] / steps[:-1]
        factors = {"keep": keep, "clean": clean, "change": change}
        return {"alpha_bar": alpha_bar, **{name: factor.astype("float32") for name, factor in factors.items()}}

    @staticmethod
    def first_state(latents):
        return latents, ops.zeros_like(latents)

    @staticmethod
    def latents(state):
        return state[0]

    @staticmethod
    def step(state, noise, coefficients):
        latents, clean_before = state
        alpha_bar = coefficients["alpha_bar"]
        clean = (latents - ops.sqrt(1.0 - alpha_bar) * noise) / ops.sqrt(alpha_bar)
        change = coefficients["change"] * (clean - clean_before)
        return coefficients["keep"] * latents + coefficients["clean"] * clean + change, clean


SOLVERS = {"ddim": DDIM, "dpmpp": DPMSolver}
