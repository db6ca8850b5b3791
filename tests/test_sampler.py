"""The sampling loop, against what the published stack computed, and the image iterator."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from Models.backbones import BACKBONES
from Models.class_encoder import class_encoder
from Models.sampler import Sampler, block_size, class_contexts, first_of_each_class, generate_images, initial_noise  # fmt: skip


class ClosedForm(layers.Layer):
    """The golden values' noise predictor; keeps the batch size of every pass that is traced."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def call(self, latent, time, context):
        self.batches.append(latent.shape[0])
        time, context = ops.mean(time, -1)[:, None, None, None], ops.mean(context, (1, 2))[:, None, None, None]
        return 0.9 * ops.tanh(0.7 * latent + 0.3 * time + 0.5 * context)


def closed_form_unet(side):
    inputs = [keras.Input((side, side, 4)), keras.Input((320,)), keras.Input((2, 3))]
    return keras.Model(inputs, ClosedForm()(*inputs))


@pytest.fixture(scope="module")
def sampler():
    return Sampler(closed_form_unet(16))


def contexts(means, null_mean):
    """A context of constant values for each mean, then the unconditional one."""
    return np.broadcast_to(np.reshape([*means, null_mean], (-1, 1, 1)), (len(means) + 1, 2, 3)).astype("float32")


@pytest.mark.parametrize("scale", [0.0, 1.0, 1.2, 7.5])
@pytest.mark.parametrize("num_steps", [1, 2, 5, 15, 50])
def test_published_latents(sampler, diffusion_golden, num_steps, scale):
    table = contexts(np.ravel(diffusion_golden["context_mean"]), diffusion_golden["unconditional_context_mean"].item())
    noise = diffusion_golden["initial_noise"]
    latents, finite = sampler.sample(noise, table, np.resize(np.arange(len(table) - 1), len(noise)), num_steps, scale)
    assert np.abs(latents - diffusion_golden[f"final_latent_steps{num_steps}_ugs{scale}"]).max() < 1e-4
    assert finite.tolist() == [True] * len(noise)


def test_linspace_starts_at_another_timestep(sampler, diffusion_golden):
    arguments = diffusion_golden["initial_noise"], contexts([0.1], 0.0), [0, 0, 0], 5, 1.2
    leading, linspace = sampler.sample(*arguments)[0], sampler.sample(*arguments, spacing="linspace")[0]
    assert np.abs(leading - linspace).max() > 1e-2


@pytest.mark.parametrize("scales, batch", [([0, 0, 0], 3), ([1, 1, 1], 3), ([1.2, 7.5, 0.5], 6)])
def test_one_graph_and_no_needless_pass(scales, batch):
    """At scale 0 and 1 one of the two passes cancels out; neither steps nor scale compile anything anew."""
    sampler = Sampler(closed_form_unet(4))
    batches = sampler.unet.layers[-1].batches
    batches.clear()
    noise = np.random.default_rng(1).standard_normal((3, 4, 4, 4), dtype="float32")
    for num_steps, scale in zip((1, 15, 50), scales):
        sampler.sample(noise, contexts([0.1], 0.0), [0, 0, 0], num_steps, scale)
    assert batches == [batch]


class Levels(layers.Layer):
    """A decoder that paints the same pixels whatever the latents."""

    LEVELS = (-2.0, -1.0, 0.0, 0.5, 0.999, 1.0, 3.0)

    def call(self, latents):
        return ops.zeros_like(latents[:, :1, :1, :1]) + ops.reshape(ops.convert_to_tensor(self.LEVELS), (1, 1, -1, 1))


def test_pixels_are_clipped_and_truncated_as_published():
    latent = keras.Input((4, 4, 4))
    images, _ = Sampler(closed_form_unet(4), keras.Model(latent, Levels()(latent))).sample(
        np.zeros((2, 4, 4, 4), "float32"), contexts([0.1], 0.0), [0, 0], 2, 1.5
    )
    assert images.dtype == np.uint8 and images[1, 0, :, 0].tolist() == [0, 0, 127, 191, 254, 255, 255]


def test_initial_noise_is_a_function_of_seed_class_and_index():
    noise = initial_noise(5, [0, 0, 1, 2], [0, 1, 0, 7], (8, 8, 4))
    assert noise.shape == (4, 8, 8, 4) and noise.dtype == np.float32
    assert len(np.unique(noise)) > 1000 and abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1
    assert np.array_equal(initial_noise(5, [2, 0], [7, 1], (8, 8, 4)), noise[[3, 1]])
    assert not np.array_equal(initial_noise(6, [2], [7], (8, 8, 4))[0], noise[3])


@pytest.fixture(scope="module")
def encoder():
    encoder = class_encoder(3, 4, (2, 3))
    encoder.layers[1].bias.assign([0.5, -0.5, 0.25, 1.0])
    return encoder


def test_class_contexts(encoder):
    table = class_contexts(encoder)
    assert table.shape == (4, 2, 3)
    assert np.abs(table - encoder(np.eye(4, 3))).max() < 1e-6  # the last label is all zeros


NUMBERS = np.array([0, 1, 2, 3, 4, 5, 6])  # of classes 0 1 2 0 1 2 0


