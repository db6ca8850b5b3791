"""The paper's classifier: a "ResNet20" of 3 stages of 3 basic blocks, with 64 initial filters."""

import math

import keras
from keras import layers, ops

from Models.runtime import replicas

BLOCKS_PER_STAGE = (3, 3, 3)


class PadChannels(layers.Layer):
    """Append zero channels: a shortcut without weights (He et al. 2016, option A)."""

    def __init__(self, channels, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels

    def call(self, x):
        return ops.pad(x, [[0, 0], [0, 0], [0, 0], [0, self.channels - x.shape[-1]]])

    def get_config(self):
        return {**super().get_config(), "channels": self.channels}


class BatchNormalization(layers.BatchNormalization):
    """The same numbers by one operation of TensorFlow, of maps (B, H, W, C).

    Keras computes a dozen operations that each pass over the whole map: a quarter of the time of a training step at 32 px
    (`resnet20_16`, 2 cores). The name of the class stays: Keras builds the paths in weight files from it.
    """

    def call(self, inputs, training=None, mask=None):
        import tensorflow as tf

        learns = bool(training) and self.trainable
        mean, variance = ([], []) if learns else (self.moving_mean, self.moving_variance)
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs, scale=self.gamma, offset=self.beta, mean=mean, variance=variance,
            epsilon=self.epsilon, is_training=learns,
        )  # fmt: skip
        if learns:
            # It returns the unbiased variance; Keras keeps the mean square.
            count = ops.cast(ops.prod(ops.shape(inputs)[:3]), "float32")
            variance *= (count - 1) / count
            for average, of_batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
                average.assign(average * self.momentum + of_batch * (1.0 - self.momentum))
        return outputs


def convolution(x, filters, strides=1):
    x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False, kernel_initializer="he_normal")(x)
    shared = replicas() > 1  # of a batch that devices share, statistics are those of the whole
    normalisation = layers.BatchNormalization if shared else BatchNormalization
    return normalisation(momentum=0.9, epsilon=1e-5, synchronized=shared)(x)


def basic_block(x, filters, strides):
    """Two convolutions and a shortcut: (B, H, W, c) -> (B, H/strides, W/strides, filters), sides rounded up."""
    shortcut = x
    x = layers.ReLU()(convolution(x, filters, strides))
    x = convolution(x, filters)
    if strides > 1:
        shortcut = layers.MaxPooling2D(3, strides, padding="same")(shortcut)
    if shortcut.shape[-1] != filters:
        shortcut = PadChannels(filters)(shortcut)
    return layers.ReLU()(layers.Add()([x, shortcut]))


def resnet20(resolution, num_classes, filters=64):
    """Images (B, H, W, 3) in 0..1 -> class probabilities (B, C)."""
    images = keras.Input((resolution, resolution, 3), name="images")
    x = layers.ReLU()(convolution(images, filters))  # (B, H, W, filters)
    for stage, blocks in enumerate(BLOCKS_PER_STAGE):
        for block in range(blocks):
            x = basic_block(x, filters * 2**stage, strides=2 if stage and not block else 1)
    x = layers.GlobalAveragePooling2D()(x)  # (B, 4 * filters)
    probabilities = layers.Dense(num_classes, activation="softmax", kernel_initializer="glorot_normal")(x)
    return keras.Model(images, probabilities, name="resnet20")


def multiply_accumulates(model):
    """The published count of multiply-accumulate operations of one image (643,874,944 for cifar10).

    Beside those of convolutions and dense layers it counts one operation for each output of an addition or pooling
    layer, and two for each channel of a batch normalisation.
    """
    total = 0
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D):
            total += math.prod(layer.output.shape[1:3]) * math.prod(layer.kernel.shape)
        elif isinstance(layer, layers.Dense):
            total += math.prod(layer.kernel.shape)
        elif isinstance(layer, layers.BatchNormalization):
            total += 2 * layer.output.shape[-1]
        elif isinstance(layer, (layers.Add, layers.MaxPooling2D, layers.GlobalAveragePooling2D)):
            total += math.prod(layer.output.shape[1:])
    return total
