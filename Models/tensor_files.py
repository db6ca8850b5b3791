"""Safetensors files: headers checked, tensors read one at a time. Nothing in them is ever run."""

import re
from pathlib import Path

import ml_dtypes  # noqa: F401  safetensors needs its bfloat16
import numpy as np
from safetensors import SafetensorError, safe_open

from Experiment.errors import UserError, let_pass
from Experiment.files import read_json
from Experiment.text import one_line

READ = ("F32", "F16", "BF16")
SUFFIX = ".safetensors"
PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl", ".pickle")
# How files of other kinds begin.
BEGINNINGS = {
    b"PK\x03\x04": "a pickle of PyTorch, or another zip file",
    b"\x80\x02": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x89HDF": "an HDF5 file",
    b"GGUF": "a GGUF file",
    b"version https://git-lfs": "a Git LFS pointer, not the weights: fetch them with `git lfs pull`",
    b"<": "a web page",
}
PICKLE_ADVICE = "a pickle can run code when it is read, so none is: convert it to .safetensors, or get it so"
INDEX = f"{SUFFIX}.index.json"
SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(.*)\.safetensors")  # the variant before or behind the numbers


class Tensors:
    """The tensors of one or several safetensors files by name.

    Args:
        paths: The files.

    Attributes:
        shapes: {name: shape}.
        metadata: {name: text} of the first file.

    Raises:
        UserError: A file is none, is not whole, or two hold a tensor of the same name.
    """

    def __init__(self, paths):
        self.files, self.metadata = {}, {}
        for path in paths:
            file = open_tensors(path)
            names = set(file.keys())
            if twice := names & set(self.files):
                raise UserError(f"{path}: the tensor {min(twice)} is in {self.files[min(twice)][0].name} too.")
            self.files |= dict.fromkeys(names, (Path(path), file))
            self.metadata = self.metadata or dict(file.metadata() or {})
        self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name, (_, file) in self.files.items()}

    def refuse_types(self, names):
        """Refuse tensors that hold no real numbers, or others than are read here, by the header (UserError)."""
        for name in names:
            path, file = self.files[name]
            if (kind := file.get_slice(name).get_dtype()) not in READ:
                raise UserError(f"{path}: the tensor {name} is of type {kind}: {', '.join(READ)} are read.")

    def read(self, name):
        """A tensor as a float32 array.

        Raises:
            UserError: It is of another type, or is not finite.
        """
        self.refuse_types([name])
        path, file = self.files[name]
        array = np.asarray(file.get_tensor(name)).astype("float32")
        if not np.isfinite(array).all():
            raise UserError(f"{path}: the tensor {name} is not finite.")
        return array


def open_tensors(path):
    """An open safetensors file, whose header is good: of a sound size, and with tensors that fill the file side by side.

    Raises:
        UserError: It is another kind of file, or damaged.
    """
    refuse_others(path)
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError, ValueError) as error:
        let_pass(error, path)
        reason = one_line(error).removeprefix("Error while deserializing header: ")
        raise UserError(f"{path} is no sound safetensors file: {reason[:100]}. Is it whole? Get it again.") from None


def refuse_others(path):
    """Refuse, in words of their own, the kinds of file that people have instead of safetensors (UserError)."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}.")
    with open(path, "rb") as file:
        start = file.read(32)
    # The length of a header, with which a sound file begins, may look like the beginning of another kind.
    if start[8:9] == b"{" and path.suffix not in PICKLES:
        return
    kind = next((kind for beginning, kind in BEGINNINGS.items() if start.startswith(beginning)), None)
    if path.suffix in PICKLES or (kind and "pickle" in kind):
        raise UserError(f"{path} is {kind or 'a pickle by its name'}: {PICKLE_ADVICE}.")
    if kind:
        raise UserError(f"{path} is {kind}; weights are read from safetensors files, and from KerasCV's HDF5 files by folder.")


def files_of_part(folder):
    """The safetensors files of a part of a diffusers model: one, or the shards of one.

    Of several complete sets the one without a variant (`fp16`, `non_ema`) is taken; of a whole file and shards beside it
    the shards, as diffusers does: it leaves the file of an earlier save there, but removes shards of one.

    Raises:
        UserError: There are none, shards are missing, or none of several sets is the plain one.
    """
    names = {path.name for path in folder.iterdir() if path.is_file()}
    plain = "diffusion_pytorch_model"
    index = next((name for name in (f"{plain}{INDEX}", *sorted(names)) if name in names and name.endswith(INDEX)), None)
    if f"{plain}{SUFFIX}" in names:
        beside = index == f"{plain}{INDEX}" and any(SHARD.fullmatch(name) and name.startswith(f"{plain}-") for name in names)
        return shards_of_index(folder / index) if beside else [folder / f"{plain}{SUFFIX}"]
    if index:
        return shards_of_index(folder / index)
    found = sorted(name for name in names if name.endswith(SUFFIX))
    if not found:
        pickles = sorted(name for name in names if name.endswith(PICKLES))
        there = f" but {pickles[0]}: {PICKLE_ADVICE}" if pickles else ""
        raise UserError(f"there are no safetensors in {folder}{there}.")
    shards = [SHARD.fullmatch(name) for name in found]
    if len(found) == 1 and not shards[0]:
        return [folder / found[0]]
    if not all(shards) or len({shard.group(1, 4) for shard in shards}) > 1:
        raise UserError(f"{folder} holds {', '.join(found[:4])}: leave the one that is meant, or all shards of it.")
    if [(int(shard[2]), int(shard[3])) for shard in shards] != [(i + 1, len(found)) for i in range(len(found))]:
        raise UserError(f"{folder} holds only {', '.join(found[:4])}: shards are missing, or there are some of another set.")
    return [folder / name for name in found]


def shards_of_index(index):
    """The files that an index names.

    Raises:
        UserError: It is no index, or names a file elsewhere or one that is missing.
    """
    places = read_json(index).get("weight_map")
    named = list(places.values()) if isinstance(places, dict) else []
    if not named or not all(isinstance(name, str) and name == Path(name).name for name in named):
        raise UserError(f"{index} is no index of shards beside it.")
    files, there = sorted(set(named)), {path.name for path in index.parent.iterdir()}
    if missing := [name for name in files if name not in there]:
        shown = ", ".join(name[:60] for name in missing[:4])
        raise UserError(f"{index} names {shown}, which {'is' if len(missing) == 1 else 'are'} missing.")
    return [index.parent / name for name in files]
