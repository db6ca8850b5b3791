"""Schemas of the result files, which are the published ones."""

import logging
import re

from Experiment.errors import UserError
from Experiment.files import read_json
from Experiment.levers import OFF, levers_on

log = logging.getLogger("experiment")

# Schemas of results: two levels of names, a third one that fits the expression, and the accuracies.
CAS_SCHEMA = (r"real|x[1-9]\d{0,3}", ("top_1_accuracy", "top_5_accuracy"))  # classifier, dataset, size
PIPELINE_SCHEMA = (r"no_opt|opt", ("top_1", "top_5"))  # dataset, stage, before or after the search
TRANSFERRED, FINE_TUNED = "After Transfer Learning", "After Fine-Tuning"
# The steps of the method, in their order, and the published keys of their results.
FOUR_STEPS = {
    "1 transfer learning": (TRANSFERRED, "no_opt"),
    "2 first search": (TRANSFERRED, "opt"),
    "3 fine-tuning": (FINE_TUNED, "no_opt"),
    "4 final search": (FINE_TUNED, "opt"),
}
# Of a search: how its classifiers learn.
STEP_TRAINING = "classifier", "epochs", "batch_size", "resize", "augment", "optimizer"
# In a best.json: the budget of trials of a search that goes on, of which this is not the result yet.
EXTENDED = "extended_to"
CHOSEN_ON_TEST = "the generator's settings were chosen on the test images"
TESTED = "class_accuracies.csv"  # in a classifier's folder: written last of all that a test leaves


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
            return all(is_share(node.get(score)) for score in scores) and fits_additions(node)
        if levels == 1 and not all(re.fullmatch(third_name, name) for name in node):
            return False
        return all(fits(value, levels - 1) for value in node.values())

    results = read_json(path)
    if not fits(results, 3):
        raise UserError(f"{path} does not hold accuracies in 0..1 in the published schema: repair it or move it away.")
    return results


def is_share(value):
    return isinstance(value, int | float) and 0 <= value <= 1


def fits_additions(entry):
    """Whether what may stand beside published accuracies is as we write it: intervals, the number of repeats, predictions."""
    interval, repeats = entry.get("interval", {}), entry.get("repeats", 1)
    return (
        isinstance(interval, dict)
        and all(isinstance(ends, list) and len(ends) == 2 and all(map(is_share, ends)) for ends in interval.values())
        and isinstance(repeats, int)
        and repeats > 0
        and all(isinstance(entry.get(name, ""), str) for name in ("predictions", "test", "content", "learned_from", "teacher"))
        and isinstance(entry.get("unit", 1), int)
        and isinstance(told := entry.get("doubts", []), list)
        and all(isinstance(text, str) for text in told)
    )


def interval_of(entry, score):
    """The 95 % interval (low, high) of an accuracy, where its entry has one."""
    return entry.get("interval", {}).get(score)


def recorded_training(entry):
    """How the classifier behind a CAS result has learnt, {flag: value}; empty where it is not recorded."""
    training = entry.get("training")
    return training if isinstance(training, dict) else {}


def all_doubts(entries):
    """Why results, of either schema, may be too good: a list of text."""
    told = []
    for entry in entries:
        made = entry.get("set")
        chosen_on = entry.get("select_on") or (made.get("select_on") if isinstance(made, dict) else None)
        told += [*entry.get("doubts", []), *([CHOSEN_ON_TEST] if chosen_on == "test" else [])]
    return list(dict.fromkeys(told))


def entry_recipe(entry):
    """What the images behind a CAS result are made with, and the levers of its training, {setting: value}.

    None where it is not recorded.
    """
    made = entry.get("set")
    if not isinstance(made, dict):
        return None
    return {key: value for key, value in made.items() if key != "folder"} | levers_on(recorded_training(entry))


def curve_recipes(entries):
    """What each of several CAS results is of, {setting: value} or None: `entry_recipe`, and where they differ the way and the
    batches in which images were taken, the teacher, and the test images.

    A result of an earlier version does not say on which images it was tested; nor does a published one.
    """
    recipes = [entry_recipe(entry) for entry in entries]
    further = [
        recorded_training(entry) | {"images of 1x": entry.get("unit"), "teacher": entry.get("teacher")} for entry in entries
    ]
    for name in ("resize", "batch_size", "images of 1x", "teacher"):
        values = [each.get(name) for each in further]
        if len({*values} - {None}) > 1:
            recipes = [recipe if None in (recipe, value) else recipe | {name: value} for recipe, value in zip(recipes, values)]
    if len({entry["test"] for entry in entries if "test" in entry}) < 2:
        return recipes
    tests = [{"test images": entry.get("test", "not recorded")} for entry in entries]
    return [(recipe or {}) | test for recipe, test in zip(recipes, tests)]


