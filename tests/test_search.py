"""The objective of the search: rungs, pruning, and what the settings may be."""

from argparse import Namespace

import numpy as np
import optuna
import pytest

from Experiment.errors import UserError
from hyp_opt import parse_args
from Search.report import trial_line
from Search.trials import Context, claim_study, objective, warm_start

ARGS = ["--dataset", "digits", "--num_imgs", "41", "--epochs", "8", "--batch_size", "10"]


class Scripted(Context):
    """A context whose classifier reports the accuracies it is told to, and which counts the images it makes."""

    def __init__(self, args, accuracies, loss=1.0):
        super().__init__(args, Namespace(num_classes=10), None, None, 1, None, {3: "three", 9: "nine"}, None)
        self.accuracies, self.loss, self.made, self.trained, self.loaded = accuracies, loss, [], [], []

    def load(self, epoch):
        self.loaded.append(epoch)

    def images(self, steps, scale, numbers):
        self.made.append((int(numbers[0]), int(numbers[-1]) + 1))
        return np.zeros((len(numbers), 8, 8, 3), np.uint8)

    def train(self, images, labels, *, epochs, first_epoch, steps, callbacks):
        self.trained.append((len(images), first_epoch, epochs, steps))
        assert len(images) == len(labels)
        for epoch in range(first_epoch, epochs):
            callbacks[0].on_epoch_end(epoch, {"loss": self.loss, "val_accuracy": self.accuracies[epoch]})
        return {"val_accuracy": self.accuracies[first_epoch:epochs]}


def run(context, **options):
    study = optuna.create_study(direction="maximize", **options)
    study.optimize(lambda trial: objective(trial, context), n_trials=1)
    return study.trials[0]


def test_a_trial_climbs_rungs_and_its_best_epoch_counts():
    context = Scripted(parse_args(ARGS), [0.1, 0.2, 0.3, 0.7, 0.5, 0.6, 0.4, 0.2])
    trial = run(context)
    assert trial.value == 0.7 and trial.intermediate_values == dict(enumerate(context.accuracies, start=1))
    assert context.made == [(0, 10), (10, 20), (20, 41)]  # each image once
    assert context.trained == [(10, 0, 2, 5), (20, 2, 4, 5), (41, 4, 8, 5)]
    assert context.loaded == [trial.user_attrs["saved_epoch"]] and trial.user_attrs["rung"] == "3/3"
    assert "-> 0.7000" in trial_line(trial)


def test_one_rung_is_the_published_objective():
    context = Scripted(parse_args([*ARGS, "--rungs", "1"]), [0.1] * 8)
    run(context)
    assert context.trained == [(41, 0, 8, 5)]


@pytest.mark.parametrize("epochs, images, rungs", [
    (1, 40, [(1, 40)]), (2, 40, [(1, 20), (2, 40)]), (8, 1, [(8, 1)]), (8, 2, [(4, 1), (8, 2)]), (100, 4000, [(25, 1000), (50, 2000), (100, 4000)]),
])  # fmt: skip
def test_rungs_of_a_short_trial(epochs, images, rungs):
    assert Scripted(parse_args(["--epochs", str(epochs), "--num_imgs", str(images)]), []).rungs() == rungs


def test_a_pruned_trial_has_made_few_images():
    context = Scripted(parse_args(ARGS), [0.1] * 8)
    trial = run(context, pruner=optuna.pruners.ThresholdPruner(lower=0.5, n_warmup_steps=2))
    assert trial.state.name == "PRUNED" and context.made == [(0, 10)]
    assert "pruned on rung 1/3, epoch 2" in trial_line(trial)


def test_a_classifier_that_diverges_is_a_pruned_trial():
    assert run(Scripted(parse_args(ARGS), [0.1] * 8, loss=float("nan"))).state.name == "PRUNED"


@pytest.mark.parametrize("flags, low, high, scale", [
    ([], 5, 50, 7.5), (["--train_model", "dif", "--is_1", "31", "--ugs_1", "1.19"], 5, 31, 2.38),
    (["--is_min", "8", "--is_max", "12", "--ugs_max", "4"], 8, 12, 4.0),
])  # fmt: skip
def test_ranges(flags, low, high, scale):
    ranges = run(Scripted(parse_args([*ARGS, *flags]), [0.1] * 8)).distributions
    assert (ranges["is"].low, ranges["is"].high) == (low, high)
    assert (ranges["ugs"].low, ranges["ugs"].high) == (0, scale) and (ranges["epoch"].low, ranges["epoch"].high) == (
        1,
        9,
    )


def queued(*flags, epochs=(5, 10)):
    study = optuna.create_study()
    warm_start(parse_args([*ARGS, *flags]), study, epochs)
    return [tuple(t.system_attrs["fixed_params"].values()) for t in study.trials]


def test_warm_start():
    assert queued("--dataset", "cifar10") == [(31, 1.19, 6)]
    assert queued() == [(40, 1.57, 6)]  # the median of the paper's
    assert queued("--train_model", "dif", "--is_1", "20", "--ugs_1", "2.5") == [(20, 1.615, 10), (20, 2.5, 10)]
    assert queued("--is_max", "12", "--ugs_max", "1") == [(12, 1.0, 6)]


def test_whole_blocks_are_made_and_kept_for_the_next_rung():
    context = Scripted(parse_args(ARGS), [0.1] * 8)
    context.block = 16
    run(context)
    assert context.made == [(0, 16), (16, 32), (32, 48)]
    assert [images for images, *_ in context.trained] == [10, 20, 41]


def test_another_search_under_the_same_name_is_refused():
    study = optuna.create_study(study_name="s")
    first, second = (parse_args([*ARGS, *flags]) for flags in ([], ["--num_imgs", "50", "--rungs", "2"]))
    claim_study(study, second, {4: ""}, "there")
    claim_study(study, first, {4: ""}, "there")  # it had no trials: its settings were a mistake
    study.enqueue_trial({})
    claim_study(study, first, {4: ""}, "there")
    with pytest.raises(UserError, match=r"num_imgs 41 \(now 50\), rungs 3 \(now 2\)"):
        claim_study(study, second, {4: ""}, "there")
