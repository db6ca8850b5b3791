"""What a device does: images and training steps a second, share of its matrix-product limit, memory. Made for GPUs.

    python -m bench.gpu [--parts sampling adaptation classifier feed] [--quick] [--out FILE]

Networks have random weights, of which no speed depends. Rows are merged into FILE (bench/gpu.json) as they come, so the
parts may be measured one after another; a row that does not fit into memory says so. By hand on a processor:
`python -m bench.gpu --backbone mini --quick`.
"""

import argparse
import gc
import itertools
import logging
import os
import sys
import time
from pathlib import Path

os.environ["SD_UNTRAINED_BACKBONE"] = "1"

from cli.startup import import_keras
from Experiment.files import read_json, write_json
from Experiment.machine import describe_machine, device_name
from Experiment.text import one_line
from Models.backbones import BACKBONES

# Learning takes the gradients of what is computed too; those of the UNet's weights only if they learn.
PASSES_OF_A_STEP = {"enc": 2, "dif": 3}
CLASSES, SEED, SCALE = 10, 0, 1.5


def seconds_of(work, rounds):
    """Median time of `rounds` turns, s, after one that is not counted; and the time of that one."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    first, *others = times
    return sorted(others)[len(others) // 2], first


def seconds_of_steps(args, model, batches):
    """Median time of a step of fit(), s, and that of the first turn of steps, which compiles."""
    from Models.classifier import EpochTimes
    from Models.runtime import fast_feed

    times, feed = EpochTimes(), fast_feed(batches, model)
    model.fit(feed, steps_per_epoch=args.train_steps, epochs=args.rounds + 1, callbacks=[times], verbose=0, shuffle=False)
    first, *others = times.seconds
    return sorted(others)[len(others) // 2] / args.train_steps, first


def matrix_limit(dtype, size):
    """TFLOP/s of products of square matrices."""
    import tensorflow as tf

    a, b = (tf.cast(tf.random.normal((size, size), stddev=size**-0.25), dtype) for _ in range(2))
    b *= tf.cast(size**-0.25, dtype)  # a product is as large as its first factor
    turns = 20 if size > 4096 else 2

    @tf.function
    def products():
        c = a
        for _ in range(turns):
            c = tf.matmul(c, b)
        return c[0, 0]

    seconds, _ = seconds_of(lambda: products().numpy(), 3)
    return turns * 2 * size**3 / seconds / 1e12


def peak_memory(reset=False):
    """Most memory of the first GPU since the last reset, GB; None on a processor."""
    import tensorflow as tf

    if not tf.config.list_physical_devices("GPU"):
        return None
    if reset:
        return tf.config.experimental.reset_memory_stats("GPU:0")
    return round(tf.config.experimental.get_memory_info("GPU:0")["peak"] / 2**30, 2)


def limits():
    sizes = {"bfloat16": 8192, "float32": 8192} if peak_memory() is not None else {"bfloat16": 1024, "float32": 1024}
    return {dtype: round(matrix_limit(dtype, size), 2) for dtype, size in sizes.items()}


def sampling(args, limit):
    """Images/s from noise to uint8, with guidance and decoder."""
    import numpy as np

    from Models.adapter import load_diffusion
    from Models.runtime import precision, use_hardware

    backbone, rng = BACKBONES[args.backbone], np.random.default_rng(SEED)
    contexts = rng.standard_normal((CLASSES + 1, *backbone.context_shape), dtype="float32")
    for name in args.precisions:
        with precision(name) as used:
            diffusion = load_diffusion(backbone, CLASSES)
        for batch in args.batches:
            latents = rng.standard_normal((batch, *backbone.latent_shape), dtype="float32")
            for xla in args.xla:

                def work(diffusion=diffusion, latents=latents, batch=batch, xla=xla):
                    use_hardware(xla, args.tf32)
                    sampler = diffusion.sampler()
                    rows = np.arange(batch) % CLASSES
                    return seconds_of(lambda: sampler.sample(latents, contexts, rows, args.steps, SCALE), args.rounds)

                row = {"part": "sampling", "precision": used, "batch": batch, "xla": xla, "steps": args.steps}
                passes = 2 * args.steps * batch
                yield measured(row, work, args, limit, "images_per_second", batch, passes)


def adaptation(args, limit):
    """Steps/s of both adaptations, through fit() and the feed."""
    import numpy as np

    from Models.adapter import WholeNetwork, load_diffusion
    from Models.feed import noisy_batches, with_targets
    from Models.runtime import precision, use_hardware
    from Models.training import compile_model

    backbone, rng = BACKBONES[args.backbone], np.random.default_rng(SEED)
    moments = rng.standard_normal((1024, *backbone.latent_shape[:2], 8), dtype="float32")
    for name in args.precisions:
        with precision(name, trainable=True):
            diffusion = load_diffusion(backbone, CLASSES, decoder=False)
        for part, batch, xla in itertools.product(args.learn, args.train_batches, args.xla):

            def work(diffusion=diffusion, name=name, part=part, batch=batch, xla=xla):
                use_hardware(xla, args.tf32)
                model = compile_model(WholeNetwork(diffusion, part), 1e-5, 10_000, name)

                def batches():
                    return with_targets(noisy_batches(moments, np.arange(1024) % CLASSES, CLASSES, batch, SEED, 0))

                return seconds_of_steps(args, model, batches)

            row = {"part": part, "precision": name, "batch": batch, "xla": xla}
            yield measured(row, work, args, limit, "steps_per_second", 1, PASSES_OF_A_STEP[part] * batch)


def classifier(args, limit):
    """Steps/s of the paper's classifier, batch 256 at 32 px, through fit() and the feed; validation is left out."""
    import numpy as np

    from Models.classifier import Classifier
    from Models.runtime import use_hardware

    rng = np.random.default_rng(SEED)
    batch = 32 if args.quick else 256
    images, labels = rng.integers(0, 256, (8 * batch, 32, 32, 3), np.uint8), np.arange(8 * batch) % CLASSES
    for xla in args.xla:

        def work(xla=xla):
            use_hardware(xla, args.tf32)
            network = Classifier("resnet20_16" if args.quick else "resnet20", 32, CLASSES)
            return seconds_of_steps(args, network.model, lambda: network.batches(images, labels, batch, SEED))

        row = {"part": "classifier", "precision": "float32", "batch": batch, "xla": xla}
        yield measured(row, work, args, limit, "steps_per_second", 1, None)


