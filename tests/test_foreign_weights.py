"""Stable Diffusion as people hold it: safetensors of diffusers and of the original layout, and what is refused."""

import json
import re
import shutil
import struct
from functools import partial
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cli.flags import check_weights_flag
from Experiment.errors import UserError
from Models import weight_cards
from Models.backbones import BACKBONES
from Models.foreign_names import BLOCKS, named_variables
from Models.foreign_weights import foreign_weights, is_foreign
from Models.noise_schedule import STABLE_DIFFUSION
from Models.numerics import AS_PUBLISHED, DIFFUSERS, Following, let_follow
from Models.pretrained import pretrained_inputs
from Models.tensor_files import Tensors
from Models.weights import load_weights, save_weights, stored_following
from tests import foreign
from tests.foreign import PARTS, SCHEDULER, foreign_tensors, original_arrays, write_folder, write_original

METADATA = {"modelspec.prediction_type": "epsilon"}
SINGLE = "model.safetensors"


@pytest.fixture(scope="module")
def backbone():
    return foreign.small_backbone()


@pytest.fixture(scope="module")
def models(backbone):
    from Models.faster_layers import use_faster_layers

    return {part: use_faster_layers(backbone.build[part](backbone)) for part in PARTS}


@pytest.fixture(scope="module")
def tensors(models):
    return foreign_tensors(models)


@pytest.fixture(scope="module")
def folder(tensors, tmp_path_factory):
    """A good folder of diffusers; not to be changed."""
    return write_folder(tmp_path_factory.mktemp("sd"), tensors)


def in_our_order(array):
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def blank(model):
    for weight in model.weights:
        weight.assign(np.full(weight.shape, 7, "float32"))
    return model


# Names


def test_every_variable_has_names_of_its_own(models):
    counts = {}
    for part, model in models.items():
        named = named_variables(model, part, 2)
        assert len({one.variable.path for one in named}) == len(model.weights) == len(named)
        assert len({one.ldm for one in named}) == len({one.diffusers for one in named}) == len(named)
        counts[part] = len(named)
    assert counts == {"image_encoder": 70, "unet": 304, "decoder": 86}


def test_another_structure_has_no_names(models):
    with pytest.raises(ValueError, match="of the 304 variables of the unet|the unet has no"):
        named_variables(models["unet"], "unet", 3)
    with pytest.raises(ValueError, match="the decoder has no ResnetBlock number 7"):
        named_variables(models["image_encoder"], "decoder", 2)


@pytest.mark.parametrize("ours, ldm, diffusers", [
    ("ResBlock", "input_blocks.4.0", "down_blocks.1.resnets.0"), ("PaddedConv2D", "input_blocks.9.0.op", "down_blocks.2.downsamplers.0.conv"),
    ("SpatialTransformer", "output_blocks.5.1", "up_blocks.1.attentions.2"), ("Upsample", "output_blocks.2.1.conv", "up_blocks.0.upsamplers.0.conv"),
    ("Upsample", "output_blocks.8.2.conv", "up_blocks.2.upsamplers.0.conv"), ("SpatialTransformer", "middle_block.1", "mid_block.attentions.0"),
])  # fmt: skip
def test_blocks_of_the_real_unet(ours, ldm, diffusers):
    assert (ours, ldm, diffusers) in list(BLOCKS["unet"](4))


def test_the_decoder_is_numbered_from_both_ends():
    assert ("ResnetBlock", "decoder.up.3.block.0", "decoder.up_blocks.0.resnets.0") in list(BLOCKS["decoder"](4))
    assert ("PaddedConv2D", "decoder.up.1.upsample.conv", "decoder.up_blocks.2.upsamplers.0.conv") in list(BLOCKS["decoder"](4))  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_counts_of_the_real_networks(name):
    import keras

    with keras.StatelessScope(initialize_variables=False):  # the structure alone: no numbers
        built = {part: BACKBONES[name].build[part](BACKBONES[name]) for part in PARTS}
    counts = {part: len(named_variables(model, part)) for part, model in built.items()}
    assert counts == {"image_encoder": 108, "unet": 686, "decoder": 140}


# In


@pytest.mark.parametrize("how", [
    {}, {"shards": 3, "dtype": "float16"}, {"shards": 2, "index": False, "dtype": "bfloat16"}, {"old_names": True},
    {"single": "float32"}, {"single": "bfloat16"},
])  # fmt: skip
def test_every_layout_and_type_gives_the_same_numbers(how, backbone, models, tensors, tmp_path):
    import ml_dtypes

    how = {name: np.dtype(ml_dtypes.bfloat16) if value == "bfloat16" else value for name, value in how.items()}
    single = how.pop("single", None)
    place = write_original(tmp_path / SINGLE, tensors, single, METADATA) if single else write_folder(tmp_path, tensors, **how)
    source = foreign_weights(backbone, place)
    for part, model in models.items():
        filled = source.fill(blank(model), part)
        for one in named_variables(filled, part, 2):
            expected = in_our_order(tensors[part][one.ldm, one.diffusers][0])
            assert np.array_equal(one.variable.numpy(), expected), one.diffusers
        assert filled.following == Following(DIFFUSERS)


