"""The denoising loss of an adapted diffusion model, image by image: what it has trained on it may denoise better."""

import numpy as np

from Experiment.progress import progress
from Experiment.randomness import random_stream
from Models.denoising import denoising_model

TIMESTEPS = tuple(range(50, 1000, 100))  # of 1000
BATCH = 96  # at most


def denoising_losses(diffusion, moments, labels, numbers, seed):
    """Mean squared error of the noise that a model predicts, mean over fixed timesteps: float64 (N,).

    Timesteps and noise of an image are functions of its number alone, and its latents are the mean of the VAE's.

    Args:
        diffusion: A `Diffusion`.
        moments: VAE moments float32 (N, h, w, 8).
        labels: int (N,): the condition.
        numbers: int (N,): addresses of the noise, different for every image.
        seed: The user's seed.
    """
    backbone, steps = diffusion.backbone, diffusion.backbone.schedule.num_timesteps
    model = denoising_model(
        diffusion.unet, diffusion.encoder, backbone.latent_scale, 1, backbone.schedule, backbone.prediction_type
    )
    classes, shape = diffusion.encoder.input_shape[-1], (*moments.shape[1:3], moments.shape[3] // 2)
    size, losses = max(2, min(BATCH, backbone.block)), np.zeros(len(labels))
    with progress(len(labels), "image", lines=True) as part:
        for start in range(0, len(labels), size):
            rows = np.arange(start, start + size) % len(labels)  # of one size, the last batch too
            whole = min(size, len(labels) - start)
            for i, timestep in enumerate(TIMESTEPS):
                noise = np.stack(
                    [random_stream(seed, "audit_noise", int(n), i).standard_normal(shape, "float32") for n in numbers[rows]]
                )
                batch = {
                    "moments": np.asarray(moments[rows]), "latent_noise": np.zeros_like(noise), "noise": noise,
                    "timestep": np.full(size, timestep * steps // 1000, "int32"),
                    "label": np.eye(classes, dtype="float32")[labels[rows]],
                }  # fmt: skip
                error = (np.asarray(model.predict_on_batch(batch)) - noise) ** 2
                losses[start : start + whole] += error.mean(axis=(1, 2, 3))[:whole] / len(TIMESTEPS)
            part.reach(start + whole)
    return losses
