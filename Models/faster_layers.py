"""Layers with the same weights and results as KerasCV's and Keras's, in less time: the one place where layers change class.

Profiles that led here: on a CPU the stock group normalisation costs the mini UNet as much as its convolutions, the
full-size UNet spends more time on copying the weights of its convolutions into another order than on most of their
arithmetic, and the sampler would project the same few contexts to keys and values at every step. With low-rank updates
stock layers would form each sum of a kernel and its update, and the gradient of that sum.
"""

import contextlib

import keras
from keras import ops

from Models.kerascv_layers import diffusion_model
from Models.runtime import ordered_after

# Weights of a kernel's element over pixels of the map, above which a matrix product is faster (measured on 2 cores, batch
# 16, float32 and bfloat16).
WEIGHTS_A_PIXEL = 10_000


class GroupNormalization(keras.layers.GroupNormalization):
    """Sums over pixels first, over the channels of a group last: contiguous memory, and no five-dimensional copy."""

    def call(self, inputs):
        shape, channels = ops.shape(inputs), inputs.shape[-1]

        def group_mean(values):
            """(B, pixels, C) -> (B, 1, C): mean of the group that each channel belongs to."""
            of_channel = ops.reshape(ops.mean(values, axis=1), (-1, self.groups, channels // self.groups))
            of_group = ops.mean(of_channel, axis=-1, keepdims=True)
            return ops.reshape(ops.broadcast_to(of_group, ops.shape(of_channel)), (-1, 1, channels))

        x = ops.reshape(ops.cast(inputs, "float32"), (shape[0], -1, channels))  # statistics stay in float32
        x = x - group_mean(x)
        scale = ops.rsqrt(group_mean(ops.square(x)) + self.epsilon) * ops.cast(self.gamma, "float32")
        x = x * scale + ops.cast(self.beta, "float32")
        return ops.reshape(ops.cast(x, self.compute_dtype), shape)


class Conv2D(keras.layers.Conv2D):
    """A matrix product where there are many weights and few pixels, as in the middle of the full-size UNet.

    The library behind TensorFlow's convolution re-packs the weights on every call. At 2x2 pixels, with 2560 x 1280
    channels, that takes ten times as long as the product of the patches and the weights as they are.
    """

    def convolution_op(self, inputs, kernel):
        height, width, channels = inputs.shape[1:]  # of the padded map
        rows, columns = self.kernel_size
        down, right = self.strides
        filters = kernel.shape[-1]  # those of a low-rank update are fewer than the layer's
        if not height or not width or channels * filters <= WEIGHTS_A_PIXEL * (height // down) * (width // right):
            return super().convolution_op(inputs, kernel)
        patches = ops.concatenate(
            [
                inputs[:, y : height - rows + y + 1 : down, x : width - columns + x + 1 : right]
                for y in range(rows)
                for x in range(columns)
            ],
            axis=-1,
        )  # (B, h, w, rows * columns * channels)
        sizes = ops.shape(patches)
        flat = ops.matmul(ops.reshape(patches, (-1, patches.shape[-1])), ops.reshape(kernel, (-1, filters)))
        return ops.reshape(flat, (*sizes[:-1], filters))


class CrossAttention(diffusion_model.CrossAttention):
    """Cross-attention that can be given the keys and values of all contexts at once (see `shared_contexts`)."""

    shared = None  # keys, values (R, heads, ...) and rows (B,), while a sampler is traced

    def heads(self, x, axes):
        return ops.transpose(ops.reshape(x, (-1, x.shape[1], self.num_heads, self.head_size)), axes)

    def keys_and_values(self, context):
        """(B, tokens, width) -> keys (B, heads, size, tokens) and values (B, heads, tokens, size)."""
        return self.heads(self.to_k(context), (0, 2, 3, 1)), self.heads(self.to_v(context), (0, 2, 1, 3))

    def call(self, inputs, context=None):
        if self.shared:
            *projections, rows = self.shared
            keys, values = (ops.take(projection, rows, axis=0) for projection in projections)
        else:
            keys, values = self.keys_and_values(inputs if context is None else context)
        queries = self.heads(self.to_q(inputs) * self.scale, (0, 2, 1, 3))  # (B, heads, positions, size)
        weights = ops.softmax(ops.matmul(queries, keys))  # (B, heads, positions, tokens)
        attended = ops.transpose(ops.matmul(weights, values), (0, 2, 1, 3))
        return self.out_proj(ops.reshape(attended, (-1, inputs.shape[1], self.num_heads * self.head_size)))


class GEGLU(diffusion_model.GEGLU):
    """Splits by one operation instead of two slices, whose gradients would each fill a whole array with zeros."""

    approximate = True  # GELU by tanh, as in KerasCV; `Models.numerics` sets it

    def call(self, inputs):
        x, gate = ops.split(self.dense(inputs), 2, axis=-1)
        return x * ops.gelu(gate, approximate=self.approximate)


# The names of the classes stay the same too: Keras builds the paths in weight files from them.
FASTER = {
    keras.layers.Conv2D: Conv2D,
    keras.layers.GroupNormalization: GroupNormalization,
    diffusion_model.CrossAttention: CrossAttention,
    diffusion_model.GEGLU: GEGLU,
}


def all_layers(model):
    return model._flatten_layers()  # there is no public way to the layers inside layers


def use_faster_layers(model, on_gpu=False):
    """Let the layers of a KerasCV model compute as above. They keep their weights, names and places in files.

    Why the class of a built layer is replaced: KerasCV makes its layers itself and takes no others, and a copy of its
    networks would be 1,000 lines. Without it the numbers are the same and `sd1` generates at 0.6 of the speed. A test
    compares each layer with the stock one, and another fails when KerasCV no longer has a layer to replace.

    On a GPU, whose library needs no other order of weights, convolutions stay as they are.
    """
    for layer in all_layers(model):
        if not (on_gpu and type(layer) is keras.layers.Conv2D):
            layer.__class__ = FASTER.get(type(layer), type(layer))
    return model


def checkpoint_gradients(unet):
    """Let the blocks of a UNet keep their input alone in training and compute the rest again for the gradients.

    Takes a third more arithmetic, and the memory of one block instead of all (Chen et al. 2016, arXiv 1604.06174).
    """

    def begun_late(call):
        """TensorFlow would cast the weights of all blocks to bfloat16 at once, when the step begins."""

        def late_call(inputs):
            with ordered_after(*inputs):
                return call(inputs)

        return late_call

    for layer in all_layers(unet):
        if isinstance(layer, (diffusion_model.ResBlock, diffusion_model.SpatialTransformer)):
            layer.call = keras.remat(begun_late(layer.call))
    return unet


def low_rank_factors(layer):
    """A and alpha/rank B in the precision of the layer's arithmetic; both are float32 whatever the others are held in."""
    b = (layer.lora_alpha / layer.lora_rank) * ops.cast(layer.lora_kernel_b, "float32")
    return ops.cast(layer.lora_kernel_a, layer.compute_dtype), ops.cast(b, layer.compute_dtype)


class LowRankDense(keras.layers.Dense):
    """x W + alpha/rank (x A) B: Keras's layer with LoRA enabled computes x (W + alpha/rank A B)."""

    def call(self, inputs, training=None):
        a, b = low_rank_factors(self)
        x = ops.matmul(inputs, self._kernel) + ops.matmul(ops.matmul(inputs, a), b)
        if self.bias is not None:
            x = x + self.bias
        return x if self.activation is None else self.activation(x)


class LowRankConvolution:
    """The same for a convolution: A is a kernel of `rank` filters, B one of a single pixel."""

    @property
    def kernel(self):
        return self._kernel

    def convolution_op(self, inputs, kernel):
        a, b = low_rank_factors(self)
        return super().convolution_op(inputs, kernel) + ops.matmul(super().convolution_op(inputs, a), b)


class LowRankConv2D(LowRankConvolution, Conv2D):
    pass


class LowRankStockConv2D(LowRankConvolution, keras.layers.Conv2D):
    pass


LOW_RANK = {keras.layers.Dense: LowRankDense, Conv2D: LowRankConv2D, keras.layers.Conv2D: LowRankStockConv2D}


def enable_low_rank(layer, rank, alpha, seed):
    """Give a layer Keras's low-rank update (LoRA), computed as above.

    Args:
        layer: A Dense or Conv2D layer that holds its base weights already: loading them later would set A and B to 0.
        rank, alpha: The update is alpha / rank times a product of that rank.
        seed: Of A's first values, which are Keras's (uniform, He et al. 2015). B begins at 0.
    """
    layer.enable_lora(rank, lora_alpha=alpha, a_initializer=keras.initializers.HeUniform(seed))
    layer.__class__ = LOW_RANK[type(layer)]


def cross_attentions(unet):
    return [layer.attn2 for layer in all_layers(unet) if isinstance(layer, diffusion_model.BasicTransformerBlock)]


@contextlib.contextmanager
def shared_contexts(unet, contexts, rows):
    """Within this block the UNet attends to `contexts[rows]`, projected once, whatever context it is called with.

    Args:
        contexts: (R, tokens, width), the few that a batch has.
        rows: int (B,): which of them each sample is conditioned on.
    """
    attentions = cross_attentions(unet)
    try:
        for attention in attentions:
            attention.shared = *attention.keys_and_values(contexts), rows
        yield
    finally:
        for attention in attentions:
            attention.shared = None


@contextlib.contextmanager
def attending_to(unet, rows):
    """Within `shared_contexts` and this block, samples are conditioned on other rows (B,) of the same contexts."""
    attentions = cross_attentions(unet)
    before = [attention.shared for attention in attentions]
    try:
        for attention in attentions:
            attention.shared = *attention.shared[:2], rows
        yield
    finally:
        for attention, shared in zip(attentions, before):
            attention.shared = shared
