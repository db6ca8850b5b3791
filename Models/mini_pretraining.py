"""Make the weights of the mini backbone from nothing: `python -m Models.mini_pretraining`.

As Stable Diffusion was trained on captioned pictures, the mini one is trained on captioned printed characters:
glyphs of the fonts that matplotlib carries, each drawn in a random style and described by eight words. The text
encoder is thrown away afterwards, as the paper does with SD's. No image of any dataset is used; the ten digits
are among the characters (printed, not handwritten).
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np

from Data.glyphs import CHARACTERS, DIGITS, PALETTES, RESOLUTIONS, SIZE, WORDS, make_corpus
from Experiment.randomness import random_stream

CONTEXT_SHAPE = (8, 64)
PROMPT_DROPOUT, WORD_DROPOUT = 0.1, 0.15


def text_encoder():
    """Captions (B, 8) of word numbers -> context (B, 8, 64); a caption without words gives exactly 0.

    A zero context is also what a fresh Class Encoder gives for an all-zero label, so guidance works from the start.
    """
    import keras
    from keras import ops

    tokens, width = CONTEXT_SHAPE
    caption = keras.Input((tokens,), dtype="int32", name="caption")
    first = np.cumsum([0, *WORDS.values()])
    x = keras.layers.Embedding(int(first[-1]), width, name="words")(caption + first[:-1].astype("int32"))  # (B, 8, 64)
    attended = keras.layers.MultiHeadAttention(4, width // 4)(*[keras.layers.LayerNormalization()(x)] * 2)
    x = x + attended
    hidden = keras.layers.Dense(4 * width, activation="gelu")(keras.layers.LayerNormalization()(x))
    x = keras.layers.LayerNormalization()(x + keras.layers.Dense(width)(hidden))
    said = ops.cast(ops.any(caption > 0, axis=-1), x.dtype)[:, None, None]
    return keras.Model(caption, x * said, name="mini_text_encoder")


def optimizer(peak, steps, ema):
    """AdamW with a warm-up, a cosine to zero and averaged weights."""
    import keras

    schedule = keras.optimizers.schedules.CosineDecay(0.0, steps - 300, warmup_target=peak, warmup_steps=300)
    return keras.optimizers.AdamW(schedule, clipnorm=1.0, use_ema=True, ema_momentum=ema)


def train_vae(encoder, decoder, images, steps, batch_size, seed):
    """Train the autoencoder: mean squared error plus a light pull (2e-6 of the KL sum) to a unit Gaussian."""
    import keras
    from keras import ops

    class Sample(keras.layers.Layer):
        def __init__(self):
            super().__init__(dtype="float32")
            self.seed_generator = keras.random.SeedGenerator(seed)

        def call(self, moments):
            mean, log_variance = ops.split(moments, 2, axis=-1)
            kl = 0.5 * ops.sum(mean**2 + ops.exp(log_variance) - 1 - log_variance, axis=(1, 2, 3))
            self.add_loss(2e-6 * ops.mean(kl))
            noise = keras.random.normal(ops.shape(mean), seed=self.seed_generator)
            return mean + ops.exp(0.5 * log_variance) * noise

    picture = keras.Input(images.shape[1:])
    output = keras.layers.Activation("linear", dtype="float32")(decoder(Sample()(encoder(picture))))
    vae = keras.Model(picture, output)
    vae.compile(optimizer(2e-3, steps, 0.998), "mse", jit_compile=False)

    def batches():
        rng = random_stream(seed, "order")
        while True:
            x = images[rng.integers(0, len(images), batch_size)] / np.float32(127.5) - 1
            yield x, x

    return vae.fit(batches(), steps_per_epoch=steps // 10, epochs=10, verbose=2, shuffle=False).history["loss"]


def fold_latent_scale(encoder, decoder, images):
    """Give the latents unit variance by scaling the last layer of the encoder and the first of the decoder."""
    mean = np.split(encode(encoder, images), 2, axis=-1)[0].astype("float32")
    scale = 1.0 / mean.std()
    kernel, bias = encoder.layers[-1].get_weights()
    kernel[..., :4] *= scale
    bias[:4] *= scale
    bias[4:] += 2 * np.log(scale)  # the log-variance of the scaled latents
    encoder.layers[-1].set_weights([kernel, bias])
    kernel, bias = decoder.layers[0].get_weights()
    decoder.layers[0].set_weights([kernel / scale, bias])


def refine_decoder(decoder, moments, images, steps, batch_size, seed):
    """Train the decoder alone on the final latents: sharper pictures, and the latents stay what the UNet knows."""
    import keras

    latents = keras.Input(decoder.input_shape[1:])
    model = keras.Model(latents, keras.layers.Activation("linear", dtype="float32")(decoder(latents)))
    model.compile(optimizer(1.5e-3, steps, 0.998), "mse", jit_compile=False)

    def batches():
        rng = random_stream(seed, "order", 1)
        while True:
            index = rng.integers(0, len(images), batch_size)
            mean, log_variance = np.split(moments[index].astype("float32"), 2, axis=-1)
            noise = rng.standard_normal(mean.shape, dtype="float32")
            yield mean + np.exp(0.5 * log_variance) * noise, images[index] / np.float32(127.5) - 1

    return model.fit(batches(), steps_per_epoch=steps // 10, epochs=10, verbose=2, shuffle=False).history["loss"]


def encode(encoder, images, batch_size=256):
    """VAE moments, float16 (N, 8, 8, 8)."""
    parts = [
        encoder.predict_on_batch(images[i : i + batch_size] / np.float32(127.5) - 1)
        for i in range(0, len(images), batch_size)
    ]
    return np.concatenate(parts).astype("float16")


def train_unet(unet, moments, captions, steps, batch_size, seed, save):
    """Train the UNet together with a text encoder; `save()` is called with averaged weights after each epoch."""
    import keras

    from Models.adapter import denoising_model
    from Models.noise_schedule import STABLE_DIFFUSION

    context_encoder = text_encoder()
    model = denoising_model(unet, context_encoder, latent_scale=1.0)
    model.compile(optimizer(1.5e-3, steps, 0.9995), "mse", jit_compile=False)

    def batches():
        rng = random_stream(seed, "training_noise")
        while True:
            index = rng.integers(0, len(moments), batch_size)
            caption = captions[index]
            caption = np.where(rng.random(caption.shape) < WORD_DROPOUT, 0, caption)
            caption = np.where(rng.random((batch_size, 1)) < PROMPT_DROPOUT, 0, caption)
            latent_noise, noise = rng.standard_normal((2, batch_size, *unet.input_shape[0][1:]), dtype="float32")
            yield (
                {
                    "moments": moments[index].astype("float32"),
                    "latent_noise": latent_noise,
                    "noise": noise,
                    "timestep": rng.integers(0, STABLE_DIFFUSION.num_timesteps, batch_size, dtype="int32"),
                    "label": caption,
                },
                noise,
            )

    epochs = 20
    saver = [keras.callbacks.SwapEMAWeights(swap_on_epoch=True), keras.callbacks.LambdaCallback(on_epoch_end=save)]
    fitted = model.fit(
        batches(), steps_per_epoch=steps // epochs, epochs=epochs, verbose=2, shuffle=False, callbacks=saver
    )
    return context_encoder, fitted.history["loss"]


def sample_picture(unet, decoder, context_encoder, path, seed, columns=20):
    """What the backbone draws for captions of which only character, resolution and palette are said: digits, letters."""
    from Models.sampler import Sampler, initial_noise
    from sheets import grid, save_image

    characters = [c for c in DIGITS for _ in range(columns // 2)] + list("ABCDEFGHKMNPQRSTWXYZ" * 2)
    captions = np.zeros((len(characters), len(WORDS)), "int32")
    names = list(WORDS)
    captions[:, 0] = [1 + CHARACTERS.index(c) for c in characters]
    captions[:, names.index("resolution")] = 1 + np.arange(len(characters)) % len(RESOLUTIONS)
    captions[:, names.index("palette")] = 1 + (np.arange(len(characters)) // len(RESOLUTIONS)) % len(PALETTES)
    rows = np.arange(len(captions))
    noise = initial_noise(seed, captions[:, 0], rows, unet.input_shape[0][1:])
    said_and_unsaid = np.concatenate([captions, 0 * captions[:1]])
    contexts = np.asarray(context_encoder.predict_on_batch(said_and_unsaid), "float32")
    images, _ = Sampler(unet, decoder).sample(noise, contexts, rows, num_steps=25, scale=2.0)
    return save_image(grid(np.asarray(images), columns), path)


def save_half(model, path):
    """Save weights in Keras's own layout with float16 numbers, which Keras casts back when it loads them."""
    import h5py

    full = path.with_name("full." + path.name)
    model.save_weights(full)
    with h5py.File(full) as source, h5py.File(path, "w") as target:

        def copy(name, item):
            if isinstance(item, h5py.Group):
                target.require_group(name).attrs.update(item.attrs)
            else:
                data = item[()]
                half = data.astype("float16") if data.dtype == "float32" else data
                target.create_dataset(name, data=half).attrs.update(item.attrs)

        target.attrs.update(source.attrs)
        source.visititems(copy)
    full.unlink()


