"""Room on the disk, looked at before a run begins."""

import shutil

from Experiment.errors import UserError


def bytes_in_words(count):
    """A number of bytes as people say it: 1.2 GB, 30.0 MB, 4.0 kB."""
    unit, name = next(
        (unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if count >= unit / 10 or unit == 1e3
    )
    return f"{count / unit:.1f} {name}"


def check_room(folder, needed, what):
    """Refuse a run whose files do not fit.

    Args:
        folder: Where they go; it need not be there yet.
        needed: Bytes.
        what: What takes them, for the message.

    Raises:
        UserError: There is less room.
    """
    there = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(f"{what} takes {bytes_in_words(needed)}, and {there} has {bytes_in_words(free)} left for {folder}.")
