"""A set as tars: the same images and results as single files, whatever kills its writer, whoever makes which part."""

import builtins
import itertools
import os
import shutil
import tarfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from Data import sinks
from Data.export_images import SetToExport
from Data.generation import begin_folder, check_folder, draw_pictures, is_complete, refuse_foreign
from Data.numbering import Proportional
from Data.registry import DatasetSpec
from Data.set_hashes import kept_file
from Data.stored_set import StoredSet, load_synthetic
from Data.stores import tar_file
from Data.synthetic import SyntheticWriter, complete_sets, find_synthetic, open_set, read_manifest, set_identity
from Data.tar import TarWriter
from Experiment.errors import UserError
from Experiment.files import read_json, write_json
from Experiment.locks import remove_partial_files
from Experiment.paths import Experiment
from tests.conftest import Stopped, stopped_writing_images

CLASSES, COUNTS, BLOCK = ("cat", "dog", "eel"), [7, 7, 6], 2
SETTINGS = {"seed": 5, "ugs": 1.5, "classes": list(CLASSES), "inf_steps": 20}
SPEC = DatasetSpec("own", "folder", 3, 4, 10, 10, CLASSES)


@pytest.fixture(autouse=True)
def small_tars(monkeypatch):
    """Six images a tar: four tars of a set of twenty."""
    monkeypatch.setattr(sinks, "TAR_IMAGES", 7)


def picture(label, index):
    return np.random.default_rng([label, index]).integers(0, 256, (4, 4, 3), np.uint8)


def new_writer(folder, store="webdataset", counts=COUNTS, numbering=None):
    writer = SyntheticWriter(folder, counts, BLOCK, numbering, store=store)
    writer.pool = ThreadPoolExecutor(1)  # so that the steps of a writer have an order
    return writer


def write(folder, store="webdataset", shards=((1, 1),), finish=True, **how):
    """Write what is missing of some shards, each by a process of its own. Returns the folder."""
    for shard in shards:
        writer = new_writer(folder, store, **how)
        writer.begin()
        for number in writer.missing(shard):
            writer.write(number, picture(*writer.place(number)))
        writer.drain()
        writer.close()
    if finish:
        writer.finish(SETTINGS)
    return folder


def tree(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def pngs(folder):
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in sorted(Path(folder).glob("class_*/img_*.png"))}


