"""What is known of an epoch's weights, in a small file beside them: their hash, and what they were trained on."""

from Experiment.errors import UserError
from Experiment.files import file_hash, read_json, write_json

KEPT = ("sha256", "bytes", "modified")  # the rest of a card is what its writer says


def card_path(path):
    return path.with_name(path.name + ".json")


def write_card(path, facts):
    """Describe a weight file: its SHA-256, size and time, and the writer's facts, such as `classes`."""
    found = path.stat()
    card = {"sha256": file_hash(path), "bytes": found.st_size, "modified": found.st_mtime_ns, **facts}
    write_json(card_path(path), card)
    return card


def read_card(path):
    """The card of a weight file. Its hash is computed at most once: only if the file has changed since, or has no card.

    Published weights have none; it is made where the folder can be written to.
    """
    card = {}
    if card_path(path).exists():
        try:
            card = read_json(card_path(path))
        except UserError:
            card = {}  # damaged: made again
    found = path.stat()
    if (card.get("bytes"), card.get("modified")) == (found.st_size, found.st_mtime_ns) and "sha256" in card:
        return card
    sha256 = file_hash(path)
    # Facts hold for a copy of the file, not for another one under its name.
    facts = {k: v for k, v in card.items() if k not in KEPT} if card.get("sha256") == sha256 else {}
    card = {"sha256": sha256, "bytes": found.st_size, "modified": found.st_mtime_ns, **facts}
    try:
        write_json(card_path(path), card)
    except OSError:
        pass  # a folder that can only be read
    return card


def weights_hashes(files, classes):
    """SHA-256 of epoch files by part: {"enc": ..., "dif": ...}; those that are None are left out.

    Args:
        files: {part: path or None}.
        classes: Names of the dataset's classes.

    Raises:
        UserError: Weights were trained on other classes.
    """
    hashes = {}
    for part, path in files.items():
        if not path:
            continue
        card = read_card(path)
        if card.get("classes", list(classes)) != list(classes):
            raise UserError(
                f"{path} was trained on other classes: {', '.join(card['classes'][:10])}. "
                f"The dataset has {', '.join(classes[:10])}."
            )
        hashes[part] = card["sha256"]
    return hashes


def teacher_hash(folder):
    """SHA-256 of the weights of the teacher in its folder; None where none has finished."""
    weights = folder / "best_model.weights.h5"
    return read_card(weights)["sha256"] if (folder / "training.json").exists() and weights.exists() else None