def test_kernels_of_one_pixel_and_matrices_are_each_others(backbone, models, tensors, tmp_path):
    other = dict(tensors["unet"])
    for names, (array, _) in tensors["unet"].items():
        if "proj_in.weight" in names[0]:
            other[names] = (array[:, :, 0, 0],) * 2
    place = write_folder(tmp_path, {**tensors, "unet": other})
    model = foreign_weights(backbone, place).fill(blank(models["unet"]), "unet")
    named = next(one for one in named_variables(model, "unet", 2) if "proj_in.weight" in one.ldm)
    assert np.array_equal(named.variable.numpy(), in_our_order(tensors["unet"][named.ldm, named.diffusers][0]))


@pytest.mark.parametrize("text, told", [
    ("linear_start: 0.00085\nlinear_end: 0.0120\ntimesteps: 1000\nscale_factor: 0.18215\nzero_snr: false", None),
    ("beta_schedule: cosine", "has beta_schedule cosine, where only linear"), ("beta_schedule: linear", None),
    ("linear_end: 0.02", "has linear_end 0.02, where only 0.012"), ("{scale_factor: 0.13025}", "has scale_factor 0.13025"),
    ("timesteps: many", "has timesteps many"), ("rescale_betas_zero_snr: True", "rescale_betas_zero_snr: only the schedule"),
])  # fmt: skip
def test_a_yaml_of_another_schedule_is_refused(text, told, backbone, tensors, tmp_path):
    source = foreign_weights(backbone, write_original(tmp_path / SINGLE, tensors, metadata=METADATA))
    (tmp_path / SINGLE).with_suffix(".yaml").write_text(text)
    if told is None:
        assert source.prediction_type() == "epsilon"
        return
    with pytest.raises(UserError, match=told):
        source.prediction_type()


LDM = "model:\n  target: ldm.models.diffusion.ddpm.LatentDiffusion\n"


@pytest.mark.parametrize("metadata, yaml, expected", [
    (None, 'model: {params: {"parameterization": "v"}}', "v_prediction"), (None, f'# parameterization: "v"\n{LDM}', "epsilon"),
    ({"modelspec.prediction_type": "v"}, None, "v_prediction"), (METADATA, 'parameterization: "v"', "epsilon"),
    (None, 'model:\n  params:\n    parameterization: "v"\n', "v_prediction"), (None, f"{LDM}  params: {{}}\n", "epsilon"),
    (None, "target: sgm.modules.diffusionmodules.denoiser_scaling.VScaling", "v_prediction"),
    (None, "target: sgm.modules.diffusionmodules.denoiser_scaling.EpsScaling", "epsilon"),
    ({"modelspec.predict_key": "v"}, None, "v_prediction"), ({"modelspec.predict_key": "epsilon"}, None, "epsilon"),
])  # fmt: skip
def test_what_a_single_file_predicts_is_read(metadata, yaml, expected, backbone, tensors, tmp_path):
    place = write_original(tmp_path / SINGLE, tensors, metadata=metadata)
    if yaml:
        (tmp_path / "model.yaml").write_text(yaml)
    assert foreign_weights(backbone, place).following("unet").prediction_type == expected
    assert foreign_weights(backbone, place).following("decoder").prediction_type == "epsilon"


def test_a_yaml_of_something_else_says_nothing_of_what_is_predicted(backbone, tensors, tmp_path):
    place = write_original(tmp_path / SINGLE, tensors)
    (tmp_path / "model.yaml").write_text("train:\n  lr: 1\n")
    with pytest.raises(UserError, match="does not say whether .*: nor does model.yaml: add a line parameterization: eps"):
        foreign_weights(backbone, place).check("unet")


def test_1x_without_a_word_predicts_noise(backbone, tensors, tmp_path):
    from dataclasses import replace

    first = replace(backbone, context_shape=(3, 768))
    assert foreign_weights(first, write_original(tmp_path / SINGLE, tensors)).prediction_type() == "epsilon"
    assert foreign_weights(first, write_folder(tmp_path / "d", tensors, scheduler=None)).prediction_type() == "epsilon"


# Numerics


