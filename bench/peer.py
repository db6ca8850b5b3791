"""The peer: Hugging Face diffusers on PyTorch, the same architecture and the same work. Runs in an environment of its own.

    python -m bench.peer DTYPE        DTYPE: bfloat16 or float32; torch and diffusers are needed, nothing else

Random weights; both passes of guidance in one batch, as its own pipelines do.
"""

import sys

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from bench.worker import pipe_for_answers, serve

BATCH, STEPS, SCALE = 8, 10, 1.5
LATENT, TOKENS, WIDTH = 16, 100, 768


def build(dtype):
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=LATENT,
        in_channels=4,
        out_channels=4,
        block_out_channels=(320, 640, 1280, 1280),
        layers_per_block=2,
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        sample_size=8 * LATENT,
    )
    return unet.to(dtype).eval(), vae.to(dtype).eval()


def main(dtype):
    answers = pipe_for_answers()
    unet, vae = build(dtype)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )
    noise = torch.randn(BATCH, 4, LATENT, LATENT, dtype=dtype)
    contexts = torch.randn(2 * BATCH, TOKENS, WIDTH, dtype=dtype)

    @torch.inference_mode()
    def generate(steps=STEPS):
        latents = noise
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            eps = unet(torch.cat([latents, latents]), t, contexts).sample
            null_eps, eps = eps.chunk(2)
            latents = scheduler.step(null_eps + SCALE * (eps - null_eps), t, latents).prev_sample
        images = vae.decode(latents / 0.18215).sample
        return ((images.float() + 1) * 127.5).clamp(0, 255).to(torch.uint8).numpy()

    @torch.inference_mode()
    def one_pass():
        return unet(noise, 500, contexts[:BATCH]).sample.float().numpy()

    print(f"torch {torch.__version__}, {sum(p.numel() for p in unet.parameters()):,} parameters", file=sys.stderr)
    serve({"generation": generate, "warm": lambda: generate(1), "unet": one_pass}, answers)


if __name__ == "__main__":
    main(getattr(torch, sys.argv[1]))
