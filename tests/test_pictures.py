"""Image files of every kind become the right 8-bit RGB, or are told apart from what is no image."""

import hashlib
import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from Data import pictures
from Data.parallel import in_chunks
from Data.pictures import (
    BROKEN_IMAGE,
    Files,
    NotAnImage,
    colour,
    formats_of,
    probe,
    read_image,
    read_images,
    readable_images,
    to_rgb,
)
from Experiment.errors import UserError
from Experiment.paths import REPOSITORY
from Experiment.text import shown

RED, GREY = (200, 100, 50), (90, 90, 90)


def pixels(path, side=4, **how):
    return read_image(path, side, **how)


def is_colour(image, wanted, near=0):
    return np.abs(image.astype(int) - wanted).max() <= near


def png(path, depth, kind, rows, chunks=()):
    """Write a PNG by hand: bit depth, colour type, raw rows, and chunks (name, content) before the pixels."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 4, 4, depth, kind, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", body), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    return path


# Modes


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV",
                                  "I;16", "I;16L", "I;16B"])  # fmt: skip
def test_every_mode_becomes_rgb(mode):
    source = Image.new("RGB", (4, 4), RED)
    wanted, near = RED, 0
    if mode == "P":
        image = source.quantize(4)
    elif mode == "PA":
        image, wanted = Image.new("LA", (4, 4), (90, 255)).convert("PA"), GREY
    elif mode in ("1", "L", "LA", "La"):
        image, wanted = Image.new("L", (4, 4), 255 if mode == "1" else 90), (255,) * 3 if mode == "1" else GREY
        image = image.convert("LA").convert("La") if mode == "La" else image.convert(mode)
    elif mode.startswith("I;16"):
        image, wanted = (Image.frombytes(mode, (4, 4), struct.pack("<H" if mode != "I;16B" else ">H", 90 * 257) * 16), GREY)
    elif mode == "LAB":
        from PIL import ImageCms

        profiles = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
        image, near = ImageCms.profileToProfile(source, *profiles, outputMode="LAB"), 3
    elif mode == "RGBa":
        image = source.convert("RGBA").convert("RGBa")
    else:
        image, near = source.convert(mode), 3
    assert image.mode == mode
    rgb = to_rgb(image)
    assert rgb.mode == "RGB" and is_colour(np.asarray(rgb), wanted, near)


def test_an_adobe_cmyk_jpeg_is_not_inverted(tmp_path):
    Image.new("RGB", (16, 16), RED).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    assert b"Adobe" in (tmp_path / "a.jpg").read_bytes()
    assert is_colour(pixels(tmp_path / "a.jpg", 16), RED, 3)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "1", "P", "RGBA", "LA", "L"])
def test_tiff_modes(tmp_path, mode):
    Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode).save(tmp_path / "a.tif")
    assert is_colour(pixels(tmp_path / "a.tif"), (255, 255, 255), 1)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_sixteen_bits_of_grey_are_scaled(tmp_path, suffix):
    values = np.array([0, 257, 90 * 257, 65535], np.uint16).repeat(4).reshape(4, 4)
    if suffix == ".pgm":
        (tmp_path / "a.pgm").write_bytes(b"P5\n4 4\n65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(tmp_path / f"a{suffix}")
    image = pixels(tmp_path / f"a{suffix}")
    assert image[:, 0, 0].tolist() == [0, 1, 90, 255] and (image == image[..., :1]).all()


def tiff(path, bits, photometric, strip):
    """Write a grey TIFF of 4 x 4 px by hand."""
    entries = [(256, 3, 4), (257, 3, 4), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8 + 2 + 9 * 12 + 4),
               (277, 3, 1), (278, 3, 4), (279, 4, len(strip))]  # fmt: skip
    body = b"".join(struct.pack("<HHI", tag, kind, 1) + struct.pack("<I", value) for tag, kind, value in entries)
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", 0) + strip)
    return path


def test_a_tiff_of_twelve_bits(tmp_path):
    assert is_colour(pixels(tiff(tmp_path / "a.tif", 12, 1, b"\xff\xff\xff" * 8)), (255, 255, 255))


def test_a_deep_tiff_where_zero_is_white(tmp_path):
    assert is_colour(pixels(tiff(tmp_path / "a.tif", 16, 0, b"\0\0" * 16)), (255, 255, 255))


@pytest.mark.parametrize("kind", ["int32", "float32"])
def test_pixels_of_unknown_range_are_refused(tmp_path, kind):
    Image.fromarray(np.full((4, 4), 7, kind)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="32-bit numbers of unknown range .mode [IF].: store 8 or 16 bits"):
        read_images([tmp_path / "a.tif"], 4)


# Transparency


@pytest.mark.parametrize("background, wanted", [("white", (255, 255, 255)), ("#102030", (16, 32, 48)), ("Navy", (0, 0, 128))])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L", "1", "I;16"])
def test_transparent_pixels_show_the_background(tmp_path, mode, background, wanted):
    path = tmp_path / "a.png"
    if mode in ("RGBA", "LA"):
        Image.new(mode, (4, 4), (9,) * (len(mode) - 1) + (0,)).save(path)
    elif mode == "I;16":
        Image.fromarray(np.full((4, 4), 600, np.uint16)).save(path, transparency=600)
    else:
        value = {"P": 3, "RGB": (9, 8, 7), "L": 9, "1": 0}[mode]
        image = Image.new(mode, (4, 4), value)
        if mode == "P":
            image.putpalette(range(30))
        image.save(path, transparency=value)
    assert is_colour(pixels(path, background=colour(background)), wanted)


def test_half_transparent_pixels_are_blended(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 128)).save(tmp_path / "a.webp", lossless=True)
    assert is_colour(pixels(tmp_path / "a.webp"), (127, 127, 127))


def test_a_palette_with_transparency_for_each_colour(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.save(tmp_path / "a.png", transparency=b"\xff\x00")
    assert is_colour(pixels(tmp_path / "a.png"), (255, 255, 255))


def test_a_transparent_gif(tmp_path):
    Image.new("P", (4, 4), 2).save(tmp_path / "a.gif", transparency=2)
    assert is_colour(pixels(tmp_path / "a.gif"), (255, 255, 255))


@pytest.mark.parametrize("depth, kind, row, transparent", [
    (4, 0, b"\x55\x55", struct.pack(">H", 5)), (2, 0, b"\xaa", struct.pack(">H", 2)),
    (16, 2, struct.pack(">HHH", 700, 800, 900) * 4, struct.pack(">HHH", 700, 800, 900)),
])  # fmt: skip
def test_the_transparent_colour_of_other_depths(tmp_path, depth, kind, row, transparent):
    path = png(tmp_path / "a.png", depth, kind, [row] * 4, [(b"tRNS", transparent)])
    assert is_colour(pixels(path), (255, 255, 255))


@pytest.mark.parametrize("text", ["", "whit", "#12", "#123", "#11223344", "rgb(1,2,3)", "hsl(0,100%,50%)", "12"])
def test_what_is_no_colour(text):
    with pytest.raises(ValueError):
        colour(text)


# Orientation


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_tags_are_applied(tmp_path, suffix, orientation):
    """Each of the eight ways of storing a square with one bright quarter, top left when seen."""
    seen = np.zeros((16, 16, 3), np.uint8)
    seen[:8, :8], seen[:8, 8:] = 255, 120
    store = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
             5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
             8: lambda a: np.rot90(a, -1)}  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    how = {"lossless": True} if suffix == ".webp" else {"quality": 100} if suffix == ".jpg" else {}
    Image.fromarray(np.ascontiguousarray(store[orientation](seen))).save(tmp_path / f"a{suffix}", exif=exif, **how)
    assert is_colour(pixels(tmp_path / f"a{suffix}", 16), seen, 6)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + b"\xff" * 12]
)
def test_a_damaged_tag_is_none(tmp_path, exif):
    Image.new("RGB", (16, 16), RED).save(tmp_path / "a.jpg", exif=exif, quality=100)
    assert is_colour(pixels(tmp_path / "a.jpg", 16), RED, 3)


# What is an image


@pytest.mark.parametrize("name, kind", [("a", "PNG"), ("a.jpg_large", "JPEG"), ("a.jfif", "JPEG"), ("a.png", "JPEG"), ("a.HEIC", "JPEG"), ("a.txt", "GIF"),
                                        ("a.jpg", "WEBP"), ("a.ppm", "PPM"), ("a.avif", "AVIF"), ("a.jp2", "JPEG2000"),
                                        ("a.tga", "TGA"), ("a.ico", "ICO"), ("a.pcx", "PCX"), ("a.qoi", "QOI"), ("a.BMP", "BMP")])  # fmt: skip
def test_the_content_decides_what_is_an_image(tmp_path, name, kind):
    Image.new("RGB", (16, 18 if kind != "ICO" else 16), RED).save(tmp_path / name, format=kind)
    assert probe(tmp_path / name) == (16, 1)
    assert is_colour(pixels(tmp_path / name, 16), RED, 5)


@pytest.mark.parametrize("name, content", [
    ("notes.txt", b"text"), ("labels.csv", b"P,6,7"), ("empty", b""), ("BM.txt", b"BM is how this text begins, for long enough" * 9),
    ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"), ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    ("a.wmf", b"\xd7\xcd\xc6\x9a" + bytes(40)), ("a.mp4", b"\0\0\0\x18ftypmp42" + bytes(40)),
    ("a.npy", b"\x93NUMPY\x01\0"), ("a.zip", b"PK\x03\x04"), ("a.wav", b"RIFF\x24\0\0\0WAVEfmt "), ("P3.md", b"P3 is a section\n"),
])  # fmt: skip
def test_what_is_no_image(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(NotAnImage):
        probe(tmp_path / name)


def test_a_pipe_is_no_image_and_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(NotAnImage):
        probe(tmp_path / "a.png")


@pytest.mark.parametrize("name, content", [
    ("a.png", b""), ("a.jpg", b"<html>404</html>"), ("a.jpeg", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    ("a", b"\x89PNG\r\n\x1a\ncut"), ("a.tif", b"II*\0"), ("a.webp", b"RIFF\x24\0\0\0WEBPVP8 "), ("a.avif", b""),
    ("a", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"), ("a.HEIC", b"\0\0\0\x18ftypmif1\0\0\0\0heic"), ("a.heif", b""),
    ("a.avif", b"\0\0\0\x18ftypmif1\0\0\0\0avif"),
])  # fmt: skip
def test_a_broken_image_is_not_merely_none(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises((OSError, ValueError, SyntaxError)):
        probe(tmp_path / name)


@pytest.mark.parametrize("brand", [b"ftypmif1", b"ftypavif"])
def test_avif_of_either_brand_is_an_image(brand, tmp_path):
    Image.new("RGB", (16, 18), RED).save(tmp_path / "a.avif")
    raw = (tmp_path / "a.avif").read_bytes()
    (tmp_path / "a.avif").write_bytes(raw[:4] + brand + raw[12:])
    assert probe(tmp_path / "a.avif") == (16, 1)


def test_an_image_too_large_beside_others_is_read_by_itself(tmp_path, monkeypatch):
    names = [f"{i}.png" for i in range(4)]
    for name in names:
        Image.new("RGB", (4, 4), RED).save(tmp_path / name)
    asked = []

    def short_of_memory(path, *args):
        asked.append(path)
        if path == "2.png" and asked.count(path) < 2 or path == "3.png":
            raise MemoryError
        return np.zeros((4, 4, 3), np.uint8)

    monkeypatch.setattr(pictures, "read_image", short_of_memory)
    _, broken = pictures.readable_images(names, 4, files=pictures.Files(tmp_path))
    assert sorted(asked) == ["0.png", "1.png", "2.png", "2.png", "3.png", "3.png"]
    assert list(broken) == [3] and "not enough memory" in broken[3]


def test_a_link_to_nothing_is_broken(tmp_path):
    (tmp_path / "a.png").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError):
        probe(tmp_path / "a.png")


def test_sizes_are_read_without_pixels(tmp_path):
    """Of a PNG that is cut in its pixels the size is known; the header alone is read of a large one that is no image."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)).save(tmp_path / "a.png")
    raw = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(raw[:200])
    assert probe(tmp_path / "a.png") == (30, 1)
    images, broken = readable_images([tmp_path / "a.png"], 8)
    assert list(broken) == [0] and "truncated" in broken[0]
    with open(tmp_path / "film.bin", "wb") as file:
        file.truncate(10**12)
    with pytest.raises(NotAnImage):
        probe(tmp_path / "film.bin")


