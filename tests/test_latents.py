"""The cache of VAE moments."""

import hashlib

import numpy as np
import pytest

from Data.latents import cache_file, cached_moments

IMAGES = np.arange(5 * 2 * 2 * 3, dtype=np.uint8).reshape(5, 2, 2, 3)


def moments_of(images):
    return np.repeat(images.mean((1, 2, 3)), 8).reshape(-1, 1, 1, 8).astype("float32")


def encoder(calls):
    def encode(images):
        calls.append(len(images))
        for start in range(0, len(images), 2):  # the last batch is shorter
            yield moments_of(images[start : start + 2])

    return encode


def test_moments_are_computed_once(tmp_path):
    calls = []
    for _ in range(2):
        moments = cached_moments(cache_file(tmp_path / "new", "digits_mini_32", IMAGES, "abc"), IMAGES, encoder(calls))
        assert moments.dtype == np.float32 and np.array_equal(moments, moments_of(IMAGES))
        assert isinstance(moments, np.memmap)
    assert calls == [5]
    assert [p.name.startswith("digits_mini_32_") for p in (tmp_path / "new").iterdir()] == [True]


@pytest.mark.parametrize("images, weights_hash", [
    (IMAGES, "abd"), (IMAGES[::-1], "abc"), (IMAGES[:4], "abc"), (IMAGES.reshape(5, 1, 4, 3), "abc"),
], ids=["weights", "order", "number", "shape"])  # fmt: skip
def test_other_images_or_weights_are_encoded_anew(tmp_path, images, weights_hash):
    calls = []
    cached_moments(cache_file(tmp_path, "digits", IMAGES, "abc"), IMAGES, encoder(calls))
    other = cached_moments(cache_file(tmp_path, "digits", images, weights_hash), images, encoder(calls))
    assert len(calls) == 2 and np.array_equal(other, moments_of(images))


def test_an_interrupted_encoding_leaves_nothing(tmp_path):
    def encode(images):
        yield moments_of(images[:2])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_moments(cache_file(tmp_path, "digits", IMAGES, "abc"), IMAGES, encode)
    assert list(tmp_path.iterdir()) == []


def test_the_moments_take_no_memory_beside_the_images(tmp_path):
    """Neither does the key of the cache: the images are hashed as they lie."""
    import tracemalloc

    images = np.random.default_rng(0).integers(0, 256, (2_000, 32, 32, 3), np.uint8)

    def encode(images):
        for _ in range(0, len(images), 100):
            yield np.zeros((100, 8, 8, 8), np.float32)

    tracemalloc.start()
    try:
        moments = cached_moments(cache_file(tmp_path, "own", images, "abc"), images, encode)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert moments.nbytes == 4_096_000 and peak < 1_000_000 < images.nbytes
    assert [path.name for path in tmp_path.iterdir()] == [f"own_{key(images)}.npy"]


def key(images):
    """The key as files of earlier versions have it."""
    return hashlib.sha256(b"abc" + str(images.shape).encode() + images.tobytes()).hexdigest()[:16]
