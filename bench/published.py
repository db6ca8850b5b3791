"""The baseline: the published way to generate and to train, written anew, with KerasCV's stock layers in float32.

Two `predict_on_batch` a step, the update in NumPy, the VAE in every training step, nothing cached.
"""

import keras
import numpy as np
from keras import ops
from keras_cv.models.stable_diffusion import ImageEncoder
from keras_cv.src.models.stable_diffusion.diffusion_model import DiffusionModel

from Models.backbones import BACKBONES
from Models.class_encoder import class_encoder
from Models.diffusion import add_noise, alpha_bar_at, sample_latents, timestep_embedding
from Models.noise_schedule import STABLE_DIFFUSION

SD1 = BACKBONES["sd1"]
SIZE, TOKENS = SD1.image_size, SD1.context_shape[0]
CLASSES = 10


def stock_unet():
    return DiffusionModel(SIZE, SIZE, TOKENS, download_weights=False)


def generate(unet, decoder, noise, contexts, null_contexts, num_steps, scale):
    """Initial noise (B, 16, 16, 4) and contexts (B, 100, 768) -> images uint8 (B, 128, 128, 3)."""
    latents = noise
    timesteps = list(range(1, 1000, 1000 // num_steps))
    alpha_bars = [float(STABLE_DIFFUSION.alphas_cumprod[t]) for t in timesteps]
    before = [1.0, *alpha_bars[:-1]]
    for t, alpha_bar, alpha_bar_next in reversed(list(zip(timesteps, alpha_bars, before))):
        embedding = np.asarray(timestep_embedding(np.full(len(latents), t)))
        null_eps = unet.predict_on_batch([latents, embedding, null_contexts])
        eps = unet.predict_on_batch([latents, embedding, contexts])
        eps = null_eps + scale * (eps - null_eps)
        clean = (latents - np.sqrt(1 - alpha_bar) * eps) / np.sqrt(alpha_bar)
        latents = (np.sqrt(alpha_bar_next) * clean + np.sqrt(1 - alpha_bar_next) * eps).astype("float32")
    return np.clip((decoder.predict_on_batch(latents) + 1) / 2 * 255, 0, 255).astype("uint8")


class Trainer(keras.Model):
    """The published training step: images go through the VAE each time; `part`, `enc` or `dif`, learns."""

    def __init__(self, part, num_classes):
        super().__init__()
        full = ImageEncoder(download_weights=False)
        self.image_encoder = keras.Model(full.inputs, full.layers[-2].output)
        self.unet = stock_unet()
        self.encoder = class_encoder(num_classes, SD1.hidden_units, SD1.context_shape)
        self.image_encoder.trainable = False
        self.unet.trainable, self.encoder.trainable = part == "dif", part == "enc"
        self.seeds = keras.random.SeedGenerator(0)

    def call(self, inputs):
        images, labels = inputs
        moments = self.image_encoder(images)
        shape = (*ops.shape(moments)[:-1], 4)
        latents = sample_latents(moments, keras.random.normal(shape, seed=self.seeds), SD1.latent_scale)
        noise = keras.random.normal(shape, seed=self.seeds)
        timesteps = keras.random.randint(shape[:1], 0, 1000, seed=self.seeds)
        noisy_latents = add_noise(latents, noise, alpha_bar_at(SD1.schedule, timesteps))
        predicted = self.unet([noisy_latents, timestep_embedding(timesteps), self.encoder(labels)])
        return ops.square(predicted - noise)


def training_step(part, batch_size):
    """A function that makes one training step on noise images."""
    model = Trainer(part, CLASSES)
    schedule = keras.optimizers.schedules.CosineDecay(1e-4, 1000)
    optimizer = keras.optimizers.Adam(schedule, epsilon=1e-8, weight_decay=0.004, global_clipnorm=10.0)  # Keras's own, not ours
    model.compile(optimizer, lambda _, error: ops.mean(error))
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (batch_size, SIZE, SIZE, 3)).astype("float32")
    labels = np.eye(CLASSES, dtype="float32")[np.arange(batch_size) % CLASSES]
    return lambda: model.train_on_batch([images, labels], np.zeros(batch_size, "float32"))
