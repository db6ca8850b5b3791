"""Schemas of the result files, which are the published ones."""

import re

from Experiment.errors import UserError
from Experiment.files import read_json

# Schemas of results: two levels of names, a third one that fits the expression, and the accuracies.
CAS_SCHEMA = (r"real|x[1-9]\d{0,3}", ("top_1_accuracy", "top_5_accuracy"))  # classifier, dataset, size
PIPELINE_SCHEMA = (r"no_opt|opt", ("top_1", "top_5"))  # dataset, stage, before or after the search


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
