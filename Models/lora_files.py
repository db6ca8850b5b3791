"""Files of low-rank updates (LoRA): told apart from those of whole networks by what is in them, read without Keras.

Such a file is HDF5 with two float32 arrays a layer, `<place>.a` and `<place>.b`, and the facts below as attributes of
fixed size. `place` says where in the UNet the layer is, such as `14.transformer_block.attn1.to_q`.
"""

import contextlib
import math
import re
from dataclasses import asdict, dataclass

import h5py
import numpy as np

from Experiment.errors import UserError, let_pass
from Experiment.files import atomic_path
from Models.hdf5_heaps import check_heaps
from Models.weights import room_of, shape_difference, stored_shapes

VERSION = 1
MARK = "low_rank_updates"  # the attribute that makes a file one of these: its version
TARGETS = ("attention", "all")
MOST_RANK = 1024


@dataclass(frozen=True)
class Facts:
    """What is known of low-rank updates besides their numbers.

    Attributes:
        rank: Rank of the updates.
        alpha: They count alpha / rank.
        targets: Which layers have one: a name in `TARGETS`.
        base: Hash of the pretrained UNet that they are updates of.
    """

    rank: int
    alpha: float
    targets: str
    base: str

    @property
    def scale(self):
        return self.alpha / self.rank

    def refuse_to_continue(self, path):
        """Raise a UserError where a training of such updates cannot go on from an epoch file."""
        there = read_facts(path)
        if there != self:
            held = f"low-rank updates of {there}" if there else "a whole UNet"
            raise UserError(f"{path} holds {held}: low-rank updates of {self} cannot go on from there.")

    def __str__(self):
        return f"rank {self.rank}, alpha {self.alpha:g}, targets {self.targets}"


@contextlib.contextmanager
def opened(path):
    """The file, open. Whatever is wrong with one that is marked as low-rank updates becomes a UserError; None for others."""
    marked = False
    try:
        with h5py.File(path) as file:
            marked = MARK in file.attrs
            if marked:
                check_heaps(file)
            yield file if marked else None
    except UserError:
        raise
    # What h5py raises for damaged files has no common type.
    except Exception as error:
        let_pass(error, path)
        if marked:
            raise UserError(f"{path} is a damaged file of low-rank updates: {error}") from None
        raise


def read_facts(path):
    """The `Facts` of a file of low-rank updates; None for any other file, of which its own reader tells what is wrong.

    Raises:
        UserError: It is a file of low-rank updates, but damaged or of a later version.
    """
    try:
        with opened(path) as file:
            return facts_of(file) if file else None
    except UserError:
        raise
    except Exception as error:
        let_pass(error, path)
        return None


def facts_of(file):
    """The `Facts` in an open file.

    Raises:
        UserError: It is of a later version.
        ValueError, KeyError: They are none.
    """
    version = int(file.attrs[MARK])
    if version != VERSION:
        raise UserError(f"{file.filename} holds low-rank updates of version {version}; this program reads {VERSION}.")
    rank, alpha = int(file.attrs["rank"]), float(file.attrs["alpha"])
    targets, base = (bytes(file.attrs[name]).decode("ascii") for name in ("targets", "base"))
    if not 1 <= rank <= MOST_RANK or not 0 < alpha < math.inf or targets not in TARGETS:
        raise ValueError(f"rank {rank}, alpha {alpha}, targets {targets!r}")
    if not re.fullmatch(r"[\w.:+-]{1,200}", base):
        raise ValueError(f"the base is {base[:50]!r}")
    return Facts(rank, alpha, targets, base)


def write_updates(path, facts, updates):
    """Write a file of low-rank updates, atomically.

    Args:
        path: The file.
        facts: Their `Facts`.
        updates: {place: (A, B)}, float32 (..., rank) and (rank, filters).

    Raises:
        UserError: A number is not finite; nothing is written then.
    """
    arrays = {f"{place}.{name}": np.asarray(x) for place, pair in updates.items() for name, x in zip("ab", pair)}
    if broken := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise UserError(f"the weights are no longer finite, and not saved: {', '.join(broken[:3])}")
    with atomic_path(path, room_of(arrays.values())) as partial, h5py.File(partial, "w") as file:
        file.attrs[MARK] = VERSION
        for name, value in asdict(facts).items():
            # As bytes of a fixed size: a text would lie in a heap (see hdf5_heaps.py).
            file.attrs[name] = np.bytes_(value) if isinstance(value, str) else value
        for name, array in arrays.items():
            file.create_dataset(name, data=array, dtype="float32")


def check_updates(path, kernels):
    """Refuse low-rank updates of other layers, without reading their numbers.

    Args:
        path: A file of which `read_facts` has given facts.
        kernels: {place: shape} of the kernels that its targets are in the UNet.

    Raises:
        UserError: It has other arrays, or is damaged.
    """
    with opened(path) as file:
        check_arrays(file, kernels)


def read_updates(path, kernels):
    """The numbers of a file of low-rank updates: {place: (A, B)}, float32. Arguments and errors as in `check_updates`."""
    with opened(path) as file:
        check_arrays(file, kernels)
        updates = {place: tuple(file[f"{place}.{name}"][()] for name in "ab") for place in kernels}
    if broken := [place for place, pair in updates.items() if not all(np.isfinite(x).all() for x in pair)]:
        raise UserError(f"{path} is a damaged file of low-rank updates: {broken[0]} is not finite.")
    return updates


def check_arrays(file, kernels):
    """Raise a UserError where the arrays in an open file are not those of the kernels {place: shape}."""
    rank, expected = facts_of(file).rank, {}
    for place, kernel in kernels.items():
        expected |= {f"{place}.a": (*kernel[:-1], rank), f"{place}.b": (rank, kernel[-1])}
    shapes = stored_shapes(file)  # refuses what leads to another file
    if set(file) != set(expected):
        there, missing = sorted(set(file) - set(expected)), sorted(set(expected) - set(file))
        raise UserError(
            f"{file.filename} holds low-rank updates of other layers: {there[:2] or 'none'} where the UNet has {missing[:2]}"
        )
    if any(file[name].shape != shape for name, shape in expected.items()):
        difference = shape_difference(shapes, expected.values())
        raise UserError(f"{file.filename} holds low-rank updates of layers of other sizes: {difference}")
    if odd := [name for name in expected if file[name].dtype != np.float32]:
        raise UserError(f"{file.filename} is a damaged file of low-rank updates: {odd[0]} is not float32.")


def refuse_other_base(files, base):
    """Raise a UserError where one of the files holds low-rank updates of another UNet than that of the hash.

    Args:
        files: Epoch files, of any kind; None among them.
        base: Function that returns the hash of the pretrained UNet; it is called if there are updates.

    Returns:
        Whether there are updates, for which the pretrained UNet is needed.
    """
    found = {file: facts for file in files if file and (facts := read_facts(file))}
    ours = base() if found else None
    for file, facts in found.items():
        if facts.base != ours:
            raise UserError(
                f"{file} holds low-rank updates of another pretrained UNet ({facts.base[:12]}) than this one "
                f"({ours[:12]}): give the --backbone and --weights_dir that they were trained with."
            )
    return bool(found)
