"""Where everything of an experiment lies, and what every stage shares: records, safe writing, randomness.

This is the bottom of the house: it imports nothing of the project and nothing heavy.
"""

import contextlib
import csv
import glob
import hashlib
import json
import logging
import os
import platform
import re
import struct
import time
import tokenize
import zipfile
import zlib
from importlib.metadata import version
from pathlib import Path

import numpy as np

log = logging.getLogger("experiment")

REPOSITORY = Path(__file__).resolve().parent
PACKAGES = ("tensorflow", "keras", "keras-cv", "optuna", "numpy")
# Folder of each adapted part below Checkpoints/DDPM/Exp_<exp>/<dataset>, as published.
PART_FOLDERS = {"enc": "MyEmbedding", "dif": "DiffusionFt"}
# The paper's accuracies, in the schemas of `Experiment.cas_file` and `pipeline_file`, and the folders of their figures.
PUBLISHED_CAS = REPOSITORY / "CAS Results" / "published_test_accuracies.json"
PUBLISHED_PIPELINE = REPOSITORY / "CAS Results" / "published_pipeline_optimization.json"
PUBLISHED_CAS_PLOTS = REPOSITORY / "CAS Results" / "CAS_plots"
PUBLISHED_PIPELINE_PLOTS = REPOSITORY / "optimization_plots"
# Schemas of results: two levels of names, a third one that fits the expression, and the accuracies.
CAS_SCHEMA = (r"real|x[1-9]\d{0,3}", ("top_1_accuracy", "top_5_accuracy"))  # classifier, dataset, size
PIPELINE_SCHEMA = (r"no_opt|opt", ("top_1", "top_5"))  # dataset, stage, before or after the search
# Purposes of random numbers: each gets its own stream, so that none repeats another's draws.
STREAMS = {name: i for i, name in enumerate(["order", "training_noise", "sampling_noise", "subset", "split", "corpus"])}


CLAIMED = {}  # lock files of `claim`, held open


class UserError(Exception):
    """Something the user can mend: scripts print it as one line and end with exit code 2."""


def random_stream(seed, purpose, first=0, second=0):
    """A NumPy generator that is a function of its arguments alone (counter-based Philox).

    Randomness is addressed, not consumed: the noise of image i is the same whoever draws it, in whatever batch,
    before or after a restart.

    Args:
        seed: The user's seed, 0 or more.
        purpose: A key of `STREAMS`.
        first, second: The address within the purpose, such as (class, index) or (epoch, sample).
    """
    # Philox counts up in its first word: the address goes into the other three.
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, first, second, STREAMS[purpose]]))


class Experiment:
    """Every folder and file name of experiment `exp` on `dataset`, below one root.

    Args:
        root: Folder that holds `Checkpoints/`, `Data/Synthetic/`, `CAS Results/` and the other outputs.
        exp: Identifier of the experiment, such as `0001`.
        dataset: Name of the dataset, such as `cifar10`.
    """

    def __init__(self, root, exp, dataset):
        self.root, self.exp, self.dataset = Path(root), exp, dataset

    @property
    def results_dir(self):
        return self.root / "CAS Results"

    @property
    def cas_file(self):
        return self.results_dir / f"test_accuracies_exp{self.exp}.json"

    @property
    def pipeline_file(self):
        return self.results_dir / f"pipeline_optimization_exp{self.exp}.json"

    @property
    def latents_dir(self):
        return self.root / "Data" / "Latents"

    @property
    def synthetic_root(self):
        return self.root / "Data" / "Synthetic" / f"Exp_{self.exp}" / self.dataset

    @property
    def images_dir(self):
        return self.root / "Images" / self.dataset

    def part_dir(self, part):
        """Folder of the epoch weights of `enc` or `dif`."""
        return self.root / "Checkpoints" / "DDPM" / f"Exp_{self.exp}" / self.dataset / PART_FOLDERS[part]

    def classifier_dir(self, classifier, source):
        """Folder of a classifier trained on `source`: `real`, or the size of the synthetic set as published."""
        return self.root / "Checkpoints" / "Classifiers" / f"Exp_{self.exp}" / classifier / self.dataset / source

    def search_dir(self, part):
        """Folder of the plots of a search; the study's database lies beside them."""
        return self.root / "optimization_plots" / self.exp / self.dataset / part

    @property
    def cas_plot(self):
        """The CAS curve, in a folder of the experiment: the names above it are those of the published curves."""
        return self.results_dir / "CAS_plots" / f"exp{self.exp}" / f"{self.dataset}.png"

    def pipeline_plot(self, score):
        """The bar chart of all datasets of the experiment, `score` being `top_1` or `top_5`."""
        return self.root / "optimization_plots" / self.exp / f"{score}.png"

    def study_name(self, part):
        return f"{self.dataset}_exp{self.exp}_study_{part}"