def in_tars(folder):
    """{member: bytes} of all tars, as Python's own reader finds them; each once."""
    found = {}
    for path in sorted(folder.glob("images-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                assert member.name not in found and member.isfile()
                found[member.name] = tar.extractfile(member).read()
    return found


# The same images


@pytest.mark.parametrize("counts, numbering", [
    (COUNTS, None), ([6, 6, 6], None), ([1, 9, 0], None), ([1, 0, 0], None), ([12, 5, 3], Proportional([60, 25, 15], 24)),
])  # fmt: skip
def test_both_stores_hold_the_same_bytes(tmp_path, counts, numbering):
    for store in ("files", "webdataset"):
        write(tmp_path / store, store, counts=counts, numbering=numbering)
    files, members = pngs(tmp_path / "files"), in_tars(tmp_path / "webdataset")
    assert {name: png for name, png in members.items() if name.endswith(".png")} == files
    labels = {f"{name[:-4]}.cls": str(int(name[6:8])).encode() for name in files}
    assert {name: text for name, text in members.items() if name.endswith(".cls")} == labels
    (plain, packed) = (read_manifest(tmp_path / store) for store in ("files", "webdataset"))
    assert packed == plain | {"store": "webdataset"} and "store" not in plain
    assert set_identity(tmp_path / "files", CLASSES) == set_identity(tmp_path / "webdataset", CLASSES)
    for folder in (tmp_path / "files", tmp_path / "webdataset"):
        noted = set_identity(folder, CLASSES)  # by the writer; then by reading everything
        kept_file(folder).unlink()
        assert set_identity(folder, CLASSES) == noted
    assert not [name for name in os.listdir(tmp_path / "webdataset") if name.startswith((".", "class"))]


def test_a_tar_has_a_run_of_whole_blocks_in_order_and_a_label_beside_each_image(tmp_path):
    folder = write(tmp_path)
    assert sorted(path.name for path in folder.glob("*.tar")) == [f"images-00000{i}.tar" for i in range(4)]
    for i in range(4):
        with tarfile.open(folder / f"images-00000{i}.tar") as tar:
            names = tar.getnames()
        keys = [f"class_{number % 3:02d}/img_{number // 3}" for number in range(6 * i, min(6 * i + 6, 20))]
        assert names == [f"{key}.{suffix}" for key in keys for suffix in ("png", "cls")]


@pytest.mark.parametrize("shards", [
    [(2, 2), (1, 2)], [(i, 4) for i in (3, 1, 4, 2)], [(i, 9) for i in range(9, 0, -1)], [(1, 2), (1, 3), (2, 3), (3, 3)],
])  # fmt: skip
def test_shards_in_any_order_make_the_same_tars(tmp_path, shards):
    assert tree(write(tmp_path / "a", shards=shards)) == tree(write(tmp_path / "b"))
    writer = new_writer(tmp_path / "c")
    for i, n in shards:
        assert {number // 6 for number in writer.shard((i, n))}.isdisjoint(
            number // 6 for j in range(1, n + 1) if j != i for number in writer.shard((j, n))
        )


def test_tars_take_the_order_of_numbers_in_whatever_order_images_come(tmp_path):
    writer = SyntheticWriter(tmp_path / "a", COUNTS, BLOCK, store="webdataset")
    writer.begin()
    for number in np.random.default_rng(1).permutation(writer.missing()):
        writer.write(number, picture(*writer.place(number)))
        assert len(os.listdir(tmp_path / "a")) <= 9  # a log or a tar of each, and one that is being written
    writer.finish(SETTINGS)
    writer.close()
    assert tree(tmp_path / "a") == tree(write(tmp_path / "b"))


def test_a_number_of_images_a_tar_is_one_of_whole_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "TAR_IMAGES", 1024)
    units = [SyntheticWriter(tmp_path, [9], block, store="webdataset").sink.unit for block in (1, 16, 96, 2000)]
    assert units == [1024, 1024, 960, 2000]


# Kills


class Killed(BaseException):
    pass


class Killer:
    """Ends a writer at its nth step: before, in the midst of, or after a write, and before a sync, a rename or a removal.

    What has been killed does nothing more: each later step fails as well, so that nobody cleans up.
    """

    def __init__(self, monkeypatch, last):
        self.left = last
        for module, name in ((os, "replace"), (os, "fsync"), (Path, "unlink")):
            monkeypatch.setattr(module, name, self.after_a_step(getattr(module, name)))
        monkeypatch.setattr(sinks, "open", self.open, raising=False)
        monkeypatch.setattr(TarWriter, "write", self.torn(TarWriter.write))

    def step(self):
        self.left -= 1
        if self.left < 0:
            raise Killed

    def after_a_step(self, work):
        def stepped(*args, **how):
            self.step()
            return work(*args, **how)

        return stepped

    def torn(self, write):
        def halves(tar, piece):
            self.step()
            write(tar, piece[: len(piece) // 2])
            tar.file.flush()
            self.step()
            write(tar, piece[len(piece) // 2 :])

        return halves

    def open(self, path, mode):
        file = builtins.open(path, mode, buffering=0 if mode == "ab" else -1)
        if mode == "ab":
            file = Halves(file, self)
        return file


class Halves:
    """A file that writes in two steps."""

    def __init__(self, file, killer):
        self.file, self.killer = file, killer

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, piece):
        self.killer.step()
        self.file.write(piece[: len(piece) // 3])
        self.killer.step()
        self.file.write(piece[len(piece) // 3 : -1])
        self.killer.step()
        self.file.write(piece[-1:])
        self.killer.step()


def killed_after(folder, steps):
    """Write a set until a step. Returns the numbers that were put, and whether the writer was killed."""
    writer, put = new_writer(folder), []
    own, done = writer.sink.put, False
    writer.sink.put = lambda number, png: own(number, png) and not put.append(int(number))
    with pytest.MonkeyPatch.context() as patch:
        Killer(patch, steps)
        try:
            writer.begin()
            for number in writer.missing():
                writer.write(number, picture(*writer.place(number)))
            writer.finish(SETTINGS)
            done = True
        except Killed:
            pass
        writer.close()
    return put, not done


def test_a_set_that_was_killed_at_any_step_ends_the_same(tmp_path):
    whole, kills = tree(write(tmp_path / "whole")), 0
    for steps in itertools.count():
        folder = tmp_path / f"{steps}"
        put, killed = killed_after(folder, steps)
        if not killed:
            break
        kills += 1
        writer = new_writer(folder)
        there, total = writer.progress()
        assert total == 20 and there >= len(put) and not set(put) & set(writer.missing().tolist())
        killed_after(folder, steps // 2)  # and once more
        remove_partial_files(folder)  # as who claims the folder does
        assert tree(write(folder)) == whole
        assert is_complete(new_writer(folder))
        shutil.rmtree(folder)
    assert kills > 150


def test_what_is_on_the_disk_counts_and_is_not_made_again(tmp_path):
    writer = new_writer(tmp_path)
    writer.begin()
    for number in (0, 7, 1, 19, 2, 3, 4, 5):
        writer.write(number, picture(*writer.place(number)))
    writer.drain()
    writer.close()
    again = new_writer(tmp_path)
    assert again.progress() == (8, 20) and not {0, 1, 2, 3, 4, 5, 7, 19} & set(again.missing().tolist())
    assert [again.progress((i, 4)) for i in range(1, 5)] == [(6, 6), (1, 6), (0, 6), (1, 2)]
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == ["images-000000.tar"]
    assert not is_complete(again)


def test_a_shard_whose_last_tar_is_not_packed_yet_is_not_whole(tmp_path, monkeypatch):
    """Its images are there, and it is not for others to make them; but who ends beside it must not close the set."""
    write(tmp_path, shards=[(2, 2)], finish=False)
    with monkeypatch.context() as patch:
        patch.setattr(sinks.TarSink, "pack", lambda self, tar: None)  # killed just before it
        write(tmp_path, shards=[(1, 2)], finish=False)
    writer = new_writer(tmp_path)
    assert not writer.missing((1, 2)).size and not writer.is_whole((1, 2)) and writer.is_whole((2, 2))
    write(tmp_path, shards=[(1, 2)])
    assert new_writer(tmp_path).is_whole((1, 1)) and is_complete(new_writer(tmp_path))


def test_two_processes_may_pack_the_same_tar(tmp_path, monkeypatch):
    """The other one is ready first, and takes the logs away while this one reads them."""
    ready, add = write(tmp_path / "b"), sinks.TarSink.add
    with monkeypatch.context() as patch:
        patch.setattr(sinks.TarSink, "pack", lambda self, tar: None)
        write(tmp_path / "a", finish=False)

    def slow(self, *what):
        add(self, *what)
        for tar, logs in self.logs().items():
            shutil.copy(tar_file(ready, tar), self.folder)
            for log in logs:
                log.unlink()

    monkeypatch.setattr(sinks.TarSink, "add", slow)
    assert tree(write(tmp_path / "a")) == tree(ready)


def test_an_image_that_is_there_is_not_stored_twice(tmp_path):
    folder = write(tmp_path, finish=False)
    before, writer = tree(folder), new_writer(folder)
    writer.begin()
    writer.write(3, picture(9, 9))
    writer.finish(SETTINGS)
    assert tree(folder) == before | {"manifest.json": (folder / "manifest.json").read_bytes()}
    assert read_manifest(folder)["sha256"] == read_manifest(write(tmp_path / "other"))["sha256"]


def test_nothing_is_lost_behind_what_an_error_of_the_disk_has_torn(tmp_path, monkeypatch):
    writer, opened = new_writer(tmp_path / "a"), []
    writer.begin()

    def full(path, mode):
        opened.append(path)
        if len(opened) != 3:
            return builtins.open(path, mode)
        with builtins.open(path, "ab") as file:
            file.write(b"torn" * 10)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sinks, "open", full, raising=False)
    for number in range(5):
        writer.write(number, picture(*writer.place(number)))
    writer.pool.shutdown()  # images behind the torn one have been written too
    with pytest.raises(OSError, match="No space"):
        writer.drain()
    writer.close()
    monkeypatch.undo()
    monkeypatch.setattr(sinks, "TAR_IMAGES", 7)
    assert new_writer(tmp_path / "a").missing().tolist() == [2, *range(5, 20)]
    assert tree(write(tmp_path / "a")) == tree(write(tmp_path / "b"))


def test_zeros_that_a_power_cut_leaves_are_no_image(tmp_path):
    writer = new_writer(tmp_path)
    writer.begin()
    writer.write(1, picture(1, 0))
    writer.drain()
    (log,) = tmp_path.glob(".pending-*")
    with open(log, "ab") as file:
        file.write(bytes(500))
    assert new_writer(tmp_path).progress() == (1, 20)
    whole = log.read_bytes()
    for at in range(0, len(whole) - 500, 7):  # a byte that is not what it was
        log.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert new_writer(tmp_path).progress()[0] == 0 or at < 8  # another number: no image is damaged
    writer.close()


def test_a_tar_that_is_gone_is_made_again(tmp_path):
    folder = write(tmp_path)
    before = tree(folder)
    (folder / "images-000002.tar").unlink()
    assert not is_complete(new_writer(folder)) and new_writer(folder).missing().tolist() == list(range(12, 18))
    assert tree(write(folder)) == before and is_complete(new_writer(folder))


# Readers


@pytest.fixture
def both(tmp_path):
    return [write(tmp_path / "root" / store / "set", store) for store in ("files", "webdataset")]


@pytest.mark.parametrize("cache", [False, True])
def test_training_reads_the_same(both, tmp_path, cache):
    found = []
    for i, folder in enumerate(both):
        cached = tmp_path / f"cache{i}" if cache else None
        stored = StoredSet(folder, 3, 3, cache=cached)
        rows = stored.choose(15, 7)
        found.append((stored.names, stored.read(rows), stored.labels[rows], cached and os.listdir(cached)))
        assert np.array_equal(load_synthetic(folder, 3, 3, 15, 7, cache=cached)[0], stored.read(rows))
    for ours, theirs in zip(*found):
        assert np.array_equal(ours, theirs)


def test_an_export_is_the_same(both):
    plain, packed = (SetToExport(folder, SPEC) for folder in both)
    assert (plain.settings, plain.recipe, plain.sha256, plain.bytes()) == (
        packed.settings,
        packed.recipe,
        packed.sha256,
        packed.bytes(),
    )
    for one, other in zip(plain.images(), packed.images(), strict=True):
        assert (one.png, one.label, one.facts) == (other.png, other.label, other.facts)


def test_an_audit_reads_the_same(both):
    from Audit.material import AuditedSet

    plain, packed = (AuditedSet(folder, SPEC) for folder in both)
    assert plain.names == packed.names and plain.sha256 == packed.sha256 and plain.recipe == packed.recipe
    assert np.array_equal(plain.read(np.arange(20))[0], packed.read(np.arange(20))[0])


def test_pictures_are_the_same(both, tmp_path):
    for i, folder in enumerate(both):
        sheet = draw_pictures(folder, CLASSES, "title", tmp_path / f"images{i}")
        shutil.copy(sheet, tmp_path / f"images{i}/sheet.png")
    first, second = (
        {p.relative_to(tmp_path / name): p.read_bytes() for p in sorted((tmp_path / name).rglob("*.png"))}
        for name in ("images0", "images1")
    )
    assert first == second and len(first) == 4


def test_a_set_of_tars_is_found_also_without_its_manifest(tmp_path):
    folder = write(tmp_path / "20Enc1Dif1Is5Ugs1")
    assert complete_sets(tmp_path, 3) == {folder: 20} and find_synthetic(tmp_path, 3, 20) == folder
    (folder / "manifest.json").unlink()
    assert complete_sets(tmp_path, 3) == {folder: 20} and find_synthetic(tmp_path, 3, 20) == folder
    write_json(folder / "generation.json", SETTINGS)  # begun here, and not finished
    assert complete_sets(tmp_path, 3) == {}


def test_a_tar_that_has_changed_is_hashed(tmp_path):
    folder = write(tmp_path / "a")
    before = set_identity(folder, CLASSES)["sha256"]
    shutil.copy(folder / "images-000001.tar", folder / "images-000001.tar.new")
    os.replace(folder / "images-000001.tar.new", folder / "images-000001.tar")
    assert set_identity(folder, CLASSES)["sha256"] == before
    whole = (folder / "images-000001.tar").read_bytes()
    changed = bytearray(whole)
    changed[512 + 41] ^= 1
    (folder / "images-000001.tar").write_bytes(changed)
    assert set_identity(folder, CLASSES)["sha256"] != before


def test_names_of_many_classes_are_those_of_folders(tmp_path):
    counts = [1] * 101
    for store in ("files", "webdataset"):
        write(tmp_path / store, store, counts=counts)
    names = [open_set(tmp_path / store, 101).names for store in ("files", "webdataset")]
    assert names[0] == names[1] and names[0][100] == ["class_100/img_0.png"]


# What cannot be read


def repack(path, change):
    """Write a tar anew with other members, {name: bytes}."""
    with tarfile.open(path) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    packed = TarWriter(path)
    for name, content in change(members).items():
        packed.add(name, content)
    packed.close()


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


READERS = {
    "training": lambda folder: load_synthetic(folder, 3, 4, 9, 1),
    "export": lambda folder: list(SetToExport(folder, SPEC).images()),
    "pictures": lambda folder: draw_pictures(folder, CLASSES, "t", folder.parent),
    "hash": lambda folder: set_identity(folder, CLASSES),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("damage, told", [
    (lambda path: path.unlink(), r"class_00/img_2.png is in none of its 3 tars"),
    (lambda path: path.write_bytes(path.read_bytes()[:3000]), "images-000001.tar cannot be read: it is cut"),
    (lambda path: path.write_bytes(b""), "images-000001.tar cannot be read: it is cut"),
    (lambda path: path.write_bytes(b"no tar" * 999), "images-000001.tar cannot be read: it is damaged"),
    (lambda path: path.write_bytes(path.read_bytes().replace(b"img_2", b"img_1", 1)), "it is damaged"),
    (lambda path: repack(path, lambda m: m | {"notes.txt": b"mine"}), "notes.txt in it is no image of the set's 3 classes"),
    (lambda path: repack(path, lambda m: {"class_03/img_0.png": b"", "class_03/img_0.cls": b"3"}), "no image of the set's 3"),
    (lambda path: repack(path, lambda m: m | {"class_01/img_2.cls": b"2"}), "its label does not stand beside class_01/img_2.png"),
    (lambda path: repack(path, lambda m: {n: c for n, c in m.items() if n != "class_01/img_2.cls"}), "beside class_01/img_2.png"),
    (lambda path: shutil.copy(path, path.with_name("images-000009.tar")), "class_00/img_2.png is there twice"),
    (lambda path: shutil.copy(path.with_name("images-000000.tar"), path), "class_00/img_0.png is there twice"),
])  # fmt: skip
def test_a_bad_tar_ends_in_one_line(tmp_path, reader, damage, told):
    folder = write(tmp_path / "set")
    damage(folder / "images-000001.tar")
    with pytest.raises(UserError, match=told) as error:
        READERS[reader](folder)
    assert str(folder) in one_line(error)


def test_a_link_or_folder_in_a_tar_is_foreign(tmp_path):
    folder = write(tmp_path)
    with tarfile.open(folder / "images-000000.tar", "w") as tar:
        member = tarfile.TarInfo("class_00")
        member.type = tarfile.DIRTYPE
        tar.addfile(member)
    with pytest.raises(UserError, match="images-000000.tar cannot be read: class_00/ in it is no plain file"):
        open_set(folder, 3)


def test_a_tar_that_is_cut_anywhere_ends_in_one_line(tmp_path):
    folder = write(tmp_path)
    path = folder / "images-000003.tar"
    whole = path.read_bytes()
    end = max(i for i, byte in enumerate(whole) if byte) // 512 * 512 + 1024  # an empty block ends it, more may be gone
    for length in (*range(0, end, 101), end - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="images-000003.tar cannot be read: it is (cut|damaged)") as error:
            open_set(folder, 3)
        one_line(error)


def test_a_size_below_zero_does_not_turn_the_reader_round(tmp_path):
    folder = write(tmp_path)
    path = folder / "images-000000.tar"
    header = bytearray(path.read_bytes())
    header[124:135] = b"-0000001000"
    header[148:156] = b"%06o\0 " % (sum(header[:512]) - sum(header[148:156]) + 256)
    path.write_bytes(header)
    with pytest.raises(UserError, match="it is damaged"):
        open_set(folder, 3)


def test_the_last_tar_that_is_gone_is_missed(tmp_path):
    folder = write(tmp_path)
    (folder / "images-000003.tar").unlink()
    with pytest.raises(UserError, match=r"counts \[7, 7, 6\] images a class, but there are \[6, 6, 6\]"):
        open_set(folder, 3)
    for path in folder.glob("*.tar"):
        path.unlink()
    with pytest.raises(UserError, match=r"there are \[0, 0, 0\]"):
        open_set(folder, 3)


def test_a_damaged_image_in_a_tar_is_named(tmp_path):
    folder = write(tmp_path / "set")
    path = folder / "images-000000.tar"
    whole = bytearray(path.read_bytes())
    at = whole.index(b"IDAT") + 20
    whole[at] ^= 1
    path.write_bytes(whole)
    for reader in ("training", "export", "pictures"):
        with pytest.raises(UserError, match=r"images cannot be read: .*images-000000.tar: class_00/img_0.png \(the checksum"):
            if reader == "training":  # all images
                load_synthetic(folder, 3, 4, 20, 1)
            else:
                READERS[reader](folder)


def test_a_store_of_a_later_version_is_named(tmp_path):
    folder = write(tmp_path)
    write_json(folder / "manifest.json", read_json(folder / "manifest.json") | {"store": "zip"})
    with pytest.raises(UserError, match="has the store zip. Known are: files, webdataset"):
        open_set(folder, 3)


@pytest.mark.parametrize("there, now", [("files", "webdataset"), ("webdataset", "files")])
def test_the_other_store_is_refused_and_restart_replaces_it(tmp_path, there, now):
    record = {store: SETTINGS | ({"store": store} if store != "files" else {}) for store in ("files", "webdataset")}
    folder = write(tmp_path / "set", there)
    write_json(folder / "generation.json", record[there])
    check_folder(folder, record[there])
    with pytest.raises(UserError, match=f"set holds a set of --store {there}, and goes on as such") as error:
        check_folder(folder, record[now])
    one_line(error)
    begin_folder(folder, record[now], restart=True)
    assert sorted(os.listdir(folder)) == [".generation.json.lock", "generation.json"]
    write(folder, now)
    assert open_set(folder, 3).names == open_set(write(tmp_path / "other", now), 3).names


def test_a_restart_removes_what_is_of_the_set_and_nothing_else(tmp_path, caplog):
    folder = write(tmp_path / "set", "files")
    write_json(folder / "generation.json", SETTINGS)
    for name in ("list.csv", "class_names.txt", "images-list.csv"):
        (folder / name).touch()
    of_class = min(folder.glob("class_*"))
    os.rename(of_class, tmp_path / "elsewhere")
    of_class.symlink_to(tmp_path / "elsewhere")
    (folder / "notes").mkdir()
    refuse_foreign(folder)
    with pytest.raises(UserError, match="folders that are not of the set: notes. Move them away"):
        refuse_foreign(folder, restart=True)
    (folder / "notes").rmdir()
    begin_folder(folder, SETTINGS, restart=True)
    assert sorted(os.listdir(folder)) == [
        ".generation.json.lock", "class_names.txt", "generation.json", "images-list.csv", "list.csv"
    ]  # fmt: skip
    assert any((tmp_path / "elsewhere").iterdir()) and caplog.text.count("is not of the set: it stays") == 3
    for name in (".generation.json.lock", "generation.json"):
        (folder / name).unlink()
    with pytest.raises(UserError, match="has not begun: move it away"):  # with --restart too
        refuse_foreign(folder, restart=True)
    refuse_foreign(tmp_path / "none")


def test_a_restart_that_is_killed_while_it_removes_a_set_without_record_can_be_given_again(tmp_path, monkeypatch):
    folder = write(tmp_path / "set", "files")

    def killed(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("Data.generation.shutil.rmtree", killed)
        begin_folder(folder, SETTINGS | {"total": 60}, restart=True)
    refuse_foreign(folder, restart=True)
    with pytest.raises(UserError, match="a --restart was interrupted as it threw away what is here"):
        check_folder(folder, SETTINGS | {"total": 60})
    begin_folder(folder, SETTINGS | {"total": 60}, restart=True)
    check_folder(folder, SETTINGS | {"total": 60})


def test_memory_is_that_of_the_names(tmp_path):
    counts = [2000] * 10
    places, folder = itertools.product(range(2000), range(10)), tmp_path / "set"
    folder.mkdir()
    for number in range(20):
        tar = TarWriter(folder / f"images-{number:06d}.tar")
        for index, label in itertools.islice(places, 1000):
            tar.add(f"class_{label:02d}/img_{index}.png", b"png")
            tar.add(f"class_{label:02d}/img_{index}.cls", str(label).encode())
        tar.close()
    tracemalloc.start()
    names = [[f"class_{label:02d}/img_{index}.png" for index in range(n)] for label, n in enumerate(counts)]
    alone = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    store = open_set(folder, 10)
    assert store.names == names
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held - alone < 1.5 * alone and peak - alone < 3 * alone


# Stages

FLAGS = ["--enc_epoch", "31", "--dif_epoch", "10", "--inf_steps", "2", "--ugs", "1.5"]
TARS = ["--store", "webdataset"]


def generate(*flags):
    import generate_dataset

    return generate_dataset.generate(generate_dataset.parse_args([*flags]))


def test_stages_give_the_same_with_either_store(tiny_experiment, tmp_path):
    """Generation in one process and in shards, the plan of a classifier, and exports."""
    import classifier_training
    import export_dataset
    import generate_dataset

    made, exports, inputs = {}, {}, {}
    root = Experiment(tmp_path, "0001", "digits").synthetic_root
    at = tiny_experiment.index("--backbone")
    data = [*tiny_experiment[:at], *tiny_experiment[at + 2 :]]
    flags = [*tiny_experiment, *FLAGS, "--img_total", "23"]
    for name, shards in {
        "files": [()],
        "one": [TARS],
        "shards": [(*TARS, "--shard", f"{i}/7") for i in (3, 1, 2, 7, 4, 6, 5)],
    }.items():
        for shard in shards:
            folder = generate(*flags, *shard)
        known = generate_dataset.plan(generate_dataset.parse_args([*flags, *shards[0]]))
        assert known.done.startswith("finished already")
        wrong = TARS if name == "files" else []
        with pytest.raises(UserError, match=f"holds a set of --store {'files' if wrong else 'webdataset'}"):
            generate_dataset.plan(generate_dataset.parse_args([*flags, *wrong]))
        train = [*data, "--take", "1", "--synthetic_dir", str(folder), "--epochs", "1"]
        inputs[name] = classifier_training.plan(classifier_training.parse_args(train)).inputs
        stored = StoredSet(folder, 10, 8)
        for form in ("folders", "webdataset", "npz"):
            to = tmp_path / f"{name}-{form}"
            export_dataset.export(
                export_dataset.parse_args([*data, "--synthetic_dir", str(folder), "--to", str(to), "--format", form])
            )
            exports[name, form] = {p.relative_to(to): p.read_bytes() for p in sorted(to.rglob("*")) if p.is_file()}
        made[name] = (read_manifest(folder), stored.read(np.arange(23)), tree(folder) if name != "files" else pngs(folder))
        shutil.move(folder, tmp_path / f"moved-{name}")
        sheet = root / f"{folder.name}.samples.png"
        made[name] += (sheet.read_bytes(),)
    assert inputs["files"] == inputs["one"] == inputs["shards"] and inputs["one"]["set"]["inf_steps"] == 2
    for name in ("one", "shards"):
        assert made[name][0] == made["files"][0] | {"store": "webdataset"}
        assert np.array_equal(made[name][1], made["files"][1]) and made[name][3] == made["files"][3]
        for form in ("folders", "webdataset", "npz"):
            assert exports[name, form] == exports["files", form]
    tars = [{file: png for file, png in made[name][2].items() if file.endswith(".tar")} for name in ("one", "shards")]
    assert tars[0] == tars[1] and len(tars[0]) == 6


def test_a_generation_that_was_stopped_goes_on_and_restart_takes_another_store(tiny_experiment, monkeypatch, caplog):
    from Models import sampler

    flags = [*tiny_experiment, *FLAGS, "--img_total", "23"]
    whole = tree(generate(*flags, *TARS))
    with caplog.at_level("INFO", logger="experiment"):
        files = generate(*flags, "--restart")
    assert len(pngs(files)) == 23 and not list(files.glob("*.tar"))
    assert "throwing away the 6 tars of images" in caplog.text
    make = sampler.generate_images

    def stopped(*args, **how):
        for i, made in enumerate(make(*args, **how)):
            if i == 3:
                raise Stopped
            yield made

    monkeypatch.setattr(sampler, "generate_images", stopped)
    with pytest.raises(Stopped):
        generate(*flags, *TARS, "--restart")
    monkeypatch.setattr(sampler, "generate_images", make)
    folder = generate(*flags, *TARS)
    assert not pngs(folder) and not list(folder.glob(".pending*"))
    assert {name: tar for name, tar in tree(folder).items() if name.endswith(".tar")} == {
        name: tar for name, tar in whole.items() if name.endswith(".tar")
    }


def test_a_filtered_set_is_the_same_in_tars_also_when_it_was_stopped(tiny_experiment, monkeypatch):
    import generate_dataset
    from Generating import images as making

    monkeypatch.setattr(generate_dataset, "filter_hash", lambda *a: {"filter": "f" * 64})
    monkeypatch.setattr(making, "load_judge", lambda *a: lambda images, labels: images[:, 0, 0, 0] % 3 > 0)
    flags = [*tiny_experiment, *FLAGS, "--img_total", "40", "--filter", "0.5"]
    folder = generate(*flags)
    files, manifest = pngs(folder), read_manifest(folder)
    assert manifest["filter_counts"]["rounds"] > 1
    with pytest.raises(Stopped), stopped_writing_images(7):
        generate(*flags, *TARS, "--restart")
    assert len(list(folder.glob(".pending*"))) > 1
    generate(*flags, *TARS)
    assert {name: png for name, png in in_tars(folder).items() if name.endswith("png")} == files
    assert read_manifest(folder) == manifest | {"store": "webdataset"}
    assert not list(folder.glob(".pending*"))
    next(folder.glob("*.tar")).unlink()  # images that are gone are made again
    generate(*flags, *TARS)
    assert read_manifest(folder) == manifest | {"store": "webdataset"} and len(pngs(folder)) == 0


def test_a_store_that_is_unknown_is_refused(capsys):
    import generate_dataset

    with pytest.raises(SystemExit):
        generate_dataset.parse_args(["--img_total", "40", "--store", "zip"])
    assert "argument --store: invalid choice: 'zip'" in capsys.readouterr().err
