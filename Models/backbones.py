"""The pretrained Stable Diffusions: image encoder, UNet and decoder with their weights.

KerasCV is no longer developed; only this module, `mini_backbone.py` and `faster_layers.py` import it.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import keras

from Experiment.errors import UserError
from Experiment.files import atomic_path, file_hash
from Models.faster_layers import use_faster_layers
from Models.weights import load_weights

# Tests and measurements of the full-size models need no pretrained numbers: this variable, and only it, leaves
# sd1 and sd2 as they were initialised.
UNTRAINED = "SD_UNTRAINED_BACKBONE"
UNTRAINED_HASH = "untrained"
MINI_WEIGHTS = Path(__file__).parent / "mini_weights"
SD1_URL = "https://huggingface.co/fchollet/stable-diffusion/resolve/main/"
SD2_URL = "https://huggingface.co/ianstenbit/keras-sd2.1/resolve/main/"
# File, where it is published, SHA-256: as in keras-cv 0.9.0.
SD_VAE = {
    "image_encoder": ("vae_encoder.h5", SD1_URL, "c60fb220a40d090e0f86a6ab4c312d113e115c87c40ff75d11ffcf380aab7ebb"),
    "decoder": ("kcv_decoder.h5", SD1_URL, "ad350a65cc8bc4a80c8103367e039a3329b4231c2469a1093869a345f55b1962"),
}
SD1_UNET = ("kcv_diffusion_model.h5", SD1_URL, "8799ff9763de13d7f30a683d653018e114ed24a6a819667da4f5ee10f9e805fe")
SD2_UNET = ("diffusion_model_v2_1.h5", SD2_URL, "c31730e91111f98fe0e2dbde4475d381b5287ebb9672b1821796146a25c5132d")


@dataclass(frozen=True)
class Backbone:
    """A pretrained Stable Diffusion whose parts are built when asked for.

    Attributes:
        name: `sd1`, `sd2` or `mini`.
        image_size: Side of its images, px.
        downsampling: Side of an image over side of its latents.
        latent_scale: Factor that gives latents unit variance.
        context_shape: (tokens, width) of its context.
        hidden_units: Hidden units of the Class Encoder that goes with it.
        files: Weight files of `image_encoder`, `unet` and `decoder`: (name, address, SHA-256); empty for `mini`.
    """

    name: str
    image_size: int
    downsampling: int
    latent_scale: float
    context_shape: tuple
    hidden_units: int
    files: dict

    @property
    def latent_shape(self):
        side = self.image_size // self.downsampling
        return side, side, 4

    @property
    def parts(self):
        """Into how many parts a `Sampler` should cut a batch."""
        return 2 if self.name == "mini" and not on_gpu() else 1

    def weights_file(self, part, weights_dir):
        """The path of a part's pretrained weights.

        Raises:
            UserError: They are not there, or not the published ones.
        """
        if self.name == "mini":
            path = (weights_dir or MINI_WEIGHTS) / f"{part}.weights.h5"
            if not path.is_file():
                raise UserError(f"there is no file {path.name} in {path.parent}.")
            return path
        return pretrained_file(*self.files[part], weights_dir)

    def image_encoder(self, weights_dir=None):
        """Images (B, H, W, 3) in -1..1 -> mean and log-variance of the latents (B, h, w, 8)."""
        if self.name == "mini":
            from Models.mini_backbone import mini_image_encoder

            return self._load(mini_image_encoder, "image_encoder", weights_dir)
        from keras_cv.models.stable_diffusion import ImageEncoder

        full = self._load(lambda: ImageEncoder(download_weights=False), "image_encoder", weights_dir)
        # KerasCV's last layer throws the log-variance away and scales the mean.
        return keras.Model(full.inputs, full.layers[-2].output, name="image_encoder")

    def unet(self, weights_dir=None):
        """`latent` (B, h, w, 4), `timestep_embedding` (B, 320), `context` (B, tokens, width) -> noise (B, h, w, 4)."""
        if self.name == "mini":
            from Models.mini_backbone import mini_unet

            return self._load(lambda: mini_unet(self.image_size, self.context_shape), "unet", weights_dir)
        from keras_cv.src.models.stable_diffusion.diffusion_model import DiffusionModel, DiffusionModelV2

        kind = DiffusionModel if self.name == "sd1" else DiffusionModelV2
        size, tokens = self.image_size, self.context_shape[0]
        return self._load(lambda: kind(size, size, tokens, name="unet", download_weights=False), "unet", weights_dir)

    def decoder(self, weights_dir=None):
        """Latents (B, h, w, 4) -> images (B, H, W, 3), about -1..1."""
        if self.name == "mini":
            from Models.mini_backbone import mini_decoder

            return self._load(lambda: mini_decoder(self.image_size), "decoder", weights_dir)
        from keras_cv.models.stable_diffusion import Decoder

        size = self.image_size
        return self._load(lambda: Decoder(size, size, name="decoder", download_weights=False), "decoder", weights_dir)

    def _load(self, build, part, weights_dir):
        path = (
            None if untrained(self) else self.weights_file(part, weights_dir)
        )  # the build takes a minute at full size
        model = use_faster_layers(build(), on_gpu())
        return load_weights(model, path) if path else model


BACKBONES = {
    # The paper's text says SD 2.0; its code and its checkpoints are this one.
    "sd1": Backbone("sd1", 128, 8, 0.18215, (100, 768), 500, {**SD_VAE, "unet": SD1_UNET}),
    "sd2": Backbone("sd2", 128, 8, 0.18215, (100, 1024), 500, {**SD_VAE, "unet": SD2_UNET}),
    "mini": Backbone("mini", 32, 4, 1.0, (8, 64), 64, {}),
}


def untrained(backbone):
    """Whether the test-only switch leaves this backbone without pretrained numbers."""
    return backbone.name != "mini" and os.environ.get(UNTRAINED) == "1"


def pretrained_file(name, url, sha256, weights_dir=None):
    """The path of a pretrained weight file: from `weights_dir`, or downloaded once into Keras's cache; hash-checked.

    Raises:
        UserError: It is not there, cannot be downloaded, or its hash is wrong.
    """
    folder = weights_dir or Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "models"
    path = folder / name
    if not path.is_file():
        if weights_dir:
            raise UserError(f"there is no {name} in {weights_dir}: get it from {url}{name} (SHA-256 {sha256}).")
        try:
            with atomic_path(path) as partial:
                keras.utils.get_file(
                    partial.name, origin=url + name, cache_dir=str(folder), cache_subdir="", file_hash=sha256
                )
        # Keras wraps every failure of a download in a plain Exception.
        except Exception as error:
            raise UserError(
                f"{name} cannot be downloaded from {url}{name} to {folder} ({error}). Get it by other means "
                f"(SHA-256 {sha256}) and put it there, or name its folder with --weights_dir."
            ) from None
    if file_hash(path) != sha256:
        raise UserError(f"{path} is not the published file of {url}{name}: its SHA-256 is not {sha256}. Delete it.")
    return path


def set_precision(precision, learns=False):
    """Set the arithmetic of the networks built from now on and return its name.

    `auto` takes mixed_bfloat16 where processor or GPU computes in bfloat16, else float32. Weights on disk, losses,
    normalisations and the sampler's update stay float32.

    Args:
        precision: `auto`, `float32` or `mixed_bfloat16`.
        learns: Whether a network will be trained. If none is, weights are held in bfloat16, to which each use casts them
            anyway: half of the memory, and no cast.
    """
    if precision == "auto":
        precision = "mixed_bfloat16" if has_bfloat16() else "float32"
    keras.config.set_dtype_policy(precision if learns else precision.removeprefix("mixed_"))
    return precision


def on_gpu():
    """Whether the networks run on a GPU or TPU."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.default_backend() in ("gpu", "tpu")
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def has_bfloat16():
    """Whether the hardware multiplies bfloat16 matrices: AVX512-BF16 or AMX, or a GPU of at least Ampere."""
    if on_gpu():
        if keras.backend.backend() == "jax":
            return True
        import tensorflow as tf

        gpu = tf.config.list_physical_devices("GPU")[0]
        return tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) >= (8, 0)
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and any(flag in cpuinfo.read_text() for flag in ("avx512_bf16", "amx_bf16"))
