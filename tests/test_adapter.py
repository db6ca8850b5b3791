"""The adaptation step: its arithmetic, what learns, and resuming it."""

import keras
import numpy as np
import pytest

from Experiment.errors import UserError
from Experiment.files import read_json, write_json
from Models.adapter import Diffusion, WholeNetwork
from Models.class_encoder import class_encoder
from Models.denoising import NoisyLatents, denoising_model
from Models.diffusion import PREDICTION_TYPES, sample_latents, timestep_embedding
from Models.faster_layers import checkpoint_gradients
from Models.feed import noisy_batches, with_targets
from Models.fit_state import FitState
from Models.noise_schedule import STABLE_DIFFUSION
from Models.optimizer import SequentialAdam, StockAdam, paper_optimizer
from Models.training import SaveEpochs
from Models.weight_names import forget_epochs, remove_epochs
from Models.weights import load_weights
from tests.tiny_networks import small_unet

SCALE = 0.18215
RNG = np.random.default_rng(1)
MOMENTS = RNG.normal(size=(10, 4, 4, 8)).astype("float32")
LABELS = RNG.integers(0, 3, 10)
BATCH, STEPS = 4, 3  # the third batch has two samples


def batches(first_epoch=0, batch_size=BATCH, seed=5):
    return with_targets(noisy_batches(MOMENTS, LABELS, 3, batch_size, seed, first_epoch))


def epoch_of(stream, steps=STEPS):
    return [next(stream) for _ in range(steps)]


# Arithmetic


@pytest.mark.parametrize("log_variance, deviation", [
    (0.0, 1.0), (2.0, np.e), (-30.0, np.exp(-15)), (-90.0, np.exp(-15)), (20.0, np.exp(10)), (90.0, np.exp(10)),
])  # fmt: skip
def test_latents_are_drawn_from_clipped_moments(log_variance, deviation):
    moments = np.concatenate([np.full((1, 1, 1, 4), 3.0), np.full((1, 1, 1, 4), log_variance)], -1).astype("float32")
    latents = np.asarray(sample_latents(moments, np.float32([[[[0, 1, -1, 2]]]]), SCALE))
    assert latents[0, 0, 0] == pytest.approx(SCALE * (3 + deviation * np.array([0, 1, -1, 2])), rel=1e-6)


def expected_noisy_latents(inputs):
    mean, log_variance = np.split(inputs["moments"], 2, axis=-1)
    latents = SCALE * (mean + np.exp(log_variance / 2) * inputs["latent_noise"])
    alpha_bar = STABLE_DIFFUSION.alphas_cumprod[inputs["timestep"]][:, None, None, None]
    return np.sqrt(alpha_bar) * latents + np.sqrt(1 - alpha_bar) * inputs["noise"]


def test_what_the_unet_gets():
    inputs, _ = next(batches())
    layer = NoisyLatents(SCALE, STABLE_DIFFUSION, PREDICTION_TYPES["epsilon"])
    noisy, time, target = layer(*(inputs[k] for k in ("moments", "latent_noise", "noise", "timestep")))
    assert np.array_equal(target, inputs["noise"])
    assert np.abs(np.asarray(noisy) - expected_noisy_latents(inputs)).max() < 1e-5
    assert np.array_equal(time, timestep_embedding(inputs["timestep"]))


def test_the_loss_is_the_squared_error_of_the_noise(tiny_unet):
    unet, encoder = tiny_unet(), class_encoder(3, 4, (2, 3))
    model = denoising_model(unet, encoder, SCALE)
    model.compile(loss="mse")
    inputs, noise = next(batches())
    time, context = timestep_embedding(inputs["timestep"]), encoder.predict_on_batch(inputs["label"])
    prediction = unet.predict_on_batch([expected_noisy_latents(inputs), time, context])
    assert model.test_on_batch(inputs, noise) == pytest.approx(np.mean((prediction - noise) ** 2), rel=1e-5)
    assert np.array_equal(noise, inputs["noise"])


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_parts_of_a_batch_learn_what_the_batch_does(tiny_unet, samples):
    inputs, noise = next(batches(batch_size=samples))
    predictions, kernels = [], []
    for parts in (1, 2):
        keras.utils.set_random_seed(1)
        unet, encoder = tiny_unet(), class_encoder(3, 4, (2, 3))
        model = denoising_model(unet, encoder, SCALE, parts)
        model.compile(keras.optimizers.SGD(0.1), "mse")
        predictions.append(model.predict_on_batch(inputs))
        model.train_on_batch(inputs, noise)
        kernels.append([w.numpy() for w in model.weights])
    assert predictions[0].shape == noise.shape and np.abs(predictions[0] - predictions[1]).max() < 1e-6
    assert all(np.abs(one - two).max() < 1e-6 for one, two in zip(*kernels, strict=True))


