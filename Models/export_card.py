"""The model card of an export: README.md with the facts that readers and hubs look for, and an example that runs."""

from Experiment.text import markdown
from Models.numerics import KERASCV

ANOTHERS = "other\nlicense_name: that-of-the-model-it-was-adapted-from"

EXAMPLE = """\
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
{imports}
folder, vae_folder, label, count, steps, scale = ".", {vae}, 0, 4, {steps}, {scale:g}
table = load_file(f"{{folder}}/class_embeddings.safetensors")
{unet}
vae = AutoencoderKL.from_pretrained(vae_folder, subfolder="vae").eval()
ddim = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
{patch}prompts = torch.cat([table["negative_prompt_embeds"].expand(count, -1, -1), table["prompt_embeds"][[label] * count]])
latents = torch.randn(count, 4, {side}, {side})
ddim.set_timesteps(steps)
ddim.timesteps = torch.arange(1, 1000, 1000 // steps).flip(0)  # those that the project's DDIM visits
with torch.inference_mode():
    for t in ddim.timesteps:
        null_noise, noise = unet(torch.cat([latents, latents]), t, prompts).sample.chunk(2)
        latents = ddim.step(null_noise + scale * (noise - null_noise), t, latents).prev_sample
    images = vae.decode(latents / {latent_scale}).sample
for i, pixels in enumerate(((images + 1) * 127.5).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()):
    Image.fromarray(pixels).save(f"{{i}}.png")
"""
UNET = 'unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").eval()'
# Low-rank updates beside the UNet that they are of.
UPDATED = """\
unet = UNet2DConditionModel.from_pretrained("a-stable-diffusion", subfolder="unet").eval()
unet.load_lora_adapter(folder, weight_name="pytorch_lora_weights.safetensors", prefix="unet")"""
IMPORTS = """
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
"""
PATCH = """\
for module in [{networks}]:
    if isinstance(module, torch.nn.GroupNorm):
        module.eps = 1e-5
    if isinstance(module, GEGLU):
        module.gelu = lambda x: F.gelu(x, approximate="tanh")
"""
DIFFERENCE = """\
The numbers of {networks} were trained with KerasCV's arithmetic: GELU by tanh where diffusers computes it by erf, and group
normalisations with an epsilon of 1e-5 where diffusers has 1e-6 in transformers and VAE. The five lines with `module` say so
to diffusers. Without them it computes something else: {measured}.
"""
# By `make parity-diffusers`.
MEASURED = (
    "with random full-size weights a pass of the UNet differs by up to 3e-4 where its numbers are of order 1, and after five "
    "steps 0.15 % of the pixel values by one grey level; with trained weights it has not been measured"
)
PIPELINE_NOTE = """\
A pipeline of diffusers is given no text encoder: `StableDiffusionPipeline.from_pretrained(".", text_encoder=None,
tokenizer=None)`, and rows of the table as `prompt_embeds` and `negative_prompt_embeds`. It sets its own timesteps{count}{without}.
"""
WITHOUT_LINES = ", and lacks the five lines"
VAE_NOTE = """\
The VAE is that of the model that was adapted: put the folder of a Stable Diffusion in diffusers' layout in the place of \
`a-stable-diffusion`.
"""
UNET_NOTE = """\
`pytorch_lora_weights.safetensors` holds low-rank updates (LoRA) of the UNet whose file has the SHA-256 `{base}`
(of several files: the SHA-256 of their hashes), and only on those numbers do they mean what they were trained for: put its
folder in diffusers' layout in the place of `a-stable-diffusion` (of KerasCV's own files the project's `export_weights.py`
writes one, with `--dif_epoch 0 --vae`). Alpha is in `lora_B` already. A pipeline takes them by `pipe.load_lora_weights(".")`.
"""
CARD = """\
---
library_name: diffusers
license: {licence}
pipeline_tag: unconditional-image-generation
tags:
- stable-diffusion
- class-conditional
- synthetic-data
---

# Stable Diffusion adapted to {title}

A class-conditional Stable Diffusion, made by the method of *Stable Diffusion Dataset Generation for Downstream Classification
Tasks* ([arXiv 2405.02698](https://arxiv.org/abs/2405.02698)): a Class Encoder takes the place of the text encoder. Its contexts
are the table `class_embeddings.safetensors`: `prompt_embeds` {shape}, one for each class, and `negative_prompt_embeds` for
guidance. There is no text: prompts mean nothing to it. Images are of {size} px.

| label | class |
|---|---|
{classes}

| | |
|---|---|
{facts}

## Generate

`pip install torch diffusers{more}`, and in this folder:

```python
{example}```

{difference}{pipeline_note}{unet_note}{vae_note}
The images are synthetic. They follow the training images, whose rights and biases they may carry, and the licence of the model
that was adapted.
"""


