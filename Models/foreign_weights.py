"""Stable Diffusion as people hold it: a folder of diffusers, or one file of the original layout; safetensors alone.

Other kinds of models are refused from headers and configurations, before a network is built. Then each variable of ours is
filled exactly once, from one tensor, read by itself; every tensor of the part is used or known to be none of it. Tensors
that are missing, left over or of other shapes are found when the network is there, before one is filled.
"""

import hashlib
import re

from Experiment.errors import UserError
from Experiment.files import read_json
from Models import foreign_kinds
from Models.foreign_kinds import UNET_CONFIG, VAE_CONFIG
from Models.foreign_names import foreign_shapes, from_foreign, named_variables
from Models.numerics import DIFFUSERS, EPSILON, Following, let_follow
from Models.tensor_files import Tensors, files_of_part, refuse_others
from Models.weight_cards import read_card

OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # names until diffusers 0.17
OF_DIFFUSERS = ("model_index.json", "unet", "vae", "transformer", "text_encoder", "scheduler")
UNET, VAE = "model.diffusion_model.", "first_stage_model."
PART_PREFIX = {"image_encoder": ("encoder.", "quant_conv."), "decoder": ("decoder.", "post_quant_conv.")}
# Of an original file: what is neither UNet nor VAE. Averages, text encoder, the buffers of its training.
LEFT_OUT = re.compile(
    r"(model_ema|cond_stage_model|conditioner|denoiser|embedding_manager|model\.decay|model\.num_updates)(\.|$)"
    r"|(alphas_cumprod|betas|sqrt_|log_one_minus|posterior_|lvlb_weights|logvar|scale_factor)"
    r"|first_stage_model\.(loss|model_ema)\."
    rf"|{foreign_kinds.V_MARK}$"
)


def is_foreign(path):
    """Whether a place of weights is a file, or a folder of a diffusers model, be it one that lacks what is needed."""
    return path.is_file() or any((path / name).exists() for name in OF_DIFFUSERS)


def foreign_weights(backbone, path):
    """The weights at a place for which `is_foreign` holds.

    Raises:
        UserError: The backbone has only weights of its own.
    """
    if not backbone.heads:
        raise UserError(f"--backbone {backbone.name} has no weights but its own: {path} is for sd1 or sd2.")
    return (OriginalFile if path.is_file() else DiffusersFolder)(backbone, path)


class ForeignWeights:
    """Weights of Stable Diffusion in safetensors.

    Args:
        backbone: The `Backbone` whose parts are filled.
        path: Of the file or folder.
    """

    layout = None  # which of the names of `Named`

    def __init__(self, backbone, path):
        self.backbone, self.path = backbone, path

    def files(self, part):
        """The files that hold a part."""
        raise NotImplementedError

    def tensors(self, part):
        """The tensors of a part, a `Tensors`, and {name in the layout: name in the file}.

        Raises:
            UserError: They are those of another kind of model.
        """
        raise NotImplementedError

    def following(self, part):
        """What the numbers of a part were trained with, a `Following`: an export of ours says where that was KerasCV."""
        numerics = Tensors(self.files(part)[:1]).metadata.get("numerics", DIFFUSERS)
        numerics = numerics if numerics in EPSILON else DIFFUSERS
        return Following(numerics, self.prediction_type() if part == "unet" else "epsilon")

    def check(self, part):
        """Refuse other kinds of models and files, by headers and configurations (UserError)."""
        tensors, places = self.tensors(part)
        if not places:
            raise UserError(f"{self.path} holds nothing of the {part}; {foreign_kinds.FITS}.")
        tensors.refuse_types(places.values())
        self.following(part)

    def hash(self, part):
        """SHA-256 of the file that holds a part, or of those of its shards, once what it holds is known to fit."""
        self.check(part)
        hashes = [read_card(path)["sha256"] for path in self.files(part)]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()

    def fill(self, model, part):
        """Fill every variable of a network with its tensor, and let it follow them. Returns the network.

        Raises:
            UserError: Tensors are missing, left over, of other shapes or types, or not finite.
        """
        tensors, places = self.tensors(part)
        named = named_variables(model, part, len(self.backbone.heads))
        wanted = {getattr(one, self.layout): one.variable for one in named}
        self.refuse_misfits(part, tensors, places, {name: tuple(v.shape) for name, v in wanted.items()})
        for name, variable in wanted.items():
            variable.assign(from_foreign(tensors.read(places[name]), variable.shape))
        return let_follow(model, self.following(part))

    def refuse_misfits(self, part, tensors, places, shapes):
        missing, more = sorted(shapes.keys() - places.keys()), sorted(places.keys() - shapes.keys())
        if missing or more:
            what = [f"lacks {len(missing)} tensors ({', '.join(missing[:3])})"] if missing else []
            what += [f"has {len(more)} tensors that it does not know ({', '.join(more[:3])})"] if more else []
            raise UserError(f"the {part} in {self.path} {' and '.join(what)}; {foreign_kinds.FITS}.")
        for name, shape in shapes.items():
            if (found := tensors.shapes[places[name]]) not in foreign_shapes(shape):
                expected = foreign_shapes(shape)[0]
                raise UserError(f"{self.path}: the tensor {places[name]} has the shape {found}, not {expected}.")


