"""Guidance between noise levels and by an earlier epoch: what is computed, and that nothing else is."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import layers

from cli.lora import base_hashes
from Experiment.errors import UserError
from Models.adapter import load_diffusion, load_guide
from Models.class_encoder import class_encoder
from Models.faster_layers import use_faster_layers
from Models.guidance import Guide, context_table, guided_steps
from Models.noise_schedule import STABLE_DIFFUSION
from Models.numerics import Following
from Models.sampler import Sampler, class_contexts, generate_images
from Models.solvers import SOLVERS, DPMSolver
from tests.test_sampler import closed_form_unet, contexts
from tests.tiny_networks import small_unet

EVERYTHING, NOTHING = (0.0, 100.0), (50.0, 100.0)
MIDDLE = (0.283, 1.609)  # of the 32 steps of --inf_steps 31, 13


class Counted(layers.Layer):
    """Passes its input on, and counts the images that it sees when a graph runs."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def call(self, latent):
        import tensorflow as tf

        def count(batch):
            self.seen.append(len(batch))
            return batch

        return tf.ensure_shape(tf.py_function(count, [latent], latent.dtype), latent.shape)


def counted_unet():
    unet, counted = closed_form_unet(4), Counted()
    latent, time, context = (keras.Input(tensor.shape[1:]) for tensor in unet.inputs)
    return keras.Model([latent, time, context], unet([counted(latent), time, context])), counted.seen


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(1).standard_normal((3, 4, 4, 4), dtype="float32")


TABLE = contexts([0.4, -0.3], 0.1)
ROWS = [0, 1, 1]


def test_noise_levels_are_sigma_over_alpha():
    """Against the pairs of timesteps and levels that "Align Your Steps" publishes for Stable Diffusion 1.5."""
    timesteps = np.array([999, 850, 736, 645, 545, 455, 343, 233, 124, 24])
    published = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152]
    assert STABLE_DIFFUSION.noise_levels(timesteps) == pytest.approx(published, rel=5e-3)


def test_the_bounds_are_those_of_the_source():
    """LO < sigma <= HI: an interval that begins at a step's level leaves it out, one that ends there has it."""
    timesteps = np.array([900, 500, 100])
    levels = STABLE_DIFFUSION.noise_levels(timesteps)
    assert guided_steps(STABLE_DIFFUSION, timesteps, (levels[2], levels[1])).tolist() == [False, True, False]
    assert guided_steps(STABLE_DIFFUSION, timesteps, (0, levels[2])).tolist() == [False, False, True]


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_interval_of_all_levels_is_guidance_and_an_empty_one_none(solver, noise):
    sampler = Sampler(closed_form_unet(4), solver=SOLVERS[solver])

    def sample(scale, **how):
        return sampler.sample(noise, TABLE, ROWS, 6, scale, **how)[0]

    guided, plain = sample(2.0), sample(1.0)
    assert np.abs(guided - plain).max() > 0.05
    assert sample(2.0, interval=EVERYTHING) == pytest.approx(guided, rel=1e-5, abs=1e-5)
    assert sample(2.0, interval=NOTHING) == pytest.approx(plain, rel=1e-5, abs=1e-5)
    between = sample(2.0, interval=MIDDLE)
    assert np.abs(between - guided).max() > 0.01 and np.abs(between - plain).max() > 0.01
    assert np.array_equal(sample(1.0, interval=MIDDLE), plain)


@pytest.mark.parametrize(
    "scale, interval, batches",
    [
        (2.0, None, [6] * 32),
        (2.0, MIDDLE, [3] * 16 + [6] * 13 + [3] * 3),
        (2.0, NOTHING, [3] * 32),
        (1.0, MIDDLE, [3] * 32),
        (0.0, None, [3] * 32),
    ],
)
def test_the_other_steps_are_one_pass(noise, scale, interval, batches):
    unet, seen = counted_unet()
    Sampler(unet).sample(noise, TABLE, ROWS, 31, scale, interval=interval)
    assert seen == batches


def test_an_interval_with_networks_of_attention(noise):
    """Their contexts are projected once, for both passes and for one, as in the real backbones."""
    keras.utils.set_random_seed(1)
    sampler = Sampler(use_faster_layers(small_unet((3, 5))))
    rng = np.random.default_rng(2)
    latents = rng.standard_normal((4, *sampler.unet.input_shape[0][1:]), dtype="float32")
    table = 30 * rng.standard_normal((3, 3, 5), dtype="float32")
    arguments = latents, table, [0, 1, 1, 0], 3
    guided, plain = sampler.sample(*arguments, 2.0)[0], sampler.sample(*arguments, 1.0)[0]
    assert np.abs(sampler.sample(*arguments, 2.0, interval=EVERYTHING)[0] - guided).max() < 1e-4
    assert np.abs(sampler.sample(*arguments, 2.0, interval=NOTHING)[0] - plain).max() < 1e-4
    assert np.abs(guided - plain).max() > 0.1


