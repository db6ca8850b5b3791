"""What other people's readers find in exported folders and in sets. Run by tests/readers.py, in an environment that has them.

    python tests/readers_theirs.py FOLDER

FOLDER holds `set`, a set as it is generated, and exports of it, if any, with `tars`, the same set of tars: `hf`, `parquet`, `npz`, `webdataset`, `folders`. It prints JSON: {reader: {"images": [[label or class, hash
of the pixels], ...], fact: value}}.
"""

import hashlib
import json
import sys
import warnings
from pathlib import Path

import datasets
import huggingface_hub
import medmnist
import mlcroissant
import numpy as np
import torch
import webdataset


def pixels_hash(image):
    """Of an image or array, as RGB."""
    array = np.asarray(image)
    array = np.repeat(array[..., None], 3, axis=-1) if array.ndim == 2 else array[..., :3]
    return hashlib.sha256(np.ascontiguousarray(array, np.uint8).tobytes()).hexdigest()


def hugging_face(folder):
    read = datasets.load_dataset(str(folder), split="train", cache_dir=str(folder.parent / f"cache-{folder.name}"))
    images = [[row["label"], pixels_hash(row["image"])] for row in read]
    soft = np.mean(np.sum(read["soft_label"], axis=1))  # sums of probabilities
    return {"images": images, "names": read.features["label"].names, "columns": sorted(read.column_names), "soft": float(soft),
            "classes": sorted({(row["label"], row["class"]) for row in read})}  # fmt: skip


def card(folder):
    """What huggingface_hub's metadata functions make of the card."""
    known = huggingface_hub.metadata_load(folder / "README.md")
    data = huggingface_hub.DatasetCard.load(folder / "README.md").data
    assert data.to_dict() == huggingface_hub.DatasetCardData(**known).to_dict()
    infos = datasets.info.DatasetInfosDict.from_dataset_card_data(data)
    return {"license": known["license"], "features": {name: list(info.features) for name, info in infos.items()}}


def croissant(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        described = mlcroissant.Dataset(folder / "croissant.json")
        records = list(described.records("train"))
    issues = described.metadata.issues
    return {"images": [[int(row["train/label"]), pixels_hash(row["train/image"])] for row in records],
            "errors": sorted(issues.errors), "warnings": sorted(issues.warnings)}  # fmt: skip


def hugging_face_folder(folder):
    """A folder a class, by `imagefolder`: labels are of the folders in alphabetical order."""
    read = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(folder.parent / "cache-set"))["train"]
    return {"images": [[row["label"], pixels_hash(row["image"])] for row in read]}


def image_folder(folder, named):
    """torchvision's ImageFolder: the label, which is of the folders in alphabetical order, or the folder's name."""
    try:
        import torchvision
    except RuntimeError:  # its compiled operators are for another build of torch; a reader of folders needs none
        operators = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        import torchvision
    read = torchvision.datasets.ImageFolder(str(folder))
    return {"images": [[read.classes[label] if named else label, pixels_hash(image)] for image, label in read]}


def med_mnist(folder):
    (file,) = folder.glob("*.npz")
    kind = getattr(medmnist, medmnist.INFO[file.stem]["python_class"])
    read = kind("train", root=str(folder))
    return {"images": [[int(read[i][1][0]), pixels_hash(read[i][0])] for i in range(len(read.imgs))]}


def web_dataset(folder):
    shards = sorted(str(path) for path in folder.glob("train-*.tar"))
    read = webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8").to_tuple("png", "cls", "json")
    found = list(read)
    return {"images": [[label, pixels_hash(image)] for image, label, _ in found], "shards": len(shards),
            "classes": sorted({(label, facts["class"]) for _, label, facts in found})}  # fmt: skip


def web_dataset_set(folder):
    """A set of tars, as it is generated."""
    tars = sorted(str(path) for path in folder.glob("images-*.tar"))
    found = list(webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8").to_tuple("png", "cls"))
    return {"images": [[label, pixels_hash(image)] for image, label in found], "tars": len(tars)}


def main(folder):
    found = {"datasets, set": hugging_face_folder(folder / "set"), "ImageFolder, set": image_folder(folder / "set", False)}
    print(json.dumps(found | (exports(folder) if (folder / "hf").is_dir() else {})))


def exports(folder):
    found = {f"datasets, {name}": hugging_face(folder / name) for name in ("hf", "parquet")}
    found |= {f"mlcroissant, {name}": croissant(folder / name) for name in ("hf", "parquet")}
    found |= {f"card, {name}": card(folder / name) for name in ("hf", "parquet")}
    found["datasets, webdataset"] = {
        "images": [
            [row["cls"], pixels_hash(row["png"])]
            for row in datasets.load_dataset(str(folder / "webdataset"), split="train", cache_dir=str(folder / "cache-w"))
        ]
    }
    found["webdataset"] = web_dataset(folder / "webdataset")
    found["webdataset, set"] = web_dataset_set(folder / "tars")
    found["ImageFolder"] = image_folder(folder / "folders" / "train", True)
    if (folder / "npz").is_dir():
        found["medmnist"] = med_mnist(folder / "npz")
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
