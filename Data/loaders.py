"""Real data: every dataset becomes the same three disjoint splits of uint8 images and int labels."""

import importlib.util
import logging
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from Data.folders import BROKEN, Unused, scan_folder
from Data.npz import SPLITS, read_npz, read_rows
from Data.oddities import warn_of_oddities
from Data.own_split import Recorded, check_digests, checked_division, first_copies, places_of, record_split, recorded_split
from Data.pictures import Files, readable_images
from Data.registry import MEDMNIST_SIDES, class_names, medmnist_info
from Data.report import Report
from Data.resizing import resize_images
from Experiment.downloads import download, kind_of
from Experiment.errors import UserError
from Experiment.files import file_hash
from Experiment.presets import SEED
from Experiment.text import first_ten, shown

log = logging.getLogger("experiment")

CIFAR_VALIDATION = 10_000  # the last images of the 50,000, as published
# The archives of plain bytes: the better known ones hold pickles, which nothing here reads.
CIFAR_URL = "https://www.cs.toronto.edu/~kriz/"
CIFAR_FILES = {
    "cifar10": (
        "cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
        [f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)],
        ["cifar-10-batches-bin/test_batch.bin"],
    ),
    "cifar100": (
        "cifar-100-binary.tar.gz",
        "03b5dce01913d631647c71ecec9e9cb8",
        ["cifar-100-binary/train.bin"],
        ["cifar-100-binary/test.bin"],
    ),
}
# Numbers of the digits of each split, one line each, in their order.
DIGITS_SPLIT = Path(__file__).parent / "digits_split.txt"


class Split(NamedTuple):
    """Images uint8 (N, H, W, 3) and labels int32 (N,)."""

    images: np.ndarray
    labels: np.ndarray


class Splits(NamedTuple):
    train: Split
    val: Split
    test: Split


def load_splits(spec, data_dir, seed=SEED, side=None, experiment=None):
    """The real train, validation and test images of a dataset. What is used, and what is not, is logged.

    Args:
        spec: A `DatasetSpec`.
        data_dir: Folder with the official files; missing ones are downloaded into it.
        seed: Decides how an image folder without validation or test images is split; unused otherwise, and where the
            experiment has its split already.
        side: Size of the images, px; without it they stay as they are in the files (MedMNIST's may be of 28 to 224).
        experiment: The `Experiment` that keeps the split of such a folder, and the list of what is not used.

    Raises:
        UserError: Files are missing and cannot be downloaded, or are not what they should be.
    """
    facts = {}
    if spec.source == "folder":
        splits, facts = load_folder(spec, seed, side, experiment)
    elif spec.source == "npz":
        splits = Splits(*(Split(*split) for split in read_npz(spec.path, side=side).values()))
    else:
        load = {"cifar": load_cifar, "medmnist": load_medmnist, "digits": load_digits}[spec.source]
        splits = load(spec, Path(data_dir), side)
    for name, split in zip(Splits._fields, splits):
        check_split(spec, name, split)
    Report(spec, splits, class_names(spec), **facts).tell(experiment)
    warn_of_oddities(spec, splits)
    return splits


def check_split(spec, name, split):
    """Check what a loader has read.

    Args:
        spec: The `DatasetSpec`.
        name: Of the split, for the message.
        split: Its (images, labels).

    Raises:
        UserError: They are not images uint8 (N, H, W, 3) with labels (N,) in 0..num_classes-1, N > 0.
    """
    images, labels = split
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or len(images) != len(labels):
        raise UserError(
            f"{spec.name}, {name}: images must be uint8 (N, H, W, 3) with N labels. "
            f"Received: {images.dtype} {images.shape} with {len(labels)} labels"
        )
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= spec.num_classes:
        found = f"{labels.min()}..{labels.max()}" if len(labels) else "none"
        raise UserError(f"{spec.name}, {name}: labels must be in 0..{spec.num_classes - 1}. Received: {found}")


def fetch(url, name, folder, md5):
    """The path of an official file: taken from `folder`, or downloaded into it; checked by its hash either way.

    Raises:
        UserError: It is neither there nor reachable, or its hash is wrong.
    """
    path = folder / name
    place = f"Download {url} by other means and put it there as {name}, or name its folder with --data_dir."
    if not path.exists():
        log.info("downloading %s to %s", url, folder)
        try:
            download(url, path, md5)
        # Keras wraps every failure of a download in a plain Exception.
        except Exception as error:
            raise kind_of(error)(f"{name} is not in {folder} and cannot be downloaded ({error}). {place}") from None
    if file_hash(path, "md5") != md5:
        raise UserError(f"{path} is not the official file: its MD5 is not {md5}. Delete it. {place}")
    return path


