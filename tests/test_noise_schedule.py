"""The noise schedule, against what the published stack computed and against its own definition."""

import numpy as np
import pytest

from Models.diffusion import PREDICTION_TYPES, add_noise, alpha_bar_at, timestep_embedding
from Models.noise_schedule import STABLE_DIFFUSION
from Models.solvers import DDIM

ALPHAS_CUMPROD = STABLE_DIFFUSION.alphas_cumprod
sampling_timesteps = STABLE_DIFFUSION.sampling_timesteps


def test_alphas(diffusion_golden):
    assert ALPHAS_CUMPROD.dtype == np.float32
    assert np.abs(ALPHAS_CUMPROD - diffusion_golden["alphas_cumprod"]).max() < 1e-6


def test_timestep_embedding(diffusion_golden):
    embedding = np.asarray(timestep_embedding(np.array([0, 1, 500, 999])))
    assert embedding.dtype == np.float32
    assert np.abs(embedding - diffusion_golden["timestep_embedding_t0_1_500_999"]).max() < 1e-6


def test_add_noise(diffusion_golden):
    latents, noise, timesteps = (diffusion_golden[f"add_noise_{name}"] for name in ("latents", "noise", "timesteps"))
    assert (
        np.abs(
            np.asarray(add_noise(latents, noise, alpha_bar_at(STABLE_DIFFUSION, timesteps)))
            - diffusion_golden["add_noise_result"]
        ).max()
        < 1e-6
    )


@pytest.mark.parametrize("num_steps, visited", [
    (1, [1]), (2, [501, 1]), (4, [751, 501, 251, 1]), (1000, [*range(999, 0, -1)]),
])  # fmt: skip
def test_leading_timesteps(num_steps, visited):
    assert sampling_timesteps(num_steps).tolist() == visited


@pytest.mark.parametrize("num_steps, visits, first", [(15, 16, 991), (30, 31, 991), (31, 32, 993), (50, 50, 981)])
def test_leading_timesteps_can_be_one_more_than_asked_for(num_steps, visits, first):
    timesteps = sampling_timesteps(num_steps)
    assert (len(timesteps), timesteps[0], timesteps[-1]) == (visits, first, 1)


@pytest.mark.parametrize("num_steps, visited", [(1, [0]), (2, [999, 0]), (4, [999, 666, 333, 0]), (3, [999, 500, 0])])
def test_linspace_timesteps(num_steps, visited):
    assert sampling_timesteps(num_steps, "linspace").tolist() == visited


@pytest.mark.parametrize("num_steps, spacing, reason", [
    (0, "leading", r"in 1\.\.1000\. Received: 0"), (1001, "leading", "Received: 1001"), (5, "even", "Received: even"),
])  # fmt: skip
def test_other_timesteps_are_refused(num_steps, spacing, reason):
    with pytest.raises(ValueError, match=reason):
        sampling_timesteps(num_steps, spacing)


def test_the_last_step_goes_to_clean_latents():
    now, after = DDIM.coefficients(STABLE_DIFFUSION, np.array([999, 500, 1])).values()
    assert now.tolist() == ALPHAS_CUMPROD[[999, 500, 1]].tolist() and after.tolist() == [*now[1:], 1.0]


@pytest.mark.parametrize("timestep, later", [(900, 300), (300, 1), (1, None)])
def test_ddim_with_the_true_noise_walks_back_along_the_forward_process(timestep, later):
    latents, noise = np.random.default_rng(1).standard_normal((2, 2, 4, 4, 4), dtype="float32")
    now, after = ALPHAS_CUMPROD[timestep], np.float32(1.0) if later is None else ALPHAS_CUMPROD[later]
    expected, noisy = (np.asarray(add_noise(latents, noise, alpha_bar)) for alpha_bar in (after, now))
    step = DDIM.step(noisy, noise, {"alpha_bar": now, "alpha_bar_next": after})
    assert np.abs(np.asarray(step) - expected).max() < 1e-5


@pytest.mark.parametrize("name", PREDICTION_TYPES)
@pytest.mark.parametrize("timestep", [1, 500, 999])
def test_a_perfect_prediction_stands_for_the_noise(name, timestep):
    prediction, alpha_bar = PREDICTION_TYPES[name], ALPHAS_CUMPROD[timestep]
    latents, noise = np.random.default_rng(1).standard_normal((2, 2, 4, 4, 4), dtype="float32")
    target = prediction.target(latents, noise, alpha_bar)
    noisy = add_noise(latents, noise, alpha_bar)
    assert np.abs(np.asarray(prediction.to_noise(target, noisy, alpha_bar)) - noise).max() < 1e-5
