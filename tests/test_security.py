"""What comes from outside is data: nothing of it runs, leads elsewhere, or is trusted without its hash."""

import ast
import re

import h5py
import numpy as np
import pytest

from Data.loaders import CIFAR_FILES, CIFAR_URL
from Data.registry import DATASETS, medmnist_info
from Experiment.errors import UserError
from Experiment.paths import REPOSITORY, Experiment
from Models.backbones import BACKBONES
from Models.class_encoder import class_encoder
from Models.weight_files import PublishedFile
from Models.weights import load_weights, save_weights

SOURCES = [p for p in REPOSITORY.rglob("*.py") if not p.relative_to(REPOSITORY).parts[0].startswith((".", "tests", "parity"))]


def calls(tree):
    """(dotted name, keywords) of every call in a syntax tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_source_neither_unpickles_nor_runs_text_nor_a_shell(path):
    tree = ast.parse(path.read_text())
    imported = {alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not imported & {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "cloudpickle"}
    for name, keywords in calls(tree):
        assert name not in (
            "eval",
            "exec",
            "os.system",
            "os.popen",
            "subprocess.getoutput",
            "yaml.load",
            "keras.models.load_model",
        ), name
        assert keywords.get("shell", "False") == "False" and keywords.get("safe_mode", "True") == "True"
        if name in ("np.load", "numpy.load"):
            assert keywords.get("allow_pickle") == "False"
        assert not name.endswith((".extractall", ".extract"))


def test_source_is_looked_at():
    assert {"process.py", "records.py", "loaders.py", "hyp_opt.py"} <= {p.name for p in SOURCES}
    assert ("os.system", {}) in list(calls(ast.parse("import os\nos.system('ls')")))


def test_every_download_is_https_with_a_pinned_hash():
    assert CIFAR_URL.startswith("https://")
    assert all(re.fullmatch("[0-9a-f]{32}", md5) for _, md5, _, _ in CIFAR_FILES.values())
    for spec in DATASETS.values():
        if spec.source == "medmnist":
            info = medmnist_info(spec.name)
            for suffix in ("", "_64", "_128", "_224"):
                assert info[f"url{suffix}"].startswith("https://") and re.fullmatch("[0-9a-f]{32}", info[f"MD5{suffix}"])
    for backbone in BACKBONES.values():
        for file in backbone.files.values():
            if isinstance(file, PublishedFile):
                assert all(url.startswith("https://") for url in file.urls) and re.fullmatch("[0-9a-f]{64}", file.sha256)


def weights(path):
    save_weights(class_encoder(2, 3, (2, 2)), path)
    return path


def kernel(file):
    """Name of one weight of the file."""
    names = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return names[0]


@pytest.mark.parametrize("kind", ["external link", "soft link", "external storage", "virtual"])
def test_weights_that_lead_to_another_file_are_refused(tmp_path, kind):
    path, secret = weights(tmp_path / "epoch1.weights.h5"), weights(tmp_path / "secret.weights.h5")
    with h5py.File(path, "r+") as file:
        name = kernel(file)
        shape = file[name].shape
        del file[name]
        if kind == "external link":
            file[name] = h5py.ExternalLink(str(secret), name)
        elif kind == "soft link":
            file[name] = h5py.SoftLink("/elsewhere")
        elif kind == "external storage":
            file.create_dataset(name, shape, "float32", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
        else:
            layout = h5py.VirtualLayout(shape, "float32")
            layout[...] = h5py.VirtualSource(str(secret), name, shape)
            file.create_virtual_dataset(name, layout)
    with pytest.raises(UserError, match="is a link, or lies in another file"):
        load_weights(class_encoder(2, 3, (2, 2)), path)


def test_only_weights_are_read_from_hdf5(tmp_path):
    """A whole model with code in its configuration: none of it runs."""
    path, ran = weights(tmp_path / "epoch1.weights.h5"), tmp_path / "ran"
    evil = f"""{{"class_name": "Lambda", "config": {{"function": "__import__('pathlib').Path({str(ran)!r}).touch()"}}}}"""
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = evil
        file.attrs["training_config"] = np.bytes_(b"cos\nsystem\n(S'touch %s'\ntR." % str(ran).encode())
    model = class_encoder(2, 3, (2, 2))
    before = model.get_weights()[0].copy()
    load_weights(model, path)
    assert not ran.exists() and not np.array_equal(model.get_weights()[0], before)


def test_names_do_not_leave_their_folder(tmp_path):
    """The experiment's and dataset's names are checked on the command line (test_cli); an own path gives a plain name."""
    from Data.registry import own_name

    for name in ("..", "a b", "evil\n", "x;rm -rf", "..%2f"):
        folder = tmp_path / "in" / name if name != ".." else tmp_path
        folder.mkdir(parents=True, exist_ok=True)
        made = Experiment(tmp_path / "root", "x", own_name(folder)).synthetic_root
        assert made.resolve().is_relative_to((tmp_path / "root").resolve()) and re.fullmatch(r"[\w-]+", made.name)
