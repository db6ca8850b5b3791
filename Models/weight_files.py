"""The files of a backbone's own pretrained weights, in KerasCV's layout: where they lie, and where they come from."""

import os
from dataclasses import dataclass
from pathlib import Path

from Experiment.downloads import download, kind_of
from Experiment.errors import PassingError, UserError
from Experiment.files import file_hash
from Models.weight_cards import read_card

# Tests and measurements of the full-size models need no pretrained numbers: this variable, and only it, leaves
# backbones whose weights are downloaded as they were initialised.
UNTRAINED = "SD_UNTRAINED_BACKBONE"
UNTRAINED_HASH = "untrained"


@dataclass(frozen=True)
class PublishedFile:
    """A weight file that is downloaded once and checked by its hash.

    Attributes:
        name: Name of the file.
        urls: Addresses of folders that have it, in the order in which they are tried.
        sha256: Its hash.
    """

    name: str
    urls: tuple
    sha256: str

    @property
    def left_out(self):
        """Whether the test-only variable asks for a model without pretrained numbers."""
        return os.environ.get(UNTRAINED) == "1"

    def hash(self, weights_dir=None):
        """What identifies the weights, without reading them: `path` refuses a file of another hash.

        Raises:
            UserError: `weights_dir` does not hold the file.
        """
        if self.left_out:
            return UNTRAINED_HASH
        if weights_dir:
            self.refuse_other_folders(weights_dir)
        return self.sha256

    def refuse_other_folders(self, weights_dir):
        """Refuse a folder that does not hold the file (UserError)."""
        if not (weights_dir / self.name).is_file():
            raise UserError(
                f"there is no {self.name} in {weights_dir}{what_else_is_in(weights_dir)}: get it from {self.addresses} "
                f"(SHA-256 {self.sha256})."
            )

    def path(self, weights_dir=None):
        """Where the file lies: in `weights_dir`, or downloaded into Keras's cache; its hash is checked.

        Raises:
            UserError: It is not there, cannot be downloaded, or its hash is wrong.
        """
        folder = weights_dir or Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "models"
        path = folder / self.name
        if weights_dir:
            self.refuse_other_folders(weights_dir)
        elif not path.is_file():
            self.download(path)
        if read_card(path)["sha256"] != self.sha256:
            mend = (
                "A UNet of your own is an epoch: put it as epoch1.hdf5 into the experiment's DiffusionFt folder"
                if weights_dir
                else "Delete it"
            )
            raise UserError(f"{path} is not the published file of {self.addresses}: its SHA-256 is not {self.sha256}. {mend}.")
        return path

    @property
    def addresses(self):
        return " or ".join(url + self.name for url in self.urls)

    def download(self, path):
        """Get the file from the first of its addresses that has it (UserError)."""
        problems, kind = [], UserError
        for url in self.urls:
            try:
                return download(url + self.name, path, self.sha256)
            # Keras wraps every failure of a download in a plain Exception.
            except Exception as error:
                problems.append(f"from {url}{self.name} ({error})")
                kind = kind if kind is PassingError else kind_of(error)  # one that is busy is enough
        raise kind(
            f"{self.name} cannot be downloaded {', nor '.join(problems)} to {path.parent}. Get it by other "
            f"means (SHA-256 {self.sha256}) and put it there, or name its folder with --weights_dir."
        )


def what_else_is_in(folder):
    """A remark for those who have named a folder of something else; empty where nothing is known of it."""
    from Models.tensor_files import PICKLES, SUFFIX

    names = sorted(path.name for path in folder.glob("*"))
    if "config.json" in names:
        return " (it looks like a part of diffusers' folder: give the one that holds unet/ and vae/)"
    if found := [name for name in names if name.endswith(SUFFIX)]:
        if "lora" in found[0].lower():
            how = "load_lora_weights, fuse_lora, unload_lora_weights, save_pretrained"
            return f" ({found[0]} looks like a LoRA, which is not read: merge it into its UNet with diffusers first: {how})"
        return f" (to use {found[0]}, give its path)"
    if found := [name for name in names if name.endswith(PICKLES)]:
        return f" ({found[0]} is a pickle by its name, and none is read: convert it to {SUFFIX}, or get it so)"
    return ""


@dataclass(frozen=True)
class PackagedFile:
    """A weight file that comes with the project.

    Attributes:
        name: Name of the file.
        folder: Where it lies.
    """

    name: str
    folder: Path
    left_out = False

    def hash(self, weights_dir=None):
        """SHA-256 of the file."""
        return file_hash(self.path(weights_dir))

    def path(self, weights_dir=None):
        """Where the file lies: in `weights_dir`, or in the project.

        Raises:
            UserError: It is not there.
        """
        path = (weights_dir or self.folder) / self.name
        if not path.is_file():
            raise UserError(f"there is no file {path.name} in {path.parent}.")
        return path
