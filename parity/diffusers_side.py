"""The side of diffusers in `make parity-diffusers`: runs in its environment, writes into a folder.

    python diffusers_side.py FOLDER SHAPE        SHAPE: a name in shapes.py

It gives a UNet and VAE of a shape of Stable Diffusion random weights, saves them as a folder of diffusers and as one file of
the original layout, and writes what they compute to expected.npz. The names of the original layout are written here by rules
of its own, and the file is read back by diffusers' own converters before it counts.
"""

import json
import re
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors.torch import load_file, save_file
from shapes import SHAPES

LABELS, CLASSES = [0, 3, 7], 10
STEPS, SCALE = 5, 1.5
SEED = 1234
SMALLEST = 2.0**-16  # of what float16 and bfloat16 hold alike


def build(shape):
    lowest = len(shape.widths) - 1
    unet = UNet2DConditionModel(
        sample_size=shape.latent_size, block_out_channels=shape.widths, layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D",) * lowest + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * lowest, cross_attention_dim=shape.context[1],
        attention_head_dim=shape.heads[0] if len(set(shape.heads)) == 1 else shape.heads,
        use_linear_projection=shape.linear,
    )  # fmt: skip
    levels = len(shape.vae_widths)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=shape.vae_widths, layers_per_block=2, latent_channels=4, sample_size=shape.image_size,
    )  # fmt: skip
    return randomise(unet, "unet"), randomise(vae, "vae")


@torch.no_grad()
def randomise(model, part):
    """Give every weight random numbers, those that start as zeros and ones too, which two tensors could else share."""
    generator = torch.Generator().manual_seed(SEED + len(part))
    for name, weight in model.named_parameters():
        value = torch.randn(weight.shape, generator=generator)
        if weight.dim() > 1:
            value *= float(np.prod(weight.shape[1:])) ** -0.5  # keeps the variance of what goes through
            if name == "decoder.conv_out.weight":
                value *= 0.5  # few pixels outside -1..1, where both sides would agree by being clipped
        else:
            value = 0.2 * value + (1 if "norm" in name and name.endswith("weight") else 0)
        value = value.to(torch.bfloat16).float()
        weight.copy_(torch.where(value.abs() < SMALLEST, torch.zeros(()), value))
    print(f"{part}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(model.state_dict())} tensors", flush=True)
    return model.eval()


def original_unet_name(name):
    """The name that a tensor of a diffusers UNet has in the original files."""
    fixed = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
             "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}  # fmt: skip
    stem, end = name.rsplit(".", 1)
    if stem in fixed:
        return f"{fixed[stem]}.{end}"
    inner = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
             "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
    place, i, kind, j, rest = re.fullmatch(r"(down|up|mid)_blocks?\.?(\d?)\.(\w+)\.(\d)\.(.+)", name).groups()
    i, j = int(i or 0), int(j)
    if kind == "resnets":
        rest = inner[rest.rsplit(".", 1)[0]] + "." + end
    if place == "mid":
        return f"middle_block.{2 * j if kind == 'resnets' else 1}.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{3 * i + 3}.0.op.{end}"
    if kind == "upsamplers":
        return f"output_blocks.{3 * i + 2}.{1 if i == 0 else 2}.{rest}"
    number = 3 * i + j + 1 if place == "down" else 3 * i + j
    return f"{'input' if place == 'down' else 'output'}_blocks.{number}.{0 if kind == 'resnets' else 1}.{rest}"


