"""Flags of the adaptation that the paper does not have, all off by default."""

import logging

from cli.flags import add_devices_flag, number
from Data.doubts import others, seen_images
from Data.registry import class_names
from Experiment.levers import OFF
from Models.averages import WIDTHS, Averaged, power_of_width
from Models.backbones import BACKBONES, PARTS
from Models.feed import drop_labels
from Models.weight_cards import fresh_encoder, learned_from, read_card

log = logging.getLogger("experiment")


def add_training_levers(parser):
    """The flags of the adaptation."""
    add_devices_flag(parser)
    parser.add_argument(
        "--label_dropout", default=OFF["label_dropout"], type=number(0, 0.9), metavar="P",
        help="train without the label with this probability, so that the unconditional pass is trained too (0)",
    )  # fmt: skip
    parser.add_argument(
        "--ema", nargs="?", const=0.1, type=number(*WIDTHS), metavar="WIDTH",
        help="save averages of the weights over the run, of this width relative to its length (off; alone: 0.1)",
    )  # fmt: skip
    parser.add_argument(
        "--min_snr", type=number(0, 1e6, above=True), metavar="GAMMA",
        help="weigh the loss by min(SNR, GAMMA) / SNR, divided by its mean over the timesteps (off; usual: 5)",
    )  # fmt: skip


def training_levers(args, backbone):
    """What these flags mean for the training.

    Returns:
        For `fit_epochs`: {"transforms": [...], "weights": float32 (T,) or None}; for `compile_model`: {"average_power": ...}; and facts for the record, empty where they are off.
    """
    fit = {"transforms": [drop_labels(args.label_dropout)] if args.label_dropout else [], "weights": None}
    compiled, facts = {"average_power": None}, {}
    if args.ema is not None:
        facts["average_power"] = compiled["average_power"] = power_of_width(args.ema)
    if args.min_snr is not None:
        weights = backbone.schedule.min_snr_weights(args.min_snr, backbone.prediction_type)
        facts["mean_loss_weight"] = float(weights.mean())
        # Not the learning rate is rescaled: Adam's steps are the same whatever the size of the loss, but for the clipping.
        fit["weights"] = weights / weights.mean()
    return fit, compiled, facts


def set_up(args, known, diffusion, precision_name):
    """What learns, with these levers.

    Args:
        args, known: The script's arguments and `Plan`.
        diffusion: A `Diffusion`.
        precision_name: As in `compile_model`.

    Returns:
        The adaptation, its compiled model, and what `training_levers` says for `fit_epochs` and for the record.
    """
    from Models.adapter import adaptation
    from Models.training import compile_model

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


def said_training(args, facts):
    """One line of what is on; empty where nothing is."""
    said = [f"label dropout {args.label_dropout:g}"] if args.label_dropout else []
    if args.ema is not None:
        said.append(f"averages of width {args.ema:g}, power {facts['average_power']:.3g}")
    if args.min_snr is not None:
        said.append(f"min-SNR {args.min_snr:g}, weights divided by their mean {facts['mean_loss_weight']:.3f}")
    return "; ".join(said)
