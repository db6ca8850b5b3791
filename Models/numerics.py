"""What pretrained numbers were trained with: the same network computes a little differently in KerasCV and elsewhere.

| | KerasCV | the original and diffusers |
|---|---|---|
| GELU of the transformers | by tanh | by erf |
| epsilon of the group normalisations of transformers and VAE | 1e-5 | 1e-6 |

Weights say what they follow: files of KerasCV and published epochs the former, all safetensors the latter, and our epoch
files have it in an attribute. So a UNet computes as its numbers were trained, whoever fine-tunes or samples it.
"""

from dataclasses import dataclass

KERASCV, DIFFUSERS = "kerascv", "diffusers"
EPSILON = {KERASCV: 1e-5, DIFFUSERS: 1e-6}
PREDICTIONS = ("epsilon", "v_prediction")  # the keys of `Models.diffusion.PREDICTION_TYPES`, which needs Keras


@dataclass(frozen=True)
class Following:
    """What the numbers of a network were trained with.

    Attributes:
        numerics: `kerascv` or `diffusers`.
        prediction_type: What a UNet predicts, a key of `Models.diffusion.PREDICTION_TYPES`.
    """

    numerics: str = KERASCV
    prediction_type: str = "epsilon"

    @property
    def unusual(self):
        """What differs from KerasCV's Stable Diffusion 1.x: attributes of an epoch file."""
        return {name: value for name, value in vars(self).items() if value != getattr(AS_PUBLISHED, name)}


AS_PUBLISHED = Following()


def let_follow(model, following):
    """Let a network that has not been computed yet follow its numbers. Returns it.

    Args:
        model: Image encoder, UNet or decoder.
        following: A `Following`.
    """
    from Models.faster_layers import all_layers

    layers = all_layers(model)
    kinds = {type(layer).__name__ for layer in layers}
    # In a UNet the residual blocks have 1e-5 everywhere.
    norms = [layer.norm for layer in layers if type(layer).__name__ == "SpatialTransformer"]
    if "ResnetBlock" in kinds:  # a VAE
        norms = [layer for layer in layers if type(layer).__name__ == "GroupNormalization"]
    for norm in norms:
        norm.epsilon = EPSILON[following.numerics]
    for layer in layers:
        if type(layer).__name__ == "GEGLU":
            layer.approximate = following.numerics == KERASCV
    model.following = following
    return model
