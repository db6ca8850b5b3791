"""All that an interrupted training needs to go on as if nothing had happened, in one file."""

import itertools
import json
import zipfile

import numpy as np

from Experiment.errors import UserError
from Experiment.files import atomic_path, plain_arrays
from Experiment.records import changes


class FitState:
    """Weights, optimizer, history, and what callbacks count. Nothing else has state: order and noise are addressed.

    Args:
        path: The file.
        settings: What a continued run must share with the interrupted one, as `identity` gives it.
        variables: Variables of what learns and of its optimizer.
        followers: Objects that count or compare, and the names of their attributes that do: [(object, names)].
    """

    def __init__(self, path, settings, variables, followers=()):
        self.path, self.settings, self.variables, self.followers = path, settings, variables, followers
        self.epoch = 0  # the last that is saved
        self.counted = None  # of the followers, when it was saved

    def save(self, epoch, history, arrays=()):
        """Save after `epoch` epochs.

        Args:
            epoch: Number of epochs that are done.
            history: {metric: values by epoch} so far.
            arrays: Further arrays to keep, such as the best weights.
        """
        counted = [{name: plain(getattr(follower, name)) for name in names} for follower, names in self.followers]
        kept = {"epoch": epoch, "history": history, "settings": self.settings, "followers": counted}
        values = itertools.chain(
            [("kept", json.dumps(kept))],
            ((f"v{i}", variable) for i, variable in enumerate(self.variables)),
            ((f"a{i}", array) for i, array in enumerate(arrays)),
        )
        with atomic_path(self.path) as partial, zipfile.ZipFile(partial, "w") as archive:
            # What np.savez does, but one array at a time: all of them are 10 GB in sd1.
            for name, value in values:
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.asarray(value), allow_pickle=False)
        self.epoch = epoch

    def load(self):
        """Restore the variables; returns (epochs done, history, further arrays).

        (0, {}, []) where there is nothing to go on from.

        Raises:
            UserError: The file is of another model, or of a run with other settings.
        """
        if not self.path.exists():
            return 0, {}, []
        names = [f"v{i}" for i in range(len(self.variables))]
        with plain_arrays(self.path) as data:
            kept = self.read_kept(data)
            self.refuse_other_settings(kept["settings"])
            if missing := set(names) - set(data.files):
                raise self.other_model(f"{len(missing)} arrays are missing")
            for name, variable in zip(names, self.variables):
                array = data[name]
                if array.shape != tuple(variable.shape):
                    raise self.other_model(f"shape {array.shape} in place of {tuple(variable.shape)}")
                variable.assign(array)
            arrays = [data[f"a{i}"] for i in range(len(data.files) - 1 - len(names))]
        self.epoch, self.counted = kept["epoch"], kept["followers"]
        return self.epoch, kept["history"], arrays

    def read_kept(self, data):
        """What is kept beside arrays, with all that it needs."""
        kept = json.loads(str(data["kept"]))
        counted = [names for _, names in self.followers]
        try:
            if [sorted(values) for values in kept["followers"]] != [sorted(names) for names in counted]:
                raise ValueError("other callbacks")
            return {"epoch": int(kept["epoch"]), **{name: kept[name] for name in ("history", "settings", "followers")}}
        except (KeyError, ValueError, TypeError) as error:
            raise self.other_model(error) from None

    def other_model(self, reason):
        return UserError(f"{self.path} is of another model ({reason}): start afresh with --restart.")

    def restore_followers(self):
        """Give the followers what they had counted. To be called when training begins, which sets callbacks to zero."""
        for (follower, _), values in zip(self.followers, self.counted or []):
            for name, value in values.items():
                setattr(follower, name, value)

    def refuse_other_settings(self, before):
        if shown := differences(before, self.settings):
            raise UserError(
                f"{self.path.parent} holds an interrupted run with {shown}. Give those, --restart to replace it, or remove "
                f"{self.path.name}."
            )


def differences(before, now):
    """What differs between the settings of two runs, in words.

    The precision that is used counts, not the flag that has chosen it; states of earlier versions name the flag alone.
    """
    left_out = "--precision" if {"precision_used"} <= before.keys() & now.keys() else "precision_used"
    before, now = ({name: value for name, value in each.items() if name != left_out} for each in (before, now))
    return changes(before, now)


def is_of_run(path, settings):
    """Whether a state is there, and of a run with these settings."""
    if not path.exists():
        return False
    with plain_arrays(path) as data:
        return not differences(json.loads(str(data["kept"]))["settings"], settings)


def epochs_done(path):
    """How many epochs the state of an interrupted fit holds."""
    if not path.exists():
        return 0
    with plain_arrays(path) as data:
        return json.loads(str(data["kept"]))["epoch"]


def plain(value):
    """A number or list that JSON can hold."""
    return np.asarray(value).tolist() if value is not None else None