def told_apart(recipes):
    """A text for each recipe (or None) that says what tells it from the others."""
    keys = dict.fromkeys(key for recipe in recipes for key in recipe or {})
    unsaid = OFF | {"select_on": "val"}
    recipes = [recipe and {key: unsaid[key] for key in keys if key in unsaid} | recipe for recipe in recipes]
    differing = [key for key in keys if any((r or {}).get(key) != (recipes[0] or {}).get(key) for r in recipes)]
    return [", ".join(told(key, recipe.get(key, "not recorded")) for key in differing) if recipe else "settings not recorded"
            for recipe in recipes]  # fmt: skip


def told(key, value):
    return f"{key} " + (" ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value))


def check_recipe(results, size, entry, asked_for):
    """One curve, one recipe and one test: where results of other sizes come from others, refuse, or warn.

    The real result has no recipe: only its test is compared. When it is made again, the others can only follow.

    Args:
        results: {"real" | "x1" | "x2" ...: entry} of a classifier and dataset.
        size: Of the result to be, such as `x4`.
        entry: What will stand beside its accuracies.
        asked_for: Whether the user has named the set: then it is a warning.

    Raises:
        UserError: They do, and it is not asked for; or real and synthetic images would be tested on different ones.
    """
    others = {key: other for key, other in results.items() if key != size}
    known = {key: other["test"] for key, other in others.items() if "test" in other and "test" in entry}
    tested_otherwise = [key for key, test in known.items() if test != entry["test"]]
    if size == "real":  # the first of those that are to be made again
        if tested_otherwise:
            log.warning("%s in the results: tested on other images than those of today; make them again with --restart",
                        ", ".join(tested_otherwise))  # fmt: skip
        return
    if "real" in tested_otherwise:
        raise UserError(
            "the real result was tested on other images than those of today: the two cannot be compared. Use another --exp, "
            "or make it again first, with --synthetic False --restart."
        )
    others.pop("real", None)
    pairs = {key: curve_recipes([other, entry]) for key, other in others.items()}
    others = {key: pair for key, pair in pairs.items() if None not in pair and pair[0] != pair[1]}
    if not others:
        return
    before, now = told_apart(next(iter(others.values())))
    come = "comes" if len(others) == 1 else "come"
    message = f"{', '.join(others)} in the results {come} from other settings: {before} (now {now})."
    if not asked_for:
        raise UserError(f"{message} Use another --exp, or name the folder with --synthetic_dir to mix them.")
    log.warning("one curve of several settings: %s", message)


def steps_trained_otherwise(stages):
    """How the classifiers of the two searches differ, in words; empty where they do not, or where it is not recorded.

    Args:
        stages: {stage: {"no_opt" | "opt": entry}}, of the file of the four steps.
    """
    entries = [entry for steps in stages.values() for entry in steps.values()]
    recorded = [recorded_training(entry) | {"images": entry.get("images")} for entry in entries]
    values = {
        name: dict.fromkeys(str(training[name]) for training in recorded if training.get(name) is not None)
        for name in ("images", *STEP_TRAINING)
    }
    return ", ".join(f"{name} {' and '.join(found)}" for name, found in values.items() if len(found) > 1)


def step_3_otherwise(stages):
    """How step 3 was measured with other settings than step 2, in words; empty where it was not, or where it is not recorded.

    A first search that goes on may choose others than those by which the second one began.

    Args:
        stages: As in `steps_trained_otherwise`.
    """
    before, after = stages.get(TRANSFERRED, {}).get("opt", {}), stages.get(FINE_TUNED, {}).get("no_opt", {})
    names = {"is": "steps", "ugs": "scale", "encoder": "Class Encoder"} | {
        name: name for name in ("solver", "guidance_interval", "autoguide", "timestep_spacing")
    }
    other = [f"{words} {after[name]} for {before[name]}" for name, words in names.items()
             if name in before and name in after and before[name] != after[name]]  # fmt: skip
    return f"step 3 was measured with other settings than step 2: {', '.join(other)}" if other else ""


def top_5_in_words(value, num_classes, digits=4):
    """A top-5 accuracy as tables show it: of five classes and fewer it says nothing."""
    return f"{value:.{digits}f}" if num_classes > 5 else "1 by definition"
