"""Export an adapted Stable Diffusion for diffusers: UNet, contexts of the classes, and a card with an example.

python export_weights.py --dataset cifar10 --exp 0001 --enc_epoch 31 --dif_epoch 10 --inf_steps 31 --ugs 1.74 --to FOLDER
"""

import logging
import time
from pathlib import Path

from cli.flags import add_weights_flag, finish_args, integer, new_parser, number
from cli.process import run, writing_in
from Data.registry import class_names, dataset_spec
from Experiment import presets
from Experiment.disk import check_room, gigabytes
from Experiment.errors import UserError
from Experiment.files import atomic_path, write_json
from Experiment.paths import Experiment
from Experiment.plan import Plan
from Experiment.records import DATA_FLAGS, describe_run, finished_run
from Models.backbones import BACKBONES
from Models.export_card import card
from Models.exported import PIPELINE, TABLE, export_scheduler, export_table, export_unet, export_vae, why_not
from Models.foreign_weights import is_foreign
from Models.pretrained import pretrained_inputs
from Models.weight_cards import weights_hashes
from Models.weight_names import chosen_epochs

log = logging.getLogger("experiment")

FREE = (*DATA_FLAGS, "weights_dir", "seed", "to")  # arguments that do not change the result
# What an export writes; a folder with anything else in it is somebody's.
OWN_NAMES = {
    "README.md", "class_embeddings.safetensors", "export.json", "log.txt", "model_index.json", "scheduler", "unet", "vae"
}  # fmt: skip
OWN_BEGINNINGS = (".lock", ".partial")


def parse_args(argv=None):
    parser = new_parser(__doc__, exp_required=True)
    add = parser.add_argument
    add("--enc_epoch", required=True, type=integer(1), help="epoch of the Class Encoder")
    add("--dif_epoch", default=0, type=integer(0), help="epoch of the UNet; 0: the pretrained one (0)")
    add("--to", required=True, type=Path, metavar="FOLDER", help="where to: a new folder, or that of the same export")
    add("--vae", action="store_true", help="the VAE too, as it is pretrained (335 MB)")
    add("--inf_steps", default=presets.INFERENCE_STEPS, type=integer(1, 1000), help="steps of the card's example (50)")
    add("--ugs", default=presets.GUIDANCE_SCALE, type=number(0, 1000), help="guidance scale of the example (7.5)")
    add("--restart", action="store_true", help="replace an export that is there")
    add_weights_flag(parser)
    args = finish_args(parser, argv)
    args.to = args.to.expanduser().resolve()
    return args


def plan(args):
    """Look at what is there.

    Returns:
        A `Plan`: names of the dataset and of its `classes`, files of the `epochs`, and the `inputs` of the export.

    Raises:
        UserError: The export cannot begin: no such epoch, a backbone that diffusers has not, a folder of something else.
    """
    backbone = BACKBONES[args.backbone]
    if reason := why_not(backbone):
        raise UserError(reason)
    spec = dataset_spec(args.dataset, args.skip_broken, args.resolution, args.background)
    experiment, classes = Experiment(args.root, args.exp, spec.name), list(class_names(spec))
    epochs = chosen_epochs(experiment, args.enc_epoch, args.dif_epoch)
    parts = ("image_encoder", "unet", "decoder") if args.vae else ("unet", "decoder")
    pretrained = pretrained_inputs(backbone, parts, args.weights_dir, epochs["dif"])
    inputs = {"classes": classes, "weights": pretrained | weights_hashes(epochs, classes)}
    known = Plan(name=spec.name, classes=classes, epochs=epochs, inputs=inputs)
    if args.to.exists() and not args.to.is_dir():
        raise UserError(f"--to {args.to} is no folder.")
    there = sorted(path.name for path in args.to.iterdir()) if args.to.exists() else []
    if others := [name for name in there if name not in OWN_NAMES and not name.startswith(OWN_BEGINNINGS)]:
        raise UserError(f"--to {args.to} holds something else than an export: {', '.join(others[:4])}.")
    if finished_run(args.to / "export.json", args, FREE, inputs):
        known.done = f"finished already: {args.to} (--restart exports again)"
    return known


def export(args, known=None):
    """Write an adapted Stable Diffusion as diffusers reads it.

    Args:
        args: What `parse_args` returns.
        known: What `plan` has found, if it was asked before.

    Returns:
        The folder.
    """
    from Models.adapter import load_diffusion
    from Models.runtime import precision
    from Models.sampler import class_contexts

    started = time.time()
    known = known or plan(args)
    if known.done:
        return args.to
    backbone = BACKBONES[args.backbone]
    with precision("float32"):
        diffusion = load_diffusion(backbone, len(known.classes), args.weights_dir, **known.epochs)
        image_encoder = backbone.image_encoder(args.weights_dir) if args.vae else None
    networks = [network for network in (diffusion.unet, image_encoder, args.vae and diffusion.decoder) if network]
    needed = 4 * sum(network.count_params() for network in networks)
    args.to.mkdir(parents=True, exist_ok=True)
    check_room(args.to, needed, "the export")
    with writing_in(args.to):
        log.info("%s of %s, about %s -> %s", backbone.name, known.name, gigabytes(needed), args.to)
        (args.to / "export.json").unlink(missing_ok=True)
        export_table(class_contexts(diffusion.encoder), known.classes, args.to / TABLE)
        export_unet(backbone, diffusion.unet, args.to / "unet")
        export_scheduler(diffusion.backbone.prediction_type, args.to / "scheduler")
        if args.vae:
            add_vae(backbone, image_encoder, diffusion.decoder, args.to)
        write_card(args, known, diffusion)
        # Last: what has this record is complete.
        write_json(args.to / "export.json", describe_run(args, started, known.inputs))
        log.info("exported in %.0f s -> %s", time.time() - started, args.to)
    return args.to


def add_vae(backbone, image_encoder, decoder, folder):
    """Write the VAE, and what makes a pipeline of the folder."""
    export_vae(backbone, image_encoder, decoder, folder / "vae")
    write_json(folder / "model_index.json", PIPELINE)


def write_card(args, known, diffusion):
    facts = {
        "backbone": args.backbone, "Class Encoder": f"epoch {args.enc_epoch}",
        "UNet": f"epoch {args.dif_epoch}" if args.dif_epoch else "as pretrained",
        "inference steps, guidance scale": f"{args.inf_steps}, {args.ugs:g}",
        **{f"SHA-256 of {part}": value for part, value in known.inputs["weights"].items() if isinstance(value, str)},
    }  # fmt: skip
    text = card(
        diffusion, known.classes, known.name, vae_here=args.vae, steps=args.inf_steps, scale=args.ugs, facts=facts,
        foreign=bool(args.weights_dir and is_foreign(args.weights_dir)),
    )  # fmt: skip
    with atomic_path(args.to / "README.md") as partial:
        partial.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run(export, parse_args, plan)
