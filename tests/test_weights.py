"""Weights on disk: all or nothing."""

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from Experiment.errors import UserError
from Experiment.paths import Experiment
from Models.class_encoder import class_encoder
from Models.hdf5_heaps import HEAP_SIGNATURE, check_heaps
from Models.resnet import resnet20
from Models.weight_names import chosen_epochs, epoch_file, epoch_path, saved_epochs
from Models.weights import check_hdf5, load_weights, room_of, save_weights
from tests.tiny_networks import one_layer, small_unet


def encoder(classes=3):
    return class_encoder(classes, 4, (2, 3))


def weights_of(model):
    return [w.numpy() for w in model.weights]


def equal(weights, others):
    return all(np.array_equal(a, b) for a, b in zip(weights, others, strict=True))


@pytest.mark.parametrize("compiled", [False, True])  # then the optimizer's numbers are in the file too
def test_saved_weights_are_loaded_exactly(tmp_path, compiled):
    saved, loaded = encoder(), encoder()
    if compiled:
        saved.compile("adam", "mse")
        saved.fit(np.eye(3), np.zeros((3, 2, 3)), verbose=0)
    save_weights(saved, epoch_path(tmp_path / "new", 3))
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["epoch3.weights.h5"]
    assert not equal(weights_of(loaded), weights_of(saved))
    assert load_weights(loaded, tmp_path / "new" / "epoch3.weights.h5") is loaded
    assert equal(weights_of(loaded), weights_of(saved))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, value):
    model = encoder()
    save_weights(model, tmp_path / "epoch1.weights.h5")
    before = (tmp_path / "epoch1.weights.h5").read_bytes()
    model.layers[1].bias.assign([0, 0, value, 0])
    with pytest.raises(UserError, match="no longer finite, and not saved: hidden/bias"):
        save_weights(model, tmp_path / "epoch1.weights.h5")
    assert (tmp_path / "epoch1.weights.h5").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


FULL = """
import resource, sys
from pathlib import Path
from tests.tiny_networks import small_unet
from Models.weights import save_weights
network, path = small_unet(), Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (250_000, resource.RLIM_INFINITY))
try:
    save_weights(network, path)
except OSError as error:
    assert "too large" in str(error) and str(path.parent) in str(error) and not list(path.parent.iterdir())
    sys.exit(3)
"""


def test_a_full_disk_is_an_error_of_the_system(tmp_path):
    """HDF5 itself ends the process, when the last bytes of a file find no room."""
    command = [sys.executable, "-c", FULL, str(tmp_path / "a.weights.h5")]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr


@pytest.mark.parametrize("network", [small_unet, lambda: one_layer(2, 3), lambda: resnet20(28, 10, 4)])
def test_the_room_of_a_file_is_known_before(tmp_path, network):
    network = network()
    save_weights(network, tmp_path / "a.weights.h5")
    size, numbers = (tmp_path / "a.weights.h5").stat().st_size, 4 * network.count_params()
    assert size <= room_of(network.weights) <= size + 2500 * len(network.weights) + 8192 and size > numbers


@pytest.mark.parametrize("content, reason", [
    (None, "there is no file"), ("folder", r"\(it is a folder\)"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:12", "is a Git LFS pointer.*git lfs pull"),
    (b"<html>", "is not an HDF5 file"), (b"", "is not an HDF5 file"),
])  # fmt: skip
def test_what_is_no_weight_file_is_refused(tmp_path, content, reason):
    path = tmp_path / "epoch1.hdf5"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    for refuse in (check_hdf5, lambda path: load_weights(encoder(), path)):
        with pytest.raises(UserError, match=reason):
            refuse(path)


def test_a_file_cut_short_is_refused(tmp_path):
    path = tmp_path / "epoch1.weights.h5"
    save_weights(encoder(), path)
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(UserError, match="epoch1.weights.h5 cannot be loaded into class_encoder"):
        load_weights(encoder(), path)


def damaged_heap(golden, path, number, size):
    """A published file in which the second object of a heap of strings has another number and size."""
    raw = (golden / "class_encoder_units12_tokens5_dim8_classes10.hdf5").read_bytes()
    at = raw.index(b"dense\0\0\0", raw.index(HEAP_SIGNATURE)) + 8
    path.write_bytes(raw[:at] + struct.pack("<HxxxxxxQ", number, size) + raw[at + 16 :])
    return path


@pytest.mark.parametrize("number, size", [(4, 2**31), (0, 0), (0, 24)])
def test_a_damaged_heap_of_strings_is_refused(golden, tmp_path, number, size):
    with pytest.raises(UserError, match="a heap at byte .* has no end"):
        load_weights(encoder(), damaged_heap(golden, tmp_path / "epoch1.hdf5", number, size))


def test_the_look_at_heaps_is_still_needed(golden, tmp_path):
    """The HDF5 library alone looks for the end for ever: if it no longer does, Models/hdf5_heaps.py can go."""
    path = damaged_heap(golden, tmp_path / "epoch1.hdf5", 0, 0)
    code = "import h5py, sys; dict(h5py.File(sys.argv[1]).attrs)"
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, timeout=4)