def example(kerascv, vae_here, steps, scale, side, latent_scale, updates=False):
    """The example of the card.

    Args:
        kerascv: Which of `unet` and `vae` have numbers that were trained with KerasCV's arithmetic.
        vae_here: Whether the VAE is in the folder.
        steps, scale: Inference steps and guidance scale.
        side: Of the latents.
        latent_scale: Factor that gives latents unit variance.
        updates: Whether low-rank updates are in the folder, and not the UNet.
    """
    networks = ", ".join(f"*{name}.modules()" for name in kerascv)
    return EXAMPLE.format(
        imports=IMPORTS if kerascv else "", patch=PATCH.format(networks=networks) if kerascv else "",
        vae='"."' if vae_here else '"a-stable-diffusion"', unet=UPDATED if updates else UNET, steps=steps, scale=scale,
        side=side, latent_scale=latent_scale,
    )  # fmt: skip


def pipeline_note(steps, kerascv):
    """What is said of a pipeline of diffusers: how its timesteps differ in number from the example's, and what it lacks."""
    ours = len(range(1, 1000, 1000 // steps))
    count = f", {steps} where the example has {ours}" if ours != steps else ""
    return PIPELINE_NOTE.format(count=count, without=WITHOUT_LINES if kerascv else "")


def card(backbone, numerics, classes, dataset, *, vae_here, foreign, steps, scale, facts, base=None):
    """The text of the card.

    Args:
        backbone: The `Backbone`.
        numerics: {`unet` and `vae`: what their numbers were trained with}, as in `Models.numerics`.
        classes, dataset: Names of the classes and of the dataset.
        vae_here: Whether the VAE is in the folder.
        foreign: Whether the pretrained weights were others than the backbone's own.
        steps, scale: Inference steps and guidance scale of the example.
        facts: {name: value} to be shown.
        base: SHA-256 of the UNet whose low-rank updates are in the folder; None where a UNet is.
    """
    kerascv = [name for name, followed in numerics.items() if followed == KERASCV]
    shape = (len(classes), *backbone.context_shape)
    return CARD.format(
        licence=ANOTHERS if foreign or not backbone.licence else backbone.licence.id,
        title=markdown(dataset), shape=shape, size=backbone.image_size,
        classes="\n".join(f"| {label} | {markdown(name)} |" for label, name in enumerate(classes)),
        facts="\n".join(f"| {name} | {markdown(value)} |" for name, value in facts.items()),
        example=example(kerascv, vae_here, steps, scale, backbone.latent_shape[0], backbone.latent_scale, bool(base)),
        difference=DIFFERENCE.format(networks=" and ".join(kerascv), measured=MEASURED) if kerascv else "",
        pipeline_note=pipeline_note(steps, kerascv) if vae_here and not base else "",
        more=" peft" if base else "", unet_note=UNET_NOTE.format(base=base) if base else "",
        vae_note="" if vae_here else VAE_NOTE,
    )  # fmt: skip
