"""The folder of an export for diffusers: what is of an export there, and what is somebody's."""

import shutil

from Experiment.errors import UserError
from Models.exported import TABLE, UPDATES

RECORD = "export.json"  # written last: what has it is complete
BEGUN = "export.begun"  # lies there until then
OWN_NAMES = {"README.md", TABLE, UPDATES, RECORD, BEGUN, "log.txt", "model_index.json", "scheduler", "unet", "vae"}
OWN_BEGINNINGS = (".lock", ".partial")


def refuse_other_folders(folder):
    """Refuse a place that is no folder of an export: a file, or a folder of something else (UserError)."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--to {folder} is no folder.")
    there = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    there = [name for name in there if not name.startswith(OWN_BEGINNINGS)]
    others = [name for name in there if name not in OWN_NAMES]
    if not others and not {RECORD, BEGUN} & set(there):
        others = there  # a Stable Diffusion's own folder has these names too
    if others:
        raise UserError(f"--to {folder} holds something else than an export: {', '.join(others[:4])}.")


def remove_left(folder):
    """Remove what an earlier export has left: it may have had parts that this one has not."""
    for name in OWN_NAMES - {"log.txt", BEGUN}:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        (folder / name).unlink(missing_ok=True)
