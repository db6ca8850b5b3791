"""KerasCV's Stable Diffusion, imported without the rest of the package, and its layers built without being run.

Both are for start-up. `import keras_cv` brings object detection, augmentation and metrics with it: a second, none of it
used. And KerasCV's layers say neither how they are built nor what shape they give: so Keras runs each symbolically to
build it and once more for its shape, within the layers around it again, up to eight times for the innermost ones. That
was most of the time in which a UNet is made.
"""

import contextlib
import importlib.util
import sys
import types
from pathlib import Path

__all__ = ["AttentionBlock", "PaddedConv2D", "ResnetBlock", "bare_packages", "decoder", "diffusion_model", "image_encoder"]

PACKAGES = ("keras_cv", "keras_cv.src", "keras_cv.src.models", "keras_cv.src.models.stable_diffusion")


@contextlib.contextmanager
def bare_packages():
    """Within this block modules of KerasCV are imported without what their packages import; later imports are as ever."""
    bare = [] if "keras_cv" in sys.modules else PACKAGES
    if bare and importlib.util.find_spec("keras_cv") is None:
        raise ModuleNotFoundError("No module named 'keras_cv'")
    for name in bare:
        sys.modules[name] = module = types.ModuleType(name)
        root = Path(importlib.util.find_spec("keras").origin).parent.parent
        module.__path__ = [str(root.joinpath(*name.split(".")))]
    try:
        yield
    finally:
        for name in bare:
            del sys.modules[name]


with bare_packages():
    from keras_cv.src.models.stable_diffusion import decoder, diffusion_model, image_encoder
    from keras_cv.src.models.stable_diffusion.attention_block import AttentionBlock
    from keras_cv.src.models.stable_diffusion.padded_conv2d import PaddedConv2D
    from keras_cv.src.models.stable_diffusion.resnet_block import ResnetBlock


def of_channels(shape, channels):
    """A shape with another last axis."""
    return *shape[:-1], channels


def build_convolution(layer, input_shape):
    layer.conv2d.build(layer.padding2d.compute_output_shape(input_shape))


def convolution_shape(layer, input_shape):
    return layer.conv2d.compute_output_shape(layer.padding2d.compute_output_shape(input_shape))


def build_flow(flow, shape):
    """Build layers that follow one another; returns the shape that the last one gives."""
    for layer in flow:
        if not layer.built:
            layer.build(shape)
        shape = layer.compute_output_shape(shape)
    return shape


def build_unet_block(layer, input_shape):
    inputs, embeddings = input_shape
    KERASCV_BUILDS[diffusion_model.ResBlock](layer, input_shape)  # says what the residual projection is
    shape = build_flow(layer.entry_flow, inputs)
    build_flow(layer.embedding_flow, embeddings)
    build_flow(layer.exit_flow, shape)
    build_projection(layer, inputs)


def build_vae_block(layer, input_shape):
    KERASCV_BUILDS[ResnetBlock](layer, input_shape)
    build_flow([layer.norm1, layer.conv1, layer.norm2, layer.conv2], input_shape)
    build_projection(layer, input_shape)


def build_projection(layer, input_shape):
    if isinstance(layer.residual_projection, PaddedConv2D):
        layer.residual_projection.build(input_shape)


def build_vae_attention(layer, input_shape):
    for part in (layer.norm, layer.q, layer.k, layer.v, layer.proj_out):
        part.build(input_shape)


def build_transformer(layer, input_shape):
    (samples, height, width, channels), context = input_shape
    shape = (samples, height and width and height * width, channels)
    build_flow([layer.norm, layer.proj1], input_shape[0])
    layer.transformer_block.build([shape, context])
    layer.proj2.build(input_shape[0])


def build_transformer_block(layer, input_shape):
    shape, context = input_shape
    layer.norm1.build(shape)
    layer.attn1.build(shape)
    layer.norm2.build(shape)
    layer.attn2.build(shape, context)
    build_flow([layer.norm3, layer.geglu, layer.dense], shape)


def build_attention(layer, inputs_shape, context_shape=None):
    layer.to_q.build(inputs_shape)
    layer.to_k.build(context_shape or inputs_shape)
    layer.to_v.build(context_shape or inputs_shape)
    layer.out_proj.build(layer.to_q.compute_output_shape(inputs_shape))


# How each layer is built, and the shape that it gives: functions of the layer and the shapes of its inputs.
LAYERS = {
    PaddedConv2D: (build_convolution, convolution_shape),
    ResnetBlock: (build_vae_block, lambda layer, input_shape: of_channels(input_shape, layer.output_dim)),
    AttentionBlock: (build_vae_attention, lambda layer, input_shape: input_shape),
    diffusion_model.ResBlock: (
        build_unet_block, lambda layer, input_shape: of_channels(input_shape[0], layer.output_dim)
    ),
    diffusion_model.SpatialTransformer: (build_transformer, lambda layer, input_shape: input_shape[0]),
    diffusion_model.BasicTransformerBlock: (build_transformer_block, lambda layer, input_shape: input_shape[0]),
    diffusion_model.CrossAttention: (
        build_attention,
        lambda layer, inputs_shape, context_shape=None: of_channels(inputs_shape, layer.num_heads * layer.head_size),
    ),
    diffusion_model.GEGLU: (
        lambda layer, input_shape: layer.dense.build(input_shape),
        lambda layer, input_shape: of_channels(input_shape, layer.output_dim),
    ),
    diffusion_model.Upsample: (
        lambda layer, input_shape: build_flow([layer.ups, layer.conv], input_shape),
        lambda layer, input_shape: layer.conv.compute_output_shape(layer.ups.compute_output_shape(input_shape)),
    ),
}  # fmt: skip
KERASCV_BUILDS = {kind: kind.build for kind in LAYERS}
for kind, (build, shape) in LAYERS.items():
    kind.build, kind.compute_output_shape = build, shape