def load_cifar(spec, data_dir, side):
    archive, md5, train_files, test_files = CIFAR_FILES[spec.name]
    path = fetch(CIFAR_URL + archive, archive, data_dir, md5)
    label_bytes = 1 if spec.name == "cifar10" else 2  # CIFAR-100: coarse label, then the fine one that is used
    row = label_bytes + 3 * 32 * 32
    with tarfile.open(path) as tar:
        sizes = {name: tar.getmember(name).size // row for name in [*train_files, *test_files]}
        train, test = (sum(sizes[name] for name in names) for names in (train_files, test_files))
        parts = {"train": train - CIFAR_VALIDATION, "val": CIFAR_VALIDATION, "test": test}
        px = side or 32
        splits = Splits(*(Split(np.empty((n, px, px, 3), np.uint8), np.empty(n, np.int32)) for n in parts.values()))
        rows = ((part, tar.extractfile(name), sizes[name]) for part, names in
                (("train", train_files), ("test", test_files)) for name in names)  # fmt: skip
        done = {"train": 0, "test": 0}
        for part, stream, count in rows:
            for piece in read_rows(stream, (count, row)):
                images = piece[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # (n, 32, 32, 3)
                images = resize_images(images, px)
                put(splits, part, done[part], images, piece[:, label_bytes - 1])
                done[part] += len(piece)
    return splits


def put(splits, part, at, images, labels):
    """Copy images into a split, from the `at`th place on; those behind the end of training go into validation."""
    target = getattr(splits, part)
    fit = max(0, min(len(images), len(target.labels) - at))
    target.images[at : at + fit], target.labels[at : at + fit] = images[:fit], labels[:fit]
    if fit < len(images):
        put(splits, "val", max(0, at - len(target.labels)), images[fit:], labels[fit:])


def load_medmnist(spec, data_dir, side):
    """An official MedMNIST file: the one named by its path, or that of `medmnist_file`."""
    path = spec.path
    if path is None:
        info, size = medmnist_info(spec.name), medmnist_file(spec, data_dir)
        suffix = f"_{size}" if size != 28 else ""
        path = fetch(info[f"url{suffix}"], medmnist_name(spec.name, size), data_dir, info[f"MD5{suffix}"])
        log.info("%s: the file of %d px, %s", spec.name, size, path)
    # Every class need not be in each split of an official file.
    splits = read_npz(path, range(spec.num_classes), side, complete=False)
    return Splits(*(Split(*split) for split in splits.values()))


def medmnist_file(spec, data_dir):
    """Which size of a MedMNIST file is read, px.

    With --resolution the smallest that is large enough: of those in the folder if one is, else of all; otherwise 28 px,
    or the largest in the folder where only larger ones are.
    """
    there = [size for size in MEDMNIST_SIDES if (data_dir / medmnist_name(spec.name, size)).exists()]
    if not spec.chosen:
        if there and 28 not in there:
            log.warning(
                "%s: only the file of %d px is there; the published experiments read 28 px: what is adapted sees sharper images",
                spec.name, there[-1],
            )  # fmt: skip
        return 28 if 28 in there or not there else there[-1]
    enough = [size for size in MEDMNIST_SIDES if size >= spec.resolution]
    there_enough = [size for size in there if size in enough]
    if there_enough:
        return there_enough[0]
    if there:
        log.warning("%s: images of %d px are enlarged to %d px", spec.name, there[-1], spec.resolution)
        return there[-1]
    return enough[0] if enough else MEDMNIST_SIDES[-1]


def medmnist_name(name, size):
    return f"{name}.npz" if size == 28 else f"{name}_{size}.npz"


def load_digits(spec, data_dir, side):
    """The 1,797 handwritten digits that scikit-learn carries: a fixed stratified split, 1000 / 297 / 500.

    Its file is read without scikit-learn, whose import takes longer than all other reading: the split is what its
    `train_test_split` gives with seed 1234, first of the test images, then of the validation images.
    """
    folder = importlib.util.find_spec("sklearn").submodule_search_locations[0]
    rows = np.loadtxt(Path(folder) / "datasets" / "data" / "digits.csv.gz", delimiter=",")  # (1797, 65): pixels, label
    pixels, labels = rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int32)
    images = np.repeat((pixels * (255 / 16)).round().astype(np.uint8)[..., None], 3, axis=-1)  # (1797, 8, 8, 3)
    images = resize_images(images, side or 8)
    split = [np.array(line.split(), int) for line in DIGITS_SPLIT.read_text().splitlines()]
    return Splits(*(Split(images[index], labels[index]) for index in split))


def load_folder(spec, seed, side, experiment):
    """A folder of class folders, with train/val/test, train/test, or neither: then a stratified split.

    Returns:
        Its `Splits`, and what a `Report` needs besides.
    """
    scan = spec.scan or scan_folder(spec.path)
    if scan.broken and not spec.skip_broken:
        refuse_broken(f"{shown(scan.path / file)} ({reason})" for file, reason in scan.broken.items())
    listings, recorded = divided(scan, seed, experiment)
    keeps = experiment and len(scan.splits) < len(SPLITS)
    digests, names, splits, broken = {}, {}, {}, dict(scan.broken)  # each by split, but the last: {file: reason}
    for split in SPLITS:
        files, labels = listings[split]
        hashes = np.zeros((len(files), 32), np.uint8) if keeps else None
        images, lost = readable_images(files, spec.resolution, "antialias", spec.background, Files(scan.path), hashes)
        if lost and not spec.skip_broken:
            refuse_broken(lost.values())
        digests[split] = Recorded(files, hashes)
        broken |= {files[i]: reason for i, reason in lost.items()}
        images, labels, names[split] = without(lost, images, labels, files)
        gone = [shown(spec.classes[c]) for c in range(spec.num_classes) if not (labels == c).any()]
        if gone:
            raise UserError(f"{shown(scan.path)}, {split}: no image of these classes can be read: {first_ten(gone, ', ')}")
        splits[split] = Split(resize_images(images, side) if side else images, labels)
    if keeps:
        keep_split(experiment, scan, digests, recorded, seed)
    unused = scan.unused + [Unused(file, BROKEN, reason) for file, reason in broken.items()]
    return Splits(**splits), {"unused": unused, "files": names}


def refuse_broken(reasons):
    reasons = list(reasons)
    raise UserError(f"{len(reasons)} images cannot be read (--skip_broken leaves them out): {first_ten(reasons)}")


def without(lost, images, labels, files):
    """Images, labels and files without those at the indices `lost`; images move up within their array."""
    if not lost:
        return images, labels, files
    kept = [i for i in range(len(files)) if i not in lost]
    for to, at in enumerate(kept):
        if to != at:
            images[to] = images[at]
    return images[: len(kept)], labels[kept], [files[i] for i in kept]


def divided(scan, seed, experiment):
    """{split: (files, labels)} of a scanned folder, and the experiment's record: {split: Recorded} or None."""
    listings = dict(scan.splits)
    if len(listings) == len(SPLITS):
        return listings, None
    whole = "all" if "all" in listings else "train"
    files, labels = listings.pop(whole)
    recorded = recorded_split(experiment)
    if recorded is None:
        parts = checked_division(labels, whole, seed, scan.classes, first_copies(scan.path, files, labels))
        listings |= {split: ([files[i] for i in index], labels[index]) for split, index in parts.items()}
    else:
        places = places_of(experiment, recorded, files)
        if set(recorded) | set(listings) != set(SPLITS):
            raise UserError(f"{experiment.split_file} is the record of another kind of folder: use another --exp.")
        for split, index in places.items():
            listings[split] = [files[i] for i in index], labels[index]
            recorded[split] = recorded[split]._replace(files=listings[split][0])  # every name once in memory
    return listings, recorded


def keep_split(experiment, scan, digests, recorded, seed):
    """Record a new split, or compare the files that were read with the record."""
    ours = {split: of_split for split, of_split in digests.items() if split not in scan.splits or split == "train"}
    recorded = recorded or record_split(experiment, ours, seed)
    if recorded is None:
        return
    if any(recorded[split].files != of_split.files for split, of_split in ours.items() if split in recorded):
        raise UserError(
            f"another process has divided the images at the same time, by another seed: run the same command again "
            f"({experiment.split_file})."
        )
    check_digests(experiment, recorded, ours)
