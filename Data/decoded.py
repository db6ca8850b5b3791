"""A synthetic set decoded once: its images in one file, of which later runs read the rows that they take."""

import logging
import tokenize

import numpy as np

from Data.pictures import read_images
from Experiment.disk import check_room
from Experiment.errors import UserError
from Experiment.files import atomic_path
from Experiment.locks import locked

log = logging.getLogger("experiment")

PIECE = 1024  # images at a time


def decoded_rows(folder, name, paths, side, mode, rows):
    """Some images of a set, uint8 (len(rows), side, side, 3), from the file of them all, which is made if need be.

    Memory beyond that array is that of `PIECE` images. Where the disk lacks room for the file, only the images that are
    wanted are decoded.

    Args:
        folder: Of such files.
        name: Of this one, without suffix: a function of the set's content, `side` and `mode`.
        paths: All images of the set, in order.
        side, mode: As in `read_images`.
        rows: int (n,): which of them are wanted.

    Raises:
        UserError: Images cannot be read.
    """
    path, shape = folder / f"{name}.npy", (len(paths), side, side, 3)
    with locked(path):
        if open_decoded(path, shape) is None:
            try:
                check_room(folder, int(np.prod(shape, dtype=np.int64)), "keeping the decoded images")
            except UserError as error:
                log.warning("%s They are decoded again by every run.", error)
                return read_images([paths[row] for row in rows], side, mode)
            log.info("decoding %d images, once -> %s", len(paths), path)
            write_decoded(path, shape, paths, mode)
    images = np.empty((len(rows), *shape[1:]), np.uint8)
    for start in range(0, len(rows), PIECE):
        stored = open_decoded(path, shape)  # anew: what is mapped counts as memory of the process until it is closed
        if stored is None:
            raise UserError(f"{path} has been deleted or changed meanwhile: run the same command again.")
        images[start : start + PIECE] = stored[rows[start : start + PIECE]]
    return images


def open_decoded(path, shape):
    """The memory-mapped array of a file, None if there is none of this shape."""
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    # NumPy reads the header as Python source.
    except (ValueError, TypeError, OSError, EOFError, SyntaxError, OverflowError, tokenize.TokenError):
        return None
    return stored if getattr(stored, "shape", None) == shape and stored.dtype == np.uint8 else None


def write_decoded(path, shape, paths, mode):
    """Decode all images into a file, piece by piece."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with atomic_path(path) as partial, open(partial, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(paths), PIECE):
            file.write(read_images(paths[start : start + PIECE], shape[1], mode).data)
