"""The Class Encoder: what the paper puts in the place of the text encoder."""

import keras

from Models.runtime import jit_compile


def class_encoder(num_classes, hidden_units, context_shape):
    """One-hot label (B, C) -> context (B, tokens, width). There is no non-linearity anywhere (paper, section 2).

    An all-zero label gives the unconditional context. A fresh encoder has zero biases, so that context starts at 0.

    Args:
        num_classes: Number of classes C.
        hidden_units: Width of the hidden layer (500 in the paper).
        context_shape: (tokens, width) of the backbone's context; (100, 768) in the paper.
    """
    tokens, width = context_shape
    label = keras.Input((num_classes,), name="label")
    # float32 whatever the policy: these are the weights that step 1 learns, and they are small.
    x = keras.layers.Dense(hidden_units, dtype="float32", name="hidden")(label)  # (B, hidden)
    x = keras.layers.Dense(tokens * width, use_bias=False, dtype="float32", name="context")(x)
    context = keras.layers.Reshape((tokens, width), dtype="float32", name="tokens")(x)  # (B, tokens, width)
    model = keras.Model(label, context, name="class_encoder")
    model.jit_compile = jit_compile()
    return model
