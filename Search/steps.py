"""The four steps of the adaptation in an experiment's results: what was measured on test, and what it was measured of."""

import logging

from Experiment.files import change_json, read_json
from Experiment.records import short
from Experiment.results import FINE_TUNED, STEP_TRAINING, TRANSFERRED, step_3_otherwise, steps_trained_otherwise
from plots import STEP_SCORES

log = logging.getLogger("experiment")

STAGE_NAMES = {"enc": TRANSFERRED, "dif": FINE_TUNED}


def with_origin(steps, args, known):
    """Steps {"no_opt" | "opt": entry with its `epoch`} that say on which test images and of which Class Encoder they are, how
    their classifiers have learnt, and why they may be too good.

    Args:
        steps: What `measure` returns.
        args: Of the search.
        known: What is known of it: `inputs`, `hashes` and `doubts`, as `search_inputs` returns them.
    """
    part = args.train_model
    training = {"training": {name: getattr(args, name) for name in STEP_TRAINING}}

    def origin(step):
        encoder = known.hashes[str(step["epoch"])] if part == "enc" else known.inputs["weights"].get("enc")
        return {"test": short(known.inputs["data"]["test"])} | ({"encoder": short(encoder)} if encoder else {})

    told = {"doubts": known.doubts} if known.doubts else {}
    return {name: step | origin(step) | training | told for name, step in steps.items()}


def note_steps(file, dataset, part, steps, encoders):
    """Add the steps of a search to the results, and take out those of the other search that no longer go with them.

    Args:
        file: `Experiment.pipeline_file`.
        dataset: Name of the dataset.
        part: `enc` or `dif`: what was searched.
        steps: What `with_origin` returns.
        encoders: SHA-256 of all epochs of the Class Encoder that are there: steps of others are of an earlier training.
    """
    there = {short(encoder) for encoder in encoders}
    test = steps["opt"]["test"]

    def goes_with(stage):
        of = [step["encoder"] for step in stage.values() if "encoder" in step]
        # One that is there is enough: --prune removes others, of which the first of two steps may be.
        return all(step.get("test", test) == test for step in stage.values()) and (not of or not there.isdisjoint(of))

    def noted(results):
        stages = results.setdefault(dataset, {})
        for stage in STAGE_NAMES.values():
            if stage != STAGE_NAMES[part] and stage in stages and not goes_with(stages[stage]):
                log.warning("%s in the results is of other test images, or of a Class Encoder that is gone: taken out", stage)
                del stages[stage]
        stages[STAGE_NAMES[part]] = steps
        if told := steps_trained_otherwise(stages):
            log.warning("the classifiers of the two searches have learnt otherwise: %s", told)
        if told := step_3_otherwise(stages):
            log.warning("%s", told)
        return results

    change_json(file, noted)


def lacks_steps(experiment, part):
    """Whether an `Experiment`'s results are without the steps of a search."""
    results = read_json(experiment.pipeline_file) if experiment.pipeline_file.exists() else {}
    return STAGE_NAMES[part] not in results.get(experiment.dataset, {})


def forget_steps(experiment, part):
    """Take the steps of a search that is thrown away out of the results of an `Experiment`, and their pictures away."""

    def left(results):
        results.get(experiment.dataset, {}).pop(STAGE_NAMES[part], None)
        return {name: stages for name, stages in results.items() if stages}

    if not experiment.pipeline_file.exists():
        return
    change_json(experiment.pipeline_file, left)
    for score in STEP_SCORES:
        experiment.pipeline_plot(score).unlink(missing_ok=True)
