"""Adapt Stable Diffusion to a dataset: train the Class Encoder (enc), then fine-tune the UNet (dif).

python SD_adapting.py --dataset cifar10 --train_model enc --exp 0001
python SD_adapting.py --dataset cifar10 --train_model dif --exp 0001 --enc_epoch 31
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from cli.flags import add_model_flags, check_batch_size, finish_args, integer, new_parser, number
from cli.process import run, writing_in
from Data.latents import cached_moments
from Data.loaders import class_names, load_splits
from Data.registry import DatasetSpec, dataset_spec
from Experiment.files import write_json
from Experiment.locks import claim
from Experiment.paths import Experiment
from Experiment.records import describe_run, finished_run, fixed_arguments
from Models.backbones import BACKBONES
from Models.weight_names import chosen_epochs, epoch_path, saved_epochs

log = logging.getLogger("experiment")

FREE = ("root", "data_dir", "weights_dir", "freq")  # arguments that do not change the result
SHEETS = 2  # sample sheets over a run
SHEET_STEPS, SHEET_SCALE, SHEET_BATCH = 20, 1.5, 80


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
        epochs: Files of the epochs to start from.
        done: A line where there is nothing to do.
    """

    spec: DatasetSpec
    experiment: Experiment
    folder: Path
    epochs: dict = None
    done: str = None


def plan(args):
    """Look at what is there.

    Raises:
        UserError: The run cannot begin: other arguments, a missing epoch, another process at work.
    """
    spec = dataset_spec(args.dataset, args.skip_broken, args.resolution, args.background)
    experiment = Experiment(args.root, args.exp, spec.name)
    folder = experiment.part_dir(args.train_model)
    if finished_run(folder / "training.json", args, FREE):
        (folder / "state.npz").unlink(missing_ok=True)  # killed between the record and this
        return Plan(spec, experiment, folder, done=f"finished already: {folder} (--restart trains again)")
    epochs = chosen_epochs(experiment, args.enc_epoch, args.dif_epoch)
    claim(folder, create=False)
    return Plan(spec, experiment, folder, epochs)


def throw_away(folder, offset):
    """Remove what an earlier run has left: its state, and its epochs, which are those after the `offset`th."""
    # Not the published ones, which are no files of a run.
    epochs = {
        epoch: file
        for epoch, file in saved_epochs(folder).items()
        if epoch > offset and file == epoch_path(folder, epoch)
    }
    if epochs:
        log.info("throwing away the epochs %s in %s", ", ".join(map(str, epochs)), folder)
    for file in (*epochs.values(), folder / "state.npz", folder / "training.json"):
        file.unlink(missing_ok=True)


def dataset_moments(args, spec, experiment, backbone, images):
    """VAE moments float32 (N, h, w, 8) of the training images, computed once and cached."""
    from Models.adapter import encode_moments
    from Models.runtime import precision

    def encode(images):
        with precision("float32"):
            image_encoder = backbone.image_encoder(args.weights_dir)
        return encode_moments(image_encoder, images, backbone.image_size)

    name = f"{spec.name}_{backbone.name}_{backbone.image_size}"
    return cached_moments(
        experiment.latents_dir, name, images, backbone.weights_hash("image_encoder", args.weights_dir), encode
    )


def sheet_writer(args, spec, diffusion, folder):
    """A function that draws samples of the model as it is: one row a class."""
    import numpy as np

    from Models.sampler import block_size, first_of_each_class, generate_images
    from plots import MAX_SHEET_ROWS, sample_sheet

    sampler, block = diffusion.sampler(), block_size(diffusion.backbone, SHEET_BATCH)
    numbers, labels = first_of_each_class(spec.num_classes, 8 if spec.num_classes <= 20 else 2, MAX_SHEET_ROWS)

    def write(epoch):
        made = generate_images(
            sampler, diffusion.encoder, numbers, num_steps=SHEET_STEPS, scale=SHEET_SCALE, seed=args.seed, block=block
        )
        images = np.concatenate([images for _, images in made])
        path = folder / "samples" / f"epoch{epoch}.png"
        sample_sheet(images, labels, class_names(spec), path, f"{spec.name}, {args.train_model} epoch {epoch}")
        log.info("samples -> %s", path)

    return write


