"""Networks whose graphs are made at once, and scripts as processes in which they are `mini` and `resnet20_16`.

    python tests/tiny_networks.py SCRIPT FLAG...

is `python SCRIPT FLAG...` with them: for tests of processes, in which tracing the real networks takes most of the time.
"""

import os
import runpy
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def small_unet(context_shape=(3, 5)):
    """A UNet with one block of each kind: its graph is made in a second, mini's in ten."""
    import keras

    from Models.kerascv_layers import PaddedConv2D, diffusion_model

    inputs = [keras.Input((4, 4, 4)), keras.Input((320,)), keras.Input(context_shape)]
    time = keras.layers.Dense(8, activation="swish")(inputs[1])
    x = diffusion_model.ResBlock(32)([PaddedConv2D(32, 3, padding=1)(inputs[0]), time])
    x = diffusion_model.SpatialTransformer(2, 16)([x, inputs[2]])
    return keras.Model(inputs, PaddedConv2D(4, 1)(x), name="small_unet")


def tiny_part(part):
    """Networks of a few weights with the shapes of a diffusion model for 8 px images."""

    def build(backbone):
        import keras
        from keras import layers

        if part == "image_encoder":
            return keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(8, 2, strides=2)], name=part)  # (B, 4, 4, 8)
        if part == "decoder":
            return keras.Sequential([keras.Input((4, 4, 4)), layers.UpSampling2D(2), layers.Conv2D(3, 1)], name=part)
        inputs = [keras.Input((4, 4, 4)), keras.Input((320,)), keras.Input(backbone.context_shape)]
        condition = layers.Dense(4)(inputs[1]) + layers.Dense(4)(layers.GlobalAveragePooling1D()(inputs[2]))
        shift = layers.Reshape((1, 1, 4))(condition)
        return keras.Model(inputs, layers.Conv2D(4, 3, padding="same")(inputs[0]) + shift, name=part)

    return build


def one_layer(resolution, num_classes):
    """A classifier whose graph is made at once: that of a ResNet20 takes longer than what most tests do with it."""
    import keras

    image = keras.Input((resolution, resolution, 3))
    flat = keras.layers.Flatten()(image)
    return keras.Model(image, keras.layers.Dense(num_classes, activation="softmax")(flat))


def always_the_same(build):
    """A builder of a part whose first weights are the same in every process."""

    def build_again(backbone):
        import keras

        keras.utils.set_random_seed(1)
        return build(backbone)

    return build_again


def run_script(script):
    """Run a script of the repository with networks of a few weights, which are as they were initialised."""
    from Models.backbones import BACKBONES, PARTS, Backbone
    from Models.classifiers import CLASSIFIERS
    from Models.weight_files import UNTRAINED, PublishedFile

    build = {part: tiny_part(part) for part in PARTS} | {"unet": lambda backbone: small_unet(backbone.context_shape)}
    BACKBONES["mini"] = Backbone(
        name="mini", image_size=8, downsampling=2, latent_scale=1.0, context_shape=(2, 3), hidden_units=5, block=8,
        build={part: always_the_same(build[part]) for part in PARTS},
        files={part: PublishedFile("none", ("https://example.org/",), "0") for part in PARTS},
        training={kind: {"epochs": 1, "batch_size": 100, "lr": 0.01} for kind in ("enc", "dif", "lora")},
        light=True,
    )  # fmt: skip
    CLASSIFIERS["resnet20_16"] = one_layer
    os.environ[UNTRAINED] = "1"
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    sys.path[0] = str(REPOSITORY)
    sys.argv = [str(REPOSITORY / sys.argv[1]), *sys.argv[2:]]
    run_script(sys.argv[0])
