"""The adaptation step (paper, steps 1 and 3) as a stock keras.Model: fit() is the whole training loop."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import keras
import numpy as np
from keras import ops

from Experiment.errors import UserError
from Experiment.progress import each
from Models.backbones import Backbone
from Models.class_encoder import class_encoder
from Models.diffusion import PREDICTION_TYPES, add_noise, alpha_bar_at, sample_latents, timestep_embedding
from Models.guidance import Guide
from Models.lora import LowRank, UNetEpochs
from Models.noise_schedule import STABLE_DIFFUSION
from Models.runtime import precision, traced_once
from Models.sampler import Sampler
from Models.solvers import SOLVERS
from Models.weight_cards import write_card
from Models.weights import check_weights, load_weights, save_weights


@dataclass
class Diffusion:
    """A backbone with the Class Encoder of a dataset: what is adapted, searched and sampled.

    Attributes:
        backbone: A `Backbone`.
        encoder: The Class Encoder.
        unet, decoder: The backbone's, built; the decoder may be None.
        weights_dir: Folder of the pretrained files, if not the usual one.
    """

    backbone: Backbone
    encoder: keras.Model
    unet: keras.Model
    decoder: keras.Model | None = None
    weights_dir: Path | None = None

    @cached_property
    def unet_epochs(self):
        """What loads epochs into the UNet."""
        return UNetEpochs(self.unet, self.backbone, self.weights_dir)

    def sampler(self, solver="ddim", guide=None):
        """A `Sampler` with a solver of `SOLVERS`, guided by a `Guide` if there is one.

        Raises:
            UserError: The guide's UNet predicts something else.
        """
        backbone = self.backbone
        if guide and guide.unet:
            guides, sampled = (network.following.prediction_type for network in (guide.unet, self.unet))
            if guides != sampled:
                raise UserError(
                    f"the UNet that guides predicts {guides}, the one that is sampled {sampled}: give the --weights of "
                    "its training."
                )
        return Sampler(
            self.unet, self.decoder, backbone.side_by_side, backbone.schedule, backbone.prediction_type,
            SOLVERS[solver], guide,
        )  # fmt: skip


def load_diffusion(backbone, num_classes, weights_dir=None, enc=None, dif=None, decoder=True):
    """Build a `Diffusion` with the pretrained weights, or those of epoch files.

    Args:
        backbone: A `Backbone`.
        num_classes: Number of classes.
        weights_dir: Folder of the pretrained files, if not the usual one.
        enc, dif: Epoch files of Class Encoder and UNet; None leaves them fresh and pretrained. Low-rank updates of the
            UNet are added to the pretrained weights.
        decoder: Whether the decoder is needed.

    Raises:
        UserError: A file is missing or does not fit.
    """
    encoder = class_encoder(num_classes, backbone.hidden_units, backbone.context_shape)
    if enc:
        load_weights(encoder, enc)
    diffusion = Diffusion(backbone, encoder, backbone.unet(weights_dir, pretrained=not dif), weights_dir=weights_dir)
    if dif:
        # Not by `unet_epochs`, which would keep the pretrained kernels for further epochs.
        UNetEpochs(diffusion.unet, backbone, weights_dir).load(dif)
    diffusion.decoder = backbone.decoder(weights_dir) if decoder else None
    # The Backbone of a Diffusion says what its UNet predicts.
    following = getattr(diffusion.unet, "following", None)
    if following and following.prediction_type != backbone.prediction_type:
        diffusion.backbone = replace(backbone, prediction_type=following.prediction_type)
    return diffusion


def load_guide(backbone, part, path, num_classes, weights_dir=None):
    """The `Guide` of an earlier epoch.

    Args:
        backbone: A `Backbone`.
        part: What is of an earlier epoch, `enc` or `dif`.
        path: Its file; None: the pretrained UNet.
        num_classes: Number of classes.
        weights_dir: Folder of the pretrained files, if not the usual one.

    Raises:
        UserError: A file is missing or does not fit.
    """
    if part == "enc":
        return Guide(
            encoder=load_weights(class_encoder(num_classes, backbone.hidden_units, backbone.context_shape), path)
        )
    return Guide(unet=load_diffusion(backbone, num_classes, weights_dir, dif=path, decoder=False).unet)


class WholeNetwork:
    """Adaptation of all weights of one network: the Class Encoder (`enc`) or the UNet (`dif`).

    It says what learns, and what an epoch's file holds: whatever else can be adapted has these members.

    Args:
        diffusion: A `Diffusion`.
        part: `enc` or `dif`.
        facts: What the card beside an epoch's file says of it, such as the `classes`.
    """

    def __init__(self, diffusion, part, facts=None):
        self.part, self.diffusion, self.facts = part, diffusion, facts or {}
        self.network = diffusion.encoder if part == "enc" else diffusion.unet

    @property
    def variables(self):
        """All that a continued run needs."""
        return self.network.variables

    @property
    def parameters(self):
        """How many numbers learn."""
        return self.network.count_params()

    def freeze_the_rest(self):
        """Let this part learn, and nothing else."""
        for network in (self.diffusion.encoder, self.diffusion.unet):
            network.trainable = network is self.network

    def check(self, path):
        """Refuse an epoch file that does not fit, without reading its weights (UserError)."""
        if self.part == "dif":
            self.diffusion.unet_epochs.check(path)
        else:
            check_weights(self.network, path)

    def load(self, path):
        """Load an epoch file into what is sampled (UserError)."""
        if self.part == "dif":
            self.diffusion.unet_epochs.load(path)
        else:
            load_weights(self.network, path)

    def save(self, path):
        """Save an epoch file, atomically, and its card (UserError where a weight is not finite)."""
        save_weights(self.network, path)
        write_card(path, self.facts)

    @property
    def bytes(self):
        """Size of an epoch file, and of the state of an interrupted run with both moments of Adam."""
        size = 4 * self.network.count_params()
        return size, 3 * size


def adaptation(diffusion, part, facts, updates=None, seed=0, start=None):
    """What is adapted: a `WholeNetwork`, or low-rank updates of the UNet.

    Args:
        diffusion: A `Diffusion`; with `updates` its UNet holds the pretrained weights.
        part, facts: As in `WholeNetwork`.
        updates: `Facts` of the updates; without them a whole network is adapted.
        seed: Of the first values of updates.
        start: Epoch file whose updates are gone on from, or None.

    Raises:
        UserError: That file does not fit.
    """
    if not updates:
        return WholeNetwork(diffusion, part, facts)
    adapted = LowRank(diffusion, updates, seed, facts)
    if start:
        adapted.load(start)
    return adapted


class NoisyLatents(keras.layers.Layer):
    """Moments, latent noise, noise, timesteps -> noisy latents, timestep embedding, target; in float32.

    Args:
        latent_scale: Factor that gives latents unit variance.
        schedule: A `NoiseSchedule`.
        prediction: A class of `PREDICTION_TYPES`.
    """

    def __init__(self, latent_scale, schedule, prediction, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.latent_scale, self.schedule, self.prediction = latent_scale, schedule, prediction

    def call(self, moments, latent_noise, noise, timesteps):
        latents = sample_latents(moments, latent_noise, self.latent_scale)  # (B, h, w, 4)
        alpha_bar = alpha_bar_at(self.schedule, timesteps)  # (B, 1, 1, 1)
        noisy_latents = add_noise(latents, noise, alpha_bar)
        target = self.prediction.target(latents, noise, alpha_bar)
        return noisy_latents, timestep_embedding(timesteps), target  # (B, h, w, 4), (B, 320), (B, h, w, 4)


class SideBySide(keras.layers.Layer):
    """A network that is computed for parts of a batch side by side: the operations of a small one keep one core busy.

    No part is empty: of a batch with fewer samples than parts the later parts hold the last sample again.

    Args:
        network: Of several arrays with a common first axis.
        parts: Their number.
    """

    def __init__(self, network, parts, **kwargs):
        super().__init__(dtype="float32", autocast=False, **kwargs)
        self.network, self.parts = network, parts

    def call(self, arrays):
        """Outputs in float32, as many samples as there are in `arrays`."""
        samples = ops.shape(arrays[0])[0]
        size = ops.maximum(samples // self.parts, 1)
        starts = [ops.minimum(size * i, samples - 1) for i in range(self.parts)]
        ends = [*(start + size for start in starts[:-1]), samples]
        network = traced_once(lambda *part: self.network(list(part)))
        made = [network(*(array[start:end] for array in arrays)) for start, end in zip(starts, ends)]
        return ops.cast(ops.concatenate(made, axis=0)[:samples], "float32")

    def compute_output_shape(self, shapes):
        return self.network.compute_output_shape(shapes)


class MeasuredAgainstNoise(keras.layers.Layer):
    """Shifts a prediction by noise - target, so that its squared error against the noise is that against the target."""

    def __init__(self, **kwargs):
        super().__init__(dtype="float32", **kwargs)

    def call(self, prediction, noise, target):
        return prediction + (noise - target)


def denoising_model(
    unet, context_encoder, latent_scale, side_by_side=1, schedule=STABLE_DIFFUSION, prediction_type="epsilon"
):
    """The model whose mean squared error against the noise is the loss of both adaptation steps.

    Args:
        unet: Backbone UNet: `latent`, `timestep_embedding`, `context` -> prediction (B, h, w, 4).
        context_encoder: What makes the context (the Class Encoder): its input (B, C) -> (B, tokens, width).
        latent_scale: Factor that gives latents unit variance (0.18215 for Stable Diffusion).
        side_by_side: Into how many parts a batch is cut, for which the UNet is computed side by side: the operations of
            a small one keep no more than one core busy.
        schedule: The backbone's `NoiseSchedule`.
        prediction_type: What the UNet predicts, a key of `PREDICTION_TYPES`.

    Returns:
        A keras.Model with inputs `moments` (B, h, w, 8), `latent_noise` and `noise` (B, h, w, 4), `timestep` (B,) and
        `label` (B, C). Its output (B, h, w, 4), float32, is to be compared with the noise: the predicted noise, or for
        another prediction type the noise plus the error of the prediction.
        Which part learns is the caller's choice: set `trainable` of either before compiling.
    """
    latent_shape = unet.input_shape[0][1:]
    condition = context_encoder.inputs[0]
    inputs = {
        "moments": keras.Input((*latent_shape[:2], 2 * latent_shape[2]), name="moments"),
        "latent_noise": keras.Input(latent_shape, name="latent_noise"),
        "noise": keras.Input(latent_shape, name="noise"),
        "timestep": keras.Input((), dtype="int32", name="timestep"),
        "label": keras.Input(condition.shape[1:], dtype=condition.dtype, name="label"),
    }
    noisy_latents, time, target = NoisyLatents(latent_scale, schedule, PREDICTION_TYPES[prediction_type])(
        inputs["moments"], inputs["latent_noise"], inputs["noise"], inputs["timestep"]
    )
    arrays = [noisy_latents, time, context_encoder(inputs["label"])]
    if side_by_side == 1:
        prediction = unet(arrays)  # (B, h, w, 4)
    else:
        prediction = SideBySide(unet, side_by_side)(arrays)
    # The loss is taken in float32 whatever the precision of the UNet.
    prediction = keras.layers.Activation("linear", dtype="float32", name="prediction")(prediction)
    if prediction_type != "epsilon":
        prediction = MeasuredAgainstNoise()(prediction, inputs["noise"], target)
    return keras.Model(inputs, prediction, name="denoising_model")


def encode_moments(image_encoder, images, side, batch_size=64):
    """Yield VAE moments float32 (n, h, w, 8) of images uint8 (N, H, H, 3), batch by batch.

    Every batch has the same size (the last one is padded and cut).

    Args:
        image_encoder: The backbone's.
        images: uint8 (N, H, H, 3).
        side: The backbone's image size, px.
        batch_size: Most images at a time.
    """
    batch_size = min(batch_size, len(images))
    for start in each(range(0, len(images), batch_size), "batch"):
        batch = images[start : start + batch_size]
        padded = batch[np.resize(np.arange(len(batch)), batch_size)].astype("float32")
        resized = ops.image.resize(padded, (side, side), "bilinear", antialias=side < padded.shape[1])
        yield np.asarray(image_encoder.predict_on_batch(resized / 127.5 - 1.0))[: len(batch)].astype("float32")


def moments_encoder(backbone, weights_dir=None):
    """What `Data.latents.dataset_moments` encodes images with: the backbone's encoder, in float32, built when it is needed."""

    def encode(images):
        with precision("float32"):
            image_encoder = backbone.image_encoder(weights_dir)
        return encode_moments(image_encoder, images, backbone.image_size)

    return encode
