"""The cache of VAE moments."""

import numpy as np
import pytest

from Data.latents import cached_moments

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
        moments = cached_moments(tmp_path / "new", "digits_mini_32", IMAGES, "abc", encoder(calls))
        assert moments.dtype == np.float32 and np.array_equal(moments, moments_of(IMAGES))
        assert isinstance(moments, np.memmap)
    assert calls == [5]
    assert [p.name.startswith("digits_mini_32_") for p in (tmp_path / "new").iterdir()] == [True]


@pytest.mark.parametrize("images, weights_hash", [
    (IMAGES, "abd"), (IMAGES[::-1], "abc"), (IMAGES[:4], "abc"), (IMAGES.reshape(5, 1, 4, 3), "abc"),
], ids=["weights", "order", "number", "shape"])  # fmt: skip
def test_other_images_or_weights_are_encoded_anew(tmp_path, images, weights_hash):
    calls = []
    cached_moments(tmp_path, "digits", IMAGES, "abc", encoder(calls))
    other = cached_moments(tmp_path, "digits", images, weights_hash, encoder(calls))
    assert len(calls) == 2 and np.array_equal(other, moments_of(images))


def test_an_interrupted_encoding_leaves_nothing(tmp_path):
    def encode(images):
        yield moments_of(images[:2])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_moments(tmp_path, "digits", IMAGES, "abc", encode)
    assert list(tmp_path.iterdir()) == []