def adapt(args, known=None):
    """Steps 1 and 3 of the paper: one network of the diffusion model learns to denoise the dataset's latents.

    Args:
        args: What `parse_args` returns.
        known: What `plan` has found, if it was asked before.

    Returns:
        The folder of the epochs.
    """
    from Models.adapter import WholeNetwork, denoising_model, load_diffusion
    from Models.faster_layers import checkpoint_gradients
    from Models.fit_state import FitState
    from Models.optimizer import paper_optimizer
    from Models.runtime import make_repeatable, precision

    started = time.time()
    known = known or plan(args)
    if known.done:
        return known.folder
    spec, experiment, folder = known.spec, known.experiment, known.folder
    backbone = BACKBONES[args.backbone]
    train = load_splits(spec, args.data_dir, args.seed, None, experiment).train  # uint8 (N, H, H, 3), int32 (N,)
    check_batch_size(args, backbone.training[args.train_model]["batch_size"], len(train.labels))
    make_repeatable(args.seed, args.deterministic)
    with precision(args.precision, learns=True) as used:
        diffusion = load_diffusion(backbone, spec.num_classes, args.weights_dir, **known.epochs)
        write_sheet = sheet_writer(args, spec, diffusion, folder)
    moments = dataset_moments(args, spec, experiment, backbone, train.images)  # float32 (N, h, w, 8)
    if args.gradient_checkpointing:
        checkpoint_gradients(diffusion.unet)

    # Only one part learns. Measured with mini on 2 cores: cut in two, the encoder learns 1.8 times as fast, the UNet no faster.
    adapted = WholeNetwork(diffusion, args.train_model)
    adapted.freeze_the_rest()
    steps = -(-len(train.labels) // args.batch_size)
    with precision(args.precision, learns=True):
        model = denoising_model(
            diffusion.unet,
            diffusion.encoder,
            backbone.latent_scale,
            backbone.side_by_side if args.train_model == "enc" else 1,
            backbone.schedule,
            backbone.prediction_type,
        )
    # The encoder computes in float32 whatever the precision.
    gradient_dtype = "bfloat16" if args.train_model == "dif" and used == "mixed_bfloat16" else "float32"
    model.compile(paper_optimizer(args.lr, steps * args.epochs, gradient_dtype), "mse")
    model.optimizer.build(model.trainable_variables)
    variables = [*adapted.variables, *model.optimizer.variables]
    state = FitState(folder / "state.npz", fixed_arguments(args, FREE), variables)
    done, history, _ = (0, {}, []) if args.restart else state.load()
    with writing_in(folder, saved=lambda: f"{state.epoch} of {args.epochs} epochs are saved"):
        log.info(
            "%s of %s on %s: %d images, %d parameters, %d epochs of %d steps, batch %d, lr %g, %s, seed %d -> %s",
            args.train_model, backbone.name, spec.name, len(train.labels), adapted.network.count_params(), args.epochs,
            steps, args.batch_size, args.lr, used, args.seed, folder,
        )  # fmt: skip
        losses = train_epochs(args, spec, experiment, adapted, model, state, moments, train, done, history, write_sheet)
        record = describe_run(args, started, precision_used=used, loss=losses[-1])
        write_json(folder / "training.json", record)
        log.info("loss %.4f after %d epochs, %.0f s -> %s", losses[-1], args.epochs, time.time() - started, folder)
        state.path.unlink(missing_ok=True)
    return folder


def train_epochs(args, spec, experiment, adapted, model, state, moments, train, done, history, write_sheet):
    """Train from epoch `done` on, and save epochs, history, sheets and loss curve. Returns the losses of all epochs."""
    from Models.adapter import SaveEpochs
    from Models.feed import noisy_batches, with_targets
    from Models.runtime import fast_feed
    from plots import class_collages, loss_curve

    folder = state.path.parent
    offset = args.enc_epoch if args.train_model == "enc" else args.dif_epoch
    if args.restart:
        throw_away(folder, offset)
    if done:
        log.info("going on after epoch %d", done)
    if args.train_model == "dif" and args.enc_epoch == 0:
        log.warning("the UNet is trained with a fresh Class Encoder: --enc_epoch names a trained one")
    real = [train.images[train.labels == label] for label in range(spec.num_classes)]
    class_collages(real, experiment.images_dir, "real")
    sheet_every = max(1, args.epochs // SHEETS)

    def on_save(epoch, last):
        if last or (epoch - offset) % sheet_every == 0:
            write_sheet(epoch)

    losses = history.get("loss", [])
    saver = SaveEpochs(adapted, folder, state, args.freq, args.epochs, offset, losses, on_save)
    batches = noisy_batches(moments, train.labels, spec.num_classes, args.batch_size, args.seed, done)
    model.fit(
        fast_feed(with_targets(batches)),
        steps_per_epoch=-(-len(train.labels) // args.batch_size),
        epochs=args.epochs,
        initial_epoch=done,
        callbacks=[saver],
        shuffle=False,
        verbose=2,
    )
    loss_curve(saver.history, folder / "loss.png", f"{spec.name}, {args.train_model}")
    return saver.losses


if __name__ == "__main__":
    run(adapt, parse_args, plan)