def test_velocity_is_learned_as_velocity(tiny_unet):
    """The loss against the noise is the squared error of the predicted velocity."""
    unet, encoder = tiny_unet(), class_encoder(3, 4, (2, 3))
    model = denoising_model(unet, encoder, SCALE, prediction_type="v_prediction")
    model.compile(loss="mse")
    inputs, noise = next(batches())
    noisy = expected_noisy_latents(inputs)
    alpha_bar = STABLE_DIFFUSION.alphas_cumprod[inputs["timestep"]][:, None, None, None]
    latents = (noisy - np.sqrt(1 - alpha_bar) * noise) / np.sqrt(alpha_bar)
    velocity = np.sqrt(alpha_bar) * noise - np.sqrt(1 - alpha_bar) * latents
    time, context = timestep_embedding(inputs["timestep"]), encoder.predict_on_batch(inputs["label"])
    prediction = unet.predict_on_batch([noisy, time, context])
    assert model.test_on_batch(inputs, noise) == pytest.approx(np.mean((prediction - velocity) ** 2), rel=1e-3)


def test_the_loss_is_float32_in_mixed_precision(tiny_unet, float32_after):
    keras.config.set_dtype_policy("mixed_bfloat16")
    unet = tiny_unet()
    model = denoising_model(unet, class_encoder(3, 4, (2, 3)), SCALE)
    assert (unet.output.dtype, model.output.dtype) == ("bfloat16", "float32")


# Batches


def test_an_epoch_has_every_sample_once():
    for epoch in (0, 1):
        made = epoch_of(batches(epoch))
        assert [len(noise) for _, noise in made] == [4, 4, 2]
        inputs = {key: np.concatenate([x[key] for x, _ in made]) for key in made[0][0]}
        order = [int(np.flatnonzero((MOMENTS == m).all((1, 2, 3)))[0]) for m in inputs["moments"]]
        assert sorted(order) == list(range(10)) and order != list(range(10))
        assert np.array_equal(inputs["label"], np.eye(3)[LABELS[order]])
        assert inputs["timestep"].min() >= 0 and inputs["timestep"].max() < 1000 and len(set(inputs["timestep"])) > 5
        assert len(np.unique(np.stack([inputs["noise"], inputs["latent_noise"]]))) == 2 * 10 * 64


def flat(made):
    return np.concatenate([np.concatenate([value.ravel() for value in x.values()]) for x, _ in made])


def test_batches_are_a_function_of_seed_and_epoch():
    running = batches()
    epochs = [flat(epoch_of(running)) for _ in range(3)]
    for epoch, expected in enumerate(epochs):
        assert np.array_equal(flat(epoch_of(batches(first_epoch=epoch))), expected)
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(flat(epoch_of(batches(seed=6))), epochs[0])


def test_noise_of_a_sample_does_not_depend_on_the_batch_size():
    (whole, _), parts = next(batches(batch_size=10)), epoch_of(batches())
    for key, value in whole.items():
        assert np.array_equal(value, np.concatenate([x[key] for x, _ in parts]))


# Training


def test_optimizer_is_the_papers():
    optimizer = paper_optimizer(1e-4, 200)
    rates = [float(optimizer._learning_rate(step)) for step in (0, 100, 200)]
    assert rates == pytest.approx([1e-4, 5e-5, 0], abs=1e-9)
    assert (optimizer.decay, optimizer.epsilon, optimizer.clip) == (0.004, 1e-8, 10.0)


