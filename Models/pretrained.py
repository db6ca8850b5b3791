"""The pretrained weights of a backbone: its own files, or others' safetensors at a place that the user names."""

from Models.foreign_weights import foreign_weights, is_foreign
from Models.numerics import KERASCV, Following, let_follow
from Models.weights import load_weights, stored_following


def pretrained_weights(backbone, place=None):
    """The pretrained weights that are used: an object with `following`, `hash`, `check` and `fill`.

    Args:
        backbone: A `Backbone`.
        place: None: its own files, where they are kept; or a path: a folder with its own files, a folder of diffusers, or
            a file of the original layout.

    Raises:
        UserError: The backbone has no weights but its own.
    """
    return foreign_weights(backbone, place) if place and is_foreign(place) else OwnFiles(backbone, place)


class OwnFiles:
    """A backbone's own files: KerasCV's, or those that come with the project.

    Args:
        backbone: A `Backbone`.
        folder: Where they lie, if not in the usual place.
    """

    def __init__(self, backbone, folder=None):
        self.backbone, self.folder = backbone, folder

    def following(self, part):
        """What the numbers of a part were trained with, a `Following`."""
        return Following(KERASCV, self.backbone.prediction_type if part == "unet" else "epsilon")

    def hash(self, part):
        """What identifies the weights of a part, without reading them: `check` refuses a file of another hash."""
        return self.backbone.files[part].hash(self.folder)

    def check(self, part):
        """Refuse a missing or other file; one that is missing in the usual place is downloaded (UserError)."""
        if not self.backbone.files[part].left_out:
            self.backbone.files[part].path(self.folder)

    def fill(self, model, part):
        """Load the weights of a part into its network, and let it follow them. Returns it (UserError)."""
        file = self.backbone.files[part]
        let_follow(model, self.following(part))
        return model if file.left_out else load_weights(model, file.path(self.folder))


def pretrained_inputs(backbone, parts, weights_dir=None, dif=None):
    """What identifies the pretrained weights that a run uses: {part: hash}, and what they follow where that is unusual.

    Args:
        backbone: A `Backbone`.
        parts: Those that are used; the UNet where more than the epoch's is: by a guide, or under low-rank updates.
        weights_dir: The place of its weights, as `pretrained_weights` takes it.
        dif: File of a UNet's epoch, which takes the place of the pretrained one.

    Raises:
        UserError: The weights are not there, or of another kind of model.
    """
    inputs = {part: backbone.weights_hash(part, weights_dir) for part in parts}
    followed = {part: backbone.pretrained(weights_dir).following(part) for part in inputs}
    if dif:
        followed["unet"] = stored_following(dif)
    numerics = {part: following.numerics for part, following in followed.items() if following.numerics != KERASCV}
    prediction = followed["unet"].prediction_type if "unet" in followed else backbone.prediction_type
    if numerics:
        inputs["numerics"] = numerics
    if prediction != backbone.prediction_type:
        inputs["prediction_type"] = prediction
    return inputs
