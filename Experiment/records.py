"""The record of a run: its arguments, versions and time, and whether an earlier run has finished."""

import functools
import hashlib
import platform
import re
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from Experiment.errors import UserError
from Experiment.files import file_hash, read_json
from Experiment.levers import HOW, filled_in, without_off
from Experiment.machine import describe_machine
from Experiment.paths import REPOSITORY, TRAINING_RECORD

# Flags that say where the data lie and how they are read: what they are is an input, known by its content.
DATA_FLAGS = ("root", "data_dir", "dataset", "skip_broken", "background", "resolution")
PACKAGES = ("tensorflow", "keras", "keras-cv", "optuna", "numpy")
# In an address USER:password@HOST or ...?password=...: what stands before it, and the password.
PASSWORD = re.compile(r"((?<=[^/]//)[^:/@?]*:|(?:password|passwd)=)(.*(?=@)|(?<==)[^&\s]*)", re.IGNORECASE)


def describe_run(args, started, inputs=None, **facts):
    """What a run's record holds: arguments, inputs, versions, how long its last process took, and the caller's facts."""
    return {
        "arguments": describe_arguments(args),
        "inputs": inputs or {},
        "versions": installed_versions(),
        "machine": describe_machine(),
        "seconds": round(time.time() - started, 1),
        **facts,
    }


def installed_versions():
    """Versions of Python and of the packages that decide results; None for one that is not installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


@functools.cache
def software():
    """What decides results beside arguments and inputs, as text: the code of this checkout, and the versions of what computes."""
    folders = [path for path in REPOSITORY.iterdir() if path.is_dir() and path.name not in ("tests", "bench", "parity")]
    code = hashlib.sha256()
    for file in sorted(file for folder in [REPOSITORY, *folders] for file in folder.glob("[!.]*.py")):
        if not any(part.startswith(".") for part in file.relative_to(REPOSITORY).parts) and file.is_file():
            code.update(f"{file.relative_to(REPOSITORY)} {file_hash(file)}\n".encode())
    versions = [f"{name} {version}" for name, version in installed_versions().items()]
    return ", ".join([f"code {code.hexdigest()[:12]}", *versions])


def finished_run(record_file, args, free, inputs=None, instead="use another --exp, or --restart to replace it"):
    """Whether an earlier run with the same arguments and inputs has finished here.

    Args:
        record_file: The record that a finished run leaves.
        args: This run's arguments; with `restart` an earlier run is not looked at.
        free: Names of arguments that do not change the result.
        inputs: What this run reads, nested names to hashes or values. A record of an earlier version has none: then
            they are not compared.
        instead: What one can do, for the message, to have this run in the place of the earlier one.

    Raises:
        UserError: An earlier run finished here with others; it shows both values.
    """
    if args.restart or not record_file.exists():
        return False
    record = read_json(record_file)
    arguments, inputs_before = record.get("arguments"), record.get("inputs", {})
    if not isinstance(arguments, dict) or not isinstance(inputs_before, dict):
        raise UserError(f"{record_file} is not the record of a run: --restart replaces it.")
    before = {f"--{name}": value for name, value in arguments.items()} | flattened(inputs_before)
    now = identity(args, free, inputs)
    before = filled_in(before, now, "--")
    if shown := changes(before, {name: value for name, value in now.items() if name in before}):
        raise UserError(f"{record_file.parent} holds a finished run with {shown}. {instead[0].upper()}{instead[1:]}.")
    return True


def training_record(folder):
    """The record of a finished training in its folder, {} where there is none.

    Raises:
        UserError: The record is damaged.
    """
    file = folder / TRAINING_RECORD
    return read_json(file) if file.exists() else {}


def identity(args, free, inputs=None):
    """What makes two runs the same: {"--flag": value, "name of an input": hash or value}, flat.

    Args:
        args: The arguments.
        free: Names of arguments that do not change the result.
        inputs: What the run reads, nested names to hashes or values: content, not places.
    """
    return {f"--{name}": value for name, value in fixed_arguments(args, free).items()} | flattened(inputs or {})


def flattened(tree, prefix=""):
    """{"a": {"b": 1}} -> {"a.b": 1}; lists become text, as JSON gives them back as other objects."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
    return flat


def changes(before, now):
    """What differs between two identities, as one text with both values; empty where nothing does.

    A lever that one of them lacks is off there.
    """
    before, now = filled_in(before, now, "--"), filled_in(now, before, "--")
    differing = [name for name in now if before.get(name) != now[name]]
    if not differing:
        return ""
    kinds = {"other arguments" if name.startswith("--") else "other inputs" for name in differing}
    shown = ", ".join(f"{name} {short(before.get(name))} (now {short(now[name])})" for name in differing)
    return f"{' and '.join(sorted(kinds))}: {shown}"


def short(value):
    """A value as a message shows it: of a hash the first digits."""
    text = str(value)
    return text[:8] if re.fullmatch(r"[0-9a-f]{32,}", text) else text[:200]


def masked(text):
    """A text that may be the address of a database, with *** in place of its password."""
    return PASSWORD.sub(r"\1***", text)


def describe_arguments(args):
    """The arguments as JSON has them, without passwords and without levers that are off."""
    plain = {k: str(v) if isinstance(v, Path) else v for k, v in sorted(without_off(vars(args)).items())}
    return {k: masked(v) if k == "storage" and v else v for k, v in plain.items()}


def fixed_arguments(args, free):
    """The arguments that decide a run's result: all but those named in `free`, --restart, and how it is computed."""
    left_out = {*free, "restart", "deterministic", *HOW}
    return {k: v for k, v in describe_arguments(args).items() if k not in left_out}