def original_vae_name(name, levels):
    """The name that a tensor of a diffusers VAE of some levels has in the original files."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.", lambda m: f"up.{levels - 1 - int(m[1])}.block.", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    for new, old in (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
        name = name.replace(f"mid_block.attentions.0.{new}.", f"mid.attn_1.{old}.")
    return name


def save_original(unet, vae, path, shape):
    """Save one file of the original layout, with a text encoder and averages that a reader has to leave out."""
    tensors = {f"model.diffusion_model.{original_unet_name(name)}": value for name, value in unet.state_dict().items()}
    for name, value in vae.state_dict().items():
        kernel = "mid_block.attentions" in name and value.dim() == 2
        tensors[f"first_stage_model.{original_vae_name(name, len(shape.vae_widths))}"] = (
            value[:, :, None, None] if kernel else value
        )
    dtype = getattr(torch, shape.file_type)
    tensors = {name: value.to(dtype) for name, value in tensors.items()}
    tensors |= {
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.diffusion_modeltime_embed0weight": torch.ones(4, 4),
        "alphas_cumprod": torch.from_numpy(alphas_cumprod()),
        "betas": torch.zeros(1000),
    }
    metadata = {"modelspec.prediction_type": shape.prediction_type} if shape.said == "metadata" else {}
    save_file(tensors, path, metadata={"format": "pt"} | metadata)
    if shape.said == "yaml":  # as the original's configurations put it
        word = {"epsilon": "eps", "v_prediction": "v"}[shape.prediction_type]
        path.with_suffix(".yaml").write_text(f'model:\n  params:\n    parameterization: "{word}"\n')


def alphas_cumprod():
    return np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).astype("float32")


def check_original(unet, vae, path):
    """Let diffusers read the file of the original layout: it must be the same weights."""
    read = load_file(path)
    converted = convert_ldm_unet_checkpoint(dict(read), dict(unet.config))
    converted |= {f"vae {name}": value for name, value in convert_ldm_vae_checkpoint(dict(read), dict(vae.config)).items()}
    own = {**unet.state_dict(), **{f"vae {name}": value for name, value in vae.state_dict().items()}}
    assert converted.keys() == own.keys(), converted.keys() ^ own.keys()
    assert all(torch.equal(value.float().reshape(own[name].shape), own[name]) for name, value in converted.items())


def scheduler(shape):
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=True,
        steps_offset=1, prediction_type=shape.prediction_type,
    )  # fmt: skip


@torch.inference_mode()
def generate(unet, vae, ddim, noise, contexts):
    """Images uint8 (B, H, W, 3): guided DDIM, at the timesteps that this project visits."""
    latents = noise
    ddim.set_timesteps(STEPS)
    assert ddim.timesteps.tolist() == list(range(1, 1000, 1000 // STEPS))[::-1]
    rows = torch.cat([contexts[[CLASSES] * len(LABELS)], contexts[LABELS]])
    for t in ddim.timesteps:
        null_output, output = unet(torch.cat([latents, latents]), t, rows).sample.chunk(2)
        latents = ddim.step(null_output + SCALE * (output - null_output), t, latents).prev_sample
    images = vae.decode(latents / 0.18215).sample
    return ((images + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def channels_last(tensor):
    return tensor.permute(0, 2, 3, 1).numpy()


@torch.inference_mode()
def main(folder, shape):
    unet, vae = build(shape)
    for part, model in (("unet", unet), ("vae", vae)):
        model.to(getattr(torch, shape.folder_type))
        model.save_pretrained(folder / "diffusers" / part, max_shard_size=shape.shard)
        model.float()
    scheduler(shape).save_pretrained(folder / "diffusers" / "scheduler")
    save_original(unet, vae, folder / "original.safetensors", shape)
    check_original(unet, vae, folder / "original.safetensors")
    for path in sorted(folder.rglob("*.safetensors")):
        print(f"    -> {path.relative_to(folder)}, {path.stat().st_size:,} bytes", flush=True)

    rng, side, small = np.random.default_rng(SEED), shape.image_size, shape.latent_size
    images = rng.uniform(-1, 1, (3, 3, side, side)).astype("float32")
    latents = rng.standard_normal((3, 4, small, small), dtype="float32")
    contexts = rng.standard_normal((CLASSES + 1, *shape.context), dtype="float32")
    noise, timesteps = torch.from_numpy(rng.standard_normal(latents.shape, dtype="float32")), [1, 500, 999]
    vae_in, x = torch.from_numpy(images), torch.from_numpy(latents)
    c = torch.from_numpy(contexts)
    np.savez(
        folder / "expected.npz", images=channels_last(vae_in), latents=channels_last(x), contexts=contexts, labels=LABELS,
        timesteps=timesteps, initial_noise=channels_last(noise), steps=STEPS, scale=SCALE,
        moments=channels_last(vae.encode(vae_in).latent_dist.parameters),
        decoded=channels_last(vae.decode(x / 0.18215).sample),
        predicted=channels_last(unet(x, torch.tensor(timesteps), c[LABELS]).sample),
        generated=generate(unet, vae, scheduler(shape), noise, c),
    )  # fmt: skip


if __name__ == "__main__":
    import diffusers

    print(json.dumps({"diffusers": diffusers.__version__, "torch": torch.__version__}), flush=True)
    main(Path(sys.argv[1]), SHAPES[sys.argv[2]])
