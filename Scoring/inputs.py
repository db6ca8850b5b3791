"""What a training reads, by content, and what its result says of where it comes from."""

import logging

from Data.doubts import OTHER_IMAGES, doubts
from Data.registry import DATASETS
from Data.synthetic import read_manifest, recipe, set_identity
from Experiment.levers import levers_on
from Experiment.records import short, training_record
from Models.weight_cards import teacher_hash

log = logging.getLogger("experiment")


def learns_from_real(args):
    """Whether real training images take part: as such, mixed in, or as what the teacher has learnt from."""
    return not args.synthetic or args.labels != "hard" or args.real_share > 0


def inputs_of(args, data, set_folder, experiment):
    """What the run reads, by content: classes, real images, the synthetic set, and the teacher where there is one already.

    Args:
        args: The script's arguments.
        data: The `data_identity` of the real images.
        set_folder: Of the synthetic set, or None.
        experiment: The `Experiment`.
    """
    read = ("resolution", *(("train",) if learns_from_real(args) else ()), "val", "test")
    inputs = {"classes": data["classes"], "data": {name: data[name] for name in read}}
    if set_folder:
        inputs["set"] = set_identity(set_folder, data["classes"])
    if args.labels != "hard" and (found := teacher_hash(experiment.teacher_dir(args.classifier, args.augment))):
        inputs["teacher"] = found
    return inputs


def doubts_of(spec, splits, data, set_folder, kept=()):
    """Why what is measured may be too good, see `Data.doubts`. Of a set, its manifest says what its generator has seen.

    Args:
        spec: The `DatasetSpec`.
        splits, data: The real images, and their `data_identity`.
        set_folder: Of the synthetic set, or None.
        kept: What is on record already.
    """
    seen = (read_manifest(set_folder) or {}).get("learned_from", []) if set_folder else []
    told = list(dict.fromkeys([*doubts(splits, data, seen, own=spec.name not in DATASETS), *kept]))
    if OTHER_IMAGES in told:  # of the rest loading has warned
        log.warning("the accuracy may be too good: %s", OTHER_IMAGES)
    return told


def kept_of(folder, entry):
    """What goes on with a classifier that is tested again without its set, from its record: {"doubts": [...], "content": hash}.

    Args:
        folder: Of the classifier. Records of earlier versions hold no doubts.
        entry: Its earlier result, {} where there is none: a published one has neither.
    """
    record = training_record(folder)
    content = record.get("inputs", {}).get("set", {}).get("sha256")
    kept = {"doubts": record.get("doubts", entry.get("doubts", []))}
    return kept | ({"content": short(content)} if content else {})


def taught_by(inputs):
    """Which teacher's labels a training has learnt from, for its result: {"teacher": hash}, {} with hard labels.

    Args:
        inputs: What it reads, by content: of `inputs_of`, or of its record.
    """
    return {"teacher": short(inputs["teacher"])} if "teacher" in inputs else {}


def unit_of(args, spec):
    """How many images 1x are, for a result of a synthetic set: {"unit": number}."""
    return {"unit": spec.unit} if args.synthetic else {}


def origin(args, folder, set_folder, trained, data):
    """What a result says of where it comes from: {"set": {setting: value}, "training": {setting: value}, "learned_from": hash}, or less.

    Of a classifier that is trained already it is what its record says; a published one has none.

    Args:
        args: The script's arguments.
        folder: Of the classifier.
        set_folder: Of the synthetic set, or None.
        trained: Whether it is trained already.
        data: The `data_identity` of the real images.
    """
    if trained or not args.train:
        record = training_record(folder)
        kinds = {"set": dict, "training": dict, "learned_from": str}
        return {key: record[key] for key, kind in kinds.items() if isinstance(record.get(key), kind)}
    training = {name: getattr(args, name) for name in ("seed", "epochs", "batch_size")}
    levers = levers_on(vars(args))
    if not set_folder:
        return {"training": training | levers, "learned_from": short(data["train"])}
    made = {"folder": set_folder.name, **recipe(set_folder)}
    seen = (read_manifest(set_folder) or {}).get("learned_from", [])
    seen = sorted({short(each["train"]) for each in seen if each["resolution"] == data["resolution"]})
    return {"set": made, "training": {**training, "resize": args.resize, **levers},
            **({"learned_from": ", ".join(seen)} if seen else {})}  # fmt: skip
