"""Formats in which a synthetic set is handed on. A new one is a writer and an entry of `FORMATS`.

A writer is a function of the folder to fill, the `SetToExport` and an iterator of its images. It returns a `Layout`: what
the card says of the folder.
"""

import itertools
import json
import re
import zipfile
from collections import Counter
from typing import NamedTuple

import numpy as np
from PIL import Image

from Data.loaders import medmnist_name
from Data.marking import COMPOSITE, DIGITAL_SOURCE_TYPE
from Data.registry import MEDMNIST_SIDES, channels
from Data.resizing import resize
from Data.tar import TarWriter
from Experiment.files import file_hash

MOST_FILES = 10_000  # entries of a folder, and
MOST_IN_ALL = 100_000  # files of a repository, as Hugging Face advises
PART_BYTES = 500_000_000  # of a Parquet file
ROWS = 500  # images of a row group, and images that are packed at a time
SHARD_BYTES = 1_000_000_000  # of a tar
NOT_IN_NAMES = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')  # on one of the systems in use
RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")  # names of devices on Windows
MOST_BYTES = 120  # of a folder's name

PNG_MARK = (
    f"Each PNG says `Iptc4xmpExt:DigitalSourceType` = `{DIGITAL_SOURCE_TYPE}` in its XMP metadata, a mark that programs can "
    "read. It is lost when an image is stored anew, and no watermark is in the pixels."
)
NPZ_MARK = "Arrays hold no mark: the comment of the file is `{}`, and no watermark is in the pixels."
READING_HUGGING_FACE = 'import datasets\n\ntrain = datasets.load_dataset("FOLDER", split="train")'


class Layout(NamedTuple):
    """What is in an exported folder.

    Attributes:
        files: What lies where, a sentence or more of Markdown.
        reading: Lines of Python that read it; FOLDER stands for the folder.
        features: The columns that `datasets.load_dataset` finds, {name: kind}, with `image` and `label`; None for a folder
            that it cannot read.
        tables: What holds the columns: {file: SHA-256}.
        images: Pattern of the files that hold the images, and their media type.
        folders: Name of each class's folder, where they are not numbered.
        mark: How images are marked as generated, in Markdown.
    """

    files: str
    reading: str
    features: dict | None = None
    tables: dict = {}
    images: tuple = ()
    folders: tuple = ()
    mark: str = PNG_MARK


# Hugging Face


def write_hugging_face(folder, source, images):
    """PNGs and a table of what is known of each, or Parquet where they are more files than a repository may have."""
    if max(source.counts) > MOST_FILES or source.total + 10 > MOST_IN_ALL:
        return write_parquet(folder, source, images)
    train = folder / "train"
    for label, count in enumerate(source.counts):
        if count:
            (train / f"class_{label:04d}").mkdir(parents=True)

    def rows():
        for image in images:
            name = f"class_{image.label:04d}/{image.name}.png"
            (train / name).write_bytes(image.png)
            yield {"file_name": name, "label": image.label, **image.facts}

    # Of a table in another form than Parquet `datasets` would not take the names of the labels.
    features = write_table(train / "metadata.parquet", rows(), source.classes)
    return Layout(
        "`train/` holds a folder of PNGs a class, and `metadata.parquet` with the label, class and settings of each file.",
        READING_HUGGING_FACE,
        {name.replace("file_name", "image"): kind.replace("file_name", "image") for name, kind in features.items()},
        {"train/metadata.parquet": file_hash(train / "metadata.parquet")},
        ("train/class_*/*.png", "image/png"),
    )


