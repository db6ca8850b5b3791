"""What depends on the machine and the framework: devices, precision, and TensorFlow's order of operations and feed."""

import contextlib

import keras

from Experiment.machine import computes_bfloat16

CHOSEN = {"xla": "auto", "tf32": False}  # by the user, see `use_hardware`
PACK = 64 * 2**20  # bytes of gradients that devices exchange at a time


def on_gpu():
    """Whether the networks run on a GPU."""
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def has_bfloat16():
    """Whether the hardware multiplies bfloat16 matrices: AVX512-BF16 or AMX, or a GPU of at least Ampere."""
    if on_gpu():
        import tensorflow as tf

        gpu = tf.config.list_physical_devices("GPU")[0]
        return tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) >= (8, 0)
    return computes_bfloat16()


def use_hardware(xla="auto", tf32=False):
    """Choose how this process computes: to be called before models are made.

    Args:
        xla: Whether XLA compiles the models, `on` or `off`; `auto`: see `jit_compile`.
        tf32: Whether a GPU may multiply float32 matrices with 10 bits of mantissa (TF32), as TensorFlow does unless it is
            told otherwise. A processor has none.
    """
    CHOSEN.update(xla=xla, tf32=tf32)
    if on_gpu():
        import tensorflow as tf

        tf.config.experimental.enable_tensor_float_32_execution(tf32)


def jit_compile(sampling=False):
    """Whether XLA compiles a model: stated for every model, since Keras would decide by the devices that it finds.

    By default it compiles the sampler on a GPU, whose many small operations it joins. In training it stays off: it ignores
    the order that keeps memory low (`ordered_after`), and what it gains there has not been measured.
    """
    return CHOSEN["xla"] == "on" or (CHOSEN["xla"] == "auto" and sampling and on_gpu())


def one_shape():
    """Whether all batches of a training should have one shape: where another one is compiled, or tuned for, anew."""
    return on_gpu() or jit_compile()


def resolve_precision(name):
    """`float32` or `mixed_bfloat16`: what `auto` means on this machine, or the name itself."""
    if name == "auto":
        return "mixed_bfloat16" if has_bfloat16() else "float32"
    return name


@contextlib.contextmanager
def precision(name, trainable=False):
    """Build networks with this arithmetic within the block; yields its resolved name.

    Weights on disk, losses, the statistics of normalisations and the sampler's update stay float32.

    Args:
        name: `auto`, `float32` or `mixed_bfloat16`.
        trainable: Whether a network that is built will be trained. If none is, weights are held in bfloat16, to which each
            use casts them anyway: half of the memory, and no cast.
    """
    before, resolved = keras.config.dtype_policy(), resolve_precision(name)
    keras.config.set_dtype_policy(resolved if trainable else resolved.removeprefix("mixed_"))
    try:
        yield resolved
    finally:
        keras.config.set_dtype_policy(before)


@contextlib.contextmanager
def without_tf32():
    """What is computed in float32 within this block is not rounded, whatever --tf32 says."""
    import tensorflow as tf

    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)


def make_repeatable(seed, deterministic=False):
    """Seed Keras and, if asked, take only operations whose results do not depend on timing.

    On a processor none of those that the project uses does: there `deterministic` changes nothing but the time.
    """
    keras.utils.set_random_seed(seed % 2**32)
    if deterministic:
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()


def ordered_after(*results):
    """A context whose operations wait for results."""
    import tensorflow as tf

    return tf.control_dependencies(results)


def traced_once(function):
    """The function, of tensors, of which TensorFlow makes one graph however often it is called with the same shapes.

    Making the graph of a UNet takes longer than a batch of mini. What is called twice becomes two copies of one graph,
    which run side by side as if it had been written out twice.
    """
    import tensorflow as tf

    return tf.function(function, autograph=False)


def replicas():
    """How many devices share the work of the models that are made here: see `Models.devices.sharing`."""
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def summed_over_replicas(gradients):
    """Gradients of the whole batch, from those of the part that a device has."""
    import tensorflow as tf

    # In packs: the first is on its way while later gradients are computed.
    options = tf.distribute.experimental.CommunicationOptions(bytes_per_pack=PACK)
    return tf.distribute.get_replica_context().all_reduce("SUM", gradients, options)


def one_by_one(function, parts, shape):
    """What a function gives for each of parts (N, ...), strictly in turn: memory for one part is enough.

    Args:
        function: Of a part; it returns float32 of this shape.
        parts: The parts.
        shape: Of what the function returns.

    Returns:
        float32 (N, *shape).
    """
    import tensorflow as tf

    return tf.map_fn(function, parts, fn_output_signature=tf.TensorSpec(shape, "float32"), parallel_iterations=1)


def devices_of(model):
    """How many devices train a model, each with a part of every batch."""
    return model.distribute_strategy.num_replicas_in_sync


def fast_feed(make, model):
    """What to give fit() instead of a generator of (inputs, targets) whose arrays are float32 or int32.

    Keras wraps a generator into a tf.data pipeline whose self-tuning thread can delay the end of fit() by 5 seconds,
    too long for the many short fits of a search. This is the same pipeline without self-tuning.

    Args:
        make: Function that begins the generator; where several devices share the model, of parts of batches, one for each
            device in turn. It may be called more than once: Keras looks at a batch before it begins.
        model: The model that is fitted.
    """
    import tensorflow as tf

    of_any_batch = keras.tree.map_structure(lambda a: tf.TensorSpec((None, *a.shape[1:]), a.dtype), next(make()))
    devices = devices_of(model)

    def dataset(_=None):
        options = tf.data.Options()
        options.autotune.enabled = False
        return tf.data.Dataset.from_generator(make, output_signature=of_any_batch).prefetch(4 * devices).with_options(options)

    return dataset() if devices == 1 else model.distribute_strategy.distribute_datasets_from_function(dataset)
