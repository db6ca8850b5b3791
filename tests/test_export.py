"""Export: what each format holds, its card, and what cannot be exported. Read with what the project has anyway."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pyarrow.parquet
import pytest
import yaml
from PIL import Image

import export_dataset
from Data import export, export_images
from Data.export import FORMATS, folder_name, folder_names
from Data.export_images import ExportedImage, SetToExport
from Data.marking import COMPOSITE, DIGITAL_SOURCE_TYPE, has_mark
from Data.measured import audit_file, audit_tables
from Data.npz import read_npz
from Data.registry import class_names, dataset_spec
from Data.resizing import resize, square
from Data.synthetic import SyntheticWriter, recipe, set_identity
from Experiment import files
from Experiment.errors import UserError
from Experiment.files import atomic_folder, file_hash, read_json, write_json
from Experiment.paths import REPOSITORY, Experiment

SETTINGS = {"seed": 5, "ugs": 1.5, "inf_steps": 20, "enc_epoch": 3, "dif_epoch": 4, "backbone": "mini", "exp": "e",
            "weights": {"dif": "d" * 64}, "no_mark": False}  # fmt: skip


def picture(number, side=9):
    return np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)


def write_set(folder, dataset="digits", total=23, side=9, settings=SETTINGS, finish=True, mark=True):
    """A set of random images. Returns its folder."""
    classes = class_names(dataset_spec(dataset))
    counts = [total // len(classes) + (label < total % len(classes)) for label in range(len(classes))]
    writer = SyntheticWriter(folder, counts, mark=mark)
    writer.begin()
    for number in writer.missing():
        writer.write(number, picture(int(number), side))
    writer.drain()
    if finish:
        writer.finish(settings | {"classes": list(classes)})
    writer.close()
    return folder


@pytest.fixture
def root(tmp_path):
    write_set(Experiment(tmp_path, "e", "digits").synthetic_root / "23Enc3Dif4Is20Ugs1.5")
    return tmp_path


def set_of(root):
    (folder,) = (path for path in Experiment(root, "e", "digits").synthetic_root.iterdir() if path.is_dir())
    return folder


def exported(root, kind, *flags, to="out", dataset="digits"):
    common = ["--dataset", dataset, "--exp", "e", "--root", str(root), "--to", str(root / to), "--format", kind]
    return export_dataset.export(export_dataset.parse_args([*common, *flags]))


def pixels_of(png):
    assert has_mark(png)
    return np.asarray(Image.open(io.BytesIO(png))).tobytes()


def wanted(total=23, classes=10, side=9):
    """[(label, pixels)] of the images of `write_set`, sorted."""
    return sorted((number % classes, picture(number, side).tobytes()) for number in range(total))


def front_matter(folder):
    return yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---\n")[1])


def tree(folder):
    """The files of a folder, but for the hashes that are kept beside a set."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".hashes.json"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# Formats


