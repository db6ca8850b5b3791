"""Command lines and low-rank updates of the UNet (LoRA): the flags that ask for them, and what epochs need of the base."""

from functools import partial

from cli.flags import integer, number
from Models.backbones import BACKBONES, PARTS
from Models.lora_files import MOST_RANK, TARGETS, Facts, refuse_other_base
from Models.pretrained import pretrained_inputs


def add_lora_flags(parser):
    """The flags of a fine-tuning by low-rank updates; `check_lora_flags` completes them."""
    add = parser.add_argument
    add("--lora_rank", type=integer(1, MOST_RANK), metavar="R",
        help="with --train_model dif: train low-rank updates of the UNet (LoRA) in place of all of it")  # fmt: skip
    add("--lora_alpha", type=number(0, 1e6, above=True), metavar="A", help="updates count alpha / rank (the rank: 1)")
    add("--lora_targets", choices=TARGETS,
        help="what is updated: projections of the attention, or all matrices and convolutions (attention)")  # fmt: skip


def check_lora_flags(parser, args):
    """Refuse flags of low-rank updates where none are trained, and fill in what is not given.

    Returns:
        The key of the backbone's `training` that holds the other defaults.
    """
    if args.lora_rank is None:
        for flag in ("lora_alpha", "lora_targets"):
            if getattr(args, flag) is not None:
                parser.error(f"argument --{flag}: not allowed without --lora_rank")
        return args.train_model
    if args.train_model != "dif":
        parser.error("argument --lora_rank: not allowed without --train_model dif")
    args.lora_alpha = float(args.lora_alpha or args.lora_rank)
    args.lora_targets = args.lora_targets or TARGETS[0]
    return "lora"


def wanted_updates(args, dif):
    """`Facts` of the low-rank updates that are to be trained; None where there are none.

    Raises:
        UserError: They cannot go on from the UNet's epoch file `dif`.
    """
    if not args.lora_rank:
        return None
    base = BACKBONES[args.backbone].weights_hash("unet", args.weights_dir)
    wanted = Facts(args.lora_rank, args.lora_alpha, args.lora_targets, base)
    if dif:
        wanted.refuse_to_continue(dif)
    return wanted


def updates_fit(args, *dif):
    """Whether epoch files of the UNet, or None, hold low-rank updates, for which the pretrained UNet is needed.

    Raises:
        UserError: A file holds low-rank updates of another UNet.
    """
    return refuse_other_base(dif, partial(BACKBONES[args.backbone].weights_hash, "unet", args.weights_dir))


def base_hashes(args, parts, dif):
    """What identifies the pretrained weights that are read, as `pretrained_inputs` returns it.

    Args:
        args: The arguments.
        parts: Those that are read whatever the epoch.
        dif: Epoch file of the UNet. With None the pretrained one is read, and with low-rank updates too.

    Raises:
        UserError: The file holds low-rank updates of another UNet.
    """
    if dif is None or updates_fit(args, dif):
        parts, dif = [part for part in PARTS if part in (*parts, "unet")], None
    return pretrained_inputs(BACKBONES[args.backbone], parts, args.weights_dir, dif)
