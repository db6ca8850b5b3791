"""Flags of sampling that the paper does not have, all off by default."""

from cli.flags import integer, number
from cli.lora import updates_fit
from Experiment.levers import OFF, SAMPLING
from Models.noise_schedule import DEFAULT_SPACINGS, STABLE_DIFFUSION


def add_sampling_levers(parser):
    """The flags of the two scripts that generate images."""
    parser.add_argument(
        "--solver", default=OFF["solver"], choices=list(DEFAULT_SPACINGS),
        help="ddim as published, or dpmpp: DPM-Solver++(2M), for few steps, by a first search from 5 to 15 (ddim)",
    )  # fmt: skip
    parser.add_argument(
        "--guidance_interval", nargs=2, type=number(0), metavar=("LO", "HI"),
        help="guide only at noise levels LO < sigma / alpha <= HI, which go from 14.61 to 0.029: other steps are one pass",
    )  # fmt: skip
    parser.add_argument(
        "--autoguide", type=integer(0), metavar="EPOCH",
        help="guide by an earlier epoch of what was trained last, instead of the unconditional pass; 0: the pretrained UNet",
    )  # fmt: skip


def add_search_levers(parser):
    """What a search may choose beside steps, scale and epoch."""
    parser.add_argument("--search_solver", action="store_true", help="search the solver too, together with its steps")
    parser.add_argument("--search_interval", action="store_true", help="search both ends of the guidance interval too")
    parser.add_argument(
        "--objective", default=OFF["objective"], choices=["accuracy", "pareto"],
        help="pareto: report too which trials are the most accurate for the passes of the UNet that an image takes (accuracy)",
    )  # fmt: skip


def check_search_levers(parser, args):
    for searched, name in (("solver", "solver"), ("interval", "guidance_interval")):
        if getattr(args, f"search_{searched}") and getattr(args, name) not in (None, OFF[name]):
            parser.error(f"argument --{name}: not allowed with --search_{searched}, which chooses it")


MOST_STEPS_DPM = {"linspace": STABLE_DIFFUSION.num_timesteps - 1, "leading": STABLE_DIFFUSION.num_timesteps // 2 - 1}


def check_steps(args):
    """What is wrong with the number of steps of a solver, or None."""
    steps = getattr(args, "inf_steps", None) or getattr(args, "is_max", None) or 1
    spacing = args.timestep_spacing or DEFAULT_SPACINGS["dpmpp"]
    if (args.solver == "dpmpp" or getattr(args, "search_solver", False)) and steps > MOST_STEPS_DPM[spacing]:
        return f"argument --solver: dpmpp takes at most {MOST_STEPS_DPM[spacing]} steps, received {steps}"
    return None


def settle_solver(parser, args):
    """Give --solver its default; with --best, which brings the search's, none may be given, not even that."""
    if args.best and args.solver:
        parser.error("argument --best: not allowed with --solver")
    args.solver = args.solver or OFF["solver"]


def finish_sampling_levers(parser, args, from_best=False):
    """Check these flags, and fill in the spacing that is the solver's own.

    Args:
        parser, args: The script's.
        from_best: Whether they will be taken from a search: then none may be given.
    """
    if args.guidance_interval and args.guidance_interval[0] >= args.guidance_interval[1]:
        parser.error(
            "argument --guidance_interval: LO must be less than HI, received {:g} {:g}".format(*args.guidance_interval)
        )
    if wrong := check_steps(args):
        parser.error(wrong)
    if from_best:
        if given := [name for name in SAMPLING if getattr(args, name) != OFF[name]]:
            parser.error(f"argument --best: not allowed with --{given[0]}")
    elif not args.best:
        fill_in_spacing(args)


def fill_in_spacing(args):
    """The solver's own spacing where none is given; where the solver is searched each trial has its own."""
    if not vars(args).get("search_solver"):
        args.timestep_spacing = args.timestep_spacing or DEFAULT_SPACINGS[args.solver]


def trained_last(args):
    """The part of which `--autoguide` means an epoch, and its epoch that is sampled."""
    return ("dif", args.dif_epoch) if args.dif_epoch else ("enc", args.enc_epoch)


def guide_parts(args, path):
    """Pretrained parts that a guide of this epoch file, or None, needs: ["unet"] or none."""
    return ["unet"] if args.autoguide == 0 or (path and updates_fit(args, path)) else []


def chosen_guide(args, backbone, part, path, num_classes):
    """The `Guide` of --autoguide, None without it. `part` and `path` are as in `load_guide`."""
    from Models.adapter import load_guide

    return None if args.autoguide is None else load_guide(backbone, part, path, num_classes, args.weights_dir)


def sampling_name(args):
    """What a set's name says of these flags; empty where they are off."""
    parts = [
        "" if args.solver == OFF["solver"] else args.solver.capitalize(),
        "Gi{:g}-{:g}".format(*args.guidance_interval) if args.guidance_interval else "",
        "" if args.autoguide is None else f"Ag{args.autoguide}",
    ]
    return "".join(parts)