def check_table(table, classes):
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["label"] == {"names": list(classes), "_type": "ClassLabel"}
    rows = table.to_pylist()
    assert all(row["class"] == classes[row["label"]] and (row["seed"], row["ugs"]) == (5, 1.5) for row in rows)
    assert not {"exp", "no_mark", "weights", "sha256"} & rows[0].keys()
    assert sorted((row["label"], row["index"]) for row in rows) == sorted((n % 10, n // 10) for n in range(23))
    return rows, features


def test_hf_is_a_folder_of_files_and_a_table(root):
    folder = exported(root, "hf")
    rows, features = check_table(pyarrow.parquet.read_table(folder / "train/metadata.parquet"), "0123456789")
    found = [(row["label"], pixels_of((folder / "train" / row["file_name"]).read_bytes())) for row in rows]
    assert sorted(found) == wanted() and len(list(folder.glob("train/*/*.png"))) == 23
    declared = front_matter(folder)["dataset_info"]["features"]
    assert [column["name"] for column in declared] == ["image", *list(features)[1:]]
    assert declared[1]["dtype"] == {"class_label": {"names": {str(i): str(i) for i in range(10)}}}


@pytest.mark.parametrize("changed", [{"MOST_FILES": 2}, {"MOST_IN_ALL": 30}])
def test_hf_is_parquet_where_files_are_many(root, monkeypatch, changed):
    monkeypatch.setattr(export, "ROWS", 4)
    monkeypatch.setattr(export, "PART_BYTES", 2000)  # nine parts, of three images each: eight
    for name, value in changed.items():
        monkeypatch.setattr(export, name, value)
    folder = exported(root, "hf")
    parts = sorted((folder / "data").iterdir())
    assert len(parts) > 1 and all(part.stem.endswith(f"-of-{len(parts):05d}") for part in parts)
    tables = [pyarrow.parquet.read_table(part) for part in parts]
    rows, features = check_table(pyarrow.concat_tables(tables), "0123456789")
    assert sorted((row["label"], pixels_of(row["image"]["bytes"])) for row in rows) == wanted()
    assert features["image"] == {"_type": "Image"} and not (folder / "train").exists()
    assert all(pyarrow.parquet.ParquetFile(part).metadata.row_group(0).num_rows <= 4 for part in parts)


def test_webdataset_is_tars_of_samples(root, monkeypatch):
    monkeypatch.setattr(export, "SHARD_BYTES", 12_000)
    folder = exported(root, "webdataset")
    found, shards = [], sorted(folder.glob("*.tar"))
    for shard in shards:
        with tarfile.open(shard) as tar:
            members = tar.getmembers()
            assert {(member.mtime, member.uid, member.uname, member.mode) for member in members} == {(0, 0, "", 0o644)}
            content = {member.name: tar.extractfile(member).read() for member in members}
        names = [name.split(".") for name in content]
        assert [suffix for _, suffix in names] == ["png", "cls", "json"] * (len(names) // 3)
        for name, _ in names[::3]:
            label, facts = int(content[f"{name}.cls"]), json.loads(content[f"{name}.json"])
            assert facts["class"] == str(label) and facts["seed"] == 5
            found.append((label, pixels_of(content[f"{name}.png"])))
    assert sorted(found) == wanted() and len(shards) > 2
    assert f"train-{{000000..{len(shards) - 1:06d}}}.tar" in (folder / "README.md").read_text()


def test_folders_are_named_after_the_classes(root):
    folder = exported(root, "folders")
    found = [(int(path.parent.name), pixels_of(path.read_bytes())) for path in folder.glob("train/*/*.png")]
    assert sorted(found) == wanted()


def test_npz_has_medmnists_keys_and_the_size_of_the_real_images(root):
    with np.load(exported(root, "npz", "--resolution", "9") / "digits.npz") as data:
        assert sorted(data) == ["train_images", "train_labels"] and data.zip.comment == DIGITAL_SOURCE_TYPE.encode()
        assert {member.date_time for member in data.zip.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        images, labels = data["train_images"], data["train_labels"]
    assert images.shape == (23, 9, 9, 3) and labels.shape == (23, 1) and images.dtype == labels.dtype == np.uint8
    assert sorted(zip(labels[:, 0].tolist(), map(np.ndarray.tobytes, images))) == wanted()
    with np.load(exported(root, "npz", to="small") / "digits.npz") as data:
        assert data["train_images"].shape == (23, 8, 8, 3)


def test_the_resolution_is_that_at_which_the_set_was_made(root, caplog):
    manifest = set_of(root) / "manifest.json"
    write_json(manifest, read_json(manifest) | {"learned_from": [{"resolution": 6, "train": "0" * 64}]})
    for flags, side in (((), 6), (("--resolution", "8"), 8)):
        caplog.clear()
        with caplog.at_level("INFO"), np.load(exported(root, "npz", *flags, to=f"out{side}") / "digits.npz") as data:
            assert data["train_images"].shape == (23, side, side, 3)
        assert ("real images are seen at 6 px, as when" in caplog.text) is (not flags)


def test_real_images_come_only_when_asked_for(root):
    folder = exported(root, "npz", "--with_real")
    with np.load(folder / "digits.npz") as data:
        assert data.zip.comment == COMPOSITE.encode() and COMPOSITE in (folder / "README.md").read_text()
    splits = read_npz(folder / "digits.npz")
    assert {name: len(labels) for name, (_, labels) in splits.items()} == {"train": 23, "val": 297, "test": 500}
    assert "`val_images` and `test_images` are real images" in (folder / "README.md").read_text()


@pytest.mark.parametrize("dataset, shape", [("pneumoniamnist", (23, 28, 28)), ("dermamnist", (23, 28, 28, 3))])
def test_npz_of_a_medmnist_has_its_channels_and_name(tmp_path, dataset, shape):
    write_set(tmp_path / "set", dataset, side=32)
    flags = ["--synthetic_dir", str(tmp_path / "set")]
    with np.load(exported(tmp_path, "npz", *flags, dataset=dataset) / f"{dataset}.npz") as data:
        assert data["train_images"].shape == shape
    large = exported(tmp_path, "npz", *flags, "--resolution", "64", to="large", dataset=dataset)
    assert (large / f"{dataset}_64.npz").exists()


@pytest.mark.parametrize("kind", FORMATS)
def test_the_same_set_gives_the_same_bytes_and_names_no_place(root, kind):
    first = tree(exported(root, kind))
    assert tree(exported(root, kind, to="again")) == first
    assert not any(str(root).encode() in content for content in first.values())
    assert {name for name in first if name.startswith(".")} == set()


def test_a_set_without_marks_is_marked_on_its_way(tmp_path):
    write_set(tmp_path / "set", mark=False, finish=False)  # as the paper's authors published theirs
    folder = exported(tmp_path, "folders", "--synthetic_dir", str(tmp_path / "set"))
    assert sorted((int(path.parent.name), pixels_of(path.read_bytes())) for path in folder.glob("*/*/*.png")) == wanted()
    assert "The settings are not recorded" in (folder / "README.md").read_text()


def write_soft_labels(folder, sha256, teacher="0123abcd"):
    names = [f"class_{label:02d}/img_{index}.png".encode() for label in range(10) for index in range(3 if label < 3 else 2)]
    probabilities = np.random.default_rng(0).dirichlet(np.ones(10), 23).astype(np.float16)
    np.savez(
        folder.with_name(f"{folder.name}.soft_labels.{teacher}.npz"),
        probabilities=probabilities,
        files=names,
        set_sha256=sha256,
    )
    return {name: row.astype("float32") for name, row in zip(names, probabilities)}


@pytest.mark.parametrize("kind", ["hf", "webdataset"])
def test_a_soft_label_goes_with_its_image(root, kind):
    made = set_of(root)
    of_image = write_soft_labels(made, SetToExport(made, dataset_spec("digits")).sha256)
    folder = exported(root, kind)
    if kind == "hf":
        rows = pyarrow.parquet.read_table(folder / "train/metadata.parquet").to_pylist()
        assert front_matter(folder)["dataset_info"]["features"][-1] == {"name": "soft_label", "sequence": "float32"}
    else:
        with tarfile.open(folder / "train-000000.tar") as tar:
            rows = [json.loads(tar.extractfile(name).read()) for name in tar.getnames() if name.endswith("json")]
    assert len(rows) == 23
    for row in rows:
        expected = of_image[f"class_{int(row['class']):02d}/img_{row['index']}.png".encode()]
        assert np.allclose(row["soft_label"], expected, atol=1e-3) and abs(sum(row["soft_label"]) - 1) < 1e-6


def test_images_of_others_are_exported_as_classifiers_see_them(root):
    """Not square, or transparent: without a manifest, and with names of any bytes."""
    shape = Experiment(root, "e", "digits").synthetic_root
    shutil.rmtree(shape)
    wide = picture(1, 20)[:9]
    clear = np.dstack([picture(2), np.full((9, 9, 1), 0, np.uint8)])
    for label in range(10):
        folder = shape / f"10Enc3Dif4Is20Ugs1.5/class_{label:02d}"
        folder.mkdir(parents=True)
        Image.fromarray(wide if label < 5 else clear).save(folder / "img_0.png")
    images = {}
    with np.load(exported(root, "npz") / "digits.npz") as data:
        images = dict(zip(data["train_labels"][:, 0].tolist(), data["train_images"]))
    expected = np.asarray(resize(square(Image.fromarray(wide)), 8, "bilinear"))
    assert all(np.array_equal(images[label], expected) for label in range(5)) and len(images) == 10
    assert all((images[label] == 255).all() for label in range(5, 10))


def test_soft_labels_of_another_set_or_of_several_teachers_stay(root, caplog):
    made = set_of(root)
    write_soft_labels(made, "another set")
    assert SetToExport(made, dataset_spec("digits")).soft_labels is None
    for teacher in ("aaaaaaaa", "bbbbbbbb"):
        write_soft_labels(made, SetToExport(made, dataset_spec("digits")).sha256, teacher)
    with caplog.at_level("WARNING", logger="experiment"):
        assert SetToExport(made, dataset_spec("digits")).soft_labels is None
    assert "soft labels of several teachers" in caplog.text


@pytest.mark.parametrize("name, expected", [
    ("cat", "cat"), ("a/b", "a_b"), ("..", "_"), ("con", "con_"), ("LPT1.x", "LPT1.x_"), ("", "_"), (" x ", "_x"), (".git", "_git"),
    ("b" * 300, "b" * 120), ("ü" * 100, "ü" * 60), ('<>:"/\\|?*', "_" * 9), ("tab\there", "tab_here"), ("nevus, left", "nevus, left"),
])  # fmt: skip
def test_a_class_as_a_folder(name, expected):
    assert folder_name(name) == expected


def test_no_two_folders_differ_in_case_alone():
    classes = ["a", "A", "a_1", "b/c", "b:c", "b_c", "x"]
    names = folder_names(classes)
    assert len({name.casefold() for name in names}) == len(classes) and names[-1] == "x"
    assert folder_names(["cat", "dog"]) == ["cat", "dog"]


def test_classes_of_any_name_go_through(tmp_path):
    names = ["10", "2", "a: [b", "null", "pipe | `tick`", "ü", "new\nline"]
    for name in names:
        (tmp_path / "own" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (9, 9), (i, 0, 0)).save(tmp_path / "own" / name / f"{i}.png")
    own = str(tmp_path / "own")
    write_set(tmp_path / "set", own, total=14)
    for kind in FORMATS:
        folder = exported(tmp_path, kind, "--synthetic_dir", str(tmp_path / "set"), to=kind, dataset=own)
        assert "unknown" in front_matter(folder)["license"]
    shown = [name.replace("\n", "\\n") for name in sorted(names)]
    declared = front_matter(tmp_path / "hf")["dataset_info"]["features"][1]["dtype"]["class_label"]["names"]
    assert list(declared.values()) == shown
    assert sorted(path.name for path in (tmp_path / "folders/train").iterdir()) == sorted(map(folder_name, shown))
    table = (tmp_path / "folders/README.md").read_text()
    assert r"| 5 | pipe \| \`tick\` | 2 | pipe \_ \`tick\` |" in table and "could not be named exactly" in table


# Memory, interruption


def test_a_few_images_are_in_memory_at_a_time(root, monkeypatch):
    monkeypatch.setattr(export_images, "PIECE", 4)
    folder = set_of(root)
    source, read = SetToExport(folder, dataset_spec("digits")), []
    monkeypatch.setattr(source, "read", lambda *place: read.append(place) or ExportedImage(b"", None, 0, {}))
    images = source.images()
    for taken in range(1, 24):
        next(images)
        assert taken <= len(read) <= taken + 3
    assert [place[:2] for place in read[:12]] == [(label, 0) for label in range(10)] + [(0, 1), (1, 1)]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "a/out") as folder:
        (folder / "half").touch()
        assert not (tmp_path / "a/out").exists()
        raise KeyboardInterrupt
    assert list((tmp_path / "a").iterdir()) == []
    with atomic_folder(tmp_path / "a/out") as folder:
        (folder / "whole").touch()
    assert tree(tmp_path / "a") == {"out/whole": b""}
    with pytest.raises(UserError, match="is there already"), atomic_folder(tmp_path / "a/out"):
        pass


def test_what_a_killed_export_has_left_is_removed_and_that_of_others_is_not(tmp_path, monkeypatch):
    for pid in ("1", "2"):
        (tmp_path / f".partial-host-{pid}-out/train").mkdir(parents=True)
    monkeypatch.setattr(files, "writer_is_gone", lambda path: "-1-" in path.name)
    with atomic_folder(tmp_path / "out"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".partial-host-2-out", "out"]


def test_a_folder_that_another_process_has_made_meanwhile_is_left_alone(tmp_path):
    with pytest.raises(UserError, match="is there already"), atomic_folder(tmp_path / "out"):
        (tmp_path / "out").mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# Bad input


def refused(root, message, *flags, kind="hf", dataset="digits"):
    before = tree(root)
    with pytest.raises(UserError, match=message):
        exported(root, kind, *flags, dataset=dataset)
    assert tree(root) == before and not (root / "out").exists()


def test_a_folder_that_is_there_is_refused(root):
    exported(root, "folders")
    with pytest.raises(UserError, match="out is there already: name another folder, or remove it"):
        exported(root, "hf")


def test_several_sets_and_none(root):
    experiment = Experiment(root, "e", "digits")
    write_set(experiment.synthetic_root / "20Enc3Dif4Is20Ugs1.5", total=20)
    refused(root, r"several .*: 20Enc\S+ \(20 images\), 23Enc\S+ \(23 images\); choose with --synthetic_dir")
    with pytest.raises(UserError, match="no complete synthetic dataset"):
        exported(root, "hf", "--exp", "none")


def test_half_of_a_set_is_refused(root, tmp_path):
    folder = set_of(root)
    (folder / "class_03/img_1.png").unlink()
    refused(root, "the command that made the set makes what is missing")
    begun = write_set(tmp_path / "begun", finish=False)
    (begun / "generation.json").write_text("{}")
    refused(root, "is not complete", "--synthetic_dir", str(begun))


def test_other_classes_and_no_images_are_refused(root, tmp_path):
    other = write_set(tmp_path / "other", "cifar10")
    refused(root, "is of other classes: airplane", "--synthetic_dir", str(other))
    for label in range(10):
        (tmp_path / f"empty/class_{label:02d}").mkdir(parents=True)
    refused(root, "holds no images", "--synthetic_dir", str(tmp_path / "empty"))


@pytest.mark.parametrize("kind", FORMATS)
def test_images_that_cannot_be_read_are_all_counted(root, kind, monkeypatch):
    monkeypatch.setattr(export_images, "PIECE", 4)
    folder = set_of(root)
    (folder / "class_00/img_0.png").write_bytes(b"spoilt")
    (folder / "class_04/img_1.png").write_bytes((folder / "class_04/img_1.png").read_bytes()[:-40])
    refused(root, r"2 of 23 images cannot be read: \S+class_00/img_0.png .*; \S+class_04/img_1.png", kind=kind)


def test_an_export_into_the_set_is_refused(root):
    folder = set_of(root)
    with pytest.raises(UserError, match="is in the folder of the set"):
        exported(root, "hf", to=folder.relative_to(root) / "out")


def test_there_must_be_room(root, monkeypatch):
    monkeypatch.setattr(
        export_dataset, "check_room", lambda folder, needed, what: (_ for _ in ()).throw(UserError(f"{needed}"))
    )
    folder = set_of(root)
    refused(root, str(sum(os.path.getsize(path) for path in folder.rglob("*.png"))))


def test_the_script_needs_no_keras(root):
    flags = ["--dataset", "digits", "--exp", "e", "--root", str(root), "--to", str(root / "out"), "--format", "folders"]
    code = f"import runpy, sys; sys.argv[1:] = {flags}; runpy.run_path('export_dataset.py', run_name='__main__'); " \
           "print('keras' in sys.modules)"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False" and (root / "out/README.md").exists(), done.stderr


# Licences


@pytest.mark.parametrize("dataset, backbone, ids", [
    ("dermamnist", "sd1", ["cc-by-nc-4.0", "creativeml-openrail-m"]), ("bloodmnist", "sd2", ["cc-by-4.0", "openrail++"]),
    ("bloodmnist", "mini", "cc-by-4.0"), ("cifar10", "sd1", ["unknown", "creativeml-openrail-m"]),
])  # fmt: skip
def test_licences_are_carried_over(tmp_path, dataset, backbone, ids):
    write_set(tmp_path / "set", dataset, settings=SETTINGS | {"backbone": backbone})
    folder = exported(tmp_path, "folders", "--synthetic_dir", str(tmp_path / "set"), dataset=dataset)
    assert front_matter(folder)["license"] == ids
    text = (folder / "README.md").read_text()
    assert ("Attachment A" in text) == (backbone != "mini") and ("No licence is known" in text) == (dataset == "cifar10")


def test_other_weights_have_a_licence_of_their_own(tmp_path):
    write_set(tmp_path / "set", settings=SETTINGS | {"backbone": "sd1", "weights": {"decoder": "e" * 64}})
    folder = exported(tmp_path, "folders", "--synthetic_dir", str(tmp_path / "set"))
    assert front_matter(folder)["license"] == ["cc-by-4.0", "other"]
    assert "were not the backbone's own" in (folder / "README.md").read_text()


def test_own_data_have_the_licence_that_is_named(tmp_path):
    for name in "ab":
        for split in ("train", "val", "test"):
            (tmp_path / "own" / split / name).mkdir(parents=True)
            Image.new("RGB", (9, 9), (len(split), ord(name), 0)).save(tmp_path / "own" / split / name / "1.png")
    own = str(tmp_path / "own")
    write_set(tmp_path / "set", own, total=4)
    flags = ["--synthetic_dir", str(tmp_path / "set"), "--with_real"]
    refused(tmp_path, "name yours with --license", *flags, kind="npz", dataset=own)
    folder = exported(tmp_path, "npz", *flags, "--license", "cc0-1.0", dataset=own)
    assert front_matter(folder)["license"] == "cc0-1.0"
    assert read_npz(folder / "own.npz")["test"][1].tolist() == [0, 1]
    named = ["--license", "cc0-1.0", "--attribution", "A. Nobody, [2020]"]
    text = (exported(tmp_path, "hf", *flags[:2], *named, to="hf", dataset=own) / "README.md").read_text()
    assert "of `own`: A. Nobody, " in text and "Licence: cc0-1.0." in text and "may be too good" not in text
    assert json.loads((tmp_path / "hf/croissant.json").read_text())["license"] == ["cc0-1.0"]


def test_what_the_backbone_has_learned_from_is_named(tmp_path):
    write_set(tmp_path / "set", "cifar10", settings=SETTINGS | {"backbone": "small"})
    folder = exported(tmp_path, "hf", "--synthetic_dir", str(tmp_path / "set"), dataset="cifar10")
    assert "Caltech-101" in (folder / "README.md").read_text()
    assert json.loads((folder / "croissant.json").read_text())["license"] == ["unknown"]
    write_set(tmp_path / "other", settings=SETTINGS | {"weights": {"decoder": "e" * 64}})
    folder = exported(tmp_path, "folders", "--synthetic_dir", str(tmp_path / "other"), to="others")
    assert front_matter(folder)["license"] == ["cc-by-4.0", "other"]  # of mini's shape, but not its own
    assert "printed characters" not in (folder / "README.md").read_text()


def test_real_test_images_that_the_generator_may_have_learned_from_are_told_of(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("export_dataset.log.propagate", True)
    learned = {"learned_from": [{"resolution": 8, "train": "0" * 64}]}
    write_set(tmp_path / "set", settings=SETTINGS | learned)
    flags = ["--synthetic_dir", str(tmp_path / "set")]
    folder = exported(tmp_path, "npz", *flags, "--with_real")
    told = "has learnt from other training images than those of today"
    assert told in caplog.text and "may be too good" in (folder / "README.md").read_text()
    folder = exported(tmp_path, "npz", *flags, to="without")  # which has no real images
    assert told not in (folder / "README.md").read_text()


# What the card says


def test_the_card_says_what_how_and_of_what(root):
    made = set_of(root)
    text = (exported(root, "hf") / "README.md").read_text()
    for said in ("23 images of 10 classes, every one generated", "arxiv.org/abs/2405.02698", "| inference steps | 20 |", "d" * 64,
                 SetToExport(made, dataset_spec("digits")).sha256, "Optical Recognition of Handwritten Digits", DIGITAL_SOURCE_TYPE,
                 "No accuracy was measured", "None lies beside the set", "Not meant for diagnosis", "CC BY 4.0", "@article{lomurno2024stable"):  # fmt: skip
        assert said in text
    card = front_matter(root / "out")
    assert (card["pretty_name"], card["size_categories"], card["tags"][0]) == ("Synthetic digits", ["n<1K"], "synthetic")


def test_settings_are_those_that_are_on_whatever_their_kind(tmp_path):
    more = {
        "solver": "dpmpp",
        "guidance_interval": [0.2, 0.8],
        "ema": None,
        "labels": "hard",
        "prior": [0.5, 0.5],
        "filter": 0.0,
        "filter_counts": {"rounds": 2, "tried": [9, 9], "kept": [5, 5], "unfiltered": [0, 0]},
    }
    write_set(tmp_path / "set", settings=SETTINGS | more)
    settings = SetToExport(tmp_path / "set", dataset_spec("digits")).settings
    assert settings == {"seed": 5, "ugs": 1.5, "inf_steps": 20, "enc_epoch": 3, "dif_epoch": 4, "backbone": "mini",
                        "solver": "dpmpp", "guidance_interval": "0.2, 0.8", "filter": 0.0}  # fmt: skip
    folder = exported(tmp_path, "hf", "--synthetic_dir", str(tmp_path / "set"))
    assert "| guidance_interval | 0.2, 0.8 |" in (folder / "README.md").read_text()


def test_the_card_shows_accuracies_of_its_recipe_alone(root):
    experiment = Experiment(root, "e", "digits")
    total = 1000
    made = write_set(experiment.synthetic_root / "1kEnc3Dif4Is20Ugs1.5", total=total)
    entry = {"top_1_accuracy": 0.9, "top_5_accuracy": 0.99, "set": {"folder": made.name, **recipe(made)}}
    entry |= {"interval": {"top_1_accuracy": [0.87, 0.92]}, "training": {"epochs": 9, "labels": "soft"}}
    other = {**entry, "top_1_accuracy": 0.1, "set": {**entry["set"], "seed": 6}}
    real = {"top_1_accuracy": 0.97, "top_5_accuracy": 1.0, "test": "a" * 8, "balanced_accuracy": 0.95}
    real |= {"against_largest_class": {"share": 0.125}}
    mixed = entry | {"training": {"epochs": 9, "real_share": 0.3}, "test": "b" * 8}
    results = {"resnet20": {"digits": {"x1": entry, "x4": entry, "real": real}, "cifar10": {"x1": entry}},
               "resnet20_16": {"digits": {"x1": other, "real": real}},
               "resnet56": {"digits": {"x1": mixed, "real": real}}}  # fmt: skip
    write_json(experiment.cas_file, results)
    tables = [{"header": ["figure", "generated images", "real ones in their place"], "rows": [["coverage", "0.123", "0.987"]]}]
    write_json(audit_file(made), {"brief": tables, "figures": {"coverage, generated, pixels, n 9, k 5": 0.1234}})
    text = (exported(root, "folders", "--synthetic_dir", str(made)) / "README.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| resnet")]
    assert rows == ["| resnet20 | 1,000 generated images | labels soft | 0.9000 | 0.8700 to 0.9200 | 0.9900 | not measured |",
                    "| resnet20 | the real training images | nothing | 0.9700 | not measured | 1.0000 | 0.9500 |",
                    "| resnet56 | 700 generated images and 300 real ones | real_share 0.3 | 0.9000 | 0.8700 to 0.9200 | "
                    "0.9900 | not measured |"]  # fmt: skip
    assert "| none | nothing: always the largest class | nothing | 0.1250 |  |  | 0.1000 |" in text
    assert "None lies" not in text
    write_json(audit_file(made), {"brief": tables, "figures": {}, "of": {"set": "f" * 64}})
    shutil.rmtree(root / "out")
    text = (exported(root, "folders", "--synthetic_dir", str(made)) / "README.md").read_text()
    assert "One was made of other images or classifiers than those of now" in text
    write_json(audit_file(made), {"brief": tables, "figures": {"coverage, generated, pixels, n 9, k 5": 0.1234}})
    shutil.rmtree(root / "out")
    text = (exported(root, "folders", "--synthetic_dir", str(made)) / "README.md").read_text()
    assert "| coverage | 0.123 | 0.987 |" in text and "0.1234" not in text
    write_json(audit_file(made), {"copies": {"nearer than held-out": 0.1234}, "extractor": "pixels"})  # of an earlier version
    shutil.rmtree(root / "out")
    text = (exported(root, "folders", "--synthetic_dir", str(made)) / "README.md").read_text()
    assert "| copies.nearer than held-out | 0.1234 |" in text and "| extractor | pixels |" in text


def test_broken_results_are_told_before_anything_is_written(root):
    experiment = Experiment(root, "e", "digits")
    experiment.cas_file.parent.mkdir(parents=True)
    experiment.cas_file.write_text("{")
    refused(root, "is not readable JSON")


def test_a_set_of_a_model_that_was_not_adapted_says_so(tmp_path):
    write_set(tmp_path / "set", settings=SETTINGS | {"enc_epoch": 0, "dif_epoch": 0})
    folder = exported(tmp_path, "folders", "--synthetic_dir", str(tmp_path / "set"))
    assert "was not adapted to anything" in (folder / "README.md").read_text()


@pytest.mark.parametrize("most, images", [(10_000, "image/png"), (1, "application/x-parquet")])
def test_croissant_names_files_by_hash_and_all_columns(root, monkeypatch, most, images):
    monkeypatch.setattr(export, "MOST_FILES", most)
    folder = exported(root, "hf")
    described = json.loads((folder / "croissant.json").read_text())
    assert described["conformsTo"] == "http://mlcommons.org/croissant/1.1" and described["@type"] == "sc:Dataset"
    file_set, *tables = described["distribution"]
    assert file_set["encodingFormat"] == images and len(list(folder.glob(file_set["includes"]))) == (23 if most > 1 else 1)
    for table in tables:
        assert hashlib.sha256((folder / table["contentUrl"]).read_bytes()).hexdigest() == table["sha256"]
    labels, records = described["recordSet"]
    assert [row["labels/name"] for row in labels["data"]] == list("0123456789")
    names = [field["name"] for field in records["field"] if field["name"] != "file_name"]
    assert names == [column["name"] for column in front_matter(folder)["dataset_info"]["features"]]


def test_a_card_has_no_audit_of_other_images(tmp_path):
    folder = write_set(Experiment(tmp_path, "e", "digits").synthetic_root / "23Enc3Dif4Is20Ugs1.5")
    first = set_identity(folder, [str(c) for c in range(10)])["sha256"]
    write_json(audit_file(folder), {"membership, AUC": 0.5012})
    write_json(folder.with_name(f"{folder.name}.audit") / "run.json", {"inputs": {"set": first}})
    shutil.rmtree(folder)
    write_set(folder, side=8)  # what generate_dataset.py --restart leaves: other images under the same name
    args = ["--dataset", "digits", "--exp", "e", "--root", tmp_path, "--to", tmp_path / "out", "--format", "folders"]
    card = (export_dataset.export(export_dataset.parse_args(list(map(str, args)))) / "README.md").read_text()
    assert "0.5012" not in card


@pytest.mark.parametrize("recorded", ["beside", "in run.json"])
def test_a_card_has_no_audit_of_classifiers_that_were_trained_again(recorded, tmp_path, caplog):
    experiment = Experiment(tmp_path, "e", "digits")
    folder = write_set(experiment.synthetic_root / "23Enc3Dif4Is20Ugs1.5")
    sha256 = set_identity(folder, [str(c) for c in range(10)])["sha256"]
    weights = tmp_path / "there/best_model.weights.h5"
    weights.parent.mkdir()
    weights.write_text("first")
    scores = {"top_1_accuracy": 0.5, "top_5_accuracy": 0.9, "predictions": "there"}
    write_json(experiment.cas_file, {"resnet20": {"digits": {"real": scores}}})
    of = {"set": sha256, "classifier": "resnet20", "classifiers": {"real": file_hash(weights), "x1": "gone"}}
    found = {"brief": [{"header": ["figure"], "rows": [["0.5012"]]}], "figures": {}}
    if recorded == "beside":
        write_json(audit_file(folder), found | {"of": of})
    else:
        asked = f"real {of['classifiers']['real']}, x1 gone"
        write_json(audit_file(folder), found)
        run = {"inputs": {"set": sha256, "classifiers": asked}, "arguments": {"classifier": "resnet20"}}
        write_json(folder.with_name(f"{folder.name}.audit") / "run.json", run)
    assert audit_tables(folder, sha256, experiment) == found["brief"]
    if recorded != "beside":  # as versions before that one wrote it
        record = folder.with_name(f"{folder.name}.audit") / "run.json"
        for classifiers in ({}, of["classifiers"]):
            write_json(record, run | {"inputs": {"set": sha256, "classifiers": classifiers}})
            assert audit_tables(folder, sha256, experiment) == found["brief"]
    weights.write_text("second")
    assert audit_tables(folder, sha256, experiment) == []
    assert "is of other classifiers than those of now (real): it is left out" in caplog.text
