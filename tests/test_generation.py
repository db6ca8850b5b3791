"""Generation follows its inputs: weights, classes and what is in the folder. In this process, with a tiny backbone."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import generate_dataset
from Data.generation import check_folder, draw_pictures, finish_set, is_complete, sheet_file
from Data.set_hashes import class_hashes
from Data.synthetic import SyntheticWriter, class_folders
from Experiment.errors import UserError
from Models import sampler
from Models.backbones import BACKBONES
from Models.weight_cards import read_card, write_card
from tests.conftest import synthetic_files

pytestmark = pytest.mark.usefixtures("no_pictures")

REPOSITORY = Path(__file__).resolve().parent.parent
FLAGS = ["--img_total", "23", "--enc_epoch", "31", "--dif_epoch", "10", "--inf_steps", "2", "--ugs", "1.5"]


@pytest.fixture
def args(tiny_experiment):
    return generate_dataset.parse_args(tiny_experiment + FLAGS)


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


def images_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.glob("class_*/*.png")}


def test_the_inputs_are_on_record(args, tmp_path):
    folder = generate_dataset.generate(args)
    epochs = tmp_path / "Checkpoints/DDPM/Exp_0001/digits"
    hashes = {"decoder": "hash of decoder", "enc": read_card(epochs / "MyEmbedding/epoch31.hdf5")["sha256"],
              "dif": read_card(epochs / "DiffusionFt/epoch10.weights.h5")["sha256"]}  # fmt: skip
    for name in ("manifest.json", "generation.json"):
        record = json.loads((folder / name).read_text())
        assert record["weights"] == hashes and record["classes"] == list("0123456789")
        assert not {"dataset", "data_dir", "resolution", "background", "skip_broken"} & record.keys()


def test_a_pretrained_unet_in_whose_place_an_epoch_comes_is_not_looked_for(args, tmp_path):
    generate_dataset.generate(args)
    assert BACKBONES["mini"].built == [False]
    args.dif_epoch = 0
    generate_dataset.generate(args)
    assert BACKBONES["mini"].built == [False, True]


def test_a_unet_can_be_built_without_its_file(tmp_path):
    with pytest.raises(UserError, match="there is no file unet.weights.h5"):
        BACKBONES["mini"].unet(tmp_path)
    assert BACKBONES["mini"].unet(tmp_path, pretrained=False).count_params() > 10**6


def test_the_hash_of_a_published_file_is_known_without_reading_it(tmp_path):
    (tmp_path / "kcv_diffusion_model.h5").touch()
    assert BACKBONES["sd1"].weights_hash("unet", tmp_path).startswith("8799ff97")


def test_weights_of_other_classes_are_refused(args, tmp_path):
    epoch = tmp_path / "Checkpoints/DDPM/Exp_0001/digits/DiffusionFt/epoch10.weights.h5"
    write_card(epoch, {"classes": ["cat", "dog"]})
    with pytest.raises(UserError, match=r"epoch10.weights.h5 was trained on other classes: cat, dog"):
        generate_dataset.plan(args)


def test_weights_that_have_changed_are_refused(args, tmp_path):
    generate_dataset.generate(args)
    BACKBONES["mini"].unet().save_weights(tmp_path / "Checkpoints/DDPM/Exp_0001/digits/DiffusionFt/epoch10.weights.h5")
    with pytest.raises(UserError, match=r"holds images of other settings \(weights.dif: \w{8} there, \w{8} now\)"):
        generate_dataset.plan(args)


def test_an_image_that_is_gone_is_made_again(args):
    folder = generate_dataset.generate(args)
    images, manifest = images_of(folder), manifest_of(folder)
    assert "finished already" in generate_dataset.plan(args).done
    (folder / "class_03/img_1.png").unlink()
    assert generate_dataset.plan(args).done is None
    generate_dataset.generate(args)
    assert images_of(folder) == images and manifest_of(folder) == manifest
    assert generate_dataset.plan(args).done


def test_a_set_that_was_begun_goes_on_whatever_the_batch(args, caplog):
    args.batch_size, args.precision = 20, "float32"
    folder = generate_dataset.generate(args)
    images, manifest = images_of(folder), (folder / "manifest.json").read_bytes()
    for name in ("class_00/img_1.png", "class_07/img_0.png", "manifest.json"):
        (folder / name).unlink()
    args.batch_size = 8
    with caplog.at_level("INFO", logger="experiment"):
        generate_dataset.generate(args)
    assert "21 there" in caplog.text
    assert images_of(folder) == images and (folder / "manifest.json").read_bytes() == manifest
    args.seed = 7
    with pytest.raises(UserError, match="seed: 1234 there, 7 now"):
        generate_dataset.plan(args)
    (folder / "class_00/img_1.png").write_bytes(b"spoilt")
    args.seed, args.restart = 1234, True
    with caplog.at_level("INFO", logger="experiment"):
        generate_dataset.generate(args)
    assert "throwing away the 23 images" in caplog.text and images_of(folder) == images


def test_a_restart_that_is_killed_leaves_no_image_that_counts(args, monkeypatch):
    folder = generate_dataset.generate(args)
    args.restart = True
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("Data.generation.shutil.rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        known = generate_dataset.plan(args)
        generate_dataset.generate(args, known)
    assert not known.thrown_away and images_of(folder)
    args.restart = False
    with pytest.raises(UserError, match="a --restart was interrupted .* Give it again"):
        generate_dataset.plan(args)
    args.restart = True
    known = generate_dataset.plan(args)
    generate_dataset.generate(args, known)
    assert known.thrown_away and len(images_of(folder)) == 23


def test_a_class_that_is_not_the_manifests_is_told_when_it_is_written_again(args, caplog):
    folder = generate_dataset.generate(args)
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(folder / "class_04/img_0.png")
    (folder / "class_03/img_1.png").unlink()
    with caplog.at_level("WARNING", logger="experiment"):
        generate_dataset.generate(args)
    assert "images in class_04 are not those of the earlier manifest" in caplog.text
    assert manifest_of(folder)["sha256"] == class_hashes(synthetic_files(folder, 10), Path.read_bytes)


def test_a_set_of_an_earlier_version_is_continued(args, tmp_path):
    """Its record has no classes, but the dataset's path, flags of the data and the pretrained UNet."""
    folder = generate_dataset.generate(args)
    images, record = images_of(folder), json.loads((folder / "generation.json").read_text())
    del record["classes"]
    record |= {"dataset": "/another/place", "background": "white", "resolution": None}
    record["weights"]["unet"] = "f" * 64
    for name in ("generation.json", "manifest.json"):
        (folder / name).write_text(json.dumps(record | json.loads((folder / name).read_text()) | record))
    sheet_file(folder).rename(folder / "samples.png")
    assert generate_dataset.plan(args).done
    assert sheet_file(folder).exists() and not (folder / "samples.png").exists()
    (folder / "manifest.json").unlink()
    (folder / "class_09/img_0.png").unlink()
    generate_dataset.generate(args)
    assert images_of(folder) == images and manifest_of(folder)["classes"] == list("0123456789")
    with pytest.raises(UserError, match="seed: 1234 there, 7 now"):
        check_folder(folder, generate_dataset.plan(args).settings | {"seed": 7})