def test_numbers_are_computed_as_they_were_trained(models, tensors):
    from scipy.special import erf

    from Models.faster_layers import all_layers

    unet, decoder = models["unet"], models["decoder"]
    geglu = next(layer for layer in all_layers(unet) if type(layer).__name__ == "GEGLU")
    x = np.random.default_rng(0).standard_normal((2, 4, geglu.dense.kernel.shape[0]), dtype="float32")
    value, gate = np.split(np.asarray(geglu.dense(x)), 2, axis=-1)
    exact = value * gate * (1 + erf(gate / np.sqrt(2))) / 2
    by_tanh = value * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))) / 2
    for following, expected, epsilon in ((Following(DIFFUSERS), exact, 1e-6), (AS_PUBLISHED, by_tanh, 1e-5)):
        let_follow(unet, following)
        let_follow(decoder, following)
        assert np.abs(np.asarray(geglu(x)) - expected).max() < 2e-6
        norms = {type(layer).__name__: layer.norm.epsilon for layer in all_layers(unet) if hasattr(layer, "norm")}
        assert norms == {"SpatialTransformer": epsilon}
        blocks = [layer for layer in all_layers(unet) if type(layer).__name__ == "ResBlock"]
        assert {block.entry_flow[0].epsilon for block in blocks} == {1e-5}
        assert {layer.epsilon for layer in all_layers(decoder) if hasattr(layer, "epsilon")} == {epsilon}
    assert np.abs(exact - by_tanh).max() > 1e-4


def test_an_epoch_file_says_what_it_follows(models, tmp_path):
    model, path = models["image_encoder"], tmp_path / "epoch1.weights.h5"
    for following in (AS_PUBLISHED, Following(DIFFUSERS), Following(DIFFUSERS, "v_prediction")):
        save_weights(let_follow(model, following), path)
        assert stored_following(path) == following
        with h5py.File(path) as file:
            assert dict(file.attrs) == {name: np.bytes_(value) for name, value in following.unusual.items()}
        load_weights(model, path)
    with h5py.File(path, "r+") as file:
        file.attrs["numerics"] = np.bytes_("of 2031")
    with pytest.raises(UserError, match="which this version does not know"):
        stored_following(path)


# Records and hashes


def test_weights_are_known_by_content_and_numerics(backbone, folder, tensors, models, tmp_path):
    inputs = pretrained_inputs(backbone, ("unet", "decoder"), folder)
    assert set(inputs) == {"unet", "decoder", "numerics"}
    assert inputs["numerics"] == {"unet": "diffusers", "decoder": "diffusers"}
    assert inputs["unet"] == weight_cards.file_hash(folder / "unet/diffusion_pytorch_model.safetensors")
    sharded = write_folder(tmp_path / "shards", tensors, shards=2)
    assert pretrained_inputs(backbone, ("unet",), sharded)["unet"] != inputs["unet"]
    v = write_folder(tmp_path / "v", tensors, scheduler={**SCHEDULER, "prediction_type": "v_prediction"})
    assert pretrained_inputs(backbone, ("unet",), v)["prediction_type"] == "v_prediction"
    save_weights(let_follow(models["unet"], Following(DIFFUSERS, "v_prediction")), tmp_path / "epoch1.weights.h5")
    after = pretrained_inputs(backbone, ("decoder",), folder, tmp_path / "epoch1.weights.h5")
    assert after == {"decoder": inputs["decoder"], "numerics": inputs["numerics"], "prediction_type": "v_prediction"}


def test_a_hash_is_computed_once(backbone, tensors, tmp_path, monkeypatch):
    place, computed = write_folder(tmp_path / "sd", tensors), []
    real = weight_cards.file_hash
    monkeypatch.setattr(weight_cards, "file_hash", lambda path: computed.append(path) or real(path))
    for _ in range(2):
        foreign_weights(backbone, place).hash("unet")
    file = place / "unet/diffusion_pytorch_model.safetensors"
    assert computed == [file] and weight_cards.card_path(file).exists()
    file.touch()
    foreign_weights(backbone, place).hash("unet")
    assert computed == [file, file]


def test_a_folder_that_can_only_be_read_has_its_hashes_elsewhere(backbone, tensors, tmp_path, monkeypatch):
    place, computed = write_folder(tmp_path / "sd", tensors), []
    real, write = weight_cards.file_hash, weight_cards.write_json

    def write_json(path, content):
        if path.is_relative_to(place):
            raise PermissionError(path)
        write(path, content)

    monkeypatch.setattr(weight_cards, "write_json", write_json)
    monkeypatch.setattr(weight_cards, "REPOSITORY", tmp_path / "project")
    monkeypatch.setattr(weight_cards, "file_hash", lambda path: computed.append(path) or real(path))
    hashes = {foreign_weights(backbone, place).hash("unet") for _ in range(2)}
    assert len(hashes) == len(computed) == 1
    assert len(list((tmp_path / "project/cache/hashes").glob("*.json"))) == 1
    assert not list(place.rglob("*.safetensors.json"))


