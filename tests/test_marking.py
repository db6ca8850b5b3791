"""The mark of generated images: what it says, that pixels and hashes do not change, and sets from before it."""

import io
import json
import zlib
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

import generate_dataset
from Data.marking import DIGITAL_SOURCE_TYPE, MARK, chunks, has_mark, marked, unmarked
from Data.set_hashes import class_hashes
from Data.synthetic import SyntheticWriter, set_identity
from Experiment.errors import UserError
from tests.conftest import synthetic_files
from tests.test_generation import FLAGS, images_of, manifest_of

pytestmark = pytest.mark.usefixtures("no_pictures")


def png(seed=0, packet=None):
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), np.uint8)
    memory, info = io.BytesIO(), PngImagePlugin.PngInfo()
    if packet:
        info.add_itxt("XML:com.adobe.xmp", packet)
    Image.fromarray(pixels).save(memory, format="PNG", pnginfo=info)
    return memory.getvalue()


def opened(file):
    return Image.open(io.BytesIO(file))


def test_the_mark_is_iptcs_word_in_an_xmp_packet():
    packet = opened(marked(png())).info["xmp"]
    (description,) = ElementTree.fromstring(packet).iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
    assert description.attrib["{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"] == DIGITAL_SOURCE_TYPE
    assert len(MARK) < 450 and zlib.crc32(MARK[4:-4]) == int.from_bytes(MARK[-4:], "big")


def test_pixels_are_the_same_and_bytes_are_fixed():
    file = png()
    assert np.array_equal(opened(marked(file)), opened(file)) and marked(file) == marked(png()) != file
    assert unmarked(marked(file)) == file == unmarked(file) and marked(marked(file)) == marked(file)
    assert has_mark(marked(file)) and not has_mark(file)


def test_a_file_holds_one_packet():
    ours = opened(marked(png())).info["xmp"].decode()
    for packet in ("<x:xmpmeta xmlns:x='adobe:ns:meta/'/>", ours, ours.replace("rdf:about", "rdf:ABOUT")):
        file = marked(png(packet=packet))
        assert has_mark(file) and np.array_equal(opened(file), opened(png()))
        assert sum(b"XML:com.adobe.xmp" in part for part in chunks(file)) == 1
    assert marked(png(packet=f"<other says='{DIGITAL_SOURCE_TYPE}'/>")) == png(packet=f"<other says='{DIGITAL_SOURCE_TYPE}'/>")


@given(st.binary(max_size=80))
def test_what_is_no_png_keeps_its_bytes(tail):
    assert b"".join(chunks(png()[:33] + tail)) == tail


def write(folder, mark):
    writer = SyntheticWriter(folder, [3, 2], mark=mark)
    writer.begin()
    for number in writer.missing():
        writer.write(number, np.asarray(opened(png(number))))
    writer.finish({"seed": 5, "classes": ["a", "b"]})
    writer.close()
    return images_of(folder), manifest_of(folder)


def test_hashes_and_identity_do_not_depend_on_the_mark(tmp_path):
    """So what was trained on a set from before the mark is not stale when the set is made again."""
    (with_mark, manifest), (without, manifest_without) = write(tmp_path / "a", True), write(tmp_path / "b", False)
    assert {name: marked(file) for name, file in without.items()} == with_mark != without
    assert manifest == manifest_without
    for folder in (tmp_path / "a", tmp_path / "b"):
        assert class_hashes(synthetic_files(folder, 2), Path.read_bytes) == manifest["sha256"]
    assert set_identity(tmp_path / "a", ["a", "b"]) == set_identity(tmp_path / "b", ["a", "b"])


@pytest.fixture
def args(tiny_experiment):
    return generate_dataset.parse_args(tiny_experiment + FLAGS)


def test_no_mark_leaves_it_out_and_changes_nothing_else(args):
    folder = generate_dataset.generate(args)
    images, manifest = images_of(folder), manifest_of(folder)
    assert all(map(has_mark, images.values())) and manifest["no_mark"] is False
    args.no_mark = True
    with pytest.raises(UserError, match="no_mark: False there, True now"):
        generate_dataset.plan(args)
    args.restart = True
    generate_dataset.generate(args)
    assert images_of(folder) == {name: unmarked(file) for name, file in images.items()}
    assert manifest_of(folder) == manifest | {"no_mark": True}


def test_a_set_from_before_the_mark_stays_finished_and_goes_on_without_it(args, caplog):
    args.no_mark = True
    folder = generate_dataset.generate(args)
    images, manifest = images_of(folder), manifest_of(folder)
    del manifest["no_mark"]
    for name in ("generation.json", "manifest.json"):
        record = json.loads((folder / name).read_text())
        del record["no_mark"]
        (folder / name).write_text(json.dumps(record))
    args.no_mark = False
    assert "finished already" in generate_dataset.plan(args).done
    for _ in range(2):  # its record stays one of an earlier version
        (folder / "class_03/img_1.png").unlink()
        with caplog.at_level("INFO", logger="experiment"):
            generate_dataset.generate(args)
        assert "goes on without one" in caplog.text
        assert images_of(folder) == images and manifest_of(folder) == manifest
    args.restart = True
    generate_dataset.generate(args)
    assert all(map(has_mark, images_of(folder).values())) and manifest_of(folder)["sha256"] == manifest["sha256"]
