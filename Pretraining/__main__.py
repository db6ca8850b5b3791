"""Make the weights of a small backbone from nothing: `python -m Pretraining --backbone mini|small`.

As Stable Diffusion was trained on captioned pictures, these are: `mini` on printed characters, glyphs of the fonts that
matplotlib carries, each drawn in a random style and described by eight words; `small` on those and on crops of
photographs. The text encoder is left out afterwards, as the paper does with SD's. No image of an evaluation set is used;
the ten digits are among the characters (printed, not handwritten).

The same command goes on where it was stopped: with the parts that training.json in --out does not have yet, and, with
--state, within a part.
"""

import argparse
import contextlib
from pathlib import Path

from cli.flags import integer
from cli.process import run, writing_in
from Experiment.locks import claimed, refuse_if_claimed
from Experiment.plan import Plan
from Pretraining.kinds import KINDS
from Pretraining.parts import AUTOENCODER, DECODER, Pretraining, part_names
from Pretraining.photographs import source_hashes
from Pretraining.record import Record


def parse_args(argv=None):
    parser = argparse.ArgumentParser(prog="python -m Pretraining", allow_abbrev=False, description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--backbone", required=True, choices=list(KINDS), help="what is trained")
    add("--out", type=Path, help="folder of the weights (Models/BACKBONE_weights)")
    add("--photographs", type=Path, help="folder of the tar files, whose hashes are in Pretraining/photographs.py")
    add("--other_photographs", action="store_true", help="take whatever tar files are in --photographs")
    add("--state", type=Path, help="folder of corpus, latents and fits that are under way, for a run that goes on (none)")
    add("--images", type=integer(8, 10_000_000), help="size of the corpus (mini 240000, small 250000)")
    add("--vae_steps", type=integer(1), help="steps of 64 images (mini 2000, small 3000)")
    add("--decoder_steps", type=integer(1), help="steps of 64 images, decoder alone (mini 3000, small 2000)")
    add("--unet_steps", type=integer(1), help="steps of each cycle (mini 6000, small 4000)")
    add("--unet_cycles", type=integer(1), default=1, help="each begins from the averaged weights of the last one (1)")
    add("--batch_size", type=integer(1), help="batch of the UNet (mini 128, small 64)")
    add("--until", choices=[AUTOENCODER, DECODER, "unet"], default="unet", help="last part to make (unet)")
    add("--precision", choices=["auto", "float32", "mixed_bfloat16"], help="of the fits (mini mixed_bfloat16, small auto)")
    add("--processes", type=integer(1), help="that make the corpus (as many as cores)")
    add("--seed", type=integer(0, 2**63 - 1), default=1234, help="(1234)")
    add("--restart", action="store_true", help="make all of it again, in the place of what is there")
    args = parser.parse_args(argv)
    kind = KINDS[args.backbone]
    for name in ("images", "vae_steps", "decoder_steps", "unet_steps", "batch_size", "precision"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(kind, name))
    args.out = args.out or kind.folder
    if (kind.glyphs < 1) != bool(args.photographs):
        parser.error(
            f"argument --photographs: {args.backbone} " + ("learns from photographs" if kind.glyphs < 1 else "takes none")
        )
    return args


def plan(args):
    """What there is to make.

    Raises:
        UserError: Photographs are missing or others, or --out holds something else, or another process writes there.
    """
    refuse_if_claimed(args.out)
    kind = KINDS[args.backbone]
    sources = source_hashes(args.photographs, args.other_photographs) if args.photographs else None
    record = Record(args.out, args.backbone, args.restart)
    names = part_names(args.until, args.unet_cycles)
    work = Pretraining(args, kind, sources, record)
    missing = work.missing(names)
    done = None if missing else f"{args.out} has all of it: {', '.join(names)}"
    return Plan(work=work, missing=missing, done=done)


def pretrain(args, known):
    """Make what is missing."""
    with claimed(args.out), writing_in(args.state) if args.state else contextlib.nullcontext():
        if args.restart:
            known.work.throw_away()
        known.work.make(known.missing)


if __name__ == "__main__":
    run(pretrain, parse_args, plan, starts_keras=False)
