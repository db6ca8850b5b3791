"""What is adapted: a backbone with a dataset's Class Encoder, and which part of it learns (paper, steps 1 and 3)."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import keras

from Experiment.errors import UserError
from Models.backbones import Backbone
from Models.class_encoder import class_encoder
from Models.guidance import Guide
from Models.lora import LowRank, UNetEpochs
from Models.sampler import Sampler
from Models.solvers import SOLVERS
from Models.weight_cards import with_card
from Models.weights import check_weights, load_weights, save_weights


@dataclass
class Diffusion:
    """A backbone with the Class Encoder of a dataset: what is adapted, searched and sampled.

    Attributes:
        backbone: A `Backbone`.
        encoder: The Class Encoder.
        unet, decoder: The backbone's, built; the decoder may be None.
        weights_dir: Folder or file of the pretrained weights, if not the usual one.
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
        weights_dir: Folder or file of the pretrained weights, if not the usual one.
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
        weights_dir: Folder or file of the pretrained weights, if not the usual one.

    Raises:
        UserError: A file is missing or does not fit.
    """
    if part == "enc":
        return Guide(encoder=load_weights(class_encoder(num_classes, backbone.hidden_units, backbone.context_shape), path))
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
        with with_card(path, self.facts) as partial:
            save_weights(self.network, partial)

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
