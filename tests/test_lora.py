"""Low-rank updates of the UNet: their arithmetic, what learns, their files, and the traps of Keras's LoRA."""

import h5py
import keras
import numpy as np
import pytest
from keras_cv.src.models.stable_diffusion.diffusion_model import CrossAttention

from Experiment.errors import UserError
from Models import faster_layers
from Models.adapter import Diffusion, WholeNetwork, adaptation
from Models.backbones import Backbone
from Models.class_encoder import class_encoder
from Models.faster_layers import all_layers, enable_low_rank
from Models.feed import noisy_batches, with_targets
from Models.fit_state import FitState
from Models.lora import LowRank, UNetEpochs, kernel_shapes, merged_unet, places, target_layers
from Models.lora_files import Facts, check_updates, read_facts, read_updates, refuse_other_base, write_updates
from Models.runtime import precision
from Models.training import SaveEpochs, compile_model
from Models.weight_cards import read_card
from Models.weight_files import PackagedFile
from Models.weights import save_weights
from tests.tiny_networks import small_unet

RNG = np.random.default_rng(1)
MOMENTS, LABELS = RNG.normal(size=(6, 4, 4, 8)).astype("float32"), np.arange(6) % 3


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A backbone whose weights are no round numbers in bfloat16."""
    folder = tmp_path_factory.mktemp("weights")
    unet = small_unet()
    rng = np.random.default_rng(0)
    unet.set_weights([rng.normal(0.02, 0.05, w.shape) for w in unet.get_weights()])
    unet.save_weights(folder / "unet.weights.h5")
    return Backbone(
        name="small", image_size=16, downsampling=4, latent_scale=1.0, context_shape=(3, 5), hidden_units=4, block=4,
        build={"unet": lambda backbone: small_unet()}, files={"unet": PackagedFile("unet.weights.h5", folder)},
    )  # fmt: skip


def facts_of(backbone, rank=2, alpha=4.0, targets="attention"):
    return Facts(rank, alpha, targets, backbone.weights_hash("unet"))


def diffusion_of(backbone):
    keras.utils.set_random_seed(1)
    return Diffusion(backbone, class_encoder(3, 4, (3, 5)), backbone.unet())


def some_updates(unet, facts, seed=2):
    """{place: (A, B)} of numbers that count."""
    rng = np.random.default_rng(seed)
    shapes = kernel_shapes(target_layers(unet, facts.targets))
    return {
        place: tuple(rng.normal(0, 0.1, s).astype("float32") for s in ((*shape[:-1], facts.rank), (facts.rank, shape[-1])))
        for place, shape in shapes.items()
    }  # fmt: skip


@pytest.fixture(scope="module")
def unet(backbone):
    """A UNet to look at."""
    return backbone.unet()


@pytest.fixture
def epoch(backbone, unet, tmp_path):
    """A file of low-rank updates."""
    facts = facts_of(backbone)
    write_updates(tmp_path / "epoch3.weights.h5", facts, some_updates(unet, facts))
    return tmp_path / "epoch3.weights.h5"


# Arithmetic


@pytest.mark.parametrize("policy, tolerance", [("float32", 3e-5), ("mixed_bfloat16", 3e-2), ("bfloat16", 3e-2)])
@pytest.mark.parametrize("make, shape", [
    (lambda dtype: keras.layers.Dense(7, activation="tanh", dtype=dtype), (5, 11)),
    (lambda dtype: keras.layers.Dense(7, use_bias=False, dtype=dtype), (5, 11)),
    (lambda dtype: keras.layers.Conv2D(7, 3, strides=2, dtype=dtype), (9, 9, 11)),
    (lambda dtype: keras.layers.Conv2D(640, 3, dtype=dtype), (4, 4, 640)),  # a product of patches
])  # fmt: skip
@pytest.mark.parametrize("on_gpu", [False, True])
def test_layers_compute_what_keras_does(policy, tolerance, make, shape, on_gpu):
    rng = np.random.default_rng(3)
    stock, ours = make(policy), make(policy)
    for layer in (stock, ours):
        layer.build((None, *shape))
    values = [rng.normal(0, 0.3 / shape[-1] ** 0.5, w.shape) for w in stock.weights]
    for layer in (stock, ours):
        layer.set_weights(values)
    if not on_gpu:
        ours.__class__ = faster_layers.FASTER.get(type(ours), type(ours))
    x = rng.normal(0, 1, (3, *shape)).astype("float32")
    plain = np.asarray(stock(x), "float32")
    stock.enable_lora(2, lora_alpha=3)
    enable_low_rank(ours, 2, 3.0, seed=1)
    assert np.abs(np.asarray(ours(x), "float32") - plain).max() < tolerance * np.abs(plain).max()  # B begins at 0
    for name in ("lora_kernel_a", "lora_kernel_b"):
        value = rng.normal(0, 0.2, getattr(stock, name).shape)
        getattr(stock, name).assign(value)
        getattr(ours, name).assign(value)
    expected = np.asarray(stock(x), "float32")
    assert np.abs(expected - plain).max() > 0.1
    assert np.abs(np.asarray(ours(x), "float32") - expected).max() < tolerance * np.abs(expected).max()


def test_places_are_those_of_all_layers_and_the_same_in_every_network(unet):
    found = places(unet)
    kinds = (keras.layers.Dense, keras.layers.Conv2D)
    assert len(found) == len(set(map(id, found.values())))
    assert {id(layer) for layer in found.values()} == {id(x) for x in all_layers(unet) if isinstance(x, kinds)}
    again = places(small_unet())
    assert list(again) == list(found)
    assert [x.kernel.shape for x in again.values()] == [x.kernel.shape for x in found.values()]
    attention = target_layers(unet, "attention")
    blocks = [layer for layer in all_layers(unet) if isinstance(layer, CrossAttention)]
    assert len(attention) == 4 * len(blocks) == 8 and len(target_layers(unet, "all")) == len(found) == 18
    assert {place.split(".")[-1] for place in attention} == {"to_q", "to_k", "to_v", "out_proj"}


def test_a_unet_without_such_layers_is_refused(tiny_unet):
    with pytest.raises(UserError, match="--lora_targets attention: tiny_unet has no such layers"):
        target_layers(tiny_unet(), "attention")


# Training


def train(backbone, folder, epochs, policy="float32", checkpoints=False, facts=None, start=None, seed=5):
    """Train to `epochs` of 4, 2 steps each, from what is saved in the folder; returns what was adapted."""
    with precision(policy):
        diffusion = diffusion_of(backbone)
    adapted = adaptation(diffusion, "dif", {"classes": ["a", "b", "c"]}, facts or facts_of(backbone), seed, start)
    model = compile_model(adapted, 0.05, 8, policy, checkpoints)
    state = FitState(folder / "state.npz", {"--lr": 0.05}, [*adapted.variables, *model.optimizer.variables])
    done, history, _ = state.load()
    saver = SaveEpochs(adapted, folder, state, 1, epochs, 0, history.get("loss", []), lambda *call: None)
    batches = with_targets(noisy_batches(MOMENTS, LABELS, 3, 3, seed, done))
    model.fit(batches, steps_per_epoch=2, epochs=epochs, initial_epoch=done, callbacks=[saver], shuffle=False, verbose=0)
    return adapted, model


def numbers(variables):
    return [np.asarray(x.numpy(), "float32") for x in variables]


def same(ours, others):
    return all(np.array_equal(a, b) for a, b in zip(ours, others, strict=True))


@pytest.mark.parametrize("policy, targets", [("float32", "all"), ("mixed_bfloat16", "attention")])
def test_updates_learn_and_nothing_else(backbone, tmp_path, policy, targets):
    """Not a bit of kernels, biases and normalisations, which are held in bfloat16 where arithmetic is."""
    with precision(policy):
        base, encoder = numbers(backbone.unet().weights), numbers(diffusion_of(backbone).encoder.weights)
    fresh = LowRank(diffusion_of(backbone), facts_of(backbone, targets=targets), 5)
    first = numbers(fresh.variables)
    assert all(np.abs(x).max() > 0 for x in first[::2]) and all(np.abs(x).max() == 0 for x in first[1::2])
    adapted, model = train(backbone, tmp_path, 1, policy, facts=facts_of(backbone, targets=targets))
    learned, ids = numbers(adapted.variables), {id(x) for x in adapted.variables}
    assert not any(np.array_equal(a, b) for a, b in zip(first, learned))  # A too, since B is no longer 0
    assert same(base, numbers(w for w in adapted.diffusion.unet.weights if id(w) not in ids))
    assert same(encoder, numbers(adapted.diffusion.encoder.weights))
    assert {id(x) for x in model.trainable_variables} == ids and adapted.parameters == sum(x.size for x in learned)
    assert all(w.dtype == "float32" for w in adapted.variables)


def test_the_base_does_not_learn_again_where_a_model_is_made_trainable(backbone):
    """Keras keeps a kernel among those that `trainable = True` frees."""
    adapted = LowRank(diffusion_of(backbone), facts_of(backbone), 5)
    adapted.diffusion.unet.trainable = True
    assert len(adapted.diffusion.unet.trainable_variables) > len(adapted.variables)
    adapted.freeze_the_rest()
    assert {id(x) for x in adapted.diffusion.unet.trainable_variables} == {id(x) for x in adapted.variables}


def test_the_first_values_are_a_function_of_the_seed(backbone):
    made = [numbers(LowRank(diffusion_of(backbone), facts_of(backbone), seed).variables) for seed in (5, 5, 6)]
    assert same(made[0], made[1]) and not same(made[0], made[2])
    assert len({x.tobytes() for x in made[0][::2]}) == len(made[0][::2])  # each layer's are others


def test_alpha_counts(backbone):
    outputs, inputs = [], [np.ones((2, *shape), "float32") for shape in ((4, 4, 4), (320,), (3, 5))]
    for alpha in (4.0, 8.0):
        adapted = LowRank(diffusion_of(backbone), facts_of(backbone, alpha=alpha), 5)
        for pair in adapted.layers.values():
            pair.lora_kernel_b.assign(keras.ops.full(pair.lora_kernel_b.shape, 0.01))
        outputs.append(np.asarray(adapted.diffusion.unet(inputs)))
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3 * np.abs(outputs[0]).max()


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit_and_goes_on_learning(backbone, tmp_path):
    """Keras sets A and B to 0 where weights are loaded into a layer that has them: neither would learn again."""
    whole, _ = train(backbone, tmp_path / "whole", 3)
    half, _ = train(backbone, tmp_path / "parts", 2)
    resumed, _ = train(backbone, tmp_path / "parts", 3)
    assert same(numbers(whole.variables), numbers(resumed.variables))
    assert not any(np.array_equal(a, b) for a, b in zip(numbers(half.variables), numbers(resumed.variables)))
    files = [(tmp_path / name / "epoch3.weights.h5").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]
    assert (tmp_path / "whole/state.npz").stat().st_size < 3 * len(files[0]) + 100_000  # the base is not in it


def test_a_run_goes_on_from_an_epoch(backbone, tmp_path):
    first, _ = train(backbone, tmp_path / "first", 1)
    again, _ = train(backbone, tmp_path / "again", 1, start=tmp_path / "first/epoch1.weights.h5")
    start = LowRank(diffusion_of(backbone), facts_of(backbone), 7)
    start.load(tmp_path / "first/epoch1.weights.h5")
    assert same(numbers(start.variables), numbers(first.variables))
    assert not any(np.array_equal(a, b) for a, b in zip(numbers(first.variables), numbers(again.variables)))


def test_gradient_checkpoints_change_no_gradient(backbone, tmp_path):
    plain, again = (numbers(train(backbone, tmp_path / str(c), 1, checkpoints=c)[0].variables) for c in (False, True))
    assert all(np.abs(a - b).max() < 1e-3 * max(1e-3, np.abs(a).max()) for a, b in zip(plain, again, strict=True))


# Epoch files


def test_an_epoch_holds_the_updates_alone_and_names_its_base(backbone, tmp_path):
    adapted, _ = train(backbone, tmp_path, 1)
    file = tmp_path / "epoch1.weights.h5"
    assert read_facts(file) == adapted.updates == facts_of(backbone)
    assert read_card(file)["classes"] == ["a", "b", "c"]
    size = file.stat().st_size
    assert 4 * adapted.parameters < size <= adapted.bytes[0] < size + 50_000
    updates = read_updates(file, adapted.kernels)
    assert same([x for pair in updates.values() for x in pair], numbers(adapted.variables))


def test_other_epochs_are_none_of_updates(golden, backbone, tmp_path):
    for file in (golden / "class_encoder_units12_tokens5_dim8_classes10.hdf5", backbone.files["unet"].path()):
        assert read_facts(file) is None
    (tmp_path / "epoch1.hdf5").write_text("version https://git-lfs.github.com/spec/v1")
    assert read_facts(tmp_path / "epoch1.hdf5") is None and read_facts(tmp_path / "nowhere") is None


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_epochs_of_all_kinds_are_loaded_in_any_order(backbone, unet, tmp_path, policy):
    """The UNet is what it would be had the merged weights been loaded; of an epoch loaded before nothing is left."""
    kinds = {"attention": facts_of(backbone), "all": facts_of(backbone, 1, 2.0, "all")}
    files = {name: tmp_path / f"{name}.weights.h5" for name in (*kinds, "whole")}
    for name, facts in kinds.items():
        write_updates(files[name], facts, some_updates(unet, facts))
    whole = backbone.unet()
    whole.set_weights([0.5 * w for w in whole.get_weights()])
    save_weights(whole, files["whole"])
    expected = {}
    for name in files:
        if name != "whole":
            save_weights(merged_unet(backbone, None, files[name]), tmp_path / f"merged {name}.weights.h5")
        with precision(policy):
            loaded = backbone.unet(pretrained=False)
        loaded.load_weights(files[name] if name == "whole" else tmp_path / f"merged {name}.weights.h5")
        expected[name] = numbers(loaded.weights)
    assert not same(expected["attention"], expected["all"])
    with precision(policy):
        adapted = WholeNetwork(diffusion_of(backbone), "dif")
    assert adapted.network.weights[0].dtype == ("float32" if policy == "float32" else "bfloat16")
    for name in ("attention", "all", "attention", "whole", "attention", "whole", "all"):
        adapted.check(files[name])
        adapted.load(files[name])
        assert same(numbers(adapted.network.weights), expected[name]), name


def test_updates_of_another_base_are_refused(backbone, epoch):
    ours = backbone.weights_hash("unet")
    assert refuse_other_base([epoch, None], lambda: ours) is True
    assert refuse_other_base([None, backbone.files["unet"].path()], lambda: pytest.fail("not needed")) is False
    with pytest.raises(UserError, match=rf"{epoch} holds .* of another pretrained UNet \({ours[:12]}\) than .* \(0000"):
        refuse_other_base([epoch], lambda: "0" * 64)


@pytest.mark.parametrize("changes", [{"rank": 3}, {"alpha": 1.0}, {"targets": "all"}])
def test_training_does_not_go_on_with_other_updates(backbone, epoch, changes):
    adapted = LowRank(diffusion_of(backbone), facts_of(backbone, **changes), 5)
    with pytest.raises(
        UserError, match="holds low-rank updates of rank 2, alpha 4, targets attention: low-rank updates of rank"
    ):
        adapted.load(epoch)  # fmt: skip


def test_training_does_not_go_on_from_a_whole_network(backbone):
    with pytest.raises(UserError, match="unet.weights.h5 holds a whole UNet: low-rank updates of rank 2"):
        facts_of(backbone).refuse_to_continue(backbone.files["unet"].path())


def test_updates_that_are_not_finite_are_not_saved(backbone, tmp_path):
    adapted = LowRank(diffusion_of(backbone), facts_of(backbone), 5)
    adapted.variables[3].assign(np.full(adapted.variables[3].shape, np.nan))
    with pytest.raises(UserError, match=r"no longer finite, and not saved: \d+\..*\.b"):
        adapted.save(tmp_path / "epoch1.weights.h5")
    assert not list(tmp_path.iterdir())


def rewrite(file, **attributes):
    for name, value in attributes.items():
        file.attrs[name] = value


def replace(file, change):
    name = sorted(file)[0]
    array = file[name][()]
    del file[name]
    change(file, name, array)


DAMAGE = {
    "a later version": (lambda f: rewrite(f, low_rank_updates=2), "of version 2; this program reads 1"),
    "no rank": (lambda f: f.attrs.pop("rank"), "damaged file of low-rank updates"),
    "rank 0": (lambda f: rewrite(f, rank=0), "damaged file of low-rank updates: rank 0"),
    "other rank": (lambda f: rewrite(f, rank=5), r"other sizes: .* where the model has \[\(\d+, 5\)"),
    "alpha": (lambda f: rewrite(f, alpha=np.nan), "damaged file of low-rank updates: rank 2, alpha nan"),
    "targets": (lambda f: rewrite(f, targets=np.bytes_("none")), "damaged file of low-rank updates"),
    "text": (lambda f: rewrite(f, base=np.bytes_(b"\xff\x00\n")), "damaged file of low-rank updates"),
    "other targets": (lambda f: rewrite(f, targets=np.bytes_("all")), "of other layers: none where the UNet has"),
    "fewer": (lambda f: f.pop(sorted(f)[0]), "of other layers: none where the UNet has"),
    "more": (lambda f: f.create_dataset("x.a", data=np.zeros(3)), r"of other layers: \['x.a'\]"),
    "group": (lambda f: f.create_group("x"), r"of other layers: \['x'\]"),
    "nan": (lambda f: replace(f, lambda f, n, x: f.create_dataset(n, data=x * np.float32("nan"))), "is not finite"),
    "dtype": (lambda f: replace(f, lambda f, n, x: f.create_dataset(n, data=x.astype("float16"))), "is not float32"),
    "shape": (lambda f: replace(f, lambda f, n, x: f.create_dataset(n, data=x[1:])), "of layers of other sizes"),
    "group for an array": (lambda f: replace(f, lambda f, n, x: f.create_group(n)), "damaged file of low-rank updates"),
    "link": (lambda f: replace(f, lambda f, n, x: f.__setitem__(n, h5py.SoftLink("/elsewhere"))), "is a link"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_updates_are_refused(unet, epoch, damage):
    change, message = DAMAGE[damage]
    with h5py.File(epoch, "r+") as file:
        change(file)
    with pytest.raises(UserError, match=message):
        kernels = kernel_shapes(target_layers(unet, read_facts(epoch).targets))
        check_updates(epoch, kernels)
        read_updates(epoch, kernels)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.99])
def test_updates_cut_short_are_refused(backbone, unet, epoch, share):
    raw = epoch.read_bytes()
    epoch.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(UserError, match="epoch3.weights.h5"):
        UNetEpochs(unet, backbone).load(epoch)