@pytest.mark.parametrize("suffix", [".gif", ".tif", ".webp", ".png"])
def test_later_pages_are_counted_and_the_first_is_used(tmp_path, suffix):
    frames = [Image.new("RGB", (4, 4), name) for name in ("red", "lime", "blue")]
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    assert probe(tmp_path / f"a{suffix}") == (4, 3)
    assert is_colour(pixels(tmp_path / f"a{suffix}"), (255, 0, 0))


def test_a_preview_within_a_jpeg_is_no_page(tmp_path):
    Image.new("RGB", (16, 16), RED).save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (16, 16))])
    assert probe(tmp_path / "a.jpg") == (16, 1) and is_colour(pixels(tmp_path / "a.jpg", 16), RED, 3)


def test_what_only_begins_as_an_image_is_told_in_words(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff" + bytes(60))
    _, broken = readable_images([tmp_path / "a.jpg"], 8)
    assert broken == {0: f"{tmp_path}/a.jpg (it begins as JPEG, but its content is that of none)"}
    with pytest.raises(UnidentifiedImageError, match="it begins as JPEG, but"):
        probe(tmp_path / "a.jpg")


def test_formats_are_only_those_that_the_content_allows():
    assert formats_of(b"\x89PNG\r\n\x1a\n", "a.jpg") == ["PNG"] and "EPS" not in formats_of(b"\xff\xd8\xff", "a.eps")


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (600, 2)])
def test_thin_images(tmp_path, size):
    Image.new("RGB", size, RED).save(tmp_path / "a.png")
    assert probe(tmp_path / "a.png") == (min(size), 1) and is_colour(pixels(tmp_path / "a.png", 8), RED)


