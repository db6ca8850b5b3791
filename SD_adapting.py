"""Adapt Stable Diffusion to a dataset: train the Class Encoder (enc), then fine-tune the UNet (dif).

python SD_adapting.py --dataset cifar10 --train_model enc --exp 0001
python SD_adapting.py --dataset cifar10 --train_model dif --exp 0001 --enc_epoch 31
"""

import time

from cli.flags import add_model_flags, check_batch_size, finish_args, integer, new_parser, number
from cli.process import begin_writing, log, run, tell_if_interrupted
from cli.startup import import_keras, make_repeatable, share_cores
from Experiment.files import file_hash, write_json
from Experiment.locks import claim
from Experiment.paths import Experiment
from Experiment.records import describe_run, finished_run, fixed_arguments

PRESETS = {
    # As published (paper, section 3, and its code).
    "paper": {"enc": {"epochs": 50, "batch_size": 64, "lr": 1e-4}, "dif": {"epochs": 10, "batch_size": 16, "lr": 1e-5}},
    # A small network on small data: fewer steps and higher rates, chosen on validation accuracy on digits.
    "mini": {"enc": {"epochs": 12, "batch_size": 64, "lr": 2e-2}, "dif": {"epochs": 64, "batch_size": 32, "lr": 8e-4}},
}
SHEETS = 2  # sample sheets over a run
SHEET_STEPS, SHEET_SCALE = 20, 1.5


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
    for flag, value in preset(args).items():
        if getattr(args, flag) is None:
            setattr(args, flag, value)
    return args


def preset(args):
    """Epochs, batch size and learning rate of the backbone and the part to train."""
    return PRESETS["mini" if args.backbone == "mini" else "paper"][args.train_model]


def dataset_moments(args, spec, experiment, backbone, images):
    """VAE moments of the training images, cached."""
    import keras
    import numpy as np

    from Data.latents import cached_moments
    from Models.backbones import UNTRAINED_HASH, untrained

    def encode(images):
        side, batch_size = backbone.image_size, min(64, len(images))
        encoder = backbone.image_encoder(args.weights_dir)
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            padded = batch[np.resize(np.arange(len(batch)), batch_size)].astype("float32")
            resized = keras.ops.image.resize(padded, (side, side), "bilinear", antialias=side < padded.shape[1])
            yield np.asarray(encoder.predict_on_batch(resized / 127.5 - 1.0))[: len(batch)].astype("float32")

    known = (
        UNTRAINED_HASH if untrained(backbone) else file_hash(backbone.weights_file("image_encoder", args.weights_dir))
    )
    name = f"{spec.name}_{backbone.name}_{backbone.image_size}"
    return cached_moments(experiment.latents_dir, name, images, known, encode)


