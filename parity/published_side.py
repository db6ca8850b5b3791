"""The published side of `make parity`: runs in the environment of requirements.txt, writes into a folder.

    python published_side.py FOLDER

It builds the full-size parts of `sd1` with random weights, saves them as the published code saves its checkpoints
(`save_weights` of Keras 2, HDF5), and writes what they compute to expected.npz for our_side.py.
"""

import gc
import sys
from importlib.metadata import version
from pathlib import Path

import keras_cv
import numpy as np
from keras_cv.models.stable_diffusion import Decoder, DiffusionModel, ImageEncoder
from tensorflow import keras

IMAGE_SIZE, LATENT_SIZE = 128, 16  # px
TOKENS, WIDTH = 100, 768
HIDDEN_UNITS = 500
CLASSES = 10
LABELS = [0, 3, 7]
STEPS, SCALE = 5, 1.5
SEED = 1234


def randomise(model, part, output_gain=1.0):
    """Give every weight of a model random numbers, those that start as zeros and ones too.

    A fresh model would not do: with all biases 0 and all norm scales 1, two of them could be swapped unseen.

    Args:
        output_gain: Factor on the last kernel, which keeps outputs near 1.
    """
    rng = np.random.default_rng([SEED, *part.encode()])
    last_kernel = [w for w in model.weights if w.shape.rank > 1][-1]
    for weight in model.weights:
        value = rng.standard_normal(weight.shape, dtype="float32")
        if weight.shape.rank > 1:
            value *= np.float32(np.prod(weight.shape[:-1]) ** -0.5)  # keeps the variance of what goes through
            if weight is last_kernel:
                value *= np.float32(output_gain)
        else:
            value *= np.float32(0.2)
            if "gamma" in weight.name:
                value += 1
        weight.assign(value)
    print(f"{part}: {model.count_params():,} parameters, {len(model.weights)} arrays", flush=True)
    return model


def save(model, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    model.save_weights(path)
    print(f"    -> {path.name}, {path.stat().st_size:,} bytes", flush=True)


def class_encoder():
    """As published: no activation anywhere, no bias in the second layer."""
    label = keras.Input((CLASSES,))
    # Keras numbers its layers, and in the published program others come first. With names of this length the file has
    # the size of the released ones, 153,635,424 bytes.
    x = keras.layers.Dense(HIDDEN_UNITS, name="dense_34")(label)
    x = keras.layers.Dense(TOKENS * WIDTH, use_bias=False, name="dense_35")(x)
    return keras.Model(label, keras.layers.Reshape((TOKENS, WIDTH))(x))


class Generation(keras_cv.models.StableDiffusion):
    """KerasCV's own sampling loop, with the Class Encoder's contexts in the place of the text encoder's."""

    def __init__(self, unet, decoder, null_context):
        # Not StableDiffusion's: that one only adds a note about the weights' licence, and there are none here.
        keras_cv.models.stable_diffusion.stable_diffusion.StableDiffusionBase.__init__(self, IMAGE_SIZE, IMAGE_SIZE)
        self._diffusion_model, self._decoder, self.null_context = unet, decoder, null_context

    def _get_unconditional_context(self):
        return self.null_context


def main(folder):
    rng = np.random.default_rng(SEED)
    checkpoints = folder / "Checkpoints" / "DDPM" / "Exp_0001" / "cifar10"
    results = {}

    encoder = randomise(class_encoder(), "class_encoder")
    save(encoder, checkpoints / "MyEmbedding" / "epoch31.hdf5")
    labels = np.concatenate([np.eye(CLASSES), np.zeros((1, CLASSES))]).astype("float32")
    contexts = encoder.predict_on_batch(labels)  # (11, 100, 768), the last one is the unconditional
    results["contexts"] = contexts

    full = randomise(ImageEncoder(download_weights=False), "image_encoder")
    save(full, folder / "pretrained" / "vae_encoder.h5")
    images = rng.uniform(-1, 1, (3, IMAGE_SIZE, IMAGE_SIZE, 3)).astype("float32")
    moments = keras.Sequential(full.layers[:-1])  # the last one throws the log-variance away
    results.update(images=images, moments=moments.predict_on_batch(images))
    del full, moments
    gc.collect()

    # A gain of one half puts few pixels outside -1..1, where both sides would agree by being clipped.
    decoder = randomise(Decoder(IMAGE_SIZE, IMAGE_SIZE, download_weights=False), "decoder", output_gain=0.5)
    save(decoder, folder / "pretrained" / "kcv_decoder.h5")
    latents = rng.standard_normal((3, LATENT_SIZE, LATENT_SIZE, 4), dtype="float32")
    results.update(latents=latents, decoded=decoder.predict_on_batch(latents))

    unet = randomise(DiffusionModel(IMAGE_SIZE, IMAGE_SIZE, TOKENS, download_weights=False), "unet")
    save(unet, checkpoints / "DiffusionFt" / "epoch10.hdf5")
    generation = Generation(unet, decoder, contexts[-1:])
    timesteps = [1, 500, 999]
    embeddings = np.concatenate([generation._get_timestep_embedding(t, 1) for t in timesteps])
    noise = unet.predict_on_batch([latents, embeddings, contexts[LABELS]])
    results.update(timesteps=timesteps, embeddings=embeddings, noise=noise, labels=LABELS)

    initial_noise = rng.standard_normal((len(LABELS), LATENT_SIZE, LATENT_SIZE, 4), dtype="float32")
    generated = generation.generate_image(
        contexts[LABELS],
        batch_size=len(LABELS),
        num_steps=STEPS,
        unconditional_guidance_scale=SCALE,
        diffusion_noise=initial_noise,
    )
    results.update(initial_noise=initial_noise, steps=STEPS, scale=SCALE, generated=generated)
    np.savez(folder / "expected.npz", **results)


if __name__ == "__main__":
    packages = ("tensorflow", "keras", "keras-cv", "keras-core", "numpy")
    keras.utils.disable_interactive_logging()
    print(", ".join(f"{name} {version(name)}" for name in packages), flush=True)
    main(Path(sys.argv[1]))
