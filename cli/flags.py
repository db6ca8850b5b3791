"""What the command lines share: types of flags, common flags, their checks."""

import argparse
import difflib
import logging
import math
import os
import re
from functools import cache
from pathlib import Path

from cli.recipe import add_recipe_flag, parse_by_recipe
from Data.pictures import colour
from Data.registry import DATASETS, own_name
from Experiment import presets
from Experiment.errors import UserError
from Experiment.levers import HOW
from Experiment.paths import REAL_DATA, REPOSITORY, Experiment, home
from Experiment.records import masked
from Models.backbones import BACKBONES
from Models.classifiers import CLASSIFIERS
from Models.noise_schedule import TIMESTEP_SPACINGS

log = logging.getLogger("experiment")

PRECISIONS = ("auto", "float32", "mixed_bfloat16")


def integer(minimum, maximum=1_000_000):
    """An argparse type: a whole number in a range."""

    def parse(text):
        value = int(text)
        if not minimum <= value <= maximum:
            raise argparse.ArgumentTypeError(f"must be in {minimum}..{maximum}, received {text}")
        return value

    parse.__name__ = "whole number"
    return parse


def number(minimum, maximum=math.inf, above=False):
    """An argparse type: a finite number of at least (or, with `above`, more than) the minimum."""

    def parse(text):
        value = float(text)
        if not math.isfinite(value) or value < minimum or value > maximum or (above and value == minimum):
            bounds = f"{'more than' if above else 'at least'} {minimum:g}"
            bounds += f" and at most {maximum:g}" if maximum < math.inf else ""
            raise argparse.ArgumentTypeError(f"must be {bounds}, received {text}")
        return value

    parse.__name__ = "number"
    return parse


def boolean(text):
    """An argparse type for the published True/False flags."""
    if text.lower() in ("true", "1", "yes"):
        return True
    if text.lower() in ("false", "0", "no"):
        return False
    raise argparse.ArgumentTypeError(f"must be True or False, received {text}")