def test_a_progressive_jpeg_and_one_that_is_cut(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    noise.save(tmp_path / "a.jpg", progressive=True)
    assert pixels(tmp_path / "a.jpg", 64).shape == (64, 64, 3)
    raw = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(UserError, match="1 images cannot be read"):
        read_images([tmp_path / "a.jpg"], 64)


def test_no_warning_of_pillow_reaches_the_terminal(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.save(tmp_path / "palette.png", transparency=b"\xff\x00")
    Image.new("L", (9, 9)).save(tmp_path / "large.png")
    tiff(tmp_path / "odd.tif", 16, 1, b"\0\0" * 16)
    raw = (tmp_path / "odd.tif").read_bytes()
    (tmp_path / "odd.tif").write_bytes(raw.replace(struct.pack("<HHI", 277, 3, 1), struct.pack("<HHI", 277, 3, 2)))
    Image.new("RGB", (9, 9)).save(tmp_path / "exif.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + b"\xff" * 12)
    code = f"""
from PIL import Image; from pathlib import Path; from Data.pictures import probe, readable_images
Image.MAX_IMAGE_PIXELS = 50
paths = sorted(Path({str(tmp_path)!r}).iterdir())
[probe(path) for path in paths]; readable_images(paths, 4)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# Names and threads


@pytest.mark.parametrize(
    "name, text", [("é a,b.png", "é a,b.png"), ("a\nb", "a\\nb"), ("\udcff", "\\udcff"), ("\u202egnp", "\\u202egnp")]
)
def test_names_are_shown_on_one_line(name, text):
    assert shown(name) == text


def test_work_is_given_out_in_pieces(monkeypatch):
    from Data import parallel

    tasks = []

    class Pool(parallel.ThreadPoolExecutor):
        def submit(self, *args):
            tasks.append(args)
            return super().submit(*args)

    monkeypatch.setattr(parallel, "ThreadPoolExecutor", Pool)
    done = []
    in_chunks(done.append, 1000)
    assert sorted(done) == list(range(1000)) and len(tasks) == 16


def test_files_are_hashed_as_they_are_read(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    digests = np.zeros((2, 32), np.uint8)
    _, broken = readable_images(["a.png", "b.png"], 4, files=Files(tmp_path), digests=digests)
    assert digests[0].tobytes() == hashlib.sha256((tmp_path / "a.png").read_bytes()).digest() and not digests[1].any()
    assert list(broken) == [1] and "b.png" in broken[1]


# What Pillow opens as something else, from public bug reports (Pillow 4621, 393, 6482, 7111; ImageSharp 581)


def tagged_tiff(path, tags, **options):
    """An RGB TIFF of 8x8 px with further tags {number: (type, value)}."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    info = ImageFileDirectory_v2()
    for number, (kind, value) in tags.items():
        info.tagtype[number] = kind
        info[number] = value
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(path, tiffinfo=info, **options)
    return path


def test_a_preview_is_not_taken_for_a_photograph(tmp_path):
    path = tagged_tiff(tmp_path / "raw.tif", {254: (4, 1)})
    for read in (probe, lambda path: read_image(path, 8)):
        with pytest.raises(ValueError, match="holds only a preview"):
            read(path)
    (tmp_path / "photo.nef").write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="camera's raw file"):
        read_image(tmp_path / "photo.nef", 8)


def test_signed_numbers_are_refused(tmp_path):
    path = tmp_path / "signed.tif"
    Image.fromarray(np.full((8, 8), 90, np.uint8)).save(path, tiffinfo={339: 2})
    with pytest.raises(ValueError, match="signed numbers"):
        read_image(path, 8)


@pytest.mark.parametrize("explained", [True, False])
def test_a_fourth_band_must_be_explained(tmp_path, explained):
    path = tmp_path / "four.tif"
    Image.new("RGBA", (8, 8), (10, 20, 30, 255)).save(path)
    raw = path.read_bytes()
    if not explained:  # the tag of extra samples becomes one that means nothing
        assert raw.count(struct.pack("<HHI", 338, 3, 1)) == 1
        path.write_bytes(raw.replace(struct.pack("<HHI", 338, 3, 1), struct.pack("<HHI", 337, 3, 1)))
        with pytest.raises(ValueError, match="a fourth band that it does not explain"):
            read_image(path, 8)
    else:
        assert read_image(path, 8)[0, 0].tolist() == [10, 20, 30]


def test_an_opacity_that_was_never_written_is_none(tmp_path):
    """32-bit TGA files whose fourth byte is 0 throughout are not transparent throughout."""
    Image.new("RGBA", (8, 8), (10, 20, 30, 0)).save(tmp_path / "a.tga")
    assert read_image(tmp_path / "a.tga", 8)[0, 0].tolist() == [10, 20, 30]


def test_a_damaged_png_is_broken_or_has_its_pixels(tmp_path):
    ramp = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    memory = io.BytesIO()
    Image.fromarray(np.dstack([ramp] * 3)).save(memory, "PNG", compress_level=1)
    whole, file, silent = memory.getvalue(), tmp_path / "a.png", []
    file.write_bytes(whole)
    pixels = read_image(file, 64)
    for place in range(whole.index(b"IDAT") + 6, whole.index(b"IEND") - 8):
        damaged = bytearray(whole)
        damaged[place] ^= 16
        file.write_bytes(damaged)
        try:
            silent += [place] * bool((read_image(file, 64) != pixels).any())
        except BROKEN_IMAGE:
            pass
    assert not silent