class DiffusersFolder(ForeignWeights):
    """A folder as diffusers saves it: `unet/`, `vae/` and `scheduler/`, each with its configuration."""

    layout = "diffusers"

    def folder(self, part):
        folder = self.path / ("unet" if part == "unet" else "vae")
        if not folder.is_dir():
            there = "; it has a transformer/: Stable Diffusion 3, or another later one" * (self.path / "transformer").is_dir()
            raise UserError(f"there is no {folder.name}/ in {self.path}{there}; {foreign_kinds.FITS}.")
        return folder

    def files(self, part):
        return files_of_part(self.folder(part))

    def config(self, part):
        path = self.folder(part) / "config.json"
        if not path.is_file():
            raise UserError(f"there is no config.json in {path.parent}.")
        return path, read_json(path)

    def tensors(self, part):
        path, config = self.config(part)
        if part == "unet":
            channels, width = config.get("in_channels", foreign_kinds.LATENTS), config.get("cross_attention_dim", 1280)
            foreign_kinds.refuse_other_shapes(path, self.backbone, (0, channels, 3, 3), (0, width))
            foreign_kinds.refuse_other_config(path, config, UNET_CONFIG)
            foreign_kinds.refuse_other_heads(path, config, self.backbone.heads)
        else:
            foreign_kinds.refuse_other_config(path, config, VAE_CONFIG)
        tensors = Tensors(self.files(part))
        if what := foreign_kinds.first_mark(foreign_kinds.MARKS, tensors.shapes):
            raise UserError(f"{self.folder(part)} holds {what}; {foreign_kinds.FITS}.")
        places = {with_new_names(name): name for name in tensors.shapes}
        if len(places) < len(tensors.shapes):
            twice = sorted(tensors.shapes.keys() - set(places.values()))
            raise UserError(f"{self.folder(part)} holds tensors under old and new names at once: {', '.join(twice[:3])}.")
        return tensors, places if part == "unet" else of_part(part, places)

    def prediction_type(self):
        path = self.path / "scheduler" / "scheduler_config.json"
        if path.is_file():
            return foreign_kinds.prediction_of_scheduler(path)
        if self.backbone.context_shape[1] == 768:
            return "epsilon"
        raise UserError(f"there is no {path}, which says whether the UNet predicts noise (2.x-base) or v (2.x at 768 px).")


class OriginalFile(ForeignWeights):
    """One file of the original layout: UNet, VAE, and text encoder and averages, which are left out."""

    layout = "ldm"

    def files(self, part):
        return [self.path]

    def tensors(self, part):
        refuse_others(self.path)
        tensors = Tensors([self.path])
        first = tensors.shapes.get(f"{UNET}input_blocks.0.0.weight")
        foreign_kinds.refuse_other_shapes(self.path, self.backbone, first, None)
        foreign_kinds.refuse_other_files(self.path, tensors.shapes, UNET)
        if foreign_kinds.ZERO_SNR_MARK in tensors.shapes:
            raise UserError(f"{self.path} is marked ztsnr: only the schedule of Stable Diffusion is computed.")
        if unknown := [n for n in tensors.shapes if not n.startswith((UNET, VAE)) and not LEFT_OUT.match(n)]:
            shown = ", ".join(sorted(unknown)[:3])
            raise UserError(
                f"{self.path} has {len(unknown)} tensors that Stable Diffusion does not ({shown}); {foreign_kinds.FITS}."
            )
        foreign_kinds.refuse_other_shapes(self.path, self.backbone, first, self.context_kernel(tensors))
        if "scale_factor" in tensors.shapes:
            foreign_kinds.refuse_other_scale(self.path, tensors.read("scale_factor"))
        if "alphas_cumprod" in tensors.shapes:
            foreign_kinds.refuse_other_schedule(self.path, tensors.read("alphas_cumprod"))
        prefix = UNET if part == "unet" else VAE
        kept = (name for name in tensors.shapes if name.startswith(prefix) and not LEFT_OUT.match(name))
        places = {name.removeprefix(prefix): name for name in kept}
        return tensors, places if part == "unet" else of_part(part, places)

    def context_kernel(self, tensors):
        return tensors.shapes.get(f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight")

    def prediction_type(self):
        tensors = Tensors([self.path])
        v_marked = foreign_kinds.V_MARK in tensors.shapes
        return foreign_kinds.prediction_of_file(self.path, tensors.metadata, self.backbone.context_shape[1], v_marked)


def with_new_names(name):
    """The name of a tensor of diffusers as later versions have it: the attention of the VAE was renamed."""
    for old, new in OLD_ATTENTION.items():
        name = re.sub(rf"^((?:en|de)coder\.mid_block\.attentions\.0\.){old}\.", rf"\g<1>{new}.", name)
    return name


def of_part(part, places):
    """Of the tensors of a VAE those of its encoder or decoder, and those that belong to neither."""
    others = tuple(prefix for other, prefixes in PART_PREFIX.items() if other != part for prefix in prefixes)
    return {name: place for name, place in places.items() if not name.startswith(others)}
