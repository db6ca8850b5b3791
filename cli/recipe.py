"""--recipe: values of flags that are not given, the paper's or those of the levers that the study has found to help."""

import shlex

from Experiment.levers import RECIPE_BEST


def add_recipe_flag(parser, script=None):
    """The flag, whose help says what it stands for.

    Args:
        parser: The parser.
        script: The script's name, a key of `RECIPE_BEST`; None for one that passes the flag on.
    """
    parser.best = RECIPE_BEST[script] if script else {}
    flags = shlex.join(word for name, value in parser.best.items() for word in (f"--{name}", str(value)))
    means = (flags or "the same here") if script else "levers that were measured to help, at every stage"
    parser.add_argument(
        "--recipe", default="paper", choices=["paper", "best"],
        help=f"values of flags that are not given: the paper's; best: {means} (paper)",
    )  # fmt: skip
    parser.passes_on = script is None


def parse_by_recipe(parser, argv=None):
    """Parse a command line. The recipe is spelled out: the arguments are those of a run that was given its flags.

    Args:
        parser: With `add_recipe_flag` or without: then the paper's values stay.
        argv: The command line without the script's name; None for that of the process.
    """
    args = parser.parse_args(argv)
    if "recipe" not in args or parser.passes_on:
        return args
    if args.recipe == "best":
        parser.set_defaults(**fitting(args, parser.best))
        args = parser.parse_args(argv)
    del args.recipe
    return args


def fitting(args, best):
    """Those of the recipe's {flag: value} that the other arguments leave open."""
    given, decided = vars(args), set()
    if not given.get("synthetic", True):
        decided |= {"labels"}  # real images have their own
    if given.get("search_solver") or ("img_total" in given and given["best"]):
        decided |= {"solver"}  # a search chooses it, or has chosen it
    return {name: value for name, value in best.items() if name not in decided}
