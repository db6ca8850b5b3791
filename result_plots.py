"""The figures of the paper and of an experiment, from their results. Each function returns the files it wrote."""

from curves import cas_curve
from Experiment.errors import UserError
from Experiment.locks import locked
from Experiment.paths import PUBLISHED_CAS_PLOTS, PUBLISHED_PIPELINE_PLOTS, Experiment
from Experiment.published import published_curves, published_steps
from Experiment.results import CAS_SCHEMA, PIPELINE_SCHEMA, read_results
from plots import STEP_SCORES, pipeline_bars


def published_cas_curves():
    """The paper's CAS curves. Returns their files."""
    return [
        cas_curve({f"published {classifier}": curve}, PUBLISHED_CAS_PLOTS / f"{dataset}.png", dataset)
        for classifier, datasets in published_curves().items()
        for dataset, curve in datasets.items()
    ]


def published_pipeline_bars():
    """The paper's two charts of the four steps, top-1 and top-5. Returns their files."""
    sources = {"published": published_steps()}
    return [pipeline_bars(sources, score, PUBLISHED_PIPELINE_PLOTS / f"{score}.png") for score in STEP_SCORES]


def experiment_cas_curve(experiment):
    """The CAS curve of an experiment's dataset, beside the published one where there is one. Returns its file.

    Raises:
        UserError: There are no accuracies of the dataset.
    """
    with locked(experiment.cas_plot):  # of several tasks the last to draw has read what all before it have noted
        found = {"published": published_curves(), f"experiment {experiment.exp}": read_results(experiment.cas_file, CAS_SCHEMA)}
        sources = {
            f"{source} {classifier}": datasets[experiment.dataset]
            for source, results in found.items()
            for classifier, datasets in results.items()
            if experiment.dataset in datasets
        }
        if not sources:
            raise UserError(f"{experiment.cas_file} holds no accuracies of {experiment.dataset}.")
        return cas_curve(sources, experiment.cas_plot, experiment.dataset)


def experiment_cas_curves(root, exp):
    """The CAS curve of every dataset that experiment `exp` below `root` has results of. Returns their files, if any."""
    file = Experiment(root, exp, None).cas_file
    results = read_results(file, CAS_SCHEMA) if file.exists() else {}
    datasets = dict.fromkeys(dataset for classifier in results.values() for dataset in classifier)
    return [experiment_cas_curve(Experiment(root, exp, dataset)) for dataset in datasets]


def experiment_pipeline_bars(root, exp):
    """The charts of the four steps for an experiment's datasets, published ones beside. Returns their files, if any."""
    experiment = Experiment(root, exp, None)
    if not experiment.pipeline_file.exists():
        return []
    ours = read_results(experiment.pipeline_file, PIPELINE_SCHEMA)
    published = {name: steps for name, steps in published_steps().items() if name in ours}
    sources = {"published": published} if published else {}
    sources[f"experiment {exp}"] = ours
    return [pipeline_bars(sources, score, experiment.pipeline_plot(score)) for score in STEP_SCORES]
