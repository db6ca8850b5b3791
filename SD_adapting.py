"""Adapt Stable Diffusion to a dataset: train the Class Encoder (enc), then fine-tune the UNet (dif).

python SD_adapting.py --dataset cifar10 --train_model enc --exp 0001
python SD_adapting.py --dataset cifar10 --train_model dif --exp 0001 --enc_epoch 31
"""

import csv
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cli.flags import add_model_flags, check_batch_size, finish_args, integer, new_parser, number
from cli.process import run, writing_in
from Data.latents import cached_moments
from Data.loaders import Split, class_names, data_identity, load_splits
from Data.registry import DatasetSpec, dataset_spec
from Experiment.disk import check_room, gigabytes
from Experiment.errors import UserError
from Experiment.files import read_json, write_json
from Experiment.locks import claim
from Experiment.paths import Experiment
from Experiment.records import DATA_FLAGS, describe_run, finished_run, identity
from Models.backbones import BACKBONES
from Models.weight_cards import weights_hashes
from Models.weight_names import chosen_epochs, remove_epochs, saved_epochs

log = logging.getLogger("experiment")

FREE = (*DATA_FLAGS, "weights_dir", "freq", "keep")  # arguments that do not change the result
SHEETS = 2  # sample sheets over a run, beside that of the first epoch
COLLAGE = 24  # images of a class in the published collages


def parse_args(argv=None):
    parser = new_parser(__doc__, exp_required=True)
    parser.add_argument(
        "--train_model",
        default="enc",
        choices=["enc", "dif"],
        help="enc: the Class Encoder; dif: the UNet, with the encoder of --enc_epoch (enc)",
    )
    parser.add_argument("--enc_epoch", default=0, type=integer(0), help="Class Encoder to start from; 0: fresh (0)")
    parser.add_argument("--dif_epoch", default=0, type=integer(0), help="UNet to start from; 0: pretrained (0)")
    parser.add_argument("--freq", default=1, type=integer(1), help="epochs between saved weights (1)")
    parser.add_argument(
        "--keep", type=integer(1), help="keep the last N epochs of this run only (all, since the search chooses)"
    )
    parser.add_argument("--epochs", type=integer(1), help="epochs (enc 50, dif 10; mini: 12, 64)")
    parser.add_argument("--batch_size", type=integer(1), help="images a step (enc 64, dif 16; mini: 64, 32)")
    parser.add_argument(
        "--lr", type=number(0, 10, above=True), help="first learning rate (enc 1e-4, dif 1e-5; mini: 2e-2, 8e-4)"
    )
    parser.add_argument(
        "--gradient_checkpointing",
        action="store_true",
        help="compute the UNet's blocks twice a step instead of keeping what they computed: less memory",
    )
    add_model_flags(parser)
    parser.add_argument("--restart", action="store_true", help="throw away what an earlier run has left here")
    args = finish_args(parser, argv)
    for flag, value in BACKBONES[args.backbone].training[args.train_model].items():
        if getattr(args, flag) is None:
            setattr(args, flag, value)
    return args


@dataclass
class Plan:
    """What is known of a run before anything heavy is loaded.

    Attributes:
        spec: The dataset's.
        experiment: Where everything lies.
        folder: Of the epochs.
        record_file: The record that the run leaves.
        offset: Epochs that earlier training had.
        train: The training images.
        epochs: Files of the epochs to start from.
        inputs: What the run reads, by content.
        identity: What makes another run the same.
        done: A line where there is nothing to do.
    """

    spec: DatasetSpec
    experiment: Experiment
    folder: Path
    record_file: Path
    offset: int
    train: Split
    epochs: dict
    inputs: dict
    identity: dict
    done: str = None


