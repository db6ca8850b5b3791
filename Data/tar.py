"""Tars whose bytes depend on nothing but what is added, written piece by piece in constant memory."""

import tarfile

BLOCK = tarfile.BLOCKSIZE


class TarWriter:
    """A tar of plain files. `tarfile.TarFile` would keep a record of every file in memory.

    Args:
        path: Of the tar.

    Attributes:
        size: Bytes that are written.
    """

    def __init__(self, path):
        self.file, self.size = open(path, "wb"), 0

    def add(self, name, content):
        """Add a file of up to 100 letters of name and of some bytes; it has no owner and no time."""
        member = tarfile.TarInfo(name)
        member.size = len(content)
        self.write(member.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % BLOCK))

    def write(self, piece):
        self.file.write(piece)
        self.size += len(piece)

    def close(self):
        """End the tar: two empty blocks, and what fills its last record."""
        self.write(bytes(2 * BLOCK))
        self.write(bytes(-self.size % tarfile.RECORDSIZE))
        self.file.close()
