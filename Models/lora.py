"""Low-rank updates of the UNet (LoRA, Hu et al. 2021, arXiv 2106.09685): trained, loaded, added to the pretrained kernels.

A kernel W becomes W + alpha/rank A B, in which A and B learn and nothing else does. Keras's `enable_lora` makes A and B.
Four of its habits are kept away here, and tested: loading weights into a layer that has A and B sets both to 0, after
which neither learns; saving writes the sum, in the precision of the arithmetic; `trainable = True` lets the base learn
again; and alpha counts only if it is given to `enable_lora` itself.
"""

import keras

from Experiment.errors import UserError
from Experiment.randomness import random_stream
from Models.faster_layers import enable_low_rank
from Models.lora_files import check_updates, read_facts, read_updates, write_updates
from Models.numerics import AS_PUBLISHED, let_follow
from Models.runtime import precision
from Models.weight_cards import with_card
from Models.weights import check_weights, load_weights, stored_following

ATTENTION = ("to_q", "to_k", "to_v", "out_proj")  # of KerasCV's CrossAttention
BYTES_AN_ARRAY = 1024  # what HDF5 adds to it, at most


def places(layer, place=""):
    """{place: layer} of the Dense and Conv2D layers inside of a layer: by attribute, in a model by position.

    Keras's own names will not do: it counts them on from one network of a process to the next.
    """
    if isinstance(layer, (keras.layers.Dense, keras.layers.Conv2D)):
        return {place: layer}
    if isinstance(layer, keras.Model):
        parts = enumerate(layer.layers)
    elif isinstance(layer, list):
        parts = enumerate(layer)
    elif isinstance(layer, keras.layers.Layer):
        parts = ((name, value) for name, value in vars(layer).items() if not name.startswith("_"))
    else:
        return {}
    found = {}
    for name, part in parts:
        found |= places(part, f"{place}.{name}".removeprefix("."))
    return found


def target_layers(unet, targets):
    """{place: layer} of the layers of a UNet that have an update: the `attention` projections, or `all`.

    Raises:
        UserError: There are none.
    """
    found = places(unet)
    if targets == "attention":
        found = {place: layer for place, layer in found.items() if place.split(".")[-1] in ATTENTION}
    if not found:
        raise UserError(f"--lora_targets {targets}: {unet.name} has no such layers.")
    return found


def kernel_shapes(layers):
    """{place: shape} of layers {place: layer}."""
    return {place: tuple(layer.kernel.shape) for place, layer in layers.items()}


def updated(kernel, a, b, scale):
    """W + scale A B in float32: (..., filters), (..., rank), (rank, filters) -> (..., filters)."""
    return kernel + scale * (a.reshape(-1, a.shape[-1]) @ b).reshape(kernel.shape)


class UNetEpochs:
    """Loads epochs into a UNet, in any order: those of all its weights, and low-rank updates of the pretrained one.

    Updates are added to the pretrained kernels in float32, and the sum is rounded to what the UNet holds. So images are
    those of the sum that `merge_lora.py` writes.

    Args:
        unet: The UNet.
        backbone: Its `Backbone`.
        weights_dir: Folder or file of the pretrained weights, if not the usual one.
    """

    def __init__(self, unet, backbone, weights_dir=None):
        self.unet, self.backbone, self.weights_dir = unet, backbone, weights_dir
        self.kernels = {}  # {place: float32}, pretrained, of layers that have been updated; empty: the base is not loaded

    def following(self, path):
        """What the UNet of an epoch follows: its own weights, or the pretrained ones that it updates."""
        if read_facts(path):
            return self.backbone.pretrained(self.weights_dir).following("unet")
        return stored_following(path)

    def check(self, path):
        """Refuse a file that does not fit, without reading its weights (UserError)."""
        if facts := read_facts(path):
            check_updates(path, kernel_shapes(target_layers(self.unet, facts.targets)))
        else:
            check_weights(self.unet, path)
        if self.following(path) != getattr(self.unet, "following", AS_PUBLISHED):
            raise UserError(f"{path} was trained from weights that compute otherwise than those of the other epochs.")

    def load(self, path):
        """Load an epoch (UserError where it does not fit)."""
        facts = read_facts(path)
        let_follow(self.unet, self.following(path))
        if facts is None:
            self.kernels = {}
            load_weights(self.unet, path)
            return
        layers = target_layers(self.unet, facts.targets)
        updates = read_updates(path, kernel_shapes(layers))
        if not layers.keys() <= self.kernels.keys():
            self.load_base({*layers, *self.kernels})
        everywhere = places(self.unet)
        for place, kernel in self.kernels.items():  # of earlier updates too
            new = updated(kernel, *updates[place], facts.scale) if place in updates else kernel
            everywhere[place].kernel.assign(new)

    def load_base(self, kept):
        """Load the pretrained weights, and keep the kernels of some places in float32, which the UNet may not hold them in.

        The UNet is built once more for it, at full size in a minute: KerasCV's weights can only be loaded into one.
        """
        with precision("float32"):
            base = self.backbone.unet(self.weights_dir)
        for weight, value in zip(self.unet.weights, base.weights):
            weight.assign(value)
        layers = places(base)
        self.kernels = {place: layers[place].kernel.numpy() for place in kept}


