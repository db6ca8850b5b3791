"""What a training reads, by content, and what its result says of where it comes from."""

from Data.report import data_identity
from Data.synthetic import recipe, set_identity
from Experiment.files import read_json
from Experiment.levers import levers_on
from Models.weight_cards import teacher_hash


def learns_from_real(args):
    """Whether real training images take part: as such, mixed in, or as what the teacher has learnt from."""
    return not args.synthetic or args.labels == "soft" or args.real_share > 0


def inputs_of(args, spec, splits, set_folder, experiment):
    """What the run reads, by content: classes, real images, the synthetic set, and the teacher where there is one already."""
    data = data_identity(splits, spec)
    read = ("resolution", *(("train",) if learns_from_real(args) else ()), "val", "test")
    inputs = {"classes": data["classes"], "data": {name: data[name] for name in read}}
    if set_folder:
        inputs["set"] = set_identity(set_folder, data["classes"])
    known_teacher = teacher_hash(experiment.teacher_dir(args.classifier)) if args.labels == "soft" else None
    return inputs | ({"teacher": known_teacher} if known_teacher else {})


def origin(args, folder, set_folder, trained):
    """What a result says of where it comes from: {"set": {setting: value}, "training": {setting: value}}, or less.

    Of a classifier that is trained already it is what its record says; a published one has none.
    """
    if trained or not args.train:
        record = read_json(folder / "training.json") if (folder / "training.json").exists() else {}
        return {key: record[key] for key in ("set", "training") if isinstance(record.get(key), dict)}
    training = {name: getattr(args, name) for name in ("seed", "epochs", "batch_size")}
    levers = levers_on(vars(args))
    if not set_folder:
        return {"training": training | levers}
    made = {"folder": set_folder.name, **recipe(set_folder)}
    return {"set": made, "training": {**training, "resize": args.resize, **levers}}
