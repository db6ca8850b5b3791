"""Levers: flags beyond the paper's recipe, and the value with which each is off.

A record names only those that are on. So records without levers are those of before, and a lever that is missing in a
record is off.
"""

OFF = {
    "lora_rank": None, "lora_alpha": None, "lora_targets": None, "lora": "merged",
    "labels": "hard", "recycle": False, "augment": "none", "optimizer": "adam", "real_share": 0.0,
    "solver": "ddim", "guidance_interval": None, "autoguide": None, "search_solver": False, "search_interval": False, "objective": "accuracy",
    "label_dropout": 0.0, "ema": None, "min_snr": None,
    "class_prior": "balanced", "filter": None, "filter_classifier": None,
    "tf32": False,
}  # fmt: skip

# What `--recipe best` gives each script, one recipe for every dataset: levers that helped in the study (python -m bench.levers),
# chosen by validation accuracies.
RECIPE_BEST = {
    "SD_adapting": {},
    "hyp_opt": {"solver": "dpmpp"},
    "generate_dataset": {"solver": "dpmpp"},
    "classifier_training": {"augment": "standard", "labels": "both"},
}  # fmt: skip

# Flags that say how results are computed or kept, and change no more than their last digits: on record where they are on, never
# compared. `deterministic` is on record in any case.
HOW = {"xla": "auto", "devices": 1, "store": "files"}

SAMPLING = ("solver", "guidance_interval", "autoguide")


def levers_on(values):
    """{lever: value} of the levers among named values that are on."""
    return {name: value for name, value in values.items() if name in OFF and value != OFF[name]}


def without_off(values):
    """Named values without the levers that are off, and without those of `HOW` that are."""
    off = OFF | HOW
    return {name: value for name, value in values.items() if name not in off or value != off[name]}


def filled_in(values, others, prefix=""):
    """Values, and those levers that `others` name and `values` do not: they are off.

    Args:
        values, others: {prefix + name: value}.
        prefix: Before every name, such as `--`.
    """
    missing = {prefix + name: off for name, off in OFF.items() if prefix + name in others}
    return missing | values


def in_words(options):
    """The levers of {name: value} that are on, as one text; empty where none is."""
    return ", ".join(f"{name} {value}" for name, value in levers_on(options).items())


def sampling_in_words(values):
    """The levers of sampling among named values that are on, for a log line: empty, or begins with a comma."""
    levers = levers_on(values)
    said = f", solver {levers['solver']}" if "solver" in levers else ""
    if "guidance_interval" in levers:
        said += ", guided between the noise levels {:g} and {:g}".format(*levers["guidance_interval"])
    return said + (f", guided by epoch {levers['autoguide']}" if "autoguide" in levers else "")
