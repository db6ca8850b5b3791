"""Levers of the adaptation: what its flags beyond the paper mean for the training."""

from Models.averages import power_of_width
from Models.feed import drop_labels


def training_levers(args, backbone):
    """What these flags mean for the training.

    Returns:
        For `fit_epochs`: {"transforms": [...], "weights": float32 (T,) or None}; for `compile_model`: {"average_power": ...}; and
        facts for the record, empty where they are off.
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


def said_training(args, updates, facts):
    """Lines of what is on: the low-rank updates (`Facts`, or None), and these levers."""
    said = [f"label dropout {args.label_dropout:g}"] if args.label_dropout else []
    if args.ema is not None:
        said.append(f"averages of width {args.ema:g}, power {facts['average_power']:.3g}")
    if args.min_snr is not None:
        said.append(f"min-SNR {args.min_snr:g}, weights divided by their mean {facts['mean_loss_weight']:.3f}")
    return ([f"low-rank updates: {updates}"] if updates else []) + (["; ".join(said)] if said else [])
