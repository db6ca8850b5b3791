"""Levers of the adaptation: averages of weights, label dropout, weights of the loss."""

import keras
import numpy as np
import pytest

import SD_adapting
from Experiment.errors import UserError
from Experiment.files import read_json
from Models import training
from Models.averages import Averaged, power_of_width
from Models.feed import drop_labels, noisy_batches, with_targets
from Models.noise_schedule import STABLE_DIFFUSION
from Models.optimizer import SequentialAdam, StockAdam
from tests.conftest import Stopped

pytestmark = pytest.mark.usefixtures("no_pictures", "no_sheets")

MOMENTS, LABELS = np.zeros((40, 2, 2, 8), "float32"), np.arange(40) % 4


# Averages


@pytest.mark.parametrize("width", [0.05, 0.1, 0.28])
def test_the_width_of_an_average_is_its_standard_deviation(width):
    """Against the moments of tau^gamma on 0..1, by summation."""
    tau = (np.arange(200_000) + 0.5) / 200_000
    weight = tau ** power_of_width(width)
    mean = np.average(tau, weights=weight)
    assert np.average((tau - mean) ** 2, weights=weight) ** 0.5 == pytest.approx(width, rel=1e-3)


def test_powers_of_the_source():
    """Section 3.1 of the paper: widths 0.05 and 0.10 are powers of about 16.97 and 6.94."""
    assert [round(power_of_width(width), 2) for width in (0.05, 0.10)] == [16.97, 6.94]


def small_model(power, kind=SequentialAdam):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(1)])
    model.compile(kind(0.05, 0.001, 10.0, average_power=power), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.mark.parametrize("kind", [SequentialAdam, StockAdam])
def test_averages_are_power_functions_of_time_and_leave_training_as_it_is(kind):
    """After t steps the average is sum_s w_s prod_{r > s} beta_r (1 - beta_s): here by hand, of what each step left."""
    keras.utils.set_random_seed(3)
    averaged, plain = small_model(2.0, kind), small_model(None, kind)
    plain.set_weights(averaged.get_weights())
    inputs, targets = np.random.default_rng(1).standard_normal((2, 8, 3)).astype("float32")
    left = []
    for _ in range(6):
        for model in (averaged, plain):
            model.train_on_batch(inputs, targets[:, :1])
        left.append([v.numpy() for v in averaged.trainable_variables])
    assert all(np.array_equal(a, b) for a, b in zip(averaged.get_weights(), plain.get_weights()))
    expected = left[0]
    for step, values in enumerate(left[1:], start=2):
        beta = (1 - 1 / step) ** 3.0
        expected = [beta * e + (1 - beta) * v for e, v in zip(expected, values)]
    for found, wanted in zip(averaged.optimizer.averages, expected):
        assert found.numpy() == pytest.approx(wanted, abs=1e-6)
    assert len(averaged.optimizer.variables) == len(plain.optimizer.variables) + 4


def test_averages_stand_in_place_of_weights_for_a_block_only():
    model = small_model(2.0)
    model.train_on_batch(np.ones((2, 3)), np.ones((2, 1)))
    model.train_on_batch(np.ones((2, 3)), np.ones((2, 1)))
    weights, averages = model.get_weights(), [a.numpy() for a in model.optimizer.averages]
    adapted = Averaged(None, model.trainable_variables, model.optimizer.averages)
    with pytest.raises(ZeroDivisionError), adapted.in_place():
        assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), averages))
        raise ZeroDivisionError
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), weights))
    assert not np.array_equal(weights[0], averages[0])


# Label dropout


def labels_of(epoch, probability=0.3, seed=5):
    made = noisy_batches(MOMENTS, LABELS, 4, 40, seed, epoch, transforms=[drop_labels(probability)])
    return next(made)["label"]


def test_labels_are_dropped_by_address_with_the_probability():
    dropped = np.array([(labels_of(epoch) == 0).all(axis=1) for epoch in range(40)])
    assert abs(dropped.mean() - 0.3) < 0.05
    assert np.array_equal(labels_of(3), labels_of(3)) and not np.array_equal(labels_of(3), labels_of(4))
    assert (labels_of(0, probability=0.0).sum(axis=1) == 1).all()