def sheet_writer(args, spec, backbone, encoder, unet, folder):
    """A function that draws samples of the model as it is: one row a class."""
    import numpy as np

    from Data.loaders import class_names
    from Models.sampler import Sampler, generate_images
    from plots import MAX_SHEET_ROWS, sample_sheet

    sampler = Sampler(unet, backbone.decoder(args.weights_dir), backbone.parts)
    columns = 8 if spec.num_classes <= 20 else 2
    labels = np.repeat(np.arange(min(spec.num_classes, MAX_SHEET_ROWS)), columns)
    indices = np.tile(np.arange(columns), len(labels) // columns)
    names = class_names(spec)

    def write(epoch):
        made = generate_images(
            sampler,
            encoder,
            labels,
            indices,
            num_steps=SHEET_STEPS,
            scale=SHEET_SCALE,
            seed=args.seed,
            batch_size=min(len(labels), 80),
        )
        images = np.concatenate([images for _, _, images in made])
        path = folder / "samples" / f"epoch{epoch}.png"
        sample_sheet(images, labels, names, path, f"{spec.name}, {args.train_model} epoch {epoch}")
        log.info("samples -> %s", path)

    return write


def throw_away(folder, offset):
    """Remove what an earlier run has left: its state, and its epochs, which are those after the `offset`th."""
    from Models.weights import epoch_path, saved_epochs

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


def main(args):
    from Data.registry import dataset_spec
    from Models.weights import epoch_file, load_epoch

    started = time.time()
    spec = dataset_spec(args.dataset, args.skip_broken)
    experiment = Experiment(args.root, args.exp, spec.name)
    folder = experiment.part_dir(args.train_model)
    record_file, state_file = folder / "training.json", folder / "state.npz"
    free = ["root", "data_dir", "weights_dir", "freq"]
    if finished_run(record_file, args, free):
        state_file.unlink(missing_ok=True)  # killed between the record and this
        print(f"finished already: {folder} (--restart trains again)")
        return

    for part, epoch in (("enc", args.enc_epoch), ("dif", args.dif_epoch)):
        if epoch:  # a wrong number shall be told before anything is loaded or written
            epoch_file(experiment.part_dir(part), epoch, part)
    claim(folder, create=False)

    # Data and models, before anything is written
    share_cores(args.backbone)
    import_keras(spare_memory=args.gradient_checkpointing)
    from Data.loaders import load_splits
    from Models.adapter import denoising_model
    from Models.backbones import BACKBONES, set_precision
    from Models.class_encoder import class_encoder
    from Models.faster_layers import checkpoint_gradients
    from Models.training import SaveEpochs, TrainingState, fast_feed, noisy_batches, paper_optimizer
    from plots import class_collages, loss_curve

    backbone = BACKBONES[args.backbone]
    train = load_splits(spec, args.data_dir, args.seed).train
    check_batch_size(args, preset(args)["batch_size"], len(train.labels))
    steps = -(-len(train.labels) // args.batch_size)
    make_repeatable(args)
    precision = set_precision(args.precision, learns=True)
    encoder = class_encoder(spec.num_classes, backbone.hidden_units, backbone.context_shape)
    load_epoch(encoder, experiment.part_dir("enc"), args.enc_epoch, "enc")
    unet = backbone.unet(args.weights_dir)
    load_epoch(unet, experiment.part_dir("dif"), args.dif_epoch, "dif")
    write_sheet = sheet_writer(args, spec, backbone, encoder, unet, folder)
    set_precision("float32")  # of the VAE's encoder
    moments = dataset_moments(args, spec, experiment, backbone, train.images)
    set_precision(args.precision, learns=True)
    if args.gradient_checkpointing:
        checkpoint_gradients(unet)
    if args.train_model == "dif" and args.enc_epoch == 0:
        log.warning("the UNet is trained with a fresh Class Encoder: --enc_epoch names a trained one")

    # Only one part learns
    part = encoder if args.train_model == "enc" else unet
    encoder.trainable, unet.trainable = part is encoder, part is unet
    # Measured with mini on 2 cores: in two parts the encoder learns 1.8 times as fast, the UNet no faster.
    model = denoising_model(unet, encoder, backbone.latent_scale, backbone.parts if part is encoder else 1)
    # The encoder computes in float32 whatever the precision.
    gradient_dtype = "bfloat16" if part is unet and precision == "mixed_bfloat16" else "float32"
    model.compile(paper_optimizer(args.lr, steps * args.epochs, gradient_dtype), "mse")
    model.optimizer.build(model.trainable_variables)
    state = TrainingState(model, part, state_file, fixed_arguments(args, free))
    done, losses = (0, []) if args.restart else state.load()
    begin_writing(folder)
    if args.restart:
        throw_away(folder, args.enc_epoch if args.train_model == "enc" else args.dif_epoch)
    tell_if_interrupted(lambda: f"{state.epoch} of {args.epochs} epochs are saved")
    log.info(
        "%s of %s on %s: %d images, %d parameters, %d epochs of %d steps, batch %d, lr %g, %s, seed %d -> %s",
        args.train_model,
        backbone.name,
        spec.name,
        len(train.labels),
        part.count_params(),
        args.epochs,
        steps,
        args.batch_size,
        args.lr,
        precision,
        args.seed,
        folder,
    )
    if done:
        log.info("going on after epoch %d", done)

    # Training
    class_collages(
        [train.images[train.labels == label] for label in range(spec.num_classes)], experiment.images_dir, "real"
    )
    offset = args.enc_epoch if part is encoder else args.dif_epoch
    sheet_every = max(1, args.epochs // SHEETS)

    def on_save(epoch, last):
        if last or (epoch - offset) % sheet_every == 0:
            write_sheet(epoch)

    saver = SaveEpochs(part, folder, state, args.freq, args.epochs, offset, losses, on_save)
    batches = noisy_batches(moments, train.labels, spec.num_classes, args.batch_size, args.seed, done)
    model.fit(
        fast_feed(batches),
        steps_per_epoch=steps,
        epochs=args.epochs,
        initial_epoch=done,
        callbacks=[saver],
        shuffle=False,
        verbose=2,
    )

    loss_curve(saver.history, folder / "loss.png", f"{spec.name}, {args.train_model}")
    write_json(record_file, describe_run(args, started, precision_used=precision, loss=saver.history[-1]["loss"]))
    log.info(
        "loss %.4f after %d epochs, %.0f s -> %s", saver.history[-1]["loss"], args.epochs, time.time() - started, folder
    )
    state_file.unlink(missing_ok=True)


if __name__ == "__main__":
    run(main, parse_args)
