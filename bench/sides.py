"""What can be measured: for each side a table of jobs, functions without arguments that do the work once."""

import keras
import numpy as np

BATCH, STEPS, SCALE = 8, 10, 1.5
CLASSES = 10
MATRIX = 4096  # side of those whose product is the machine's limit
SEED = 0


def generation_inputs(latent_shape, context_shape):
    """Initial noise (8, h, w, 4) and contexts (11, tokens, width), the last one unconditional."""
    rng = np.random.default_rng(SEED)
    noise = rng.standard_normal((BATCH, *latent_shape), dtype="float32")
    return noise, rng.standard_normal((CLASSES + 1, *context_shape), dtype="float32")


def matrix_product(dtype):
    """The machine's limit: a product of two square matrices."""
    import tensorflow as tf

    a, b = (tf.cast(tf.random.normal((MATRIX, MATRIX)), dtype) for _ in range(2))
    product = tf.function(lambda: tf.matmul(a, b)[0, 0])
    return lambda: product().numpy()


def unet_inputs(batch_size, latent_shape, context_shape):
    rng = np.random.default_rng(SEED)
    shapes = latent_shape, (320,), context_shape
    return [rng.standard_normal((batch_size, *shape), dtype="float32") for shape in shapes]


def published_generation():
    from keras_cv.models.stable_diffusion import Decoder

    from bench.published import SD1, SIZE, generate, stock_unet

    keras.utils.set_random_seed(SEED)
    unet, decoder = stock_unet(), Decoder(SIZE, SIZE, download_weights=False)
    noise, contexts = generation_inputs(SD1.latent_shape, SD1.context_shape)
    conditions = contexts[:BATCH], np.repeat(contexts[-1:], BATCH, axis=0)
    inputs = unet_inputs(BATCH, SD1.latent_shape, SD1.context_shape)
    return {
        "generation": lambda: generate(unet, decoder, noise, *conditions, STEPS, SCALE),
        "warm": lambda: generate(unet, decoder, noise, *conditions, 1, SCALE),
        "unet": lambda: unet.predict_on_batch(inputs),
    }


def our_generation(precision):
    from Models import runtime
    from Models.backbones import BACKBONES
    from Models.sampler import Sampler

    sd1 = BACKBONES["sd1"]
    keras.utils.set_random_seed(SEED)
    with runtime.precision(precision) as used:
        unet, decoder = sd1.unet(), sd1.decoder()
    sampler = Sampler(unet, decoder)
    noise, contexts = generation_inputs(sd1.latent_shape, sd1.context_shape)
    table = contexts[[*range(BATCH), CLASSES]]
    inputs = unet_inputs(BATCH, sd1.latent_shape, sd1.context_shape)

    def generate(steps, scale):
        images, _ = sampler.sample(noise, table, np.arange(BATCH), steps, scale)
        return images

    def warm():
        generate(1, SCALE)
        generate(1, 1.0)

    return {
        "generation": lambda: generate(STEPS, SCALE),
        "generation, no guidance": lambda: generate(STEPS, 1.0),
        "warm": warm,
        "unet": lambda: unet.predict_on_batch(inputs),
        "decoder": lambda: decoder.predict_on_batch(noise),
        "limit": matrix_product("float32" if used == "float32" else "bfloat16"),
    }


def published_training(part, batch_size):
    from bench.published import training_step

    return {"step": training_step(part, int(batch_size))}


def our_training(part, batch_size, precision, *flags):
    """A step as SD_adapting.py makes it, from moments that are cached.

    Args:
        part, batch_size, precision: What learns, from how many images a step, in which arithmetic.
        flags: `checkpoints` computes the UNet's blocks twice; a LoRA's targets train updates of rank 4 of those.
    """
    from Models import runtime
    from Models.adapter import adaptation, load_diffusion
    from Models.backbones import BACKBONES
    from Models.feed import noisy_batches, with_targets
    from Models.lora_files import TARGETS, Facts
    from Models.training import compile_model

    sd1, batch_size = BACKBONES["sd1"], int(batch_size)
    targets = next((flag for flag in flags if flag in TARGETS), None)
    updates = Facts(4, 4.0, targets, sd1.weights_hash("unet")) if targets else None
    with runtime.precision(precision, trainable=not updates) as used:
        diffusion = load_diffusion(sd1, CLASSES, decoder=False)
    model = compile_model(adaptation(diffusion, part, {}, updates), 1e-4, 1000, used, "checkpoints" in flags)
    moments = np.random.default_rng(SEED).standard_normal((4 * batch_size, *sd1.latent_shape[:2], 8), dtype="float32")
    batches = with_targets(noisy_batches(moments, np.arange(len(moments)) % CLASSES, CLASSES, batch_size, SEED, 0))
    return {"step": lambda: model.train_on_batch(*next(batches))}


