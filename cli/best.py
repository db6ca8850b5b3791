"""What a finished search has chosen, taken by name: `--best`, and `best` where the number of an epoch is asked for."""

import logging

from cli.flags import integer
from Experiment.errors import UserError
from Experiment.files import read_json
from Experiment.levers import OFF, SAMPLING, levers_on, sampling_in_words
from Experiment.results import EXTENDED
from Models.noise_schedule import DEFAULT_SPACINGS
from Models.weight_cards import weights_hashes
from Models.weight_names import KIND, epoch_file

BEST = "best"

log = logging.getLogger("experiment")


def epoch_or_best(text):
    """An argparse type: the number of an epoch, or `best`."""
    return text if text == BEST else integer(0)(text)


epoch_or_best.__name__ = "whole number or best"


def add_best_flag(parser, what):
    parser.add_argument("--best", action="store_true", help=f"take {what} from the search that is finished")


def settle_best(parser, args, defaults):
    """Give flags that were not given their defaults; with --best they may not be given, and stay open until `take_best`.

    Args:
        parser: The parser, for which these flags have no default.
        args: What it has parsed.
        defaults: {flag: default} of what --best takes.
    """
    for name, default in defaults.items():
        if args.best and getattr(args, name) is not None:
            parser.error(f"argument --best: not allowed with --{name}")
        if not args.best and getattr(args, name) is None:
            setattr(args, name, default)


def search_result(experiment, part, classes, flag, select_on=None):
    """What a finished search has chosen, from its best.json.

    Args:
        experiment: The `Experiment`.
        part: `enc` or `dif`: what the search was after.
        classes: Names of the dataset's classes.
        flag: What asks for it, for messages.
        select_on: `val` or `test`: the images that a search chooses on, if one asks.

    Returns:
        `epoch`, `is`, `ugs`, `enc_epoch`, the Class Encoder of a search after fine-tuning, `levers`, those of sampling that
        were on, `spacing` of the timesteps, None where it is the solver's own, and `select_on`, the images that were chosen on.

    Raises:
        UserError: No search is finished, or its epoch is gone, or has been trained again since, or it has chosen on test
            images and one on validation images asks.
    """
    file = experiment.search_dir(part) / "best.json"
    if not file.exists():
        raise UserError(
            f"{flag}: no search among the epochs of the {KIND[part]} is finished, for there is no {file}: "
            f"run hyp_opt.py --train_model {part} first."
        )
    best = read_json(file)
    if EXTENDED in best:
        raise UserError(
            f"{flag}: the search among the epochs of the {KIND[part]} goes on, to {best[EXTENDED]} trials, and is not finished: "
            f"run hyp_opt.py --train_model {part} --n_trials {best[EXTENDED]} again."
        )
    try:
        run = best.get("run", {})
        found = {"epoch": int(best["epoch"]), "is": int(best["is"]), "ugs": float(best["ugs"])}
        found["enc_epoch"] = int(run["arguments"]["enc_epoch"]) if part == "dif" else found["epoch"]
        found["select_on"] = run["arguments"].get("select_on", "val")
        found["spacing"] = run["arguments"].get("timestep_spacing")
        found["levers"] = levers_on({name: best[name] for name in SAMPLING if name in best})
        searched = {part: run["inputs"]["epoch"], **run["inputs"]["weights"]}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{flag}: {file} is not what a search writes: run the search again with --restart.") from None
    epochs = {"enc": found["enc_epoch"], part: found["epoch"]}
    files = {name: epoch_file(experiment.part_dir(name), epoch, name) for name, epoch in epochs.items() if epoch}
    for name, now in weights_hashes(files, classes).items():
        if searched.get(name) != now:
            raise UserError(
                f"{flag}: epoch {epochs[name]} of the {KIND[name]} is not the one that was searched: it has been trained "
                f"again since. Search again: hyp_opt.py --train_model {part} --restart."
            )
    log.info("%s takes epoch %d, steps %d, scale %g%s, Class Encoder epoch %d from %s", flag, found["epoch"], found["is"],
             found["ugs"], sampling_in_words(found["levers"]), found["enc_epoch"], file)  # fmt: skip
    if found["select_on"] == "test":
        said = f"{flag}: the search in {file} has chosen on TEST images"
        if select_on == "val":
            raise UserError(
                f"{said}, and this one is to see validation images alone. Search again: hyp_opt.py --train_model {part} "
                "--restart; or, as published, give this search --select_on test too."
            )
        log.warning("%s: accuracies on them are too good", said)
    return found