def plan(args):
    """Look at what is there.

    Raises:
        UserError: The run cannot begin: other arguments or inputs, a missing epoch, another process at work.
    """
    spec = dataset_spec(args.dataset, args.skip_broken, args.resolution, args.background)
    experiment = Experiment(args.root, args.exp, spec.name)
    folder = experiment.part_dir(args.train_model)
    offset = args.enc_epoch if args.train_model == "enc" else args.dif_epoch
    record_file = folder / (f"training_from{offset}.json" if offset else "training.json")
    epochs = chosen_epochs(experiment, args.enc_epoch, args.dif_epoch)
    splits = load_splits(spec, args.data_dir, args.seed, None, experiment)
    data = data_identity(splits, spec)
    inputs = {
        "classes": data["classes"],
        "data": {name: data[name] for name in ("resolution", "train")},
        "weights": weights_hashes(epochs, data["classes"]),
    }
    known = Plan(
        spec, experiment, folder, record_file, offset, splits.train, epochs, inputs, identity(args, FREE, inputs)
    )
    if finished_run(record_file, args, FREE, inputs):
        (folder / "state.npz").unlink(missing_ok=True)  # killed between the record and this
        known.done = f"finished already: {folder} (--restart trains again)"
    else:
        claim(folder, create=False)
        refuse_to_overwrite(args, known)
    return known


def refuse_to_overwrite(args, known):
    """Raise a UserError if epochs are there that this run would write, and that are not its own from before."""
    begun = known.folder / "run.json"
    there = [epoch for epoch in saved_epochs(known.folder) if known.offset < epoch <= known.offset + args.epochs]
    if there and not args.restart and not (begun.exists() and read_json(begun) == known.identity):
        raise UserError(
            f"{known.folder} holds the epochs {', '.join(map(str, there[:10]))} of another run, which would be "
            "overwritten. Use another --exp, or --restart to replace them."
        )


def earlier_history(folder, offset):
    """Rows of the history up to the epoch that training goes on from."""
    if not offset or not (folder / "history.csv").exists():
        return []
    with open(folder / "history.csv", newline="") as file:
        rows = [{"epoch": int(row["epoch"]), "loss": float(row["loss"])} for row in csv.DictReader(file)]
    return [row for row in rows if row["epoch"] <= offset]


def dataset_moments(args, known, backbone):
    """VAE moments float32 (N, h, w, 8) of the training images, computed once and cached."""
    from Models.adapter import encode_moments
    from Models.runtime import precision

    def encode(images):
        with precision("float32"):
            image_encoder = backbone.image_encoder(args.weights_dir)
        return encode_moments(image_encoder, images, backbone.image_size)

    name = f"{known.spec.name}_{backbone.name}_{backbone.image_size}"
    weights = backbone.weights_hash("image_encoder", args.weights_dir)
    return cached_moments(known.experiment.latents_dir, name, known.train.images, weights, encode)


