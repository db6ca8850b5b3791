"""Weights of half the size."""

import h5py
import numpy as np

from Experiment.errors import UserError
from Experiment.files import atomic_path, reserve
from Models.weights import room_of


def save_half(model, path):
    """Save weights in Keras's own layout with float16 numbers, which Keras casts back when it loads them.

    Raises:
        UserError: A weight is beyond what float16 holds, or no number; nothing is written then.
    """
    for weight in model.weights:
        if weight.dtype == "float32" and not (np.abs(weight.numpy()) <= np.finfo("float16").max).all():
            raise UserError(f"{model.name} is not saved: {weight.path} is not finite in float16.")
    room = room_of(model.weights)
    with atomic_path(path, room) as partial:
        full = partial.with_name("full." + partial.name)
        try:
            reserve(full, room)
            model.save_weights(full)
            copy_half(full, partial)
        finally:
            full.unlink(missing_ok=True)


def copy_half(full, half):
    """Copy a weight file with float16 in place of float32."""
    with h5py.File(full) as source, h5py.File(half, "w") as target:

        def copy(name, item):
            if isinstance(item, h5py.Group):
                target.require_group(name).attrs.update(item.attrs)
            else:
                data = item[()]
                numbers = data.astype("float16") if data.dtype == "float32" else data
                target.create_dataset(name, data=numbers).attrs.update(item.attrs)

        target.attrs.update(source.attrs)
        source.visititems(copy)
