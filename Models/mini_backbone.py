"""The mini and the small backbone: Stable Diffusions of 4 and 5 M parameters for 32x32 images, made of KerasCV's own blocks.

They have the topology of the full one (a convolutional VAE, a UNet with residual blocks, spatial transformers
that attend to a context, the same noise schedule), so every stage of the paper runs on a laptop. Their weights are made
by `python -m Pretraining` and lie in `Models/mini_weights/` and `Models/small_weights/`.
"""

from dataclasses import dataclass

import keras

from Models.diffusion import TIMESTEP_EMBEDDING_DIM
from Models.kerascv_layers import AttentionBlock, PaddedConv2D, ResnetBlock, diffusion_model

ResBlock, SpatialTransformer, Upsample = (
    diffusion_model.ResBlock, diffusion_model.SpatialTransformer, diffusion_model.Upsample,
)  # fmt: skip

DOWNSAMPLING = 4
HEADS = 4
TIME_WIDTH = 256


@dataclass(frozen=True)
class Autoencoder:
    """Sizes of an image encoder and its decoder.

    Attributes:
        name: Of the backbone.
        full, half, quarter: Channels at 32x32, 16x16 and 8x8 px, multiples of 32 (the groups of a normalisation).
        encoder_blocks, decoder_blocks: Residual blocks at 8x8, where one costs least; attention follows the first.
    """

    name: str
    full: int
    half: int
    quarter: int
    encoder_blocks: int
    decoder_blocks: int


MINI = Autoencoder("mini", full=32, half=32, quarter=64, encoder_blocks=2, decoder_blocks=2)
# For photographs: about twice the weights, and in training twice the time.
SMALL = Autoencoder("small", full=32, half=64, quarter=64, encoder_blocks=4, decoder_blocks=5)

SIZES = {sizes.name: sizes for sizes in (MINI, SMALL)}


def middle(channels, blocks):
    """Residual blocks at 8x8, with attention after the first."""
    return [ResnetBlock(channels), AttentionBlock(channels), *[ResnetBlock(channels) for _ in range(blocks - 1)]]


def image_encoder(sizes):
    """Images (B, 32, 32, 3) in -1..1 -> mean and log-variance of the latents (B, 8, 8, 8)."""
    # Blocks at 32x32 would cost more than everything else together: the first one works at 16x16.
    return keras.Sequential(
        [
            keras.layers.Input((None, None, 3)),
            PaddedConv2D(sizes.full, 3, padding=1),
            PaddedConv2D(sizes.half, 3, padding=((0, 1), (0, 1)), strides=2),
            ResnetBlock(sizes.half),
            PaddedConv2D(sizes.quarter, 3, padding=((0, 1), (0, 1)), strides=2),
            *middle(sizes.quarter, sizes.encoder_blocks),
            keras.layers.GroupNormalization(epsilon=1e-5),
            keras.layers.Activation("swish"),
            PaddedConv2D(8, 3, padding=1),
        ],
        name=f"{sizes.name}_image_encoder",
    )


def decoder(sizes, image_size):
    """Latents (B, 8, 8, 4) -> images (B, 32, 32, 3), about -1..1."""
    return keras.Sequential(
        [
            keras.layers.Input((image_size // DOWNSAMPLING, image_size // DOWNSAMPLING, 4)),
            PaddedConv2D(4, 1),
            PaddedConv2D(sizes.quarter, 3, padding=1),
            *middle(sizes.quarter, sizes.decoder_blocks),
            keras.layers.UpSampling2D(2),
            PaddedConv2D(sizes.half, 3, padding=1),
            ResnetBlock(sizes.half),
            keras.layers.UpSampling2D(2),
            PaddedConv2D(sizes.full, 3, padding=1),
            keras.layers.GroupNormalization(epsilon=1e-5),
            keras.layers.Activation("swish"),
            PaddedConv2D(3, 3, padding=1),
        ],
        name=f"{sizes.name}_decoder",
    )


def mini_unet(image_size, context_shape, name="mini_unet"):
    """Noisy latents, timestep embedding, context -> predicted noise; same inputs as KerasCV's DiffusionModel."""
    size = image_size // DOWNSAMPLING
    latent = keras.layers.Input((size, size, 4), name="latent")
    time_input = keras.layers.Input((TIMESTEP_EMBEDDING_DIM,), name="timestep_embedding")
    context = keras.layers.Input(context_shape, name="context")

    time = keras.layers.Dense(TIME_WIDTH, activation="swish")(time_input)
    time = keras.layers.Dense(TIME_WIDTH)(time)

    def attend(x):
        channels = x.shape[-1]
        return SpatialTransformer(HEADS, channels // HEADS)([x, context])

    # Attention at the full 8x8 would double the time of a pass: it starts at 4x4.
    x = PaddedConv2D(64, 3, padding=1)(latent)  # (B, 8, 8, 64)
    skips = [x]
    x = ResBlock(64)([x, time])
    skips.append(x)
    x = PaddedConv2D(64, 3, strides=2, padding=1)(x)  # (B, 4, 4, 64)
    skips.append(x)
    x = attend(ResBlock(128)([x, time]))  # (B, 4, 4, 128)
    skips.append(x)

    x = ResBlock(128)([x, time])
    x = attend(x)
    x = ResBlock(128)([x, time])

    for _ in range(2):
        x = keras.layers.Concatenate()([x, skips.pop()])
        x = attend(ResBlock(128)([x, time]))
    x = Upsample(128)(x)  # (B, 8, 8, 128)
    for _ in range(2):
        x = keras.layers.Concatenate()([x, skips.pop()])
        x = ResBlock(64)([x, time])  # (B, 8, 8, 64)

    x = keras.layers.GroupNormalization(epsilon=1e-5)(x)
    x = keras.layers.Activation("swish")(x)
    noise = PaddedConv2D(4, 3, padding=1)(x)  # (B, 8, 8, 4)
    return keras.Model([latent, time_input, context], noise, name=name)


def builders(name):
    """Builder of each part of a backbone of `SIZES`, a function of its image size, px, and its context's shape."""
    sizes = SIZES[name]
    return {
        "image_encoder": lambda image_size, context_shape: image_encoder(sizes),
        "unet": lambda image_size, context_shape: mini_unet(image_size, context_shape, f"{sizes.name}_unet"),
        "decoder": lambda image_size, context_shape: decoder(sizes, image_size),
    }