def write_parquet(folder, source, images):
    """Parquet files that hold images and what is known of them, as `datasets` writes them."""
    of_part = -(-source.total // -(-source.bytes() // PART_BYTES))
    parts = -(-source.total // of_part)
    (folder / "data").mkdir()
    rows, tables = map(packed, images), {}
    for part in range(parts):
        file = folder / "data" / f"train-{part:05d}-of-{parts:05d}.parquet"
        features = write_table(file, itertools.islice(rows, of_part), source.classes)
        tables[f"data/{file.name}"] = file_hash(file)
    return Layout(
        "`data/` holds Parquet files with the PNG, the label, the class and the settings of each image.",
        READING_HUGGING_FACE,
        features,
        tables,
        ("data/*.parquet", "application/x-parquet"),
    )


def packed(image):
    """An image as a row of Parquet."""
    return {"image": {"bytes": image.png, "path": f"{image.name}.png"}, "label": image.label, **image.facts}


def write_table(file, rows, classes):
    """Write dicts with the same keys, of which `label` is a label, as Parquet. Returns {column: kind}."""
    import pyarrow as pa
    import pyarrow.parquet

    rows = iter(rows)
    piece = list(itertools.islice(rows, ROWS))
    kinds = {bool: "bool", int: "int64", float: "float64", str: "string", list: "soft label"}
    own = {"image": "image", "label": "label", "file_name": "file_name"}
    features = {name: own.get(name) or kinds[type(value)] for name, value in piece[0].items()}
    with pa.parquet.ParquetWriter(file, arrow_schema(features, classes)) as writer:
        while piece:
            writer.write_table(pa.Table.from_pylist(piece, writer.schema))
            piece = list(itertools.islice(rows, ROWS))
    return features


def arrow_schema(features, classes):
    """Arrow's schema of columns {name: kind}, with what `datasets` looks for in it."""
    import pyarrow as pa

    types = {"image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.int64(), "int64": pa.int64(),
             "file_name": pa.string(), "string": pa.string(), "float64": pa.float64(), "bool": pa.bool_(),
             "soft label": pa.list_(pa.float32())}  # fmt: skip
    known = {"image": {"_type": "Image"}, "label": {"names": list(classes), "_type": "ClassLabel"},
             "file_name": {"dtype": "string", "_type": "Value"},
             "soft label": {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "Sequence"}}  # fmt: skip
    described = {name: known.get(kind, {"dtype": kind, "_type": "Value"}) for name, kind in features.items()}
    schema = pa.schema({name: types[kind] for name, kind in features.items()})
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": described}})})


# WebDataset


def write_webdataset(folder, source, images):
    """Tars of about a gigabyte: NAME.png, NAME.cls and NAME.json of each image, one after the other."""
    number, tar = 0, None
    for image in images:
        if tar is None or tar.size >= SHARD_BYTES:
            if tar:
                tar.close()
            tar, number = TarWriter(folder / f"train-{number:06d}.tar"), number + 1
        tar.add(f"{image.name}.png", image.png)
        tar.add(f"{image.name}.cls", str(image.label).encode())
        tar.add(f"{image.name}.json", json.dumps(image.facts, ensure_ascii=False).encode())
    tar.close()
    shards = f"train-{{000000..{number - 1:06d}}}.tar" if number > 1 else "train-000000.tar"
    mixed = " The classes come in turn, so each tar holds all of them." if max(source.counts) - min(source.counts) <= 1 else ""
    return Layout(
        f"`{shards}`: of each image its PNG, its label (`.cls`), and its class and settings (`.json`).{mixed}",
        f'import webdataset\n\ntrain = webdataset.WebDataset("FOLDER/{shards}", shardshuffle=False).decode("rgb8")\n'
        'train = train.to_tuple("png", "cls", "json")',
    )


# npz


def write_npz(folder, source, images):
    """One file with MedMNIST's keys: images of the real data's size, with one channel where theirs have one."""
    spec, kind, labels = source.spec, np.uint8 if len(source.classes) <= 256 else np.uint16, []
    side, grey = spec.resolution, channels(spec) == 1
    name = medmnist_name(spec.name, side) if spec.source == "medmnist" else f"{spec.name}.npz"

    def pixels():
        for image in images:
            labels.append(image.label)
            of_size = resize(Image.fromarray(image.pixels), side, "bilinear")  # as a classifier of this project sees it
            yield np.asarray(of_size.convert("L") if grey else of_size)

    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.comment = source_type(source.real).encode()  # arrays hold no mark; readers of npz pass over it
        shape = (side, side) if grey else (side, side, 3)
        write_array(archive, "train_images", (source.total, *shape), np.uint8, pixels())
        for split, of_split in source.real.items():
            write_array(archive, f"{split}_images", (len(of_split.labels), *shape), np.uint8,
                        of_split.images[..., 0] if grey else of_split.images)  # fmt: skip
        for split, found in {"train": labels, **{name: split.labels for name, split in source.real.items()}}.items():
            found = np.asarray(found, kind)[:, None]  # (N, 1)
            write_array(archive, f"{split}_labels", found.shape, kind, found)
    return npz_layout(name, spec, source.real)


def source_type(real):
    """What the comment of a file calls it: generated, or, with real images in it, composed of generated and other ones."""
    return COMPOSITE if real else DIGITAL_SOURCE_TYPE


def write_array(archive, name, shape, kind, rows):
    """Write an array into an npz, row by row; the same rows give the same bytes."""
    member = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
    member.compress_type = zipfile.ZIP_DEFLATED
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False, "shape": shape}
    with archive.open(member, "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for row in rows:
            if np.shape(row) != shape[1:]:
                raise ValueError(f"{name}: a row of {np.shape(row)} where {shape[1:]} are")
            file.write(np.ascontiguousarray(row).tobytes())


def npz_layout(name, spec, real):
    files = f"`{name}`: `train_images` and `train_labels`, with MedMNIST's keys, shapes and types, at {spec.resolution} px."
    if real:
        files += f" **`{'` and `'.join(f'{split}_images' for split in real)}` are real images**, not generated ones."
    if spec.source == "medmnist" and spec.resolution in MEDMNIST_SIDES:
        files += " The `medmnist` package reads it; its `len()` insists on the official number of images, so count `imgs`."
        reading = f"""import medmnist

Dataset = getattr(medmnist, medmnist.INFO["{spec.name}"]["python_class"])
train = Dataset("train", root="FOLDER", size={spec.resolution})
images, labels = train.imgs, train.labels"""
    else:
        reading = f"""import numpy as np

data = np.load("FOLDER/{name}")
images, labels = data["train_images"], data["train_labels"]"""
    return Layout(files, reading, mark=NPZ_MARK.format(source_type(real)))


# Folders


def write_folders(folder, source, images):
    """A folder of PNGs a class, named after it, below `train`."""
    names, train = folder_names(source.classes), folder / "train"
    for name, count in zip(names, source.counts):
        if count:
            (train / name).mkdir(parents=True)
    side = 0
    for image in images:
        (train / names[image.label] / f"{image.name}.png").write_bytes(image.png)
        side = len(image.pixels)
    told = (
        "`train/` holds a folder of PNGs a class. Readers of folders number the classes by the order of the folders' names, "
        "so the last column is the label that they give."
    )
    if changed := [name for name, of_class in zip(names, source.classes) if name != of_class]:
        told += f" {len(changed)} folders could not be named exactly as their class, or not alone: see the table."
    # Keras takes 256 px where nothing is said.
    reading = f'import keras\n\ntrain = keras.utils.image_dataset_from_directory("FOLDER/train", image_size=({side}, {side}))'
    return Layout(told, reading, folders=tuple(names))


def folder_names(classes):
    """A folder name for each class: its own where every system takes it, and no two that differ in case alone."""
    names = [folder_name(name) for name in classes]
    while clashing := {name for name, count in Counter(map(str.casefold, names)).items() if count > 1}:
        names = [f"{name}_{label}" if name.casefold() in clashing else name for label, name in enumerate(names)]
    return names


def folder_name(name):
    """A text as the name of a folder: what systems refuse becomes an underscore, and its end is cut where it is long."""
    name = NOT_IN_NAMES.sub("_", name).encode()[:MOST_BYTES].decode(errors="ignore").rstrip(" .")
    name = re.sub(r"^[. ]", "_", name) or "_"
    return f"{name}_" if RESERVED.fullmatch(name) else name


FORMATS = {"hf": write_hugging_face, "npz": write_npz, "webdataset": write_webdataset, "folders": write_folders}
