"""A look at the heaps of strings in an HDF5 file before the library reads them.

Why: the HDF5 library that comes with h5py looks for the end of a damaged heap for ever, and no time limit of Python's
stops it. Without this a damaged weight file (a torn download, a bad disk) hangs a script instead of being refused in one
line. `tests/test_weights.py` shows that it is still needed: it fails when a new h5py refuses such a file itself.
"""

import mmap

import h5py

from Experiment.errors import UserError

HEAP_SIGNATURE = b"GCOL\x01\0\0\0"


def check_heaps(file):
    """Refuse an HDF5 file whose heaps of strings are damaged: the library may look for their end for ever.

    A heap is its signature and size, then objects: number (2 bytes), 6 others, size (8) and content, in steps of 8 bytes;
    number 0 is the free rest, with its own 16 bytes in its size (HDF5 File Format Specification 3.0, section III.E).
    Heaps are looked for between the weights, which are nearly all of a file and need not be read for it.

    Raises:
        UserError: An object does not end within its heap.
    """
    with open(file.filename, "rb") as disk, mmap.mmap(disk.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        for heap in find_between(raw, HEAP_SIGNATURE, stored_at(file)):
            at, end = heap + 16, heap + int.from_bytes(raw[heap + 8 : heap + 16], "little")
            while at + 16 <= end <= len(raw):
                number, size = (int.from_bytes(raw[at : at + 2], "little"), int.from_bytes(raw[at + 8 : at + 16], "little"))
                at += 16 + -(-size // 8) * 8 if number else size
                if not number:
                    break
            if end <= len(raw) and not end - 16 < at <= end:  # of a file cut short the library tells
                raise UserError(f"{file.filename} is damaged: a heap at byte {heap} has no end.")


def stored_at(file):
    """Where the values of the datasets in an HDF5 file lie: [(first byte, byte after the last)]."""
    places = []

    def visit(name, item):
        # None for a dataset in chunks; a damaged size would hide what comes after.
        if (
            isinstance(item, h5py.Dataset)
            and (start := item.id.get_offset()) is not None
            and item.id.get_storage_size() == item.nbytes
        ):
            places.append((start, start + item.nbytes))

    file.visititems(visit)
    return places


def find_between(raw, signature, places):
    """Yield where the signature begins, outside of the places."""
    begin = 0
    for start, end in [*sorted(place for place in places if place[1] <= len(raw)), (len(raw), len(raw))]:
        at = raw.find(signature, begin, start)
        while at >= 0:
            yield at
            at = raw.find(signature, at + 1, start)
        begin = max(begin, end)
