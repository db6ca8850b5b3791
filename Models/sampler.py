"""From labels to images: deterministic DDIM with classifier-free guidance, and the decoder, in one graph."""

import keras
import numpy as np
from keras import ops

from Experiment.errors import UserError
from Experiment.randomness import random_stream
from Models.faster_layers import after, shared_contexts
from Models.noise_schedule import (
    NUM_TRAIN_TIMESTEPS,
    alpha_bar_pairs,
    ddim_step,
    sampling_timesteps,
    timestep_embedding,
)


class Sampler(keras.Model):
    """A model whose call is the whole sampling loop.

    Guidance is eps = eps_u + scale * (eps_c - eps_u) (Ho & Salimans 2022). At scale 1 it is eps_c and at scale 0
    eps_u, so one pass is enough; else both passes run as one batch of twice the size.

    The steps are input, not structure: one compiled graph serves every number of steps and every scale of the same
    kind, which a search with dozens of settings lives on.

    Args:
        unet: Backbone UNet, (B, h, w, 4) latents -> (B, h, w, 4) noise.
        decoder: Backbone decoder, or None to return latents.
        parts: Into how many parts a batch is cut, to be made side by side. The operations of a small backbone keep no
            more than one core busy.
    """

    def __init__(self, unet, decoder=None, parts=1):
        super().__init__(name="sampler", dtype="float32")  # the update stays in float32
        self.unet, self.decoder, self.parts = unet, decoder, parts

    def call(self, inputs):
        """`latents` (B, h, w, 4); `contexts` (R, tokens, width); `null_rows` and `rows` (B,), either may be
        left out: which context each image has in the unconditional and in the conditional pass; `scale` ();
        `timesteps`, `alpha_bar`, `alpha_bar_next` (1000,), of which the first `num_steps` () are visited.
        -> images uint8 (B, H, W, 3), or latents."""
        by_image = [name for name in ("latents", "null_rows", "rows") if name in inputs]
        # No part is of one image, which takes other code paths; a size that is not known is that of a second kind of batch.
        parts = max(1, min(self.parts, (inputs["latents"].shape[0] or 0) // 2))
        shares = zip(*(ops.array_split(inputs[name], parts) for name in by_image))
        return ops.concatenate([self.loop({**inputs, **dict(zip(by_image, share))}) for share in shares], axis=0)

    def loop(self, inputs):
        """What `call` returns for a part of the batch."""
        rows = [inputs[name] for name in ("null_rows", "rows") if name in inputs]
        both, rows, contexts = len(rows) == 2, ops.concatenate(rows, axis=0), inputs["contexts"]

        def step(i, latents):
            passes = ops.concatenate([latents, latents], axis=0) if both else latents
            timesteps = ops.broadcast_to(inputs["timesteps"][i], ops.shape(passes)[:1])
            # TensorFlow would begin ten steps at once with what needs no latents: as many copies of weights cast to bfloat16.
            with after(latents):
                noise = ops.cast(self.unet([passes, timestep_embedding(timesteps), context]), "float32")
            if both:
                null_noise, noise = ops.split(noise, 2, axis=0)
                noise = null_noise + inputs["scale"] * (noise - null_noise)
            return ddim_step(latents, noise, inputs["alpha_bar"][i], inputs["alpha_bar_next"][i])

        context = ops.take(contexts, rows, axis=0)  # (B or 2B, tokens, width)
        with shared_contexts(self.unet, contexts, rows):
            latents = ops.fori_loop(0, inputs["num_steps"], step, inputs["latents"])
        if self.decoder is None:
            return latents
        images = ops.cast(self.decoder(latents), "float32")
        return ops.cast(ops.clip((images + 1.0) * 127.5, 0.0, 255.0), "uint8")  # truncates, as published

    def sample(self, latents, contexts, rows, num_steps, scale, spacing="leading"):
        """Run the loop on one batch of NumPy arrays, with only the passes that the scale needs.

        Args:
            latents: Initial noise float32 (B, h, w, 4).
            contexts: float32 (R, tokens, width); the last one is unconditional.
            rows: int (B,): which context each image is conditioned on.
            num_steps, scale, spacing: As in `generate_images`.
        """
        timesteps = sampling_timesteps(num_steps, spacing)
        pad = (0, NUM_TRAIN_TIMESTEPS - len(timesteps))  # one shape for every number of steps
        alpha_bar, alpha_bar_next = (np.pad(a, pad, constant_values=1.0) for a in alpha_bar_pairs(timesteps))
        inputs = {
            "latents": latents,
            "contexts": contexts,
            "timesteps": np.pad(timesteps, pad),
            "num_steps": np.int32(len(timesteps)),
            "alpha_bar": alpha_bar,
            "alpha_bar_next": alpha_bar_next,
            "scale": np.float32(scale),
        }
        if scale != 0:
            inputs["rows"] = np.asarray(rows, "int32")
        if scale != 1:
            inputs["null_rows"] = np.full(len(latents), len(contexts) - 1, "int32")
        return self.predict_on_batch(inputs)


def initial_noise(seed, labels, indices, latent_shape):
    """x_T float32 (B, h, w, 4): each image's is a function of (seed, label, index) alone."""
    return np.stack(
        [
            random_stream(seed, "sampling_noise", int(label), int(index)).standard_normal(latent_shape, dtype="float32")
            for label, index in zip(labels, indices)
        ]
    )


def class_contexts(encoder):
    """Contexts of all classes and, last, the unconditional one: float32 (C + 1, tokens, width)."""
    num_classes = encoder.input_shape[-1]
    one_hot = np.concatenate([np.eye(num_classes), np.zeros((1, num_classes))]).astype("float32")
    return np.asarray(encoder.predict_on_batch(one_hot))


def generate_images(sampler, encoder, labels, indices, *, num_steps, scale, seed, batch_size, spacing="leading"):
    """Yield (labels, indices, images) batch by batch: one loop for the dataset on disk and for the search.

    Every batch that the network sees has the same size (the last one is padded and cut), so an image does not depend
    on how the work is divided.

    Args:
        sampler: A `Sampler`.
        encoder: The Class Encoder.
        labels, indices: int (N,): what to generate; image `index` of class `label`.
        num_steps: Inference steps, 1..1000.
        scale: Unconditional guidance scale, 0 or more.
        seed: The user's seed.
        batch_size: Images at a time.
        spacing: `leading` as published, or `linspace`.

    Raises:
        UserError: A whole batch of images is constant: the weights or the precision are broken.
    """
    contexts = class_contexts(encoder)
    latent_shape = sampler.unet.input_shape[0][1:]
    batch_size = max(2, batch_size)  # a batch of one takes other code paths in matrix products
    for start in range(0, len(labels), batch_size):
        label, index = labels[start : start + batch_size], indices[start : start + batch_size]
        padded = np.resize(np.arange(len(label)), batch_size)
        latents = initial_noise(seed, label[padded], index[padded], latent_shape)
        # The classes of this batch, in a table that always has the same size.
        used, rows = np.unique(label[padded], return_inverse=True)
        table = contexts[[*np.resize(used, min(batch_size, len(contexts) - 1)), -1]]
        images = np.asarray(sampler.sample(latents, table, rows, num_steps, scale, spacing))
        images = images[: len(label)]
        if sampler.decoder is not None and (images.max(axis=(1, 2, 3)) == images.min(axis=(1, 2, 3))).all():
            raise UserError("a whole batch of generated images is constant: check the weights and --precision")
        yield label, index, images
