"""A file from an address: whole or not there."""

import errno
import os
import re

from Experiment.errors import PassingError, UserError
from Experiment.files import atomic_path

# In what Keras says of an answer: the server is busy, or fails for now.
BUSY = re.compile(r"URL fetch failure on .*: (?:408|425|429|5\d\d) -- ")


def kind_of(error):
    """The class of the error to raise for a download that failed: `PassingError` where the server was busy.

    A network that is not there counts as lasting: compute nodes often have none, and a scheduler would ask again for ever.
    """
    return PassingError if BUSY.search(str(error)) else UserError


def download(url, path, digest):
    """Get a file.

    Args:
        url: Its address.
        path: Where it goes.
        digest: Its SHA-256 or MD5: a file of another one gets no name.

    Raises:
        OSError: The folder cannot be written: Keras would take another one, and leave the file there.
        Exception: Anything else, in which Keras wraps every failure.
    """
    from keras.utils import get_file

    with atomic_path(path) as partial:
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path.parent))
        get_file(partial.name, origin=url, cache_dir=str(path.parent), cache_subdir="", file_hash=digest)