def test_nowhere_to_keep_a_hash_is_no_error(backbone, tensors, tmp_path, monkeypatch):
    place = write_folder(tmp_path / "sd", tensors)

    def write_json(path, content):
        raise PermissionError(path)

    monkeypatch.setattr(weight_cards, "write_json", write_json)
    file = place / "unet/diffusion_pytorch_model.safetensors"
    assert foreign_weights(backbone, place).hash("unet") == weight_cards.file_hash(file)
    assert not list(place.rglob("*.safetensors.json"))


# Refused, in one line that says what it is


def change_config(part, **values):
    def change(folder):
        path = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def change_tensors(change, part="unet"):
    def changed(folder):
        path = folder / part / "diffusion_pytorch_model.safetensors"
        arrays = load_file(path)
        change(arrays)
        save_file(arrays, path)

    return changed


def rename(old, new):
    return lambda folder: (folder / old).rename(folder / new)


KEY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def two_sets(*names):
    """Change a folder: its UNet is a copy under each of the names."""

    def change(folder):
        file = folder / "unet/diffusion_pytorch_model.safetensors"
        for name in names:
            shutil.copy(file, file.with_name(f"{name}.safetensors"))
        file.unlink()

    return change


FOLDERS = [
    (change_config("unet", in_channels=9), "is a model for inpainting: its UNet takes 9 channels, not 4"),
    (change_config("unet", in_channels="nine"), "is another kind of model: its UNet takes nine channels"),
    (change_config("unet", cross_attention_dim=2048, addition_embed_type="text_time"), r"is Stable Diffusion XL \(context width 2048\), not --backbone small"),
    (change_config("unet", cross_attention_dim=1024), r"is Stable Diffusion 2.x \(context width 1024\), not --backbone small"),
    (change_config("unet", cross_attention_dim=[8, {}]), "is another model"),
    (change_config("unet", attention_head_dim=8), r"has 8 attention heads \(attention_head_dim\), where \[2, 4\]"),
    (change_config("unet", norm_eps=1e-3), "has norm_eps 0.001, where only 1e-05 is computed here"),
    (change_config("unet", time_cond_proj_dim=256), "has time_cond_proj_dim 256"),
    (change_config("unet", _class_name="ControlNetModel"), "has _class_name 'ControlNetModel', where only 'UNet2DConditionModel'"),
    (change_config("scheduler", prediction_type="sample"), "the prediction type is 'sample', not epsilon or v_prediction"),
    (change_config("scheduler", beta_schedule="linear"), "has beta_schedule 'linear': only the schedule of Stable Diffusion"),
    (change_config("scheduler", rescale_betas_zero_snr=True), "has rescale_betas_zero_snr True"),
    (rename("scheduler", "planner"), "there is no .*scheduler_config.json, which says whether the UNet predicts noise"),
    (rename("unet", "transformer"), r"there is no unet/ in .*; it has a transformer/: Stable Diffusion 3"),
    (rename("unet/config.json", "unet/conf.json"), "there is no config.json in"),
    (rename("unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.bin"),
     "there are no safetensors in .*unet but diffusion_pytorch_model.bin: a pickle can run code"),
    (rename("unet/diffusion_pytorch_model.safetensors", "unet/model-00001-of-00002.safetensors"), "holds only model-00001-of-00002"),
    (two_sets("model.fp16-00001-of-00002", "model.non_ema-00002-of-00002"), "leave the one that is meant, or all shards of it"),
    (two_sets("model-00001-of-00003", "model-00003-of-00003"), "shards are missing, or there are some of another set"),
    (lambda folder: (folder / "unet/config.json").write_text("{"), "config.json is not readable JSON"),
    (change_tensors(lambda a: a.pop(f"{KEY}.weight")), rf"the unet in .* lacks 1 tensors \({KEY}.weight\)"),
    (change_tensors(lambda a: a.update({"more.weight": np.ones(2, "float32")})), r"has 1 tensors that it does not know \(more.weight\)"),
    (change_tensors(lambda a: a.update({f"{KEY}.weight": np.ones((32, 31), "float32")})), rf"the tensor {KEY}.weight has the shape \(32, 31\), not \(32, 32\)"),
    (change_tensors(lambda a: a.update({f"{KEY}.weight": np.ones((32, 32), "int32")})), f"the tensor {KEY}.weight is of type I32: F32, F16, BF16 are read"),
    (change_tensors(lambda a: a.update({f"{KEY}.weight": np.full((32, 32), np.nan, "float32")})), f"the tensor {KEY}.weight is not finite"),
    (change_tensors(lambda a: a.update({f"{KEY}.lora_A.weight": np.ones((4, 32), "float32")})), "unet holds a LoRA, changes of a model and not one"),
]  # fmt: skip


