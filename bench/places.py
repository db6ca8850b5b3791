"""Whether a layer gives an image the same bits at every place of a batch: `python -m bench.places`.

    python -m bench.places [--backbone mini] [--precision float32] [--batches 8 16 48 96]

Each layer of UNet and decoder gets one sample at every place of a batch, as the sampler runs it (compiled, both passes of
guidance). Where rows differ, the layer is listed with its shapes and the places. `ONEDNN_MAX_CPU_ISA=AVX2` before the
command shows what oneDNN's kernels do on a processor without AVX-512; TensorFlow's other kernels stay those of the
machine. `Models.sampler.generate_images` does not rely on this: an image always has the same place.
"""

import argparse
import os

import numpy as np

from cli.startup import use_onednn


def rows_that_differ(function, inputs, batch):
    """Places at which a row differs from the first one, though all rows of the input are the same.

    The time (1, N) has one row for the whole batch, as in sampling.
    """
    tiled = [np.repeat(x[:1], batch, axis=0) if x.ndim > 2 else x for x in inputs]
    rows = np.asarray(function(*tiled)).astype("float32").reshape(batch, -1)
    return np.flatnonzero((rows != rows[0]).any(axis=1)).tolist()


def leaf_calls(model, inputs):
    """What each layer with weights of its own is called with, first sample only: [(layer, input)].

    Layers of the time are left out: they see one row, whatever the batch.
    """
    import keras

    calls, kinds = [], (keras.layers.Dense, keras.layers.Conv2D)
    originals = {}
    for layer in model._flatten_layers():
        if isinstance(layer, kinds):
            originals[layer] = layer.call

            def spy(x, layer=layer, call=layer.call):
                if len(x.shape) > 2:
                    calls.append((layer, np.asarray(x)[:1]))
                return call(x)

            layer.call = spy
    model(inputs)  # eagerly
    for layer, call in originals.items():
        layer.call = call
    return calls


def check(name, model, inputs, batches):
    """Print the layers of a model whose rows differ. Returns how many do, over all batches."""
    import tensorflow as tf

    found = 0
    for layer, x in leaf_calls(model, inputs):
        compiled = tf.function(lambda y, layer=layer: layer(y), jit_compile=False)
        for batch in batches:
            if places := rows_that_differ(compiled, [x], batch):
                found += 1
                print(f"  {name} {layer.path}: input {x.shape[1:]}, batch {batch}: places {places}")
    whole = tf.function(lambda *arguments: model(list(arguments) if len(arguments) > 1 else arguments[0]))
    for batch in batches:
        places = rows_that_differ(whole, inputs, batch)
        print(f"  {name} as a whole, batch {batch}: {f'places {places}' if places else 'all places alike'}")
        found += bool(places)
    return found


def main(args):
    use_onednn()  # as the scripts compute
    import keras

    from Models.backbones import BACKBONES
    from Models.faster_layers import use_faster_layers
    from Models.runtime import on_gpu, precision

    backbone, rng = BACKBONES[args.backbone], np.random.default_rng(0)
    batches = args.batches or [backbone.block // 2, backbone.block, 2 * backbone.block, 8]
    shapes = backbone.latent_shape, (320,), backbone.context_shape
    print(f"{args.backbone}, {args.precision}, batches {batches}, ONEDNN_MAX_CPU_ISA={os.environ.get('ONEDNN_MAX_CPU_ISA')}")
    found = 0
    with precision(args.precision):
        keras.utils.set_random_seed(0)
        for name, sides in (("unet", shapes), ("decoder", shapes[:1])):
            model = use_faster_layers(backbone.build[name](backbone), on_gpu())  # random weights: nothing is downloaded
            inputs = [rng.standard_normal((1, *side), dtype="float32") for side in sides]
            found += check(name, model, inputs, batches)
            del model
    print(f"{found} cases where a place counts")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--backbone", default="mini", choices=["mini", "small", "sd1", "sd2"])
    parser.add_argument("--precision", default="float32", choices=["float32", "mixed_bfloat16"])
    parser.add_argument("--batches", type=int, nargs="+", help="batch sizes (those that generation uses, and 8)")
    return parser.parse_args()


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main(parse_args())
