"""Where the pretrained weights of a backbone come from."""

import os
from dataclasses import dataclass
from pathlib import Path

from Experiment.errors import UserError
from Experiment.files import atomic_path, file_hash

# Tests and measurements of the full-size models need no pretrained numbers: this variable, and only it, leaves
# backbones whose weights are downloaded as they were initialised.
UNTRAINED = "SD_UNTRAINED_BACKBONE"
UNTRAINED_HASH = "untrained"


@dataclass(frozen=True)
class PublishedFile:
    """A weight file that is downloaded once and checked by its hash.

    Attributes:
        name: Name of the file.
        url: Address of its folder.
        sha256: Its hash.
    """

    name: str
    url: str
    sha256: str

    @property
    def left_out(self):
        """Whether the test-only variable asks for a model without pretrained numbers."""
        return os.environ.get(UNTRAINED) == "1"

    def hash(self, weights_dir=None):
        """What identifies the weights, without reading them: `path` refuses a file of another hash."""
        return UNTRAINED_HASH if self.left_out else self.sha256

    def path(self, weights_dir=None):
        """Where the file lies: in `weights_dir`, or downloaded into Keras's cache; its hash is checked.

        Raises:
            UserError: It is not there, cannot be downloaded, or its hash is wrong.
        """
        folder = weights_dir or Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "models"
        path = folder / self.name
        if not path.is_file():
            if weights_dir:
                raise UserError(
                    f"there is no {self.name} in {weights_dir}: get it from {self.url}{self.name} (SHA-256 {self.sha256})."
                )
            self.download(path)
        if file_hash(path) != self.sha256:
            raise UserError(
                f"{path} is not the published file of {self.url}{self.name}: its SHA-256 is not {self.sha256}. Delete it."
            )
        return path

    def download(self, path):
        from keras.utils import get_file

        try:
            with atomic_path(path) as partial:
                get_file(
                    partial.name,
                    origin=self.url + self.name,
                    cache_dir=str(path.parent),
                    cache_subdir="",
                    file_hash=self.sha256,
                )
        # Keras wraps every failure of a download in a plain Exception.
        except Exception as error:
            raise UserError(
                f"{self.name} cannot be downloaded from {self.url}{self.name} to {path.parent} ({error}). Get it by other "
                f"means (SHA-256 {self.sha256}) and put it there, or name its folder with --weights_dir."
            ) from None


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
