"""The four steps of the adaptation in an experiment's results: what was measured on test, and what it was measured of."""

import logging

from Experiment.files import change_json
from Experiment.records import short
from Experiment.results import STEP_TRAINING, steps_trained_otherwise

log = logging.getLogger("experiment")

STAGE_NAMES = {"enc": "After Transfer Learning", "dif": "After Fine-Tuning"}


def with_origin(steps, args, inputs, hashes):
    """Steps {"no_opt" | "opt": entry with its `epoch`} that say on which test images and of which Class Encoder they are, and
    how their classifiers have learnt.

    Args:
        steps: What `measure` returns.
        args: Of the search.
        inputs, hashes: Of the search, as `search_inputs` returns them.
    """
    part = args.train_model
    training = {"training": {name: getattr(args, name) for name in STEP_TRAINING}}

    def origin(step):
        encoder = hashes[str(step["epoch"])] if part == "enc" else inputs["weights"].get("enc")
        return {"test": short(inputs["data"]["test"])} | ({"encoder": short(encoder)} if encoder else {})

    return {name: step | origin(step) | training for name, step in steps.items()}


def note_steps(file, dataset, part, steps, encoders):
    """Add the steps of a search to the results, and take out those of the other search that no longer go with them.

    Args:
        file: `Experiment.pipeline_file`.
        dataset: Name of the dataset.
        part: `enc` or `dif`: what was searched.
        steps: What `with_origin` returns.
        encoders: SHA-256 of all epochs of the Class Encoder that are there, if these were searched: fine-tuning from
            another one was of an earlier training. None: not known.
    """
    there = None if encoders is None else {short(encoder) for encoder in encoders}
    test = steps["opt"]["test"]

    def goes_with(step):
        same_test = step.get("test", test) == test
        return same_test and (there is None or step.get("encoder") is None or step["encoder"] in there)

    def noted(results):
        stages = results.setdefault(dataset, {})
        for stage in STAGE_NAMES.values():
            if stage != STAGE_NAMES[part] and not all(map(goes_with, stages.get(stage, {}).values())):
                log.warning(
                    "%s in the results is of other test images, or of a Class Encoder that is gone: taken out", stage
                )
                del stages[stage]
        stages[STAGE_NAMES[part]] = steps
        if told := steps_trained_otherwise(stages):
            log.warning("the classifiers of the two searches have learnt otherwise: %s", told)
        return results

    change_json(file, noted)
