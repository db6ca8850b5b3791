"""A file from an address: whole or not there."""

import errno
import os

from Experiment.files import atomic_path


def download(url, path, sha256=None):
    """Get a file.

    Args:
        url: Its address.
        path: Where it goes.
        sha256: Its hash; None where the caller checks it.

    Raises:
        OSError: The folder cannot be written: Keras would take another one, and leave the file there.
        Exception: Anything else, in which Keras wraps every failure.
    """
    from keras.utils import get_file

    with atomic_path(path) as partial:
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path.parent))
        get_file(partial.name, origin=url, cache_dir=str(path.parent), cache_subdir="", file_hash=sha256)
