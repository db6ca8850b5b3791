"""Results follow their inputs: identities of runs, cards of weights, continued adaptation."""

import csv
import errno
import json
import os
import shutil
from argparse import Namespace
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from PIL import Image

import classifier_training
import generate_dataset
import hyp_opt
import SD_adapting
from Adapting import training as adapting
from Data.doubts import OTHER_IMAGES
from Experiment import disk
from Experiment.disk import check_room
from Experiment.errors import UserError
from Experiment.files import file_hash, read_json, write_json
from Experiment.paths import Experiment
from Experiment.plan import Plan
from Experiment.records import changes, describe_run, finished_run, flattened, identity
from Models import weight_cards
from Models.adapter import Diffusion, WholeNetwork, load_diffusion
from Models.class_encoder import class_encoder
from Models.devices import start_devices
from Models.fit_state import differences
from Models.runtime import resolve_precision
from Models.training import bytes_needed
from Models.weight_cards import card_path, check_pretrained, learned_from, read_card, weights_hashes, write_card
from Models.weight_names import epoch_path, saved_epochs
from Models.weights import save_weights
from Search.context import prepare
from tests.conftest import write_pets

pytestmark = pytest.mark.usefixtures("no_pictures", "no_sheets")

INPUTS = {"classes": ["cat", "dog"], "data": {"train": "a" * 64}, "weights": {"enc": "b" * 64}}


def arguments(**others):
    return Namespace(**({"lr": 0.1, "root": "/out", "restart": False} | others))


@pytest.fixture
def record(tmp_path):
    write_json(tmp_path / "training.json", describe_run(arguments(), 0, INPUTS))
    return tmp_path / "training.json"


def test_an_identity_is_flat_and_survives_json():
    made = identity(arguments(), ["root"], INPUTS)
    assert made == {"--lr": 0.1, "classes": "cat, dog", "data.train": "a" * 64, "weights.enc": "b" * 64}
    assert json.loads(json.dumps(made)) == made and flattened(json.loads(json.dumps(INPUTS))) == flattened(INPUTS)


def test_the_same_run_is_finished(record):
    assert finished_run(record, arguments(root="/elsewhere"), ["root"], INPUTS)
    assert not finished_run(record, arguments(restart=True), ["root"], INPUTS)


@pytest.mark.parametrize("changed, message", [
    ({"data": {"train": "c" * 64}}, r"other inputs: data.train aaaaaaaa \(now cccccccc\). Use another --exp, or --restart"),
    ({"weights": {"enc": "c" * 64}}, r"weights.enc bbbbbbbb \(now cccccccc\)"),
    ({"classes": ["cat", "cow"]}, r"classes cat, dog \(now cat, cow\)"),
])  # fmt: skip
def test_a_run_with_other_inputs_is_not_finished(record, changed, message):
    with pytest.raises(UserError, match=message):
        finished_run(record, arguments(), ["root"], INPUTS | changed)


def test_a_record_without_inputs_is_compared_by_its_arguments(tmp_path):
    write_json(tmp_path / "training.json", {"arguments": {"lr": 0.1}})
    assert finished_run(tmp_path / "training.json", arguments(), ["root"], INPUTS)


def test_changes_name_both_kinds():
    said = changes({"--lr": 1, "data.train": "x"}, {"--lr": 2, "data.train": "y"})
    assert said == "other arguments and other inputs: --lr 1 (now 2), data.train x (now y)"


# Cards


@pytest.fixture
def weights(tmp_path):
    WholeNetwork(Diffusion(None, class_encoder(2, 3, (2, 2)), None), "enc", {"classes": ["cat", "dog"]}).save(
        tmp_path / "epoch1.weights.h5"
    )
    return tmp_path / "epoch1.weights.h5"


def test_the_hash_is_written_with_the_weights_and_not_computed_again(weights, monkeypatch):
    monkeypatch.setattr(weight_cards, "file_hash", None)
    assert len(read_card(weights)["sha256"]) == 64 and read_card(weights)["classes"] == ["cat", "dog"]


