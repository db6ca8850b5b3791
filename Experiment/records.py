"""The record of a run: its arguments, versions and time, and whether an earlier run has finished."""

import os
import platform
import re
import time
from importlib.metadata import version
from pathlib import Path

from Experiment.errors import UserError
from Experiment.files import read_json

PACKAGES = ("tensorflow", "keras", "keras-cv", "optuna", "numpy")
# In an address USER:password@HOST or ...?password=...: what stands before it, and the password.
PASSWORD = re.compile(r"((?<=[^/]//)[^:/@?]*:|(?:password|passwd)=)(.*(?=@)|(?<==)[^&\s]*)", re.IGNORECASE)


def describe_run(args, started, **facts):
    """What a run's record holds: arguments, seed and versions, how long it took, and the caller's facts."""
    return {
        "arguments": describe_arguments(args),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "machine": {"system": platform.platform(), "cores": os.cpu_count()},
        "seconds": round(time.time() - started, 1),
        **facts,
    }


def finished_run(record_file, args, free):
    """Whether an earlier run with the same arguments has finished here.

    Args:
        record_file: The record that a finished run leaves.
        args: This run's arguments; with `restart` an earlier run is not looked at.
        free: Names of arguments that do not change the result.

    Raises:
        UserError: An earlier run finished here with other arguments; it shows both values.
    """
    if args.restart or not record_file.exists():
        return False
    before = read_json(record_file).get("arguments")
    if not isinstance(before, dict):
        raise UserError(f"{record_file} is not the record of a run: --restart replaces it.")
    shown = changed_arguments(before, {k: v for k, v in fixed_arguments(args, free).items() if k in before})
    if shown:
        raise UserError(
            f"{record_file.parent} holds a finished run with other arguments: {shown}. Use another --exp, "
            "or --restart to replace it."
        )
    return True


def masked(text):
    """A text that may be the address of a database, with *** in place of its password."""
    return PASSWORD.sub(r"\1***", text)


def describe_arguments(args):
    """The arguments as JSON has them, without passwords."""
    plain = {k: str(v) if isinstance(v, Path) else v for k, v in sorted(vars(args).items())}
    return {k: masked(v) if k == "storage" and v else v for k, v in plain.items()}


def fixed_arguments(args, free):
    """The arguments that decide a run's result: all but those named in `free`, --restart and --deterministic."""
    return {k: v for k, v in describe_arguments(args).items() if k not in (*free, "restart", "deterministic")}


def changed_arguments(before, now):
    """The flags of `now` that differ from `before`, with both values, as one text; empty where none does."""
    return ", ".join(f"--{k} {before.get(k)} (now {v})" for k, v in now.items() if before.get(k) != v)
