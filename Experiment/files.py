"""Files that are whole or not there: atomic writing, JSON, CSV, npz, hashes."""

import contextlib
import csv
import errno
import glob
import hashlib
import json
import logging
import os
import shutil
import struct
import time
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from Experiment.errors import UserError, let_pass
from Experiment.locks import check_claims, locked, partial_path, writer_is_gone

log = logging.getLogger("experiment")


@contextlib.contextmanager
def atomic_path(path, size=0):
    """Yield a name beside `path` to write to; when the block succeeds the finished file takes its final name at once.

    A file under its final name is therefore always whole. The suffixes stay, since some writers look at them.

    Args:
        path: The final name.
        size: Bytes that the file will have at most, where the writer does not bear a full disk, see `reserve`.
    """
    path = Path(path)
    check_claims(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    for left in path.parent.glob(".partial-*" + glob.escape(f"-{path.name}")):
        if writer_is_gone(left):
            left.unlink(missing_ok=True)
    try:
        reserve(partial, size)
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def reserve(path, size):
    """Let a file have `size` bytes on the disk, or raise the system's OSError: disk, quota or a limit is too small.

    For what ends the process where room lacks: HDF5 (which gives the room back as it opens the file: another process may
    still take it), and pages of a file that is mapped into memory. Systems without such a call reserve nothing.
    """
    if not size or not hasattr(os, "posix_fallocate"):
        return
    try:
        with open(path, "ab") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(error.errno, error.strerror, str(path)) from None
        # Else this file system reserves nothing.


@contextlib.contextmanager
def atomic_folder(path):
    """Yield a new folder beside `path` to write into; when the block succeeds it takes the final name at once.

    A folder under its final name is therefore always whole. If the block fails nothing is left.

    Raises:
        UserError: There is something at `path`.
    """
    path = Path(path)
    refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    for left in path.parent.glob(".partial-*" + glob.escape(f"-{path.name}")):
        if left == partial or writer_is_gone(left):  # in a container the dead one may have had our number
            shutil.rmtree(left)
    partial.mkdir()
    try:
        yield partial
        if hasattr(os, "sync"):
            os.sync()  # one call for all of its files, which may be many
        refuse_existing(path)  # made meanwhile by another process
        os.rename(partial, path)
    finally:
        if partial.exists():
            shutil.rmtree(partial)


def refuse_existing(path):
    """Raise a UserError if there is something at a path, be it an empty folder or a link to nowhere."""
    if os.path.lexists(path):
        raise UserError(f"{path} is there already: name another folder, or remove it.")


def write_json(path, content):
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")


def read_json(path):
    """The content of a JSON file that holds an object.

    Raises:
        UserError: The file is something else.
    """
    try:
        content = json.loads(Path(path).read_text())
    # RecursionError: thousands of brackets.
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON ({error}): repair it or move it away.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object. Received: {type(content).__name__}")
    return content


# What NumPy makes of a damaged array: it reads the header as Python source.
NO_ARRAY = (ValueError, TypeError, OSError, EOFError, SyntaxError, OverflowError, tokenize.TokenError)


@contextlib.contextmanager
def plain_arrays(path):
    """An open .npz file: a mapping of names to arrays, none of which needs unpickling.

    Raises:
        UserError: The file is something else, or not whole.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            yield data
    # What NumPy and zipfile make of nonsense. TypeError: a single array (.npy), which is no context manager.
    except (
        *NO_ARRAY,
        KeyError,
        NotImplementedError,
        RuntimeError,
        MemoryError,
        struct.error,
        zlib.error,
        zipfile.BadZipFile,
    ) as error:
        let_pass(error, path)
        if isinstance(error, MemoryError):
            raise UserError(f"{path} needs more memory than there is, or is damaged: {error}") from None
        raise UserError(f"{path} is not a readable npz file of plain arrays: {error}") from None


def change_json(path, change):
    """Replace the content of a JSON file by `change(content)`; other runs write before or after, not at the same time.

    Where nothing is left of it the file goes. A broken file is set aside under another name, so that it does not cost hours
    of training.
    """
    path = Path(path)
    with locked(path):
        try:
            before = read_json(path) if path.exists() else {}
        except UserError as error:
            before, aside = {}, path.with_name(f"{path.stem}.broken-{time.time_ns()}{path.suffix}")
            os.replace(path, aside)
            log.warning("%s It is kept as %s", error, aside)
        if after := change(before):
            write_json(path, after)
        else:
            path.unlink(missing_ok=True)


def write_csv(path, rows):
    """Write a list of dicts with the same keys as a CSV file."""
    with atomic_path(path) as partial, open(partial, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def file_hash(path, algorithm="sha256"):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
