"""The command line of the pipeline: what users of the whole method want to set, and what is left to its recipes."""

import shlex

from cli.flags import add_model_flags, integer, new_parser
from cli.recipe import add_recipe_flag
from Models.classifiers import CLASSIFIERS


def add_pipeline_flags(parser):
    """Flags of the pipeline beside those of all scripts. Those without a default are left to the recipe."""
    add, count = parser.add_argument, integer(1)
    add("--sizes", nargs="+", default=[1], type=integer(1, 1000), metavar="N",
        help="synthetic sets to make and to train on, in real sizes (1)")  # fmt: skip
    add("--classifier", choices=list(CLASSIFIERS), help="kind of classifier (resnet20; mini, small: resnet20_16)")
    add("--enc_epochs", type=count, help="epochs of transfer learning (50; mini, small: by the number of images)")
    add("--dif_epochs", type=count, help="epochs of fine-tuning (10; mini, small: by the number of images)")
    add("--n_trials", type=count, help="finished trials of each search (50, 40; mini, small: 5)")
    add(
        "--num_imgs",
        type=count,
        help="images of a trial (4000; mini, small: 30 of each class, at least 300, or 600 above 16 px)",
    )
    add(
        "--test_imgs",
        type=count,
        help="images of each measurement on test (--num_imgs; mini, small: 1x, at most 1000, or 600 above 16 px, no fewer than the default of a trial)",
    )
    add("--trial_epochs", type=count, help="most epochs of a trial's classifier (100; mini, small: 32, 16 above 16 px)")
    add("--classifier_epochs", type=count, help="most epochs of classifiers (100; mini, small: 40, fewer for larger sets)")
    add("--also", action="append", default=[], metavar="'SCRIPT FLAGS'",
        help="further flags of a script, or of a part of it, as in --also 'hyp_opt --pruner none', --also 'SD_adapting:dif "
             "--keep 1'; may be given several times")  # fmt: skip
    add("--ray", nargs="?", const="local", metavar="HOST:PORT",
        help="run the stages as tasks of a Ray cluster, generation in shards: of the one at this address, or of one that is "
             "begun on this machine")  # fmt: skip
    add("--carry", action="store_true",
        help="with --ray: nodes share no folder; what a stage reads and writes travels through the cluster")  # fmt: skip
    add_recipe_flag(parser)
    add("--dry_run", action="store_true", help="print the commands, and run none")
    add_model_flags(parser)


def new_pipeline_parser(doc):
    parser = new_parser(doc, exp_required=True)
    add_pipeline_flags(parser)
    return parser


# What the pipeline decides for its stages, beside what it has flags of its own for.
DECIDED = {
    "dataset",
    "exp",
    "root",
    "train_model",
    "img_total",
    "img_class",
    "optimize",
    "no-optimize",
    "prune",
    "train",
    "synthetic",
}


def further_flags(parser, texts, parts):
    """{script or script:part: [flags]} of what --also gives.

    Args:
        parser: The parser.
        texts: What --also was given.
        parts: {script: names of its parts}.
    """
    names = [*parts, *(f"{script}:{part}" for script in parts for part in parts[script])]
    found = {}
    for text in texts:
        try:
            script, *flags = shlex.split(text)
        except ValueError:
            script, flags = "", []
        script = script.replace(".py", "")
        if script not in names or not flags:
            parser.error(f"argument --also: must be one of {', '.join(names)}, and its flags, received {text!r}")
        if decided := [
            flag for flag in flags if flag.removeprefix("--").partition("=")[0] in DECIDED and flag.startswith("--")
        ]:
            parser.error(f"argument --also: the pipeline decides {decided[0]}")
        found.setdefault(script, []).extend(flags)
    return found
