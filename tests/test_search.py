"""The objective of the search: rungs, pruning, and what the settings may be."""

import csv
import logging
import sqlite3
import time
from argparse import Namespace
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from Data.loaders import Split, Splits
from Data.registry import DatasetSpec, dataset_spec
from Experiment import presets
from Experiment.errors import PassingError, UserError
from Experiment.files import read_json, write_json
from Experiment.intervals import binomial_interval
from Experiment.paths import Experiment
from Experiment.randomness import repeat_seed
from Experiment.results import FINE_TUNED, TRANSFERRED, step_3_otherwise
from hyp_opt import parse_args
from Models.augment import Augment
from Models.weight_cards import read_card, write_card
from Search import context as search_context
from Search import report as search_report
from Search import stage, studies, workers
from Search.context import Context, Unusable
from Search.inputs import claim_study, search_inputs
from Search.pictures import PLOTS
from Search.repeats import chosen, missing_repeats, ranked, run_missing_repeats
from Search.report import contact_sheet, measure, trial_line, write_trials
from Search.settings import sampling_of
from Search.steps import forget_steps, note_steps, with_origin
from Search.studies import delete_study, open_study, pruner
from Search.trials import objective, warm_start
from Search.workers import this_worker

FIRST, SECOND = (repeat_seed(presets.SEED, repeat) for repeat in (2, 3))  # of the repeats of a trial
ARGS = ["--dataset", "digits", "--num_imgs", "41", "--epochs", "8", "--batch_size", "10"]


class Scripted(Context):
    """A context whose classifier reports the accuracies it is told to, and which counts the images it makes."""

    def __init__(self, args, accuracies, loss=1.0):
        super().__init__(args, Namespace(num_classes=10), None, None, 1, None, {3: "three", 9: "nine"}, None)
        self.accuracies, self.loss, self.made, self.trained, self.loaded = accuracies, loss, [], [], []
        self.seeds = []

    def load(self, epoch):
        self.loaded.append(epoch)

    def images(self, steps, scale, numbers, seed=None, bad_too=False):
        self.seeds.append(seed)
        self.made.append((int(numbers[0]), int(numbers[-1]) + 1))
        return np.zeros((len(numbers), 8, 8, 3), np.uint8)

    def train(self, images, labels, *, epochs, first_epoch, steps, seed, callbacks):
        assert seed == self.seeds[-1]
        self.trained.append((len(images), first_epoch, epochs, steps))
        assert len(images) == len(labels)
        for epoch in range(first_epoch, epochs):
            callbacks[0].on_epoch_end(epoch, {"loss": self.loss, "val_accuracy": self.accuracies[epoch]})
        return {"val_accuracy": self.accuracies[first_epoch:epochs]}


def test_trials_learn_from_augmented_images(monkeypatch):
    asked = []

    class Classifier:
        def fit(self, train, val, **how):
            asked.append(how.get("augment"))
            return {}, None

    spec = DatasetSpec("mine", "folder", 2, 8, 10, 10, ("cat", "dog"))
    for flags in ([], ["--augment", "standard"]):
        args = parse_args([*ARGS, *flags])
        Context(args, spec, None, None, 1, Classifier(), {}, None).train(np.zeros((9, 8, 8, 3), np.uint8), np.zeros(9, int))
    assert asked[0] is None and asked[1].__class__ is Augment


def run(context, **options):
    study = optuna.create_study(direction="maximize", **options)
    study.optimize(lambda trial: objective(trial, context), n_trials=1)
    return study.trials[0]


def test_a_trial_climbs_rungs_and_its_best_epoch_counts():
    context = Scripted(parse_args(ARGS), [0.1, 0.2, 0.3, 0.7, 0.5, 0.6, 0.4, 0.2])
    trial = run(context)
    best_so_far = np.maximum.accumulate(context.accuracies)  # which is what the pruner judges
    assert trial.value == 0.7 and trial.intermediate_values == dict(enumerate(best_so_far, start=1))
    assert set(context.seeds) == {1234}
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


def test_one_bad_epoch_prunes_no_good_trial():
    context = Scripted(parse_args(ARGS), [0.6, 0.7, 0.1, 0.7, 0.7, 0.7, 0.7, 0.8])
    trial = run(context, pruner=optuna.pruners.ThresholdPruner(lower=0.5))
    assert trial.state.name == "COMPLETE" and trial.value == 0.8


def test_a_classifier_that_diverges_is_a_pruned_trial(tmp_path):
    trial = run(Scripted(parse_args(ARGS), [0.1] * 8, loss=float("nan")))
    assert trial.state.name == "PRUNED" and "loss is not finite" in trial.user_attrs["pruned_because"]
    assert trial_line(trial).endswith("pruned on rung 1/3, epoch 1: the classifier's loss is not finite")


def with_bad_images(monkeypatch, bad, args=ARGS):
    """A context that generates blocks of ten images of which those numbered in `bad` are bad."""

    def generate(sampler, encoder, numbers, **how):
        for part in np.array_split(numbers, range(10, len(numbers), 10)):
            yield part, np.zeros((len(part), 8, 8, 3), np.uint8), ~np.isin(part, bad)

    context = Scripted(parse_args(args), [0.1] * 8)
    context.spec.resolution, context.adapted = 8, SimpleNamespace(diffusion=SimpleNamespace(encoder=None))
    context.images = lambda *args, **how: (context.seeds.append(1234), Context.images(context, *args, **how))[1]
    monkeypatch.setattr(search_context, "generate_images", generate)
    return context