def test_on_a_gpu_the_optimizer_is_keras_own_with_the_same_state(monkeypatch):
    monkeypatch.setattr("Models.optimizer.on_gpu", lambda: True)
    stock = paper_optimizer(1e-4, 200, "bfloat16", average_power=2.0)
    monkeypatch.undo()
    sequential = paper_optimizer(1e-4, 200, average_power=2.0)
    assert (stock.weight_decay, stock.epsilon, stock.global_clipnorm) == (0.004, 1e-8, 10.0)
    assert type(stock) is StockAdam and type(sequential) is SequentialAdam
    for optimizer in (stock, sequential):
        optimizer.build([keras.Variable(np.zeros((2, 3)), name="a"), keras.Variable(np.zeros(3), name="b")])
    state, other = ([(v.name, v.shape) for v in optimizer.variables] for optimizer in (stock, sequential))
    assert state == other and len(state) == 1 + 6  # a run goes on from the state of the other kind of machine


def build(tiny_unet, trained, seed=1, epochs=4):
    keras.utils.set_random_seed(seed)
    parts = {"enc": class_encoder(3, 4, (2, 3)), "dif": tiny_unet()}
    for name, part in parts.items():
        part.trainable = name == trained
    model = denoising_model(parts["dif"], parts["enc"], SCALE)
    model.compile(paper_optimizer(1e-2, STEPS * epochs), "mse")
    model.optimizer.build(model.trainable_variables)
    return model, parts


def adaptation(parts, name):
    return WholeNetwork(Diffusion(None, parts["enc"], parts["dif"]), name)


def state_of(model, part, folder, settings=None):
    variables = [*part.variables, *model.optimizer.variables]
    return FitState(folder / "state.npz", settings or {"--lr": 0.1}, variables)


def weights_of(part):
    return [w.numpy() for w in part.weights]


@pytest.mark.parametrize("trained, frozen", [("enc", "dif"), ("dif", "enc")])
def test_only_one_part_learns(tiny_unet, trained, frozen):
    model, parts = build(tiny_unet, trained)
    before = {name: weights_of(part) for name, part in parts.items()}
    model.fit(batches(), steps_per_epoch=STEPS, epochs=1, shuffle=False, verbose=0)
    assert all(np.array_equal(a, b) for a, b in zip(before[frozen], weights_of(parts[frozen]), strict=True))
    assert all(not np.array_equal(a, b) for a, b in zip(before[trained], weights_of(parts[trained]), strict=True))


