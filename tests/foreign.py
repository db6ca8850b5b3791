"""A Stable Diffusion of small widths in others' layouts, for tests: the structure of the real one, random numbers."""

import json
from functools import partial

import numpy as np
from safetensors.numpy import save_file

from Models.foreign_names import named_variables, to_foreign

PARTS = ("image_encoder", "unet", "decoder")
WIDTHS, HEADS = (32, 64), (2, 4)  # of each level; groups of normalisation have 32 channels at least
SIDE, CONTEXT = 8, (3, 8)
UNET_CONFIG = {"_class_name": "UNet2DConditionModel", "in_channels": 4, "cross_attention_dim": CONTEXT[1]}
VAE_CONFIG = {"_class_name": "AutoencoderKL", "latent_channels": 4, "scaling_factor": 0.18215}
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
             "prediction_type": "epsilon"}  # fmt: skip


def small_unet(backbone, widths=WIDTHS, linear=False):
    """KerasCV's UNet, narrower, and of one or two levels; `linear`: matrices stand around its transformers, as in 2.x."""
    import keras
    from keras_cv.src.models.stable_diffusion.diffusion_model import ResBlock, SpatialTransformer, Upsample
    from keras_cv.src.models.stable_diffusion.padded_conv2d import PaddedConv2D

    layers, levels = keras.layers, len(backbone.heads)
    latent, time_input = layers.Input(backbone.latent_shape), layers.Input((320,))
    context = layers.Input(backbone.context_shape)
    time = layers.Dense(4 * widths[0])(layers.Activation("swish")(layers.Dense(4 * widths[0])(time_input)))

    def block(x, level, attends):
        x, heads = ResBlock(widths[level])([x, time]), backbone.heads[level]
        return SpatialTransformer(heads, widths[level] // heads, fully_connected=linear)([x, context]) if attends else x

    x = PaddedConv2D(widths[0], 3, padding=1)(latent)
    skips = [x]
    for level in range(levels):
        for _ in range(2):
            x = block(x, level, level < levels - 1)
            skips.append(x)
        if level < levels - 1:
            x = PaddedConv2D(widths[level], 3, strides=2, padding=1)(x)
            skips.append(x)
    x = block(block(x, levels - 1, True), levels - 1, False)
    for level in reversed(range(levels)):
        for _ in range(3):
            x = block(layers.Concatenate()([x, skips.pop()]), level, level < levels - 1)
        x = Upsample(widths[level])(x) if level else x
    x = layers.Activation("swish")(layers.GroupNormalization(epsilon=1e-5)(x))
    return keras.Model([latent, time_input, context], PaddedConv2D(4, 3, padding=1)(x), name="unet")


def small_vae(part):
    """The builder of KerasCV's image encoder or decoder, narrower, and of one or two levels."""

    def build(backbone):
        import keras
        from keras_cv.src.models.stable_diffusion.attention_block import AttentionBlock
        from keras_cv.src.models.stable_diffusion.padded_conv2d import PaddedConv2D
        from keras_cv.src.models.stable_diffusion.resnet_block import ResnetBlock

        layers, widths = keras.layers, WIDTHS[: len(backbone.heads)]
        middle = [ResnetBlock(widths[-1]), AttentionBlock(widths[-1]), ResnetBlock(widths[-1])]
        end = [layers.GroupNormalization(epsilon=1e-5), layers.Activation("swish")]
        if part == "image_encoder":
            parts = [layers.Input((None, None, 3)), PaddedConv2D(widths[0], 3, padding=1)]
            for level, width in enumerate(widths):
                down = PaddedConv2D(width, 3, padding=((0, 1), (0, 1)), strides=2)
                parts += [ResnetBlock(width), ResnetBlock(width)] + [down] * (level < len(widths) - 1)
            return keras.Sequential([*parts, *middle, *end, PaddedConv2D(8, 3, padding=1), PaddedConv2D(8, 1)], name=part)
        parts = [
            layers.Input(backbone.latent_shape),
            layers.Rescaling(1 / backbone.latent_scale),
            PaddedConv2D(4, 1),
            PaddedConv2D(widths[-1], 3, padding=1),
            *middle,
        ]
        for level in reversed(range(len(widths))):
            parts += [ResnetBlock(widths[level]) for _ in range(3)]
            parts += [layers.UpSampling2D(2), PaddedConv2D(widths[level], 3, padding=1)] * bool(level)
        return keras.Sequential([*parts, *end, PaddedConv2D(3, 3, padding=1)], name=part)

    return build


def small_backbone(levels=2, name="small", side=SIDE, widths=WIDTHS, heads=HEADS, linear=False):
    """A backbone of small images with the structure of Stable Diffusion, but for its number of levels.

    Args:
        levels: One or two.
        name: On the command line.
        side: Of its images, px.
        widths, heads: Channels and attention heads of the UNet's levels.
        linear: Whether matrices stand around its transformers, as in 2.x.
    """
    from Models.backbones import Backbone

    training = {"epochs": 1, "batch_size": 500, "lr": 1e-3}
    return Backbone(
        name=name, image_size=side, downsampling=2 ** (levels - 1), latent_scale=0.18215, context_shape=CONTEXT,
        hidden_units=5, block=4, files={}, heads=tuple(heads[:levels]), training=dict.fromkeys(("enc", "dif", "lora"), training),
        build={"image_encoder": small_vae("image_encoder"), "unet": partial(small_unet, widths=widths, linear=linear), "decoder": small_vae("decoder")},
    )  # fmt: skip


def foreign_tensors(models, levels=2, seed=0):
    """Random numbers for every tensor of some parts: {part: {(original name, diffusers' name): (array, as a matrix)}}.

    They are bfloat16's, and none is tiny, so that every type of file holds them exactly.
    """
    import ml_dtypes

    rng, found = np.random.default_rng(seed), {}
    for part, model in models.items():
        found[part] = {}
        for one in named_variables(model, part, levels):
            shape = one.variable.shape
            value = rng.standard_normal(shape, dtype="float32")
            value *= 0.2 if len(shape) == 1 else np.prod(shape[:-1]) ** -0.5
            value = (value + ("gamma" in one.variable.path)).astype(ml_dtypes.bfloat16).astype("float32")
            value[np.abs(value) < 2.0**-16] = 0
            found[part][one.ldm, one.diffusers] = to_foreign(value), to_foreign(value, one.matrix)
    return found


def write_folder(folder, tensors, shards=1, index=True, dtype="float32", scheduler=SCHEDULER, old_names=False, heads=HEADS):
    """Write a folder of diffusers."""
    for name, parts, config in (("unet", ("unet",), UNET_CONFIG), ("vae", ("image_encoder", "decoder"), VAE_CONFIG)):
        inside = folder / name
        inside.mkdir(parents=True, exist_ok=True)
        (inside / "config.json").write_text(json.dumps(config | ({"attention_head_dim": heads} if name == "unet" else {})))
        arrays = {names[1]: values[1].astype(dtype) for part in parts for names, values in tensors[part].items()}
        if old_names:
            for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
                place = "mid_block.attentions.0."
                arrays = {n.replace(f"{place}{new}.", f"{place}{old}.") if name == "vae" else n: a for n, a in arrays.items()}  # fmt: skip
        if shards == 1:
            save_file(arrays, inside / "diffusion_pytorch_model.safetensors")
            continue
        files = [f"diffusion_pytorch_model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
        places = {tensor: files[i % shards] for i, tensor in enumerate(arrays)}
        for file in files:
            save_file({n: a for n, a in arrays.items() if places[n] == file}, inside / file)
        if index:
            content = json.dumps({"metadata": {}, "weight_map": places})
            (inside / "diffusion_pytorch_model.safetensors.index.json").write_text(content)
    if scheduler:
        (folder / "scheduler").mkdir(exist_ok=True)
        (folder / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return folder


def original_arrays(tensors, dtype="float32"):
    """The tensors of a file of the original layout, with some that are left out."""
    arrays = {"cond_stage_model.transformer.text_model.x": np.ones(3, "float32"), "model_ema.decay": np.ones((), "float32"),
              "model_ema.diffusion_modeltime_embed0weight": np.ones(2, "float32")}  # fmt: skip
    for part, of_part in tensors.items():
        prefix = "model.diffusion_model." if part == "unet" else "first_stage_model."
        arrays |= {prefix + names[0]: values[0].astype(dtype) for names, values in of_part.items()}
    return arrays


def write_original(path, tensors, dtype="float32", metadata=None):
    """Write a file of the original layout."""
    save_file(original_arrays(tensors, dtype), path, metadata=metadata)
    return path
