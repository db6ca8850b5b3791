"""DPM-Solver++(2M), against the scheduler of diffusers.

`golden/dpm_solver_golden.npz` was made once with diffusers 0.42.1: DPMSolverMultistepScheduler(beta_start=0.00085,
beta_end=0.012, beta_schedule="scaled_linear", algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint",
steps_offset=1, final_sigmas_type="zero") and both spacings and prediction types, in float64, from `noise` and with the
closed-form network of test_sampler.py in the contexts `context_mean`.
"""

import numpy as np
import pytest

from Models.noise_schedule import STABLE_DIFFUSION
from Models.sampler import Sampler
from Models.solvers import DPMSolver
from tests.test_sampler import closed_form_unet, contexts

STEPS = (1, 2, 6, 8, 10, 15, 20)


@pytest.fixture(scope="module")
def dpm_golden(golden):
    with np.load(golden / "dpm_solver_golden.npz") as data:
        return dict(data)


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def sampler(request):
    return request.param, Sampler(closed_form_unet(4), prediction_type=request.param, solver=DPMSolver)


@pytest.mark.parametrize("spacing", ["linspace", "leading"])
def test_latents_of_diffusers(sampler, dpm_golden, spacing):
    prediction, sampler = sampler
    table = contexts(dpm_golden["context_mean"], 0.0)
    for num_steps in STEPS:
        latents, _ = sampler.sample(dpm_golden["noise"], table, [0, 1], num_steps, 1.0, spacing)
        assert np.abs(latents - dpm_golden[f"{spacing}_{prediction}_{num_steps}"]).max() < 1e-4, num_steps


@pytest.mark.parametrize("spacing", ["linspace", "leading"])
def test_timesteps_of_diffusers(dpm_golden, spacing):
    for num_steps in STEPS:
        timesteps = DPMSolver.timesteps(STABLE_DIFFUSION, num_steps, spacing)
        assert timesteps.tolist() == dpm_golden[f"timesteps_{spacing}_{num_steps}"].tolist()


def test_steps_that_would_not_begin_in_the_noise_are_refused():
    assert DPMSolver.timesteps(STABLE_DIFFUSION, 499, "leading")[0] == 999
    assert DPMSolver.timesteps(STABLE_DIFFUSION, 999, "linspace")[0] == 999
    for spacing, steps in (("leading", 500), ("linspace", 1000)):
        with pytest.raises(ValueError, match=rf"must be in 1\.\.{steps - 1}"):
            DPMSolver.timesteps(STABLE_DIFFUSION, steps, spacing)


def test_first_and_last_step_are_of_first_order():
    timesteps = DPMSolver.timesteps(STABLE_DIFFUSION, 6, "linspace")
    change = DPMSolver.coefficients(STABLE_DIFFUSION, timesteps)["change"]
    assert change[[0, -1]].tolist() == [0.0, 0.0] and (change[1:-1] > 0).all()


def test_its_own_spacing_is_linspace(sampler, dpm_golden):
    table = contexts(dpm_golden["context_mean"], 0.0)
    arguments = dpm_golden["noise"], table, [0, 1], 6, 1.0
    assert np.array_equal(sampler[1].sample(*arguments)[0], sampler[1].sample(*arguments, "linspace")[0])


@pytest.mark.parametrize("num_steps, spacing", [(0, "linspace"), (1000, "linspace"), (5, "karras")])
def test_impossible_steps_are_refused(num_steps, spacing):
    with pytest.raises(ValueError, match="Received"):
        DPMSolver.timesteps(STABLE_DIFFUSION, num_steps, spacing)


def test_fewer_steps_than_ddim_come_as_near_to_the_solution():
    """The solution is DDIM in 500 steps."""
    table, noise = contexts([0.3], 0.0), np.random.default_rng(3).standard_normal((4, 4, 4, 4), dtype="float32")

    def sample(num_steps, **how):
        return Sampler(closed_form_unet(4), **how).sample(noise, table, [0] * 4, num_steps, 1.0)[0]

    solution = sample(500)
    assert np.abs(sample(10, solver=DPMSolver) - solution).mean() < 0.5 * np.abs(sample(20) - solution).mean()