def test_a_bad_image_prunes_its_trial_alone_and_says_why(monkeypatch, tmp_path):
    context = with_bad_images(monkeypatch, [12, 14])
    study = optuna.create_study(direction="maximize")
    study.optimize(lambda trial: objective(trial, context), n_trials=1)
    monkeypatch.undo()
    good = Scripted(parse_args(ARGS), [0.1] * 8)
    study.optimize(lambda trial: objective(trial, good), n_trials=1)
    bad, fine = study.trials
    assert [bad.state.name, fine.state.name] == ["PRUNED", "COMPLETE"]
    assert bad.user_attrs["pruned_because"].startswith("2 of the first 10 images with ")
    assert "pruned on rung 2/3, epoch 2: 2 of the first 10 images" in trial_line(bad)
    assert "2 of the first 10 images" in write_trials(study, tmp_path).read_text()


def test_a_bad_image_in_the_measurement_is_an_error_and_on_a_sheet_it_is_drawn(monkeypatch):
    context = with_bad_images(monkeypatch, [33])
    best = SimpleNamespace(params={"is": 5, "ugs": 1.0}, user_attrs={"saved_epoch": 3})
    with pytest.raises(UserError, match="1 of the first 40 images with 50 steps and scale 7.5 hold NaN or are of one value"):
        measure(context.args, context, None, best)
    assert context.images(5, 1.0, np.arange(41), bad_too=True).shape == (41, 8, 8, 3)


@pytest.mark.parametrize("select_on, own", [("val", True), ("test", False)])
def test_the_measurement_does_not_draw_what_the_chosen_trial_has_drawn(select_on, own):
    context = Scripted(parse_args([*ARGS, "--select_on", select_on]), [0.1] * 8)
    context.train = lambda images, labels, seed: {"loss": [1.0]} if seed == context.seeds[-1] else None
    context.classifier = SimpleNamespace(probabilities=lambda images: np.eye(10)[:4])
    best = SimpleNamespace(params={"is": 5, "ugs": 1.0}, user_attrs={"saved_epoch": 3})
    found = measure(context.args, context, Split(np.zeros((4, 8, 8, 3), np.uint8), np.arange(4)), best)
    assert found["opt"]["top_1"] == 1.0 and len(set(context.seeds)) == 1
    assert found["opt"]["interval"]["top_1"] == list(binomial_interval(1.0, 4))
    assert (context.seeds[0] not in range(1234, 1334)) == own  # the seeds of trials and their repeats


def test_on_test_the_finished_classifier_is_asked_once_as_published():
    """Validation decides the rate, the end and the best epoch; the objective is the accuracy of what comes out on test."""
    args = parse_args([*ARGS, "--select_on", "test", "--rungs", "1"])
    context = Scripted(args, [0.1, 0.9, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3])
    context.classifier, asked = SimpleNamespace(probabilities=lambda images: asked.append(1) or np.eye(10)[:4]), []
    context.test = Split(np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 1, 2, 9]))
    trial = run(context)
    assert trial.value == 0.75 and len(asked) == 1 and max(trial.intermediate_values.values()) == 0.9


@pytest.mark.parametrize("flags, low, high, scale", [
    ([], 5, 50, 7.5), (["--train_model", "dif", "--is_1", "31", "--ugs_1", "1.19"], 5, 31, 2.38),
    (["--is_min", "8", "--is_max", "12", "--ugs_max", "4"], 8, 12, 4.0),
    (["--recipe", "best"], 5, 15, 7.5), (["--solver", "dpmpp", "--is_max", "20"], 5, 20, 7.5),
])  # fmt: skip
def test_ranges(flags, low, high, scale):
    ranges = run(Scripted(parse_args([*ARGS, *flags]), [0.1] * 8)).distributions
    assert (ranges["is"].low, ranges["is"].high) == (low, high)
    assert (ranges["ugs"].low, ranges["ugs"].high) == (0, scale) and (ranges["epoch"].low, ranges["epoch"].high) == (1, 9)


def test_a_search_of_both_solvers_keeps_the_papers_range():
    assert parse_args([*ARGS, "--search_solver", "--recipe", "best"]).is_max == 50


def queued(*flags, epochs=(5, 10)):
    study = optuna.create_study()
    args = parse_args([*ARGS, *flags])
    warm_start(args, study, epochs, args.dataset)
    return [tuple(t.system_attrs["fixed_params"].values()) for t in study.trials]


def test_warm_start():
    assert queued("--dataset", "cifar10", "--select_on", "test") == [(31, 1.19, 6), (31, 1.19, 10)]
    assert queued() == [(40, 1.57, 6), (40, 1.57, 10)]  # the median of the paper's, and with the last Class Encoder
    assert queued(epochs=(1,)) == [(40, 1.57, 1)]
    assert queued("--train_model", "dif", "--is_1", "20", "--ugs_1", "2.5") == [(20, 1.615, 10), (20, 2.5, 10)]
    assert queued("--is_max", "12", "--ugs_max", "1") == [(12, 1.0, 6), (12, 1.0, 10)]
    assert queued("--ugs_max", "1.00006")[0] == (40, 1.00006, 6)  # rounded, it would be beyond the range


@pytest.mark.parametrize("part", ["enc", "dif"])
@pytest.mark.parametrize("dataset", presets.SEARCH_RESULTS["enc"])
def test_what_was_selected_on_a_datasets_test_images_does_not_enter_its_search(part, dataset, monkeypatch):
    flags = ["--dataset", dataset, "--train_model", part, "--is_1", "50"]
    before, on_test = queued(*flags), queued(*flags, "--select_on", "test")
    monkeypatch.setitem(presets.SEARCH_RESULTS[part], dataset, (0.1, 6, 7.1))
    assert queued(*flags) == before  # whatever the paper found there
    assert queued(*flags, "--select_on", "test")[0] == (6, 7.1, 1) != on_test[0]