def test_label_dropout_does_not_depend_on_batches_and_changes_nothing_else():
    def batches(size, transforms):
        made = noisy_batches(MOMENTS, LABELS, 4, size, 5, 0, transforms=transforms)
        parts = [next(made) for _ in range(40 // size)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    whole, parts, plain = batches(40, [drop_labels(0.5)]), batches(8, [drop_labels(0.5)]), batches(40, [])
    assert all(np.array_equal(whole[name], parts[name]) for name in whole)
    assert all(np.array_equal(whole[name], plain[name]) for name in whole if name != "label")
    kept = whole["label"].any(axis=1)
    assert np.array_equal(whole["label"][kept], plain["label"][kept]) and 0 < kept.sum() < 40


# Weights of the loss


def test_min_snr_weights():
    """Known for Stable Diffusion and gamma 5: 1 from timestep 147 on, 0.917 on the mean, 0.004 at the first."""
    weights = STABLE_DIFFUSION.min_snr_weights(5.0)
    assert weights[147] == 1 and weights[146] < 1 and (weights[147:] == 1).all()
    assert (round(float(weights.mean()), 3), round(float(weights[0]), 3)) == (0.917, 0.004)
    ratio = STABLE_DIFFUSION.alphas_cumprod[[0, 500]] / (1 - STABLE_DIFFUSION.alphas_cumprod[[0, 500]])
    velocity = STABLE_DIFFUSION.min_snr_weights(5.0, "v_prediction")[[0, 500]]
    assert velocity == pytest.approx(np.minimum(ratio, 5) / (ratio + 1), rel=1e-3)


def test_each_sample_is_weighted_by_its_timestep():
    weights = np.arange(1000, dtype="float32")
    batch, target, given = next(with_targets(noisy_batches(MOMENTS, LABELS, 4, 8, 5, 0), weights))
    assert np.array_equal(given[:, 0, 0], batch["timestep"]) and target is batch["noise"]


def test_the_loss_is_the_weighted_mean(tiny):
    """By hand, from what the model predicts: mean over samples of weight times mean squared error."""
    from Models.adapter import WholeNetwork, load_diffusion
    from Models.training import compile_model

    model = compile_model(WholeNetwork(load_diffusion(tiny, 4), "enc"), 0.0, 10, "float32")
    moments = np.random.default_rng(1).standard_normal((8, 4, 4, 8)).astype("float32")
    weights = STABLE_DIFFUSION.min_snr_weights(0.5)
    batch, noise, given = next(with_targets(noisy_batches(moments, LABELS[:8], 4, 8, 5, 0), weights))
    error = ((model.predict_on_batch(batch) - noise) ** 2).mean(axis=(1, 2, 3))
    expected = np.mean(weights[batch["timestep"]] * error)
    assert model.evaluate(batch, noise, sample_weight=given, verbose=0) == pytest.approx(expected, rel=1e-5)
    assert expected < 0.9 * error.mean()


# By the command line


@pytest.fixture
def common(tiny, tmp_path):
    root = str(tmp_path / "out")
    return ["--dataset", "digits", "--exp", "x", "--backbone", "tiny", "--root", root, "--epochs", "3", "--lr", "1e-3"]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.glob("epoch*.weights.h5")}


def test_levers_are_resumed_exactly_and_recorded(common, tmp_path, monkeypatch):
    levers = ["--label_dropout", "0.2", "--ema", "--min_snr", "5"]
    folder = SD_adapting.adapt(SD_adapting.parse_args([*common, *levers]))
    whole, record = files(folder), read_json(folder / "training.json")
    assert (record["arguments"]["ema"], record["arguments"]["min_snr"]) == (0.1, 5.0)
    assert record["average_power"] == pytest.approx(6.94, abs=0.01)
    assert record["mean_loss_weight"] == pytest.approx(0.917, rel=1e-3)
    with pytest.raises(UserError, match=r"--label_dropout 0.2 \(now 0.0\), --ema 0.1 \(now None\)"):
        SD_adapting.plan(SD_adapting.parse_args([*common, "--min_snr", "5"]))
    plain = SD_adapting.adapt(SD_adapting.parse_args([*common, "--restart"]))
    without = files(plain)["epoch3.weights.h5"]
    assert all(files(plain)[name] != whole[name] for name in whole)
    for lever in (["--label_dropout", "0.5"], ["--ema"], ["--min_snr", "5"]):  # each of them alone does something
        SD_adapting.adapt(SD_adapting.parse_args([*common, *lever, "--restart"]))
        assert files(folder)["epoch3.weights.h5"] != without, lever

    drop, calls = training.SaveEpochs.drop_early_epochs, []

    def stop_after_two(saver):
        drop(saver)
        calls.append(1)
        if len(calls) == 2:
            raise Stopped

    monkeypatch.setattr(training.SaveEpochs, "drop_early_epochs", stop_after_two)
    with pytest.raises(Stopped):
        SD_adapting.adapt(SD_adapting.parse_args([*common, *levers, "--restart"]))
    with pytest.raises(UserError, match="interrupted run with|of another run"):
        SD_adapting.adapt(SD_adapting.parse_args([*common, "--ema"]))
    SD_adapting.adapt(SD_adapting.parse_args([*common, *levers]))
    assert files(folder) == whole


@pytest.mark.parametrize("flags", [["--ema", "0.5"], ["--label_dropout", "1"], ["--min_snr", "0"]])
def test_levers_out_of_range_are_refused(flags, capsys):
    with pytest.raises(SystemExit):
        SD_adapting.parse_args(["--exp", "x", *flags])
    assert "must be" in capsys.readouterr().err
