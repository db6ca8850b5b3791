"""The parts of the stage: what learns, and its training, with epochs, sheets and loss curve on the way."""

import logging

import numpy as np

from Adapting.levers import training_levers
from Data.doubts import others, seen_images
from Data.registry import class_names
from Experiment.files import write_json
from Experiment.pictures import try_to_draw
from Models.adapter import adaptation
from Models.averages import Averaged
from Models.backbones import BACKBONES, PARTS
from Models.training import SaveEpochs, compile_model, fit_epochs
from Models.weight_cards import fresh_encoder, learned_from, read_card
from Models.weight_names import earlier_history, forget_epochs, remove_epochs
from plots import loss_curve
from sheets import COLLAGE_COLUMNS, COLLAGE_ROWS, class_collages

log = logging.getLogger("experiment")

SHEETS = 2  # sample sheets over a run, beside that of the first epoch


def set_up(args, known, diffusion, precision_name):
    """What learns, with these levers.

    Args:
        args, known: The script's arguments and `Plan`.
        diffusion: A `Diffusion`.
        precision_name: As in `compile_model`.

    Returns:
        The adaptation, its compiled model, and what `training_levers` says for `fit_epochs` and for the record.
    """
    before, seen = learned_from(known.epochs.values()), seen_images(known.train, known.spec)
    if others(before, seen):
        log.warning("the epochs that this training begins from have learnt from other images than those of today")
    facts = {"classes": class_names(known.spec), "dataset": known.spec.name, "pretrained": pretrained_of(args, known),
             "learned_from": before + [seen] * (seen not in before)}  # fmt: skip
    if args.train_model == "dif":
        facts["class_encoder"] = known.inputs["weights"].get("enc") or fresh_encoder(args.seed)
    elif known.epochs["dif"]:
        facts["unet_epoch"] = known.inputs["weights"]["dif"]
    adapted = adaptation(diffusion, args.train_model, facts, known.updates, args.seed, known.epochs["dif"])
    fit_levers, compiled, recorded = training_levers(args, diffusion.backbone)
    steps = -(-len(known.train.labels) // args.batch_size) * args.epochs
    model = compile_model(adapted, args.lr, steps, precision_name, args.gradient_checkpointing, **compiled)
    if args.ema:
        adapted = Averaged(adapted, model.trainable_variables, model.optimizer.averages)
    return adapted, model, fit_levers, recorded


def pretrained_of(args, known):
    """{part: hash} of the pretrained weights that epochs are trained on, and what they predict, for their cards.

    The decoder is one of them: it makes the images of the latents that they have learned. A UNet that goes on from an epoch is
    on the same as that epoch.
    """
    weights, before = known.inputs["weights"], known.epochs["dif"]
    inherited = read_card(before).get("pretrained", {}) if before else {}
    read = {part: weights[part] for part in PARTS if part in weights}
    if "unet" in read:
        read["prediction_type"] = weights.get("prediction_type", BACKBONES[args.backbone].prediction_type)
    return inherited | read | {"decoder": BACKBONES[args.backbone].weights_hash("decoder", args.weights_dir)}


def train(args, known, adapted, model, state, moments, done, losses, write_sheet, levers):
    """Train from epoch `done` on, and save epochs, history, sheets and loss curve. Returns the losses of this run."""
    spec, folder, offset, (images, labels) = known.spec, known.folder, known.offset, known.train
    if args.restart:
        # Records and state first: if this process is killed now, nothing says that the epochs are complete.
        forget_epochs(folder, offset)
        state.path.unlink(missing_ok=True)
        thrown_away = remove_epochs(folder, offset)
        log.info("throwing away the epochs %s in %s", ", ".join(map(str, thrown_away)) or "none", folder)
    write_json(folder / "run.json", known.identity)
    known.thrown_away = args.restart
    if done:
        log.info("going on after epoch %d", offset + done)
    if args.train_model == "dif" and args.enc_epoch == 0:
        log.warning("the UNet is trained with a fresh Class Encoder: --enc_epoch names a trained one")
    shown = (images[np.flatnonzero(labels == label)[: COLLAGE_COLUMNS * COLLAGE_ROWS]] for label in range(spec.num_classes))
    try_to_draw("the real images", class_collages, shown, known.experiment.images_dir, "real")
    sheet_every = max(1, args.epochs // SHEETS)

    def on_save(epoch, last):
        if last or (epoch - offset) % sheet_every == 0 or epoch - offset == 1:
            write_sheet(epoch)

    earlier = earlier_history(folder, offset)
    saver = SaveEpochs(adapted, folder, state, args.freq, args.epochs, offset, losses, on_save, earlier, args.keep)
    saver.finish_saving(done)
    fit_epochs(model, saver, moments, labels, spec.num_classes, args.batch_size, args.seed, done, **levers)
    title = f"{spec.name}, {args.train_model}"
    try_to_draw("the loss", loss_curve, saver.history, folder / "loss.png", title)
    return saver.losses