def test_whole_blocks_are_made_and_kept_for_the_next_rung():
    context = Scripted(parse_args(ARGS), [0.1] * 8)
    context.block = 16
    run(context)
    assert context.made == [(0, 16), (16, 32), (32, 48)]
    assert [images for images, *_ in context.trained] == [10, 20, 41]


SPEC = DatasetSpec("own", "npz", 2, 8, 4, 4, ("cat", "dog"))


def splits_of(first_pixel=0):
    images = np.zeros((4, 8, 8, 3), np.uint8)
    images[0, 0, 0, 0] = first_pixel
    return Splits(*(Split(images, np.array([0, 1, 0, 1], np.int32)) for _ in range(3)))


def epoch_files(folder, contents=("one", "two", "three"), classes=("cat", "dog")):
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for epoch, content in enumerate(contents, start=1):
        files[epoch] = folder / f"epoch{epoch}.weights.h5"
        files[epoch].write_text(content)
        write_card(files[epoch], {"classes": list(classes)})
    return files


def known_of(epochs, data=0, encoder=None, **more):
    inputs, hashes, told = search_inputs(splits_of(data), SPEC, epochs, {"enc": encoder, "dif": None})
    return SimpleNamespace(
        spec=SPEC,
        splits=splits_of(data),
        epochs=epochs,
        inputs=inputs,
        hashes=hashes,
        doubts=told,
        adopted={},
        address="there",
        **more,
    )


def claimed_study(args, known, precision="float32"):
    study = optuna.create_study(study_name="s", direction="maximize")
    claim_study(study, args, known, precision)
    study.enqueue_trial({})
    return study


def test_another_search_under_the_same_name_is_refused(tmp_path):
    study, known = optuna.create_study(study_name="s"), known_of(epoch_files(tmp_path))
    first, second = (parse_args([*ARGS, *flags]) for flags in ([], ["--num_imgs", "50", "--rungs", "2"]))
    claim_study(study, second, known, "float32")
    claim_study(study, first, known, "float32")  # it had no trials: its settings were a mistake
    study.enqueue_trial({})
    claim_study(study, first, known, "float32")
    with pytest.raises(UserError, match=r"other arguments: --num_imgs 41 \(now 50\), --rungs 3 \(now 2\)"):
        claim_study(study, second, known, "float32")


def test_a_search_on_test_by_the_protocol_of_an_earlier_version_is_not_continued(tmp_path):
    args, known = parse_args([*ARGS, "--select_on", "test"]), known_of(epoch_files(tmp_path))
    study = claimed_study(args, known)
    claim_study(study, args, known, "float32")
    settings = study.user_attrs["settings"]
    study.set_user_attr("settings", {name: value for name, value in settings.items() if name != "tested"})
    with pytest.raises(UserError, match="is of an earlier version, which took the best of all epochs on test"):
        claim_study(study, args, known, "float32")


def test_a_trial_that_was_killed_between_its_parameters_is_told(tmp_path):
    study = optuna.create_study(study_name="s")
    for settings in ({}, {"is": 7}, {"is": 7, "ugs": 2.0, "epoch": 3, "sigma_1": 0.5}):
        trial = optuna.trial.create_trial(
            state=TrialState.FAIL, params=settings, distributions={k: FloatDistribution(0, 9) for k in settings}
        )
        study.add_trial(trial)
    told = [trial_line(trial) for trial in study.trials]
    assert ["not begun" in line for line in told] == [True, True, False] and "guided" not in told[2]
    assert len(write_trials(study, tmp_path).read_text().splitlines()) == 4


def test_a_search_ends_where_the_weights_have_changed(tmp_path):
    args, files = parse_args(ARGS), epoch_files(tmp_path)
    study = claimed_study(args, known_of(files))
    epoch_files(tmp_path, ("one", "again", "three"))
    with pytest.raises(UserError, match=r"other inputs: enc epoch 2 \w{8} \(now \w{8}\)\. Use another --exp, or --restart"):
        claim_study(study, args, known_of(files), "float32")
    epoch_files(tmp_path, "123456")
    with pytest.raises(UserError, match=r"enc epoch 1 .* and 3 more epochs"):
        claim_study(study, args, known_of(epoch_files(tmp_path, "123456")), "float32")


def test_a_search_ends_where_the_encoder_the_data_or_the_precision_has_changed(tmp_path):
    args, files, encoder = parse_args(ARGS), epoch_files(tmp_path / "dif"), epoch_files(tmp_path / "enc")[1]
    study = claimed_study(args, known_of(files, encoder=encoder))
    with pytest.raises(UserError, match=r"other inputs: data.val \w{8} \(now \w{8}\), data.test "):
        claim_study(study, args, known_of(files, data=1, encoder=encoder), "float32")
    with pytest.raises(UserError, match=r"precision_used float32 \(now mixed_bfloat16\)"):
        claim_study(study, args, known_of(files, encoder=encoder), "mixed_bfloat16")
    encoder.write_text("trained again")
    with pytest.raises(UserError, match=r"other inputs: weights.enc \w{8} \(now \w{8}\)"):
        claim_study(study, args, known_of(files, encoder=encoder), "float32")


def test_a_copy_elsewhere_shares_the_study(tmp_path):
    here, there = (
        parse_args([*ARGS[2:], "--dataset", str(tmp_path / name)]) for name in ("a", "b") if not (tmp_path / name).mkdir()
    )
    study = claimed_study(here, known_of(epoch_files(tmp_path / "here")))
    claim_study(study, there, known_of(epoch_files(tmp_path / "there")), "float32")