def experiment_name(text):
    """An argparse type: a name that is safe as a folder."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", text):
        raise argparse.ArgumentTypeError(
            f"must be 1 to 64 letters, digits, '_', '-' or '.', beginning with a letter or digit, received {text!r}"
        )
    return text


def dataset_name(text):
    """An argparse type: a name of the registry, or the path of an image folder or npz file."""
    if text in DATASETS or (text and home(text).exists()):
        return text
    near = difflib.get_close_matches(text, DATASETS, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise argparse.ArgumentTypeError(
        f"must be one of {', '.join(DATASETS)}, or the path of an image folder or .npz file, received {text!r}{hint}"
    )


def colour_name(text):
    """An argparse type: the name of a colour, or #rrggbb."""
    try:
        colour(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage is what --help is for. Flags are not abbreviated."""

    def __init__(self, **how):
        super().__init__(allow_abbrev=False, **how)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {masked(' '.join(message.split()))} (--help lists the flags)\n")


def new_parser(doc, exp_required=False, script=None):
    """A parser with the flags that every script takes, and --recipe for a `script` that has one."""
    parser = Parser(description=doc.strip().splitlines()[0])
    parser.add_argument(
        "--dataset",
        default="cifar10",
        type=dataset_name,
        metavar="NAME",
        help=f"{', '.join(DATASETS)}, or the path of your own image folder or .npz file (cifar10)",
    )
    parser.add_argument(
        "--exp",
        required=exp_required,
        default="0001",
        type=experiment_name,
        help="identifier of the experiment, names its folders" + ("" if exp_required else " (0001)"),
    )
    parser.add_argument(
        "--backbone",
        default="sd1",
        choices=list(BACKBONES),
        help="pretrained Stable Diffusion (sd1); mini and small are for a laptop",
    )
    parser.add_argument("--root", default=REPOSITORY, type=Path, help="folder of all outputs (the repository)")
    parser.add_argument("--data_dir", type=Path, help=f"folder with the dataset's official files (ROOT/{REAL_DATA})")
    parser.add_argument("--seed", default=presets.SEED, type=integer(0, 2**63 - 1), help="seed of everything random (1234)")
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="the same bits in every run on a GPU too, at a cost: switches XLA off, and algorithms whose sums depend on "
        "timing; on a processor they are so anyway",
    )
    add_device_flags(parser)
    parser.add_argument("--skip_broken", action="store_true", help="leave broken images of an image folder out")
    parser.add_argument(
        "--resolution",
        type=integer(4, 1024),
        help="side in px at which classifiers see the images (the dataset's, or the set's; of an image folder the median, at most 128); of an "
        "image folder it is what the generator learns from, too",
    )
    parser.add_argument(
        "--background",
        default="white",
        type=colour_name,
        metavar="COLOUR",
        help="what transparent pixels of an image folder show, a name or #rrggbb (white)",
    )
    if script:
        add_recipe_flag(parser, script)
    return parser


def add_device_flags(parser):
    """How it is computed. See `Models.runtime.use_hardware`."""
    parser.add_argument(
        "--xla", default=HOW["xla"], choices=["auto", "on", "off"],
        help="compile models with XLA; auto: the sampler on a GPU, else nothing (auto)",
    )  # fmt: skip
    parser.add_argument(
        "--tf32", action="store_true", help="let a GPU round what it multiplies in float32 to 10 bits: faster (off)"
    )


def add_devices_flag(parser):
    parser.add_argument(
        "--devices", default=HOW["devices"], type=device_count, metavar="N",
        help="GPUs of this machine that share each batch of the training, or all (1)",
    )  # fmt: skip


def device_count(text):
    """An argparse type: how many devices, or `all`."""
    return text if text == "all" else integer(1)(text)


device_count.__name__ = "whole number or all"


def add_training_flags(add):
    """How long and how the adaptation trains, and which of its epochs stay."""
    add("--freq", default=1, type=integer(1), help="epochs between saved weights (1)")
    add("--keep", type=integer(1), help="keep only the last N epochs of this run (all, since the search chooses)")
    add("--epochs", type=integer(1), help="epochs (enc 50, dif 10; mini, small: 12, 64)")
    add("--batch_size", type=integer(1), help="images a step (enc 64, dif 16; mini, small: 64, 32)")
    add("--lr", type=number(0, 10, above=True),
        help="first learning rate (enc 1e-4, dif 1e-5, LoRA 1e-4; mini, small: 2e-2, 8e-4, 4e-3)")  # fmt: skip
    add("--gradient_checkpointing", action="store_true",
        help="compute the UNet's blocks twice a step instead of keeping what they computed: less memory")  # fmt: skip


def add_model_flags(parser):
    """The flags of the scripts that run the diffusion model."""
    parser.add_argument(
        "--precision",
        default="auto",
        choices=PRECISIONS,
        help="arithmetic of the networks, whose weights are held in bfloat16 while images are made; auto: mixed_bfloat16 where the hardware has it (auto)",
    )
    add_weights_flag(parser)


def add_weights_flag(parser):
    parser.add_argument(
        "--weights",
        "--weights_dir",
        dest="weights_dir",
        type=Path,
        metavar="PATH",
        help="a Stable Diffusion that you have: a folder of diffusers, a .safetensors file of the original layout, or a "
        "folder with the backbone's own files (else these are downloaded)",
    )


def check_weights_flag(parser, args):
    """Make the place of the weights absolute, and refuse one that is not there."""
    if args.weights_dir:
        # Links stay: what lies beside one, a .yaml or a card, belongs to it, not to the file that a hub's cache keeps.
        args.weights_dir = Path(os.path.abspath(home(args.weights_dir)))
        if not args.weights_dir.exists():
            parser.error(f"argument --weights/--weights_dir: there is no folder or file {args.weights_dir}")


def add_spacing_flag(parser):
    parser.add_argument(
        "--timestep_spacing",
        choices=TIMESTEP_SPACINGS,
        help="leading as published, linspace as in keras-cv 0.9 (leading; --solver dpmpp: linspace)",
    )


def check_batch_size(args, default, images):
    """Refuse a training batch larger than the dataset. The default may be: a small dataset is then one batch.

    Raises:
        UserError: Another batch size than the default is more than the number of training images.
    """
    if default != args.batch_size > images:
        raise UserError(f"argument --batch_size: {args.batch_size} is more than the {images} training images.")


def add_classifier_flags(parser):
    """The flags of the two scripts that train a classifier on generated images."""
    parser.add_argument(
        "--batch_size", default=presets.CLASSIFIER_BATCH, type=integer(1), help="images a step of the classifier (256)"
    )
    parser.add_argument(
        "--classifier",
        default="resnet20",
        choices=list(CLASSIFIERS),
        help="resnet20 as published (64 filters), or resnet20_16, a quarter as wide (resnet20)",
    )
    parser.add_argument(
        "--resize",
        default="bilinear",
        choices=["bilinear", "antialias"],
        help="how generated images shrink to the dataset's size (bilinear, as published)",
    )


@cache
def warn_once(text):
    """A warning of what is parsed: the pipeline parses the flags of all its stages."""
    log.warning("%s", text)


def named_path(args):
    """The path of the user's own data as text. A link keeps its name, and what it leads to may change, as a hub's cache has it.

    Earlier versions named the data after what the link leads to: what has been begun so goes on so.
    """
    path, target = (Path(turn(home(args.dataset))) for turn in (os.path.abspath, os.path.realpath))
    if path.name != target.name and target.exists():
        linked, earlier = (Experiment(args.root, args.exp, own_name(each)).part_dir("enc").parent for each in (path, target))
        if earlier.exists() and not linked.exists():
            warn_once(f"--dataset {path} is a link: the experiment goes on under the name of what it leads to, {target}")
            return str(target)
    return str(path)


def finish_args(parser, argv=None):
    """Parse, fill in what depends on other flags, and check what can be checked before anything heavy is loaded."""
    args = parse_by_recipe(parser, argv)
    if args.deterministic and args.xla == "on":
        parser.error("argument --xla: on is not allowed with --deterministic, which switches it off")
    if args.xla == "on" and getattr(args, "devices", 1) != 1:  # Keras would compile the step of all devices as one
        parser.error("argument --xla: on is not allowed with --devices, whose training TensorFlow does not compile by XLA")
    args.root = home(args.root).resolve()
    args.data_dir = home(args.data_dir or args.root / REAL_DATA).resolve()
    if args.dataset in DATASETS:
        if Path(args.dataset).is_dir():
            warn_once(
                f"--dataset {args.dataset} is the published dataset, not the folder of that name here: that is ./{args.dataset}"
            )
    else:
        args.dataset = named_path(args)
    if hasattr(args, "weights_dir"):
        check_weights_flag(parser, args)
    if getattr(args, "synthetic_dir", None):
        args.synthetic_dir = home(args.synthetic_dir).resolve()
        if not args.synthetic_dir.is_dir():
            parser.error(f"argument --synthetic_dir: there is no folder {args.synthetic_dir}")
    return args
