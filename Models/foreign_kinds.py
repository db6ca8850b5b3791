"""Which Stable Diffusion a foreign model is, told from its configuration and from names and shapes; others are refused."""

import re

from Experiment.errors import UserError
from Experiment.files import read_json
from Models.noise_schedule import BETA_END, BETA_START, STABLE_DIFFUSION, TIMESTEPS

WIDTH_OF = {"768": "Stable Diffusion 1.x (context width 768)", "1024": "Stable Diffusion 2.x (context width 1024)",
            "2048": "Stable Diffusion XL (context width 2048)"}  # fmt: skip
FITS = "models of the shape of Stable Diffusion 1.x fit --backbone sd1, of 2.x --backbone sd2"
LATENTS, LATENT_SCALE = 4, 0.18215
CHANNELS_OF = {
    "9": "a model for inpainting", "8": "a model for editing (InstructPix2Pix)", "7": "an upscaler", "5": "a model for depth"
}  # fmt: skip

# Parts of tensors' names that only one kind of file has, in the order in which they are looked for.
MARKS = {
    r"\.base_layer\.": "a model whose LoRA is still attached (call unload_lora_weights() after fuse_lora(), and save it again)",
    r"lora_(up|down|A|B)\b|\blora_linear_layer\.|lora\.(up|down)\b|\bhada_w|\blokr_": "a LoRA, changes of a model and not one",
    r"\bcontrol_model\.|controlnet_cond_embedding|\binput_hint_block\.": "a ControlNet",
    r"\b(double_blocks|single_transformer_blocks)\.": "a Flux model",
    r"\bjoint_blocks\.|\bjoint_transformer_blocks\.": "Stable Diffusion 3",
    r"^(noise_augmentor|embedder)\.": "Stable Diffusion unCLIP, which is told images",
    r"\bmodel\.diffusion_model\.label_emb\.|\badd_embedding\.": "Stable Diffusion XL, or of its kind",
    r"\btime_embedding\.cond_proj\.|\btime_embed\.cond_proj\.": "a distilled model that is told the guidance scale",
}
WITHOUT_UNET = {
    r"\btext_model\.|\btransformer\.resblocks\.|^encoder\.block\.|^shared\.": "a text encoder, which is not needed",
    r"^(down_blocks|up_blocks|mid_block)\.": "a UNet in diffusers' names without the rest: give the folder that holds unet/ and vae/",
    r"^(first_stage_model\.)?(encoder|decoder)\.": "a VAE without a UNet",
    r"^emb_params$|^string_to_param": "a textual inversion",
}  # fmt: skip