def test_a_copy_keeps_what_is_known_and_other_weights_do_not(weights, tmp_path):
    known = read_card(weights)
    os.utime(weights, ns=(1, 1))  # as a copy has another time
    assert read_card(weights)["classes"] == ["cat", "dog"]
    save_weights(class_encoder(2, 3, (2, 2)), weights)
    assert "classes" not in read_card(weights) and read_card(weights)["sha256"] != known["sha256"]


@pytest.mark.parametrize(
    "content", ['{"sha256": damaged', '{"sha256": "a", "pretrained": null}', '{"sha256": "a", "classes": [1, 2]}']
)
def test_a_damaged_card_is_made_again(weights, content):
    card_path(weights).write_text(content)
    assert read_card(weights).keys() == {"sha256", "bytes", "modified"}
    assert weights_hashes({"enc": weights}, ["cat", "dog"]) and not check_pretrained([weights], {"unet": "b"})


@pytest.mark.parametrize("content", ['{"trigger words": ["a cat"]}', "my notes"])
def test_a_file_of_the_user_beside_weights_is_no_card(weights, content, tmp_path, monkeypatch):
    monkeypatch.setattr(weight_cards, "REPOSITORY", tmp_path)
    card_path(weights).write_text(content)
    known = read_card(weights)
    monkeypatch.setattr(weight_cards, "file_hash", None)
    assert read_card(weights) == known and card_path(weights).read_text() == content


def test_weights_have_their_name_only_once_they_have_their_card(weights, monkeypatch):
    """A kill while they are hashed leaves no weights whose facts are lost, nor one just before they are named."""
    other, encoder = weights.with_name("epoch2.weights.h5"), class_encoder(2, 3, (2, 2))
    part = WholeNetwork(Diffusion(None, encoder, None), "enc", {"classes": ["cat", "dog"]})

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(weight_cards, "file_hash", killed)
        part.save(other)
    assert sorted(weights.parent.iterdir()) == [weights, card_path(weights)]
    replace = os.replace
    for file in (other, weights):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "replace", lambda old, new, last=file: killed() if new == last else replace(old, new))
            part.save(file)
    assert sorted(weights.parent.iterdir()) == [card_path(weights), card_path(other)]  # no earlier weights with a new card
    assert saved_epochs(weights.parent) == {}
    save_weights(class_encoder(2, 3, (2, 2)), other)  # somebody else's, beside a card that was left
    assert read_card(other).keys() == {"sha256", "bytes", "modified"}
    part.save(other)
    assert read_card(other)["classes"] == ["cat", "dog"]


def test_a_card_that_its_writer_has_finished_meanwhile_is_not_replaced(weights, monkeypatch):
    """As where an earlier version, or a copy, gives the card after the weights."""
    written = card_path(weights).read_text()
    card_path(weights).unlink()

    def slowly(path):
        card_path(weights).write_text(written)
        return file_hash(path)

    monkeypatch.setattr(weight_cards, "file_hash", slowly)
    assert read_card(weights)["classes"] == ["cat", "dog"] and card_path(weights).read_text() == written


def test_published_weights_get_a_card(weights, monkeypatch):
    card_path(weights).unlink()
    known = read_card(weights)
    monkeypatch.setattr(weight_cards, "file_hash", None)
    assert read_card(weights) == known


def test_weights_of_other_classes_are_refused(weights):
    assert set(weights_hashes({"enc": weights, "dif": None}, ["cat", "dog"])) == {"enc"}
    with pytest.raises(UserError, match="was trained on other classes: cat, dog. The dataset has cat, cow"):
        weights_hashes({"enc": weights}, ["cat", "cow"])
    write_card(weights, {})
    assert weights_hashes({"enc": weights}, ["cat", "cow"])  # nothing is known of it


