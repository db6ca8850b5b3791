"""Adapt Stable Diffusion to a dataset: train the Class Encoder (enc), then fine-tune the UNet (dif).

python SD_adapting.py --dataset cifar10 --train_model enc --exp first
python SD_adapting.py --dataset cifar10 --train_model dif --exp first --enc_epoch best [--lora_rank 4]
"""

import logging
import time

from cli.adaptation import add_training_levers
from cli.best import epoch_or_best, take_best_epochs
from cli.flags import add_model_flags, add_training_flags, check_batch_size, finish_args, new_parser
from cli.lora import add_lora_flags, base_hashes, check_lora_flags, wanted_updates
from cli.process import run, writing_in
from Data.identity import data_identity
from Data.latents import cached_moments, moments_file
from Data.loaders import load_splits
from Data.registry import class_names, dataset_spec
from Experiment.disk import bytes_in_words, check_room
from Experiment.files import read_json, write_json
from Experiment.locks import refuse_if_claimed
from Experiment.machine import device_name
from Experiment.paths import FIT_STATE, TRAINING_RECORD, Experiment
from Experiment.plan import Plan
from Experiment.progress import FINISHED_BEFORE
from Experiment.records import DATA_FLAGS, describe_run, finished_run, identity
from Models.backbones import BACKBONES
from Models.fit_state import FitState, is_of_run
from Models.foreign_weights import is_foreign
from Models.weight_cards import check_pretrained, compare_encoders, weights_hashes
from Models.weight_names import chosen_epochs, partly_replaced, refuse_to_overwrite

log = logging.getLogger("experiment")

FREE = (*DATA_FLAGS, "weights_dir", "freq", "keep")  # arguments that do not change the result


def parse_args(argv=None):
    parser = new_parser(__doc__, exp_required=True, script="SD_adapting")
    add = parser.add_argument
    add("--train_model", default="enc", choices=["enc", "dif"],
        help="enc: the Class Encoder; dif: the UNet, with the encoder of --enc_epoch (enc)")  # fmt: skip
    add("--enc_epoch", default=0, type=epoch_or_best, help="Class Encoder to start from, or best; 0: fresh (0)")
    add("--dif_epoch", default=0, type=epoch_or_best, help="UNet to start from, or best; 0: pretrained (0)")
    add_training_flags(add)
    add_lora_flags(parser)
    add_training_levers(parser)
    add_model_flags(parser)
    add("--restart", action="store_true", help="throw away what an earlier run has left here")
    args = finish_args(parser, argv)
    defaults = BACKBONES[args.backbone].training[check_lora_flags(parser, args)]
    for flag, value in defaults.items():
        if getattr(args, flag) is None:
            setattr(args, flag, value)
    return args


def plan(args):
    """Look at what is there.

    Returns:
        A `Plan`: the dataset's `spec`, the `experiment`, the `folder` of the epochs, the `record_file`, the `offset` of
        epochs that earlier training had, the `train` images, files of the `epochs` to start from, `Facts` of low-rank
        `updates` that are to be trained, or None, `inputs` and `identity` of the run, and facts of what was `taken` by name.

    Raises:
        UserError: The run cannot begin: other arguments or inputs, a missing or unfit epoch, another process at work.
    """
    spec = dataset_spec(args.dataset, args.skip_broken, args.resolution, args.background)
    experiment = Experiment(args.root, args.exp, spec.name)
    taken = take_best_epochs(args, experiment, class_names(spec))
    folder = experiment.part_dir(args.train_model)
    offset = args.enc_epoch if args.train_model == "enc" else args.dif_epoch
    record_file = folder / (f"training_from{offset}.json" if offset else TRAINING_RECORD)
    epochs = chosen_epochs(experiment, args.enc_epoch, args.dif_epoch)
    splits = load_splits(spec, args.data_dir, args.seed, None, experiment)
    data, base = data_identity(splits, spec), base_hashes(args, ["image_encoder"], epochs["dif"])
    check_pretrained(epochs.values(), base, BACKBONES[args.backbone].prediction_type)
    if args.train_model == "dif":
        compare_encoders(epochs["enc"], args.seed, epochs["dif"])
    inputs = {
        "classes": data["classes"],
        "data": {name: data[name] for name in ("resolution", "train")},
        "weights": base | weights_hashes(epochs, data["classes"]),
    }
    known = Plan(spec=spec, experiment=experiment, folder=folder, record_file=record_file, offset=offset,
                 train=splits.train, epochs=epochs, updates=wanted_updates(args, epochs["dif"]), inputs=inputs,
                 identity=identity(args, FREE, inputs), taken=taken)  # fmt: skip
    if args.weights_dir and is_foreign(args.weights_dir):  # what stands beside a file may later say otherwise of it
        inputs["predicts"] = base.get("prediction_type", BACKBONES[args.backbone].prediction_type)
    free = FREE + free_precision(record_file, args.precision)
    if finished_run(record_file, args, free, inputs) and not partly_replaced(record_file):
        if is_of_run(folder / FIT_STATE, known.identity):
            (folder / FIT_STATE).unlink()  # killed between the record and this
        known.done = f"{FINISHED_BEFORE}: {folder} (--restart trains again)"
    else:
        refuse_if_claimed(folder)
        refuse_to_overwrite(folder, offset + 1, offset + args.epochs, None if args.restart else known.identity)
    return known


