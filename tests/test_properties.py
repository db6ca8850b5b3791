"""What holds for any input, checked on random ones. `make fuzz` tries many more of them."""

import argparse
import importlib
import json
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cli import flags
from cli.tasks import shard
from Data.loaders import load_splits
from Data.npz import NPZ_KEYS
from Data.numbering import Balanced
from Data.registry import dataset_spec
from Data.synthetic import MANIFEST, SyntheticWriter, find_synthetic
from Experiment.errors import UserError
from Experiment.files import read_json
from Experiment.paths import size_from_name, size_name
from Models.class_encoder import class_encoder
from Models.sampler import Sampler, generate_images
from tests.conftest import actions_of, synthetic_files

settings.register_profile("long", max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
settings.register_profile("short", max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile("long" if os.environ.get("FUZZ") else "short")

SCRIPTS = ["SD_adapting", "hyp_opt", "generate_dataset", "classifier_training", "pipeline", "export_dataset", "audit_dataset"]
TYPES = {"integer": flags.integer(1, 1000), "number": flags.number(0, 1000), "boolean": flags.boolean, "exp": flags.experiment_name,
         "dataset": flags.dataset_name, "shard": shard}  # fmt: skip
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4))


# Arguments


@pytest.mark.parametrize("kind", TYPES)
@given(text=st.text(max_size=80) | st.integers().map(str) | st.floats().map(str))
def test_a_flag_type_takes_text_or_says_what_is_wrong(kind, text):
    try:
        value = TYPES[kind](text)
    except (argparse.ArgumentTypeError, ValueError, OSError):  # argparse makes one line of the first two
        assert kind != "boolean" or text.lower() not in ("true", "false")
        return
    if kind in ("integer", "number"):
        assert 0 <= value <= 1000
    elif kind == "exp":
        assert "/" not in value and not value.startswith(".") and len(value) <= 64
    elif kind == "shard":
        assert 1 <= value[0] <= value[1]


def flags_of(script):
    return sorted(flag for action in actions_of(script) for flag in action.option_strings if flag.startswith("--"))


@pytest.mark.parametrize("script", SCRIPTS)
@given(data=st.data())
def test_any_command_line_is_parsed_or_refused_in_one_line(script, data, capsys, tmp_path):
    values = st.text(max_size=12) | st.sampled_from(["digits", "mini", "enc", "dif", "True", "1", "0", "-1", "nan", "1/2"])
    argv = [*data.draw(st.lists(st.sampled_from(flags_of(script)) | values, max_size=8)), "--root", str(tmp_path)]
    module = importlib.import_module(script)
    try:
        args = module.parse_args(argv)
    except SystemExit as ended:
        output = capsys.readouterr()
        assert ended.code in (0, 2)
        assert ended.code == 0 or len(output.err.splitlines()) == 1 and "error: " in output.err
        return
    assert args.root.is_absolute() and 0 <= args.seed < 2**63
    assert not list(tmp_path.iterdir())


# Files


@given(content=JSON)
def test_any_json_is_a_manifest_or_refused(content, tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    (root / "10Enc1Dif1Is5Ugs1").mkdir()
    (root / "10Enc1Dif1Is5Ugs1" / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(UserError):  # it never describes these images: there are none
        synthetic_files(find_synthetic(root, 2, 5), 2)


@given(content=JSON | st.binary(max_size=50))
def test_read_json_gives_an_object_or_refuses(content, tmp_path_factory):
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    try:
        assert isinstance(read_json(path), dict)
    except UserError as error:
        assert str(path) in str(error)


ARRAYS = st.sampled_from([np.uint8, np.int64, np.float32, np.bool_, "U3", "M8[s]", "c8"]).flatmap(
    lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)))  # fmt: skip


@given(arrays=st.dictionaries(st.sampled_from(NPZ_KEYS), ARRAYS, min_size=4), data=st.data())
def test_any_npz_becomes_three_splits_or_is_refused(arrays, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("npz") / "own.npz"
    if data.draw(st.booleans()):  # often enough it is right but for one array
        right = {key: np.zeros((4, 3, 3), np.uint8) if key.endswith("images") else np.arange(4) % 2 for key in NPZ_KEYS}
        arrays = right | dict(list(arrays.items())[:1])
    np.savez(path, **arrays)
    try:
        spec = dataset_spec(str(path))
        splits = load_splits(spec, "unused", side=spec.resolution)
    except UserError:
        return
    for split in splits:
        assert split.images.shape == (len(split.labels), spec.resolution, spec.resolution, 3)
        assert split.labels.min() >= 0 and split.labels.max() < spec.num_classes


# Sizes and shards


@given(total=st.integers(0, 10**6), classes=st.integers(2, 1000))
def test_totals_are_exact_and_even(total, classes):
    counts = Balanced(classes).counts(total)
    assert sum(counts) == total and max(counts) - min(counts) <= 1 and counts == sorted(counts, reverse=True)


@given(count=st.integers(1, 10**9))
def test_a_size_can_be_read_from_its_name(count):
    assert size_from_name(f"{size_name(count)}Enc1Dif1Is5Ugs1.5") == count


@given(
    counts=st.lists(st.integers(0, 6), min_size=2, max_size=5),
    parts=st.integers(1, 9),
    block=st.integers(1, 9),
    there=st.sets(st.integers(0, 30)),
)
def test_shards_divide_what_is_missing(counts, parts, block, there, tmp_path_factory):
    writer = SyntheticWriter(tmp_path_factory.mktemp("set"), counts, block)
    writer.begin()
    every = [(label, index) for label, count in enumerate(counts) for index in range(count)]
    for i in there:
        if i < len(every):
            label, index = every[i]
            writer.file(index * len(counts) + label).touch()
    shards = [writer.missing((part, parts)).tolist() for part in range(1, parts + 1)]
    made = [writer.place(number) for shard in shards for number in shard]
    assert len(made) == len(set(made)) and set(made) == {pair for i, pair in enumerate(every) if i not in there}
    # No two shards compute the same block.
    blocks = [number // block for shard in shards for number in {n // block * block for n in shard}]
    assert len(blocks) == len(set(blocks))
    writer.close()


@pytest.fixture(scope="module")
def models():
    import keras

    latent, time, context = keras.Input((2, 2, 4)), keras.Input((320,)), keras.Input((2, 3))
    condition = keras.layers.Dense(4)(time) + keras.layers.Dense(4)(keras.layers.Flatten()(context))
    condition = keras.layers.Activation("tanh")(condition)
    noise = keras.layers.Add()([latent, keras.layers.Reshape((1, 1, 4))(condition)])
    return Sampler(keras.Model([latent, time, context], noise)), class_encoder(5, 4, (2, 3))


def generated(models, numbers, **how):
    made = generate_images(*models, numbers, num_steps=2, seed=3, **how)
    return {int(number): latents for batch in made for number, latents in zip(*batch[:2])}


@given(data=st.data(), block=st.integers(2, 7), scale=st.sampled_from([0.0, 1.0, 1.5]))
def test_an_image_depends_on_seed_and_number_alone(models, data, block, scale):
    """Whatever else is made: bit for bit in blocks of one size, to the last digits of float32 in others."""
    numbers = sorted(data.draw(st.lists(st.integers(0, 19), min_size=1, unique=True)))
    whole, same, other = (
        generated(models, n, block=b, scale=scale) for n, b in ((range(20), block), (numbers, block), (numbers, 20))
    )
    assert list(same) == list(other) == numbers
    assert all(np.array_equal(same[n], whole[n]) and np.allclose(other[n], whole[n], atol=1e-4) for n in numbers)
