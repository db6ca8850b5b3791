"""Files of an experiment that travel between a pipeline's root and the copies of its tasks."""

import os
import sqlite3
from contextlib import closing

import pytest

from Experiment.files import read_json, write_json
from Experiment.paths import Experiment
from Stages import carried
from Stages.carried import Copy, Root, changed_entries, merged


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(carried, "PIECE", 10)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    return Root(tmp_path / "root", "e", "digits")


def copy_of(root, script="generate_dataset"):
    made = Copy(lambda method, *args: getattr(root, method)(*args), script, "e", "digits")
    made.fetch()
    return made


def put(folder, name, data=b"x"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def content(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and ".lock" not in p.name
    }


EPOCH = "Checkpoints/DDPM/Exp_e/digits/MyEmbedding/epoch1.weights.h5"
IMAGE = "Data/Synthetic/Exp_e/digits/4Enc1/class_00/img_0.png"


def test_a_copy_has_what_its_script_needs_with_its_times(root):
    file = put(root.root, EPOCH, bytes(range(25)))
    os.utime(file, ns=(5, 1234567890123456789))
    for name in (IMAGE, "Data/Real/digits.npz", "CAS Results/test_accuracies_exper.json", "Data/Decoded/x.npy",
                 "Checkpoints/DDPM/Exp_e/digits/MyEmbedding/.lock", "Checkpoints/DDPM/Exp_f/digits/MyEmbedding/epoch1.weights.h5"):  # fmt: skip
        put(root.root, name)
    made = copy_of(root)
    assert content(made.folder).keys() == {EPOCH, IMAGE, "Data/Real/digits.npz"}
    assert (made.folder / EPOCH).read_bytes() == bytes(range(25))
    assert (made.folder / EPOCH).stat().st_mtime_ns == 1234567890123456789  # what cards of weights look at
    assert content(copy_of(root, "SD_adapting").folder).keys() == {EPOCH, "Data/Real/digits.npz"}
    made.close()
    assert not made.folder.exists()


def test_what_changes_in_a_copy_arrives(root):
    put(root.root, EPOCH, b"old")
    put(root.root, IMAGE)
    made = copy_of(root)
    (made.folder / EPOCH).unlink()
    new = put(made.folder, EPOCH.replace("1.w", "2.w"), bytes(range(30)))
    put(made.folder, IMAGE.replace("img_0", "img_1"), b"")
    put(made.folder, IMAGE.replace("img_0", ".partial-img_2"))
    made.send()
    assert content(root.root) == {
        EPOCH.replace("1.w", "2.w"): bytes(range(30)), IMAGE: b"x", IMAGE.replace("img_0", "img_1"): b""
    }  # fmt: skip
    assert (root.root / EPOCH.replace("1.w", "2.w")).stat().st_mtime_ns == new.stat().st_mtime_ns
    made.call = None  # nothing more to say, but that nothing is gone
    with pytest.raises(TypeError):
        made.send()
    new.write_bytes(b"later")
    made.call = lambda method, *args: getattr(root, method)(*args)
    made.send()
    assert (root.root / EPOCH.replace("1.w", "2.w")).read_bytes() == b"later"


def test_a_file_appears_with_its_last_piece(root):
    root.write(EPOCH, "task", 0, b"a" * 10, None)
    assert not (root.root / EPOCH).exists() and not root.listing("SD_adapting")
    root.write(EPOCH, "task", 10, b"b", (11, 99))
    assert (root.root / EPOCH).read_bytes() == b"a" * 10 + b"b"


def test_tasks_side_by_side_add_to_results_and_logs(root):
    file = Experiment(root.root, "e", "digits").cas_file
    write_json(file, {"resnet20": {"digits": {"real": {"top": 1}, "x1": {"top": 2}}}})
    log = "Data/Synthetic/Exp_e/digits/4Enc1/log.txt"
    put(root.root, log, b"before\n")
    one, two = copy_of(root), copy_of(root)
    for made, key in ((one, "x2"), (two, "x3")):
        results = made.folder / file.relative_to(root.root)
        entries = read_json(results)
        entries["resnet20"]["digits"] |= {key: {"top": 5}, "x1": {"top": 2 if made is one else 7}}
        write_json(results, entries)
        with open(made.folder / log, "ab") as lines:
            lines.write(f"{key} is done\n".encode())
    two.send()
    one.send()
    one.send()
    assert read_json(file)["resnet20"]["digits"] == {
        "real": {"top": 1}, "x1": {"top": 7}, "x2": {"top": 5}, "x3": {"top": 5}
    }  # fmt: skip
    assert (root.root / log).read_text() == "before\nx3 is done\nx2 is done\n"


def test_a_database_in_use_arrives_whole(root):
    name = "optimization_plots/e/digits/study.db"
    made = copy_of(root, "hyp_opt")
    (made.folder / name).parent.mkdir(parents=True)
    with closing(sqlite3.connect(made.folder / name)) as used:
        used.execute("create table trials (number)")
        used.execute("insert into trials values (1)")
        used.commit()
        used.execute("insert into trials values (2)")  # not committed: of a trial that runs
        made.send()
    with closing(sqlite3.connect(root.root / name)) as arrived:
        assert arrived.execute("select number from trials").fetchall() == [(1,)]
    assert sorted(path.name for path in (made.folder / name).parent.iterdir())[0] == "study.db"
    assert not list((made.folder / name).parent.glob(".partial*"))


def test_changes_of_results_are_those_alone():
    before = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    now = {"a": {"b": 1, "c": {"d": 4, "f": 5}}, "e": 3, "g": {}}
    assert changed_entries(before, now) == {"a": {"c": {"d": 4, "f": 5}}, "g": {}}
    assert merged({"a": {"c": {"d": 9, "h": 1}}}, {"a": {"c": {"d": 4}}}) == {"a": {"c": {"d": 4, "h": 1}}}


def test_copies_of_killed_tasks_are_removed(root, tmp_path):
    left = tmp_path / "tmp/carried-999999999-abc"
    left.mkdir()
    assert copy_of(root).folder.parent == left.parent and not left.exists()