def writing(images="1000"):
    """Images of mini with and without their way to the disk."""
    import tempfile
    from pathlib import Path

    from Data.numbering import Balanced
    from Data.synthetic import SyntheticWriter
    from Models import runtime
    from Models.adapter import load_diffusion
    from Models.backbones import BACKBONES
    from Models.sampler import generate_images

    mini = BACKBONES["mini"]
    with runtime.precision("auto"):
        diffusion = load_diffusion(mini, CLASSES)
    sampler, numbers = diffusion.sampler(), np.arange(int(images))

    def made():
        return generate_images(sampler, diffusion.encoder, numbers, num_steps=STEPS, scale=SCALE, seed=SEED, block=mini.block)

    everything = tempfile.TemporaryDirectory()  # deleting what was written is no part of writing it

    def to_disk():
        writer = SyntheticWriter(Path(tempfile.mkdtemp(dir=everything.name)), Balanced(CLASSES).counts(int(images)))
        writer.begin()
        for numbers, batch, _ in made():
            for image in zip(numbers, batch):
                writer.write(*image)
        writer.finish({})
        writer.close()

    return {"sampler": lambda: sum(1 for _ in made()), "to disk": to_disk}


def classifier():
    """Epochs of a classifier on a tree of PNGs, and on the same images in memory; the first epoch is not counted."""
    import tempfile
    from pathlib import Path

    from Data.numbering import Balanced
    from Data.stored_set import load_synthetic
    from Data.synthetic import SyntheticWriter
    from Models.classifier import Classifier

    rng = np.random.default_rng(SEED)
    count, side = 2000, 32
    labels = np.repeat(np.arange(CLASSES), count // CLASSES).astype("int32")
    images = rng.integers(0, 256, (count, side, side, 3), np.uint8)
    folder = tempfile.TemporaryDirectory()
    writer = SyntheticWriter(Path(folder.name), Balanced(CLASSES).counts(count))
    writer.begin()
    for label, (place, image) in zip(labels, enumerate(images)):
        writer.write(place % (count // CLASSES) * CLASSES + label, image)
    writer.finish({})
    writer.close()
    network = Classifier("resnet20_16", side, CLASSES)

    def later_epochs(images, labels, epochs=4):
        _, seconds = network.fit(
            (images, labels), (images[:100], labels[:100]), epochs=epochs, batch_size=64, seed=SEED, patience=(9, 9), verbose=0
        )
        return sum(seconds[1:])

    def from_tree():
        assert folder  # the tree lives as long as the job
        return later_epochs(*load_synthetic(folder.name, CLASSES, side, count, SEED))

    return {"from PNGs": from_tree, "in memory": lambda: later_epochs(images, labels)}


def precision(seeds=(1234, 1, 2, 3, 4)):
    """CAS of digits, 1x, in float32 and in the default precision: the same adapted mini, five seeds each."""
    import subprocess
    import sys
    import tempfile

    from Data.loaders import load_splits
    from Data.registry import DATASETS
    from Data.resizing import resize_images
    from Experiment.paths import REPOSITORY, Experiment
    from Models import runtime
    from Models.adapter import load_diffusion
    from Models.backbones import BACKBONES
    from Models.classifier import Classifier, accuracies
    from Models.sampler import generate_images
    from Models.weight_names import epoch_path

    folder, spec, mini = tempfile.TemporaryDirectory(), DATASETS["digits"], BACKBONES["mini"]
    adapt = [
        sys.executable,
        REPOSITORY / "SD_adapting.py",
        "--dataset",
        "digits",
        "--exp",
        "bench",
        "--backbone",
        "mini",
        "--root",
        folder.name,
    ]
    for stage in (["enc", "--freq", 12], ["dif", "--freq", 40, "--enc_epoch", 12]):
        subprocess.run(list(map(str, [*adapt, "--train_model", *stage])), check=True, stdout=sys.stderr)
    parts = {part: Experiment(folder.name, "bench", "digits").part_dir(part) for part in ("enc", "dif")}
    splits = load_splits(spec, folder.name)
    network = Classifier("resnet20_16", spec.resolution, CLASSES)
    numbers = np.arange(spec.unit)
    labels = numbers % CLASSES

    def cas(sampler, encoder, seed):
        made = generate_images(sampler, encoder, numbers, num_steps=12, scale=1.5, seed=seed, block=mini.block)
        images = np.concatenate([resize_images(images, spec.resolution, "bilinear") for _, images, _ in made])
        network.fit((images, labels), splits.val, epochs=40, batch_size=64, seed=seed, patience=(10, 25), verbose=0)
        return accuracies(network.probabilities(splits.test.images), splits.test.labels)["top_1_accuracy"]

    def both():
        results = []
        for kind in ("float32", "auto"):
            with runtime.precision(kind):
                epochs = {"enc": epoch_path(parts["enc"], 12), "dif": epoch_path(parts["dif"], 40)}
                diffusion = load_diffusion(mini, CLASSES, **epochs)
            sampler = diffusion.sampler()
            results.append([cas(sampler, diffusion.encoder, seed) for seed in seeds])
        return results

    return {"cas": both, "folder": lambda: folder.name}


SIDES = {
    "published_generation": published_generation,
    "our_generation": our_generation,
    "published_training": published_training,
    "our_training": our_training,
    "writing": writing,
    "classifier": classifier,
    "precision": precision,
}
