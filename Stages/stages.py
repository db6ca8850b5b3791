"""The stages of the method as a list: which script runs with which flags, and which of them run side by side."""

import shlex
from dataclasses import dataclass

from Experiment import presets
from Experiment.paths import REAL_DATA, REPOSITORY
from Experiment.records import masked
from Models.backbones import BACKBONES
from Stages.recipes import recipe

FILE_ADDRESSES = "sqlite", "journal:"  # how an address of a study begins that names a file
# Flags that every stage gets, where they are not at their default, which is the scripts' too.
COMMON = {"data_dir": None, "seed": presets.SEED, "deterministic": False, "skip_broken": False, "resolution": None,
          "background": "white", "xla": "auto", "tf32": False}  # fmt: skip
MODEL = {"precision": "auto", "weights_dir": None}
# Scripts, and parts of those that run more than once with different flags: what --also can name, as in `SD_adapting:dif`.
PARTS = {"SD_adapting": ("enc", "dif"), "hyp_opt": ("enc", "dif"), "generate_dataset": (),
         "classifier_training": ("real", "synthetic")}  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
        name: What the user sees.
        script: Name of the script, without its suffix.
        flags: Its command line, a tuple of text.
        group: Stages with the same number need nothing of each other: they may run side by side.
    """

    name: str
    script: str
    flags: tuple
    group: float

    @property
    def command(self):
        return (f"{self.script}.py", *self.flags)

    @property
    def shown(self):
        """The command as text for a shell; of passwords, which only the process is told, there is *** in its place."""
        return f"python {shlex.join(map(masked, self.command))}"


def as_flags(values):
    """{"name": value} as a command line. None and False are left out; True is the flag alone."""
    flags = []
    for name, value in values.items():
        if value is not None and value is not False:
            flags += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return flags


def changed(args, defaults):
    """{flag: value} of the arguments that are not at their default."""
    return {name: getattr(args, name) for name, default in defaults.items() if getattr(args, name) != default}


def common_flags(args):
    places = {} if args.root == REPOSITORY else {"root": args.root}
    defaults = COMMON | {"data_dir": args.root / REAL_DATA}
    return as_flags({"dataset": args.dataset, "exp": args.exp, **places, **changed(args, defaults)})


def stage_list(args, spec):
    """The stages in their order: a list of `Stage`.

    No stage is told what an earlier one has found: it reads that itself (`--best`). So the list is known before anything
    has run, and each command can be given by hand.

    Args:
        args: The pipeline's arguments.
        spec: The `DatasetSpec`.
    """
    values = recipe(args, spec)
    common = common_flags(args) + as_flags(changed(args, {"recipe": "paper"}))  # which only the stages have
    model = as_flags({"backbone": args.backbone, **changed(args, MODEL)})
    stages, group = [], 0

    def add(name, script, part, flags):
        shared = common if script == "classifier_training" else common + model
        further = [*args.also.get(script, ()), *args.also.get(f"{script}:{part}", ())]
        if "--search_solver" in further:
            flags = {name: value for name, value in flags.items() if name != "solver"}
        stages.append(Stage(name, script, (*shared, *as_flags(flags), *further), group))

    def classify(name, part, take, flags):
        epochs = values["classifier_epochs"](take)
        add(f"classifier, {name}", "classifier_training", part, {**values["classifier"], "epochs": epochs, **flags})

    add("transfer learning", "SD_adapting", "enc", {"train_model": "enc", **values["enc"]})
    group += 1
    add("first search", "hyp_opt", "enc", {"train_model": "enc", **values["search"], **values["first_search"]})
    group += 1
    add("fine-tuning", "SD_adapting", "dif", {"train_model": "dif", "enc_epoch": "best", **values["dif"]})
    group += 1
    add("final search", "hyp_opt", "dif", {"train_model": "dif", "best": True, **values["search"]})
    group += 1
    filtered = any(flag.partition("=")[0] == "--filter" for flag in args.also.get("generate_dataset", ()))
    of_set = {"filter_classifier": values["classifier"]["classifier"]} if filtered else {}
    if filtered:  # by the classifier of the real images
        classify("real", "real", 1, {"synthetic": "False"})
        group += 1
    for take in args.sizes:
        add(f"generation, {take}x", "generate_dataset", "", {"img_total": take * spec.unit, "best": True, **of_set})
    if not filtered:
        classify("real", "real", 1, {"synthetic": "False"})
    group += 1
    for take in args.sizes:
        classify(f"{take}x", "synthetic", take, {"take": take})
    return stages


def at_once(args):
    """How many stages may run side by side: a small backbone leaves memory, and much of its start-up uses one core only."""
    return 3 if BACKBONES[args.backbone].light else 1