def test_only_images_are_pictures_in_the_folder(args):
    folder = generate_dataset.generate(args)
    assert sheet_file(folder).is_file() and sheet_file(folder).parent == folder.parent
    assert {path.suffix for path in folder.iterdir() if path.is_file()} <= {".json", ".txt", ".lock", "", ".guard"}


def test_broken_images_are_named_and_all_others_written(args, monkeypatch):
    whole, generate_images = {}, sampler.generate_images

    def with_broken(*a, **k):
        for numbers, images, *_ in generate_images(*a, **k):
            whole.update(zip(numbers.tolist(), images))
            yield numbers, images, ~np.isin(numbers, [3, 12, 22])

    monkeypatch.setattr(sampler, "generate_images", with_broken)
    message = (
        "3 of 23 images are not finite or of one colour, and not written: class_03/img_0.png, class_02/img_1.png, class_02/"
    )
    with pytest.raises(UserError, match=message):
        generate_dataset.generate(args)
    folder = generate_dataset.plan(args).folder
    assert len(images_of(folder)) == 20 and not (folder / "manifest.json").exists()
    monkeypatch.setattr(sampler, "generate_images", generate_images)
    generate_dataset.generate(args)
    assert len(images_of(folder)) == 23 and manifest_of(folder)["total"] == 23
    assert np.array_equal(np.asarray(Image.open(folder / "class_03/img_0.png")), whole[3])


def test_a_finished_set_says_so_without_tensorflow(tmp_path):
    flags = ["--dataset", "digits", "--backbone", "mini", "--root", str(tmp_path), "--img_total", "12", "--enc_epoch", "0",
             "--dif_epoch", "0"]  # fmt: skip
    known = generate_dataset.plan(generate_dataset.parse_args(flags))
    writer = SyntheticWriter(known.folder, known.counts)
    writer.begin()
    for number in writer.missing():
        writer.write(number, np.full((32, 32, 3), number, np.uint8))
    finish_set(writer, known.settings)
    (known.folder / "generation.json").write_text(json.dumps(known.settings))
    assert is_complete(writer)
    code = "import sys, generate_dataset as g; print(g.plan(g.parse_args(sys.argv[1:])).done, 'keras' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *flags], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.startswith("finished already") and done.stdout.strip().endswith("False"), done.stderr


def test_the_pictures_of_many_classes_are_drawn_a_class_at_a_time(tmp_path, monkeypatch):
    import tracemalloc

    import sheets

    classes, seen, drawn = 250, [], []
    for label, folder in enumerate(class_folders(tmp_path / "set", classes)):
        folder.mkdir(parents=True)
        for i in range(24):
            Image.new("RGB", (32, 32), (label, i, 0)).save(folder / f"img_{i}.png")
    monkeypatch.setattr(sheets, "collage", lambda images, path: seen.append((len(images), images[0, 0, 0, 0])))
    monkeypatch.setattr(sheets, "sample_sheet", lambda images, labels, *rest: drawn.append((images[:, 0, 0], labels)))
    draw_pictures(tmp_path / "set", list(map(str, range(classes))), "title", tmp_path)  # what it imports is not measured
    seen.clear(), drawn.clear()
    tracemalloc.start()
    try:
        draw_pictures(tmp_path / "set", list(map(str, range(classes))), "title", tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seen == [(24, label) for label in range(classes)]
    ((pixels, labels),) = drawn
    assert np.array_equal(labels, np.repeat(range(100), 8))  # as many classes as a sheet has rows
    assert np.array_equal(pixels, [(label, i, 0) for label in range(100) for i in range(8)])
    assert peak < 0.7 * classes * 24 * 32 * 32 * 3
