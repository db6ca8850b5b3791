"""XLA: stated for every model, and the same numbers with it as without."""

import dataclasses

import keras
import numpy as np
import pytest

import Models.sampler
from Models import runtime
from Models.adapter import WholeNetwork, load_diffusion
from Models.backbones import BACKBONES
from Models.classifier import Classifier
from Models.faster_layers import use_faster_layers
from Models.feed import noisy_batches, padded, with_targets
from Models.training import compile_model
from tests.tiny_networks import small_unet

CLASSES = 3


@pytest.fixture
def xla():
    """Chooses XLA for the models that are made next."""
    yield runtime.use_hardware
    runtime.use_hardware()


def test_on_a_processor_nothing_is_compiled_by_default_and_on_a_gpu_the_sampler(xla, monkeypatch, tiny_unet):
    assert (runtime.jit_compile(), runtime.jit_compile(sampling=True), runtime.one_shape()) == (False, False, False)
    monkeypatch.setattr(runtime, "on_gpu", lambda: True)
    assert (runtime.jit_compile(), runtime.jit_compile(sampling=True), runtime.one_shape()) == (False, True, True)
    assert Models.sampler.Sampler(tiny_unet()).jit_compile is True
    xla("off")
    assert (runtime.jit_compile(), runtime.jit_compile(sampling=True)) == (False, False)
    monkeypatch.undo()
    xla("on")
    assert (runtime.jit_compile(), runtime.jit_compile(sampling=True), runtime.one_shape()) == (True, True, True)


def test_every_model_states_it(tiny, xla):
    for use in ("on", "off"):
        xla(use)
        diffusion = load_diffusion(tiny, CLASSES)
        stated = [diffusion.unet, diffusion.decoder, diffusion.encoder, diffusion.sampler(), tiny.image_encoder()]
        stated += [Classifier("resnet20_16", 8, CLASSES).model]
        stated += [compile_model(WholeNetwork(diffusion, "enc"), 0.1, 2, "float32")]
        assert [model._jit_compile for model in stated] == [use == "on"] * 7  # None would be "auto"


@pytest.mark.parametrize("name", ["tiny", pytest.param("mini", marks=pytest.mark.slow)])
def test_a_backbone_makes_the_same_images(xla, tiny, monkeypatch, name):
    """Several numbers of steps too, by one compilation. The tiny one has a block of each kind here."""
    backbone, rng = {"tiny": tiny, "mini": BACKBONES["mini"]}[name], np.random.default_rng(1)
    diffusion = load_diffusion(backbone, CLASSES)
    if name == "tiny":
        diffusion = dataclasses.replace(diffusion, unet=use_faster_layers(small_unet(tiny.context_shape)))
    latents = rng.standard_normal((6, *backbone.latent_shape), dtype="float32")
    contexts = rng.standard_normal((CLASSES + 1, *backbone.context_shape), dtype="float32")
    made = {}
    for use in ("off", "on"):
        xla(use)
        sampler = diffusion.sampler()
        images = [sampler.sample(latents, contexts, np.arange(6) % 3, steps, 1.5) for steps in (4, 2)]
        assert all(np.all(finite) for _, finite in images)
        made[use] = np.stack([image for image, _ in images]).astype(int)
        assert sampler.predict_function.experimental_get_tracing_count() == 1
    difference = np.abs(made["on"] - made["off"])
    assert difference.max() <= 1 and (difference == 0).mean() >= 0.999
    assert (made["on"][0] != made["on"][1]).any()


@pytest.mark.parametrize("solver", ["ddim", "dpmpp"])
def test_intervals_and_decoding_in_parts(xla, tiny, solver):
    """Batches of several sizes, one of them not a multiple of the part, by one sampler."""
    diffusion, made = load_diffusion(tiny, CLASSES), {}
    for use, part in (("off", None), ("off", 4), ("on", None), ("on", 4)):
        xla(use)
        sampler, rng = diffusion.sampler(solver), np.random.default_rng(1)
        sampler.decoded_together = part
        images = []
        for size in (6, 3, 8):
            latents = rng.standard_normal((size, *tiny.latent_shape), dtype="float32")
            contexts = rng.standard_normal((CLASSES + 1, *tiny.context_shape), dtype="float32")
            image, finite = sampler.sample(latents, contexts, np.arange(size) % 3, 5, 1.5, interval=(0.3, 5.0))
            assert image.shape == (size, 8, 8, 3) and finite.shape == (size,) and np.all(finite)
            images.append(image.astype(int))
        made[use, part] = np.concatenate(images)
    assert made["off", None].std() > 1
    for images in made.values():
        difference = np.abs(images - made["off", None])
        assert difference.max() <= 1 and (difference == 0).mean() >= 0.99  # of few values


# XLA takes minutes to compile mini's gradients on a processor.
@pytest.mark.parametrize("name", ["tiny", pytest.param("mini", marks=pytest.mark.slow)])
def test_an_adaptation_step_learns_the_same(xla, tiny, name):
    """Weights of the UNet and their averages, and a last batch that is padded where XLA is on."""
    backbone, rng = {"tiny": tiny, "mini": BACKBONES["mini"]}[name], np.random.default_rng(1)
    moments = rng.standard_normal((7, *backbone.latent_shape[:2], 8), dtype="float32")
    losses, learnt, averages = {}, {}, {}
    for use in ("off", "on"):
        xla(use)
        keras.utils.set_random_seed(1)
        diffusion = load_diffusion(backbone, CLASSES, decoder=False)
        model = compile_model(WholeNetwork(diffusion, "dif"), 1e-4, 4, "float32", average_power=2.0)
        batches = with_targets(noisy_batches(moments, np.arange(7) % CLASSES, CLASSES, 4, 1, 0))
        batches = padded(batches, 4) if runtime.one_shape() else batches
        losses[use] = [model.train_on_batch(*next(batches)) for _ in range(4)]
        assert (model.train_function is not None) and model.jit_compile is (use == "on")
        learnt[use] = [variable.numpy() for variable in model.trainable_variables]
        averages[use] = [variable.numpy() for variable in model.optimizer.averages]
    for values in (learnt, averages):  # in the mean: Adam may turn the sign of a tiny gradient
        assert max(np.abs(on - off).mean() for on, off in zip(values["on"], values["off"])) < 1e-6
    assert any(np.abs(a - b).max() > 1e-6 for a, b in zip(learnt["on"], averages["on"]))
    assert np.abs(np.subtract(losses["on"], losses["off"])).max() < 1e-5
    assert len(set(losses["on"])) == 4


@pytest.mark.slow  # XLA takes minutes to compile gradients on a processor
def test_the_classifier_learns_the_same(xla):
    rng = np.random.default_rng(1)
    images, labels = rng.integers(0, 256, (20, 8, 8, 3), np.uint8), np.arange(20) % CLASSES
    found = {}
    for use in ("off", "on"):
        xla(use)
        keras.utils.set_random_seed(1)
        classifier = Classifier("resnet20_16", 8, CLASSES)
        history, _ = classifier.fit(
            (images, labels), (images, labels), epochs=2, batch_size=8, seed=1, patience=(9, 9), verbose=0
        )
        found[use] = [*history["loss"], *history["val_loss"]]
    assert np.abs(np.subtract(found["on"], found["off"])).max() < 1e-5
