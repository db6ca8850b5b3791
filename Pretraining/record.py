"""training.json: what is made, from what, with every figure; and so what is still to be made.

{"backbone": name, "corpus": {...}, "words": {...}, "categories": [...], "sources": [...],
 "parts": {part: {"inputs": flat, "files": {name: SHA-256}, figures}}}
"""

import os

from Experiment.errors import UserError
from Experiment.files import file_hash, read_json, write_json
from Experiment.records import changes

PENDING = ".pending-"  # begins the names of files of a part that is not on record yet
INSTEAD = "name another --out, or --restart to make all of it again"


class Record:
    """The record of a folder of weights, which decides what a run makes.

    A part is done if its entry is there with the inputs that it would have now, hashes of files among them. Whatever
    does not fit is refused: weights of two recipes are never mixed.

    Args:
        folder: Of the weights.
        backbone: Its name.
        restart: Whether what is there is to be replaced.

    Raises:
        UserError: The folder holds something else.
    """

    def __init__(self, folder, backbone, restart=False):
        self.folder, self.path = folder, folder / "training.json"
        self.content = {"backbone": backbone, "parts": {}}
        self.made = {}  # {name of a file: hash} of the parts that are done
        if restart:
            return
        if self.path.exists():
            there = read_json(self.path)
            if there.get("backbone") != backbone or not isinstance(there.get("parts"), dict):
                raise UserError(f"{self.path} is not the record of such a run of {backbone}: {INSTEAD}.")
            self.content = there
            self.take_pending()
        elif files := sorted(path.name for path in folder.glob("[!.]*.weights.h5")):
            raise UserError(f"{folder} holds {', '.join(files)} without training.json: {INSTEAD}.")

    @property
    def parts(self):
        return self.content["parts"]

    def inputs(self, settings, files):
        """What a part is made from: settings, and the files that earlier parts have left."""
        return {**settings, **{name: self.made[name] for name in files}}

    def is_done(self, part, settings, files=()):
        """Whether a part is done. To be asked in the order of the parts.

        Raises:
            UserError: It was made from something else.
        """
        if part not in self.parts:
            return False
        entry, now = self.parts[part], self.inputs(settings, files)
        if "tars" not in entry["inputs"]:  # of an earlier version
            now.pop("tars", None)
        if shown := changes(entry["inputs"], now):
            raise UserError(f"{self.path} has a finished {part} with {shown}. {INSTEAD[0].upper()}{INSTEAD[1:]}.")
        self.made |= entry["files"]
        return True

    @property
    def files(self):
        """{name of a file: hash} as the last of all recorded parts has left it."""
        return {name: expected for part in self.parts.values() for name, expected in part["files"].items()}

    def check_files(self):
        """Refuse weights that are not those that the record speaks of (UserError). To be called when all parts were asked for.

        Parts that were not asked for may have replaced files since.
        """
        for name, expected in {name: self.files[name] for name in self.made}.items():
            path = self.folder / name
            if not path.is_file():
                raise UserError(f"{path} is missing: put it back, or give --restart to make all of it again.")
            if (found := file_hash(path)) != expected:
                raise UserError(
                    f"{path} is not the file that training.json speaks of (SHA-256 {found[:8]}, not {expected[:8]}): put "
                    "that one back, or give --restart to make all of it again."
                )

    def refuse_leftovers(self, asked, order):
        """Refuse a record with a later part but not an earlier one, whose weights it would be made from (UserError).

        Args:
            asked: Part that is not done.
            order: All parts in their order.
        """
        after = [part for part in order[order.index(asked) + 1 :] if part in self.parts]
        if after:
            raise UserError(f"{self.path} has {after[0]} without {asked}: {INSTEAD}.")

    def add(self, part, settings, files, made, facts):
        """Record a finished part.

        Args:
            part, settings, files: As in `is_done`.
            made: Names of the files that it has left, which lie there as pending.
            facts: Its figures.
        """
        inputs = self.inputs(settings, files)
        hashes = {name: file_hash(self.folder / f"{PENDING}{name}") for name in made}
        self.made |= hashes
        self.parts[part] = {"inputs": inputs, "files": hashes, **facts}
        write_json(self.path, self.content)
        self.take_pending()

    def take_pending(self):
        """Give the files of the last part their names. One that stops before it is on record has changed nothing."""
        for name, expected in self.files.items():
            pending = self.folder / f"{PENDING}{name}"
            if pending.is_file() and file_hash(pending) == expected:
                os.replace(pending, self.folder / name)