def merged_unet(backbone, weights_dir, path):
    """The pretrained UNet plus the low-rank updates of an epoch file, in float32.

    Raises:
        UserError: The file does not fit.
    """
    with precision("float32"):
        unet = backbone.unet(weights_dir)
    facts = read_facts(path)
    layers = target_layers(unet, facts.targets)
    for place, (a, b) in read_updates(path, kernel_shapes(layers)).items():
        layers[place].kernel.assign(updated(layers[place].kernel.numpy(), a, b, facts.scale))
    return unet


def unet_of_epoch(backbone, weights_dir, path):
    """The UNet of an epoch file of any kind, in float32; the pretrained one where that is None.

    Raises:
        UserError: The file does not fit.
    """
    if path and read_facts(path):
        return merged_unet(backbone, weights_dir, path)
    with precision("float32"):
        unet = backbone.unet(weights_dir, pretrained=not path)
    if path:
        UNetEpochs(unet, backbone, weights_dir).load(path)
    return unet


class LowRank:
    """Adaptation of the UNet by low-rank updates: what learns, and what an epoch's file holds, as in `WholeNetwork`.

    Args:
        diffusion: A `Diffusion` whose UNet holds the pretrained weights. Layers of it are changed.
        updates: `Facts` of the updates.
        seed: Of their first values.
        facts: What the card beside an epoch's file says of it, such as the `classes`.
    """

    part = "dif"

    def __init__(self, diffusion, updates, seed, facts=None):
        self.diffusion, self.updates, self.facts = diffusion, updates, facts or {}
        self.layers = target_layers(diffusion.unet, updates.targets)
        self.kernels = kernel_shapes(self.layers)
        for i, layer in enumerate(self.layers.values()):
            first = int(random_stream(seed, "low_rank_start", i).integers(2**31))
            enable_low_rank(layer, updates.rank, updates.alpha, first)

    @property
    def variables(self):
        """All that a continued run needs: A and B of each layer."""
        return [x for layer in self.layers.values() for x in (layer.lora_kernel_a, layer.lora_kernel_b)]

    @property
    def parameters(self):
        """How many numbers learn."""
        return sum(x.value.shape.num_elements() for x in self.variables)

    @property
    def bytes(self):
        """Size of an epoch file, and of the state of an interrupted run with both moments of Adam."""
        return 4 * self.parameters + BYTES_AN_ARRAY * len(self.variables), 12 * self.parameters

    def freeze_the_rest(self):
        """Let A and B learn, and nothing else: neither kernels nor biases nor normalisations."""
        self.diffusion.encoder.trainable = False
        self.diffusion.unet.trainable = True  # else none of its weights would learn
        learning = {id(x) for x in self.variables}
        for weight in self.diffusion.unet.weights:
            weight.trainable = id(weight) in learning

    def check(self, path):
        """Refuse an epoch that training cannot go on from (UserError)."""
        self.updates.refuse_to_continue(path)
        check_updates(path, self.kernels)

    def load(self, path):
        """Load an epoch to go on from (UserError)."""
        self.check(path)
        for place, pair in read_updates(path, self.kernels).items():
            layer = self.layers[place]
            for variable, value in zip((layer.lora_kernel_a, layer.lora_kernel_b), pair):
                variable.assign(value)

    def save(self, path):
        """Save an epoch file, atomically, and its card (UserError where a number is not finite)."""
        pairs = {place: (layer.lora_kernel_a, layer.lora_kernel_b) for place, layer in self.layers.items()}
        with with_card(path, self.facts) as partial:
            write_updates(partial, self.updates, pairs)
