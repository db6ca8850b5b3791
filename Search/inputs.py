"""What a study is a study of: its settings, and the content of the data and of the weights that it reads."""

import logging

from Data.doubts import OTHER_IMAGES, doubts
from Data.identity import data_identity
from Data.registry import DATASETS
from Experiment.errors import UserError
from Experiment.levers import OFF, filled_in, levers_on
from Experiment.records import changes, flattened, masked
from Models.foreign_weights import is_foreign
from Models.weight_cards import learned_from, weights_hashes

log = logging.getLogger("experiment")

# Arguments that two runs must share to be one study.
SETTINGS = (
    "backbone", "seed", "num_imgs", "batch_size", "epochs", "classifier", "is_min", "is_max", "ugs_max", "enc_epoch",
    "select_on", "resize", "timestep_spacing", "rungs", "pruner", "test_imgs", "is_1", "ugs_1",
)  # fmt: skip
PLACES = ("dataset", "skip_broken", "precision")  # what stands for the inputs in studies of earlier versions
MOST_EPOCHS_SHOWN = 3
# Pretrained weights. Studies of earlier versions name them only where they are not the backbone's own.
PRETRAINED = ("weights.unet", "weights.decoder")

ONCE = "the finished classifier"  # what --select_on test asks, as published; earlier versions asked it after every epoch


def search_inputs(splits, spec, epochs, epoch_files):
    """What a search reads, by content: a copy elsewhere is the same.

    Args:
        splits: The dataset's `Splits`.
        spec: Its `DatasetSpec`.
        epochs: {epoch: file} of what is searched.
        epoch_files: {part: file or None} of the epochs that stay as they are.

    Returns:
        {"classes": [...], "data": {...}, "weights": {part: SHA-256}}, {epoch: SHA-256} of what is searched, the epochs as
        text, as JSON has them, and why accuracies may be too good, a list of text.

    Raises:
        UserError: Weights were trained on other classes.
    """
    data = data_identity(splits, spec)
    classes = data["classes"]
    hashes = weights_hashes({str(epoch): file for epoch, file in epochs.items()}, classes)
    seen = learned_from([*epochs.values(), *epoch_files.values()])
    told = doubts(splits, data, seen, own=spec.name not in DATASETS)
    if OTHER_IMAGES in told:  # of the rest loading has warned
        log.warning("too good may be what this search measures: %s", OTHER_IMAGES)
    inputs = {
        "classes": classes,
        "data": {name: data[name] for name in ("resolution", "val", "test")},
        "weights": weights_hashes(epoch_files, classes),
    }
    return inputs, hashes, told


def claim_study(study, args, known, precision):
    """Note settings and inputs in a study without trials, or compare them with those of one that has some.

    A study of an earlier version is compared in the keys that it has. Epochs that --prune has removed need not be there.

    Args:
        study: The study.
        args: The script's arguments.
        known: What is known of the search: `inputs` and `hashes`, as `search_inputs` returns them, and the `address`.
        precision: The arithmetic in use, not `auto`.

    Raises:
        UserError: They differ; it shows both.
    """
    if study.get_trials(deepcopy=False):
        go_on_as_begun(args, known, study.user_attrs.get("settings", {}))
    removed = removed_epochs(study)
    last = max(map(int, {*known.hashes, *removed}))
    settings = {name: getattr(args, name) for name in SETTINGS} | {"last_epoch": last, "precision_used": precision}
    settings |= {"tested": ONCE} if args.select_on == "test" else {}
    settings |= {name: value for name, value in levers_on(vars(args)).items() if name != "objective"}  # only reported
    if args.train_model == "dif":
        settings["levers_1"] = vars(args).get("levers_1", {})
    settings |= flattened(known.inputs)
    if not study.get_trials(deepcopy=False):
        study.set_user_attr("settings", settings)
        study.set_user_attr("epochs", known.hashes)
        return
    before = filled_in(study.user_attrs.get("settings", {}), settings)
    if before.get("select_on") == "test" and "tested" not in before:
        raise UserError(
            f"the study {study.study_name} in {masked(known.address)} is of an earlier version, which took the best of all epochs "
            "on test: use another --exp, or --restart to search afresh."
        )
    settings = filled_in(settings, before)
    foreign = args.weights_dir and is_foreign(args.weights_dir)
    if foreign and not any(name in before for name in PRETRAINED):
        before = dict.fromkeys(PRETRAINED) | before
    if "data.val" not in before:
        settings |= {name: getattr(args, name) for name in PLACES}
    now = as_identity({name: value for name, value in settings.items() if name in before})
    before, more = as_identity(before), 0
    if "epochs" in study.user_attrs:
        epochs = study.user_attrs["epochs"]
        numbers = sorted({*epochs, *known.hashes} - (removed - set(known.hashes)), key=int)
        differing = [number for number in numbers if epochs.get(number) != known.hashes.get(number)]
        more = len(differing[MOST_EPOCHS_SHOWN:])
        for number in differing[:MOST_EPOCHS_SHOWN]:
            name = f"{args.train_model} epoch {number}"
            before[name], now[name] = epochs.get(number), known.hashes.get(number)
    if shown := changes(before, now):
        shown += f" and {more} more epochs" if more else ""
        raise UserError(
            f"the study {study.study_name} in {masked(known.address)} has {shown}. "
            "Use another --exp, or --restart to search afresh."
        )


def go_on_as_begun(args, known, before):
    """Let a second search of an earlier version go on without the levers that it did not take from the first one.

    Args:
        args, known: Of this run; `args` are changed.
        before: Settings of the study.
    """
    if "levers_1" in before:
        return
    for name, earlier in known.adopted.items():
        if getattr(args, name) != earlier and before.get(name, earlier) == earlier:
            log.warning("--best: the first search has chosen with %s %s; this study was begun by an earlier version without, and "
                        "goes on so", name, getattr(args, name))  # fmt: skip
            setattr(args, name, earlier)


def as_identity(settings):
    """Settings of a study by the names that messages show: --flags, and inputs."""
    return {f"--{name}" if name in (*SETTINGS, *PLACES, *OFF) else name: value for name, value in settings.items()}


def removed_epochs(study):
    """Numbers, as text, of the epochs that --prune has removed."""
    return set(map(str, study.user_attrs.get("removed", [])))
