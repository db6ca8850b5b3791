"""The noise schedule of Stable Diffusion, in NumPy.

The forward process is x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps (Ho et al. 2020, eq. 4) with the
"scaled linear" betas of Stable Diffusion: linear in sqrt(beta) from 0.00085 to 0.012 over 1000 timesteps.
"""

import numpy as np

BETA_START, BETA_END, TIMESTEPS = 0.00085, 0.012, 1000
TIMESTEP_SPACINGS = ("leading", "linspace")
DEFAULT_SPACINGS = {"ddim": "leading", "dpmpp": "linspace"}  # by solver, as it was published


class NoiseSchedule:
    """What a diffusion model was trained with: how much of the image is left at each timestep.

    Args:
        betas: float64 (T,), the variance that each timestep adds.
    """

    def __init__(self, betas):
        self.alphas_cumprod = np.cumprod(1.0 - betas).astype("float32")  # abar (T,)

    @property
    def num_timesteps(self):
        return len(self.alphas_cumprod)

    def noise_levels(self, timesteps):
        """sigma / alpha = sqrt((1 - abar) / abar) at timesteps (n,), the unit of Karras et al. 2022: float64 (n,)."""
        alpha_bar = self.alphas_cumprod[timesteps].astype("float64")
        return np.sqrt((1.0 - alpha_bar) / alpha_bar)

    def min_snr_weights(self, gamma, prediction_type="epsilon"):
        """Weights of the loss at each timestep, float32 (T,), that bound the signal-to-noise ratio (arXiv 2303.09556).

        min(SNR, gamma) / SNR for predicted noise, and / (SNR + 1) for v, with SNR = abar / (1 - abar).
        """
        alpha_bar = self.alphas_cumprod.astype("float64")
        ratio = alpha_bar / (1.0 - alpha_bar)
        return (np.minimum(ratio, gamma) / (ratio + (prediction_type == "v_prediction"))).astype("float32")

    def sampling_timesteps(self, num_steps, spacing="leading"):
        """Timesteps that a sampler visits, from noisy to clean: int32 (n,).

        `leading` is what the published results used (keras-cv 0.6.1): range(1, 1000, 1000 // num_steps), so n can
        exceed num_steps (15 gives 16, 30 gives 31). `linspace` is keras-cv 0.9: num_steps evenly spread over 0..999.

        Raises:
            ValueError: num_steps outside 1..T, or an unknown spacing.
        """
        last = self.num_timesteps
        if not 1 <= num_steps <= last:
            raise ValueError(f"The number of inference steps must be in 1..{last}. Received: {num_steps}")
        if spacing == "leading":
            return np.arange(1, last, last // num_steps, dtype="int32")[::-1].copy()
        if spacing == "linspace":
            return np.linspace(0, last - 1, num_steps).round().astype("int32")[::-1].copy()
        raise ValueError(f"The timestep spacing must be one of {TIMESTEP_SPACINGS}. Received: {spacing}")


def scaled_linear_betas():
    """Betas that are linear in their square root, float64 (1000,)."""
    return np.linspace(BETA_START**0.5, BETA_END**0.5, TIMESTEPS) ** 2


STABLE_DIFFUSION = NoiseSchedule(scaled_linear_betas())
