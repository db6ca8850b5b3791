"""The pretrained parts: their files, and the mini backbone that is shipped."""

import hashlib
import os
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import keras
import numpy as np
import pytest

from Data.loaders import load_splits
from Data.registry import DATASETS
from Data.resizing import resize_images
from Experiment.errors import UserError
from Experiment.locks import machine
from Models import weight_cards
from Models.backbones import BACKBONES, PARTS
from Models.runtime import precision
from Models.weight_files import UNTRAINED, PublishedFile

MINI = BACKBONES["mini"]
URL = "https://example.org/weights/"
FILE = PublishedFile("unet.h5", (URL,), hashlib.sha256(b"published").hexdigest())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def test_a_file_that_is_there_is_taken(cache, tmp_path):
    (tmp_path / "unet.h5").write_bytes(b"published")
    (cache / "unet.h5").write_bytes(b"published")
    assert FILE.path(tmp_path) == tmp_path / "unet.h5"
    assert FILE.path() == cache / "unet.h5"


def test_a_file_with_another_hash_is_refused(tmp_path):
    (tmp_path / "unet.h5").write_bytes(b"something else")
    with pytest.raises(UserError, match=f"unet.h5 is not the published file of {URL}unet.h5: .* not {FILE.sha256}"):
        FILE.path(tmp_path)


def test_weights_dir_is_never_downloaded_into(tmp_path, monkeypatch):
    monkeypatch.setattr(keras.utils, "get_file", None)
    with pytest.raises(UserError, match=f"no unet.h5 in {tmp_path}: get it from {URL}unet.h5 .SHA-256 {FILE.sha256}"):
        FILE.path(tmp_path)


def test_a_missing_file_is_downloaded(cache, monkeypatch):
    left = cache / f".partial-{machine()}-{2**22 + 1}-unet.h5"  # of a download that was killed
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_bytes(b"publ")

    def get_file(name, origin, file_hash, cache_dir, cache_subdir):
        assert (origin, file_hash) == (URL + "unet.h5", FILE.sha256) and name != "unet.h5"  # which is always whole
        (Path(cache_dir) / cache_subdir / name).write_bytes(b"published")

    monkeypatch.setattr(keras.utils, "get_file", get_file)
    assert FILE.path() == cache / "unet.h5"
    assert sorted(path.name for path in cache.iterdir()) == ["unet.h5", "unet.h5.json"]


def test_nothing_is_downloaded_where_it_cannot_be_written(cache, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(keras.utils, "get_file", None)  # it would take /tmp
    with pytest.raises(UserError, match=f"Permission denied: '{cache}'"):
        FILE.path()


def test_offline_error_says_how_to_get_the_file(cache, monkeypatch):
    def get_file(name, origin, **where):
        raise Exception(f"URL fetch failure on {origin}")

    monkeypatch.setattr(keras.utils, "get_file", get_file)
    with pytest.raises(UserError) as error:
        FILE.path()
    assert all(part in str(error.value) for part in (f"{URL}unet.h5", FILE.sha256, str(cache), "--weights_dir"))


def test_addresses_are_tried_in_order(cache, monkeypatch):
    from dataclasses import replace

    mirrored, tried = replace(FILE, urls=("https://gone.org/", URL, "https://never.org/")), []

    def get_file(name, origin, file_hash, cache_dir, cache_subdir):
        tried.append(origin)
        if origin.startswith("https://gone"):
            raise Exception("404")
        (Path(cache_dir) / name).write_bytes(b"published")

    monkeypatch.setattr(keras.utils, "get_file", get_file)
    assert mirrored.path() == cache / "unet.h5" and tried == ["https://gone.org/unet.h5", f"{URL}unet.h5"]
    (cache / "unet.h5").unlink()
    with pytest.raises(UserError, match=r"cannot be downloaded from https://gone.org/unet.h5 \(404\), nor from .* to "):
        replace(FILE, urls=("https://gone.org/", "https://gone.org/too/")).path()


def test_a_host_that_is_gone_and_one_that_holds_something_else_are_passed_over(cache, tmp_path):
    """Over HTTP, from a server of this process: the third of three addresses has the file."""
    from dataclasses import replace
    from functools import partial

    served = tmp_path / "served"
    for folder, content in (("other", b"something else"), ("good", b"published")):
        (served / folder).mkdir(parents=True)
        (served / folder / "unet.h5").write_bytes(content)
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, form, *values):
            asked.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=served)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        host = f"http://127.0.0.1:{server.server_port}"
        urls = tuple(f"{host}/{folder}/" for folder in ("gone", "other", "good", "never"))
        assert replace(FILE, urls=urls).path() == cache / "unet.h5"
        assert list(dict.fromkeys(asked)) == ["/gone/unet.h5", "/other/unet.h5", "/good/unet.h5"]
        (cache / "unet.h5").unlink()
        with pytest.raises(UserError, match=r"unet.h5 cannot be downloaded from \S+gone/unet.h5 .*, nor from \S+other/"):
            replace(FILE, urls=urls[:2]).path()
        server.shutdown()
    assert not [path for path in cache.iterdir() if path.name != "unet.h5.json"]


def test_a_published_file_is_hashed_once(tmp_path, monkeypatch):
    (tmp_path / "unet.h5").write_bytes(b"published")
    assert FILE.path(tmp_path) == tmp_path / "unet.h5"
    monkeypatch.setattr(weight_cards, "file_hash", None)
    assert FILE.path(tmp_path) == tmp_path / "unet.h5"


