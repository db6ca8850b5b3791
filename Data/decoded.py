"""A synthetic set decoded once: its images in one file, of which later runs read the rows that they take."""

import logging
import zlib

import numpy as np

from Data.pictures import read_images
from Experiment.disk import bytes_in_words, check_room
from Experiment.errors import PassingError, UserError, let_pass
from Experiment.files import NO_ARRAY, atomic_path
from Experiment.locks import locked
from Experiment.progress import progress

log = logging.getLogger("experiment")

PIECE = 1024  # images that are decoded at a time
ROWS = 256  # images that are read at a time: a page that is touched brings 15 others into the process's memory


def decoded_rows(path, files, names, side, mode, rows):
    """Some images of a set, uint8 (len(rows), side, side, 3), from the file of them all, which is made if need be.

    Memory beyond that array is that of `PIECE` images. Where the disk lacks room for the file, only the images that are
    wanted are decoded.

    Args:
        path: Of the file: its name is a function of the set's content, `side` and `mode`.
        files, names: All images of the set, in order, by their names in `files`, see `read_images`.
        side, mode: As in `read_images`.
        rows: int (n,): which of them are wanted.

    Raises:
        UserError: Images cannot be read.
    """
    shape = (len(names), side, side, 3)
    with locked(path):
        if open_decoded(path, shape) is None:
            needed = int(np.prod(shape, dtype=np.int64))
            try:
                check_room(path.parent, needed, "keeping the decoded images")
            except UserError as error:
                log.warning("%s They are decoded again by every run.", error)
                return read_images([names[row] for row in rows], side, mode, files)
            log.info("decoding %d images, once, %s on disk -> %s", len(names), bytes_in_words(needed), path)
            write_decoded(path, shape, files, names, mode)
    images = np.empty((len(rows), *shape[1:]), np.uint8)
    for start in range(0, len(rows), ROWS):
        wanted, stored = rows[start : start + ROWS], open_decoded(path, shape)  # anew: what is mapped counts as memory
        if stored is None:
            raise PassingError(f"{path} has been deleted or changed meanwhile: run the same command again.")
        pixels, sums = stored
        images[start : start + ROWS] = pixels[wanted]
        if any(zlib.crc32(image) != known for image, known in zip(images[start:], sums[wanted])):
            raise UserError(f"{path} is damaged: remove it and run the same command again, which decodes the set anew.")
    return images


def open_decoded(path, shape):
    """Memory-mapped pixels uint8 and CRC-32 of each image uint32 (N,); None if there is no such file of this shape."""
    try:
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
        if getattr(pixels, "shape", None) != shape or pixels.dtype != np.uint8:
            return None
        with open(path, "rb") as file:
            file.seek(pixels.offset + pixels.nbytes)
            sums = np.load(file, allow_pickle=False)
    except NO_ARRAY as error:
        let_pass(error, path)
        return None
    return (pixels, sums) if sums.shape == shape[:1] and sums.dtype == np.uint32 else None


def write_decoded(path, shape, files, names, mode):
    """Decode all images into a file, piece by piece; behind them stand their checksums."""
    header, sums = {"descr": "|u1", "fortran_order": False, "shape": shape}, np.empty(shape[0], np.uint32)
    with atomic_path(path) as partial, open(partial, "wb") as file, progress(len(names), "image") as part:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(names), PIECE):
            images = read_images(names[start : start + PIECE], shape[1], mode, files)
            sums[start : start + PIECE] = [zlib.crc32(image) for image in images]
            file.write(images.data)
            part.reach(min(start + PIECE, len(names)))
        np.save(file, sums)