def test_epochs_of_another_pretrained_unet_are_refused(weights, caplog):
    write_card(weights, {"pretrained": {"unet": "a" * 64, "decoder": "b" * 64}})
    check_pretrained([weights, None], {"unet": "a" * 64, "decoder": "b" * 64, "numerics": {}})
    check_pretrained([weights], {"image_encoder": "c" * 64})
    assert not caplog.text
    check_pretrained([weights], {"decoder": "c" * 64})
    assert "was trained with another VAE than the one in use" in caplog.text
    with pytest.raises(UserError, match=r"another pretrained UNet \(aaaaaaaaaaaa, not cccccccccccc\): give the --weights"):
        check_pretrained([weights], {"unet": "c" * 64})


def test_epochs_of_a_unet_that_predicted_something_else_are_refused(weights):
    """The same file, but the scheduler's configuration beside it has changed since."""
    write_card(weights, {"pretrained": {"unet": "a" * 64, "prediction_type": "v_prediction"}})
    same = {"unet": "a" * 64}
    check_pretrained([weights], same | {"prediction_type": "v_prediction"})
    check_pretrained([weights], same, "v_prediction")
    check_pretrained([weights], {"decoder": "b" * 64})  # a whole UNet says it itself
    with pytest.raises(UserError, match="UNet that predicts v_prediction, and these weights are said to predict epsilon"):
        check_pretrained([weights], same)
    write_card(weights, {"pretrained": {"decoder": "b" * 64}})
    with pytest.raises(UserError, match="trained with another VAE: give the --weights"):
        check_pretrained([weights], {"decoder": "c" * 64}, vae_too=True)


def test_a_disk_that_is_too_small_is_refused_before_the_run(tmp_path):
    check_room(tmp_path / "not" / "there", 1000, "this run")
    with pytest.raises(UserError, match="this run takes 1000000000000.0 GB, and .* left"):
        check_room(tmp_path / "not" / "there", 1e21, "this run")


# Adaptation


@pytest.fixture
def folder(tmp_path):
    """Two classes of noise, without splits."""
    return write_pets(tmp_path)


def adapted(folder, root, *flags):
    common = ["--dataset", str(folder), "--exp", "x", "--backbone", "tiny", "--root", str(root), "--batch_size", "28"]
    args = SD_adapting.parse_args([*common, "--precision", "float32", *map(str, flags)])
    return SD_adapting.plan(args), args


def test_the_same_data_elsewhere_is_the_same_run_and_other_data_is_not(tiny, folder, tmp_path):
    known, args = adapted(folder, tmp_path / "out", "--epochs", 1)
    SD_adapting.adapt(args, known)
    copy = shutil.copytree(folder, tmp_path / "elsewhere" / "pets")
    assert "finished already" in adapted(copy, tmp_path / "out", "--epochs", 1, "--seed", 1234)[0].done
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "cat" / "0.png")
    with pytest.raises(UserError, match="0.png"):
        adapted(folder, tmp_path / "out", "--epochs", 1)