def train(tiny_unet, folder, epochs, seed, freq=1, offset=0):
    """Train to `epochs` of 4 as SD_adapting.py does: from what is saved in the folder, if anything is."""
    model, parts = build(tiny_unet, "enc", seed)
    adapted = adaptation(parts, "enc")
    state = state_of(model, parts["enc"], folder)
    done, history, _ = state.load()
    saved = []
    losses = history.get("loss", [])
    saver = SaveEpochs(adapted, folder, state, freq, epochs, offset, losses, lambda *call: saved.append(call))
    model.fit(batches(done), steps_per_epoch=STEPS, epochs=epochs, initial_epoch=done, callbacks=[saver], shuffle=False,
              verbose=0)  # fmt: skip
    return parts["enc"], saver.history, saved


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tiny_unet, tmp_path):
    """The UNet of both is the same; the encoder and the optimizer come from the state."""
    whole, whole_history, _ = train(tiny_unet, tmp_path / "whole", 4, seed=1)
    train(tiny_unet, tmp_path / "parts", 2, seed=1)
    resumed, history, saved = train(tiny_unet, tmp_path / "parts", 4, seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(weights_of(whole), weights_of(resumed), strict=True))
    assert history == whole_history and [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert saved == [(3, False), (4, True)]
    csv = [(tmp_path / name / "history.csv").read_text() for name in ("whole", "parts")]
    assert csv[0] == csv[1] and csv[0].splitlines()[0] == "epoch,loss"


def test_epochs_are_saved_at_the_frequency_and_at_both_ends(tiny_unet, tmp_path):
    encoder, history, saved = train(tiny_unet, tmp_path, 4, seed=1, freq=3, offset=10)
    assert saved == [(11, False), (13, False), (14, True)] and [row["epoch"] for row in history] == [11, 12, 13, 14]
    files = {path.name for path in tmp_path.iterdir()}
    epochs = {f"epoch{n}.weights.h5" for n in (11, 13, 14)}
    assert files == epochs | {f"{name}.json" for name in epochs} | {"state.npz", "history.csv"}
    loaded = load_weights(class_encoder(3, 4, (2, 3)), tmp_path / "epoch14.weights.h5")
    assert all(np.array_equal(a, b) for a, b in zip(weights_of(loaded), weights_of(encoder), strict=True))


def test_nothing_to_resume(tiny_unet, tmp_path):
    model, parts = build(tiny_unet, "enc")
    assert state_of(model, parts["enc"], tmp_path).load() == (0, {}, [])


def test_a_state_of_another_model_is_refused(tiny_unet, tmp_path):
    for trained in ("enc", "dif"):
        model, parts = build(tiny_unet, trained)
        state = state_of(model, parts[trained], tmp_path)
        if trained == "enc":
            state.save(1, {"loss": [0.5]})
    with pytest.raises(UserError, match="state.npz is of another model .*: start afresh with --restart"):
        state.load()


def test_a_state_of_other_arguments_is_refused(tiny_unet, tmp_path):
    model, parts = build(tiny_unet, "enc")
    state_of(model, parts["enc"], tmp_path).save(1, {"loss": [0.5]})
    with pytest.raises(UserError, match=r"--lr 0.1 \(now 0.2\)"):
        state_of(model, parts["enc"], tmp_path, {"--lr": 0.2}).load()


def test_a_loss_that_is_not_finite_ends_the_run_and_saves_nothing(tiny_unet, tmp_path):
    _, parts = build(tiny_unet, "enc")
    saver = SaveEpochs(adaptation(parts, "enc"), tmp_path, None, 1, 4, 0, [], None)
    with pytest.raises(UserError, match="loss of epoch 1 is nan: try a smaller --lr"):
        saver.on_epoch_end(0, {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_the_last_epochs_are_kept(tiny_unet, tmp_path):
    """And those of other trainings: up to the offset, after the last, and published ones."""
    others = ("epoch1.weights.h5", "epoch9.weights.h5", "epoch31.hdf5")
    for name in others:
        (tmp_path / name).touch()
    model, parts = build(tiny_unet, "enc")
    state = state_of(model, parts["enc"], tmp_path)
    saver = SaveEpochs(adaptation(parts, "enc"), tmp_path, state, 1, 4, 1, [], lambda *call: None, keep=2)
    model.fit(batches(), steps_per_epoch=STEPS, epochs=4, callbacks=[saver], shuffle=False, verbose=0)
    there = {path.name for path in tmp_path.glob("epoch*")}
    assert there == {*others} | {f"epoch{n}.weights.h5{end}" for n in (4, 5) for end in ("", ".json")}


def test_what_a_killed_process_left_undone_after_its_last_state_is_done(tiny_unet, tmp_path):
    for number in (1, 2, 3):
        (tmp_path / f"epoch{number}.weights.h5").touch()
    _, parts = build(tiny_unet, "enc")
    drawn = []
    saver = SaveEpochs(adaptation(parts, "enc"), tmp_path, None, 1, 4, 0, [], lambda *call: drawn.append(call), keep=2)
    saver.finish_saving(0)
    assert not drawn and len(list(tmp_path.glob("epoch*"))) == 3  # nothing is saved yet
    saver.finish_saving(3)
    assert drawn == [(3, False)] and sorted(path.name[5] for path in tmp_path.glob("epoch*")) == ["2", "3"]


def test_a_sheet_that_fails_ends_no_training(tiny_unet, tmp_path, caplog):
    model, parts = build(tiny_unet, "enc")
    state = state_of(model, parts["enc"], tmp_path)
    found = []

    def draw(epoch, last):
        found.append((epoch, state.epoch))
        raise MemoryError("no room for 80 images")

    saver = SaveEpochs(adaptation(parts, "enc"), tmp_path, state, 1, 2, 0, [], draw)
    model.fit(batches(), steps_per_epoch=STEPS, epochs=2, callbacks=[saver], shuffle=False, verbose=0)
    assert found == [(1, 1), (2, 2)]  # the state is saved before a picture is tried
    assert "epoch 1 cannot be drawn: no room for 80 images" in caplog.text


def test_records_of_what_began_later_go_with_a_restart(tmp_path):
    for start, epochs in (("", 2), ("_from2", 8), ("_from10", 5)):
        write_json(tmp_path / f"training{start}.json", {"arguments": {"epochs": epochs}})

    def records():
        return {path.name: read_json(path).get("replaced_after") for path in tmp_path.glob("training*.json")}

    before = {"training.json": None, "training_from2.json": None}
    forget_epochs(tmp_path, 10)
    assert records() == before
    for last in (6, 4, 5):  # epochs from there on are others now
        forget_epochs(tmp_path, last)
        assert records() == before | {"training_from2.json": min(6, last) if last == 6 else 4}
    forget_epochs(tmp_path, 2)
    assert records() == {"training.json": None}
    forget_epochs(tmp_path, 0)
    assert records() == {}


def test_restart_removes_what_the_run_made_and_no_more(tmp_path):
    names = [f"epoch{n}.weights.h5" for n in (1, 3, 5)]
    stay = {"epoch1.weights.h5", "epoch1.weights.h5.json", "epoch2.hdf5", "log.txt", "samples/epoch1.png", "samples/own.png"}
    sheets = [f"samples/epoch{n}.png" for n in (3, 4, 10)]  # epoch 4 is one that --keep has dropped
    (tmp_path / "samples").mkdir()
    for name in (*stay, *names, *(f"{name}.json" for name in names), *sheets, "loss.png"):
        (tmp_path / name).touch()
    assert remove_epochs(tmp_path, 2) == [3, 5]  # the run went on from epoch 2
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()} == stay


@pytest.mark.parametrize("kind", [SequentialAdam, StockAdam])
@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_updating_one_weight_after_another_is_adam(scale, kind):
    """Gradients whose norm is below and above the clip."""
    rng = np.random.default_rng(0)
    first = [rng.standard_normal(shape).astype("float32") for shape in ((30, 40), (40,), (3, 3, 5, 7))]
    ours, stock = ([keras.Variable(w) for w in first] for _ in range(2))
    optimizers = (
        kind(keras.optimizers.schedules.CosineDecay(0.1, 10), decay=0.004, clip=10.0),
        keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(0.1, 10), epsilon=1e-8, weight_decay=0.004, global_clipnorm=10.0
        ),
    )
    for _ in range(5):
        gradients = [scale * rng.standard_normal(w.shape).astype("float32") for w in first]
        for optimizer, variables in zip(optimizers, (ours, stock)):
            optimizer.apply([keras.ops.convert_to_tensor(g) for g in gradients], variables)
    for a, b, w in zip(ours, stock, first):
        assert np.abs(b.numpy() - w).max() > 0.1 and np.abs(a.numpy() - b.numpy()).max() < 1e-5


@pytest.mark.parametrize("learns", ["unet", "encoder"])
def test_gradient_checkpoints_change_no_gradient(learns):
    results = []
    for checkpointed in (False, True):
        unet, encoder = small_unet(), class_encoder(4, 6, (3, 5))
        for model in (unet, encoder):
            rng = np.random.default_rng(1)
            model.set_weights([rng.normal(0.05, 0.2, w.shape) for w in model.get_weights()])
        part = unet if learns == "unet" else encoder
        encoder.trainable, unet.trainable, before = part is encoder, part is unet, part.get_weights()
        if checkpointed:
            checkpoint_gradients(unet)
        model = denoising_model(unet, encoder, 1.0)
        model.compile(keras.optimizers.SGD(1.0), "mse")
        moments = np.random.default_rng(2).standard_normal((6, 4, 4, 8)).astype("float32")
        model.fit(with_targets(noisy_batches(moments, np.arange(6) % 4, 4, 3, 0, 0)), steps_per_epoch=1, verbose=0)
        results.append(part.get_weights())
    steps = [np.abs(plain - start).max() for plain, start in zip(results[0], before)]
    # A normalisation takes away what some biases add: their gradients are rounding alone.
    for plain, again, step in zip(*results, steps):
        assert np.abs(plain - again).max() <= max(1e-3 * step, 1e-5 * max(steps))
    assert sum(step > 1e-2 * max(steps) for step in steps) > len(steps) / 2
