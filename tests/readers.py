"""Exported folders, and sets as they are generated, read by the readers that they are for: the same labels and pixels.

    python -m tests.readers [--python PYTHON]

PYTHON is that of an environment with tests/readers-requirements.txt; without it one is made, .venv-readers, which takes a
few GB. datasets, huggingface_hub, mlcroissant, webdataset, torchvision and medmnist read there, Keras reads here. Exit code
1: something differs.
"""

import os

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import argparse
import hashlib
import json
import logging
import subprocess
import sys
import tempfile
import venv
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

import export_dataset
from Data import export, sinks
from Data.generation import sheet_file
from Data.registry import class_names, dataset_spec
from Data.set_hashes import content_hash
from Data.synthetic import SyntheticWriter, class_folders, open_set
from Experiment.paths import REPOSITORY

HERE = Path(__file__).resolve().parent
AWKWARD = ["0", "10", "2", "null", "A", "a", "yes: no", "über # | 'quoted'"]  # in YAML, in tables, as folders
SETTINGS = {"seed": 5, "ugs": 1.5, "inf_steps": 20, "backbone": "sd1"}
SIDE, TOTAL = 28, 101
MANY = 102  # classes: their folders have three digits


def environment():
    """The Python of the readers, in an environment that is made once."""
    folder = REPOSITORY / ".venv-readers"
    if not (folder / ".installed").exists():
        print(f"making {folder}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        install = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, "-r", HERE / "readers-requirements.txt"], check=True)
        (folder / ".installed").touch()
    return folder / "bin" / "python"


def pixels_hash(image):
    return hashlib.sha256(np.ascontiguousarray(image, np.uint8).tobytes()).hexdigest()


def write_set(folder, classes, total=TOTAL, store="files"):
    """A synthetic set of random images, with what else a run leaves. Returns [(label, hash of the pixels)]."""
    counts = [total // len(classes) + (label < total % len(classes)) for label in range(len(classes))]
    writer, found = SyntheticWriter(folder, counts, store=store), []
    writer.begin()
    for number in writer.missing():
        image = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        writer.write(number, image)
        found.append((writer.place(number)[0], pixels_hash(image)))
    writer.finish(SETTINGS | {"classes": list(classes)})
    writer.close()
    write_soft_labels(folder, counts)
    for name in ("generation.json", "run.json", "log.txt", ".lock"):
        (folder / name).write_text("{}")
    Image.new("RGB", (SIDE, SIDE)).save(sheet_file(folder))
    return found


def write_soft_labels(folder, counts):
    """Class probabilities beside the set, as a teacher's are kept."""
    folders = class_folders(folder, len(counts))
    names = [f"{of_class.name}/img_{i}.png".encode() for of_class, count in zip(folders, counts) for i in range(count)]
    probabilities = np.random.default_rng(0).dirichlet(np.ones(len(counts)), len(names)).astype(np.float16)
    sha256 = content_hash(folder, open_set(folder, len(counts)))
    np.savez(folder.with_name(f"{folder.name}.soft_labels.0.npz"), probabilities=probabilities, files=names, set_sha256=sha256)


def own_data(folder):
    """An image folder whose classes have awkward names."""
    for name in AWKWARD:
        (folder / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (SIDE, SIDE), (i, 9, 9)).save(folder / name / f"{i}.png")
    return str(folder)


def export_all(folder, dataset, set_folder, formats):
    """Export in each format; small parts of Parquet and tars, so that there are several."""
    flags = ["--dataset", dataset, "--root", str(folder / "root"), "--synthetic_dir", str(set_folder)]
    for name in formats:
        args = [*flags, "--to", str(folder / name), "--format", "hf" if name == "parquet" else name]
        with mock.patch.multiple(export, SHARD_BYTES=100_000, PART_BYTES=100_000,
                                 MOST_FILES=1 if name == "parquet" else export.MOST_FILES):  # fmt: skip
            export_dataset.export(export_dataset.parse_args(args))


def keras_reads(folder):
    """[(class, hash)], by keras.utils.image_dataset_from_directory."""
    import keras

    read = keras.utils.image_dataset_from_directory(folder / "train", image_size=(SIDE, SIDE), shuffle=False, batch_size=None)
    return [(read.class_names[int(label)], pixels_hash(image)) for image, label in read]


def check(python, folder, dataset, formats):
    """Export a set of a dataset and compare what every reader finds. Returns what differs."""
    spec = dataset_spec(dataset)
    classes = class_names(spec)
    expected = write_set(folder / "set", classes)
    with mock.patch.object(sinks, "TAR_IMAGES", 40):  # several tars
        write_set(folder / "tars", classes, store="webdataset")
    export_all(folder, dataset, folder / "set", formats)
    found = theirs(python, folder)
    found["Keras"] = {"images": keras_reads(folder / "folders")}
    return compared(spec.name, classes, expected, found)


def theirs(python, folder):
    """What their readers find, {reader: facts}: see readers_theirs.py."""
    command = [python, HERE / "readers_theirs.py", folder]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=offline, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def compared(dataset, classes, expected, found):
    """Print how each reader's facts compare with the images that are expected. Returns what differs."""
    names, wrong = export.folder_names(classes), []
    for reader, facts in found.items():
        by_folder = reader in ("Keras", "ImageFolder")
        wanted = Counter((names[label] if by_folder else label, image) for label, image in expected)
        there = Counter(map(tuple, facts.get("images", []))) if "images" in facts else wanted
        good = there == wanted and facts.get("names", list(classes)) == list(classes) and not facts.get("errors")
        good = good and facts.get("classes", [[i, c] for i, c in enumerate(classes)]) == [[i, c] for i, c in enumerate(classes)]
        good = good and abs(facts.get("soft", 1.0) - 1) < 1e-5
        shown = {key: value for key, value in facts.items() if key not in ("images", "classes", "names")}
        read = f"{there.total()} of {len(expected)} images" if "images" in facts else "read"
        print(f"{dataset}: {reader}: {read}, {'as written' if good else 'DIFFERENT'} {shown or ''}", flush=True)
        wrong += [] if good else [f"{dataset}: {reader}"]
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--python", type=Path, help="Python of an environment with the readers (else .venv-readers is made)")
    python = parser.parse_args().python or environment()
    logging.getLogger("experiment").setLevel(logging.WARNING)
    every = ["hf", "parquet", "webdataset", "folders"]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        wrong = check(python, folder / "blood", "bloodmnist", [*every, "npz"])
        wrong += check(python, folder / "own", own_data(folder / "awkward"), every)
        classes = list(map(str, range(MANY)))
        expected = write_set(folder / "many" / "set", classes, 2 * MANY)
        wrong += compared(f"{MANY} classes", classes, expected, theirs(python, folder / "many"))
    return f"different: {', '.join(wrong)}" if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
