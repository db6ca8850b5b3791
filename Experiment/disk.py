"""Room on the disk, looked at before a run begins."""

import shutil

from Experiment.errors import UserError


def gigabytes(count):
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


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
        raise UserError(f"{what} takes {gigabytes(needed)}, and {there} has {gigabytes(free)} left.")
