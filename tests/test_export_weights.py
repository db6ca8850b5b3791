"""An adapted Stable Diffusion as diffusers reads it: files, table, card."""

import ast
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

import export_weights
from Experiment.errors import UserError
from Experiment.paths import Experiment
from Experiment.text import markdown
from Models.backbones import BACKBONES
from Models.class_encoder import class_encoder
from Models.export_card import card, example
from Models.export_folder import BEGUN
from Models.exported import write_tensors
from Models.foreign_weights import foreign_weights
from Models.lora import kernel_shapes, target_layers
from Models.lora_files import Facts, read_facts, write_updates
from Models.numerics import AS_PUBLISHED, DIFFUSERS, Following, let_follow
from Models.sampler import class_contexts
from Models.weight_names import epoch_path
from Models.weights import save_weights
from tests import foreign


@pytest.fixture(scope="module")
def epochs(tmp_path_factory):
    """A small model of one level in a folder of diffusers, and epoch 1 of encoder and UNet, which follows KerasCV."""
    from Models.faster_layers import use_faster_layers

    folder, backbone = tmp_path_factory.mktemp("export"), foreign.small_backbone(levels=1)
    models = {part: use_faster_layers(backbone.build[part](backbone)) for part in foreign.PARTS}
    tensors = foreign.foreign_tensors(models, levels=1)
    place = foreign.write_folder(folder / "sd", tensors, heads=[2])
    experiment = Experiment(folder / "out", "x", "digits")
    encoder = class_encoder(10, backbone.hidden_units, backbone.context_shape)
    save_weights(encoder, epoch_path(experiment.part_dir("enc"), 1))
    unet = let_follow(foreign_weights(backbone, place).fill(models["unet"], "unet"), AS_PUBLISHED)
    save_weights(unet, epoch_path(experiment.part_dir("dif"), 1))
    flags = ["--dataset", "digits", "--exp", "x", "--backbone", "small", "--root", str(folder / "out"), "--weights", str(place)]
    return backbone, models, tensors, encoder, [*flags, "--enc_epoch", "1"]


@pytest.fixture
def small(epochs, monkeypatch):
    monkeypatch.setitem(BACKBONES, "small", epochs[0])
    return epochs


@pytest.fixture(scope="module")
def exported(epochs, tmp_path_factory):
    backbone, *_, flags = epochs
    to = tmp_path_factory.mktemp("to")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "small", backbone)
        flags = [*flags, "--dif_epoch", "1", "--vae", "--inf_steps", "15", "--ugs", "1.5", "--to", str(to)]
        args = export_weights.parse_args(flags)
        assert export_weights.export(args) == to
        assert export_weights.plan(args).done.startswith("finished already")
    return to, flags


def test_what_is_exported_can_be_read_again(exported, small):
    backbone, models, tensors, *_ = small
    source = foreign_weights(backbone, exported[0])
    for part, model in models.items():
        for weight in model.weights:
            weight.assign(np.zeros(weight.shape, "float32"))
        source.fill(model, part)
        # A UNet's epoch follows KerasCV, and so does its export; the VAE is diffusers'.
        assert model.following == (AS_PUBLISHED if part == "unet" else Following(DIFFUSERS))
    for name, parts in (("unet", ["unet"]), ("vae", ["image_encoder", "decoder"])):
        written = load_file(exported[0] / name / "diffusion_pytorch_model.safetensors")
        expected = {names[1]: values[1] for part in parts for names, values in tensors[part].items()}
        assert written.keys() == expected.keys()
        assert all(np.array_equal(written[key], array) for key, array in expected.items())


def test_configurations(exported):
    unet, vae, scheduler = (
        json.loads((exported[0] / name).read_text())
        for name in ("unet/config.json", "vae/config.json", "scheduler/scheduler_config.json")
    )
    assert (unet["block_out_channels"], unet["attention_head_dim"], unet["cross_attention_dim"]) == ([32], 2, 8)
    assert unet["use_linear_projection"] is False and unet["down_block_types"] == ["DownBlock2D"]
    assert (vae["block_out_channels"], vae["scaling_factor"]) == ([32], 0.18215)
    assert (scheduler["prediction_type"], scheduler["set_alpha_to_one"]) == ("epsilon", True)


def test_the_table_holds_the_contexts(exported, small):
    contexts, table = class_contexts(small[3]), load_file(exported[0] / "class_embeddings.safetensors")
    assert np.array_equal(table["prompt_embeds"], contexts[:-1])
    assert np.array_equal(table["negative_prompt_embeds"], contexts[-1:])