@pytest.mark.parametrize("name, image_size, latent_shape, context_shape, hidden_units", [
    ("sd1", 128, (16, 16, 4), (100, 768), 500), ("sd2", 128, (16, 16, 4), (100, 1024), 500),
    ("mini", 32, (8, 8, 4), (8, 64), 64), ("small", 32, (8, 8, 4), (8, 128), 64),
])  # fmt: skip
def test_shapes_of_the_backbones(name, image_size, latent_shape, context_shape, hidden_units):
    backbone = BACKBONES[name]
    assert (backbone.name, backbone.image_size, backbone.latent_shape) == (name, image_size, latent_shape)
    assert (backbone.context_shape, backbone.hidden_units) == (context_shape, hidden_units)


@pytest.mark.parametrize("name, parts", [
    ("sd1", {"image_encoder": "vae_encoder.h5", "unet": "kcv_diffusion_model.h5", "decoder": "kcv_decoder.h5"}),
    ("sd2", {"image_encoder": "vae_encoder.h5", "unet": "diffusion_model_v2_1.h5", "decoder": "kcv_decoder.h5"}),
])  # fmt: skip
def test_each_part_asks_for_its_own_file(tmp_path, name, parts):
    for part, file in parts.items():
        with pytest.raises(UserError, match=f"there is no {file} in"):
            getattr(BACKBONES[name], part)(tmp_path)


def test_the_full_image_encoder_ends_before_kerascvs_last_layer(monkeypatch):
    monkeypatch.setenv(UNTRAINED, "1")
    encoder = BACKBONES["sd1"].image_encoder()
    assert encoder.output_shape[-1] == 8  # mean and log-variance
    assert BACKBONES["sd1"].files["unet"].left_out and not MINI.files["unet"].left_out  # the shipped weights are always loaded


# Those that are shipped


class Parts:
    """A shipped backbone's networks, validation digits as pixels in -1..1 (32, 32, 32, 3), and their latents."""

    def __init__(self, name):
        self.backbone = BACKBONES[name]
        self.networks = {part: getattr(self.backbone, part)() for part in PARTS}
        images = load_splits(DATASETS["digits"], "unused").val.images[:32]
        self.images = resize_images(images, 32) / np.float32(127.5) - 1
        self.moments = self.networks["image_encoder"].predict_on_batch(self.images)
        self.latents = self.moments[..., :4]


@pytest.fixture(scope="module", params=["mini", "small"])
def shipped(request):
    return Parts(request.param)


def test_sizes_of_the_shipped(shipped):
    counts = tuple(shipped.networks[part].count_params() for part in PARTS)
    folder = shipped.backbone.files["unet"].folder
    assert counts == {"mini": (217_000, 3_984_068, 214_647), "small": (448_392, 4_049_604, 520_151)}[shipped.backbone.name]
    assert sum(path.stat().st_size for path in folder.iterdir()) < 14e6


def test_a_shipped_autoencoder_shows_what_it_was_shown(shipped):
    images, latents = shipped.images, shipped.latents
    shown = shipped.networks["decoder"].predict_on_batch(latents)
    assert shipped.moments.shape == (32, 8, 8, 8)
    assert shown.shape == (32, 32, 32, 3) and np.mean((shown - images) ** 2) < 0.01 * images.var()
    assert 0.5 < latents.std() < 2  # latent_scale is 1


@pytest.mark.parametrize("timestep, share", [(100, 0.5), (500, 0.2), (900, 0.1)])
def test_a_shipped_unet_finds_the_noise(shipped, timestep, share):
    from Models.diffusion import add_noise, timestep_embedding

    alpha_bar = shipped.backbone.schedule.alphas_cumprod[timestep]
    noise = np.random.default_rng(1).standard_normal((32, 8, 8, 4), dtype="float32")
    noisy = add_noise(shipped.latents, noise, alpha_bar)
    context = np.zeros((32, *shipped.backbone.context_shape), "float32")
    predicted = shipped.networks["unet"].predict_on_batch([noisy, timestep_embedding(np.full(32, timestep)), context])
    assert predicted.shape == noise.shape and np.mean((predicted - noise) ** 2) < share


def test_a_folder_without_mini_weights_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no file .*decoder.weights.h5"):
        MINI.decoder(tmp_path)


@pytest.mark.parametrize("name, expected", [
    ("float32", {"float32"}), ("mixed_bfloat16", {"mixed_bfloat16"}), ("auto", {"float32", "mixed_bfloat16"}),
])  # fmt: skip
def test_precision_holds_within_its_block(name, expected):
    with precision(name, trainable=True) as used:
        assert used in expected and keras.config.dtype_policy().name == used
        with precision(name) as again:
            assert again == used and keras.config.dtype_policy().name == used.removeprefix("mixed_")
        assert keras.config.dtype_policy().name == used
    with pytest.raises(ZeroDivisionError), precision("mixed_bfloat16"):
        raise ZeroDivisionError
    assert keras.config.dtype_policy().name == "float32"


def test_weights_held_in_bfloat16_are_as_exact_as_mixed_precision():
    rng = np.random.default_rng(3)
    inputs = [rng.standard_normal(shape, dtype="float32") for shape in ((16, 8, 8, 4), (16, 320), (16, 8, 64))]
    outputs = []
    for name, learns in (("float32", False), ("mixed_bfloat16", True), ("mixed_bfloat16", False)):
        with precision(name, learns):
            unet, decoder = MINI.unet(), MINI.decoder()
        assert {w.dtype for w in unet.weights} == {"bfloat16" if name != "float32" and not learns else "float32"}
        outputs.append([np.asarray(y, "float32") for y in (unet.predict_on_batch(inputs), decoder.predict_on_batch(inputs[0]))])
    for exact, mixed, held in zip(*outputs):
        assert 0 < np.std(held - exact) < 1.3 * np.std(mixed - exact) < 0.05 * np.std(exact)
