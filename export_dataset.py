"""Hand a synthetic dataset on: a folder in a format that others read, with its card, every image marked as generated.

python export_dataset.py --dataset cifar10 --exp first --to cifar10_synthetic --format hf
"""

import contextlib
import logging
import re
import time
from pathlib import Path

from cli.flags import finish_args, new_parser
from cli.process import run, telling_what_is_saved
from Data.cards import CITATION, card, summary, title
from Data.croissant import croissant
from Data.doubts import doubts
from Data.export import FORMATS
from Data.export_images import SetToExport, as_generated, only_set
from Data.identity import data_identity
from Data.loaders import load_splits
from Data.measured import audit_file, audit_tables, cas_doubts, cas_rows
from Data.registry import DATASETS, dataset_spec, origin
from Experiment.disk import bytes_in_words, check_room
from Experiment.errors import UserError
from Experiment.files import atomic_folder, refuse_existing, write_json
from Experiment.licences import NOT_KNOWN, OF_DATA, OF_OTHER_WEIGHTS, Licence
from Experiment.paths import Experiment, home
from Experiment.plan import Plan
from Experiment.progress import each
from Models.backbones import BACKBONES

log = logging.getLogger("experiment")

REAL = ("val", "test")


def parse_args(argv=None):
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--synthetic_dir", type=Path, help="folder of the synthetic set (else the experiment's only one)")
    add("--to", required=True, type=Path, metavar="FOLDER", help="folder to make; it must not be there yet")
    add(
        "--format", required=True, choices=list(FORMATS),
        help="hf: for datasets.load_dataset; npz: MedMNIST's keys; webdataset: tars; folders: a folder a class",
    )  # fmt: skip
    add("--with_real", action="store_true", help="npz: add the real val and test images, where their licence allows it")
    add("--license", metavar="ID", help="licence of your own data as Hugging Face calls it, such as cc-by-4.0")
    add("--attribution", default="", metavar="TEXT", help="who is to be named for your own data, and how")
    args = finish_args(parser, argv)
    args.to = home(args.to).resolve()
    if args.with_real and args.format != "npz":
        parser.error("argument --with_real: only with --format npz")
    if args.license and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,60}", args.license):
        parser.error(f"argument --license: must be small letters, digits, '.', '+' and '-', received {args.license!r}")
    if args.attribution and not args.license:
        parser.error("argument --attribution: only with --license, which asks for it")
    return args


def plan(args):
    """Look at what is there.

    Returns:
        A `Plan`: the `source`, a `SetToExport`; the `experiment`; the `licences` and `credits` of the real data and of the
        backbone; what was `measured` with the set, the `doubts` why that may be too good, the figures of its `audit`, and
        whether it is `audited` at all.

    Raises:
        UserError: The run cannot begin: a folder in the way, no set or not a whole one, broken results, no licence to pass
            real images on.
    """
    refuse_existing(args.to)
    spec = dataset_spec(args.dataset, args.skip_broken, args.resolution, args.background)
    experiment = Experiment(args.root, args.exp, spec.name)
    licence = data_licence(args, spec)
    if args.with_real and not licence:
        raise UserError(f"no licence is known that lets others have the real images of {spec.name}: leave out --with_real"
                        + ("." if origin(spec) else ", or name yours with --license."))  # fmt: skip
    folder = args.synthetic_dir or only_set(experiment.synthetic_root, spec.num_classes)
    spec = as_generated(spec, folder, args.resolution)
    if folder in (args.to, *args.to.parents):
        raise UserError(f"{args.to} is in the folder of the set: an export there would become a part of it.")
    source = SetToExport(folder, spec)
    check_room(args.to.parent, source.bytes(), "the export")
    return Plan(
        source=source, experiment=experiment, licences=(licence, weights_licence(source.manifest)),
        credits=(args.attribution, credit_of(source.manifest)),
        measured=cas_rows(experiment, source), doubts=cas_doubts(experiment, source), audit=audit_tables(folder, source.sha256, experiment),
        audited=audit_file(folder).exists(),
    )  # fmt: skip


def data_licence(args, spec):
    """The licence of the real images, None where none is known.

    Raises:
        UserError: Another one is named than that of a published dataset.
    """
    known = origin(spec)
    if known and args.license:
        stated = known.licence.name if known.licence else "stated by nobody"
        raise UserError(f"argument --license: only for data of your own; that of {spec.name} is {stated}.")
    if not args.license:
        return known.licence if known else None
    named = next((licence for licence in OF_DATA.values() if licence.id == args.license), None)
    return named or Licence(args.license, args.license, "", "its terms be kept")


def weights_licence(manifest):
    """The licence of the pretrained weights that a set was made with, None where it is not known or there is none."""
    backbone, weights = BACKBONES.get(manifest.get("backbone")), manifest.get("weights")
    if not backbone:
        return None
    weights = weights if isinstance(weights, dict) else {}
    # An earlier version recorded no decoder. A UNet from elsewhere follows other numerics, whatever decodes its latents.
    own = weights.get("decoder") in (None, backbone.weights_hash("decoder")) and not weights.get("numerics")
    return backbone.licence if own else OF_OTHER_WEIGHTS


def credit_of(manifest):
    """What the backbone of a set has learned from, where this project has trained it."""
    backbone = BACKBONES.get(manifest.get("backbone"))
    return backbone.credit if backbone else ""


def export(args, known=None):
    """Write the folder. It appears under its name when it is whole.

    Args:
        args: What `parse_args` returns.
        known: What `plan` has found, if it was asked before.

    Returns:
        The folder.

    Raises:
        UserError: Images cannot be read, or the run cannot begin.
    """
    started = time.time()
    known = known or plan(args)
    source = known.source
    log.info("%d images of %s in %d classes, %s, as %s: %s -> %s", source.total, source.spec.name, len(source.classes),
             bytes_in_words(source.bytes()), args.format, source.folder, args.to)  # fmt: skip
    if args.with_real:
        splits = load_splits(source.spec, args.data_dir, args.seed, source.spec.resolution, known.experiment)
        source.real = {name: getattr(splits, name) for name in REAL}
        seen, own = source.manifest.get("learned_from", []), source.spec.name not in DATASETS
        found = doubts(splits, data_identity(splits, source.spec), seen, own)
        for text in found:
            log.warning("accuracies on the real test images of this file may be too good: %s", text)
        known.doubts = [*dict.fromkeys([*known.doubts, *found])]
    with (
        telling_what_is_saved(lambda: f"{args.to} is not made", "begins anew"),
        atomic_folder(args.to) as folder,
        contextlib.closing(each(source.images(), "image", source.total)) as images,
    ):
        layout = FORMATS[args.format](folder, source, images)
        text = card(source, layout, known.licences, known.credits, known.measured, known.doubts, known.audit,
                    known.audited)  # fmt: skip
        (folder / "README.md").write_text(text, encoding="utf-8")
        if layout.features:
            write_json(folder / "croissant.json", described(source, layout, known.licences))
    log.info("%d images in %.0f s -> %s, card README.md", source.total, time.time() - started, args.to)
    return args.to


def described(source, layout, licences):
    """The Croissant description of the folder. It is dated as the set is, so that two exports have the same bytes."""
    of_data, of_weights = licences
    pages = [licence.page or licence.id for licence in (of_data or NOT_KNOWN, of_weights) if licence]
    day = time.strftime("%Y-%m-%d", time.gmtime(source.folder.stat().st_mtime))
    return croissant(source, layout, title(source), summary(source), pages, day, CITATION)


if __name__ == "__main__":
    run(export, parse_args, plan, starts_keras=False)