def size_name(count):
    """Short form of a number of images, as the published folders have it: 40000 -> 40k, 1080 -> 1.08k, 300 -> 300."""
    return f"{count / 1000:.3f}".rstrip("0").rstrip(".") + "k" if count >= 1000 else str(count)


def size_from_name(name):
    """The number of images that a synthetic folder's name promises, or None: `40k`, `40.0kEnc50Dif10Is50Ugs7.5`."""
    match = re.match(r"(\d+(?:\.\d+)?)(k?)(?:Enc|$)", name)
    return round(float(match[1]) * (1000 if match[2] else 1)) if match else None


def partial_path(path):
    """The name beside `path` under which this process writes it until it is whole."""
    return path.with_name(f".partial-{platform.node()}-{os.getpid()}-{path.name}")


def is_running(pid):
    """Whether a process of this machine with that number, given as text, is there."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OverflowError, PermissionError):
        pass  # no number of ours to judge by, or another user's process
    return True


def writer_is_gone(partial):
    """Whether a temporary file was left by a process of this machine that was killed."""
    ours = f".partial-{platform.node()}-"
    return partial.name.startswith(ours) and not is_running(partial.name.removeprefix(ours).split("-")[0])


@contextlib.contextmanager
def atomic_path(path):
    """Yield a name beside `path` to write to; when the block succeeds the finished file takes its final name at once.

    A file under its final name is therefore always whole. The suffixes stay, since some writers look at them.
    """
    path = Path(path)
    check_claims(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    for left in path.parent.glob(".partial-*" + glob.escape(f"-{path.name}")):
        if writer_is_gone(left):
            left.unlink(missing_ok=True)
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path, content):
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")


def read_json(path):
    """The content of a JSON file that holds an object.

    Raises:
        UserError: The file is something else.
    """
    try:
        content = json.loads(Path(path).read_text())
    # RecursionError: thousands of brackets.
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON ({error}): repair it or move it away.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object. Received: {type(content).__name__}")
    return content


def read_results(path, schema):
    """Test accuracies in one of the two published schemas.

    Args:
        path: A file of `Experiment.cas_file` or `pipeline_file`.
        schema: `CAS_SCHEMA` or `PIPELINE_SCHEMA`.

    Raises:
        UserError: The file is not of that schema, or an accuracy is not in 0..1.
    """
    third_name, scores = schema

    def fits(node, levels):
        if not isinstance(node, dict) or not node:
            return False
        if not levels:
            return all(isinstance(node.get(score), int | float) and 0 <= node[score] <= 1 for score in scores)
        if levels == 1 and not all(re.fullmatch(third_name, name) for name in node):
            return False
        return all(fits(value, levels - 1) for value in node.values())

    results = read_json(path)
    if not fits(results, 3):
        raise UserError(f"{path} does not hold accuracies in 0..1 in the published schema: repair it or move it away.")
    return results


@contextlib.contextmanager
def plain_arrays(path):
    """An open .npz file: a mapping of names to arrays, none of which needs unpickling.

    Raises:
        UserError: The file is something else, or not whole.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            yield data
    # What NumPy and zipfile make of nonsense. TypeError: a single array (.npy), which is no context manager.
    except (ValueError, TypeError, OSError, EOFError, KeyError, NotImplementedError, RuntimeError, MemoryError, OverflowError,
            struct.error, zlib.error, zipfile.BadZipFile, SyntaxError, tokenize.TokenError) as error:  # fmt: skip
        raise UserError(f"{path} is not a readable npz file of plain arrays: {error}") from None


