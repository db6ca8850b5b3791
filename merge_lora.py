"""Add low-rank updates (LoRA) to the pretrained UNet: one epoch's megabytes become a whole UNet that draws the same images.

python merge_lora.py Checkpoints/DDPM/Exp_0001/cifar10/DiffusionFt/epoch10.weights.h5 --to merged.weights.h5
"""

import logging
from pathlib import Path

from cli.flags import Parser, add_weights_flag, check_weights_flag
from cli.lora import updates_fit
from cli.process import run
from Experiment.errors import UserError
from Experiment.paths import home
from Experiment.plan import Plan
from Models.backbones import BACKBONES
from Models.lora_files import read_facts
from Models.pretrained import pretrained_inputs
from Models.weight_cards import KEPT, check_pretrained, read_card, with_card
from Models.weights import check_hdf5

log = logging.getLogger("experiment")


def parse_args(argv=None):
    parser = Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("epoch", type=Path, help="epoch file of low-rank updates")
    add("--to", required=True, type=Path, metavar="FILE",
        help="what is written, a name in .weights.h5; as epoch<N>.weights.h5 in the folder of an experiment it is its epoch N")  # fmt: skip
    add("--backbone", default="sd1", choices=list(BACKBONES), help="pretrained Stable Diffusion (sd1)")
    add_weights_flag(parser)
    args = parser.parse_args(argv)
    args.to = home(args.to)
    if not args.to.name.endswith(".weights.h5"):
        parser.error(f"argument --to: the name must end in .weights.h5, received {args.to}")
    check_weights_flag(parser, args)
    return args


def plan(args):
    """Look at what is there.

    Returns:
        A `Plan`: facts of the `updates`.

    Raises:
        UserError: The updates cannot be merged, or something would be overwritten.
    """
    if args.epoch.suffix == ".safetensors":
        raise UserError(
            f"{args.epoch}: updates of others are not read: merge them into their UNet with diffusers first "
            "(load_lora_weights, fuse_lora, unload_lora_weights, save_pretrained)."
        )
    check_hdf5(args.epoch)
    updates = read_facts(args.epoch)
    if updates is None:
        raise UserError(f"{args.epoch} holds no low-rank updates.")
    updates_fit(args, args.epoch)
    backbone = BACKBONES[args.backbone]
    check_pretrained([args.epoch], pretrained_inputs(backbone, ["unet"], args.weights_dir), backbone.prediction_type)
    if args.to.exists():
        raise UserError(f"{args.to} is there already: move it away.")
    return Plan(updates=updates)


def merge(args, known=None):
    """Write the whole UNet, and a card beside it that says what it was made of. Returns the file."""
    from Models.lora import merged_unet
    from Models.weights import save_weights

    known = known or plan(args)
    card = read_card(args.epoch)
    facts = {name: value for name, value in card.items() if name not in KEPT}
    with with_card(args.to, facts | {"merged_from": card["sha256"]}) as partial:
        save_weights(merged_unet(BACKBONES[args.backbone], args.weights_dir, args.epoch), partial)
    log.info("%s of %s, %s -> %s", args.epoch, args.backbone, known.updates, args.to)
    return args.to


if __name__ == "__main__":
    run(merge, parse_args, plan)