def test_weights_that_look_like_a_heap_are_none(tmp_path):
    path = tmp_path / "epoch1.weights.h5"
    with h5py.File(path, "w") as file:
        file["kernel"] = np.frombuffer(HEAP_SIGNATURE + struct.pack("<Q", 64) + bytes(48), "float32")
    assert HEAP_SIGNATURE in path.read_bytes()
    with h5py.File(path) as file:
        check_heaps(file)


def test_weights_of_other_shapes_are_refused_and_both_are_named(tmp_path):
    path = tmp_path / "epoch1.weights.h5"
    save_weights(encoder(classes=5), path)
    model = encoder(classes=3)
    before = weights_of(model)
    with pytest.raises(UserError, match=r"does not fit class_encoder: .*\[\(5, 4\)\] where the model has \[\(3, 4\)\]"):
        load_weights(model, path)
    assert equal(weights_of(model), before)


def test_weights_of_fewer_layers_are_refused(tmp_path):
    path = tmp_path / "epoch1.weights.h5"
    save_weights(keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, name="hidden")]), path)
    with pytest.raises(UserError, match=r"shapes none where the model has \[\(4, 6\)\]"):
        load_weights(encoder(), path)


@pytest.mark.filterwarnings("ignore:Skipping nested container")
def test_a_layout_that_its_suffix_does_not_promise_is_refused(golden, tmp_path):
    shutil.copy(golden / "class_encoder_units12_tokens5_dim8_classes10.hdf5", tmp_path / "epoch1.weights.h5")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_weights(class_encoder(10, 12, (5, 8)), tmp_path / "epoch1.weights.h5")


def test_saved_epochs_are_ours_and_the_published_ones(tmp_path):
    for name in ("epoch10.weights.h5", "epoch9.hdf5", "epoch1.weights.h5", "state.npz", "epoch2.txt", "old_epoch3.hdf5",
                 ".partial-1-epoch4.weights.h5"):  # fmt: skip
        (tmp_path / name).touch()
    assert [(epoch, path.name) for epoch, path in saved_epochs(tmp_path).items()] == [
        (1, "epoch1.weights.h5"), (9, "epoch9.hdf5"), (10, "epoch10.weights.h5")
    ]  # fmt: skip
    assert epoch_file(tmp_path, 9, "enc") == tmp_path / "epoch9.hdf5"
    with pytest.raises(UserError, match="--dif_epoch 2: there is no UNet of that epoch in .* there: 1, 9, 10$"):
        epoch_file(tmp_path, 2, "dif")


def test_an_epoch_in_both_formats_is_refused(tmp_path):
    for name in ("epoch2.hdf5", "epoch2.weights.h5"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="epoch 2 is there twice"):
        saved_epochs(tmp_path)


def test_no_epochs_in_a_folder_that_is_not_there(tmp_path):
    assert saved_epochs(tmp_path / "nowhere") == {}
    with pytest.raises(UserError, match="--enc_epoch 1: there is no Class Encoder of that epoch .* there: none"):
        epoch_file(tmp_path / "nowhere", 1, "enc")


def test_epoch_0_is_no_file(tmp_path):
    assert chosen_epochs(Experiment(tmp_path, "x", "digits"), 0, 0) == {"enc": None, "dif": None}


def test_the_chosen_epoch_is_loaded(tmp_path):
    experiment = Experiment(tmp_path, "x", "digits")
    models = {epoch: encoder() for epoch in (1, 2)}
    for epoch, model in models.items():
        save_weights(model, epoch_path(experiment.part_dir("enc"), epoch))
    file = chosen_epochs(experiment, 2, 0)["enc"]
    assert equal(weights_of(load_weights(encoder(), file)), weights_of(models[2]))
