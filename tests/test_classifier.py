"""Training and testing of the classifier."""

import keras
import numpy as np
import pytest

from Experiment.errors import UserError
from Models.classifier import Classifier, accuracies
from Models.fit_state import epochs_done

RNG = np.random.default_rng(1)


def easy_images(count):
    """Images of three classes that differ in brightness."""
    labels = np.arange(count) % 3
    images = 40 + 80 * labels[:, None, None, None] + RNG.integers(-40, 40, (count, 8, 8, 3))
    return images.astype(np.uint8), labels.astype(np.int32)


TRAIN, VAL = easy_images(48), easy_images(48)


@pytest.fixture(scope="module")
def compiled():
    keras.utils.set_random_seed(1)
    return Classifier("resnet20_16", 8, 3)


@pytest.fixture
def classifier(compiled):
    """Compiled once, and as fresh for every test."""
    for variable, value in zip(compiled.variables, compiled.first):
        variable.assign(value)
    return compiled


def fit(classifier, **changes):
    settings = {"epochs": 3, "batch_size": 16, "seed": 5, "patience": (10, 25), "verbose": 0}
    return classifier.fit(TRAIN, VAL, **(settings | changes))


def val_accuracy(classifier):
    return accuracies(classifier.probabilities(VAL[0]), VAL[1])["top_1_accuracy"]


def test_every_fit_starts_from_the_same_weights_and_repeats(classifier):
    first, seconds = fit(classifier)
    probabilities = classifier.probabilities(VAL[0])
    second, _ = fit(classifier)
    assert first == second and np.array_equal(classifier.probabilities(VAL[0]), probabilities)
    assert len(seconds) == len(first["loss"]) == 3 and min(seconds) > 0
    assert first["loss"][-1] < first["loss"][0]
    other, _ = fit(classifier, seed=6)
    assert other["loss"] != first["loss"]


def test_the_weights_of_the_best_epoch_are_kept(classifier):
    output, epochs = classifier.model.layers[-1], []

    def spoil_the_last_epoch(batch, logs):
        if len(epochs) == 9:
            output.kernel.assign(0 * output.kernel)

    history, _ = fit(classifier, epochs=9, callbacks=[keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: epochs.append(epoch), on_train_batch_end=spoil_the_last_epoch)])  # fmt: skip
    best, last = max(history["val_accuracy"]), history["val_accuracy"][-1]
    assert val_accuracy(classifier) == pytest.approx(best) and best > last == pytest.approx(1 / 3)


def test_learning_rate_falls_and_training_ends_without_progress(classifier):
    output = classifier.model.layers[-1]
    forget = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: output.kernel.assign(0 * output.kernel))
    history, seconds = fit(classifier, epochs=20, patience=(1, 4), callbacks=[forget])
    assert history["learning_rate"] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5, 1e-5], rel=1e-4)  # 1e-5 is the floor
    assert len(seconds) == 5


def test_a_loss_that_is_not_finite_ends_the_training(classifier):
    output = classifier.model.layers[-1]
    broken = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: output.kernel.assign(np.nan * output.kernel))
    history, _ = fit(classifier, epochs=5, callbacks=[broken])
    assert len(history["loss"]) == 1 and not np.isfinite(history["loss"][0])


def test_a_state_that_is_not_finite_is_not_kept(classifier, tmp_path):
    output, state_file = classifier.model.layers[-1], tmp_path / "state.npz"

    def spoil(epoch, logs):
        if epoch == 2:
            output.kernel.assign(np.nan * output.kernel)

    fit(
        classifier,
        epochs=5,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_begin=spoil)],
        state_file=state_file,
        save_share=1.0,
    )
    assert epochs_done(state_file) == 2


def test_a_state_of_another_model_is_refused(classifier, tmp_path):
    state_file = tmp_path / "state.npz"
    fit(classifier, epochs=1, state_file=state_file, save_share=1.0)
    with np.load(state_file, allow_pickle=False) as data:
        np.savez(state_file, **{**data, "v0": np.zeros(3)})
    with pytest.raises(UserError, match="state.npz is of another model"):
        fit(classifier, epochs=2, state_file=state_file)


def test_the_loss_is_smoothed_cross_entropy(classifier):
    probabilities = np.array([[0.7, 0.2, 0.1]])
    smoothed = 0.9 * np.array([1, 0, 0]) + 0.1 / 3
    loss = classifier.model.loss(np.array([[1.0, 0, 0]]), probabilities)
    assert float(loss) == pytest.approx(-np.sum(smoothed * np.log(probabilities)), rel=1e-5)