def feed(args, limit):
    """Batches/s of the feeds, and images/s of the way to the disk, without any device."""
    import tempfile

    import numpy as np

    from Data.numbering import Balanced
    from Data.synthetic import SyntheticWriter
    from Models.classifier import Classifier
    from Models.feed import noisy_batches, with_targets

    rng, count, batch = np.random.default_rng(SEED), 1024, 32
    sd1, labels = BACKBONES["sd1"], np.arange(1024) % CLASSES
    moments = rng.standard_normal((count, *sd1.latent_shape[:2], 8), dtype="float32")
    noisy = with_targets(noisy_batches(moments, labels, CLASSES, batch, SEED, 0))
    images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
    plain = Classifier("resnet20_16", 32, CLASSES).batches(images, labels, 256, SEED)
    for name, batches, size in (("adaptation", noisy, batch), ("classifier", plain, 256)):
        seconds, _ = seconds_of(lambda batches=batches: [next(batches) for _ in range(50)], args.rounds)
        yield {"part": f"feed, {name}", "batch": size, "milliseconds_a_batch": round(seconds * 20, 2)}
    yield {"part": "feed, adaptation, behind a step of 5 ms", "batch": batch, "milliseconds_a_batch": behind_a_step(moments)}
    pictures = rng.integers(0, 256, (256, sd1.image_size, sd1.image_size, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        writer = SyntheticWriter(Path(folder), Balanced(1).counts(len(pictures)))
        writer.begin()
        start = time.perf_counter()
        for image in enumerate(pictures):
            writer.write(*image)
        queued = time.perf_counter() - start
        writer.drain()
        row = {"part": "writing PNGs", "images_per_second": round(len(pictures) / (time.perf_counter() - start), 1)}
        writer.close()
        yield row | {"milliseconds_a_batch": round(1000 * queued * 64 / len(pictures), 2), "batch": 64}


def behind_a_step(moments, batch=32):
    """Milliseconds from step to step of a device that takes 5 of them: more than that is what it waits for the feed."""
    step, steps = 0.005, 200
    import numpy as np

    from Models.classifier import Classifier
    from Models.feed import noisy_batches, with_targets
    from Models.runtime import fast_feed

    labels = np.arange(len(moments)) % CLASSES
    any_model = Classifier("resnet20_16", 32, CLASSES).model
    feed = fast_feed(lambda: with_targets(noisy_batches(moments, labels, CLASSES, batch, SEED, 0)), any_model)
    batches = iter(feed)
    next(batches)
    start = time.perf_counter()
    for _ in range(steps):
        next(batches)
        time.sleep(step)
    return round(1000 * (time.perf_counter() - start) / steps, 2)


def measured(row, work, args, limit, unit, count, passes):
    """A row with what was measured, or with the error of the device, mostly that memory lacks.

    Args:
        row: What is measured.
        work: Function that returns the seconds of a turn, and of the first one, which compiles.
        args, limit: The arguments, and TFLOP/s of matrix products by type.
        unit, count: Name of the rate, and how many of them a turn is.
        passes: Passes of the UNet for a sample in a turn; None: no share of the limit is known.
    """
    import tensorflow as tf

    gc.collect()  # the model of the row before
    peak_memory(reset=True)
    try:
        seconds, first = work()
    except (tf.errors.OpError, MemoryError) as error:
        return row | {"failed": one_line(error)[:200]}
    row |= {unit: round(count / seconds, 3), "seconds": round(seconds, 4), "first_seconds": round(first, 1)}
    row["peak_gb"] = peak_memory()
    if passes:
        row["tflop_s"] = round(passes * BACKBONES[args.backbone].gflop / seconds / 1000, 2)
        row["share_of_limit"] = round(row["tflop_s"] / limit["float32" if row["precision"] == "float32" else "bfloat16"], 3)
    return row


PARTS = {"sampling": sampling, "adaptation": adaptation, "classifier": classifier, "feed": feed}
FACTS = ("images_per_second", "steps_per_second", "milliseconds_a_batch", "first_seconds", "peak_gb", "tflop_s",
         "share_of_limit", "failed")  # fmt: skip


def parse_args():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    add("--backbone", default="sd1", choices=list(BACKBONES))
    add("--precisions", nargs="+", default=["mixed_bfloat16", "float32"], choices=["mixed_bfloat16", "float32"])
    add("--xla", nargs="+", default=["off", "on"], choices=["off", "on"])
    add("--batches", nargs="+", type=int, default=[16, 64], help="images that are sampled together (16 64)")
    add("--train_batches", nargs="+", type=int, default=[8, 32], help="of the adaptation (8 32)")
    add("--learn", nargs="+", default=["enc", "dif"], choices=["enc", "dif"])
    add("--steps", type=int, default=31, help="inference steps (31)")
    add("--train_steps", type=int, default=20, help="training steps of a turn (20)")
    add("--rounds", type=int, default=3, help="counted turns (3)")
    add("--tf32", action="store_true")
    add("--quick", action="store_true", help="one turn of small work, to see that it runs")
    add("--out", type=Path, default=Path(__file__).with_name("gpu.json"))
    args = parser.parse_args()
    if args.quick:
        args.batches, args.train_batches, args.steps, args.train_steps, args.rounds = [4], [4], 2, 2, 1
    return args


def main(args):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    import_keras(argparse.Namespace())
    from Models.runtime import use_hardware

    use_hardware(tf32=args.tf32)
    limit = limits()
    where = {"device": device_name(), "tf32": args.tf32, "backbone": args.backbone}
    print(f"{device_name()}; matrix products, TFLOP/s: {limit}", flush=True)
    before = read_json(args.out)["rows"] if args.out.exists() else []
    rows = {key_of(row): row for row in before}
    for part in args.parts:
        for row in PARTS[part](args, limit):
            row = {**where, **row}
            rows[key_of(row)] = row
            write_json(args.out, {"machine": describe_machine(), "limit_tflop_s": limit, "rows": list(rows.values())})
            print(described(row), flush=True)


def key_of(row):
    return tuple(row.get(name) for name in ("device", "tf32", "backbone", "part", "precision", "batch", "xla", "steps"))


def described(row):
    said = [f"{name} {row[name]}" for name in ("precision", "batch", "xla", "steps") if name in row]
    said += [f"{name} {row[name]}" for name in FACTS if row.get(name) is not None]
    return f"| {row['part']} | {' | '.join(said)} |"


if __name__ == "__main__":
    sys.exit(main(parse_args()))
