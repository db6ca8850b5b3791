"""A folder in which a synthetic set is generated: what it is made with, whether it is complete, and its pictures."""

import io
import logging
import os
import re
import shutil

import numpy as np
from PIL import Image

from Data.filtering import LEDGER
from Data.pictures import read_images
from Data.sinks import PENDING
from Data.stores import FILES, TAR_PATTERN
from Data.synthetic import MANIFEST, RECORD, open_set
from Experiment.errors import UserError
from Experiment.files import read_json, write_json
from Experiment.levers import filled_in
from Experiment.locks import locked
from Experiment.records import flattened, short
from Experiment.text import first_ten, shown

log = logging.getLogger("experiment")

OWN_FILES = (".lock", "log.txt", ".partial", ".generation")  # what is there before the images are begun
CLASS_FOLDER = re.compile(r"class_\d+")
THROWN_AWAY = {"total": 0}  # the record of a set that is being thrown away
# What a set is made of besides; or a link in the place of a folder of its.
OF_A_SET = re.compile(rf"{re.escape(LEDGER)}|run\.json|samples\.png|images-\d+\.tar|class_\d+|{PENDING.pattern}")
BYTES_A_PIXEL, BYTES_A_FILE = 1.5, 2_000  # of a PNG, about: half of the raw pixels


def room_of(count, side):
    """About how many bytes a number of images takes on the disk."""
    return count * (BYTES_A_PIXEL * side**2 + BYTES_A_FILE)


def sheet_file(folder):
    """The sample sheet lies beside the folder: readers of image folders would take it for an image of the set."""
    return folder.with_name(f"{folder.name}.samples.png")


def move_sheet(folder):
    """Move the sheet of a set that an earlier version has made, which lies among the class folders."""
    if (folder / "samples.png").exists():
        os.replace(folder / "samples.png", sheet_file(folder))


def refuse_foreign(folder, restart=False):
    """Raise a UserError if the folder holds something that no run of generate_dataset.py has begun.

    With `restart` other folders in that of a set are refused too: they stay, and a set with such cannot be read.
    """
    there = [path for path in folder.iterdir() if not path.name.startswith(OWN_FILES)] if folder.exists() else []
    if there and not any((folder / name).exists() for name in (RECORD, MANIFEST)):
        raise UserError(f"{folder} holds something that generate_dataset.py has not begun: move it away.")
    strange = [path.name for path in there if path.is_dir() and not CLASS_FOLDER.fullmatch(path.name)]
    if restart and strange:
        raise UserError(f"{folder} holds folders that are not of the set: {first_ten(strange, ', ')}. Move them away.")


def check_folder(folder, settings):
    """Check that what lies in the folder is of the same settings.

    Args:
        folder: Of the images; it need not be there.
        settings: What decides the images. A record of an earlier version lacks some: then they are not compared.

    Raises:
        UserError: The folder holds images of other settings, or something else.
    """
    record = folder / RECORD
    if record.exists():
        before, now = flattened(read_json(record)), flattened(settings)
        if before == THROWN_AWAY:
            raise UserError(f"{folder}: a --restart was interrupted as it threw away what is here. Give it again.")
        if (store := before.get("store", FILES)) != now.get("store", FILES):
            raise UserError(
                f"{folder} holds a set of --store {shown(store)}, and goes on as such: give that, use another --exp, or --restart."
            )
        before, now = filled_in(before, now), filled_in(now, before)
        differing = [key for key in now if key in before and before[key] != now[key]]
        if differing:
            told = "; ".join(f"{key}: {short(before[key])} there, {short(now[key])} now" for key in differing)
            raise UserError(f"{folder} holds images of other settings ({told}). Use another --exp, or --restart.")
    elif (folder / MANIFEST).exists():
        raise UserError(f"{folder} holds a set whose {RECORD} is gone: use another --exp, or --restart.")
    else:
        refuse_foreign(folder)


def lacks_mark(folder):
    """Whether a set was begun by an earlier version, which did not mark generated images: it goes on without the mark."""
    record = folder / RECORD
    return record.exists() and "no_mark" not in read_json(record)


def is_complete(writer):
    """Whether the set of a `SyntheticWriter` has its manifest and all of its images where readers find them. They are not looked at."""
    return (writer.folder / MANIFEST).exists() and writer.is_whole((1, 1))


def begin_folder(folder, settings, restart):
    """Say in the folder what is generated there; with `restart`, throw away the set that is there, and nothing else.

    Raises:
        UserError: A shard that began at the same moment has other settings.
    """
    record = folder / RECORD
    if restart:
        images, tars = (sum(1 for _ in folder.glob(pattern)) for pattern in ("class_*/img_*.png", TAR_PATTERN))
        log.info("throwing away the %s in %s", f"{tars} tars of images" if tars else f"{images} images", folder)
        write_json(record, THROWN_AWAY)  # killed now, nothing takes what is left for images of the new set
        (folder / MANIFEST).unlink(missing_ok=True)  # first: what has a manifest is complete
        for path in folder.iterdir():
            if CLASS_FOLDER.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif OF_A_SET.fullmatch(path.name):
                path.unlink()
            elif not path.name.startswith(OWN_FILES) and path != record:
                log.warning("%s is not of the set: it stays", path)
        sheet_file(folder).unlink(missing_ok=True)
    with locked(record):
        if not restart:
            check_folder(folder, settings)
        write_json(record, settings)


def finish_set(writer, settings):
    """Write the manifest. Warns where a class is no longer what an earlier manifest says of it."""
    file = writer.folder / MANIFEST
    before = read_json(file).get("sha256") if file.exists() else None
    hashes = writer.finish(settings)
    if before and before != hashes:
        differing = [path.name for path, old, new in zip(writer.class_folders, before, hashes) if old != new]
        log.warning("images in %s are not those of the earlier manifest; the new one is of what is there now",
                    ", ".join(differing[:10]))  # fmt: skip


def image_side(store):
    """Side of the images in a store, px, from the first of them."""
    with Image.open(io.BytesIO(store.read(next(of_class[0] for of_class in store.names if of_class)))) as image:
        return image.width


def draw_pictures(folder, classes, title, images_dir):
    """The sample sheet of a set and the published collages. Returns the sheet.

    Args:
        folder: Of the images.
        classes: Names of the classes.
        title: Of the sheet.
        images_dir: Folder of the collages.
    """
    from sheets import COLLAGE_COLUMNS, COLLAGE_ROWS, MAX_SHEET_ROWS, SHEET_COLUMNS, class_collages, sample_sheet

    store = open_set(folder, len(classes))
    side = image_side(store)
    in_sheet = {}

    def by_class():  # a class at a time: of many, all would take much memory
        for label, of_class in enumerate(store.names):
            images = read_images(of_class[: COLLAGE_COLUMNS * COLLAGE_ROWS], side, files=store)
            if len(images) and len(in_sheet) < MAX_SHEET_ROWS:
                in_sheet[label] = images[:SHEET_COLUMNS].copy()
            yield images

    class_collages(by_class(), images_dir, "synth")
    labels = np.repeat(list(in_sheet), list(map(len, in_sheet.values())))
    images = np.concatenate(list(in_sheet.values()))
    move_sheet(folder)
    return sample_sheet(images, labels, classes, sheet_file(folder), title)