def test_a_study_of_an_earlier_version_is_compared_in_the_keys_that_it_has(tmp_path):
    args, known = parse_args(ARGS), known_of(epoch_files(tmp_path))
    study = optuna.create_study(study_name="s")
    study.set_user_attr("settings", {"dataset": "digits", "precision": "auto", "num_imgs": 41, "last_epoch": 3})
    study.enqueue_trial({})
    claim_study(study, args, known, "float32")
    for name, value in (("precision", "float32"), ("dataset", "cifar10"), ("num_imgs", 40)):
        study.set_user_attr("settings", {"precision": "auto", "num_imgs": 41, name: value})
        with pytest.raises(UserError, match=f"other arguments: --{name} {value}"):
            claim_study(study, args, known, "float32")


def test_weights_of_other_classes_are_refused(tmp_path):
    with pytest.raises(UserError, match="trained on other classes: fish, dog"):
        known_of(epoch_files(tmp_path, classes=("fish", "dog")))


# The best again


class Lucky(Scripted):
    """A context whose accuracies depend on the trial and on the seed: {(steps, seed): accuracy}; None: bad images."""

    def __init__(self, args, values):
        super().__init__(args, [])
        self.values, self.asked = values, []

    def load(self, epoch):
        pass

    def images(self, steps, scale, numbers, seed=None, bad_too=False):
        self.now = self.values[steps, seed]
        if not self.asked or self.asked[-1] != (steps, seed):
            self.asked.append((steps, seed))
        if self.now is None:
            raise Unusable("3 of the first 10 images hold NaN")
        return super().images(steps, scale, numbers, seed)

    def train(self, images, labels, *, epochs, first_epoch, **how):
        self.accuracies = [self.now] * epochs
        return super().train(images, labels, epochs=epochs, first_epoch=first_epoch, **how)


def study_of(*values):
    """A study whose trials have 10, 11, ... steps and these values."""
    study = optuna.create_study(direction="maximize")
    ranges = {"is": optuna.distributions.IntDistribution(1, 50), "ugs": optuna.distributions.FloatDistribution(0, 7.5),
              "epoch": optuna.distributions.IntDistribution(1, 9)}  # fmt: skip
    for i, value in enumerate(values):
        settings = {"is": 10 + i, "ugs": 1.0, "epoch": 3}
        study.add_trial(optuna.trial.create_trial(params=settings, distributions=ranges, value=value,
                                                  user_attrs={"saved_epoch": 3, "id": f"{id(study)} {i}"}))  # fmt: skip
    return study


def test_the_best_three_are_run_again_and_the_mean_decides(tmp_path):
    study = study_of(0.5, 0.9, 0.7, 0.8)
    context = Lucky(parse_args(ARGS), {(11, FIRST): 0.5, (13, FIRST): 0.75, (12, FIRST): 0.7})
    run_missing_repeats(study, context, 1)
    assert context.asked == [(11, FIRST), (13, FIRST), (12, FIRST)]
    trial, values = chosen(study, 1)
    assert trial.number == 3 and values == [0.8, 0.75]
    assert [t.number for t, _ in ranked(study, 1)] == [3, 1, 2]
    table = write_trials(study, tmp_path).read_text().splitlines()
    assert table[0].endswith("repeats,mean,seconds") and ",0.75,0.775," in table[4] and ",,," in table[1]


def test_each_repeat_is_run_once_however_often_the_search_is_interrupted():
    study, values = study_of(0.5, 0.6), {(10, FIRST): 0.4, (11, FIRST): 0.3, (10, SECOND): 0.2, (11, SECOND): 0.1}
    interrupted = Lucky(parse_args(ARGS), {(11, FIRST): 0.3})
    with pytest.raises(KeyError):
        run_missing_repeats(study, interrupted, 2)
    assert [(t.number, i) for t, i in missing_repeats(study, 2)] == [(0, 1), (1, 2), (0, 2)]
    assert chosen(study, 2)[0].number == 1  # as long as one is missing, the first values decide
    rest = Lucky(parse_args(ARGS), values)
    run_missing_repeats(study, rest, 2)
    assert rest.asked == [(10, FIRST), (11, SECOND), (10, SECOND)] and not missing_repeats(study, 2)
    assert chosen(study, 2)[0].number == 0


def test_a_trial_without_accuracy_in_a_repeat_is_not_chosen():
    study = study_of(0.5, 0.9)
    run_missing_repeats(study, Lucky(parse_args(ARGS), {(11, FIRST): None, (10, FIRST): 0.4}), 1)
    assert chosen(study, 1)[0].number == 0
    nothing = study_of(0.5)
    run_missing_repeats(nothing, Lucky(parse_args(ARGS), {(10, FIRST): None}), 1)
    with pytest.raises(UserError, match="no completed trial gave an accuracy"):
        chosen(nothing, 1)


def test_a_trial_without_accuracy_in_a_repeat_is_last_while_others_are_still_to_be_repeated():
    study = study_of(0.7, 0.8, 0.9)
    study.set_user_attr("repeat 2.1", None)
    assert [trial.number for trial, _ in ranked(study, 2)] == [1, 0, 2] and chosen(study, 2)[0].number == 1


def test_where_all_of_the_best_drop_out_the_next_best_are_repeated():
    study = study_of(0.6, 0.5, 0.7, 0.8, 0.9)
    gives = {(steps, FIRST): None for steps in (14, 13, 12, 10)} | {(11, FIRST): 0.4}
    context = Lucky(parse_args(ARGS), gives)
    run_missing_repeats(study, context, 1)
    assert [steps for steps, _ in context.asked] == [14, 13, 12, 10, 11]
    assert chosen(study, 1)[0].number == 1 and not missing_repeats(study, 1)