def adapt(args, known=None):
    """Steps 1 and 3 of the paper: one network of the diffusion model learns to denoise the dataset's latents.

    Args:
        args: What `parse_args` returns.
        known: What `plan` has found, if it was asked before.

    Returns:
        The folder of the epochs.
    """
    from Models.adapter import WholeNetwork, load_diffusion
    from Models.fit_state import FitState
    from Models.runtime import make_repeatable, precision
    from Models.samples import sheet_writer

    started = time.time()
    known = known or plan(args)
    if known.done:
        return known.folder
    backbone, folder, classes = BACKBONES[args.backbone], known.folder, class_names(known.spec)
    check_batch_size(args, backbone.training[args.train_model]["batch_size"], len(known.train.labels))
    make_repeatable(args.seed, args.deterministic)
    with precision(args.precision, learns=True) as used:
        diffusion = load_diffusion(backbone, len(classes), args.weights_dir, **known.epochs)
        title = f"{known.spec.name}, {args.train_model} epoch {{}}"
        write_sheet = sheet_writer(diffusion, classes, args.seed, folder, title)
    moments = dataset_moments(args, known, backbone)  # float32 (N, h, w, 8)
    adapted = WholeNetwork(diffusion, args.train_model, {"classes": classes, "dataset": known.spec.name})
    model = compile_model(args, adapted, used, len(known.train.labels))
    variables = [*adapted.variables, *model.optimizer.variables]
    state = FitState(folder / "state.npz", known.identity, variables)
    done, history, _ = (0, {}, []) if args.restart else state.load()
    needed = room(args, adapted)
    check_room(folder, needed, "this run")
    with writing_in(folder, saved=lambda: f"{state.epoch} of {args.epochs} epochs are saved"):
        log.info(
            "%s of %s on %s: %d images, %d parameters, epochs %d to %d of %d steps, batch %d, lr %g, %s, seed %d, "
            "at most %s on disk -> %s",
            args.train_model, backbone.name, known.spec.name, len(known.train.labels), adapted.network.count_params(),
            known.offset + 1, known.offset + args.epochs, -(-len(known.train.labels) // args.batch_size),
            args.batch_size, args.lr, used, args.seed, gigabytes(needed), folder,
        )  # fmt: skip
        losses = train(args, known, adapted, model, state, moments, done, history.get("loss", []), write_sheet)
        write_json(known.record_file, describe_run(args, started, known.inputs, precision_used=used, loss=losses[-1]))
        log.info("loss %.4f after %d epochs, %.0f s -> %s", losses[-1], args.epochs, time.time() - started, folder)
        state.path.unlink(missing_ok=True)
    return folder


def room(args, adapted):
    """Bytes that a run writes at most: epochs, and a state of which there are two while it is replaced."""
    epoch, state = adapted.bytes
    saves = -(-args.epochs // args.freq) + 1
    return epoch * min(saves, args.keep + 1 if args.keep else saves) + 2 * state


def compile_model(args, adapted, used, images):
    """The denoising model with the paper's optimizer, in which only the adapted part learns."""
    from Models.adapter import denoising_model
    from Models.faster_layers import checkpoint_gradients
    from Models.optimizer import paper_optimizer
    from Models.runtime import precision

    diffusion, backbone = adapted.diffusion, adapted.diffusion.backbone
    if args.gradient_checkpointing:
        checkpoint_gradients(diffusion.unet)
    adapted.freeze_the_rest()
    # Measured with mini on 2 cores: cut in two, the encoder learns 1.8 times as fast, the UNet no faster.
    side_by_side = backbone.side_by_side if args.train_model == "enc" else 1
    with precision(args.precision, learns=True):
        model = denoising_model(
            diffusion.unet, diffusion.encoder, backbone.latent_scale, side_by_side, backbone.schedule,
            backbone.prediction_type,
        )  # fmt: skip
    # The encoder computes in float32 whatever the precision.
    gradient_dtype = "bfloat16" if args.train_model == "dif" and used == "mixed_bfloat16" else "float32"
    steps = -(-images // args.batch_size) * args.epochs
    model.compile(paper_optimizer(args.lr, steps, gradient_dtype), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def train(args, known, adapted, model, state, moments, done, losses, write_sheet):
    """Train from epoch `done` on, and save epochs, history, sheets and loss curve. Returns the losses of this run."""
    from Models.adapter import SaveEpochs
    from Models.feed import noisy_batches, with_targets
    from Models.runtime import fast_feed
    from plots import class_collages, loss_curve

    spec, folder, offset, (images, labels) = known.spec, known.folder, known.offset, known.train
    if args.restart:
        thrown_away = remove_epochs(folder, offset)
        log.info("throwing away the epochs %s in %s", ", ".join(map(str, thrown_away)) or "none", folder)
        for file in (state.path, known.record_file):
            file.unlink(missing_ok=True)
    write_json(folder / "run.json", known.identity)
    if done:
        log.info("going on after epoch %d", offset + done)
    if args.train_model == "dif" and args.enc_epoch == 0:
        log.warning("the UNet is trained with a fresh Class Encoder: --enc_epoch names a trained one")
    shown = [images[np.flatnonzero(labels == label)[:COLLAGE]] for label in range(spec.num_classes)]
    class_collages(shown, known.experiment.images_dir, "real")
    sheet_every = max(1, args.epochs // SHEETS)

    def on_save(epoch, last):
        if last or (epoch - offset) % sheet_every == 0 or epoch - offset == 1:
            write_sheet(epoch)

    earlier = earlier_history(folder, offset)
    saver = SaveEpochs(adapted, folder, state, args.freq, args.epochs, offset, losses, on_save, earlier, args.keep)
    schedule = adapted.diffusion.backbone.schedule
    # Noise is addressed by the epoch: one that continues draws its own.
    batches = noisy_batches(
        moments, labels, spec.num_classes, args.batch_size, args.seed, offset + done, schedule.num_timesteps
    )
    model.fit(
        fast_feed(with_targets(batches)), steps_per_epoch=-(-len(labels) // args.batch_size), epochs=args.epochs,
        initial_epoch=done, callbacks=[saver], shuffle=False, verbose=2,
    )  # fmt: skip
    loss_curve(saver.history, folder / "loss.png", f"{spec.name}, {args.train_model}")
    return saver.losses


if __name__ == "__main__":
    run(adapt, parse_args, plan)