@pytest.mark.parametrize("change, message", FOLDERS, ids=[message[:40] for _, message in FOLDERS])
def test_refused_folders(change, message, backbone, models, tensors, tmp_path):
    place = write_folder(tmp_path / "sd", tensors)
    change(place)
    model = blank(models["unet"])
    with pytest.raises(UserError, match=message) as refused:
        source = foreign_weights(backbone, place)
        source.check("unet")
        source.fill(model, "unet")
    assert "\n" not in str(refused.value)
    if "type I32" not in message and "finite" not in message:  # what only the numbers themselves tell
        assert all((weight.numpy() == 7).all() for weight in model.weights)


@pytest.mark.parametrize("change, message", [
    (change_config("vae", scaling_factor=0.13025), "has scaling_factor 0.13025, where only 0.18215"),
    (change_config("vae", latent_channels=16), "has latent_channels 16"), (rename("vae", "vae_of_another"), "there is no vae/ in"),
    (change_tensors(lambda a: a.pop("quant_conv.bias"), "vae"), r"the image_encoder in .* lacks 1 tensors \(quant_conv.bias\)"),
    (change_tensors(lambda a: a.update({"loss.logvar": np.ones(1, "float32")}), "vae"), r"does not know \(loss.logvar\)"),
])  # fmt: skip
def test_refused_vaes(change, message, backbone, models, tensors, tmp_path):
    place = write_folder(tmp_path / "sd", tensors)
    change(place)
    with pytest.raises(UserError, match=message):
        foreign_weights(backbone, place).check("image_encoder")
        foreign_weights(backbone, place).fill(models["image_encoder"], "image_encoder")


def test_of_several_files_the_plain_one_is_read(backbone, tensors, tmp_path):
    place = write_folder(tmp_path / "sd", tensors)
    plain = place / "unet/diffusion_pytorch_model.safetensors"
    save_file({"x": np.ones(2)}, place / "unet/diffusion_pytorch_model.fp16.safetensors")
    assert foreign_weights(backbone, place).files("unet") == [plain]
    index = write_folder(tmp_path / "later", tensors, shards=2) / "unet"
    for file in index.iterdir():
        if file.name != "config.json":
            file.rename(place / "unet" / file.name)
    assert len(foreign_weights(backbone, place).files("unet")) == 2  # which a later save has left, as diffusers reads it
    one, other = (place / "unet").glob("*-of-*")
    one.unlink()
    with pytest.raises(UserError, match="which is missing"):  # half of a download, not an old save
        foreign_weights(backbone, place).files("unet")
    other.unlink()
    assert foreign_weights(backbone, place).files("unet") == [plain]
    plain.rename(place / "unet/diffusion_pytorch_model.non_ema.safetensors")
    next((place / "unet").glob("*.index.json")).unlink()
    with pytest.raises(UserError, match="holds .*fp16.safetensors, .*non_ema.safetensors: leave the one that is meant"):
        foreign_weights(backbone, place).files("unet")


