"""The content of a synthetic set as one hash, computed once as long as nothing changes."""

import hashlib
import logging

from Data.marking import unmarked
from Data.parallel import in_chunks
from Experiment.errors import UserError
from Experiment.files import read_json, write_json

log = logging.getLogger("experiment")


def class_hashes(names, read, known=None):
    """For each class, a SHA-256 of its files' SHA-256, in their order; the mark of generated images does not count.

    Args:
        names: One list a class.
        read: Function of a name that gives the bytes of the file.
        known: {(label, index): digest of a file}; the other files are read.
    """
    hashes = []
    for label, of_class in enumerate(names):
        digests = [(known or {}).get((label, index)) for index in range(len(of_class))]
        unread = [index for index, digest in enumerate(digests) if digest is None]

        def look(i, of_class=of_class, digests=digests, unread=unread):
            digests[unread[i]] = hashlib.sha256(unmarked(read(of_class[unread[i]]))).digest()

        in_chunks(look, len(unread))
        hashes.append(hashlib.sha256(b"".join(digests)).hexdigest())
    return hashes


def kept_file(folder):
    """Where the hashes of a set are kept: beside its folder."""
    return folder.with_name(f"{folder.name}.hashes.json")


def stamp(store):
    """How many files hold the images, and a hash of their places, sizes and when they were last written, moved or replaced.

    A copy has another one, since the time of the last change cannot be set: what a copied manifest says is not believed.
    """
    found = sorted((place, file.st_size, file.st_mtime_ns, file.st_ctime_ns) for place, file in store.stats())
    return [len(found), hashlib.sha256(repr(found).encode()).hexdigest()]


def keep_hashes(folder, store, hashes):
    """Note the hashes of the classes of a set. Where there is no room beside it, they are computed each time."""
    try:
        write_json(kept_file(folder), {"stamp": stamp(store), "sha256": hashes})
    except OSError as error:
        log.debug("%s: %s", kept_file(folder), error)


def kept_hashes(folder, store):
    """Hashes of the classes that were noted and still hold, or None."""
    try:
        kept = read_json(kept_file(folder)) if kept_file(folder).exists() else {}
    except UserError:  # damaged: it is made again
        return None
    return kept.get("sha256") if kept.get("stamp") == stamp(store) else None


def set_hashes(folder, store):
    """A hash of each class's images, the same with and without a manifest, and in every store.

    Args:
        folder: Of the set, a `Path`.
        store: The set's, see Data/stores.py.

    Raises:
        UserError: The images cannot be read.
    """
    hashes = kept_hashes(folder, store)
    if hashes is None:
        hashes = class_hashes(store.names, store.read)
        keep_hashes(folder, store, hashes)
    return hashes


def content_hash(folder, store):
    """One hash of all images, see `set_hashes`."""
    return combined(set_hashes(folder, store))


def combined(hashes):
    """One hash of those of the classes."""
    return hashlib.sha256("\n".join(map(str, hashes)).encode()).hexdigest()