@pytest.mark.parametrize("stage", ["adapt", "generate"])
def test_a_stage_that_does_not_fit_writes_nothing(stage, tiny, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    root = tmp_path / "out"
    if stage == "adapt":
        known, args = adapted(folder, root, "--epochs", 3)
        run, what = SD_adapting.adapt, "this run takes"
    else:
        flags = ["--img_total", "20", "--enc_epoch", "0", "--dif_epoch", "0", "--inf_steps", "2", "--ugs", "1"]
        args = generate_dataset.parse_args(
            ["--dataset", "digits", "--exp", "x", "--backbone", "tiny", "--root", str(root), *flags]
        )
        known, run, what = generate_dataset.plan(args), generate_dataset.generate, "what is missing of the set takes"
    with pytest.raises(UserError, match=f"{what} .* left"):
        run(args, known)
    assert not [path for path in root.rglob("*") if path.is_file() and "Splits" not in path.parts]


def test_an_epoch_is_refused_on_another_pretrained_unet(tiny, folder, tmp_path):
    root, flags = tmp_path / "out", ["--epochs", 1, "--enc_epoch", 1, "--train_model", "dif"]
    known, args = adapted(folder, root, "--epochs", 1)
    epoch = epoch_path(SD_adapting.adapt(args, known), 1)
    hashes = {part: tiny.weights_hash(part) for part in ("image_encoder", "unet", "decoder")}
    assert read_card(epoch)["pretrained"] == hashes | {"prediction_type": "epsilon"} and adapted(folder, root, *flags)
    card = read_json(card_path(epoch))
    write_json(card_path(epoch), card | {"pretrained": hashes | {"unet": "a" * 64}})
    with pytest.raises(UserError, match="another pretrained UNet"):
        adapted(folder, root, *flags)
    made = ["--dataset", str(folder), "--exp", "x", "--backbone", "tiny", "--root", str(root), "--img_total", "4"]
    with pytest.raises(UserError, match="another pretrained UNet"):
        generate_dataset.plan(generate_dataset.parse_args([*made, "--enc_epoch", "1", "--dif_epoch", "0"]))


class Killed(BaseException):
    pass


def test_a_restart_that_is_killed_while_it_removes_epochs_leaves_no_finished_training(tiny, folder, tmp_path, monkeypatch):
    flags = ["--epochs", 3, "--keep", 3]
    known, args = adapted(folder, tmp_path / "out", *flags)
    SD_adapting.adapt(args, known)

    def killed(folder, offset):
        epoch_path(folder, 1).unlink()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(adapting, "remove_epochs", killed)
        known, args = adapted(folder, tmp_path / "out", *flags, "--restart")
        with pytest.raises(Killed):
            SD_adapting.adapt(args, known)
    known, args = adapted(folder, tmp_path / "out", *flags)
    assert known.done is None
    SD_adapting.adapt(args, known)
    assert len(list(known.folder.glob("epoch*.h5"))) == 3


def test_a_training_whose_epochs_were_replaced_is_not_finished(tiny, folder, tmp_path):
    base, branch = ["--epochs", 3], ["--enc_epoch", 1, "--epochs", 1]
    known, args = adapted(folder, tmp_path / "out", *base)
    SD_adapting.adapt(args, known)
    with pytest.raises(UserError, match="or --restart, which throws away all epochs from"):
        adapted(folder, tmp_path / "out", *branch)
    known, args = adapted(folder, tmp_path / "out", *branch, "--restart")
    SD_adapting.adapt(args, known)
    assert sorted(path.name for path in known.folder.glob("epoch*.h5")) == ["epoch1.weights.h5", "epoch2.weights.h5"]
    assert "finished already" in adapted(folder, tmp_path / "out", *branch)[0].done
    with pytest.raises(UserError, match="holds epochs of another run, .* throws away all epochs from 1 on: 1, 2"):
        adapted(folder, tmp_path / "out", *base)


def test_epochs_after_the_last_of_a_run_are_another_trainings_too(tiny, folder, tmp_path):
    """A search would choose among both. Such are left where a longer run kept its last ones, or a restart was killed."""
    known, args = adapted(folder, tmp_path / "out", "--epochs", 3, "--keep", 1)
    SD_adapting.adapt(args, known)
    (known.folder / "training.json").unlink()
    with pytest.raises(UserError, match="or stand beside this one's. .* away all epochs from 1 on: 3"):
        adapted(folder, tmp_path / "out", "--epochs", 2, "--lr", 0.5)


def test_a_finished_training_leaves_the_state_of_the_one_that_goes_on(tiny, folder, tmp_path, monkeypatch):
    base, more = ["--epochs", 1], ["--enc_epoch", 1, "--epochs", 2]
    known, args = adapted(folder, tmp_path / "out", *base)
    SD_adapting.adapt(args, known)
    with monkeypatch.context() as patch:
        patch.setattr(SD_adapting, "describe_run", lambda *_, **__: 1 / 0)
        for flags in (more, [*base, "--restart"]):  # all epochs are done, but the record is not written
            known, args = adapted(folder, tmp_path / "out", *flags)
            with pytest.raises(ZeroDivisionError):
                SD_adapting.adapt(args, known)
            if flags is more:
                state = known.folder / "state.npz"
                assert "finished already" in adapted(folder, tmp_path / "out", *base)[0].done and state.exists()
                state.rename(kept := tmp_path / "state.npz")
    # Of the same run, killed between the record and this.
    known, args = adapted(folder, tmp_path / "out", *base)
    left = state.read_bytes()
    SD_adapting.adapt(args, known)
    state.write_bytes(left)
    assert "finished already" in adapted(folder, tmp_path / "out", *base)[0].done and not state.exists()
    assert kept.exists()


def test_an_interrupted_training_goes_on_with_its_own_precision_alone(tiny, folder, tmp_path, monkeypatch):
    known, args = adapted(folder, tmp_path / "out", "--epochs", 1, "--precision", "auto")
    with monkeypatch.context() as patch:
        patch.setattr(SD_adapting, "describe_run", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            SD_adapting.adapt(args, known)
    other = {"mixed_bfloat16": "float32", "float32": "mixed_bfloat16"}[resolve_precision("auto")]
    known, args = adapted(folder, tmp_path / "out", "--epochs", 1, "--precision", "auto")
    with monkeypatch.context() as patch:
        patch.setattr("Models.runtime.resolve_precision", lambda name: other)
        with pytest.raises(UserError, match=rf"interrupted run with other inputs: precision_used \S+ .now {other}"):
            SD_adapting.adapt(args, known)
    settings = known.identity | {"precision_used": "float32"}
    assert not differences(known.identity, settings)  # of an earlier version, which did not note it
    assert differences(known.identity | {"--precision": "float32"}, settings)
    # What the message asks for: the precision that was used, by its name.
    known, args = adapted(folder, tmp_path / "out", "--epochs", 1, "--precision", resolve_precision("auto"))
    SD_adapting.adapt(args, known)


def test_a_finished_training_is_known_by_the_precision_that_auto_meant(tiny, folder, tmp_path):
    known, args = adapted(folder, tmp_path / "out", "--epochs", 1, "--precision", "auto")
    SD_adapting.adapt(args, known)
    used = resolve_precision("auto")
    for precision in ("auto", used):
        assert "finished already" in adapted(folder, tmp_path / "out", "--epochs", 1, "--precision", precision)[0].done
    other = {"mixed_bfloat16": "float32", "float32": "mixed_bfloat16"}[used]
    with pytest.raises(UserError, match=f"--precision auto .now {other}"):
        adapted(folder, tmp_path / "out", "--epochs", 1, "--precision", other)


def test_published_epochs_are_not_made_again_under_another_name(tiny, folder, tmp_path):
    known, args = adapted(folder, tmp_path / "out", "--epochs", 2)
    known.folder.mkdir(parents=True)
    (known.folder / "epoch2.hdf5").touch()
    for flags in ([], ["--restart"]):
        with pytest.raises(UserError, match="holds the published epochs 2, which this run would make again"):
            adapted(folder, tmp_path / "out", "--epochs", 2, *flags)
    adapted(folder, tmp_path / "out", "--epochs", 1)


def test_a_unet_that_was_fine_tuned_with_another_class_encoder_is_told(tiny, folder, tmp_path, caplog):
    def trained(*flags):
        known, args = adapted(folder, tmp_path / "out", "--epochs", 1, *flags)
        SD_adapting.adapt(args, known)

    def warned(script, *flags):
        caplog.clear()
        common = ["--dataset", folder, "--exp", "x", "--backbone", "tiny", "--root", tmp_path / "out", "--enc_epoch", "1"]
        script.plan(script.parse_args([*map(str, common), *flags]))
        return "was fine-tuned with another Class Encoder than" in caplog.text

    made, searched = ["--img_total", "4", "--dif_epoch", "1"], ["--train_model", "dif"]
    trained()
    trained("--train_model", "dif", "--enc_epoch", 1)
    assert not warned(generate_dataset, *made) and not warned(hyp_opt, *searched)
    trained("--seed", 7, "--restart")
    assert warned(generate_dataset, *made) and warned(hyp_opt, *searched)
    assert warned(SD_adapting, "--train_model", "dif", "--dif_epoch", "1")
    card = card_path(epoch_path(Experiment(tmp_path / "out", "x", "pets").part_dir("dif"), 1))
    write_json(card, {name: value for name, value in read_json(card).items() if name != "class_encoder"})
    assert not warned(generate_dataset, *made)  # of an earlier version


def test_a_class_encoder_that_has_learnt_on_a_fine_tuned_unet_is_told_of_with_the_pretrained_one(
    tiny, folder, tmp_path, caplog
):
    for flags in ([], ["--train_model", "dif", "--enc_epoch", 1], ["--enc_epoch", 1, "--dif_epoch", 1]):
        known, args = adapted(folder, tmp_path / "out", "--epochs", 1, *flags)
        SD_adapting.adapt(args, known)
    common = ["--dataset", str(folder), "--exp", "x", "--backbone", "tiny", "--root", str(tmp_path / "out")]
    for script, flags, warned in (
        (generate_dataset, ["--img_total", "4", "--enc_epoch", "2", "--dif_epoch", "0"], True),
        (generate_dataset, ["--img_total", "4", "--enc_epoch", "1", "--dif_epoch", "0"], False),
        (generate_dataset, ["--img_total", "4", "--enc_epoch", "2", "--dif_epoch", "1"], False),
        (hyp_opt, ["--train_model", "enc"], True),
    ):
        caplog.clear()
        script.plan(script.parse_args([*common, *flags]))
        assert ("has learnt on a fine-tuned UNet" in caplog.text) is warned


def test_a_fresh_class_encoder_is_the_same_in_every_stage_of_a_seed(tiny, folder, tmp_path, caplog):
    known, args = adapted(folder, tmp_path / "out", "--epochs", 1, "--train_model", "dif")
    SD_adapting.adapt(args, known)
    common = ["--dataset", str(folder), "--exp", "x", "--backbone", "tiny", "--root", str(tmp_path / "out")]
    args = hyp_opt.parse_args([*common, "--train_model", "dif", "--num_imgs", "8", "--batch_size", "8"])
    searched = prepare(args, hyp_opt.plan(args)).adapted.diffusion.encoder.get_weights()
    start_devices(args)
    fresh = load_diffusion(tiny, len(known.inputs["classes"])).encoder.get_weights()
    assert all(np.array_equal(one, other) for one, other in zip(searched, fresh, strict=True))

    made = [*common, "--enc_epoch", "0", "--dif_epoch", "1", "--img_total", "4"]
    for seed, warned in (("1234", False), ("7", True)):
        caplog.clear()
        generate_dataset.plan(generate_dataset.parse_args([*made, "--seed", seed]))
        assert ("another Class Encoder than one that is fresh, of seed 7" in caplog.text) is warned


@pytest.mark.parametrize("number, raised", [(errno.ESTALE, OSError), (errno.EIO, OSError), (errno.EINVAL, UserError)])
def test_a_file_system_that_was_away_has_damaged_no_file(tmp_path, monkeypatch, number, raised):
    """What is told to be damaged is thrown away, or left out for good."""
    from Data import decoded, folders, pictures
    from Models import lora_files, tensor_files, weights

    def away(*args, **kwargs):
        raise OSError(number, "away")

    def fails(work):
        with monkeypatch.context() as patch, pytest.raises(raised):
            work(patch)

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.safetensors").write_bytes(b"\0" * 40)

    def read(patch):
        patch.setattr(pictures, "formats_of", away)
        pictures.read_images([str(tmp_path / "a.png")], 8)

    def load(patch):
        with weights.refusing_misfits("x", "read"):
            away()

    def tensors(patch):
        patch.setattr(tensor_files, "refuse_others", lambda path: None)
        patch.setattr(tensor_files, "safe_open", away)
        tensor_files.open_tensors(tmp_path / "a.safetensors")

    def list_folder(patch):
        patch.setattr(folders.os, "scandir", away)
        folders.entries(tmp_path)

    def updates(patch):  # a file of which nothing can be read is not one of theirs
        patch.setattr(lora_files.h5py, "File", away)
        if lora_files.read_facts(tmp_path / "epoch1.weights.h5") is None:
            raise UserError

    for work in (read, load, tensors, list_folder, updates):
        fails(work)
    monkeypatch.setattr(np, "load", away)
    if raised is OSError:
        with pytest.raises(OSError):
            decoded.open_decoded(tmp_path / "a.npy", (1, 8, 8, 3))
    else:
        assert decoded.open_decoded(tmp_path / "a.npy", (1, 8, 8, 3)) is None


def test_a_run_that_goes_on_needs_room_for_the_rest_alone():
    adapted = SimpleNamespace(bytes=(1000, 10))
    assert bytes_needed(adapted, 10, 1) == 11_020 and bytes_needed(adapted, 10, 1, keep=2) == 3020
    assert bytes_needed(adapted, 10, 1, done=9) == 2010 and bytes_needed(adapted, 10, 5, done=5) == 2010


def test_the_split_belongs_to_the_experiment(tiny, folder, tmp_path):
    first = adapted(folder, tmp_path / "out", "--epochs", 1)[0].inputs
    assert adapted(folder, tmp_path / "out", "--epochs", 1, "--seed", 7)[0].inputs == first
    assert adapted(folder, tmp_path / "other", "--epochs", 1, "--seed", 7)[0].inputs["data"] != first["data"]


def test_continuing_is_a_plain_command(tiny, folder, tmp_path):
    """It keeps the history, draws new noise, has its own record, and overwrites nothing."""
    for flags in (["--epochs", 2], ["--enc_epoch", 2, "--epochs", 1]):
        known, args = adapted(folder, tmp_path / "out", *flags)
        SD_adapting.adapt(args, known)
    rows = list(csv.DictReader((known.folder / "history.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert {path.name for path in known.folder.glob("training*.json")} == {"training.json", "training_from2.json"}
    for flags in (["--epochs", 2], ["--enc_epoch", 2, "--epochs", 1]):
        assert "finished already" in adapted(folder, tmp_path / "out", *flags)[0].done
    with pytest.raises(
        UserError, match="holds epochs of another run, which would be overwritten or .* all epochs from 2 on: 2"
    ):
        adapted(folder, tmp_path / "out", "--enc_epoch", 1, "--epochs", 1)


def test_who_has_learnt_from_images_that_are_tested_today_is_told(tiny, tmp_path, caplog):
    """The user deals the images anew, between two stages."""
    rng, file = np.random.default_rng(0), tmp_path / "own.npz"
    images = {f"{split}_images": rng.integers(0, 256, (20, 8, 8, 3), np.uint8) for split in ("train", "val", "test")}
    labels = {f"{split}_labels": np.arange(20) % 2 for split in ("train", "val", "test")}
    np.savez(file, **images, **labels)
    common = ["--dataset", str(file), "--exp", "x", "--root", str(tmp_path / "out")]
    model = [*common, "--backbone", "tiny"]
    enc = SD_adapting.adapt(SD_adapting.parse_args([*model, "--batch_size", "10"]))
    (seen,) = learned_from([enc / "epoch1.weights.h5"])
    assert seen["resolution"] == 8
    made = [*model, "--img_total", "20", "--enc_epoch", "1", "--dif_epoch", "0", "--inf_steps", "2", "--ugs", "1"]
    folder = generate_dataset.generate(generate_dataset.parse_args(made))
    assert read_json(folder / "manifest.json")["learned_from"] == [seen]
    learn = [*common, "--classifier", "resnet20_16", "--epochs", "1", "--batch_size", "10"]
    classifier_training.train_classifier(classifier_training.parse_args(learn))
    results = tmp_path / "out/CAS Results/test_accuracies_expx.json"
    assert "doubts" not in read_json(results)["resnet20_16"]["own"]["x1"] and OTHER_IMAGES not in caplog.text

    images["train_images"], images["test_images"] = images["test_images"], images["train_images"]
    np.savez(file, **images, **labels)
    classifier_training.train_classifier(classifier_training.parse_args([*learn, "--restart"]))
    assert read_json(results)["resnet20_16"]["own"]["x1"]["doubts"] == [OTHER_IMAGES]
    assert caplog.text.count(OTHER_IMAGES) == 1
    hyp_opt.plan(hyp_opt.parse_args([*model, "--num_imgs", "20", "--batch_size", "10"]))
    assert caplog.text.count(OTHER_IMAGES) == 2
    dif = SD_adapting.adapt(SD_adapting.parse_args([*model, "--train_model", "dif", "--enc_epoch", "1", "--batch_size", "10"]))
    assert "begins from have learnt from other images" in caplog.text
    assert len(learned_from([dif / "epoch1.weights.h5"])) == 2


def test_fine_tuning_follows_its_encoder(tiny, folder, tmp_path):
    """An encoder that was trained anew under the same name is another one."""
    encoder, fine_tuning = ["--epochs", 1], ["--train_model", "dif", "--enc_epoch", 1, "--epochs", 1]
    for flags in (encoder, fine_tuning, [*encoder, "--seed", 7, "--restart"]):
        known, args = adapted(folder, tmp_path / "out", *flags)
        SD_adapting.adapt(args, known)
    with pytest.raises(UserError, match=r"other inputs: weights.enc \w{8} \(now \w{8}\)"):
        adapted(folder, tmp_path / "out", *fine_tuning)


def test_continued_epochs_draw_their_own_noise(tiny, folder, tmp_path, monkeypatch):
    from Models import training

    begun = []
    monkeypatch.setattr(training, "noisy_batches", lambda *a, made=training.noisy_batches: begun.append(a[5]) or made(*a))
    for flags in (["--epochs", 2], ["--enc_epoch", 2, "--epochs", 1]):
        known, args = adapted(folder, tmp_path / "out", *flags)
        SD_adapting.adapt(args, known)
    assert list(dict.fromkeys(begun)) == [0, 2]  # a feed may be begun more than once


@pytest.mark.parametrize("before, now", [("none", "standard"), ("standard", "none")])
def test_a_study_with_another_lever_is_refused(tmp_path, before, now):
    """Also one that was begun when the lever did not exist: there it is off."""
    import hyp_opt
    from Search.inputs import claim_study

    study = optuna.create_study()
    known = Plan(inputs={"data": {"val": "v"}}, hashes={"1": "h"}, address="here", adopted={})
    args = [hyp_opt.parse_args(["--dataset", "digits", "--augment", name]) for name in (before, now)]
    claim_study(study, args[0], known, "float32")
    assert ("augment" in study.user_attrs["settings"]) == (before == "standard")
    study.add_trial(optuna.trial.create_trial(value=0.5))
    claim_study(study, args[0], known, "float32")
    with pytest.raises(UserError, match=rf"other arguments: --augment {before} \(now {now}\)"):
        claim_study(study, args[1], known, "float32")