@pytest.fixture(scope="module")
def generate(encoder):
    sampler = Sampler(closed_form_unet(4))

    def generate(numbers, block=4, seed=5):
        made = generate_images(sampler, encoder, numbers, num_steps=3, scale=1.5, seed=seed, block=block)
        return [np.concatenate(arrays) for arrays in zip(*made)][:2]

    return generate


def test_generated_images_come_in_order_with_their_own_noise_and_context(generate, encoder):
    numbers, latents = generate(NUMBERS)
    assert np.array_equal(numbers, NUMBERS)
    labels, indices = NUMBERS % 3, NUMBERS // 3
    noise = initial_noise(5, labels, indices, (4, 4, 4))
    expected, _ = Sampler(closed_form_unet(4)).sample(noise, class_contexts(encoder), labels, 3, 1.5)
    assert np.abs(latents - expected).max() < 1e-6


class PlaceDependent(ClosedForm):
    """What some processors do, exaggerated: the rows of a batch are computed differently."""

    def call(self, latent, time, context):
        rows = ops.cast(ops.arange(ops.shape(latent)[0]), "float32")[:, None, None, None]
        return super().call(latent, time, context) * (1 + 0.01 * rows)


@pytest.mark.parametrize("chosen", [[0], [6], [5, 6], [0, 3, 6], [0, 1, 2, 3, 4]])
def test_an_image_does_not_depend_on_how_the_work_is_divided(encoder, chosen):
    inputs = [keras.Input((4, 4, 4)), keras.Input((320,)), keras.Input((2, 3))]
    sampler = Sampler(keras.Model(inputs, PlaceDependent()(*inputs)))

    def generate(numbers, block=4):
        made = generate_images(sampler, encoder, numbers, num_steps=3, scale=1.5, seed=5, block=block)
        return np.concatenate([images for _, images, _ in made])

    whole = generate(NUMBERS)
    assert not np.array_equal(whole[4], generate(NUMBERS, block=7)[4]) and np.array_equal(
        generate(np.array(chosen)), whole[chosen]
    )


def test_every_block_is_computed_whole(generate):
    unet = closed_form_unet(4)
    batches = unet.layers[-1].batches
    batches.clear()
    encoder = class_encoder(3, 4, (2, 3))
    made = list(generate_images(Sampler(unet), encoder, [2, 9], num_steps=1, scale=1, seed=5, block=4))
    assert [numbers.tolist() for numbers, *_ in made] == [[2], [9]] and batches == [4]


def test_the_first_of_each_class():
    numbers, labels = first_of_each_class(5, 2, 3)
    assert numbers.tolist() == [0, 1, 2, 5, 6, 7] and labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_block_size(monkeypatch):
    mini = BACKBONES["mini"]
    assert [block_size(mini, most) for most in (1, 8, 96, 250)] == [2, 8, 96, 96]
    monkeypatch.setattr("Models.sampler.on_gpu", lambda: True)
    assert block_size(mini, 250) == 250


def test_other_seeds_give_other_images(generate):
    assert not np.allclose(generate(NUMBERS)[1], generate(NUMBERS, seed=6)[1])


class Breaks(layers.Layer):
    """A decoder of blocks of four: the image at the second place holds one NaN, that at the third is of one value."""

    def call(self, latents):
        place, corner = ops.arange(4)[:, None, None, None], ops.reshape(ops.arange(64) == 0, (1, 4, 4, 4))
        latents = ops.where(ops.logical_and(place == 1, corner), float("nan"), latents)
        return ops.where(place == 2, 0.25, latents)


def test_each_image_is_told_good_or_bad(encoder):
    latent = keras.Input((4, 4, 4))
    sampler = Sampler(closed_form_unet(4), keras.Model(latent, Breaks()(latent)))
    made = list(generate_images(sampler, encoder, NUMBERS, num_steps=1, scale=1, seed=5, block=4))
    assert [good.tolist() for *_, good in made] == [[True, False, False, True], [True, False, False]]
    assert all(images.dtype == np.uint8 for _, images, _ in made)  # in which a NaN cannot be seen any more


@pytest.mark.parametrize("parts", [1, 2])
def test_latents_are_told_finite_or_not_in_every_part_of_a_batch(parts):
    noise = np.random.default_rng(1).standard_normal((4, 4, 4, 4), dtype="float32")
    noise[1, 0, 0, 0], noise[3, 2, 1, 0] = np.nan, np.inf
    _, finite = Sampler(closed_form_unet(4), side_by_side=parts).sample(noise, contexts([0.1], 0.0), [0] * 4, 1, 1)
    assert finite.tolist() == [True, False, True, False]


@pytest.mark.parametrize("batch", [2, 3, 4, 7])
def test_parts_of_a_batch_are_the_batch(batch):
    """A batch that is cut in two gives what it gives in one piece, and no part is of one image."""
    unet = closed_form_unet(4)
    noise = np.random.default_rng(1).standard_normal((batch, 4, 4, 4), dtype="float32")
    arguments = noise, contexts([0.1, 0.4, 0.9], 0.0), np.arange(batch) % 3, 5, 1.2
    whole, _ = Sampler(unet).sample(*arguments)
    unet.layers[-1].batches.clear()
    assert np.abs(Sampler(unet, side_by_side=2).sample(*arguments)[0] - whole).max() < 1e-6
    shares = {1: [batch], 2: [batch - batch // 2, batch // 2]}[min(2, batch // 2)]
    assert set(unet.layers[-1].batches) == {2 * share for share in shares}  # both passes; a graph for each size