def test_a_sheet_says_of_a_trial_without_accuracy_why(tmp_path, monkeypatch):
    study = study_of(0.9, 0.5)
    unusable = {"state": TrialState.PRUNED, "params": {"is": 9, "ugs": 2.0, "epoch": 1}}
    unusable |= {"distributions": study.trials[0].distributions}
    study.add_trial(optuna.trial.create_trial(**unusable, user_attrs={"saved_epoch": 1, "pruned_because": "all black"}))
    context = Scripted(parse_args(ARGS), [])
    context.load, context.spec = lambda epoch: None, dataset_spec("digits")
    context.images = lambda *args, **how: np.zeros((80, 8, 8, 3), np.uint8)
    monkeypatch.setattr(search_report, "side_by_side", lambda *args: args[-1])
    best, worst = contact_sheet(context, study, study.trials[0], tmp_path)
    assert best.endswith("epoch 3: 0.900") and worst == "worst: trial 2, 9 steps, scale 2.00, epoch 1: all black"


def test_without_repeats_the_best_single_value_counts():
    study, context = study_of(0.5, 0.9, 0.7), Lucky(parse_args(ARGS), {})
    run_missing_repeats(study, context, 0)
    trial, values = chosen(study, 0)
    assert (trial.number, values, context.asked) == (1, [0.9], []) and trial.number == study.best_trial.number


def test_how_often_the_best_are_repeated():
    assert parse_args(ARGS).repeats == 1 and parse_args([*ARGS, "--repeats", "0"]).repeats == 0
    on_test = [*ARGS, "--select_on", "test"]
    assert parse_args(on_test).repeats == 0 and parse_args([*on_test, "--repeats", "2"]).repeats == 2


@pytest.fixture
def searched(tmp_path, monkeypatch):
    """A search whose trials are there: arguments, what is known, a study of values; the look at test is counted."""
    looks = []
    results = {name: {"top_1": 0.5, "top_5": 0.9, "epoch": 1} for name in ("no_opt", "opt")}
    monkeypatch.setattr(stage, "measure", lambda args, context, test, best: looks.append(best.number) or results)

    def searched(*values, flags=()):
        args = parse_args([*ARGS, "--root", str(tmp_path), "--n_trials", str(len(values)), *flags])
        experiment = Experiment(tmp_path, "0001", "own")
        folder = experiment.search_dir("enc")
        known = known_of(epoch_files(experiment.part_dir("enc")), experiment=experiment, folder=folder,
                         best_file=folder / "best.json")  # fmt: skip
        return args, known, study_of(*values), looks

    return searched


REPEATS = {(11, FIRST): 0.5, (12, FIRST): 0.7, (10, FIRST): 0.5, (12, SECOND): 0.1, (11, SECOND): 0.9, (10, SECOND): 0.1}


def test_the_mean_of_the_runs_is_decided_before_the_one_look_at_test(searched, caplog):
    args, known, study, looks = searched(0.5, 0.9, 0.8)
    caplog.set_level(logging.INFO)
    for _ in range(2):
        stage.measure_best(args, known, study, Lucky(args, REPEATS), 0.0)
    assert looks == [2]  # once
    best = read_json(known.best_file)
    assert best["trial"] == 2 and best["val_accuracy"] == pytest.approx(0.75) and best["first_value"] == 0.8
    assert best["repeats"] == {"0": [0.5], "1": [0.5], "2": [0.7]}
    assert best["run"]["inputs"]["epoch"] == known.hashes["3"] and best["run"]["precision_used"]
    assert "trial   1 again, repeat 1 -> 0.5000 (mean of 2 runs 0.7000)" in caplog.text
    caplog.clear()
    args.optimize = False
    stage.report(args, known, study, 0.0)
    assert "validation accuracy 0.7500 (mean of 2 runs)" in caplog.text
    assert "trial   2 again -> 0.7000 (mean of 2 runs 0.7500)" in caplog.text


def test_more_repeats_of_a_finished_search_look_at_test_only_for_another_trial(searched):
    args, known, study, looks = searched(0.5, 0.9, 0.8)
    stage.measure_best(args, known, study, Lucky(args, REPEATS), 0.0)
    assert stage.is_finished(args, known, study)
    args.repeats = 2
    assert not stage.is_finished(args, known, study)
    stage.measure_best(args, known, study, Lucky(args, REPEATS), 0.0)
    assert looks == [2, 1] and read_json(known.best_file)["repeats"]["1"] == [0.5, 0.9]
    args.repeats = 0  # what is known is not forgotten
    assert stage.is_finished(args, known, study) and chosen(study, 2)[0].number == 1


@pytest.mark.parametrize("gone", [[], ["repeats"]])
def test_the_result_of_a_study_that_is_gone_is_not_that_of_the_next(searched, gone):
    """A study that is deleted by hand leaves its best.json; in the next one the same number may be the best, by settings that
    the warm start has given it."""
    args, known, study, looks = searched(0.5, 0.9, 0.8)
    stage.measure_best(args, known, study, Lucky(args, REPEATS), 0.0)
    found = read_json(known.best_file)
    write_json(known.best_file, {name: value for name, value in found.items() if name not in gone})
    _, _, again, _ = searched(0.5, 0.9, 0.8)
    run_missing_repeats(again, Lucky(args, REPEATS), 1)
    assert not stage.is_finished(args, known, again)
    stage.measure_best(args, known, again, Lucky(args, REPEATS), 0.0)
    assert looks == [2, 2] and stage.is_finished(args, known, again) and not stage.is_finished(args, known, study)


def test_a_result_is_not_lost_to_an_empty_study_of_another_storage(searched):
    args, known, study, _ = searched(0.5, 0.9, 0.8)
    stage.measure_best(args, known, study, Lucky(args, REPEATS), 0.0)
    known.address = "sqlite:///other.db"
    stage.refuse_result_of_another(known, study)
    with pytest.raises(UserError, match="has 0 finished trials: give the --storage of that search .none., use"):
        stage.refuse_result_of_another(known, optuna.create_study())
    known.best_file.unlink()
    stage.refuse_result_of_another(known, optuna.create_study())


