"""The published training step: runs in the environment of requirements.txt after published_side.py, writes into a folder.

    python published_training.py FOLDER

A UNet of KerasCV 0.6.1's own blocks in the topology of `mini`, small enough to be trained beside everything else, and a
Class Encoder learn for three steps each, as the published code lets them: TensorFlow 2.13's Adam with cosine decay,
decoupled weight decay and clipped global norm, on the mean squared error of the noise.
"""

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from keras_cv.models.stable_diffusion.constants import _ALPHAS_CUMPROD
from keras_cv.models.stable_diffusion.diffusion_model import PaddedConv2D, ResBlock, SpatialTransformer, Upsample
from published_side import CLASSES, randomise
from tensorflow import keras

SIZE, TOKENS, WIDTH, HIDDEN = 8, 8, 64, 64
BATCH, TRAINED_STEPS, ALL_STEPS = 4, 3, 10
LEARNING_RATE = {"enc": 1e-4, "dif": 1e-5}
SCALE = 0.18215
CLIP, CLIPPED_STEP, ENLARGED = 10.0, 1, 1000  # one step's target is so large that its gradients are clipped
SEED = 4321


def small_unet():
    latent = keras.Input((SIZE, SIZE, 4))
    time_input = keras.Input((320,))
    context = keras.Input((TOKENS, WIDTH))
    time = keras.layers.Dense(256, activation="swish")(time_input)
    time = keras.layers.Dense(256)(time)

    def attend(x):
        return SpatialTransformer(4, x.shape[-1] // 4)([x, context])

    x = PaddedConv2D(64, 3, padding=1)(latent)
    skips = [x]
    x = ResBlock(64)([x, time])
    skips.append(x)
    x = PaddedConv2D(64, 3, strides=2, padding=1)(x)
    skips.append(x)
    x = attend(ResBlock(128)([x, time]))
    skips.append(x)
    x = ResBlock(128)([x, time])
    x = attend(x)
    x = ResBlock(128)([x, time])
    for _ in range(2):
        x = keras.layers.Concatenate()([x, skips.pop()])
        x = attend(ResBlock(128)([x, time]))
    x = Upsample(128)(x)
    for _ in range(2):
        x = keras.layers.Concatenate()([x, skips.pop()])
        x = ResBlock(64)([x, time])
    x = keras.layers.GroupNormalization(epsilon=1e-5)(x)
    x = keras.layers.Activation("swish")(x)
    return keras.Model([latent, time_input, context], PaddedConv2D(4, 3, padding=1)(x))


def small_encoder():
    label = keras.Input((CLASSES,))
    x = keras.layers.Dense(HIDDEN)(label)
    x = keras.layers.Dense(TOKENS * WIDTH, use_bias=False)(x)
    return keras.Model(label, keras.layers.Reshape((TOKENS, WIDTH))(x))


def timestep_embedding(timesteps):
    """As KerasCV 0.6.1 computes it, for several timesteps."""
    frequencies = tf.math.exp(-tf.math.log(10000.0) * tf.range(0, 160, dtype=tf.float32) / 160)
    angles = tf.cast(timesteps, tf.float32)[:, None] * frequencies[None]
    return tf.concat([tf.math.cos(angles), tf.math.sin(angles)], axis=-1)


def train(part, encoder, unet, batches):
    """Three steps of a part; returns their losses and the norms of their gradients before they are clipped."""
    learns = encoder if part == "enc" else unet
    optimizer = keras.optimizers.Adam(
        keras.optimizers.schedules.CosineDecay(LEARNING_RATE[part], ALL_STEPS),
        weight_decay=0.004,
        epsilon=1e-8,
        global_clipnorm=CLIP,
    )
    losses, norms = [], []
    for moments, latent_noise, noise, timesteps, labels, target in batches:
        mean, log_variance = np.split(moments, 2, axis=-1)
        latents = SCALE * (mean + np.exp(0.5 * np.clip(log_variance, -30, 20)) * latent_noise)
        alpha_bar = np.float32([_ALPHAS_CUMPROD[t] for t in timesteps])[:, None, None, None]
        noisy = np.sqrt(alpha_bar) * latents + np.sqrt(1 - alpha_bar) * noise
        with tf.GradientTape() as tape:
            predicted = unet([noisy, timestep_embedding(timesteps), encoder(labels)])
            loss = tf.reduce_mean(tf.square(predicted - target))
        gradients = tape.gradient(loss, learns.trainable_weights)
        optimizer.apply_gradients(zip(gradients, learns.trainable_weights))
        losses.append(float(loss))
        norms.append(float(tf.linalg.global_norm(gradients)))
    assert norms[CLIPPED_STEP] > 3 * CLIP, norms  # else the clip would not be compared
    return losses, norms


def main(folder):
    rng = np.random.default_rng(SEED)
    shape = (TRAINED_STEPS, BATCH, SIZE, SIZE)
    arrays = {
        "moments": rng.standard_normal((*shape, 8), dtype="float32"),
        "latent_noise": rng.standard_normal((*shape, 4), dtype="float32"),
        "noise": rng.standard_normal((*shape, 4), dtype="float32"),
        "timesteps": rng.integers(0, 1000, (TRAINED_STEPS, BATCH)).astype("int32"),
        "labels": np.eye(CLASSES, dtype="float32")[rng.integers(0, CLASSES, (TRAINED_STEPS, BATCH))],
    }
    arrays["target"] = arrays["noise"].copy()
    arrays["target"][CLIPPED_STEP] *= ENLARGED
    results = {}
    for part in ("enc", "dif"):
        encoder, unet = randomise(small_encoder(), "small_encoder"), randomise(small_unet(), "small_unet")
        encoder.save_weights(folder / "small_encoder.hdf5")
        unet.save_weights(folder / "small_unet.hdf5")
        results[f"losses_{part}"], results[f"norms_{part}"] = train(part, encoder, unet, zip(*arrays.values()))
        (encoder if part == "enc" else unet).save_weights(folder / f"trained_{part}.hdf5")
        print(f"{part}: losses {results[f'losses_{part}']}, gradients' norms {results[f'norms_{part}']}", flush=True)
    np.savez(folder / "training.npz", **arrays, **results)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
