"""What is known of weights, in a small file beside them: their hash, and what an epoch's were trained on."""

import contextlib
import hashlib
import logging

from Experiment.errors import UserError
from Experiment.files import atomic_path, file_hash, read_json, write_json
from Experiment.paths import BEST_WEIGHTS, REPOSITORY, is_trained
from Experiment.records import changes, flattened, training_record

log = logging.getLogger("experiment")

KEPT = ("sha256", "bytes", "modified")  # the rest of a card is what its writer says


def card_path(path):
    return path.with_name(path.name + ".json")


def kept_elsewhere(path):
    """Where the card of a file lies whose folder can only be read."""
    return REPOSITORY / "cache" / "hashes" / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]}.json"


def write_card(path, facts, name=None):
    """Describe a weight file: its SHA-256, size and time, and the writer's facts, such as `classes`.

    Args:
        path: The file.
        facts: What its writer says of it.
        name: The name that the file will take, if it has another one yet.
    """
    found = path.stat()
    card = {"sha256": file_hash(path), "bytes": found.st_size, "modified": found.st_mtime_ns, **facts}
    write_json(card_path(name or path), card)
    return card


@contextlib.contextmanager
def with_card(path, facts):
    """Yield a name beside `path` to write weights to: they take their final name when the block and their card are done.

    The card goes first. Whoever found the weights without it would make one that lacks the writer's facts; a card alone,
    which a kill may leave, says nothing: it counts for the file alone of which it has the hash. Weights that are there, of
    an epoch that is made again, go before, since the new card would take the facts from them.
    """
    with atomic_path(path) as partial:
        yield partial
        path.unlink(missing_ok=True)
        write_card(partial, facts, path)


def read_card(path):
    """The card of a weight file. Its hash is computed at most once: only if the file has changed since, or has no card.

    Published and foreign weights have none; it is made beside them, or in the project's cache where they can only be read,
    or a file of the user's has the card's name.
    """
    found, places = path.stat(), [place for place in (card_path(path), kept_elsewhere(path)) if free_for_card(place)]
    if card := fitting_card(path, places):
        return card
    sha256 = file_hash(path)
    if card := fitting_card(path, places):  # its writer's, who was at it meanwhile: it knows more
        return card
    card = next(filter(None, map(known_card, places)), {})
    # Facts hold for a copy of the file, not for another one under its name.
    facts = {k: v for k, v in card.items() if k not in KEPT} if card.get("sha256") == sha256 else {}
    card = {"sha256": sha256, "bytes": found.st_size, "modified": found.st_mtime_ns, **facts}
    for place in places:
        try:
            write_json(place, card)
            break
        except OSError:
            pass  # a folder that can only be read
    return card


def fitting_card(path, places):
    """The card, of those in `places`, that has the size and the time of the file as it is now; None if there is none."""
    found = path.stat()
    for card in map(known_card, places):
        if (card.get("bytes"), card.get("modified")) == (found.st_size, found.st_mtime_ns) and "sha256" in card:
            return card
    return None


def free_for_card(place):
    """Whether a card may be written there: nothing is there, or a card, whole or damaged."""
    try:
        return b'"sha256"' in place.read_bytes()
    except OSError:
        return not place.exists()


def known_card(place):
    """The content of a card; {} if there is none, or a damaged one, which is made again."""
    try:
        card = read_json(place) if place.exists() else {}
    except UserError:
        return {}
    classes, pretrained = card.get("classes", []), card.get("pretrained", {})
    whole = isinstance(classes, list) and isinstance(pretrained, dict)
    return card if whole and all(isinstance(text, str) for text in (*classes, *pretrained.values())) else {}


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


def learned_from(files):
    """Training images that epochs have learned from, their own and those of the epochs before them, as their cards say.

    Args:
        files: Epoch files, or None.

    Returns:
        [{"resolution": px, "train": SHA-256}], each once; published epochs, and those of earlier versions, say nothing.
    """
    told = [read_card(path).get("learned_from") for path in filter(None, files)]
    entries = [entry for of_file in told if isinstance(of_file, list) for entry in of_file]
    whole = [entry for entry in entries if isinstance(entry, dict) and {"resolution", "train"} <= entry.keys()]
    return [entry for i, entry in enumerate(whole) if entry not in whole[:i]]