def free_precision(record_file, precision):
    """("precision",) where a finished run has what is asked for, though by another name: `auto`, or what `auto` meant there."""
    used = read_json(record_file).get("precision_used") if record_file.exists() else None
    return ("precision",) if precision in ("auto", used) else ()


def adapt(args, known=None):
    """Steps 1 and 3 of the paper: one network of the diffusion model learns to denoise the dataset's latents.

    Args:
        args: What `parse_args` returns.
        known: What `plan` has found, if it was asked before.

    Returns:
        The folder of the epochs.
    """
    from Adapting.levers import said_training
    from Adapting.training import set_up, train
    from Models.adapter import load_diffusion
    from Models.devices import sharing, start_devices
    from Models.moments import moments_encoder
    from Models.runtime import precision
    from Models.sample_sheets import sheet_writer
    from Models.training import bytes_needed

    started = time.time()
    known = known or plan(args)
    if known.done:
        return known.folder
    backbone, folder, classes = BACKBONES[args.backbone], known.folder, class_names(known.spec)
    check_batch_size(args, backbone.training[args.train_model]["batch_size"], len(known.train.labels))
    start_devices(args)
    # Weights that stay as they are may be held in bfloat16, but for those under the Class Encoder: its loss would differ.
    with precision(args.precision, trainable=not known.updates) as used:
        epochs = known.epochs | ({"dif": None} if known.updates else {})
        with sharing(args.devices):
            diffusion = load_diffusion(backbone, len(classes), args.weights_dir, **epochs)
        title = f"{known.spec.name}, {args.train_model} epoch {{}}"
        write_sheet = sheet_writer(diffusion, classes, args.seed, folder, title)
    with sharing(args.devices):
        adapted, model, fit_levers, recorded = set_up(args, known, diffusion, used)
    write_sheet = adapted.drawn(write_sheet) if args.ema else write_sheet
    settings = known.identity | {"precision_used": used}
    state = FitState(folder / FIT_STATE, settings, [*adapted.variables, *model.optimizer.variables])
    done, history, _ = (0, {}, []) if args.restart else state.load()
    needed = bytes_needed(adapted, args.epochs, args.freq, args.keep, done)
    check_room(folder, needed, "this run" if not done else "what is left of this run")
    images, encode = known.train.images, moments_encoder(backbone, args.weights_dir)
    moments = cached_moments(moments_file(known.experiment, backbone, args.weights_dir, images), images, encode)  # (N, h, w, 8)
    with writing_in(folder, saved=lambda: f"{state.epoch} of {args.epochs} epochs are saved"):
        log.info(
            "%s of %s on %s: %d images, %d parameters, epochs %d to %d of %d steps, batch %d, lr %g, %s, seed %d, "
            "at most %s on disk, %s -> %s",
            args.train_model, backbone.name, known.spec.name, len(known.train.labels), adapted.parameters,
            known.offset + 1, known.offset + args.epochs, -(-len(known.train.labels) // args.batch_size),
            args.batch_size, args.lr, used, args.seed, bytes_in_words(needed), device_name(), folder,
        )  # fmt: skip
        for line in said_training(args, known.updates, recorded):
            log.info(line)
        losses = history.get("loss", [])
        losses = train(args, known, adapted, model, state, moments, done, losses, write_sheet, fit_levers)
        recorded |= known.taken | {"precision_used": used, "loss": losses[-1]}
        write_json(known.record_file, describe_run(args, started, known.inputs, **recorded))
        log.info("loss %.4f after %d epochs, %.0f s -> %s", losses[-1], args.epochs, time.time() - started, folder)
        state.path.unlink(missing_ok=True)
    return folder


if __name__ == "__main__":
    run(adapt, parse_args, plan)