def test_steps_that_are_moved_away_are_written_again(searched, caplog):
    args, known, study, looks = searched(0.5, 0.9, 0.8)
    stage.measure_best(args, known, study, Lucky(args, REPEATS), 0.0)
    before = read_json(known.experiment.pipeline_file)
    test = read_json(known.best_file)["test"]
    stage.note_if_gone(args, known, test)
    assert "written again" not in caplog.text
    for content in (None, {"others": before["own"]}):
        if content:
            write_json(known.experiment.pipeline_file, content)
        else:
            known.experiment.pipeline_file.unlink()
        stage.note_if_gone(args, known, test)
        assert read_json(known.experiment.pipeline_file) == (content or {}) | before
    stage.note_if_gone(args, known, {})  # of an earlier version
    assert "are not in" in caplog.text and looks == [2]


def test_weights_that_are_trained_again_during_a_search_end_it(tmp_path):
    files, loaded = epoch_files(tmp_path), []
    hashes = {str(epoch): read_card(file)["sha256"] for epoch, file in files.items()}
    adapted = SimpleNamespace(load=loaded.append)
    context = Context(parse_args(ARGS), None, adapted, None, 1, None, files, None, hashes=hashes)
    context.load(3)
    files[3].write_text("trained again")
    with pytest.raises(UserError, match="epoch3.* has changed since this search began"):
        context.load(3)
    assert loaded == [files[3]]


def test_a_restart_throws_the_result_away_before_the_study_and_not_when_it_is_refused(tmp_path, monkeypatch):
    address, best = f"sqlite:///{tmp_path / 'study.db'}", tmp_path / "best.json"
    study = open_study(address, "s", 1, pruner("none", 5), True, tmp_path / "study")
    study.add_trial(optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs={"worker": {"pid": 7}}))
    best.write_text("{}")
    monkeypatch.setattr(workers, "runs_here", lambda worker: True)
    with pytest.raises(UserError, match="stop it first"):
        delete_study(address, "s", tmp_path / "study", best)
    assert best.exists()
    monkeypatch.setattr(workers, "runs_here", lambda worker: False)

    def killed(**which):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(studies.optuna, "delete_study", killed)
        delete_study(address, "s", tmp_path / "study", best)
    assert not best.exists()
    best.write_text("{}")  # of a study that is deleted by hand
    assert delete_study(address, "s", tmp_path / "study", best) == 1
    assert delete_study(address, "s", tmp_path / "study", best) == 0 and not best.exists()


def test_a_search_that_is_extended_is_not_finished_until_it_is(searched, monkeypatch):
    args, known, study, _ = searched(0.5, 0.9, 0.8)
    stage.measure_best(args, known, study, Lucky(args, REPEATS), 0.0)
    assert stage.is_finished(args, known, study)
    before = read_json(known.best_file)
    args.n_trials += 2
    args.timeout = 0.0
    with pytest.raises(PassingError, match="0 s are over: 3 of 5 trials are finished"):
        stage.run_budget(args, known, study, None)
    assert read_json(known.best_file) == before | {"extended_to": 5}
    args.n_trials = 3
    assert not stage.is_finished(args, known, study)  # whichever budget it is asked for next
    stage.measure_best(args, known, study, Lucky(args, REPEATS), 0.0)
    assert "extended_to" not in read_json(known.best_file) and stage.is_finished(args, known, study)


def test_pictures_of_fewer_trials_go_as_a_search_goes_on_and_are_drawn_again(searched, monkeypatch):
    args, known, study, _ = searched(0.5, 0.9, 0.8, flags=("--save_plots", "--objective", "pareto"))
    drawn = {f"{name}.png" for name in (*PLOTS, "best_and_worst", "pareto")} | {"pareto.csv"}

    def plots(study, folder):
        for name in PLOTS:
            (folder / f"{name}.png").touch()
            yield folder / f"{name}.png"

    def sheet(context, study, best, folder):
        (folder / "best_and_worst.png").touch()

    def there():
        return {path.name for path in known.folder.iterdir() if path.name in drawn | {"own.png", "trials.csv"}}

    def tried(trial, context):
        found.append(there())
        known.folder.joinpath("rank.png").touch()  # as where somebody looks at the search while it runs
        trial.suggest_int("is", 10, 12), trial.suggest_float("ugs", 0, 9), trial.suggest_int("epoch", 1, 3)
        trial.set_user_attr("saved_epoch", 3)
        return 0.4

    found = []
    for name, function in (("search_plots", plots), ("contact_sheet", sheet), ("objective", tried), ("claim_study", print)):
        monkeypatch.setattr(stage, name, function)
    stage.measure_best(args, known, study, Lucky(args, REPEATS), 0.0)
    stage.report(args, known, study, 0.0)
    known.folder.joinpath("own.png").touch()
    stays = {"own.png", "trials.csv"}
    assert there() == drawn | stays
    stage.run_budget(args, known, study, None)
    args.n_trials, args.timeout = 5, 0.0
    with pytest.raises(PassingError):
        stage.run_budget(args, known, study, None)
    assert there() == drawn | stays  # no trial has begun
    args.timeout = None
    stage.run_budget(args, known, study, None)
    assert found == [stays, stays | {"rank.png"}]
    stage.measure_best(args, known, study, Lucky(args, REPEATS), 0.0)
    stage.report(args, known, study, 0.0)
    assert there() == drawn | stays


