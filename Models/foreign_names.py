"""Names of Stable Diffusion's tensors: ours by attribute, those of the original files (`ldm`), and those of diffusers.

A network is a sequence of blocks. `unet_blocks`, `image_encoder_blocks` and `decoder_blocks` name them in the order in
which they are computed; `INSIDE` names what is in a block of a kind. Both are facts of published files: the layouts
differ in names, in the order of axes, and in nothing else.
"""

from typing import NamedTuple

import numpy as np

LAYERS = 2  # residual blocks at each resolution (level) on the way down
VAE_MATRIX = "AttentionBlock"  # diffusers holds matrices where others hold convolutions of 1x1


class Block(NamedTuple):
    """A block of a network: the name of its class, and its names in both layouts."""

    kind: str
    ldm: str
    diffusers: str


class Named(NamedTuple):
    """A variable of ours, its names in both layouts, and whether diffusers holds it as a matrix where we hold 1x1 kernels."""

    variable: object
    ldm: str
    diffusers: str
    matrix: bool = False


def unet_blocks(levels):
    """The blocks of a UNet: attention at all levels but the lowest."""
    attends = [True] * (levels - 1) + [False]
    yield Block("Dense", "time_embed.0", "time_embedding.linear_1")
    yield Block("Dense", "time_embed.2", "time_embedding.linear_2")
    yield Block("PaddedConv2D", "input_blocks.0.0", "conv_in")
    number = 1
    for i in range(levels):
        for j in range(LAYERS):
            yield Block("ResBlock", f"input_blocks.{number}.0", f"down_blocks.{i}.resnets.{j}")
            if attends[i]:
                yield Block("SpatialTransformer", f"input_blocks.{number}.1", f"down_blocks.{i}.attentions.{j}")
            number += 1
        if i < levels - 1:
            yield Block("PaddedConv2D", f"input_blocks.{number}.0.op", f"down_blocks.{i}.downsamplers.0.conv")
            number += 1
    yield Block("ResBlock", "middle_block.0", "mid_block.resnets.0")
    yield Block("SpatialTransformer", "middle_block.1", "mid_block.attentions.0")
    yield Block("ResBlock", "middle_block.2", "mid_block.resnets.1")
    for i in range(levels):
        for j in range(LAYERS + 1):
            number = i * (LAYERS + 1) + j
            yield Block("ResBlock", f"output_blocks.{number}.0", f"up_blocks.{i}.resnets.{j}")
            if attends[-1 - i]:
                yield Block("SpatialTransformer", f"output_blocks.{number}.1", f"up_blocks.{i}.attentions.{j}")
        if i < levels - 1:
            place = 2 if attends[-1 - i] else 1
            yield Block("Upsample", f"output_blocks.{number}.{place}.conv", f"up_blocks.{i}.upsamplers.0.conv")
    yield Block("GroupNormalization", "out.0", "conv_norm_out")
    yield Block("PaddedConv2D", "out.2", "conv_out")


def vae_middle(side):
    yield Block("ResnetBlock", f"{side}.mid.block_1", f"{side}.mid_block.resnets.0")
    yield Block("AttentionBlock", f"{side}.mid.attn_1", f"{side}.mid_block.attentions.0")
    yield Block("ResnetBlock", f"{side}.mid.block_2", f"{side}.mid_block.resnets.1")


def vae_end(side):
    yield Block("GroupNormalization", f"{side}.norm_out", f"{side}.conv_norm_out")
    yield Block("PaddedConv2D", f"{side}.conv_out", f"{side}.conv_out")


def image_encoder_blocks(levels):
    """The blocks of a VAE's encoder."""
    yield Block("PaddedConv2D", "encoder.conv_in", "encoder.conv_in")
    for i in range(levels):
        for j in range(LAYERS):
            yield Block("ResnetBlock", f"encoder.down.{i}.block.{j}", f"encoder.down_blocks.{i}.resnets.{j}")
        if i < levels - 1:
            conv = f"encoder.down_blocks.{i}.downsamplers.0.conv"
            yield Block("PaddedConv2D", f"encoder.down.{i}.downsample.conv", conv)
    yield from vae_middle("encoder")
    yield from vae_end("encoder")
    yield Block("PaddedConv2D", "quant_conv", "quant_conv")


def decoder_blocks(levels):
    """The blocks of a VAE's decoder. The original numbers its levels by resolution, diffusers as they are computed."""
    yield Block("PaddedConv2D", "post_quant_conv", "post_quant_conv")
    yield Block("PaddedConv2D", "decoder.conv_in", "decoder.conv_in")
    yield from vae_middle("decoder")
    for i in range(levels):
        level = levels - 1 - i
        for j in range(LAYERS + 1):
            yield Block("ResnetBlock", f"decoder.up.{level}.block.{j}", f"decoder.up_blocks.{i}.resnets.{j}")
        if i < levels - 1:
            conv = f"decoder.up_blocks.{i}.upsamplers.0.conv"
            yield Block("PaddedConv2D", f"decoder.up.{level}.upsample.conv", conv)
    yield from vae_end("decoder")


BLOCKS = {"image_encoder": image_encoder_blocks, "unet": unet_blocks, "decoder": decoder_blocks}


