"""Low-rank updates on their way through the stages, called as functions, with a tiny backbone."""

import json
import shutil
import sys

import numpy as np
import pytest

import generate_dataset
import hyp_opt
import merge_lora
import SD_adapting
from cli import process
from Experiment.errors import UserError
from Models.backbones import BACKBONES
from Models.foreign_names import named_variables, to_foreign
from Models.lora import kernel_shapes, target_layers
from Models.lora_files import Facts, read_facts, write_updates
from Models.numerics import DIFFUSERS, Following
from Models.weight_cards import read_card, weights_hashes
from Models.weight_files import PublishedFile
from Models.weights import load_weights, stored_following
from tests import foreign

pytestmark = pytest.mark.usefixtures("no_pictures", "no_sheets")

LORA = ["--train_model", "dif", "--enc_epoch", "1", "--lora_rank", "2", "--lora_targets", "all"]


@pytest.fixture
def common(tiny, tmp_path, float32_after):
    return ["--dataset", "digits", "--exp", "x", "--backbone", "tiny", "--root", str(tmp_path / "out")]


def adapt(*flags):
    return SD_adapting.adapt(SD_adapting.parse_args(list(flags)))


def generate(*flags):
    """Images of an epoch, by name."""
    flags = ["--img_total", "11", "--enc_epoch", "1", "--inf_steps", "2", "--ugs", "1.5", *flags]
    folder = generate_dataset.generate(generate_dataset.parse_args(flags))
    return {path.relative_to(folder): path.read_bytes() for path in folder.glob("class_*/*.png")}, folder


@pytest.fixture
def trained(common):
    """Folder of two epochs of low-rank updates."""
    adapt(*common)
    return adapt(*common, *LORA, "--epochs", "2")


def test_an_epoch_of_updates_is_taken_like_any_other_and_its_merged_unet_draws_the_same(common, trained, tmp_path):
    assert not (trained / "state.npz").exists()
    record = json.loads((trained / "training.json").read_text())
    assert (record["arguments"]["lora_rank"], record["arguments"]["lora_alpha"]) == (2, 2.0)
    assert record["inputs"]["weights"]["unet"] == read_facts(trained / "epoch2.weights.h5").base

    merged = tmp_path / "out/Checkpoints/DDPM/Exp_merged/digits/DiffusionFt/epoch2.weights.h5"
    flags = [str(trained / "epoch2.weights.h5"), "--to", str(merged), "--backbone", "tiny"]
    assert merge_lora.merge(merge_lora.parse_args(flags)) == merged and read_facts(merged) is None
    card = read_card(merged)
    assert card["merged_from"] == read_card(trained / "epoch2.weights.h5")["sha256"] and card["dataset"] == "digits"
    with pytest.raises(UserError, match="epoch2.weights.h5 is there already"):
        merge_lora.plan(merge_lora.parse_args(flags))
    with pytest.raises(UserError, match="updates of others are not read"):
        merge_lora.plan(merge_lora.parse_args(["lora.safetensors", *flags[1:2], str(tmp_path / "m.weights.h5")]))
    shutil.copytree(trained.with_name("MyEmbedding"), merged.parent.with_name("MyEmbedding"))
    of_merged = ["--exp" if flag == "--exp" else "merged" if flag == "x" else flag for flag in common]
    for precision in ("float32", "mixed_bfloat16"):
        how = ["--precision", precision, "--img_total", "11" if precision == "float32" else "12"]
        images, folder = generate(*common, *how, "--dif_epoch", "2")
        assert len(images) in (11, 12) and images == generate(*of_merged, *how, "--dif_epoch", "2")[0]
        assert images != generate(*common, *how, "--dif_epoch", "0")[0]
    made_of = json.loads((folder / "manifest.json").read_text())["weights"]
    assert set(made_of) == {"unet", "decoder", "enc", "dif"}

    search = ["--train_model", "dif", "--enc_epoch", "1", "--n_trials", "1", "--num_imgs", "20", "--is_1", "5",
              "--epochs", "1", "--classifier", "resnet20_16", "--batch_size", "20", "--repeats", "0"]  # fmt: skip
    best = hyp_opt.search(hyp_opt.parse_args([*common, *search]))
    assert (
        best["epoch"] in (1, 2)
        and best["run"]["inputs"]["epoch"] == read_card(trained / f"epoch{best['epoch']}.weights.h5")["sha256"]
    )


def test_training_goes_on_from_updates(common, trained):
    more = [*common, "--train_model", "dif", "--enc_epoch", "1", "--dif_epoch", "2"]
    assert adapt(*common, *LORA, "--epochs", "2") == trained  # finished already
    for flags, message in (
        (["--lora_rank", "3", "--lora_targets", "all"], "holds low-rank updates of rank 2, alpha 2, targets all: "),
        (["--lora_rank", "2"], "of rank 2, alpha 2, targets attention cannot go on from there"),
    ):
        with pytest.raises(UserError, match=message):
            SD_adapting.plan(SD_adapting.parse_args([*more, *flags]))
    adapt(*more, *LORA[-4:])
    facts = read_facts(trained / "epoch2.weights.h5")
    assert read_facts(trained / "epoch3.weights.h5") == facts
    adapt(*[flag if flag != "2" else "3" for flag in more])  # all of the UNet, from the sum
    assert read_facts(trained / "epoch4.weights.h5") is None
    with pytest.raises(UserError, match=r"epoch4.weights.h5 holds a whole UNet: low-rank updates of rank 2.* cannot go on"):
        SD_adapting.plan(SD_adapting.parse_args([*common, *LORA, "--dif_epoch", "4"]))  # fmt: skip


