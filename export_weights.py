"""Export an adapted Stable Diffusion for diffusers: UNet, contexts of the classes, and a card with an example.

python export_weights.py --dataset cifar10 --exp 0001 --enc_epoch 31 --dif_epoch 10 --inf_steps 31 --ugs 1.74 --to FOLDER
"""

import logging
import time
from pathlib import Path

from cli.flags import add_weights_flag, finish_args, integer, new_parser, number
from cli.lora import base_hashes
from cli.process import run, writing_in
from Data.registry import class_names, dataset_spec
from Experiment import presets
from Experiment.disk import bytes_in_words, check_room
from Experiment.errors import UserError
from Experiment.files import atomic_path, write_json
from Experiment.paths import Experiment, home
from Experiment.plan import Plan
from Experiment.progress import FINISHED_BEFORE
from Experiment.records import DATA_FLAGS, describe_run, finished_run
from Models import exported
from Models.backbones import BACKBONES
from Models.export_card import card
from Models.export_folder import BEGUN, RECORD, refuse_other_folders, remove_left
from Models.foreign_weights import is_foreign
from Models.lora_files import read_facts
from Models.numerics import DIFFUSERS
from Models.weight_cards import check_pretrained, compare_encoders, weights_hashes
from Models.weight_names import chosen_epochs

log = logging.getLogger("experiment")

FREE = (*DATA_FLAGS, "weights_dir", "seed", "to")  # arguments that do not change the result


def parse_args(argv=None):
    parser = new_parser(__doc__, exp_required=True)
    add = parser.add_argument
    add("--enc_epoch", required=True, type=integer(1), help="epoch of the Class Encoder")
    add("--dif_epoch", default=0, type=integer(0), help="epoch of the UNet; 0: the pretrained one (0)")
    add("--to", required=True, type=Path, metavar="FOLDER", help="where to: a new folder, or that of the same export")
    add("--lora", default="merged", choices=["merged", "separate"],
        help="of an epoch of low-rank updates: the whole UNet, or the updates alone as diffusers reads LoRA (merged)")  # fmt: skip
    add("--vae", action="store_true", help="the VAE too, as it is pretrained (335 MB)")
    add(
        "--inf_steps", default=presets.INFERENCE_STEPS, type=integer(1, 500), help="steps of the card's example (50)"
    )  # of more, diffusers' last step ends at a noise level
    add("--ugs", default=presets.GUIDANCE_SCALE, type=number(0, 1000), help="guidance scale of the example (7.5)")
    add("--restart", action="store_true", help="replace an export that is there")
    add_weights_flag(parser)
    args = finish_args(parser, argv)
    args.to = home(args.to).resolve()
    return args


def plan(args):
    """Look at what is there.

    Returns:
        A `Plan`: the `name` of the dataset and those of its `classes`, files of the `epochs`, the `inputs` of the export, and
        facts of the low-rank `updates` of the UNet, None where it has none.

    Raises:
        UserError: The export cannot begin: no such epoch, a backbone that diffusers has not, a folder of something else.
    """
    backbone = BACKBONES[args.backbone]
    if args.weights_dir and args.weights_dir.resolve().is_relative_to(args.to):
        raise UserError(f"--to {args.to} holds the --weights that are exported from: name another folder.")
    if reason := exported.why_not(backbone):
        raise UserError(reason)
    spec = dataset_spec(args.dataset, args.skip_broken, args.resolution, args.background)
    experiment, classes = Experiment(args.root, args.exp, spec.name), list(class_names(spec))
    epochs = chosen_epochs(experiment, args.enc_epoch, args.dif_epoch)
    base = base_hashes(args, ("image_encoder", "decoder") if args.vae else ("decoder",), epochs["dif"])
    check_pretrained(epochs.values(), base, backbone.prediction_type, vae_too=True)
    compare_encoders(epochs["enc"], args.seed, epochs["dif"])
    updates = read_facts(epochs["dif"]) if epochs["dif"] else None
    if args.lora == "separate" and not updates:
        held = f"{epochs['dif']} holds a whole UNet" if epochs["dif"] else "the pretrained UNet has none"
        raise UserError(f"--lora separate is for an epoch (--dif_epoch) of low-rank updates: {held}.")
    inputs = {"classes": classes, "weights": base | weights_hashes(epochs, classes)}
    known = Plan(name=spec.name, classes=classes, epochs=epochs, inputs=inputs, updates=updates)
    refuse_other_folders(args.to)
    if not (args.to / BEGUN).exists() and finished_run(
        args.to / RECORD, args, FREE, inputs, "name another folder by --to, or --restart to replace it"
    ):
        known.done = f"{FINISHED_BEFORE}: {args.to} (--restart exports again)"
    return known