def test_a_search_that_an_earlier_version_has_finished_stays_so(searched):
    args, known, study, _ = searched(0.5, 0.9, 0.8)
    assert not stage.is_finished(args, known, study)
    write_json(known.best_file, {"trial": 1, "is": 11})
    assert stage.is_finished(args, known, study)


@pytest.mark.parametrize("select_on", ["val", "test"])
def test_results_say_what_was_chosen_on_test(searched, select_on):
    args, known, study, _ = searched(0.5, 0.9, 0.8, flags=("--select_on", select_on, "--repeats", "0"))
    earlier = {"top_1": 0.4, "top_5": 0.9, "select_on": "test"}
    write_json(known.experiment.pipeline_file, {"own": {"After Transfer Learning": {"opt": earlier}}})
    stage.measure_best(args, known, study, Lucky(args, {}), 0.0)
    results = read_json(known.experiment.pipeline_file)["own"]["After Transfer Learning"]
    assert ("select_on" in results["opt"]) == (select_on == "test") and "select_on" not in results["no_opt"]


TRAINED = {"classifier": "resnet20", "batch_size": 256, "resize": "nearest", "augment": "none", "optimizer": "adam"}


def test_steps_of_other_test_images_or_of_an_encoder_that_is_gone_are_taken_out(tmp_path, caplog):
    file, scores = tmp_path / "steps.json", {"top_1": 0.5, "top_5": 0.9, "epoch": 2}
    first, later, last = "a" * 64, "b" * 64, "c" * 64

    def search(part, encoder, test="d" * 64, epochs=100, there=(), **more):
        inputs = {"data": {"test": test}, "weights": {} if part == "enc" else {"enc": encoder}}
        args = SimpleNamespace(train_model=part, **TRAINED, epochs=epochs)
        known = SimpleNamespace(inputs=inputs, hashes={"2": encoder}, doubts=[])
        steps = with_origin({"no_opt": scores | more, "opt": scores | more}, args, known)
        note_steps(file, "own", part, steps, [encoder, *there])
        return set(read_json(file)["own"])

    both = {"After Transfer Learning", "After Fine-Tuning"}
    assert search("enc", first) | search("dif", first) == both == search("enc", first) and not caplog.text
    assert search("enc", later) == {"After Transfer Learning"} and "After Fine-Tuning in the results is of" in caplog.text
    # From another epoch than the first search has chosen: the user's own choice.
    assert search("dif", first, there=[later]) == both
    caplog.clear()
    assert search("dif", last) == {"After Fine-Tuning"} and "After Transfer Learning in the results is of" in caplog.text
    assert search("enc", last) == {"After Transfer Learning", "After Fine-Tuning"}
    assert search("dif", last, test="e" * 64) == {"After Fine-Tuning"}
    assert read_json(file)["own"]["After Fine-Tuning"]["opt"] == scores | {
        "test": "eeeeeeee", "encoder": "cccccccc", "training": TRAINED | {"epochs": 100}
    }  # fmt: skip
    assert "otherwise" not in caplog.text
    search("enc", last, test="e" * 64, epochs=9)
    assert "the two searches have learnt otherwise: epochs 100 and 9" in caplog.text
    search("enc", last, test="e" * 64, images=900)
    search("dif", last, test="e" * 64, images=300)
    assert "the two searches have learnt otherwise: images 300 and 900" in caplog.text


def test_step_3_of_other_settings_than_step_2_is_told():
    """A first search that goes on may choose others than those by which the second one began."""
    scores = {"top_1": 0.5, "top_5": 0.9}
    before = {"opt": scores | {"is": 8, "ugs": 1.5, "encoder": "a"}}
    assert not step_3_otherwise({TRANSFERRED: before})
    assert not step_3_otherwise({TRANSFERRED: before, FINE_TUNED: {"no_opt": before["opt"]}})
    assert not step_3_otherwise({TRANSFERRED: before, FINE_TUNED: {"no_opt": scores}})  # of an earlier version
    after = {"no_opt": before["opt"] | {"is": 13, "encoder": "b"}}
    told = step_3_otherwise({TRANSFERRED: before, FINE_TUNED: after})
    assert told == "step 3 was measured with other settings than step 2: steps 13 for 8, Class Encoder b for a"
    off = sampling_of(parse_args(ARGS), 8, {})
    assert off == {
        "is": 8, "solver": "ddim", "guidance_interval": None, "autoguide": None, "timestep_spacing": "leading"
    }  # fmt: skip
    other = sampling_of(parse_args([*ARGS, "--search_solver"]), 8, {"solver": "dpmpp", "interval": [0.3, 1.6]})
    told = step_3_otherwise({TRANSFERRED: {"opt": before["opt"] | off}, FINE_TUNED: {"no_opt": before["opt"] | other}})
    assert told.endswith(
        ": solver dpmpp for ddim, guidance_interval [0.3, 1.6] for None, timestep_spacing linspace for leading"
    )


def test_a_search_that_is_thrown_away_takes_its_steps_along(tmp_path):
    experiment = Experiment(tmp_path, "e", "own")
    forget_steps(experiment, "enc")
    pictures = [experiment.pipeline_plot(score) for score in ("top_1", "top_5")]
    pictures[0].parent.mkdir(parents=True)
    steps = {TRANSFERRED: {"opt": {}}, FINE_TUNED: {"opt": {}}}
    write_json(experiment.pipeline_file, {"own": steps, "other": steps})
    for part, left in (("enc", {FINE_TUNED}), ("dif", set())):
        pictures[0].touch()
        forget_steps(experiment, part)
        found = read_json(experiment.pipeline_file)
        assert set(found.get("own", ())) == left and found["other"] == steps and not pictures[0].exists()
    write_json(experiment.pipeline_file, {"own": {FINE_TUNED: {"opt": {}}}})
    forget_steps(experiment, "dif")
    assert not experiment.pipeline_file.exists()


