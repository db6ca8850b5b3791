"""The photographs that `small` has seen: where they come from, their licences, and how they are read.

Each source is a tar file of JPEG files in a folder a category, shorter side 96 px. The files are not in the repository.
"""

import io
import tarfile
from dataclasses import dataclass

import numpy as np
from PIL import Image

from Experiment.errors import UserError
from Experiment.files import file_hash


@dataclass(frozen=True)
class Source:
    """A set of photographs.

    Attributes:
        file: Name of the tar file.
        sha256: Its hash.
        name: Of the set.
        address: Where its originals are described and held.
        licence: As its holders state it.
        attribution: Who made it.
    """

    file: str
    sha256: str
    name: str
    address: str
    licence: str
    attribution: str


SOURCES = (
    Source(
        "caltech101.tar",
        "a2434316aa8c83830528f6321d4cb223cfa275a778b91624c242a0f4c8d458e8",
        "Caltech-101 without faces, background and two folders of cartoons",
        "https://doi.org/10.22002/D1.20086",
        "CC BY 4.0",
        "Li, Andreeto, Ranzato, Perona: Caltech 101 (2022)",
    ),
    Source(
        "grocery.tar",
        "b43542cd12d6670e8ce5a7b3044b5b0f88da60942ac1f67212cf69d646f65ebb",
        "Grocery Store Dataset",
        "https://github.com/marcusklasson/GroceryStoreDataset",
        "MIT",
        "Klasson, Zhang, Kjellstroem: A Hierarchical Grocery Store Image Dataset with Visual and Semantic Labels (2019)",
    ),
    Source(
        "trash.tar",
        "58b91b3d65981edecb032be5338db2848825069d9a34768fb594b662f2cc7a2f",
        "TrashNet",
        "https://github.com/garythung/trashnet",
        "MIT",
        "Thung, Yang: Classification of Trash for Recyclability Status (2016)",
    ),
)


def source_hashes(folder, other=False):
    """{file: SHA-256} of the tar files in a folder.

    Args:
        folder: Holds the files of `SOURCES`; with `other`, any tar files.
        other: Whether files of other hashes are taken.

    Raises:
        UserError: A file is missing, or its hash is another one.
    """
    expected = {source.file: source.sha256 for source in SOURCES}
    names = sorted(path.name for path in folder.glob("*.tar")) if other else expected
    if not names:
        raise UserError(f"--photographs {folder} holds no tar file.")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise UserError(f"--photographs {folder} has no {', '.join(missing)}.")
    found = {name: file_hash(folder / name) for name in names}
    if not other and (wrong := [name for name in names if found[name] != expected[name]]):
        raise UserError(
            f"{folder / wrong[0]} has SHA-256 {found[wrong[0]][:8]}, not {expected[wrong[0]][:8]}: it is another file than "
            "the weights are made of; --other_photographs takes it all the same."
        )
    return found


def listed_photographs(folder, files):
    """All photographs in a fixed order, and their categories.

    Returns:
        [(tar file, member, number of the category)] sorted by name, and the names of the categories, `caltech101/anchor`.

    Raises:
        UserError: A tar file is not readable.
    """
    members = []
    for file in sorted(files):
        try:
            with tarfile.open(folder / file) as archive:
                members += [(file, member.name) for member in archive if member.isfile()]
        except tarfile.TarError as error:
            raise UserError(f"{folder / file} is not a readable tar file: {error}") from None
    if not members:
        raise UserError(f"there are no photographs in {', '.join(sorted(files))} of {folder}.")
    members.sort()
    names = [f"{file.removesuffix('.tar')}/{member.rpartition('/')[0]}" for file, member in members]
    categories = sorted(set(names))
    number = {name: i for i, name in enumerate(categories)}
    return [(*member, number[name]) for member, name in zip(members, names)], categories


def read_photographs(folder, photographs):
    """Yield pixels uint8 (H, W, 3) of some of the listed photographs, in their order."""
    archives = {}
    try:
        for file, member, _ in photographs:
            archive = archives.get(file) or archives.setdefault(file, tarfile.open(folder / file))
            with Image.open(io.BytesIO(archive.extractfile(member).read())) as picture:
                yield np.asarray(picture.convert("RGB"))
    finally:
        for archive in archives.values():
            archive.close()
