"""Names of weight files: what is there, found without reading any."""

import csv
import re

from Experiment.errors import UserError
from Experiment.files import read_json, write_json
from Experiment.text import first_ten

# Ours and the published ones. A Keras 2 file has another layout; its suffix says so.
EPOCH_FILE = re.compile(r"epoch(\d+)\.(weights\.h5|hdf5)")
KIND = {"enc": "Class Encoder", "dif": "UNet"}


def epoch_path(folder, epoch):
    return folder / f"epoch{epoch}.weights.h5"


def saved_epochs(folder):
    """{epoch: file} of a folder of epoch weights, ours and published ones.

    Raises:
        UserError: An epoch is there in both formats.
    """
    found = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        match = EPOCH_FILE.fullmatch(path.name)
        if match and (epoch := int(match[1])) in found:
            raise UserError(f"epoch {epoch} is there twice: {found[epoch]} and {path}. Move one of them away.")
        if match:
            found[epoch] = path
    return dict(sorted(found.items()))


def epoch_file(folder, epoch, part, flag=None):
    """The file of an epoch of `enc` or `dif`, which `flag` (--enc_epoch, --dif_epoch) asks for.

    Raises:
        UserError: The epoch is not there; it lists those that are.
    """
    epochs = saved_epochs(folder)
    if epoch not in epochs:
        there = ", ".join(map(str, epochs)) or "none"
        raise UserError(
            f"{flag or f'--{part}_epoch'} {epoch}: there is no {KIND[part]} of that epoch in {folder}. Epochs there: {there}"
        )
    return epochs[epoch]


def refuse_to_overwrite(folder, first, last, identity):
    """Raise a UserError if epochs are there that a run would write or go before, and that are not its own, of an earlier start.

    Args:
        folder: Of the epochs. `run.json` in it holds the identity of the run that wrote there last.
        first, last: Numbers of the run's epochs.
        identity: The run's; None: those of other runs are replaced. Published ones never are.
    """
    begun, there = folder / "run.json", saved_epochs(folder)
    if published := [n for n, file in there.items() if first <= n <= last and file != epoch_path(folder, n)]:
        raise UserError(
            f"{folder} holds the published epochs {', '.join(map(str, published[:10]))}, which this run would make again: use "
            "another --exp, or move them away."
        )
    # Later ones too: a search would choose among both.
    after = [epoch for epoch in own_epochs(folder) if epoch >= first]
    if after and identity is not None and not (begun.exists() and resolved(read_json(begun)) == resolved(identity)):
        raise UserError(
            f"{folder} holds epochs of another run, which would be overwritten or stand beside this one's. Use another --exp, or "
            f"--restart, which throws away all epochs from {first} on: {first_ten(map(str, after), ', ')}."
        )


def resolved(identity):
    """An identity without the flag of the precision: the state says which is used."""
    return {name: value for name, value in identity.items() if name != "--precision"}


def earlier_history(folder, last):
    """Rows of a folder's history up to an epoch: [{"epoch": int, "loss": float}]."""
    if not last or not (folder / "history.csv").exists():
        return []
    with open(folder / "history.csv", newline="") as file:
        rows = [{"epoch": int(row["epoch"]), "loss": float(row["loss"])} for row in csv.DictReader(file)]
    return [row for row in rows if row["epoch"] <= last]


def remove_epochs(folder, offset):
    """Remove the epochs after the `offset`th, their cards and pictures. Returns their numbers.

    Published ones, which have another suffix, stay: no run has written them. Of epochs that --keep has dropped the sheets
    are there, and go too.
    """
    files = {epoch: file for epoch, file in own_epochs(folder).items() if epoch > offset}
    for sheet in (folder / "samples").glob("epoch*.png"):
        if (match := re.fullmatch(r"epoch(\d+)", sheet.stem)) and int(match[1]) > offset:
            sheet.unlink(missing_ok=True)
    (folder / "loss.png").unlink(missing_ok=True)
    remove_files(files.values())
    return list(files)


def forget_epochs(folder, offset):
    """Let no record say that epochs after the `offset`th are those of a finished training.

    The record of one that began before stays, since earlier epochs are still its own, and notes which was the last of them.
    """
    for path in folder.glob("training*.json"):
        if (start := int(re.sub(r"\D", "", path.stem) or 0)) >= offset:
            path.unlink()
            continue
        record = read_json(path)
        epochs = record.get("arguments", {}).get("epochs")
        if isinstance(epochs, int) and start + epochs > offset:
            write_json(path, record | {"replaced_after": min(offset, record.get("replaced_after", offset))})


def partly_replaced(record_file):
    """Whether other epochs have taken the place of some of a finished training's."""
    return "replaced_after" in read_json(record_file)


def own_epochs(folder):
    """{epoch: file} of the epochs that a run has saved; published ones have another suffix."""
    return {epoch: file for epoch, file in saved_epochs(folder).items() if file == epoch_path(folder, epoch)}


def remove_files(files):
    """Remove epoch files and their cards."""
    for file in files:
        file.unlink()
        file.with_name(file.name + ".json").unlink(missing_ok=True)


def enc_epochs_in_use(experiment):
    """Epochs of the Class Encoder that the experiment's fine-tunings have started from, as their records say."""
    folder, found = experiment.part_dir("dif"), set()
    for record in sorted([*folder.glob("training*.json"), *folder.glob("run.json")]):
        content = read_json(record)
        found |= {content.get("--enc_epoch"), content.get("arguments", {}).get("enc_epoch")}
    return found - {None, 0}


def guide_epoch(experiment, part, sampled, epoch):
    """File of the earlier epoch of `part` that guides; None for epoch 0: the pretrained UNet, and for None: none does.

    Args:
        experiment: The `Experiment`.
        part: `enc` or `dif`: what was trained last.
        sampled: The epoch that is sampled; None: one after the guide is searched.
        epoch: The one that --autoguide asks for.

    Raises:
        UserError: The epoch is not there, or is no earlier one; it names the flag.
    """
    if epoch is not None and sampled is not None and epoch >= sampled:
        raise UserError(f"--autoguide {epoch}: must be an epoch before --{part}_epoch {sampled}, which it guides.")
    if epoch == 0 and part == "enc":
        raise UserError("--autoguide 0: is the pretrained UNet; a fresh Class Encoder guides nowhere.")
    return epoch_file(experiment.part_dir(part), epoch, part, "--autoguide") if epoch else None


def chosen_epochs(experiment, enc_epoch, dif_epoch):
    """Files of the epochs to start from: {"enc": path, "dif": path}, None for epoch 0: fresh or pretrained.

    Raises:
        UserError: An epoch is not there; it names the flag.
    """
    chosen = {"enc": enc_epoch, "dif": dif_epoch}
    return {part: epoch_file(experiment.part_dir(part), epoch, part) if epoch else None for part, epoch in chosen.items()}
