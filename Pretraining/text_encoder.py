"""The text encoder, with which the UNet learns what captions mean. As the paper does with SD's, the stages do without it."""

import keras
import numpy as np
from keras import ops


def text_encoder(words, width):
    """Captions (B, tokens) of word numbers -> context (B, tokens, width); a caption without words gives exactly 0.

    A zero context is also what a fresh Class Encoder gives for an all-zero label, so guidance works from the start.

    Args:
        words: {word of a caption: how many values it takes}.
        width: Of the context.
    """
    caption = keras.Input((len(words),), dtype="int32", name="caption")
    first = np.cumsum([0, *words.values()])
    x = keras.layers.Embedding(int(first[-1]), width, name="words")(caption + first[:-1].astype("int32"))  # (B, 8, w)
    attended = keras.layers.MultiHeadAttention(4, width // 4)(*[keras.layers.LayerNormalization()(x)] * 2)
    x = x + attended
    hidden = keras.layers.Dense(4 * width, activation="gelu")(keras.layers.LayerNormalization()(x))
    x = keras.layers.LayerNormalization()(x + keras.layers.Dense(width)(hidden))
    said = ops.cast(ops.any(caption > 0, axis=-1), x.dtype)[:, None, None]
    return keras.Model(caption, x * said, name="text_encoder")
