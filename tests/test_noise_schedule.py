"""The noise schedule, against what the published stack computed and against its own definition."""

import numpy as np
import pytest

from Models.noise_schedule import (
    ALPHAS_CUMPROD,
    add_noise,
    alpha_bar_pairs,
    ddim_step,
    sampling_timesteps,
    timestep_embedding,
)  # fmt: skip


def test_alphas(diffusion_golden):
    assert ALPHAS_CUMPROD.dtype == np.float32
    assert np.abs(ALPHAS_CUMPROD - diffusion_golden["alphas_cumprod"]).max() < 1e-6


def test_timestep_embedding(diffusion_golden):
    embedding = np.asarray(timestep_embedding(np.array([0, 1, 500, 999])))
    assert embedding.dtype == np.float32
    assert np.abs(embedding - diffusion_golden["timestep_embedding_t0_1_500_999"]).max() < 1e-6


def test_add_noise(diffusion_golden):
    arguments = [diffusion_golden[f"add_noise_{name}"] for name in ("latents", "noise", "timesteps")]
    assert np.abs(np.asarray(add_noise(*arguments)) - diffusion_golden["add_noise_result"]).max() < 1e-6


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
    now, after = alpha_bar_pairs(np.array([999, 500, 1]))
    assert now.tolist() == ALPHAS_CUMPROD[[999, 500, 1]].tolist() and after.tolist() == [*now[1:], 1.0]


@pytest.mark.parametrize("timestep, later", [(900, 300), (300, 1), (1, None)])
def test_ddim_with_the_true_noise_walks_back_along_the_forward_process(timestep, later):
    latents, noise = np.random.default_rng(1).standard_normal((2, 2, 4, 4, 4), dtype="float32")
    expected = latents if later is None else np.asarray(add_noise(latents, noise, np.full(2, later)))
    after = np.float32(1.0) if later is None else ALPHAS_CUMPROD[later]
    noisy = np.asarray(add_noise(latents, noise, np.full(2, timestep)))
    assert np.abs(np.asarray(ddim_step(noisy, noise, ALPHAS_CUMPROD[timestep], after)) - expected).max() < 1e-5
