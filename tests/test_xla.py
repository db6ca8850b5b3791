"""XLA: stated for every model, and the same numbers with it as without."""

import keras
import numpy as np
import pytest

import Models.sampler
from Models import runtime
from Models.adapter import WholeNetwork, load_diffusion
from Models.backbones import BACKBONES
from Models.classifier import Classifier
from Models.feed import noisy_batches, with_targets
from Models.training import compile_model

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


@pytest.mark.parametrize("solver, interval", [("ddim", None), ("dpmpp", (0.3, 5.0))])
def test_the_sampler_makes_the_same_images(xla, solver, interval):
    """Several numbers of steps too, by one compilation; and a batch that is decoded in parts of 4."""
    mini, rng = BACKBONES["mini"], np.random.default_rng(1)
    diffusion = load_diffusion(mini, CLASSES)
    latents = rng.standard_normal((6, *mini.latent_shape), dtype="float32")
    contexts = rng.standard_normal((CLASSES + 1, *mini.context_shape), dtype="float32")
    made = {}
    for use, part in (("off", None), ("on", 4)):
        xla(use)
        sampler = diffusion.sampler(solver)
        sampler.decoded_together = part
        images = [
            sampler.sample(latents, contexts, np.arange(6) % 3, steps, 1.5, interval=interval) for steps in (4, 2)
        ]
        assert all(np.all(finite) for _, finite in images)
        made[use] = np.stack([image for image, _ in images]).astype(int)
        assert sampler.predict_function.experimental_get_tracing_count() == 1
    difference = np.abs(made["on"] - made["off"])
    assert difference.max() <= 1 and (difference == 0).mean() >= 0.999
    assert (made["on"][0] != made["on"][1]).any()


@pytest.mark.parametrize("part", ["enc", "dif"])
def test_an_adaptation_step_learns_the_same(xla, part):
    mini, rng = BACKBONES["mini"], np.random.default_rng(1)
    moments = rng.standard_normal((12, *mini.latent_shape[:2], 8), dtype="float32")
    losses = {}
    for use in ("off", "on"):
        xla(use)
        keras.utils.set_random_seed(1)
        model = compile_model(WholeNetwork(load_diffusion(mini, CLASSES, decoder=False), part), 1e-3, 3, "float32")
        batches = with_targets(noisy_batches(moments, np.arange(12) % CLASSES, CLASSES, 4, 1, 0))
        losses[use] = [model.train_on_batch(*next(batches)) for _ in range(3)]
    assert np.abs(np.subtract(losses["on"], losses["off"])).max() < 1e-5
    assert len(set(losses["on"])) == 3


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