def test_an_epoch_has_every_image_once_in_an_order_of_its_own(classifier):
    images = np.arange(50, dtype=np.uint8)[:, None, None, None]
    labels = np.arange(50) % 3
    stream = classifier.batches(images, labels, 16, seed=5)
    orders = []
    for _ in range(2):
        made = [next(stream) for _ in range(4)]
        assert [len(one_hot) for _, one_hot in made] == [16, 16, 16, 2]
        order = np.concatenate([x.ravel() * 255 for x, _ in made]).round().astype(int)
        assert np.array_equal(np.concatenate([one_hot for _, one_hot in made]), np.eye(3)[labels[order]])
        orders.append(order.tolist())
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(50)) and orders[0] != orders[1]


def test_probabilities_of_batches_are_those_of_the_whole(classifier):
    parts = classifier.probabilities(VAL[0], batch_size=32)
    assert parts.shape == (48, 3) and np.abs(parts - classifier.probabilities(VAL[0])).max() < 1e-6
    assert np.abs(parts - classifier.model.predict_on_batch(VAL[0].astype("float32") / 255)).max() < 1e-6


def test_accuracies():
    probabilities = np.full((4, 7), 0.1)
    probabilities[0, 2] = probabilities[1, 2] = probabilities[2, 6] = 0.4
    result = accuracies(probabilities, np.array([2, 5, 6, 3]))
    # Row 3 is all ties: class 0 is predicted, as argmax does. Row 1 ranks 2, 0, 1, 3, 4: class 5 comes sixth.
    assert (result["top_1_accuracy"], result["top_5_accuracy"]) == (0.5, 0.75)
    confusion = np.zeros((7, 7), int)
    confusion[2, 2] = confusion[5, 2] = confusion[6, 6] = confusion[3, 0] = 1
    assert np.array_equal(result["confusion"], confusion)
    assert np.array_equal(result["class_accuracies"], [np.nan, np.nan, 1, 0, np.nan, 0, 1], equal_nan=True)


@pytest.mark.parametrize("last", [2, 6])
def test_an_interrupted_fit_goes_on_as_if_nothing_had_happened(classifier, tmp_path, last):
    """Also where the learning rate falls and patience ends after the interruption."""
    settings = {"epochs": 14, "patience": (2, 5)}
    whole, _ = fit(classifier, **settings)
    probabilities = classifier.probabilities(VAL[0])

    def interrupt(epoch, logs):
        if epoch == last:
            raise KeyboardInterrupt

    state = {"state_file": tmp_path / "state.npz", "save_share": 1.0, "settings": {"--seed": 5}}
    with pytest.raises(KeyboardInterrupt):  # before the state of this epoch is kept
        fit(classifier, **settings, **state, callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=interrupt)])
    for variable in classifier.variables:
        variable.assign(variable + 1 if variable.dtype == "float32" else variable)
    epochs = []
    count = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: epochs.append(epoch))
    resumed, seconds = fit(classifier, **settings, **state, callbacks=[count])
    assert epochs[0] == last and resumed == whole and len(seconds) == len(whole["loss"])
    assert np.array_equal(classifier.probabilities(VAL[0]), probabilities)
    with pytest.raises(UserError, match="interrupted run with other arguments: --seed 5 .now 6."):
        fit(classifier, **settings, **state | {"settings": {"--seed": 6}})


def test_a_fit_that_patience_had_ended_trains_no_further(classifier, tmp_path):
    """Killed between its last state and the record: the same command takes the best weights, and no step more."""
    how = {"epochs": 40, "patience": (1, 2), "state_file": tmp_path / "state.npz", "save_share": 1.0, "settings": {"--seed": 5}}
    whole, _ = fit(classifier, **how)
    probabilities, epochs = classifier.probabilities(VAL[0]), []
    assert len(whole["loss"]) < 40
    count = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: epochs.append(epoch))
    again, seconds = fit(classifier, **how, callbacks=[count])
    assert not epochs and again == whole and len(seconds) == len(whole["loss"])
    assert np.array_equal(classifier.probabilities(VAL[0]), probabilities)


def test_validation_images_are_scaled_once_and_in_place(classifier):
    """A search validates on the same images in every trial: their scaled copy is kept, and no second one is made."""
    import tracemalloc

    val = np.zeros((2_000, 8, 8, 3), np.uint8), np.zeros(2_000, np.int32)
    val[0][:] = RNG.integers(0, 256, val[0].shape)
    tracemalloc.start()
    try:
        images, _ = classifier.validation_data(val)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.3 * images.nbytes and np.array_equal(images, val[0].astype("float32") / 255)
    assert classifier.validation_data(val)[0] is images and classifier.validation_data(VAL)[0] is not images