# What diffusers takes for a key that a configuration lacks: also what is computed here.
UNET_CONFIG = {
    "_class_name": "UNet2DConditionModel", "act_fn": "silu", "norm_num_groups": 32, "norm_eps": 1e-5,
    "center_input_sample": False, "flip_sin_to_cos": True, "freq_shift": 0, "downsample_padding": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn", "mid_block_scale_factor": 1, "only_cross_attention": False,
    "mid_block_only_cross_attention": None, "dual_cross_attention": False, "class_embed_type": None,
    "num_class_embeds": None, "addition_embed_type": None, "encoder_hid_dim": None, "encoder_hid_dim_type": None,
    "resnet_time_scale_shift": "default", "resnet_skip_time_act": False, "resnet_out_scale_factor": 1,
    "time_embedding_type": "positional", "time_embedding_act_fn": None, "timestep_post_act": None,
    "time_cond_proj_dim": None, "cross_attention_norm": None, "attention_type": "default",
    "transformer_layers_per_block": 1,
}  # fmt: skip
VAE_CONFIG = {
    "_class_name": "AutoencoderKL", "act_fn": "silu", "norm_num_groups": 32, "latent_channels": LATENTS,
    "scaling_factor": LATENT_SCALE, "shift_factor": None, "latents_mean": None, "latents_std": None,
    "use_quant_conv": True, "use_post_quant_conv": True, "mid_block_add_attention": True,
}  # fmt: skip
SCHEDULE = {
    "beta_start": BETA_START, "beta_end": BETA_END, "beta_schedule": "scaled_linear",
    "num_train_timesteps": TIMESTEPS, "trained_betas": None, "rescale_betas_zero_snr": False,
}  # fmt: skip
ROUNDING = 5e-3  # of cumulative alphas, as bfloat16 has them; zero terminal SNR differs by 0.035, linear betas by 0.13
SCHEDULE_DEFAULTS = SCHEDULE | {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
PREDICTIONS = {"epsilon": "epsilon", "eps": "epsilon", "v_prediction": "v_prediction", "v": "v_prediction"}


def first_mark(marks, names):
    """The meaning of the first of some marks that one of the names has; None if none has any."""
    for mark, meaning in marks.items():
        if any(re.search(mark, name) for name in names):
            return meaning
    return None


def refuse_other_files(path, shapes, prefix):
    """Refuse a single file that holds something else than a Stable Diffusion in the original layout.

    Args:
        path: The file, for the message.
        shapes: {name: shape} of its tensors.
        prefix: Of the names of a UNet's tensors.

    Raises:
        UserError: It is something else; it says what, as far as the names tell.
    """
    what = first_mark(MARKS, shapes)
    if not what and not any(name.startswith(prefix) for name in shapes):
        shown = ", ".join(sorted(shapes)[:3]) or "none"
        what = first_mark(WITHOUT_UNET, shapes) or f"no Stable Diffusion: its tensors are {shown}"
    if what:
        raise UserError(f"{path} is {what}; {FITS}.")


def refuse_other_shapes(path, backbone, first_kernel, context_kernel):
    """Refuse a UNet of another kind, or of another backbone (UserError).

    Args:
        path: Of its file, for the message.
        backbone: The `Backbone` that it is to be.
        first_kernel: Shape of its first kernel, or None.
        context_kernel: Shape of a matrix that takes the context, or None.
    """
    channels = first_kernel[1] if first_kernel and len(first_kernel) == 4 else None
    width = context_kernel[1] if context_kernel and len(context_kernel) == 2 else None
    if channels not in (LATENTS, None):
        kind = CHANNELS_OF.get(str(channels), "another kind of model")
        raise UserError(f"{path} is {kind}: its UNet takes {channels} channels, not {LATENTS}; {FITS}.")
    if width not in (backbone.context_shape[1], None):
        kind = WIDTH_OF.get(str(width), f"another model (context width {width})")
        raise UserError(f"{path} is {kind}, not --backbone {backbone.name}; {FITS}.")


def refuse_other_config(path, config, expected):
    """Refuse a configuration under which diffusers would compute something else (UserError).

    Args:
        path: Of the configuration, for the message.
        config: Its content.
        expected: {key: value}; a key that is not there has this value.
    """
    for key, value in expected.items():
        found = config.get(key, value)
        if found != value and (found or value) and not same_for_all_levels(found, value):
            raise UserError(f"{path} has {key} {found!r}, where only {value!r} is computed here; {FITS}.")


def same_for_all_levels(found, value):
    return isinstance(found, list) and bool(found) and all(one == value for one in found)


def refuse_other_heads(path, config, heads):
    """Refuse other numbers of attention heads, which no shape tells (UserError).

    Args:
        path, config: As above.
        heads: Of each level, from the finest.
    """
    found = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
    if (list(found) if isinstance(found, list) else [found] * len(heads)) != list(heads):
        raise UserError(f"{path} has {found} attention heads (attention_head_dim), where {list(heads)} are computed here.")


def prediction_of_scheduler(path):
    """What the UNet of a diffusers model predicts, from its scheduler's configuration.

    Raises:
        UserError: It was trained with another noise schedule, or predicts something else.
    """
    config = SCHEDULE_DEFAULTS | read_json(path)
    for key, value in SCHEDULE.items():
        if config[key] != value:
            raise UserError(f"{path} has {key} {config[key]!r}: only the schedule of Stable Diffusion is computed ({value!r}).")
    return known_prediction(path, config.get("prediction_type", "epsilon"))


def known_prediction(path, name):
    if not isinstance(name, str) or name not in PREDICTIONS:
        raise UserError(f"{path}: the prediction type is {str(name)[:40]!r}, not epsilon or v_prediction.")
    return PREDICTIONS[name]


# In YAML, alone in its line or in braces; comments aside.
SETTING = r"^[^#\n]*\b{}[\"']?\s*:\s*[\"']?([\w.+-]+)"
SETTINGS = {"linear_start": BETA_START, "linear_end": BETA_END, "timesteps": TIMESTEPS, "scale_factor": LATENT_SCALE}
# The original code of 1.x and 2.x predicts the noise unless its .yaml says otherwise; that of Stability's later repository names
# a scaling.
ORIGINAL_CODE = r"^[^#\n]*\bldm\.models\.diffusion\b"
SCALING, SCALINGS = r"^[^#\n]*\bdenoiser_scaling\.(\w+)", {"EpsScaling": "epsilon", "VScaling": "v"}
TOLD_BY = ("modelspec.prediction_type", "modelspec.predict_key")  # the latter is ComfyUI's
V_MARK, ZERO_SNR_MARK = "v_pred", "ztsnr"  # empty tensors of ComfyUI's
SCHEDULE_OF_YAML = "beta_schedule", "linear"  # linear in the square roots, as in diffusers "scaled_linear"
ZERO_SNR = ("zero_snr", "rescale_betas_zero_snr", "ztsnr")


def refuse_other_settings(path, text):
    """Refuse a .yaml under which the original code computes with another schedule or scale of the latents (UserError)."""
    names = (*SETTINGS, *ZERO_SNR, SCHEDULE_OF_YAML[0])
    found = {name: re.search(SETTING.format(name), text, re.MULTILINE) for name in names}
    name, value = SCHEDULE_OF_YAML
    if found[name] and found[name][1] != value:
        raise UserError(f"{path} has {name} {found[name][1]}, where only {value} is computed here.")
    for name, value in SETTINGS.items():
        if found[name] and not same_number(found[name][1], value):
            raise UserError(f"{path} has {name} {found[name][1]}, where only {value:g} is computed here.")
    for name in ZERO_SNR:
        if found[name] and found[name][1].lower() in ("true", "1", "yes", "on"):
            raise UserError(f"{path} has {name}: only the schedule of Stable Diffusion is computed.")


def same_number(text, value):
    try:
        return abs(float(text) - value) <= 1e-6 * value
    except ValueError:
        return False


def prediction_of_file(path, metadata, width, v_marked=False):
    """What the UNet of a single file predicts: from its metadata, a mark in it, or a .yaml of the same name beside it.

    Without either a 1.x is taken to predict the noise, as all published ones do; of 2.x there are both kinds.

    Args:
        path: The file.
        metadata: Its metadata.
        width: Of its context.
        v_marked: Whether it holds ComfyUI's mark of a UNet that predicts v.

    Raises:
        UserError: It cannot be told.
    """
    config = path.with_suffix(".yaml")
    text = config.read_text(errors="replace") if config.is_file() else None
    refuse_other_settings(config, text or "")
    if told := [metadata[name] for name in TOLD_BY if name in metadata]:
        return known_prediction(path, told[0])
    if v_marked:
        return known_prediction(path, "v")
    if text is not None:
        if found := re.search(SETTING.format("parameterization"), text, re.MULTILINE):
            return known_prediction(config, found[1])
        if found := re.search(SCALING, text, re.MULTILINE):
            return known_prediction(config, SCALINGS.get(found[1], found[1]))
    if width == 768 or text and re.search(ORIGINAL_CODE, text, re.MULTILINE):
        return "epsilon"
    how = f"put the model's .yaml beside it as {config.name}, or give diffusers' folder"
    if text is not None:
        how = f"nor does {config.name}: add a line parameterization: eps, or parameterization: v"
    raise UserError(f"{path} does not say whether its UNet predicts noise (2.x-base) or v (2.x at 768 px): {how}.")


def refuse_other_scale(path, scale):
    """Refuse a single file whose latents were scaled by another factor, its buffer () (UserError)."""
    if scale.size != 1 or abs(scale.item() - LATENT_SCALE) > ROUNDING:
        shown = ", ".join(f"{value:g}" for value in scale.reshape(-1)[:4].tolist()) or "no number"
        raise UserError(f"{path} scales latents by {shown}, where only {LATENT_SCALE} is computed here.")


def refuse_other_schedule(path, alphas_cumprod):
    """Refuse a single file that was trained with another noise schedule, if it tells (UserError).

    Args:
        path: The file.
        alphas_cumprod: Its buffer (T,).
    """
    own = STABLE_DIFFUSION.alphas_cumprod
    if alphas_cumprod.shape != own.shape or abs(alphas_cumprod - own).max() > ROUNDING:
        raise UserError(f"{path} was trained with another noise schedule than Stable Diffusion's.")