@contextlib.contextmanager
def locked(path):
    """Hold a lock that belongs to `path` (in a file beside it), waiting for whoever else holds it."""
    import fcntl

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def claim(folder, part="", create=True):
    """Make this process the only one that writes in a folder, or in a part of it, until it ends, however it ends.

    Parts may be claimed side by side, but not beside the whole. Temporary files that an earlier process left in the folder
    when it was killed are removed.

    Args:
        folder: The folder; made where it is missing.
        part: Name of the part, empty for the whole.
        create: Whether to claim what nobody has claimed before. If not, nothing is made: so it can be told of another
            process at once, before the input is known to be good.

    Raises:
        UserError: Another process writes there.
    """
    import fcntl

    folder = Path(folder)
    lock = folder / f".lock{part}"
    if lock in CLAIMED or not (create or lock.exists()):
        return
    folder.mkdir(parents=True, exist_ok=True)
    locks = {".lock": fcntl.LOCK_SH, f".lock{part}": fcntl.LOCK_EX}  # one and the same where it is the whole
    with contextlib.ExitStack() as stack:
        files = {folder / name: stack.enter_context(open(folder / name, "a+")) for name in locks}
        for file, kind in zip(files.values(), locks.values()):
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read() or "another process"
                raise UserError(f"{holder} is writing in {folder}: wait for it, or use another --exp.") from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
        CLAIMED.update(files)
        stack.pop_all()  # closing them would give the folder up
    remove_partial_files(folder, of_dead_only=bool(part))


def check_claims(path):
    """Raise a UserError if `path` is to be written in a claimed folder that somebody has deleted or replaced since."""
    for lock in CLAIMED:
        if lock.parent in path.parents and not lock.exists():
            raise UserError(f"{lock.parent} has been deleted while this process was writing in it: run the same command again.")


def remove_partial_files(folder, of_dead_only=False):
    """Remove what `atomic_path` and others were writing in a folder and its folders when they were killed.

    Args:
        of_dead_only: Whether other processes may be writing there: then only what processes of this machine have left that
            are gone.
    """
    for pattern in (".partial-*", "*/.partial-*"):
        for left in folder.glob(pattern):
            if not of_dead_only or writer_is_gone(left):
                left.unlink(missing_ok=True)


def merge_json(path, content):
    """Add nested `content` to a JSON file; other runs' entries stay, also those written at the same time.

    A file that is broken is kept aside under another name: hours of training shall not be lost for it.
    """

    def merge(old, new):
        both_nested = isinstance(old, dict) and isinstance(new, dict)
        return {**old, **{k: merge(old.get(k), v) for k, v in new.items()}} if both_nested else new

    path = Path(path)
    with locked(path):
        try:
            before = read_json(path) if path.exists() else {}
        except UserError as error:
            before, aside = {}, path.with_name(f"{path.stem}.broken-{time.time_ns()}{path.suffix}")
            os.replace(path, aside)
            log.warning("%s It is kept as %s", error, aside)
        write_json(path, merge(before, content))


def write_csv(path, rows):
    """Write a list of dicts with the same keys as a CSV file."""
    with atomic_path(path) as partial, open(partial, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def file_hash(path, algorithm="sha256"):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


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
        raise UserError(f"{record_file.parent} holds a finished run with other arguments: {shown}. Use another --exp, "
                        "or --restart to replace it.")  # fmt: skip
    return True


def describe_arguments(args):
    return {k: str(v) if isinstance(v, Path) else v for k, v in sorted(vars(args).items())}


def fixed_arguments(args, free):
    """The arguments that decide a run's result: all but those named in `free`, --restart and --deterministic."""
    return {k: v for k, v in describe_arguments(args).items() if k not in (*free, "restart", "deterministic")}


def changed_arguments(before, now):
    """The flags of `now` that differ from `before`, with both values, as one text; empty where none does."""
    return ", ".join(f"--{k} {before.get(k)} (now {v})" for k, v in now.items() if before.get(k) != v)