def export(args, known=None):
    """Write an adapted Stable Diffusion as diffusers reads it.

    Args:
        args: What `parse_args` returns.
        known: What `plan` has found, if it was asked before.

    Returns:
        The folder.
    """
    from Models.devices import start_devices

    started = time.time()
    known = known or plan(args)
    if known.done:
        return args.to
    start_devices(args)
    encoder, networks = networks_of(args, known)
    needed = sum(4 * network.count_params() for network in networks.values()) or known.epochs["dif"].stat().st_size
    args.to.mkdir(parents=True, exist_ok=True)
    check_room(args.to, needed, "the export")
    with writing_in(args.to):
        log.info("%s of %s, about %s -> %s", args.backbone, known.name, bytes_in_words(needed), args.to)
        (args.to / BEGUN).touch()
        remove_left(args.to)
        write_parts(args, known, encoder, networks)
        # Last: what has this record is complete.
        write_json(args.to / RECORD, describe_run(args, started, known.inputs))
        (args.to / BEGUN).unlink()
        log.info("exported in %.0f s -> %s", time.time() - started, args.to)
    return args.to


def networks_of(args, known):
    """The Class Encoder, and the networks that are written whole, {part: network}, in float32."""
    from Models.class_encoder import class_encoder
    from Models.lora import unet_of_epoch
    from Models.runtime import precision
    from Models.weights import load_weights

    backbone, networks = BACKBONES[args.backbone], {}
    with precision("float32"):
        encoder = class_encoder(len(known.classes), backbone.hidden_units, backbone.context_shape)
        load_weights(encoder, known.epochs["enc"])
        if args.lora == "merged":
            networks["unet"] = unet_of_epoch(backbone, args.weights_dir, known.epochs["dif"])
        if args.vae:
            networks["image_encoder"] = backbone.image_encoder(args.weights_dir)
            networks["decoder"] = backbone.decoder(args.weights_dir)
    return encoder, networks


def write_parts(args, known, encoder, networks):
    """Write everything but the record."""
    from Models.sampler import class_contexts

    backbone, pretrained = BACKBONES[args.backbone], BACKBONES[args.backbone].pretrained(args.weights_dir)
    exported.export_table(class_contexts(encoder), known.classes, args.to / exported.TABLE)
    if "unet" in networks:
        followed = networks["unet"].following
        exported.export_unet(backbone, networks["unet"], args.to / "unet")
    else:
        followed = pretrained.following("unet")
        exported.export_updates(backbone, known.epochs["dif"], args.to / exported.UPDATES)
    exported.export_scheduler(followed.prediction_type, args.to / "scheduler")
    if args.vae:
        exported.export_vae(backbone, networks["image_encoder"], networks["decoder"], args.to / "vae")
    if {"unet", "decoder"} <= networks.keys():
        write_json(args.to / "model_index.json", exported.PIPELINE)
    write_card(args, known, {"unet": followed.numerics, "vae": pretrained.following("decoder").numerics})


def write_card(args, known, numerics):
    weights, separate = known.inputs["weights"], args.lora == "separate"
    facts = {
        "backbone": args.backbone, "Class Encoder": f"epoch {args.enc_epoch}",
        "UNet": f"epoch {args.dif_epoch}" if args.dif_epoch else "as pretrained",
        **({"low-rank updates": known.updates} if separate else {}),
        "inference steps, guidance scale": f"{args.inf_steps}, {args.ugs:g}",
        "sampler": "DDIM, leading timesteps, one guidance scale: settings found with another solver, spacing, guidance interval or "
                   "guiding epoch give other images here",
        **({"the UNet predicts": weights["prediction_type"]} if "prediction_type" in weights else {}),
        **{f"SHA-256 of {part}": value for part, value in weights.items() if part not in ("numerics", "prediction_type")},
    }  # fmt: skip
    foreign = args.weights_dir and is_foreign(args.weights_dir) or DIFFUSERS in numerics.values()
    text = card(
        BACKBONES[args.backbone], numerics, known.classes, known.name, vae_here=args.vae, steps=args.inf_steps,
        scale=args.ugs, facts=facts, foreign=foreign,
        base=weights["unet"] if separate else None,
    )  # fmt: skip
    with atomic_path(args.to / "README.md") as partial:
        partial.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run(export, parse_args, plan)