def test_rows_of_guides():
    table, rows, null_rows = context_table(np.arange(5), None, [3, 1, 3], 3)
    assert table[rows].tolist() == [3, 1, 3] and table[null_rows].tolist() == [4, 4, 4]
    table, rows, null_rows = context_table(np.arange(5), 10 + np.arange(5), [3, 1, 3], 3)
    assert table[rows].tolist() == [3, 1, 3] and table[null_rows].tolist() == [13, 11, 13] and len(table) == 6


@pytest.fixture
def encoders():
    return [class_encoder(3, 4, (2, 3)) for _ in range(2)]


def made(sampler, encoder, **how):
    how = {"num_steps": 3, "scale": 1.5, "seed": 1, "block": 6, **how}
    return np.concatenate([images for _, images, _ in generate_images(sampler, encoder, range(6), **how)])


def one_step(sampler, encoder, **how):
    """From noise to latents in one step, which is linear in the predicted noise."""
    return made(sampler, encoder, num_steps=1, **how)


def test_an_earlier_encoder_guides(encoders):
    """noise = guide + scale * (noise - guide), both of the same class."""
    encoder, earlier = encoders
    unet = closed_form_unet(4)
    guided = one_step(Sampler(unet, solver=DPMSolver, guide=Guide(encoder=earlier)), encoder)
    ours, theirs = (one_step(Sampler(unet, solver=DPMSolver), e, scale=1.0) for e in (encoder, earlier))
    assert guided == pytest.approx(theirs + 1.5 * (ours - theirs), abs=1e-3)
    assert np.abs(ours - theirs).max() > 0.1


def test_an_earlier_unet_guides(encoders):
    encoder, weak = encoders[0], closed_form_unet(4)
    latent, time, context = (keras.Input(tensor.shape[1:]) for tensor in weak.inputs)
    weaker = keras.Model([latent, time, context], weak([latent, time, context]) * 0.5)
    guided = Sampler(weak, solver=DPMSolver, guide=Guide(unet=weaker))
    ours, theirs = (one_step(Sampler(unet, solver=DPMSolver), encoder, scale=1.0) for unet in (weak, weaker))
    assert one_step(guided, encoder) == pytest.approx(theirs + 1.5 * (ours - theirs), abs=1e-3)
    assert one_step(guided, encoder, scale=0.0) == pytest.approx(theirs, abs=1e-4)
    assert np.abs(ours - theirs).max() > 0.1


def test_a_guide_that_is_the_same_epoch_changes_nothing(encoders):
    encoder, unet = encoders[0], closed_form_unet(4)
    plain = made(Sampler(unet), encoder, scale=1.0)
    for guide in (Guide(encoder=encoder), Guide(unet=closed_form_unet(4))):
        assert np.abs(made(Sampler(unet, guide=guide), encoder, scale=3.0) - plain).max() < 1e-5
        assert np.abs(made(Sampler(unet, guide=guide), encoder, scale=3.0, interval=MIDDLE) - plain).max() < 1e-5


def test_a_guide_that_predicts_something_else_is_refused(tiny):
    guide, diffusion = load_guide(tiny, "dif", None, 3), load_diffusion(tiny, 3)
    assert diffusion.sampler(guide=guide)
    guide.unet.following = Following(prediction_type="v_prediction")
    with pytest.raises(UserError, match="the UNet that guides predicts v_prediction, the one that is sampled epsilon"):
        diffusion.sampler(guide=guide)


def test_the_pretrained_unet_that_guides_is_on_record(tiny, tmp_path):
    tiny.unet().save_weights(tmp_path / "epoch3.weights.h5")
    args = SimpleNamespace(backbone="tiny", weights_dir=None)
    alone, guided = (base_hashes(args, parts, tmp_path / "epoch3.weights.h5") for parts in (["decoder"], ["decoder", "unet"]))
    assert set(alone) == {"decoder"} and guided == alone | {"unet": tiny.weights_hash("unet")}


def test_a_guide_is_loaded(tiny, tmp_path):
    encoder = class_encoder(3, tiny.hidden_units, tiny.context_shape)
    encoder.save_weights(tmp_path / "epoch2.weights.h5")
    guide = load_guide(tiny, "enc", tmp_path / "epoch2.weights.h5", 3)
    assert np.array_equal(class_contexts(guide.encoder), class_contexts(encoder)) and guide.unet is None
    unet = tiny.unet()
    pretrained = load_guide(tiny, "dif", None, 3).unet
    assert all(np.array_equal(a, b) for a, b in zip(unet.get_weights(), pretrained.get_weights()))
    unet.set_weights([2 * w for w in unet.get_weights()])
    unet.save_weights(tmp_path / "epoch3.weights.h5")
    assert np.array_equal(
        load_guide(tiny, "dif", tmp_path / "epoch3.weights.h5", 3).unet.get_weights()[0], unet.get_weights()[0]
    )
