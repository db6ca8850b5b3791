"""The settings of a trial: what is searched, and what a command line has to say to generate with them."""

from typing import NamedTuple

import numpy as np

from Experiment.levers import OFF, SAMPLING, levers_on
from Models.noise_schedule import DEFAULT_SPACINGS

NOISE_LEVELS = (0.02, 15.0)  # sigma / alpha: all of Stable Diffusion's, 0.029 to 14.6


class Settings(NamedTuple):
    """Settings of the sampler, and the epoch.

    Attributes:
        steps, scale, epoch: Inference steps, guidance scale, number of the saved epoch.
        levers: Further settings that are searched, {"solver": name, "interval": [LO, HI]}, or less: those that are not
            are the command line's.
    """

    steps: int
    scale: float
    epoch: int
    levers: dict = {}


def suggest_settings(trial, args, last_epoch):
    """Parameters of a trial: inference steps, guidance scale and epoch in the paper's ranges, and searched levers."""
    trial.suggest_int("is", args.is_min, args.is_max)
    trial.suggest_float("ugs", 0.0, args.ugs_max)
    trial.suggest_int("epoch", 1, last_epoch)
    if args.search_solver:
        trial.suggest_categorical("solver", list(DEFAULT_SPACINGS))
    if args.search_interval:
        for end in ("sigma_1", "sigma_2"):  # the two ends, in either order
            trial.suggest_float(end, *NOISE_LEVELS, log=True)


def searched_levers(params):
    """The `levers` of a trial's parameters."""
    levers = {"solver": params["solver"]} if "solver" in params else {}
    if "sigma_2" in params:  # one that was killed between its parameters has no second end
        levers["interval"] = sorted(float(f"{params[end]:.3g}") for end in ("sigma_1", "sigma_2"))
    return levers


def settings_of(trial):
    """The `Settings` of a trial."""
    params = trial.params
    return Settings(params["is"], params["ugs"], trial.user_attrs["saved_epoch"], searched_levers(params))


def as_params(args, levers):
    """Parameters of a trial with these `Settings.levers`, where they are searched: the inverse of `searched_levers`.

    Those that are missing stand for the paper's way: DDIM, guided at all noise levels.
    """
    solver = {"solver": levers.get("solver", "ddim")} if args.search_solver else {}
    ends = np.clip(levers.get("interval", NOISE_LEVELS), *NOISE_LEVELS).tolist()
    return solver | (dict(zip(("sigma_1", "sigma_2"), ends)) if args.search_interval else {})


def levers_used(args, levers):
    """{argument of generate_dataset.py: value} of the levers that are on, searched or given."""
    solver, interval = levers.get("solver", args.solver), levers.get("interval", args.guidance_interval)
    return levers_on({"solver": solver, "guidance_interval": interval, "autoguide": args.autoguide})


def sampling_of(args, steps, levers):
    """All that says how images are sampled besides scale and epoch, {name: value}, levers that are off too: of a step on test.

    Args:
        args: The arguments of hyp_opt.py.
        steps, levers: Of the `Settings`.
    """
    used = {name: OFF[name] for name in SAMPLING} | levers_used(args, levers)
    return {"is": steps, **used, "timestep_spacing": args.timestep_spacing or DEFAULT_SPACINGS[used["solver"]]}


def as_flags(args, settings):
    """A command line's flags by which generate_dataset.py makes the images of a trial.

    Args:
        args: The arguments of hyp_opt.py.
        settings: `Settings` of the trial.
    """
    steps, scale, epoch, levers = settings
    epochs = {"enc": (epoch, 0), "dif": (args.enc_epoch, epoch)}[args.train_model]
    used = {"enc_epoch": epochs[0], "dif_epoch": epochs[1], "inf_steps": steps, "ugs": scale, **levers_used(args, levers)}
    if args.timestep_spacing not in (None, DEFAULT_SPACINGS[used.get("solver", "ddim")]):
        used["timestep_spacing"] = args.timestep_spacing
    texts = {name: " ".join(map(str, value)) if isinstance(value, list) else value for name, value in used.items()}
    return " ".join(f"--{name} {text}" for name, text in texts.items())
