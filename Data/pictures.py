"""Image files: which files are images, and their pixels as 8-bit RGB squares."""

import hashlib
import io
import os
import re
import stat
import struct
import warnings

import numpy as np
from PIL import Image, ImageColor, UnidentifiedImageError

from Data.marking import SIGNATURE, check_pixels
from Data.parallel import in_chunks
from Data.resizing import resize, square
from Experiment.errors import UserError, let_pass
from Experiment.text import first_ten, shown

# What Pillow raises for files that are not the image they should be: there is no common class, and damage finds each.
BROKEN_IMAGE = (OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, ArithmeticError, RuntimeError,
                MemoryError, AttributeError, struct.error, Image.DecompressionBombError)  # fmt: skip
WHITE = (255, 255, 255)
RAW_SUFFIXES = {".dng", ".nef", ".cr2", ".cr3", ".crw", ".arw", ".orf", ".raf", ".rw2", ".pef", ".srw", ".x3f", ".3fr", ".iiq"}
HEIC_SUFFIXES = {".heic", ".heif", ".hif"}
HEIC_BRANDS = (b"hei", b"hev")  # beginnings; of brand mif1 the name of the file tells HEIC from AVIF
HEADER = 32  # bytes that tell the format
# (offset, bytes, Pillow's name). Formats without a signature are tried by suffix; EPS and WMF are programs, not images.
SIGNATURES = (
    (0, SIGNATURE, "PNG"), (0, b"\xff\xd8\xff", "JPEG"), (0, b"GIF87a", "GIF"), (0, b"GIF89a", "GIF"),
    (0, b"II*\0", "TIFF"), (0, b"MM\0*", "TIFF"), (0, b"II+\0", "TIFF"), (0, b"MM\0+", "TIFF"), (8, b"WEBP", "WEBP"),
    (0, b"\xff\x4f\xff\x51", "JPEG2000"), (0, b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"), (4, b"ftypavi", "AVIF"),
    (4, b"ftypmif1", "AVIF"), (0, b"8BPS", "PSD"), (0, b"DDS ", "DDS"), (0, b"\x01\xda", "SGI"), (0, b"qoif", "QOI"),
    (0, b"\0\0\1\0", "ICO"), (0, b"BM", "BMP"), (0, b"\x59\xa6\x6a\x95", "SUN"),
    *((0, b"P%c%c" % (kind, space), "PPM") for kind in b"123456Ff" for space in b"\n \r\t"),
)  # fmt: skip
WEAK = {"BMP", "PPM", "SGI", "ICO"}  # whose signatures other files begin with as well: Pillow decides
FORMAT_OF_SUFFIX = {".tga": "TGA", ".pcx": "PCX", ".xbm": "XBM"}
# A file of these suffixes that cannot be opened is a broken image; any other one is no image.
IMAGE_SUFFIXES = set(
    ".png .apng .jpg .jpeg .jpe .jfif .bmp .gif .webp .avif .tif .tiff .ppm .pgm .pbm .pnm .jp2 .j2k .tga .qoi".split()
)
PAGED = ("GIF", "TIFF", "WEBP", "PNG", "AVIF")  # whose further pages are images: a JPEG's (MPO) are previews, a PSD's layers
ORIENTATION = 0x0112  # EXIF tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow warns of odd metadata, palettes and large images; what matters of it is an error here.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class NotAnImage(Exception):
    """The file is something else than an image."""


class Files:
    """Files that are read by name, relative to a folder; Data/stores.py has others."""

    def __init__(self, folder=""):
        self.folder = folder

    def read(self, name):
        """The bytes of a file."""
        with open(self.where(name), "rb") as file:  # a Path would keep every name in a table of the interpreter
            return file.read()

    def where(self, name):
        """Where a file lies, for messages."""
        return os.path.join(self.folder, name)


HERE = Files()


def colour(text):
    """A colour's name or #rrggbb as (red, green, blue), 0..255 each.

    Raises:
        ValueError: It is neither.
    """
    if text.lower() not in ImageColor.colormap and not re.fullmatch("#[0-9a-fA-F]{6}", text):
        raise ValueError(f"must be the name of a colour or #rrggbb, received {text!r}")
    return ImageColor.getrgb(text)


def refuse_misread(image):
    """Refuse what Pillow opens without complaint but as something else.

    Raises:
        ValueError: A camera's raw file, of which it shows the preview; or a TIFF whose numbers it would mistake.
    """
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return
    bits = tags.get(258, (8,))
    if 50706 in tags or tags.get(254, 0) & 1:  # DNG version; "reduced resolution" of the first page
        raise ValueError("it holds only a preview, as cameras' raw files do: develop it first")
    if image.mode in ("L", "RGB") and 2 in tags.get(339, (1,)):
        raise ValueError("its pixels are signed numbers: store 8 or 16 bits without a sign")
    if tags.get(284) == 2 and max(bits) > 8 and tags.get(259, 1) == 1:
        raise ValueError("its colours are separate planes of more than 8 bits: store them interleaved")
    if image.mode == "RGBA" and 338 not in tags:
        raise ValueError("it has a fourth band that it does not explain (opacity, or infrared): store it as RGB")


def formats_of(header, path):
    """Names of the formats that a file's first bytes, or else its suffix, allow: a list for `Image.open`.

    Raises:
        NotAnImage: There is none.
        ValueError: There is none, but the suffix promises an image.
    """
    found = [name for offset, magic, name in SIGNATURES if header[offset : offset + len(magic)] == magic]
    suffix = os.path.splitext(path)[1].lower()
    heic = header[4:8] == b"ftyp" and header[8:11] in HEIC_BRANDS
    if heic or suffix in HEIC_SUFFIXES and set(found) <= {"AVIF"}:
        raise ValueError("it is a HEIC photograph, which is not read here: convert it to JPEG or PNG first")
    if suffix in RAW_SUFFIXES:
        raise ValueError("it is a camera's raw file, which is read as its preview: develop it first")
    if suffix in FORMAT_OF_SUFFIX:
        found.append(FORMAT_OF_SUFFIX[suffix])
    if not found:
        if suffix in IMAGE_SUFFIXES:
            raise ValueError("it is empty" if not header else "its content is that of no image")
        raise NotAnImage
    return found


def opened(file, formats):
    """`Image.open`, but that a file that is none of the formats is told in words: Pillow's name a Python object."""
    try:
        return Image.open(file, formats=formats)
    except UnidentifiedImageError:
        raise UnidentifiedImageError(f"it begins as {' or '.join(formats)}, but its content is that of none") from None


def probe(path):
    """Shorter side in px and number of pages of an image file, without decoding its pixels.

    Raises:
        NotAnImage: It is none.
        BROKEN_IMAGE: It is a broken one.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise NotAnImage  # reading from a pipe would wait for ever
    with open(path, "rb") as file:
        header = file.read(HEADER)
        formats = formats_of(header, path)
        try:
            with opened(file, formats) as image:
                refuse_misread(image)
                return min(image.size), pages(image)
        except BROKEN_IMAGE as error:
            let_pass(error, path)
            promised = os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES
            if promised or set(formats) - WEAK - set(FORMAT_OF_SUFFIX.values()):
                raise
            raise NotAnImage from None


def pages(image):
    try:
        return getattr(image, "n_frames", 1) if image.format in PAGED else 1
    except BROKEN_IMAGE:  # in a later page, which is not used
        return 1


def upright(rgb, image):
    """`rgb`, made of `image`, as the orientation tag means it to be seen; a tag that cannot be read is none."""
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION))
    except Exception:  # metadata is free text to Pillow: there is no list of what damaged ones raise
        return rgb
    return rgb if turn is None else rgb.transpose(turn)


def deep_grey(image):
    """A grey image of 12 or 16 bits as 8-bit grey (65535 is 255), and the mask of its transparent pixels or None."""
    values = np.asarray(image).astype(np.uint32)
    tags = getattr(image, "tag_v2", {})
    white = 4095 if tags.get(258) == (12,) else 65535  # bits per sample
    grey = ((values * 255 + white // 2) // white).clip(0, 255).astype(np.uint8)
    if tags.get(262) == 0:  # photometric interpretation: 0 is white
        grey = 255 - grey
    transparent = image.info.get("transparency")
    return Image.fromarray(grey), None if transparent is None else Image.fromarray(values == transparent)


def to_rgb(image, background=WHITE):
    """An image of any of Pillow's modes as RGB; transparent pixels show the background.

    Raises:
        ValueError: Its pixels are numbers of unknown range.
    """
    if image.mode.startswith("I;16") or image.mode == "I" and image.format in ("PNG", "PPM"):
        grey, transparent = deep_grey(image)
        rgb = grey.convert("RGB")
        if transparent is not None:
            rgb.paste(background, mask=transparent)
        return rgb
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit numbers of unknown range (mode {image.mode}): store 8 or 16 bits")
    if image.mode in ("La", "RGBa"):  # colours multiplied by their opacity
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode in ("LA", "PA", "RGBA") or image.mode in ("1", "L", "P", "RGB") and image.has_transparency_data:
        unused = image.format in ("TGA", "BMP")  # some of their writers leave the byte of the opacity at 0
        image = image.convert("RGBA")
        lowest, highest = image.getextrema()[3]
        if lowest < 255 and not (unused and highest == 0):
            image = Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image)
    return image.convert("RGB")


def decode(image):
    """Load an open image, and mend the transparent colour that Pillow leaves in the file's own bit depth."""
    refuse_misread(image)
    raw_mode = image.tile[0][3] if image.tile else ""
    image.load()
    transparent = image.info.get("transparency")
    if image.format == "PNG" and image.mode == "L" and raw_mode in ("L;2", "L;4"):
        if isinstance(transparent, int):
            image.info["transparency"] = transparent * {"L;2": 85, "L;4": 17}[raw_mode]
    elif image.mode == "RGB" and isinstance(transparent, tuple) and max(transparent) > 255:
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    return image


def read_image(path, side, mode="antialias", background=WHITE, digests=None, index=0, files=HERE):
    """An image file as RGB uint8 (side, side, 3): turned upright, cut to its middle square, resized if need be.

    Args:
        path: The file; of several pages the first is read.
        side: Side, px.
        mode: How it is resized, see `Data.resizing.resize`.
        background: Colour behind transparent pixels.
        digests: uint8 (N, 32), whose row `index` becomes the SHA-256 of the file.
        files: What it is read from.

    Raises:
        NotAnImage, BROKEN_IMAGE: It cannot be read.
    """
    raw = files.read(path)
    if digests is not None:
        digests[index] = np.frombuffer(hashlib.sha256(raw).digest(), np.uint8)
    if raw.startswith(SIGNATURE):
        check_pixels(raw)
    with opened(io.BytesIO(raw), formats_of(raw[:HEADER], path)) as image:
        rgb = upright(to_rgb(decode(image), background), image)
        return np.asarray(resize(square(rgb), side, mode))


def readable_images(paths, side, mode="antialias", background=WHITE, files=HERE, digests=None):
    """Image files as uint8 (N, side, side, 3), read in parallel, and which cannot be read: {index: path and reason}.

    Args:
        paths: The files' names in `files`.
        digests: Zeros uint8 (N, 32), which become the SHA-256 of every file that can be opened.
    """
    images = np.empty((len(paths), side, side, 3), np.uint8)
    broken, large = {}, []

    def read(i, alone=False):
        try:
            images[i] = read_image(paths[i], side, mode, background, digests, i, files)
        except (NotAnImage, *BROKEN_IMAGE) as error:
            if isinstance(error, MemoryError) and not alone:
                large.append(i)
                return
            let_pass(error, files.where(paths[i]))
            why = "not enough memory" if isinstance(error, MemoryError) else shown(error) or "not an image"
            broken[i] = f"{shown(files.where(paths[i]))} ({why})"

    in_chunks(read, len(paths))
    for i in large:  # what is too large beside others may fit by itself
        read(i, alone=True)
    return images, dict(sorted(broken.items()))


def read_images(paths, side, mode="antialias", files=HERE):
    """Image files, by their names in `files`, as uint8 (N, side, side, 3), read in parallel.

    Raises:
        UserError: Files that cannot be read; it lists the first ten.
    """
    images, broken = readable_images(paths, side, mode, files=files)
    if broken:
        raise UserError(f"{len(broken)} images cannot be read: {first_ten(broken.values())}")
    return images