def check_pretrained(files, now, usual="epsilon", vae_too=False):
    """Compare the pretrained weights of today with those on which epochs were trained, as their cards say.

    An epoch means something on its own UNet alone. With another VAE it is sampled too: a line says so. What a UNet predicts
    is no part of its file where a scheduler's configuration or a .yaml beside it says so: these may have changed alone.

    Args:
        files: Epoch files, or None.
        now: {part: hash} of the pretrained parts that are read; `prediction_type` where it is not the usual one.
        usual: What the backbone's UNet predicts.
        vae_too: Whether another VAE is refused as well.

    Raises:
        UserError: An epoch was trained on another UNet, or one that predicted something else.
    """
    today = now.get("prediction_type", usual)
    for path in filter(None, files):
        then = dict(read_card(path).get("pretrained", {}))
        predicted = then.pop("prediction_type", today)
        if "unet" in now and predicted != today:
            raise UserError(
                f"{path} was trained on a UNet that predicts {predicted}, and these weights are said to predict {today}: is "
                "the scheduler's configuration, or the .yaml beside the file, still that of its training?"
            )
        others = [part for part in then if now.get(part, then[part]) != then[part]]
        if "unet" in others:
            raise UserError(
                f"{path} was trained on another pretrained UNet ({then['unet'][:12]}, not {now['unet'][:12]}): "
                "give the --weights of its training."
            )
        if others and vae_too:
            raise UserError(f"{path} was trained with another VAE: give the --weights of its training.")
        if others:
            log.warning("%s was trained with another VAE than the one in use: is --weights that of its training?", path)


def fresh_encoder(seed):
    """What identifies a fresh Class Encoder, whose weights are a function of the seed."""
    return f"fresh, of seed {seed}"


def compare_encoders(encoder, seed, *unets):
    """Warn where UNets were fine-tuned with another Class Encoder than the one that is to give them contexts.

    Args:
        encoder: File of its epoch; None: a fresh one.
        seed: Of a fresh one.
        unets: Files of epochs, or None. Published ones, and those of earlier versions, do not say, or not of which seed a
            fresh one was.
    """
    if not any(unets):
        warn_of_tuned([encoder])
    now = read_card(encoder)["sha256"] if encoder else fresh_encoder(seed)
    for path in filter(None, unets):
        then = read_card(path).get("class_encoder", now)
        if then != now and (then is not None or encoder):
            log.warning("%s was fine-tuned with another Class Encoder than %s", path, encoder or f"one that is {now}")
            return


def warn_of_tuned(encoders):
    """Warn where Class Encoders have learnt on a fine-tuned UNet and are to be used with the pretrained one.

    Args:
        encoders: Files of their epochs, or None.
    """
    if tuned := [path for path in filter(None, encoders) if read_card(path).get("unet_epoch")]:
        log.warning("%s has learnt on a fine-tuned UNet, and is used with the pretrained one here", tuned[0])


def other_inputs(folder, inputs, names, unknown=True):
    """What the record of a trained classifier says otherwise of what it has read, in words; empty where nothing.

    Args:
        folder: Of the classifier. Without a record nothing is known.
        inputs: {"classes": [...], "data": {name: value}} of today.
        names: Which of the data are compared, besides the classes.
        unknown: Whether what the record does not say counts as something else.

    Raises:
        UserError: The record is damaged.
    """
    theirs = training_record(folder).get("inputs", {})
    now = {"classes": list(inputs["classes"]), **{f"data.{name}": inputs["data"][name] for name in names}}
    before = {"classes": theirs.get("classes"), **flattened({"data": theirs.get("data", {})})}
    return changes(before, {name: value for name, value in now.items() if unknown or before.get(name) is not None})


def teacher_hash(folder):
    """SHA-256 of the weights of the teacher in its folder; None where none has finished."""
    return read_card(folder / BEST_WEIGHTS)["sha256"] if is_trained(folder) else None
