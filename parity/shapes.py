"""The shapes of Stable Diffusion that `make parity-diffusers` compares. Both sides read this file: it imports nothing heavy."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Shape:
    """A Stable Diffusion of random numbers, and how it is saved.

    Attributes:
        name: On the command line.
        backbone: Name of our backbone of this shape.
        prediction_type: What its UNet predicts.
        widths, heads: Channels and attention heads of the UNet's levels.
        vae_widths: Channels of the VAE's levels.
        linear: Whether matrices stand around the UNet's transformers, as in 2.x.
        context: Tokens of a context, and their width.
        image_size: Side of the images, px.
        folder_type, file_type: Type of the numbers in diffusers' folder, and in the file of the original layout.
        shard: The most that one file of the folder holds.
        said: How the single file tells what its UNet predicts: `metadata`, a `yaml` beside it, or not at all.
        lora: Which layers have low-rank updates in the export of such.
    """

    name: str
    backbone: str
    prediction_type: str
    heads: tuple
    linear: bool
    context: tuple
    folder_type: str
    file_type: str
    shard: str
    said: str
    lora: str
    widths: tuple = (320, 640, 1280, 1280)
    vae_widths: tuple = (128, 256, 512, 512)
    image_size: int = 128

    @property
    def latent_size(self):
        return self.image_size // 2 ** (len(self.vae_widths) - 1)

    @property
    def tiny(self):
        """The same with two levels, and small: to try the comparison itself in a minute.

        A UNet of diffusers tells the timestep in as many numbers as its first level has channels, ours in 320.
        """
        return replace(
            self, name=f"tiny-{self.name}", backbone=f"tiny-{self.name}", widths=(320, 64), vae_widths=(32, 64),
            heads=(5, 1) if self.linear else (2, 2), context=(3, 8), image_size=16, said=self.said or "metadata",
            shard="20MB" if self.shard == "1GB" else self.shard,
        )  # fmt: skip


SD1 = Shape(
    "sd1", "sd1", "epsilon", heads=(8, 8, 8, 8), linear=False, context=(100, 768),
    folder_type="float32", file_type="bfloat16", shard="1GB", said="", lora="all",
)  # fmt: skip
SD2 = Shape(
    "sd2", "sd2", "epsilon", heads=(5, 10, 20, 20), linear=True, context=(100, 1024),
    folder_type="float16", file_type="float32", shard="10GB", said="metadata", lora="attention",
)  # fmt: skip
SD2_V = replace(
    SD2, name="sd2-v", prediction_type="v_prediction", folder_type="bfloat16", file_type="float16", shard="1GB", said="yaml"
)  # fmt: skip
FULL = {shape.name: shape for shape in (SD1, SD2, SD2_V)}
SHAPES = FULL | {shape.tiny.name: shape.tiny for shape in FULL.values()}


def backbone_of(shape):
    """Our backbone of a shape, which the command lines know too. For our side alone."""
    from Models.backbones import BACKBONES

    if shape.name not in FULL:
        from tests.foreign import small_backbone

        BACKBONES[shape.backbone] = small_backbone(
            name=shape.backbone, side=shape.image_size, widths=shape.widths, heads=shape.heads, linear=shape.linear
        )
    return BACKBONES[shape.backbone]