def attention(number):
    """What an attention of a transformer holds."""
    layers = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "out_proj": "to_out.0"}
    return {f"attn{number}.{ours}": f"attn{number}.{theirs}" for ours, theirs in layers.items()}


TRANSFORMER = {
    **{f"norm{i}": f"norm{i}" for i in (1, 2, 3)},
    **attention(1),
    **attention(2),
    "geglu.dense": "ff.net.0.proj",
    "dense": "ff.net.2",
}
# Kind of a block -> attribute path of a layer in it -> its name in the original, and in diffusers.
INSIDE = {
    "Dense": {"": ("", "")},
    "GroupNormalization": {"": ("", "")},
    "PaddedConv2D": {"conv2d": ("", "")},
    "Upsample": {"conv.conv2d": ("", "")},
    "ResBlock": {
        "entry_flow.0": ("in_layers.0", "norm1"),
        "entry_flow.2.conv2d": ("in_layers.2", "conv1"),
        "embedding_flow.1": ("emb_layers.1", "time_emb_proj"),
        "exit_flow.0": ("out_layers.0", "norm2"),
        "exit_flow.2.conv2d": ("out_layers.3", "conv2"),
        "residual_projection.conv2d": ("skip_connection", "conv_shortcut"),
    },
    "SpatialTransformer": {
        "norm": ("norm", "norm"),
        "proj1": ("proj_in", "proj_in"),
        "proj2": ("proj_out", "proj_out"),
        **{
            f"transformer_block.{ours}": (f"transformer_blocks.0.{theirs}", f"transformer_blocks.0.{theirs}")
            for ours, theirs in TRANSFORMER.items()
        },
    },
    "ResnetBlock": {
        "norm1": ("norm1", "norm1"),
        "conv1.conv2d": ("conv1", "conv1"),
        "norm2": ("norm2", "norm2"),
        "conv2.conv2d": ("conv2", "conv2"),
        "residual_projection.conv2d": ("nin_shortcut", "conv_shortcut"),
    },
    "AttentionBlock": {
        "norm": ("norm", "group_norm"),
        "q.conv2d": ("q", "to_q"),
        "k.conv2d": ("k", "to_k"),
        "v.conv2d": ("v", "to_v"),
        "proj_out.conv2d": ("proj_out", "to_out.0"),
    },
}
ENDS = {"kernel": "weight", "gamma": "weight", "bias": "bias", "beta": "bias"}


def layer_at(block, path):
    """The layer at an attribute path of a block; None where this block has none (a projection that it does not need)."""
    found = block
    for step in path.split(".") if path else ():
        if step.isdigit():
            found = found[int(step)]
        elif hasattr(found, step):
            found = getattr(found, step)
        else:
            return None
    return getattr(found, "conv2d", found)  # a projection is a Dense in 2.x and a PaddedConv2D in 1.x


def named_variables(model, part, levels=4):
    """Every variable of a network of Stable Diffusion with its foreign names: a list of `Named`.

    Args:
        model: An image encoder, UNet or decoder as KerasCV builds them, in any width.
        part: `image_encoder`, `unet` or `decoder`.
        levels: Resolutions at which it computes.

    Raises:
        ValueError: The network has another structure.
    """
    found, used = [], {}
    of_kind = {}
    for layer in model.layers:
        of_kind.setdefault(type(layer).__name__, []).append(layer)
    for block in BLOCKS[part](levels):
        number = used[block.kind] = used.get(block.kind, -1) + 1
        if number >= len(of_kind.get(block.kind, [])):
            raise ValueError(f"the {part} has no {block.kind} number {number + 1}, for {block.ldm}")
        found += variables_of(of_kind[block.kind][number], block)
    paths = {named.variable.path for named in found}
    if not len(paths) == len(found) == len(model.weights):
        raise ValueError(f"{len(found)} of the {len(model.weights)} variables of the {part} have names")
    return found


def variables_of(layer, block):
    """The variables of one block: a list of `Named`."""
    found = []
    for path, names in INSIDE[block.kind].items():
        inner = layer_at(layer, path)
        for variable in getattr(inner, "weights", ()):
            end = ENDS[variable.name]
            ldm, diffusers = (".".join(filter(None, (place, name, end))) for place, name in zip(block[1:], names))
            found.append(Named(variable, ldm, diffusers, block.kind == VAE_MATRIX and len(variable.shape) == 4))
    return found


def foreign_shapes(shape):
    """The shapes that a tensor of ours may have in a foreign file, the usual one first: 1x1 kernels are matrices too."""
    if len(shape) == 4:
        rows, columns, inputs, outputs = shape
        return [(outputs, inputs, rows, columns)] + ([(outputs, inputs)] if rows == columns == 1 else [])
    if len(shape) == 2:
        return [(shape[1], shape[0]), (shape[1], shape[0], 1, 1)]
    return [tuple(shape), (*shape, 1, 1)]  # a converter of diffusers wrote biases so in December 2023


def from_foreign(array, shape):
    """A foreign tensor in our order of axes: kernels OIHW -> HWIO, matrices (out, in) -> (in, out)."""
    return np.reshape(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T, shape)


def to_foreign(array, matrix=False):
    """One of our tensors in the order of axes of others; `matrix`: 1x1 kernels become a matrix."""
    array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    return np.ascontiguousarray(array[:, :, 0, 0] if matrix else array)