def test_the_card_is_yaml_facts_and_an_example_that_parses(exported):
    text = (exported[0] / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert (head["library_name"], head["license"]) == ("diffusers", "other") and "class-conditional" in head["tags"]
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    ast.parse(code)
    assert 'vae_folder, label, count, steps, scale = ".", ".", 0, 4, 15, 1.5' in code and "torch.randn(count, 4, 8, 8)" in code
    assert "for module in [*unet.modules()]:" in code  # the UNet alone was trained with KerasCV's arithmetic
    assert "| 9 | 9 |" in text and "SHA-256 of dif" in text


def test_an_example_for_diffusers_own_numerics_is_short():
    code = example([], False, 50, 7.5, 16, 0.18215)
    ast.parse(code)
    assert "module" not in code and '"a-stable-diffusion"' in code
    assert len([line for line in code.splitlines() if line]) <= 21


def test_names_in_a_card_are_text():
    assert markdown("a|b\n`c` <b>") == r"a\|b \`c\` \<b\>"


def test_another_export_is_refused(exported, small, tmp_path):
    to, flags = exported
    with pytest.raises(UserError, match=r"arguments: --ugs 1.5 \(now 3.0\). Name another folder by --to, or"):
        export_weights.plan(export_weights.parse_args([*flags, "--ugs", "3"]))
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds something else than an export: thesis.tex"):
        export_weights.plan(export_weights.parse_args([*flags, "--to", str(tmp_path)]))
    with pytest.raises(UserError, match=r"--to \S+ is no folder"):
        export_weights.plan(export_weights.parse_args([*flags, "--to", str(tmp_path / "thesis.tex")]))
    assert (to / "export.json").exists()


def test_mini_is_refused_with_the_reason(tmp_path):
    flags = ["--dataset", "digits", "--exp", "x", "--backbone", "mini", "--enc_epoch", "1", "--to", str(tmp_path / "to")]
    with pytest.raises(UserError, match="--backbone mini cannot be exported: .* 64 here, and mini in 320"):
        export_weights.plan(export_weights.parse_args(flags))
    assert not (tmp_path / "to").exists()


def test_what_is_not_finite_is_not_exported(tmp_path):
    with pytest.raises(UserError, match="the weights are not finite, and not exported: a"):
        write_tensors(tmp_path / "x.safetensors", {"a": (2,)}, {"a": lambda: np.array([1, np.inf])}, {"format": "pt"})
    assert not list(tmp_path.iterdir())


def test_a_card_without_the_vae_says_what_to_put_there(small):
    text = card(
        small[0], {"unet": "kerascv", "vae": "kerascv"}, ["cat", "dog"], "own", vae_here=False, foreign=False, steps=50,
        scale=2.0, facts={"UNet": "epoch 1"},
    )  # fmt: skip
    assert "in the place of `a-stable-diffusion`" in text and "[*unet.modules(), *vae.modules()]" in text
    assert "Without them it computes something else" in text and "pip install torch diffusers`" in text


# Low-rank updates


@pytest.fixture(scope="module")
def updates(epochs):
    """Epochs 2 and 3 of the UNet: low-rank updates of the attention, and of all layers."""
    backbone, models, *_, flags = epochs
    folder = Experiment(Path(flags[flags.index("--root") + 1]), "x", "digits").part_dir("dif")
    base, rng = backbone.weights_hash("unet", Path(flags[flags.index("--weights") + 1])), np.random.default_rng(1)
    for epoch, targets in ((2, "attention"), (3, "all")):
        pairs = {
            place: (rng.normal(0, 0.1, (*shape[:-1], 2)), rng.normal(0, 0.1, (2, shape[-1])))
            for place, shape in kernel_shapes(target_layers(models["unet"], targets)).items()
        }
        write_updates(epoch_path(folder, epoch), Facts(2, 3.0, targets, base), pairs)
    return folder


def exported_updates(flags, epoch, to, *more):
    args = export_weights.parse_args([*flags, "--dif_epoch", str(epoch), "--to", str(to), *more])
    return export_weights.export(args)


@pytest.mark.parametrize("epoch, modules", [(2, 8), (3, 40)])
def test_updates_alone_are_the_merged_unet_when_they_are_added_as_peft_does(small, updates, tmp_path, epoch, modules):
    *_, tensors, _, flags = small
    merged = exported_updates(flags, epoch, tmp_path / "merged")
    separate = exported_updates(flags, epoch, tmp_path / "separate", "--lora", "separate")
    assert not (separate / "unet").exists()
    found = load_file(separate / "pytorch_lora_weights.safetensors")
    whole = load_file(merged / "unet/diffusion_pytorch_model.safetensors")
    base = {names[1]: values[1] for names, values in tensors["unet"].items()}
    changed = [name for name in whole if not np.array_equal(whole[name], base[name])]
    assert {f"unet.{n.removesuffix('.weight')}.lora_{x}.weight" for n in changed for x in "AB"} == found.keys()
    assert len(changed) == modules
    for name in changed:
        a, b = (found[f"unet.{name.removesuffix('weight')}lora_{x}.weight"] for x in "AB")
        assert a.shape[0] == b.shape[1] == 2 and b.shape[0] == len(whole[name]) and a.ndim == b.ndim == whole[name].ndim
        # In PEFT B takes what A gives: matrices, or a kernel of one pixel after one of A's size; scaled by 1.
        added = (b.reshape(len(b), 2) @ a.reshape(2, -1)).reshape(whole[name].shape)
        assert np.abs(base[name] + added - whole[name]).max() < 1e-6 and np.abs(added).max() > 1e-2


def test_the_card_of_updates_names_their_base_and_how_they_are_loaded(small, updates, tmp_path):
    to = exported_updates(small[-1], 2, tmp_path / "to", "--lora", "separate", "--vae")
    text, base = (to / "README.md").read_text(), read_facts(epoch_path(updates, 2)).base
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    ast.parse(code)
    assert 'unet = UNet2DConditionModel.from_pretrained("a-stable-diffusion", subfolder="unet").eval()' in code
    assert 'unet.load_lora_adapter(folder, weight_name="pytorch_lora_weights.safetensors", prefix="unet")' in code
    assert f"whose file has the SHA-256 `{base}`" in text and 'pipe.load_lora_weights(".")' in text
    assert "pip install torch diffusers peft" in text and "| low-rank updates | rank 2, alpha 3, targets attention |" in text
    assert "module" not in code  # the base is diffusers'
    assert (to / "vae").is_dir() and not (to / "model_index.json").exists()  # no pipeline without a UNet
    # Merged into the same folder, nothing is left of it.
    merged = exported_updates(small[-1], 2, to, "--restart")
    assert {path.name for path in merged.iterdir() if path.name[0] != "."} == {
        "README.md", "class_embeddings.safetensors", "export.json", "log.txt", "scheduler", "unet"
    }  # fmt: skip


def test_updates_of_another_base_are_not_exported(small, updates, tmp_path):
    backbone, _, tensors, _, flags = small
    other = {part: {k: tuple(-a for a in v) for k, v in of_part.items()} for part, of_part in tensors.items()}
    place = foreign.write_folder(tmp_path / "other", other, heads=[2])
    flags = [str(place) if before == "--weights" else flag for before, flag in zip(["", *flags], flags)]
    for how in ("merged", "separate"):
        with pytest.raises(UserError, match=r"epoch2.weights.h5 holds low-rank updates of another pretrained UNet"):
            exported_updates(flags, 2, tmp_path / "to", "--lora", how)
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("epoch, held", [(0, "the pretrained UNet has none"), (1, r"\S+epoch1.weights.h5 holds a whole UNet")])
def test_what_has_no_updates_is_not_exported_as_such(small, tmp_path, epoch, held):
    with pytest.raises(UserError, match=rf"--lora separate is for an epoch \(--dif_epoch\) of low-rank updates: {held}"):
        exported_updates(small[-1], epoch, tmp_path / "to", "--lora", "separate")


def test_a_stable_diffusion_is_not_written_over(small, tmp_path):
    backbone, _, tensors, _, flags = small
    place = foreign.write_folder(tmp_path / "sd", tensors, heads=[2])
    (place / "log.txt").touch()  # as others have too
    with pytest.raises(UserError, match="holds something else than an export: log.txt, model_index.json, scheduler"):
        export_weights.plan(export_weights.parse_args([*flags, "--to", str(place)]))


def test_an_export_is_not_written_over_what_it_is_made_of(small, tmp_path):
    backbone, _, tensors, _, flags = small
    place = foreign.write_folder(tmp_path / "sd", tensors, heads=[2])
    (place / "export.json").touch()  # an earlier export
    for to in (place, tmp_path):
        with pytest.raises(UserError, match="holds the --weights that are exported from: name another folder"):
            export_weights.plan(export_weights.parse_args([*flags, "--weights", str(place), "--restart", "--to", str(to)]))
    assert (place / "unet").is_dir()


def test_an_export_that_was_stopped_is_made_again(small, tmp_path, monkeypatch):
    argv = [*small[-1], "--to", str(tmp_path / "to")]
    with monkeypatch.context() as patch:
        patch.setattr(export_weights, "write_card", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export_weights.export(export_weights.parse_args(argv))
    assert (tmp_path / "to" / BEGUN).exists() and not (tmp_path / "to/export.json").exists()
    export_weights.export(export_weights.parse_args(argv))
    assert not (tmp_path / "to" / BEGUN).exists() and (tmp_path / "to/export.json").exists()


def test_an_export_that_was_stopped_while_it_removes_an_earlier_one_is_not_finished(small, tmp_path, monkeypatch):
    argv = [*small[-1], "--to", str(tmp_path / "to")]
    export_weights.export(export_weights.parse_args(argv))
    with monkeypatch.context() as patch:
        patch.setattr(export_weights, "remove_left", lambda folder: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export_weights.export(export_weights.parse_args([*argv, "--restart"]))
    assert (tmp_path / "to/export.json").exists()
    assert export_weights.plan(export_weights.parse_args(argv)).done is None


def test_parts_that_are_not_exported_are_not_read(small, updates, tmp_path, monkeypatch):
    backbone, *_, flags = small
    for part, given in (("decoder", []), ("image_encoder", []), ("unet", ["--lora", "separate"])):
        monkeypatch.setattr(type(backbone), part, lambda *arguments, part=part: pytest.fail(f"{part} is not needed"))
        exported_updates(flags, 2, tmp_path / f"without {part}", *given)