def take_best_epochs(args, experiment, classes):
    """Put the numbers of epochs that finished searches have chosen in place of `best`. Returns what `facts_of` does."""
    facts = {}
    for part in ("enc", "dif"):
        name = f"{part}_epoch"
        if getattr(args, name, None) == BEST:
            found = search_result(experiment, part, classes, f"--{name} {BEST}", vars(args).get("select_on"))
            setattr(args, name, found["epoch"])
            facts |= facts_of(found)
    return facts


def facts_of(found):
    """What a record says of a search's result besides its numbers: {"select_on": "test"} where it was chosen on test."""
    return {"select_on": "test"} if found["select_on"] == "test" else {}


def take_first_levers(args, found):
    """Let a second search sample as the first has chosen to: what fine-tuning brings is measured with the same settings.

    A lever of the first is taken over where this search is not given one and does not search it. Where it searches it, the
    first's goes into `args.levers_1`, beside `is_1` and `ugs_1`, as `Settings.levers` holds it.

    Args:
        args: Of the second search.
        found: What `search_result` returns for the first.

    Returns:
        What was taken over, {name: what earlier versions had in its place}.
    """
    adopted = {}
    for name, key in (("solver", "solver"), ("guidance_interval", "interval")):
        first, given = found["levers"].get(name, OFF[name]), getattr(args, name)
        if getattr(args, f"search_{key}"):
            if first != OFF[name]:
                args.levers_1 = {**vars(args).get("levers_1", {}), key: first}
        elif given is None:
            setattr(args, name, first)
            if first != OFF[name]:
                adopted[name] = OFF[name]
        elif given != first:
            log.warning("--best: the first search has chosen with %s %s, this one is given %s: fine-tuning is measured with "
                        "that before the search too", name, first, given)  # fmt: skip
    if "autoguide" in found["levers"]:
        log.warning("--best: an earlier Class Encoder guided what the first search has chosen; this one goes without")
    return adopted


def take_spacing(args, found):
    """Take over the spacing of a search's timesteps too, unless another solver samples now."""
    solver, searched = found["levers"].get("solver", OFF["solver"]), vars(args).get("search_solver")
    if searched and found["spacing"] not in (None, args.timestep_spacing or DEFAULT_SPACINGS[solver]):
        log.warning("--best: the search has chosen with --timestep_spacing %s, which this one does without",
                    found["spacing"])  # fmt: skip
    if args.solver == solver and not searched:
        args.timestep_spacing = args.timestep_spacing or found["spacing"]
        if found["spacing"] not in (None, args.timestep_spacing):
            log.warning("--best: the search has chosen with --timestep_spacing %s, this run is given %s", found["spacing"],
                        args.timestep_spacing)  # fmt: skip


def take_best(args, experiment, classes, part, names, second_search=False):
    """Put what a finished search has chosen in place of --best, so that a record is that of a run with typed numbers.

    The levers of sampling are taken too.

    Args:
        args: The script's arguments.
        experiment, classes, part: As in `search_result`.
        names: {flag: key of what `search_result` returns}.
        second_search: Whether a second search takes them, see `take_first_levers`.

    Returns:
        What `facts_of` does; of a second search `adopted` too, see `take_first_levers`.
    """
    facts = {}
    if vars(args).pop("best", False):
        found = search_result(experiment, part, classes, "--best", vars(args).get("select_on"))
        facts = facts_of(found)
        for flag, key in names.items():
            setattr(args, flag, found[key])
        if second_search:
            facts["adopted"] = take_first_levers(args, found)
            if args.timestep_spacing is None and not args.search_solver:
                facts["adopted"]["timestep_spacing"] = DEFAULT_SPACINGS[facts["adopted"].get("solver", args.solver)]
        else:
            vars(args).update(found["levers"])
        take_spacing(args, found)
    return facts | take_best_epochs(args, experiment, classes)
