"""What was adapted, as diffusers reads it: UNet and VAE with their configurations, the scheduler, the classes' contexts."""

import json
import struct

import numpy as np
from safetensors.numpy import save

from Experiment.errors import UserError
from Experiment.files import atomic_path, write_json
from Models.foreign_kinds import SCHEDULE
from Models.foreign_names import LAYERS, foreign_shapes, named_variables, to_foreign
from Models.lora_files import read_facts, read_updates
from Models.numerics import AS_PUBLISHED

WEIGHTS = "diffusion_pytorch_model.safetensors"
TABLE = "class_embeddings.safetensors"
UPDATES = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for
# A pipeline of diffusers without text: its prompts are the contexts of the table.
PIPELINE = {
    "_class_name": "StableDiffusionPipeline",
    **{name: [None, None] for name in ("feature_extractor", "image_encoder", "safety_checker", "text_encoder", "tokenizer")},
    "requires_safety_checker": False,
    "scheduler": ["diffusers", "DDIMScheduler"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}  # fmt: skip


def why_not(backbone):
    """Why a backbone cannot be expressed in diffusers, in one line; None if it can."""
    if backbone.heads:
        return None
    return (
        f"--backbone {backbone.name} cannot be exported: a UNet of diffusers tells the timestep in as many numbers as its "
        f"first level has channels, 64 here, and {backbone.name} in 320; its VAE has no counterpart there either."
    )


def export_unet(backbone, unet, folder):
    """Write a UNet and its configuration into a folder."""
    heads = list(backbone.heads)
    projections = [layer.proj1 for layer in unet.layers if type(layer).__name__ == "SpatialTransformer"]
    down, up = ["CrossAttnDownBlock2D"] * (len(heads) - 1), ["CrossAttnUpBlock2D"] * (len(heads) - 1)
    config = {
        "_class_name": "UNet2DConditionModel",
        "sample_size": backbone.latent_shape[0],
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": channels(unet, "ResBlock", len(heads)),
        "down_block_types": [*down, "DownBlock2D"],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": ["UpBlock2D", *up],
        "layers_per_block": LAYERS,
        "cross_attention_dim": backbone.context_shape[1],
        "attention_head_dim": heads[0] if len(set(heads)) == 1 else heads,
        "upcast_attention": backbone.context_shape[1] == 1024,  # as 2.1 has it: in float16 its attention overflows
        "use_linear_projection": not hasattr(projections[0], "conv2d"),
        "act_fn": "silu",
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
    }
    write_part(folder, config, named_variables(unet, "unet", len(heads)), unet)


def export_vae(backbone, image_encoder, decoder, folder):
    """Write a VAE and its configuration into a folder."""
    levels = len(backbone.heads)
    config = {
        "_class_name": "AutoencoderKL",
        "sample_size": backbone.image_size,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "block_out_channels": channels(image_encoder, "ResnetBlock", levels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": LAYERS,
        "act_fn": "silu",
        "norm_num_groups": 32,
        "scaling_factor": backbone.latent_scale,
    }
    parts = (("image_encoder", image_encoder), ("decoder", decoder))
    write_part(folder, config, [one for part, model in parts for one in named_variables(model, part, levels)], decoder)


def channels(model, kind, levels):
    """Channels of each level on the way down."""
    blocks = [layer for layer in model.layers if type(layer).__name__ == kind]
    return [block.output_dim for block in blocks[: LAYERS * levels : LAYERS]]


def write_part(folder, config, named, model):
    """Write the tensors of some variables, and the configuration when they are there."""
    following = getattr(model, "following", AS_PUBLISHED)
    arrays = {one.diffusers: (lambda one=one: to_foreign(np.asarray(one.variable, "float32"), one.matrix)) for one in named}
    shapes = {one.diffusers: foreign_shapes(tuple(one.variable.shape))[one.matrix] for one in named}
    # In words that our own reader heeds; diffusers asks for `format` alone.
    write_tensors(folder / WEIGHTS, shapes, arrays, {"format": "pt", "numerics": following.numerics})
    write_json(folder / "config.json", config)


def write_tensors(path, shapes, arrays, metadata):
    """Write a safetensors file of float32 tensors one at a time: the format is a header with places, then the numbers.

    Args:
        path: The file.
        shapes: {name: shape}.
        arrays: {name: function that returns the array}.
        metadata: {name: text}.

    Raises:
        UserError: A number is not finite; nothing is written then.
    """
    header, end = {"__metadata__": metadata}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)  # numbers begin at a multiple of 8
    with atomic_path(path) as partial, open(partial, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, array in arrays.items():
            numbers = array()
            if not np.isfinite(numbers).all():
                raise UserError(f"the weights are not finite, and not exported: {name}")
            file.write(np.ascontiguousarray(numbers, "<f4").data)


def export_updates(backbone, epoch, path):
    """Write the low-rank updates of an epoch as diffusers and PEFT read them: `lora_A` and `lora_B` of each module.

    Both count alpha / rank = 1 where a file names no alpha: so it is in B.

    Args:
        backbone: The `Backbone`.
        epoch: File of the updates.
        path: The file that is written.

    Raises:
        UserError: The updates do not fit the backbone, or are not finite.
    """
    import keras

    from Models.lora import kernel_shapes, target_layers

    facts = read_facts(epoch)
    with keras.StatelessScope(initialize_variables=False):  # names and shapes: no numbers
        unet = backbone.build["unet"](backbone)
        names = {id(one.variable): one.diffusers for one in named_variables(unet, "unet", len(backbone.heads))}
        layers = target_layers(unet, facts.targets)
        modules = {place: names[id(layer.kernel)].removesuffix(".weight") for place, layer in layers.items()}
        shapes = kernel_shapes(layers)
    arrays = {}
    for place, (a, b) in read_updates(epoch, shapes).items():
        b = facts.scale * b.reshape(*[1] * (a.ndim - 2), *b.shape)  # of a convolution: a kernel of one pixel
        arrays[f"unet.{modules[place]}.lora_A.weight"] = to_foreign(a)
        arrays[f"unet.{modules[place]}.lora_B.weight"] = to_foreign(b)
    write_tensors(
        path, {name: x.shape for name, x in arrays.items()},
        {name: (lambda x=x: x) for name, x in arrays.items()}, {"format": "pt"},
    )  # fmt: skip


def export_table(contexts, classes, path):
    """Write the contexts of all classes, and the unconditional one, as prompt embeddings.

    Args:
        contexts: float32 (C + 1, tokens, width); the last one is unconditional.
        classes: Names of the C classes.
        path: The file.
    """
    tensors = {"prompt_embeds": contexts[:-1], "negative_prompt_embeds": contexts[-1:]}
    tensors = {name: np.ascontiguousarray(array, "float32") for name, array in tensors.items()}
    with atomic_path(path) as partial:
        partial.write_bytes(save(tensors, {"format": "pt", "classes": json.dumps(list(classes))}))


def export_scheduler(prediction_type, folder):
    """Write the configuration of the sampler that the project uses: DDIM, whose last step goes to abar = 1."""
    config = {
        "_class_name": "DDIMScheduler",
        **SCHEDULE,
        "prediction_type": prediction_type,
        "clip_sample": False,
        "set_alpha_to_one": True,
        "steps_offset": 1,
        "timestep_spacing": "leading",
    }
    write_json(folder / "scheduler_config.json", config)
