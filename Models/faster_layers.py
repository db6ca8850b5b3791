"""Three of KerasCV's layers with the same weights and results, in less time.

Profiles that led here: on a CPU the stock group normalisation costs the mini UNet as much as its convolutions, and
the sampler would project the same few contexts to keys and values at every step.
"""

import contextlib

import keras
from keras import ops
from keras_cv.src.models.stable_diffusion import diffusion_model


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


class CrossAttention(diffusion_model.CrossAttention):
    """Cross-attention that can be given the keys and values of all contexts at once (see `shared_contexts`)."""

    shared = None  # (keys, values) (R, tokens, width) and rows (B,), while a sampler is traced

    def call(self, inputs, context=None):
        context = inputs if context is None else context
        if self.shared:
            *projections, rows = self.shared
            keys, values = (ops.take(projection, rows, axis=0) for projection in projections)
        else:
            keys, values = self.to_k(context), self.to_v(context)

        def heads(x, axes):
            return ops.transpose(ops.reshape(x, (-1, x.shape[1], self.num_heads, self.head_size)), axes)

        queries = heads(self.to_q(inputs), (0, 2, 1, 3))  # (B, heads, positions, size)
        keys, values = heads(keys, (0, 2, 3, 1)), heads(values, (0, 2, 1, 3))
        weights = ops.softmax(ops.matmul(queries, keys) * self.scale)  # (B, heads, positions, tokens)
        attended = ops.transpose(ops.matmul(weights, values), (0, 2, 1, 3))
        return self.out_proj(ops.reshape(attended, (-1, inputs.shape[1], self.num_heads * self.head_size)))


class GEGLU(diffusion_model.GEGLU):
    """Splits by one operation instead of two slices, whose gradients would each fill a whole array with zeros."""

    def call(self, inputs):
        x, gate = ops.split(self.dense(inputs), 2, axis=-1)
        return x * ops.gelu(gate, approximate=True)


# The names of the classes stay the same too: Keras builds the paths in weight files from them.
FASTER = {
    keras.layers.GroupNormalization: GroupNormalization,
    diffusion_model.CrossAttention: CrossAttention,
    diffusion_model.GEGLU: GEGLU,
}


def all_layers(model):
    return model._flatten_layers()  # there is no public way to the layers inside layers


def use_faster_layers(model):
    """Let the layers of a KerasCV model compute as above. They keep their weights, names and places in files."""
    for layer in all_layers(model):
        layer.__class__ = FASTER.get(type(layer), type(layer))
    return model


@contextlib.contextmanager
def shared_contexts(unet, contexts, rows):
    """Within this block the UNet attends to `contexts[rows]`, projected once, whatever context it is called with.

    Args:
        contexts: (R, tokens, width), the few that a batch has.
        rows: int (B,): which of them each sample is conditioned on.
    """
    attentions = [layer.attn2 for layer in all_layers(unet) if isinstance(layer, diffusion_model.BasicTransformerBlock)]
    try:
        for attention in attentions:
            attention.shared = attention.to_k(contexts), attention.to_v(contexts), rows
        yield
    finally:
        for attention in attentions:
            attention.shared = None
