"""The pretrained Stable Diffusions: one object each. A new one is an entry of `BACKBONES` and its three builders.

KerasCV is no longer developed; only `kerascv_layers.py` imports it, and only when a part is
built: the table is read by command lines, which must answer at once.
"""

from dataclasses import dataclass, field
from pathlib import Path

from Experiment import presets
from Experiment.licences import OPENRAIL_M, OPENRAIL_PLUS, Licence
from Models.noise_schedule import STABLE_DIFFUSION, NoiseSchedule
from Models.weight_files import PackagedFile, PublishedFile

SD1_URLS = ("https://huggingface.co/fchollet/stable-diffusion/resolve/main/",)
SD2_URLS = ("https://huggingface.co/ianstenbit/keras-sd2.1/resolve/main/",)
PARTS = ("image_encoder", "unet", "decoder")


@dataclass(frozen=True)
class Backbone:
    """A pretrained Stable Diffusion whose parts are built when asked for.

    Attributes:
        name: Name on the command line.
        image_size: Side of its images, px.
        downsampling: Side of an image over side of its latents.
        latent_scale: Factor that gives latents unit variance.
        context_shape: (tokens, width) of its context.
        hidden_units: Hidden units of the Class Encoder that goes with it.
        block: Images that are always computed together on a processor (see `Models.sampler.generate_images`).
        build: Builder of each part, a function of the backbone: `image_encoder`, `unet`, `decoder`.
        files: Weight file of each part.
        training: Epochs, batch size and learning rate of both adaptation steps, and of the second with low-rank updates.
        light: Whether a laptop trains it. Its operations are too small to keep all cores busy: two run side by side.
        gflop: Billions of operations of a pass of its UNet for an image, convolutions over their padding included.
        schedule: Noise schedule that it was trained with.
        prediction_type: What its UNet predicts, a key of `Models.diffusion.PREDICTION_TYPES`.
        heads: Attention heads of its UNet at each resolution, if it has the structure of Stable Diffusion's: then it can
            be filled from diffusers' and the original's files too.
        licence: Of its own pretrained weights; None of those that this project has trained.
        credit: What those have learned from, with authors and licences.
    """

    name: str
    image_size: int
    downsampling: int
    latent_scale: float
    context_shape: tuple
    hidden_units: int
    block: int
    build: dict
    files: dict
    training: dict = field(default_factory=lambda: presets.TRAINING)
    light: bool = False
    gflop: float = 43.0
    schedule: NoiseSchedule = STABLE_DIFFUSION
    prediction_type: str = "epsilon"
    heads: tuple = ()
    licence: Licence | None = None
    credit: str = ""

    @property
    def latent_shape(self):
        side = self.image_size // self.downsampling
        return side, side, 4

    @property
    def side_by_side(self):
        """Into how many parts a batch is cut that are computed side by side."""
        from Models.runtime import on_gpu

        return 2 if self.light and not on_gpu() else 1

    def pretrained(self, weights_dir=None):
        """The pretrained weights at a place, or the backbone's own: see `Models.pretrained`."""
        from Models.pretrained import pretrained_weights

        return pretrained_weights(self, weights_dir)

    def weights_hash(self, part, weights_dir=None):
        """What identifies the pretrained weights of a part. A published file is checked when it is loaded, not here."""
        return self.pretrained(weights_dir).hash(part)

    def image_encoder(self, weights_dir=None):
        """Images (B, H, W, 3) in -1..1 -> mean and log-variance of the latents (B, h, w, 8)."""
        return self._part("image_encoder", weights_dir)

    def unet(self, weights_dir=None, pretrained=True):
        """`latent` (B, h, w, 4), `timestep_embedding` (B or 1, 320), `context` (B, tokens, width) -> noise (B, h, w, 4).

        Without `pretrained` its file is neither read nor downloaded: the caller loads an epoch.
        """
        return self._part("unet", weights_dir, pretrained)

    def decoder(self, weights_dir=None):
        """Latents (B, h, w, 4) -> images (B, H, W, 3), about -1..1."""
        return self._part("decoder", weights_dir)

    def _part(self, part, weights_dir, pretrained=True):
        from Models.faster_layers import use_faster_layers
        from Models.runtime import jit_compile, on_gpu

        source = self.pretrained(weights_dir)
        if pretrained:
            source.check(part)  # first: the build takes a minute at full size
        model = use_faster_layers(self.build[part](self), on_gpu())
        model.jit_compile = jit_compile()  # where it is called by itself
        return source.fill(model, part) if pretrained else model


def sd_image_encoder(backbone):
    import keras

    from Models.kerascv_layers import image_encoder

    full = image_encoder.ImageEncoder(download_weights=False)
    # KerasCV's last layer throws the log-variance away and scales the mean.
    return keras.Model(full.inputs, full.layers[-2].output, name="image_encoder")


