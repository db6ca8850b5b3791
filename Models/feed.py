"""The batches of the adaptation. What is random in a sample is a function of where it stands, not of what came before."""

import numpy as np

from Experiment.randomness import random_stream, random_streams


def noisy_batches(moments, labels, num_classes, batch_size, seed, first_epoch, num_timesteps=1000, transforms=()):
    """Endless batches for `denoising_model`, from the beginning of `first_epoch` on.

    The order of an epoch is a function of (seed, epoch); noise and timestep of a sample of (seed, epoch, sample): so
    a run that was interrupted goes on exactly where it would have been.

    Args:
        moments: float32 (N, h, w, 8).
        labels: int (N,).
        num_classes: Number of classes C.
        batch_size: Samples of a batch; the last one of an epoch may have fewer.
        seed: The user's seed.
        first_epoch: 0 at the start.
        num_timesteps: Timesteps of the noise schedule.
        transforms: Functions (batch, seed, epoch, samples) -> batch that change a batch of `samples` (B,) numbers; what
            they draw comes from `random_stream` at that address.

    Yields:
        {moments (B, h, w, 8), latent_noise and noise (B, h, w, 4), timestep (B,), label one-hot (B, C)}
    """
    one_hot = np.eye(num_classes, dtype="float32")
    shape = (*moments.shape[1:3], moments.shape[3] // 2)
    noise_of, epoch = random_streams(seed, "training_noise"), first_epoch
    while True:
        order = random_stream(seed, "order", epoch).permutation(len(labels))
        for start in range(0, len(labels), batch_size):
            samples = order[start : start + batch_size]
            noise = np.empty((2, len(samples), *shape), "float32")  # of the latents, and of the forward process
            timesteps = np.empty(len(samples), "int32")
            for i, sample in enumerate(samples):
                stream = noise_of(epoch, int(sample))
                noise[:, i] = stream.standard_normal((2, *shape), dtype="float32")
                timesteps[i] = stream.integers(num_timesteps)
            batch = {
                "moments": np.asarray(moments[samples]),
                "latent_noise": noise[0],
                "noise": noise[1],
                "timestep": timesteps,
                "label": one_hot[labels[samples]],
            }
            for transform in transforms:
                batch = transform(batch, seed, epoch, samples)
            yield batch
        epoch += 1


def drop_labels(probability):
    """A transform that, with a probability, makes a sample's label all zeros: what the unconditional pass of sampling has.

    So the network learns what guidance extrapolates from (Ho & Salimans 2022, algorithm 1). Which samples is a function of
    (seed, epoch, sample).
    """

    def drop(batch, seed, epoch, samples):
        kept = [random_stream(seed, "label_dropout", epoch, int(sample)).random() >= probability for sample in samples]
        return {**batch, "label": batch["label"] * np.array(kept, "float32")[:, None]}

    return drop


def with_targets(batches, weights=None):
    """(batch, target) pairs for fit(): the target is the noise of the forward process.

    Args:
        batches: Of `noisy_batches`.
        weights: float32 (T,): of the loss at each timestep; a batch's come third, (B, 1, 1) as Keras weighs the error of
            each place of the latents. None: all the same.
    """
    if weights is None:
        return ((batch, batch["noise"]) for batch in batches)
    return ((batch, batch["noise"], weights[batch["timestep"], None, None]) for batch in batches)


def padded(batches, size):
    """Batches of (batch, target) or (batch, target, weights) that all have `size` samples, and weights.

    What is missing is filled with samples of the batch, of no weight. Keras divides the weighted sum by all samples: so
    those that count weigh more, and the loss of a step is the mean over them. The loss of an epoch is the mean over its steps.
    """
    for batch, target, *weights in batches:
        count = len(target)
        filled = np.resize(np.arange(count), size)
        weighed = np.zeros((size, 1, 1), "float32")
        weighed[:count] = size / count * (weights[0] if weights else 1.0)
        yield {name: array[filled] for name, array in batch.items()}, target[filled], weighed


def in_parts(batches, parts, weigh=True):
    """Each batch (inputs, targets) or (inputs, targets, weights) as parts for several devices, one after another.

    A batch with fewer samples than devices goes to each of them as a whole. So does the first one if it cannot be divided
    evenly, since Keras adds the parts that it sees first.

    Args:
        batches: The batches.
        parts: Number of devices.
        weigh: Whether parts of unequal size are weighed, for training: the step that devices take is the mean of their
            steps. In validation samples are counted.
    """
    for number, (inputs, targets, *weights) in enumerate(batches):
        count = len(targets)
        whole = count < parts or (not number and count % parts)
        for places in [np.arange(count)] * parts if whole else np.array_split(np.arange(count), parts):
            part = {n: a[places] for n, a in inputs.items()} if isinstance(inputs, dict) else inputs[places]
            share = np.float32(1.0 if whole else len(places) * parts / count)
            weighed = weights[0][places] if weights else np.ones(len(places), "float32")
            yield (part, targets[places], weighed * share) if weigh else (part, targets[places])
