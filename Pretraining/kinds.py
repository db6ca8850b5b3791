"""What is pretrained: a backbone's sizes, its corpus, and how long it learns."""

from dataclasses import dataclass
from pathlib import Path

MODELS = Path(__file__).parent.parent / "Models"


@dataclass(frozen=True)
class Kind:
    """A backbone that this project trains from nothing.

    Attributes:
        name: Of the backbone.
        context_shape: (tokens, width); a token a word of the captions.
        images: Size of the corpus.
        glyphs: Share of printed characters in it; the others are crops of photographs.
        vae_steps, decoder_steps: Steps of 64 images.
        unet_steps: Steps of a cycle of the UNet.
        batch_size: Latents of a step of the UNet.
        edges: Weight of the squared error of differences between neighbouring pixels in the loss of the pictures.
        precision: Of the arithmetic, as in `Models.runtime.precision`.
    """

    name: str
    context_shape: tuple
    images: int
    glyphs: float
    vae_steps: int
    decoder_steps: int
    unet_steps: int
    batch_size: int
    edges: float
    precision: str

    @property
    def folder(self):
        """Where its weights lie in the repository."""
        return MODELS / f"{self.name}_weights"

    @property
    def builders(self):
        """Builder of each part, a function of image size and context shape."""
        from Models import mini_backbone

        return mini_backbone.builders(self.name)


KINDS = {
    kind.name: kind
    for kind in [
        Kind("mini", (8, 64), 240_000, 1.0, 2000, 3000, 6000, 128, edges=0.0, precision="mixed_bfloat16"),
        # The error of edges weighs as much as a tenth of theirs would: blur costs a classifier more than decibels say.
        Kind("small", (8, 128), 250_000, 0.3, 3000, 2000, 4000, 64, edges=0.1, precision="auto"),
    ]
}