def sd1_unet(backbone):
    from Models.kerascv_layers import diffusion_model

    size, tokens = backbone.image_size, backbone.context_shape[0]
    return diffusion_model.DiffusionModel(size, size, tokens, name="unet", download_weights=False)


def sd2_unet(backbone):
    from Models.kerascv_layers import diffusion_model

    size, tokens = backbone.image_size, backbone.context_shape[0]
    return diffusion_model.DiffusionModelV2(size, size, tokens, name="unet", download_weights=False)


def sd_decoder(backbone):
    from Models.kerascv_layers import decoder

    return decoder.Decoder(backbone.image_size, backbone.image_size, name="decoder", download_weights=False)


def own_part(part):
    """The builder of a part of a backbone that this project has trained."""

    def build(backbone):
        from Models import mini_backbone

        return mini_backbone.builders(backbone.name)[part](backbone.image_size, backbone.context_shape)

    return build


# Small networks on small data: fewer steps and higher rates, chosen on validation accuracy of `mini` on digits.
OWN_TRAINING = {
    "enc": {"epochs": 12, "batch_size": 64, "lr": 2e-2},
    "dif": {"epochs": 64, "batch_size": 32, "lr": 8e-4},
    # Not searched yet: five times the rate of `dif`, as updates need more.
    "lora": {"epochs": 64, "batch_size": 32, "lr": 4e-3},
}


GLYPHS = "printed characters of the fonts that matplotlib carries"
PHOTOGRAPHS = (  # more in small_weights/README.md
    "photographs of Caltech-101 (Li, Andreeto, Ranzato, Perona 2022, CC BY 4.0), the Grocery Store Dataset (Klasson, Zhang, "
    "Kjellström 2019, MIT) and TrashNet (Thung, Yang 2016, MIT)"
)


def own_backbone(name, context_shape, gflop, credit):
    """A backbone that this project has trained (`Pretraining/`) and ships: 32 px, light."""
    folder = Path(__file__).parent / f"{name}_weights"
    return Backbone(
        name=name,
        image_size=32,
        downsampling=4,
        latent_scale=1.0,
        context_shape=context_shape,
        hidden_units=64,
        block=96,
        build={part: own_part(part) for part in PARTS},
        files={part: PackagedFile(f"{part}.weights.h5", folder) for part in PARTS},
        training=OWN_TRAINING,
        light=True,
        gflop=gflop,
        credit=credit,
    )


# Names, addresses and hashes as in keras-cv 0.9.0.
SD_VAE = {
    "image_encoder": PublishedFile(
        "vae_encoder.h5", SD1_URLS, "c60fb220a40d090e0f86a6ab4c312d113e115c87c40ff75d11ffcf380aab7ebb"
    ),
    "decoder": PublishedFile("kcv_decoder.h5", SD1_URLS, "ad350a65cc8bc4a80c8103367e039a3329b4231c2469a1093869a345f55b1962"),
}
SD1_UNET = PublishedFile("kcv_diffusion_model.h5", SD1_URLS, "8799ff9763de13d7f30a683d653018e114ed24a6a819667da4f5ee10f9e805fe")
SD2_UNET = PublishedFile(
    "diffusion_model_v2_1.h5", SD2_URLS, "c31730e91111f98fe0e2dbde4475d381b5287ebb9672b1821796146a25c5132d"
)

BACKBONES = {
    backbone.name: backbone
    for backbone in [
        # The paper's text says SD 2.0; its code and its checkpoints are this one.
        Backbone(
            name="sd1",
            image_size=128,
            downsampling=8,
            latent_scale=0.18215,
            context_shape=(100, 768),
            hidden_units=presets.HIDDEN_UNITS,
            block=16,
            build={"image_encoder": sd_image_encoder, "unet": sd1_unet, "decoder": sd_decoder},
            files={**SD_VAE, "unet": SD1_UNET},
            heads=(8, 8, 8, 8),
            licence=OPENRAIL_M,
        ),
        Backbone(
            name="sd2",
            image_size=128,
            downsampling=8,
            latent_scale=0.18215,
            context_shape=(100, 1024),
            hidden_units=presets.HIDDEN_UNITS,
            block=16,
            build={"image_encoder": sd_image_encoder, "unet": sd2_unet, "decoder": sd_decoder},
            files={**SD_VAE, "unet": SD2_UNET},
            gflop=44.0,  # a wider context
            heads=(5, 10, 20, 20),
            licence=OPENRAIL_PLUS,
        ),
        own_backbone("mini", (8, 64), 0.166, GLYPHS),
        own_backbone("small", (8, 128), 0.167, f"{GLYPHS}, and {PHOTOGRAPHS}"),
    ]
}