def main(args):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import keras

    from Models.faster_layers import use_faster_layers
    from Models.mini_backbone import mini_decoder, mini_image_encoder, mini_unet

    keras.utils.set_random_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.time()
    images, captions = make_corpus(args.seed, args.images)
    record = {k: v for k, v in vars(args).items() if k != "out"} | {"corpus_seconds": round(time.time() - start)}
    print(f"corpus: {len(images)} images in {record['corpus_seconds']:.0f} s", flush=True)

    keras.config.set_dtype_policy(args.precision)
    start = time.time()
    encoder, decoder = use_faster_layers(mini_image_encoder()), use_faster_layers(mini_decoder(SIZE))
    record["vae_loss"] = train_vae(encoder, decoder, images, args.vae_steps, 64, args.seed)
    fold_latent_scale(encoder, decoder, images[:4096])
    moments = encode(encoder, images)
    record["decoder_loss"] = refine_decoder(decoder, moments, images, args.decoder_steps, 64, args.seed)
    save_half(encoder, args.out / "image_encoder.weights.h5")
    save_half(decoder, args.out / "decoder.weights.h5")
    record["vae_seconds"] = round(time.time() - start)
    del images

    start = time.time()
    unet = use_faster_layers(mini_unet(SIZE, CONTEXT_SHAPE))

    def save(epoch=None, logs=None):
        save_half(unet, args.out / "unet.weights.h5")
        print(f"epoch {epoch}, {time.time() - start:.0f} s", flush=True)

    context_encoder, record["unet_loss"] = train_unet(
        unet, moments, captions, args.unet_steps, args.batch_size, args.seed, save
    )
    save()
    sample_picture(unet, decoder, context_encoder, args.out / "samples.png", args.seed)
    record["unet_seconds"] = round(time.time() - start)
    (args.out / "training.json").write_text(json.dumps(record, indent=1))


def parse_args():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "mini_weights", help="folder of the weights"
    )
    parser.add_argument("--images", type=int, default=240_000, help="size of the corpus")
    parser.add_argument("--vae_steps", type=int, default=2000, help="steps of 64 images")
    parser.add_argument("--decoder_steps", type=int, default=3000, help="steps of 64 images, decoder alone")
    parser.add_argument("--unet_steps", type=int, default=6000, help="steps of --batch_size images")
    parser.add_argument("--batch_size", type=int, default=128, help="batch of the UNet")
    parser.add_argument("--precision", default="mixed_bfloat16", choices=["float32", "mixed_bfloat16"])
    parser.add_argument("--seed", type=int, default=1234)
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_args())
