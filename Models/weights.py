"""Weights on disk: loaded wholly or not at all, saved atomically."""

import contextlib
import math
import re
from pathlib import Path

import h5py
import numpy as np

from Experiment.errors import UserError, let_pass
from Experiment.files import atomic_path
from Models.hdf5_heaps import check_heaps
from Models.numerics import AS_PUBLISHED, EPSILON, PREDICTIONS, Following

LFS_HEADER = b"version https://git-lfs"
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def check_hdf5(path):
    """Refuse what is no HDF5 file, with the reason.

    Raises:
        UserError: The file is missing, a folder, a Git LFS pointer, or something else than HDF5.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}{' (it is a folder)' if path.is_dir() else ''}.")
    with open(path, "rb") as file:
        start = file.read(len(LFS_HEADER))
    if start == LFS_HEADER:
        raise UserError(f"{path} is a Git LFS pointer, not the weights: fetch them with `git lfs pull`.")
    if not start.startswith(HDF5_SIGNATURE):
        raise UserError(f"{path} is not an HDF5 file.")


def load_weights(model, path):
    """Load every weight of `model` from a Keras 3 `.weights.h5` or a Keras 2 `.hdf5` or `.h5` file.

    Raises:
        UserError: The file is not whole, or its layers or shapes are not the model's.
    """
    check_weights(model, path)
    with refusing_misfits(path, f"loaded into {model.name}"):
        model.load_weights(path)
    return model


def check_weights(model, path):
    """Refuse a file of other weights than the model's, without reading them.

    Raises:
        UserError: It is no HDF5 file, or has other shapes.
    """
    check_hdf5(path)
    with refusing_misfits(path, f"loaded into {model.name}"), h5py.File(path) as file:
        check_heaps(file)
        in_file, expected = stored_shapes(file), sorted(tuple(w.shape) for w in model.weights)
        if sorted(in_file) != expected:
            raise UserError(f"{path} does not fit {model.name}: {shape_difference(in_file, expected)}")


def stored_following(path):
    """What the UNet of an epoch file follows: attributes of the file; without any it is as published.

    Raises:
        UserError: It is no sound HDF5 file, or follows what is not known here.
    """
    check_hdf5(path)
    found = vars(AS_PUBLISHED)
    with refusing_misfits(path, "read"), h5py.File(path) as file:
        check_heaps(file)
        found = {name: as_text(file.attrs.get(name, value)) for name, value in found.items()}
    if found["numerics"] not in EPSILON or found["prediction_type"] not in PREDICTIONS:
        raise UserError(f"{path} follows {found}, which this version does not know.")
    return Following(**found)


def as_text(value):
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


@contextlib.contextmanager
def refusing_misfits(path, what):
    """A block that reads the file `path`: where the file is damaged or does not fit, a UserError says that it cannot be `what`."""
    try:
        yield
    except UserError:
        raise
    # What h5py and Keras raise for damaged files has no common type: TypeError and SystemError among others.
    except Exception as error:
        let_pass(error, path)
        raise UserError(f"{path} cannot be {what}: {error}") from None


def stored_shapes(file):
    """Shapes of the model weights in an HDF5 file, without the optimizer's.

    Raises:
        UserError: A part of it lies in another file, or is a link: weights have neither, and others' files are not read.
    """
    shapes, elsewhere = [], []  # h5py does not like errors raised by a visitor

    def visit_link(name, link):
        if not isinstance(link, h5py.HardLink):
            elsewhere.append(name)

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            if item.external or item.is_virtual:
                elsewhere.append(name)
            if not re.match(r"(optimizer|optimizer_weights)(/|$)", name):
                shapes.append(tuple(item.shape))

    file.visititems_links(visit_link)
    file.visititems(visit)
    if elsewhere:
        raise UserError(f"{file.filename}: {elsewhere[0]} is a link, or lies in another file.")
    return shapes


def shape_difference(found, expected):
    found, expected = list(found), list(expected)
    for shape in list(found):
        if shape in expected:
            expected.remove(shape)
            found.remove(shape)
    return f"the file has shapes {found[:4] or 'none'} where the model has {expected[:4] or 'none'}"


def room_of(arrays):
    """Bytes that an HDF5 file of some arrays or weights has at most; Keras's groups around one take 2 to 3 KB."""
    return sum(4 * math.prod(array.shape) + 4096 for array in arrays) + 8192


def save_weights(model, path):
    """Save atomically as Keras's `.weights.h5`, with what the weights follow in attributes, where that is unusual.

    Raises:
        UserError: A weight is not finite; nothing is written then.
    """
    broken = [w.path for w in model.weights if not np.isfinite(w.numpy()).all()]
    if broken:
        raise UserError(f"the weights are no longer finite, and not saved: {', '.join(broken[:3])}")
    learned_with = getattr(model, "optimizer", None)  # Keras saves its numbers too
    with atomic_path(path, room_of([*model.weights, *(learned_with.variables if learned_with else [])])) as partial:
        model.save_weights(partial)
        following = getattr(model, "following", AS_PUBLISHED)
        if following != AS_PUBLISHED:
            with h5py.File(partial, "r+") as file:
                file.attrs.update({name: np.bytes_(value) for name, value in following.unusual.items()})
