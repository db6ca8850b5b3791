"""The fits: autoencoder, decoder alone, UNet with text encoder. Each is the same for all kinds of backbones."""

import keras
import numpy as np
from keras import ops

from Experiment.progress import each
from Models.denoising import denoising_model
from Models.noise_schedule import STABLE_DIFFUSION
from Pretraining.resumable import run_fit

KL_WEIGHT = 2e-6  # of the sum over a picture: a light pull to a unit Gaussian
PROMPT_DROPOUT, WORD_DROPOUT = 0.1, 0.15
SEEN_FOR_SCALE = 4096  # images that the scale of the latents is measured on


def pixels(images):
    """uint8 -> float32 in -1..1."""
    return images / np.float32(127.5) - 1


class Sample(keras.layers.Layer):
    """Moments (B, h, w, 8) and noise (B, h, w, 4) -> latents; adds the divergence from a unit Gaussian to the loss."""

    def __init__(self):
        super().__init__(dtype="float32")

    def call(self, moments, noise):
        mean, log_variance = ops.split(moments, 2, axis=-1)
        kl = 0.5 * ops.sum(mean**2 + ops.exp(log_variance) - 1 - log_variance, axis=(1, 2, 3))
        self.add_loss(KL_WEIGHT * ops.mean(kl))
        return mean + ops.exp(0.5 * log_variance) * noise


def picture_loss(edges):
    """The mean squared error of pictures (B, H, W, 3) and, times `edges`, that of differences between neighbours."""
    if not edges:
        return "mse"

    def loss(shown, made):
        error = made - shown
        down, across = error[:, 1:] - error[:, :-1], error[:, :, 1:] - error[:, :, :-1]
        of_edges = ops.mean(ops.square(down), (1, 2, 3)) + ops.mean(ops.square(across), (1, 2, 3))
        return ops.mean(ops.square(error), (1, 2, 3)) + edges * of_edges

    return loss


def in_float32(tensor):
    """Losses are taken in float32 whatever the arithmetic."""
    return keras.layers.Activation("linear", dtype="float32")(tensor)


def train_autoencoder(fit, encoder, decoder, images, edges):
    """Train image encoder and decoder together; then give the latents unit variance.

    Args:
        fit: A `Fit`.
        encoder, decoder: The networks, which learn.
        images: uint8 (N, 32, 32, 3).
        edges: As in `picture_loss`.

    Returns:
        Facts for the record.
    """
    latent_shape = decoder.input_shape[1:]
    inputs = {"picture": keras.Input(images.shape[1:], name="picture"), "noise": keras.Input(latent_shape, name="noise")}
    made = in_float32(decoder(Sample()(encoder(inputs["picture"]), inputs["noise"])))

    def batch(stream):
        picture = pixels(images[stream.integers(0, len(images), fit.batch_size)])
        noise = stream.standard_normal((fit.batch_size, *latent_shape), dtype="float32")
        return {"picture": picture, "noise": noise}, picture

    facts = run_fit(fit, keras.Model(inputs, made), picture_loss(edges), batch)
    fold_latent_scale(encoder, decoder, images[:SEEN_FOR_SCALE])
    return facts


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


def encode(encoder, images, batch_size=256):
    """VAE moments, float16 (N, 8, 8, 8)."""
    starts = each(range(0, len(images), batch_size), "batch")
    parts = [encoder.predict_on_batch(pixels(images[i : i + batch_size])) for i in starts]
    return np.concatenate(parts).astype("float16")


def train_decoder(fit, decoder, moments, images, edges):
    """Train the decoder alone on the final latents: sharper pictures, and the latents stay what the UNet knows."""
    latents = keras.Input(decoder.input_shape[1:])

    def batch(stream):
        index = stream.integers(0, len(images), fit.batch_size)
        mean, log_variance = np.split(moments[index].astype("float32"), 2, axis=-1)
        noise = stream.standard_normal(mean.shape, dtype="float32")
        return mean + np.exp(0.5 * log_variance) * noise, pixels(images[index])

    return run_fit(fit, keras.Model(latents, in_float32(decoder(latents))), picture_loss(edges), batch)


def train_unet(fit, unet, context_encoder, moments, captions, side_by_side=1):
    """Train the UNet together with a text encoder.

    Args:
        fit: A `Fit`.
        unet, context_encoder: The networks, which learn.
        moments: float16 (N, 8, 8, 8).
        captions: int32 (N, 8).
        side_by_side: As in `denoising_model`.

    Returns:
        Facts for the record.
    """
    latent_shape = unet.input_shape[0][1:]

    def batch(stream):
        index = stream.integers(0, len(moments), fit.batch_size)
        caption = captions[index]
        caption = np.where(stream.random(caption.shape) < WORD_DROPOUT, 0, caption)
        caption = np.where(stream.random((fit.batch_size, 1)) < PROMPT_DROPOUT, 0, caption)
        latent_noise, noise = stream.standard_normal((2, fit.batch_size, *latent_shape), dtype="float32")
        return {
            "moments": moments[index].astype("float32"),
            "latent_noise": latent_noise,
            "noise": noise,
            "timestep": stream.integers(0, STABLE_DIFFUSION.num_timesteps, fit.batch_size, dtype="int32"),
            "label": caption.astype("int32"),
        }, noise

    model = denoising_model(unet, context_encoder, latent_scale=1.0, side_by_side=side_by_side)
    return run_fit(fit, model, "mse", batch)