def test_a_second_search_of_an_earlier_version_goes_on_without_the_levers_of_the_first(tmp_path, caplog):
    flags = [*ARGS, "--train_model", "dif", "--is_1", "9", "--ugs_1", "2"]
    known, args = known_of(epoch_files(tmp_path)), parse_args(flags)
    study = claimed_study(args, known)
    settings = {name: value for name, value in study.user_attrs["settings"].items() if name != "levers_1"}
    study.set_user_attr("settings", settings)
    now = parse_args([*flags, "--solver", "dpmpp"])
    with pytest.raises(UserError, match="solver"):  # the user's own choice
        claim_study(study, now, known, "float32")
    known.adopted = {"solver": "ddim", "timestep_spacing": "leading"}
    claim_study(study, now, known, "float32")
    assert (now.solver, now.timestep_spacing) == ("ddim", "leading")
    assert "chosen with solver dpmpp; this study was begun by an earlier version without" in caplog.text
    study.set_user_attr("settings", settings | {"levers_1": {}})
    with pytest.raises(UserError, match="solver"):
        claim_study(study, parse_args([*flags, "--solver", "dpmpp"]), known, "float32")


def test_steps_of_earlier_versions_stay(tmp_path):
    earlier = {"After Fine-Tuning": {"opt": {"top_1": 0.5, "top_5": 0.9}}}
    write_json(tmp_path / "steps.json", {"own": earlier})
    step = {"top_1": 0.4, "top_5": 0.8, "test": "d" * 8, "encoder": "a" * 8}
    note_steps(tmp_path / "steps.json", "own", "enc", {"no_opt": step, "opt": step}, ["a" * 64])
    assert read_json(tmp_path / "steps.json")["own"].items() >= earlier.items()


# Removing epochs


def test_epochs_that_are_not_chosen_are_removed_and_the_search_stays_finished(searched, caplog):
    args, known, study, _ = searched(0.5, 0.9, 0.8)
    caplog.set_level(logging.INFO)
    claim_study(optuna.create_study(), args, known, "float32")
    study.set_user_attr("settings", claimed_study(args, known).user_attrs["settings"])
    study.set_user_attr("epochs", known.hashes)
    with pytest.raises(UserError, match="--prune needs a finished search: 3 of 3 trials are finished, .* is missing"):
        stage.remove_unchosen(args, known, study)
    stage.measure_best(args, known, study, Lucky(args, REPEATS), 0.0)
    folder = known.experiment.part_dir("enc")
    (folder / "epoch7.hdf5").write_text("published")
    stage.remove_unchosen(args, known, study)
    assert "epoch 3 is chosen: removing the epochs 1, 2 in" in caplog.text and ", 6 bytes" in caplog.text
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert names == {"epoch3.weights.h5", "epoch3.weights.h5.json", "epoch7.hdf5"}
    (folder / "epoch7.hdf5").unlink()
    left = known_of({3: known.epochs[3]})
    claim_study(study, args, left, "float32")
    assert stage.is_finished(args, known, study)
    with pytest.raises(UserError, match="--prune has removed the epochs 1, 2"):
        stage.check_epochs(left, study)
    stage.check_epochs(known, study)  # they are back
    known.epochs[3].write_text("trained again")
    with pytest.raises(UserError, match="other inputs: enc epoch 3"):
        claim_study(study, args, known_of({3: known.epochs[3]}), "float32")


def test_an_encoder_that_was_fine_tuned_with_and_the_epochs_of_a_running_search_stay(searched):
    args, known, study, _ = searched(0.5, 0.9, 0.8)
    stage.measure_best(args, known, study, Lucky(args, REPEATS), 0.0)
    write_json(known.experiment.part_dir("dif") / "training.json", {"arguments": {"enc_epoch": 2}})
    running = study.ask()
    running.set_user_attr("worker", this_worker())
    with pytest.raises(UserError, match="trial 3 of the study .* is running"):
        stage.remove_unchosen(args, known, study)
    study.tell(running, state=optuna.trial.TrialState.FAIL)
    stage.remove_unchosen(args, known, study)
    assert [epoch for epoch, file in known.epochs.items() if file.exists()] == [2, 3]


def test_prune_only_reports(capsys):
    assert not parse_args([*ARGS, "--prune"]).optimize and not parse_args([*ARGS, "--prune", "--no-optimize"]).optimize
    with pytest.raises(SystemExit):
        parse_args([*ARGS, "--prune", "--restart"])
    assert "--restart: not allowed with --prune" in capsys.readouterr().err


def test_flags_are_not_abbreviated(capsys):
    with pytest.raises(SystemExit):
        parse_args(["--epoch", "31"])
    assert "unrecognized arguments: --epoch 31" in capsys.readouterr().err


def test_the_time_of_a_trial_is_that_of_no_wall_clock(tmp_path, monkeypatch):
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")  # by rule: not every machine knows the names of zones
    time.tzset()
    address = f"sqlite:///{tmp_path}/s.db"
    study = optuna.create_study(storage=address, study_name="a")
    trial = study.ask()
    trial.suggest_int("is", 1, 2), trial.suggest_float("ugs", 0, 1), trial.suggest_int("epoch", 1, 1)
    study.tell(trial, 0.5)
    with sqlite3.connect(tmp_path / "s.db") as base:  # Optuna keeps UTC: 20 minutes across the change to summer time
        base.execute("update trials set datetime_start='2026-03-29 00:50:00', datetime_complete='2026-03-29 01:10:00'")
    table = write_trials(optuna.load_study(storage=address, study_name="a"), tmp_path)
    monkeypatch.undo()
    time.tzset()
    assert float(next(csv.DictReader(table.open()))["seconds"]) == 1200
