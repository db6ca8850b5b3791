"""From labels to images: a solver with classifier-free guidance, and the decoder, in one graph."""

import contextlib

import keras
import numpy as np
from keras import ops

from Experiment.randomness import random_stream
from Models.diffusion import PREDICTION_TYPES, timestep_embedding
from Models.faster_layers import attending_to, shared_contexts
from Models.guidance import context_table, guided_steps
from Models.noise_schedule import STABLE_DIFFUSION
from Models.runtime import jit_compile, on_gpu, one_by_one, ordered_after, traced_once
from Models.solvers import DDIM

DECODED_TOGETHER = 16  # images, on a GPU: at full size the decoder's largest maps are 8 to 16 MB an image


class Sampler(keras.Model):
    """A model whose call is the whole sampling loop.

    Guidance is eps = eps_u + scale * (eps_c - eps_u) (Ho & Salimans 2022). At scale 1 it is eps_c and at scale 0
    eps_u, so one pass is enough; else both passes run as one batch of twice the size. With a `Guide` eps_u is the noise
    that it predicts for the same class. Steps outside a guidance interval are eps_c alone.

    The steps are input, not structure: one compiled graph serves every number of steps and every scale of the same
    kind, which a search with dozens of settings lives on.

    Args:
        unet: Backbone UNet, (B, h, w, 4) latents -> (B, h, w, 4) noise.
        decoder: Backbone decoder, or None to return latents.
        side_by_side: Into how many parts a batch is cut, to be computed side by side. The operations of a small backbone
            keep no more than one core busy.
        schedule: The backbone's `NoiseSchedule`.
        prediction_type: What the UNet predicts, a key of `PREDICTION_TYPES`.
        solver: A class of `Models.solvers`.
        guide: A `Guide`, or None: the unconditional pass guides.
    """

    def __init__(
        self, unet, decoder=None, side_by_side=1, schedule=STABLE_DIFFUSION, prediction_type="epsilon", solver=DDIM,
        guide=None,
    ):  # fmt: skip
        super().__init__(name="sampler", dtype="float32")  # the update stays in float32
        self.unet, self.decoder, self.side_by_side = unet, decoder, side_by_side
        self.schedule, self.prediction, self.solver = schedule, PREDICTION_TYPES[prediction_type], solver
        self.guide, self.guide_unet = guide, guide.unet if guide else None
        self.decoded_together = DECODED_TOGETHER if on_gpu() else None
        self.jit_compile = jit_compile(sampling=True)

    def call(self, inputs):
        """Run the loop.

        Args:
            inputs: `latents` (B, h, w, 4); `contexts` (R, tokens, width); `null_rows` and `rows` (B,), either may be
                left out: which context each image has in the unconditional (or the guide's) and in the conditional pass;
                `scale` (); `timesteps` (T,) and `coefficients`, a dict of (T,), of which the first `num_steps` () are
                visited; `guided` bool (T,), which of them are guided, or left out: all that have both rows.

        Returns:
            Images uint8 (B, H, W, 3), or latents; and bool (B,): whether all numbers that an image is made of are finite.
        """
        by_image = [name for name in ("latents", "null_rows", "rows") if name in inputs]
        # No part is of one image, which takes other code paths; a size that is not known is that of a second kind of batch.
        parts = max(1, min(self.side_by_side, (inputs["latents"].shape[0] or 0) // 2))
        shares = zip(*(ops.array_split(inputs[name], parts) for name in by_image))
        loop = traced_once(self.loop) if parts > 1 else self.loop
        made = [loop({**inputs, **dict(zip(by_image, share))}) for share in shares]
        return tuple(ops.concatenate(arrays, axis=0) for arrays in zip(*made))

    def loop(self, inputs):
        """What `call` returns for a part of the batch."""
        contexts, rows, null_rows = (inputs.get(name) for name in ("contexts", "rows", "null_rows"))

        def step(i, state):
            coefficients = {name: values[i] for name, values in inputs["coefficients"].items()}
            now = self.solver.latents(state), inputs["timesteps"][i], coefficients["alpha_bar"]

            def one_pass():
                return self.noise(*now, contexts, null_rows if rows is None else rows, by_guide=rows is None)

            def guided():
                return self.guided_noise(*now, contexts, null_rows, rows, inputs["scale"])

            if rows is None or null_rows is None:
                noise = one_pass()
            elif "guided" in inputs:
                noise = ops.cond(inputs["guided"][i], guided, one_pass)
            else:
                noise = guided()
            return self.solver.step(state, noise, coefficients)

        with self.contexts_for_all_steps(contexts, rows, null_rows):
            state = ops.fori_loop(0, inputs["num_steps"], step, self.solver.first_state(inputs["latents"]))
        latents = self.solver.latents(state)
        if self.decoder is None:
            return latents, all_finite(latents)
        images = self.decode(latents)
        # Clip and cast would hide what is not finite. The cast truncates, as published.
        return ops.cast(ops.clip((images + 1.0) * 127.5, 0.0, 255.0), "uint8"), all_finite(images)

    def decode(self, latents):
        """Images float32 (B, H, W, 3) of latents, part by part where the batch is larger than what is decoded together."""

        def decoded(part):
            return ops.cast(self.decoder(part), "float32")

        count, size = ops.shape(latents)[0], self.decoded_together
        if not size or (latents.shape[0] or size + 1) <= size:
            return decoded(latents)
        parts, shape = (count + size - 1) // size, self.decoder.output_shape[1:]
        padded = ops.take(latents, ops.minimum(ops.arange(parts * size), count - 1), axis=0)
        images = one_by_one(decoded, ops.reshape(padded, (parts, size, *latents.shape[1:])), (size, *shape))
        return ops.reshape(images, (-1, *shape))[:count]

    @contextlib.contextmanager
    def contexts_for_all_steps(self, contexts, rows, null_rows):
        """Within this block the UNets attend to contexts that are projected once, before the first step."""
        any_rows = null_rows if rows is None else rows
        with contextlib.ExitStack() as stack:
            for unet in {id(unet): unet for unet in (self.unet, self.guide_unet) if unet}.values():
                stack.enter_context(shared_contexts(unet, contexts, any_rows))
            yield

    def guided_noise(self, latents, timestep, alpha_bar, contexts, null_rows, rows, scale):
        """Noise (B, h, w, 4) of both passes: as one batch where one network makes both."""
        now = timestep, alpha_bar, contexts
        if self.guide_unet:
            null_noise = self.noise(latents, *now, null_rows, by_guide=True)
            noise = self.noise(latents, *now, rows)
        else:
            passes, all_rows = ops.concatenate([latents, latents], axis=0), ops.concatenate([null_rows, rows], axis=0)
            null_noise, noise = ops.split(self.noise(passes, *now, all_rows), 2, axis=0)  # (2B, h, w, 4)
        return null_noise + scale * (noise - null_noise)

    def noise(self, latents, timestep, alpha_bar, contexts, rows, by_guide=False):
        """Noise (B, h, w, 4) that the UNet, or the guide's, predicts for latents in the contexts of `rows` (B,)."""
        unet = self.guide_unet if by_guide and self.guide_unet else self.unet
        context = ops.take(contexts, rows, axis=0)  # (B, tokens, width)
        # TensorFlow would begin ten steps at once with what needs no latents: as many copies of weights cast to bfloat16.
        with ordered_after(latents), attending_to(unet, rows):
            time = timestep_embedding(timestep[None])  # (1, 320): one for the whole batch
            noise = ops.cast(unet([latents, time, context]), "float32")
        return self.prediction.to_noise(noise, latents, alpha_bar)

    def sample(self, latents, contexts, rows, num_steps, scale, spacing=None, interval=None, null_rows=None):
        """Run the loop on one batch of NumPy arrays, with only the passes that the scale needs.

        Args:
            latents: Initial noise float32 (B, h, w, 4).
            contexts: float32 (R, tokens, width); the last one is unconditional.
            rows: int (B,): which context each image is conditioned on.
            num_steps, scale, spacing, interval: As in `generate_images`.
            null_rows: int (B,): which context guides each image; None: the last one.

        Returns:
            Images uint8 (B, H, W, 3), or latents; and bool (B,), as in `call`.
        """
        timesteps = self.solver.timesteps(self.schedule, num_steps, spacing or self.solver.spacing)
        pad = (0, self.schedule.num_timesteps - len(timesteps))  # one shape for every number of steps
        coefficients = self.solver.coefficients(self.schedule, timesteps)
        inputs = {
            "latents": latents,
            "contexts": contexts,
            "timesteps": np.pad(timesteps, pad),
            "num_steps": np.int32(len(timesteps)),
            "coefficients": {name: np.pad(c, pad, constant_values=1.0) for name, c in coefficients.items()},
            "scale": np.float32(scale),
        }
        if scale != 0 or interval:
            inputs["rows"] = np.asarray(rows, "int32")
        if scale != 1:
            last = np.full(len(latents), len(contexts) - 1)
            inputs["null_rows"] = np.asarray(last if null_rows is None else null_rows, "int32")
        if scale != 1 and interval:
            inputs["guided"] = np.pad(guided_steps(self.schedule, timesteps, interval), pad)
        return self.predict_on_batch(inputs)


def all_finite(images):
    """Whether every number of an image is finite: (B, H, W, channels) -> bool (B,)."""
    return ops.all(ops.isfinite(images), axis=(1, 2, 3))


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
    return np.asarray(encoder.predict_on_batch(one_hot))[: len(one_hot)]  # of several devices each gives all


def block_size(backbone, batch_size):
    """How many images are computed together: on a processor the backbone's block, if the user allows as many.

    A GPU gets all that the user allows. A batch of one is never run: it takes other code paths in matrix products.
    """
    return max(2, batch_size if on_gpu() else min(batch_size, backbone.block))


def generate_images(sampler, encoder, numbers, *, num_steps, scale, seed, block, spacing=None, interval=None,
                    places=None):  # fmt: skip
    """Yield (numbers, images, good) block by block: one loop for the dataset on disk and for the search.

    Image n is image n // C of class n % C, of C classes: the first images are balanced, however many are wanted.
    Images are computed in blocks of consecutive numbers, from 0 on, each of them whole even if one of its images is
    wanted. So an image always has the same place in the same batch, whoever makes it and whatever else is made: the
    matrix kernels of some processors round the rows of a batch differently (on AVX2 rows 6 and 7 of 8, for one).

    Args:
        sampler: A `Sampler`.
        encoder: The Class Encoder.
        numbers: int (N,), ascending: which images to yield.
        num_steps: Inference steps, 1..1000.
        scale: Unconditional guidance scale, 0 or more.
        seed: The user's seed.
        block: Images of a block, 2 or more.
        spacing: `leading` or `linspace`; None: the solver's own, for DDIM `leading` as published.
        places: Function of numbers (n,) that gives their labels and indices (n,), for another numbering.
        interval: (LO, HI), noise levels sigma / alpha between which images are guided; None: at all.

    Yields:
        numbers int (n,); images uint8 (n, H, W, 3), or latents; good bool (n,): whether an image is finite and not of one
        value throughout. What becomes of those that are not is the caller's to decide.
    """
    contexts, numbers = class_contexts(encoder), np.asarray(numbers)
    guides = class_contexts(sampler.guide.encoder or encoder) if sampler.guide else None
    num_classes = len(contexts) - 1
    latent_shape = sampler.unet.input_shape[0][1:]
    firsts = np.unique(numbers // block) * block
    for first, begin, end in zip(firsts, *np.searchsorted(numbers, [firsts, firsts + block])):
        together = np.arange(first, first + block)
        labels, indices = places(together) if places else (together % num_classes, together // num_classes)
        latents = initial_noise(seed, labels, indices, latent_shape)
        table, rows, null_rows = context_table(contexts, guides, labels, min(block, num_classes))
        made = sampler.sample(latents, table, rows, num_steps, scale, spacing, interval, null_rows)
        images, finite = map(np.asarray, made)
        good = finite & (images.max(axis=(1, 2, 3)) != images.min(axis=(1, 2, 3)))
        wanted = numbers[begin:end]
        yield wanted, images[wanted - first], good[wanted - first]


def first_of_each_class(num_classes, columns, most_classes):
    """Numbers (n,), ascending, of the first `columns` images of each of at most `most_classes` classes; and their labels."""
    labels = np.tile(np.arange(min(num_classes, most_classes)), columns)
    indices = np.repeat(np.arange(columns), min(num_classes, most_classes))
    return indices * num_classes + labels, labels
