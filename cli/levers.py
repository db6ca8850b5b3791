"""Flags of what goes beyond the paper's recipe; each is off by default."""

from cli.flags import add_devices_flag, integer, number
from cli.tasks import ThisTask, repeats

MOST_REPEATS = 1000


def add_classifier_levers(parser):
    """How a classifier learns."""
    add = parser.add_argument
    add("--augment", default="none", choices=["none", "standard", "mirrored", "unmirrored"],
        help="training images: as they are, or cropped, partly erased and, where the names of the classes allow it (standard) "
             "or in any case (mirrored), mirrored left and right (none)")  # fmt: skip
    add("--optimizer", default="adam", choices=["adam", "adam_steps", "sgd"],
        help="adam as published: a tenth of the rate where validation accuracy stalls; adam_steps: all of the epochs, a tenth "
             "of the rate after 60 and 80 %% of them; sgd: the same with momentum in adam's place (adam)")  # fmt: skip


def add_score_flags(parser):
    """What classifier_training.py learns from, how often, and on what."""
    add = parser.add_argument
    add_devices_flag(parser)
    add("--repeats", default=1, type=repeats(integer(1, MOST_REPEATS)), metavar="N",
        help="classifiers of different seeds: results are their mean, with an interval; I/N: train the I-th of them alone, "
             "auto/N: that of this task of a batch job; the one that ends last tests all (1)")  # fmt: skip
    add("--labels", default="hard", choices=["hard", "soft", "both", "aligned"],
        help="labels of synthetic images: their class; what a teacher says, a classifier trained on the real training images; "
             "both, half of each; or what it says, with classes in all as frequent as in the real images (hard)")  # fmt: skip
    add("--recycle", action="store_true", help="each epoch sees the next 1x of --take: as many steps as 1x")
    add("--real_share", default=0.0, type=number(0, 0.99), metavar="SHARE",
        help="share of real training images among the synthetic ones, whose number falls accordingly (0)")  # fmt: skip


def check_score_flags(parser, args):
    """Refuse flags that do not go together; tell one repeat, `args.repeat`, from the number of them."""
    args.repeat, args.repeats = args.repeats if isinstance(args.repeats, tuple) else (None, args.repeats)
    if args.repeats > MOST_REPEATS:
        parser.error(f"argument --repeats: must be at most {MOST_REPEATS}")
    if isinstance(args.repeat, ThisTask) and isinstance(args.take, ThisTask):
        parser.error("argument --repeats: auto is not allowed with --take auto: each task would train one repeat of one size")
    given = [name for name in ("restart", "train") if getattr(args, name) != parser.get_default(name)]
    if given and args.repeat:
        parser.error(f"argument --repeats: one of several is not allowed with --{given[0]}")
    if not args.train and (args.restart or not args.test):
        parser.error(f"argument --train: False is not allowed with {'--restart' if args.restart else '--test False'}")
    levers = {"labels": args.labels != "hard", "recycle": args.recycle, "real_share": args.real_share > 0}
    if (used := [name for name, on in levers.items() if on]) and not args.synthetic:
        parser.error(f"argument --{used[0]}: not allowed with --synthetic False")
    if args.recycle and args.real_share:
        parser.error("argument --recycle: not allowed with --real_share")