@pytest.mark.parametrize("content, message", [
    ({"weight_map": {"a": "../../secret.safetensors"}}, "is no index of shards beside it"), ({"weight_map": []}, "is no index"), ({"weight_map": {"a": {}}}, "is no index"),
    ({"weight_map": {"a": "gone.safetensors"}}, "names gone.safetensors, which is missing"),
])  # fmt: skip
def test_refused_indices(content, message, backbone, tensors, tmp_path):
    place = write_folder(tmp_path / "sd", tensors, shards=2)
    (place / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        foreign_weights(backbone, place).check("unet")


def test_a_tensor_in_two_shards_is_refused(backbone, tensors, tmp_path):
    place = write_folder(tmp_path / "sd", tensors, shards=2)
    one, two = sorted((place / "unet").glob("*-of-*"))
    save_file(load_file(two) | dict([next(iter(load_file(one).items()))]), two)
    with pytest.raises(UserError, match="the tensor .* is in diffusion_pytorch_model-00001-of-00002.safetensors too"):
        foreign_weights(backbone, place).check("unet")


UNET = "model.diffusion_model."
FILES = [
    ({"lora_unet_down_blocks_0.lora_down.weight": (4, 8)}, "is a LoRA, changes of a model and not one"),
    ({"unet.x.lora_A.weight": (4, 8)}, "is a LoRA"),
    ({"model.diffusion_model.joint_blocks.0.x": (4, 8)}, "is Stable Diffusion 3"), ({"double_blocks.0.x": (2, 2)}, "is a Flux model"),
    ({f"{UNET}label_emb.0.0.x": (2, 2), f"{UNET}input_blocks.0.0.weight": (3, 4, 3, 3)}, "is Stable Diffusion XL"),
    ({"control_model.x": (2, 2)}, "is a ControlNet"), ({"text_model.encoder.x": (2, 2)}, "is a text encoder, which is not needed"),
    ({"encoder.block.0.layer.0.x": (2, 2)}, "is a text encoder, which is not needed"),
    ({"down_blocks.0.x": (2, 2)}, "is a UNet in diffusers' names without the rest"), ({"decoder.conv_in.weight": (2, 2)}, "is a VAE without a UNet"),
    ({"emb_params": (2, 768)}, "is a textual inversion"), ({"classifier.weight": (2, 2)}, "is no Stable Diffusion: its tensors are classifier.weight"),
    ({}, "is no Stable Diffusion: its tensors are none"),
    ({f"{UNET}input_blocks.0.0.weight": (32, 9, 3, 3)}, "is a model for inpainting: its UNet takes 9 channels"),
    ({f"{UNET}input_blocks.0.0.weight": (32, 5, 3, 3)}, "is a model for depth"),
    ({f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (32, 768)}, r"is Stable Diffusion 1.x \(context width 768\), not --backbone small"),
    ({f"{UNET}time_embed.0.weight": (2, 2), "v_pred": (), "mark": ()}, r"has 1 tensors that Stable Diffusion does not \(mark\)"),
    ({f"{UNET}time_embed.0.weight": (2, 2), "v_pred": (), "ztsnr": ()}, "is marked ztsnr: only the schedule of Stable Diffusion"),
    ({"unet.x.base_layer.weight": (4, 8), "unet.x.lora_A.default_0.weight": (4, 8)}, "whose LoRA is still attached .call unload_lora_weights"),
    ({f"{UNET}time_embed.0.weight": (2, 2), "scale_factor": (3,)}, "scales latents by 1, 1, 1, where only 0.18215"),
]  # fmt: skip


@pytest.mark.parametrize("shapes, message", FILES, ids=[message[:40] for _, message in FILES])
def test_refused_files(shapes, message, backbone, tmp_path):
    save_file({name: np.ones(shape, "float32") for name, shape in shapes.items()}, tmp_path / SINGLE)
    with pytest.raises(UserError, match=message):
        foreign_weights(backbone, tmp_path / SINGLE).check("unet")


def test_another_noise_schedule_is_refused(backbone, tensors, tmp_path):
    arrays = original_arrays(tensors) | {"alphas_cumprod": np.linspace(1, 0, 1000, dtype="float32")}
    save_file(arrays, tmp_path / SINGLE, METADATA)
    with pytest.raises(UserError, match="was trained with another noise schedule"):
        foreign_weights(backbone, tmp_path / SINGLE).check("unet")


def test_the_own_noise_schedule_rounded_to_bfloat16_is_read(backbone, tensors, tmp_path):
    """So are the buffers of 2.x in the layout of Stability's later code, and a text encoder by its name there."""
    own = STABLE_DIFFUSION.alphas_cumprod.astype("bfloat16")
    others = {"conditioner.embedders.0.model.ln_final.weight": own[:4], "denoiser.sigmas": own}
    save_file(original_arrays(tensors) | {"alphas_cumprod": own, **others}, tmp_path / SINGLE, METADATA)
    foreign_weights(backbone, tmp_path / SINGLE).check("unet")


@pytest.mark.parametrize("length", [316, 640, 1152])
def test_a_header_whose_length_begins_like_another_kind_of_file_is_read(length, tmp_path):
    """`<`, and the two first bytes of pickles."""
    empty = len(serialized(np.zeros(2, "float32"), ""))
    start = serialized(np.zeros(2, "float32"), "x" * (length - empty))
    (tmp_path / SINGLE).write_bytes(len(start).to_bytes(8, "little") + start + bytes(8))
    assert len(start) == length and Tensors([tmp_path / SINGLE]).shapes == {"a": (2,)}


def serialized(array, note):
    """The header of a file with one tensor `a`, and a note in its metadata."""
    about = {"dtype": "F32", "shape": array.shape, "data_offsets": [0, array.nbytes]}
    return json.dumps({"__metadata__": {"note": note}, "a": about}).encode()


def test_a_link_keeps_what_lies_beside_it(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "abc").touch()
    (tmp_path / SINGLE).symlink_to(tmp_path / "blobs" / "abc")
    args = SimpleNamespace(weights_dir=tmp_path / "x" / ".." / SINGLE)
    check_weights_flag(None, args)
    assert args.weights_dir == tmp_path / SINGLE


def test_a_file_without_the_part_is_refused_before_a_network_is_built(backbone, tensors, tmp_path):
    arrays = {name: array for name, array in original_arrays(tensors).items() if name.startswith(UNET)}
    save_file(arrays, tmp_path / SINGLE, METADATA)
    with pytest.raises(UserError, match="holds nothing of the decoder"):
        foreign_weights(backbone, tmp_path / SINGLE).check("decoder")


def test_a_file_that_does_not_say_what_it_predicts_is_refused(backbone, tensors, tmp_path):
    write_original(tmp_path / SINGLE, tensors)
    with pytest.raises(UserError, match="does not say whether its UNet predicts noise .* as model.yaml"):
        foreign_weights(backbone, tmp_path / SINGLE).check("unet")


@pytest.mark.parametrize("name, content, message", [
    ("sd.ckpt", b"PK\x03\x04rest", "is a pickle of PyTorch, .*: a pickle can run code when it is read, so none is: convert it"),
    ("sd.safetensors", b"PK\x03\x04rest", "is a pickle of PyTorch"), ("sd.bin", b"any", "is a pickle by its name"),
    ("sd.pt", b"\x80\x02}", "is a pickle: "), ("sd.h5", b"\x89HDF\r\n\x1a\n", "is an HDF5 file; weights are read from"),
    ("sd.safetensors", b"version https://git-lfs.github.com/spec/v1", "is a Git LFS pointer.*git lfs pull"),
    ("sd.safetensors", b"<html>", "is a web page"), ("sd.safetensors", b"", "is no sound safetensors file: header too small. Is it whole"),
    ("sd.gguf", b"GGUF\x03", "is a GGUF file"),
])  # fmt: skip
def test_refused_kinds_of_file(name, content, message, backbone, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert is_foreign(tmp_path / name)
    with pytest.raises(UserError, match=message):
        foreign_weights(backbone, tmp_path / name).check("unet")


def header(tensors, size=None):
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text


def tensor(begin, end, kind="F32", shape=(2,)):
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("content, message", [
    (header({}, 2**40), "header too large"), (header({}, 2**63), "header too large"),
    (header({"a": tensor(0, 8), "b": tensor(4, 12)}) + bytes(12), "invalid offset for tensor"),
    (header({"a": tensor(0, 8)}) + bytes(4), "file not fully covered"), (header({"a": tensor(0, 8)}) + bytes(99), "not fully covered"),
    (header({"a": tensor(0, 8, "F99")}) + bytes(8), "unknown variant"), (header({"a": tensor(0, 8, shape=(2**40, 2**40))}) + bytes(8), "overflow"),
    (struct.pack("<Q", 50000) + b'{"a":' * 10000, "recursion limit"), (header({"a": [1]}), "invalid type"),
])  # fmt: skip
def test_hostile_files(content, message, backbone, tmp_path):
    (tmp_path / SINGLE).write_bytes(content)
    with pytest.raises(UserError, match=f"is no sound safetensors file: .*{message}"):
        foreign_weights(backbone, tmp_path / SINGLE).check("unet")


def test_mini_has_only_its_own_weights(folder):
    with pytest.raises(UserError, match="--backbone mini has no weights but its own"):
        BACKBONES["mini"].weights_hash("unet", folder)


# Through the stages


@pytest.fixture
def small(monkeypatch):
    """A backbone of one level, which is built in seconds, and random numbers for it."""
    backbone = foreign.small_backbone(levels=1)
    monkeypatch.setitem(BACKBONES, "small", backbone)
    return backbone, foreign_tensors({part: backbone.build[part](backbone) for part in PARTS}, levels=1)


def test_every_stage_follows_the_weights(small, tmp_path):
    """v-prediction of a diffusers folder: trained, kept in the epochs, sampled; other weights are refused."""
    import generate_dataset
    import hyp_opt
    import SD_adapting
    from Search.context import prepare

    backbone, tensors = small
    v = {**SCHEDULER, "prediction_type": "v_prediction"}
    place = write_folder(tmp_path / "sd", tensors, scheduler=v, heads=[2])
    negative = {part: {k: tuple(-a for a in v) for k, v in of_part.items()} for part, of_part in tensors.items()}
    other = write_folder(tmp_path / "other", negative, heads=[2])
    flags = [
        "--dataset",
        "digits",
        "--backbone",
        "small",
        "--exp",
        "x",
        "--root",
        str(tmp_path / "out"),
        "--precision",
        "float32",
    ]
    own = [*flags, "--weights", str(place)]
    made = SD_adapting.adapt(SD_adapting.parse_args([*own, "--train_model", "dif"]))
    inputs = json.loads((made / "training.json").read_text())["inputs"]["weights"]
    assert inputs["prediction_type"] == "v_prediction"
    assert inputs["numerics"] == {"image_encoder": "diffusers", "unet": "diffusers"}
    with pytest.raises(UserError, match=r"other inputs: weights.image_encoder .*weights.unet"):
        SD_adapting.plan(SD_adapting.parse_args([*flags, "--weights", str(other), "--train_model", "dif"]))
    assert stored_following(made / "epoch1.weights.h5") == Following(DIFFUSERS, "v_prediction")
    told = place / "scheduler/scheduler_config.json"
    before = told.read_text()
    told.write_text(json.dumps(SCHEDULER))  # the weights and their hash stay
    with pytest.raises(UserError, match="other inputs: predicts v_prediction .now epsilon"):
        SD_adapting.plan(SD_adapting.parse_args([*own, "--train_model", "dif"]))
    told.write_text(before)

    # The UNet that an epoch replaces is not looked at: it need not even be there.
    for name in ("unet", "scheduler"):
        (place / name).rename(tmp_path / name)
    dif = ["--enc_epoch", "0", "--dif_epoch", "1", "--inf_steps", "2", "--ugs", "1.5", "--img_total", "4"]
    made = generate_dataset.generate(generate_dataset.parse_args([*own, *dif]))
    settings = json.loads((made / "generation.json").read_text())["weights"]
    assert settings["prediction_type"] == "v_prediction" and set(settings) == {"decoder", "numerics", "prediction_type", "dif"}
    args = hyp_opt.parse_args([*own, "--train_model", "dif", "--num_imgs", "20", "--batch_size", "10"])
    known = hyp_opt.plan(args)
    assert known.inputs["weights"]["decoder"] == settings["decoder"]
    sampler = prepare(args, known).sampler
    assert sampler.prediction.__name__ == "Velocity" and sampler.unet.following.numerics == DIFFUSERS


@pytest.mark.parametrize("before, now, foreign, differs", [
    # A study of an earlier version names pretrained weights only where they were foreign.
    ({}, "a", False, False), ({}, "a", True, True),
    ({"weights.unet": "a"}, "b", False, True), ({"weights.unet": "a"}, "b", True, True), ({"weights.unet": "a"}, "a", True, False),
])  # fmt: skip
def test_a_study_knows_its_pretrained_weights(tmp_path, before, now, foreign, differs):
    from argparse import Namespace

    from Search import inputs

    (tmp_path / "file.safetensors").touch()

    class Study:
        study_name = "s"
        user_attrs = {"settings": {"backbone": "sd1", "data.val": "v", "last_epoch": 1, **before}}

        def get_trials(self, deepcopy):
            return [None]

    args = Namespace(**dict.fromkeys(inputs.SETTINGS), **dict.fromkeys(inputs.PLACES), train_model="enc")
    args.backbone, args.weights_dir = "sd1", tmp_path / "file.safetensors" if foreign else tmp_path
    nested = {"data": {"val": "v"}, "weights": {"unet": now}}
    known = Namespace(hashes={"1": "h"}, inputs=nested, address="sqlite://", adopted={})
    if differs:
        with pytest.raises(UserError, match="weights.unet"):
            inputs.claim_study(Study(), args, known, "float32")
    else:
        inputs.claim_study(Study(), args, known, "float32")


def test_the_search_for_a_place(tmp_path, capsys):
    import generate_dataset

    with pytest.raises(SystemExit):
        generate_dataset.parse_args(["--img_total", "1", "--weights", str(tmp_path / "nowhere")])
    assert re.search(r"argument --weights/--weights_dir: there is no folder or file \S*nowhere", capsys.readouterr().err)
    (tmp_path / SINGLE).touch()
    with pytest.raises(
        UserError, match=rf"there is no kcv_decoder.h5 in \S+ \(to use {SINGLE}, give its path\): get it from https"
    ):
        BACKBONES["sd1"].decoder(tmp_path)


@pytest.mark.parametrize("files, remark", [
    (["config.json", "model.safetensors"], "it looks like a part of diffusers' folder: give the one that holds unet/ and vae/"),
    (["sd-v1-4.ckpt"], "sd-v1-4.ckpt is a pickle by its name, and none is read: convert it to .safetensors"),
    (["pytorch_lora_weights.safetensors"], "pytorch_lora_weights.safetensors looks like a LoRA, which is not read"),
])  # fmt: skip
def test_a_folder_of_something_else(files, remark, tmp_path):
    for name in files:
        (tmp_path / name).touch()
    for refuse in (BACKBONES["sd1"].unet, partial(BACKBONES["sd1"].weights_hash, "unet")):  # before and when it is read
        with pytest.raises(UserError, match=rf"there is no kcv_diffusion_model.h5 in \S+ \({remark}"):
            refuse(tmp_path)


def test_a_text_encoder_alone_is_no_model(backbone, tmp_path):
    (tmp_path / "text_encoder").mkdir()
    assert is_foreign(tmp_path)
    with pytest.raises(UserError, match="there is no unet/ in .*; models of the shape of"):
        foreign_weights(backbone, tmp_path).check("unet")