def test_a_run_with_updates_is_another_one_than_without(common, trained):
    whole = [*common, *LORA[:4], "--epochs", "2"]
    with pytest.raises(UserError, match=r"--lora_alpha 2.0 \(now None\)"):
        SD_adapting.plan(SD_adapting.parse_args(whole))
    args = SD_adapting.parse_args([*whole, "--restart"])
    adapt(*whole, "--restart")
    assert read_facts(trained / "epoch2.weights.h5") is None
    record = json.loads((trained / "training.json").read_text())
    assert not [name for name in record["arguments"] if name.startswith("lora")]  # as in earlier versions
    assert not [name for name in json.loads((trained / "run.json").read_text()) if "lora" in name]
    args.restart = False
    assert SD_adapting.plan(args).done
    with pytest.raises(UserError, match=r"--lora_rank None \(now 2\)"):
        SD_adapting.plan(SD_adapting.parse_args([*common, *LORA, "--epochs", "2"]))


def test_another_base_is_refused_in_one_line(common, trained, tiny, tmp_path, capsys, monkeypatch):
    other = tmp_path / "other"
    shutil.copytree(tmp_path, other, ignore=lambda folder, names: [n for n in names if not n.endswith(".weights.h5")])
    tiny.build["unet"](tiny).save_weights(other / "unet.weights.h5")
    elsewhere = [*common, "--weights_dir", str(other)]
    epoch, to = trained / "epoch2.weights.h5", tmp_path / "whole.weights.h5"
    commands = {
        (SD_adapting, SD_adapting.adapt): [*elsewhere, *LORA, "--dif_epoch", "2"],
        (hyp_opt, hyp_opt.search): [*elsewhere, "--train_model", "dif", "--enc_epoch", "1"],
        (generate_dataset, generate_dataset.generate): [*elsewhere, "--img_total", "5", "--enc_epoch", "1", "--dif_epoch", "2"],
        (merge_lora, merge_lora.merge): [str(epoch), "--to", str(to), "--backbone", "tiny", "--weights_dir", str(other)],
    }  # fmt: skip
    for (script, stage), flags in commands.items():
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py"])
        with pytest.raises(SystemExit) as ended:
            process.run(stage, lambda script=script, flags=flags: script.parse_args(flags), script.plan)
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert ended.value.code == 2 and "holds low-rank updates of another pretrained UNet" in line, line
    assert not to.exists() and weights_hashes({"dif": epoch}, read_card(epoch)["classes"])


def test_updates_of_a_foreign_file_are_merged(tmp_path, monkeypatch):
    backbone = foreign.small_backbone(levels=1)
    monkeypatch.setitem(BACKBONES, "small", backbone)
    unet = backbone.build["unet"](backbone)
    tensors = foreign.foreign_tensors({"unet": unet}, levels=1)
    place = foreign.write_original(tmp_path / "sd.safetensors", tensors, metadata={"modelspec.prediction_type": "v_prediction"})
    kernels = kernel_shapes(target_layers(unet, "attention"))
    updates = {where: (np.full((*shape[:-1], 2), 0.5), np.full((2, shape[-1]), 0.25)) for where, shape in kernels.items()}
    epoch, to = tmp_path / "epoch1.weights.h5", tmp_path / "whole.weights.h5"
    write_updates(epoch, Facts(2, 2.0, "attention", backbone.weights_hash("unet", place)), updates)
    flags = [str(epoch), "--to", str(to), "--backbone", "small"]
    merged = merge_lora.merge(merge_lora.parse_args([*flags, "--weights", str(place)]))
    assert stored_following(merged) == Following(DIFFUSERS, "v_prediction")
    for one in named_variables(load_weights(unet, merged), "unet", 1):
        added = 0.25 if id(one.variable) in {id(x.kernel) for x in target_layers(unet, "attention").values()} else 0
        assert np.abs(to_foreign(one.variable.numpy()) - tensors["unet"][one.ldm, one.diffusers][0] - added).max() < 1e-6
    with pytest.raises(SystemExit):
        merge_lora.parse_args([*flags, "--weights", str(tmp_path / "nowhere")])


@pytest.mark.parametrize("flags, message", [
    (["epoch2.weights.h5", "--to", "whole.h5"], "argument --to: the name must end in .weights.h5, received whole.h5"),
    (["nowhere.weights.h5", "--to", "whole.weights.h5"], "there is no file nowhere.weights.h5"),
    (["unet.weights.h5", "--to", "whole.weights.h5"], "unet.weights.h5 holds no low-rank updates"),
    (["--to", "whole.weights.h5"], "epoch"),
])  # fmt: skip
def test_what_cannot_be_merged_is_one_line(tiny, tmp_path, flags, message, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["merge_lora.py"])
    with pytest.raises(SystemExit) as ended:
        process.run(merge_lora.merge, lambda: merge_lora.parse_args([*flags, "--backbone", "tiny"]), merge_lora.plan)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2 and message in line, line


def test_a_unet_that_an_epoch_replaces_is_not_downloaded(common, tiny, tmp_path, monkeypatch):
    """The files of the other parts are there; that of the UNet is at an address where nobody answers."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    adapt(*common)
    adapt(*common, "--train_model", "dif", "--enc_epoch", "1")
    monkeypatch.setitem(tiny.files, "unet", PublishedFile("unet.h5", ("http://127.0.0.1:9/",), tiny.weights_hash("unet")))
    assert len(generate(*common, "--dif_epoch", "1")[0]) == 11
    assert hyp_opt.plan(hyp_opt.parse_args([*common, "--train_model", "dif", "--enc_epoch", "1"])).hashes
    with pytest.raises(UserError, match="unet.h5 cannot be downloaded from http://127.0.0.1:9/unet.h5"):
        generate(*common, "--dif_epoch", "0")
