"""A Stable Diffusion of small widths in others' layouts, for tests: the structure of the real one, random numbers."""

import json

import numpy as np
from safetensors.numpy import save_file

from Models.foreign_names import named_variables, to_foreign

PARTS = ("image_encoder", "unet", "decoder")
WIDTHS = (32, 64)  # groups of normalisation have 32 channels at least
HEADS = (2, 4)
SIDE, CONTEXT = 8, (3, 8)
UNET_CONFIG = {"_class_name": "UNet2DConditionModel", "in_channels": 4, "cross_attention_dim": CONTEXT[1], "attention_head_dim": [2, 4]}  # fmt: skip
VAE_CONFIG = {"_class_name": "AutoencoderKL", "latent_channels": 4, "scaling_factor": 0.18215}
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
             "prediction_type": "epsilon"}  # fmt: skip


def small_unet(backbone):
    """KerasCV's UNet of Stable Diffusion 1.x: narrower, and of two levels."""
    import keras
    from keras_cv.src.models.stable_diffusion.diffusion_model import ResBlock, SpatialTransformer, Upsample
    from keras_cv.src.models.stable_diffusion.padded_conv2d import PaddedConv2D

    layers, (first, second) = keras.layers, WIDTHS
    latent, time_input = layers.Input((SIDE // 2, SIDE // 2, 4)), layers.Input((320,))
    context = layers.Input(backbone.context_shape)
    time = layers.Dense(64)(layers.Activation("swish")(layers.Dense(64)(time_input)))

    def attend(x, heads):
        return SpatialTransformer(heads, x.shape[-1] // heads)([x, context])

    x = PaddedConv2D(first, 3, padding=1)(latent)  # (B, 4, 4, 32)
    skips = [x]
    for _ in range(2):
        x = attend(ResBlock(first)([x, time]), HEADS[0])
        skips.append(x)
    x = PaddedConv2D(first, 3, strides=2, padding=1)(x)  # (B, 2, 2, 32)
    skips.append(x)
    for _ in range(2):
        x = ResBlock(second)([x, time])  # (B, 2, 2, 64)
        skips.append(x)
    x = ResBlock(second)([attend(ResBlock(second)([x, time]), HEADS[1]), time])
    for _ in range(3):
        x = ResBlock(second)([layers.Concatenate()([x, skips.pop()]), time])
    x = Upsample(second)(x)  # (B, 4, 4, 64)
    for _ in range(3):
        x = attend(ResBlock(first)([layers.Concatenate()([x, skips.pop()]), time]), HEADS[0])
    x = layers.Activation("swish")(layers.GroupNormalization(epsilon=1e-5)(x))
    return keras.Model([latent, time_input, context], PaddedConv2D(4, 3, padding=1)(x), name="unet")


def small_image_encoder(backbone):
    import keras
    from keras_cv.src.models.stable_diffusion.attention_block import AttentionBlock
    from keras_cv.src.models.stable_diffusion.padded_conv2d import PaddedConv2D
    from keras_cv.src.models.stable_diffusion.resnet_block import ResnetBlock

    parts = [keras.layers.Input((None, None, 3)), PaddedConv2D(WIDTHS[0], 3, padding=1)]
    for i, width in enumerate(WIDTHS):
        parts += [ResnetBlock(width), ResnetBlock(width)]
        parts += [PaddedConv2D(width, 3, padding=((0, 1), (0, 1)), strides=2)] if i == 0 else []
    width = WIDTHS[-1]
    parts += [ResnetBlock(width), AttentionBlock(width), ResnetBlock(width)]
    parts += [keras.layers.GroupNormalization(epsilon=1e-5), keras.layers.Activation("swish")]
    return keras.Sequential([*parts, PaddedConv2D(8, 3, padding=1), PaddedConv2D(8, 1)], name="image_encoder")


def small_decoder(backbone):
    import keras
    from keras_cv.src.models.stable_diffusion.attention_block import AttentionBlock
    from keras_cv.src.models.stable_diffusion.padded_conv2d import PaddedConv2D
    from keras_cv.src.models.stable_diffusion.resnet_block import ResnetBlock

    width = WIDTHS[-1]
    parts = [keras.layers.Input((SIDE // 2, SIDE // 2, 4)), PaddedConv2D(4, 1), PaddedConv2D(width, 3, padding=1)]
    parts += [ResnetBlock(width), AttentionBlock(width), ResnetBlock(width)]
    for i in (1, 0):
        parts += [ResnetBlock(WIDTHS[i]) for _ in range(3)]
        parts += [keras.layers.UpSampling2D(2), PaddedConv2D(WIDTHS[i], 3, padding=1)] if i else []
    parts += [keras.layers.GroupNormalization(epsilon=1e-5), keras.layers.Activation("swish")]
    return keras.Sequential([*parts, PaddedConv2D(3, 3, padding=1)], name="decoder")


BUILDERS = {"image_encoder": small_image_encoder, "unet": small_unet, "decoder": small_decoder}


def small_backbone():
    from Models.backbones import Backbone

    return Backbone(
        name="small", image_size=SIDE, downsampling=2, latent_scale=0.18215, context_shape=CONTEXT, hidden_units=5,
        block=4, build=BUILDERS, files={}, heads=HEADS,
        training={"enc": {"epochs": 1, "batch_size": 200, "lr": 0.1}, "dif": {"epochs": 1, "batch_size": 200, "lr": 1e-3}},
    )  # fmt: skip


def foreign_tensors(models, seed=0):
    """Random numbers for every tensor of some parts: {part: {(original name, diffusers' name): (array, as a matrix)}}.

    They are bfloat16's, so that every type of file holds them exactly.
    """
    import ml_dtypes

    rng, found = np.random.default_rng(seed), {}
    for part, model in models.items():
        found[part] = {}
        for one in named_variables(model, part, len(HEADS)):
            shape = one.variable.shape
            value = rng.standard_normal(shape, dtype="float32")
            value *= 0.2 if len(shape) == 1 else np.prod(shape[:-1]) ** -0.5
            value = (value + ("gamma" in one.variable.path)).astype(ml_dtypes.bfloat16).astype("float32")
            found[part][one.ldm, one.diffusers] = to_foreign(value), to_foreign(value, one.matrix)
    return found


def write_folder(folder, tensors, shards=1, index=True, dtype="float32", scheduler=SCHEDULER, old_names=False):
    """Write a folder of diffusers."""
    for name, parts, config in (("unet", ("unet",), UNET_CONFIG), ("vae", ("image_encoder", "decoder"), VAE_CONFIG)):
        inside = folder / name
        inside.mkdir(parents=True, exist_ok=True)
        (inside / "config.json").write_text(json.dumps(config))
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
