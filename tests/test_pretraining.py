"""Pretraining: the corpus, fits that go on after a kill, and the record that says what is done."""

import io
import json
import shutil
import tarfile
from dataclasses import dataclass

import keras
import numpy as np
import pytest
from filelock import FileLock
from keras import layers
from PIL import Image

from Experiment.errors import UserError
from Experiment.files import file_hash
from Models.fit_state import FitState
from Pretraining import __main__ as pretraining
from Pretraining import corpus, draws, photographs, resumable
from Pretraining.crops import all_words, caption, crops
from Pretraining.glyphs import WORDS
from Pretraining.half import save_half
from Pretraining.kinds import KINDS, Kind
from Pretraining.photographs import SOURCES, listed_photographs, read_photographs, source_hashes
from Pretraining.record import Record
from tests.conftest import Stopped

CATEGORIES = ("caltech101/ant", "caltech101/tick", "trash/glass")


def write_tar(path, categories, each=3, seed=1):
    rng = np.random.default_rng(seed)
    with tarfile.open(path, "w") as archive:
        for category in categories:
            for number in range(each):
                coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3)).astype("uint8"))
                file = io.BytesIO()
                coarse.resize((128, 96), Image.BICUBIC).save(file, "JPEG")
                member = tarfile.TarInfo(f"{category}/{number:04d}.jpg")
                member.size = file.tell()
                file.seek(0)
                archive.addfile(member, file)


@pytest.fixture
def folder(tmp_path):
    """Photographs of three categories in two tar files."""
    return write_photographs(tmp_path / "photographs")


def write_photographs(folder):
    folder.mkdir()
    write_tar(folder / "trash.tar", ["glass"])
    write_tar(folder / "caltech101.tar", ["tick", "ant"])  # not in the order of their names
    return folder


def glyphs_in_no_time(seed, count, processes=None):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 32, 32, 3)).astype("uint8"), np.ones((count, 8), "int32")


@pytest.fixture
def few_glyphs(monkeypatch):
    monkeypatch.setattr(corpus, "make_corpus", glyphs_in_no_time)


# Photographs


def test_photographs_are_listed_by_name_and_read_in_that_order(folder):
    listed, categories = listed_photographs(folder, ["trash.tar", "caltech101.tar"])
    assert categories == list(CATEGORIES)
    assert [number for *_, number in listed] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert listed[3] == ("caltech101.tar", "tick/0000.jpg", 1)
    read = list(read_photographs(folder, listed[::4]))
    assert [picture.shape for picture in read] == [(96, 128, 3)] * 3 and read[0].dtype == np.uint8
    assert not np.array_equal(read[0], read[1])


def test_other_photographs_are_refused_unless_asked_for(folder):
    with pytest.raises(UserError, match="photographs has no grocery.tar"):
        source_hashes(folder)
    write_tar(folder / "grocery.tar", ["Kiwi"])
    with pytest.raises(UserError, match="caltech101.tar has SHA-256 .*, not a2434316: .* --other_photographs"):
        source_hashes(folder)
    names = ["caltech101.tar", "grocery.tar", "trash.tar"]
    assert source_hashes(folder, other=True) == {name: file_hash(folder / name) for name in names}
    with pytest.raises(UserError, match="holds no tar file"):
        source_hashes(folder.parent, other=True)


def test_the_pinned_photographs_are_taken(folder, monkeypatch):
    write_tar(folder / "grocery.tar", ["Kiwi"])
    ours = [
        photographs.Source(source.file, file_hash(folder / source.file), *list(vars(source).values())[2:]) for source in SOURCES
    ]
    monkeypatch.setattr(photographs, "SOURCES", ours)
    assert source_hashes(folder) == {source.file: source.sha256 for source in ours}


def test_a_broken_tar_file_is_one_line(tmp_path):
    (tmp_path / "trash.tar").write_bytes(b"nonsense" * 100)
    with pytest.raises(UserError, match="trash.tar is not a readable tar file"):
        listed_photographs(tmp_path, ["trash.tar"])


# Corpus


def test_captions_say_what_is_seen():
    share = np.array([1.0, 0.8, 0.6, 0.4])
    said = caption(7, np.array([False, True, False, False]), share, np.array([0.5, 0.2, 0.8, 0.5]),
                   np.array([0.5, 0.7, 0.3, 0.5]))  # fmt: skip
    of = dict(zip(WORDS, said.T))
    assert said.dtype == np.int32 and (of["character"] == WORDS["character"] + 7).all()
    added = all_words(CATEGORIES)
    assert added["character"] == WORDS["character"] + 3
    assert (of["scale"] - WORDS["scale"]).tolist() == [0, 1, 2, 3]  # whole, most, part, detail
    assert (of["slant"] - WORDS["slant"]).tolist() == [1, 0, 2, 1]  # centre, left, right, centre
    assert (of["aspect"] - WORDS["aspect"]).tolist() == [1, 2, 0, 1]  # middle, bottom, top, middle
    assert (of["palette"] - WORDS["palette"]).tolist() == [0, 1, 0, 0]
    assert not of["font"].any() and not of["stroke"].any() and not of["resolution"].any()
    assert all((numbers < added[word]).all() for word, numbers in of.items() if word != "character")


def test_crops_show_the_place_that_their_captions_tell():
    """In a photograph that grows brighter to the right and redder to the bottom, places can be read off the pixels."""
    y, x = np.mgrid[0:96, 0:192]
    photograph = np.stack([y * 255 / 95, x * 255 / 191, x * 255 / 191], axis=-1).astype("uint8")
    images, said = crops(photograph, 0, np.random.default_rng(1), 400)
    of = dict(zip(WORDS, said.T))
    assert images.shape == (400, 32, 32, 3) and images.dtype == np.uint8
    grey = of["palette"] == WORDS["palette"] + 1
    assert 0.03 < grey.mean() < 0.2 and np.ptp(images[grey].astype(int), axis=-1).max() == 0
    mirrored = images[:, :, :8, 1].mean((1, 2)) > images[:, :, -8:, 1].mean((1, 2))
    assert 0.4 < mirrored.mean() < 0.6
    for word, channel, flipped in (("slant", 1, mirrored), ("aspect", 0, np.zeros(400, bool))):
        brightness = images[..., channel].mean((1, 2))
        places = of[word] - WORDS[word]
        at = [brightness[~grey & ~flipped & (places == place)].mean() for place in range(3)]
        assert at[0] + 10 < at[1] < at[2] - 10
    mirrored_at = [images[~grey & mirrored & (of["slant"] - WORDS["slant"] == place), ..., 1].mean() for place in range(3)]
    assert mirrored_at[0] > mirrored_at[1] > mirrored_at[2]  # the left of a mirrored picture was its right
    contrast = images[~grey, :, :, 0].std((1, 2))
    seen = of["scale"][~grey] - WORDS["scale"]
    assert contrast[seen == 0].mean() > 1.8 * contrast[seen == 3].mean()


def recipe(folder, seed=5, images=41, glyphs=12):
    return corpus.Recipe(seed, images, glyphs, folder, source_hashes(folder, other=True))


def test_the_corpus_is_a_function_of_its_recipe(folder, few_glyphs):
    images, captions = corpus.make(recipe(folder), processes=1)
    assert images.shape == (41, 32, 32, 3) and captions.shape == (41, 8) and captions.dtype == np.int32
    again = corpus.make(recipe(folder), processes=2)
    assert np.array_equal(again[0], images) and np.array_equal(again[1], captions)
    assert not np.array_equal(corpus.make(recipe(folder, seed=6), 2)[0], images)
    crops_of = captions[:, 0] >= WORDS["character"]
    assert crops_of.sum() == 29 and not crops_of[:29].all()  # mixed
    counts = np.bincount(captions[crops_of, 0] - WORDS["character"])
    assert counts.sum() == 29 and counts.min() >= 9  # as many of each photograph, but for the rest
    assert (captions < np.array(list(recipe(folder).words().values()))).all()


def test_fewer_photographs_than_parts_of_the_work(tmp_path, few_glyphs):
    write_tar(tmp_path / "own.tar", ["cup"])
    listed, _ = listed_photographs(tmp_path, ["own.tar"])
    assert len(listed) < corpus.PARTS
    images, captions = corpus.make(recipe(tmp_path), processes=1)
    assert images.shape == (41, 32, 32, 3) and (captions[:, 0] >= WORDS["character"]).sum() == 29
    with tarfile.open(tmp_path / "none.tar", "w"):
        pass
    with pytest.raises(UserError, match="there are no photographs in none.tar of"):
        listed_photographs(tmp_path, ["none.tar"])


def test_a_kept_corpus_is_taken_if_it_is_the_same(folder, few_glyphs, tmp_path, monkeypatch):
    images, captions, seconds = corpus.corpus(recipe(folder), tmp_path)
    monkeypatch.setattr(corpus, "make", None)
    kept = corpus.corpus(recipe(folder), tmp_path)
    assert np.array_equal(kept[0], images) and np.array_equal(kept[1], captions) and kept[2] == seconds
    with pytest.raises(TypeError):
        corpus.corpus(recipe(folder, seed=6), tmp_path)


# Weights


def test_half_weights_come_back(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.BatchNormalization()])
    weights = [w + np.float32(0.1) for w in model.get_weights()]
    model.set_weights(weights)
    save_half(model, tmp_path / "x.weights.h5")
    model.set_weights([0 * w for w in weights])
    model.load_weights(tmp_path / "x.weights.h5")
    for back, weight in zip(model.get_weights(), weights):
        assert np.array_equal(back, weight.astype("float16").astype("float32"))
    assert [path.name for path in tmp_path.iterdir()] == ["x.weights.h5"]
    model.set_weights([w + np.float32(1e6) for w in weights])
    with pytest.raises(UserError, match="not finite in float16"):
        save_half(model, tmp_path / "y.weights.h5")


def test_size_of_small():
    builders = KINDS["small"].builders
    counts = {part: build(32, KINDS["small"].context_shape).count_params() for part, build in builders.items()}
    assert counts == {"image_encoder": 448_392, "unet": 4_049_604, "decoder": 520_151}
    assert KINDS["small"].context_shape[0] == len(all_words(CATEGORIES))  # a token a word


# Fits and the record


@dataclass(frozen=True)
class TinyKind(Kind):
    """Networks of a few weights, latents of 4x4."""

    @property
    def builders(self):
        def unet(image_size, context_shape):
            inputs = [keras.Input((4, 4, 4)), keras.Input((320,)), keras.Input(context_shape)]
            condition = layers.Dense(4)(inputs[1]) + layers.Dense(4)(layers.GlobalAveragePooling1D()(inputs[2]))
            shift = layers.Reshape((1, 1, 4))(condition)
            return keras.Model(inputs, layers.Conv2D(4, 3, padding="same")(inputs[0]) + shift, name="tiny_unet")

        return {
            "image_encoder": lambda *_: keras.Sequential([keras.Input((32, 32, 3)), layers.Conv2D(8, 8, strides=8)]),
            "unet": unet,
            "decoder": lambda *_: keras.Sequential(
                [keras.Input((4, 4, 4)), layers.Conv2D(4, 1), layers.UpSampling2D(8), layers.Conv2D(3, 3, padding="same")]
            ),
        }


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("pretraining")


@pytest.fixture(scope="module")
def pretrain(place):
    """A function of the name of --out and further flags that pretrains the tiny kind; returns the record."""
    folder = write_photographs(place / "photographs")

    def start(out, *flags):
        args = pretraining.parse_args(
            ["--backbone", "small", "--photographs", str(folder), "--other_photographs", "--processes", "1",
             "--unet_cycles", "2", "--out", str(place / out), *map(str, flags)]
        )  # fmt: skip
        known = pretraining.plan(args)
        if not known.done:
            pretraining.pretrain(args, known)
        return json.loads((place / out / "training.json").read_text())

    with pytest.MonkeyPatch.context() as patch:
        kind = TinyKind("small", (8, 8), 40, 0.3, 4, 4, 4, 8, edges=0.1, precision="float32")
        patch.setitem(KINDS, "small", kind)
        patch.setattr(corpus, "make_corpus", glyphs_in_no_time)
        patch.setattr(resumable, "TENTHS", 2)
        patch.setattr(resumable, "MOST_STEPS", 1)  # a state after each step
        patch.setattr(draws, "STEPS", 1)
        patch.setattr(draws, "DRAWS", 1)
        yield start


@pytest.fixture(scope="module")
def whole(pretrain):
    """The record of a run that nothing has stopped."""
    return pretrain("whole")


def weights_in(folder):
    """All numbers of all weight files."""
    import h5py

    numbers = {}
    for path in sorted(folder.glob("*.weights.h5")):
        with h5py.File(path) as file:
            items = []
            file.visititems(lambda name, item, items=items: items.append((name, item)))
            numbers |= {f"{path.name}/{name}": item[()] for name, item in items if isinstance(item, h5py.Dataset)}
    return numbers


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


FILES = ["decoder", "image_encoder", "text_encoder", "unet"]
PARTS = ["autoencoder", "decoder", "unet_1", "unet_2"]


def test_a_killed_run_goes_on_as_if_nothing_had_happened(pretrain, whole, place, monkeypatch):
    """Killed after a state of the autoencoder, of the decoder, and of both cycles of the UNet, the last of all among them."""
    assert list(whole["parts"]) == PARTS and (place / "whole/losses.png").stat().st_size > 5000
    save, saved = FitState.save, []

    def save_and_die(state, *args):
        save(state, *args)
        saved.append(state.path.stem)
        if len(saved) in (3, 6, 9, 16):
            raise Stopped

    monkeypatch.setattr(FitState, "save", save_and_die)
    for _ in range(4):
        with pytest.raises(Stopped):
            pretrain("killed", "--state", place / "state")
    went_on = pretrain("killed", "--state", place / "state")
    assert saved == [part for part in PARTS for _ in range(4)]  # no step twice
    assert same(weights_in(place / "whole"), weights_in(place / "killed"))
    for part in PARTS:
        assert went_on["parts"][part]["loss"] == whole["parts"][part]["loss"]
    left = {path.name for path in (place / "state").iterdir() if not path.name.startswith(".")}
    assert left == {"corpus.npz", "moments.npz", "log.txt"}


def test_a_state_of_other_settings_is_refused(pretrain, place, monkeypatch):
    save = FitState.save

    def save_and_die(state, *args):
        save(state, *args)
        raise Stopped

    monkeypatch.setattr(FitState, "save", save_and_die)
    with pytest.raises(Stopped):
        pretrain("other", "--state", place / "other_state")
    with pytest.raises(UserError, match=r"interrupted run with other arguments: --vae_steps 4 \(now 3\)"):
        pretrain("other", "--state", place / "other_state", "--vae_steps", 3)


def test_parts_go_on_from_the_files_of_a_lost_machine(pretrain, whole, place):
    for number, part in enumerate(PARTS, start=1):
        flags = {"unet_1": ["--unet_cycles", 1], "unet_2": []}.get(part, ["--until", part])
        assert list(pretrain("parts", *flags)["parts"]) == PARTS[:number]
    assert same(weights_in(place / "whole"), weights_in(place / "parts"))
    assert {path.name for path in (place / "parts").iterdir() if not path.name.startswith(".lock")} == {
        "training.json", "losses.png", "samples.png", "samples_photographs.png", *(f"{name}.weights.h5" for name in FILES)
    }  # fmt: skip


@pytest.mark.parametrize("step", ["add", "take_pending"])
def test_a_run_that_is_stopped_as_a_part_ends_goes_on(pretrain, whole, place, monkeypatch, step):
    """Before the part is on record, and before its files have their names."""
    work, left = getattr(Record, step), list(PARTS)

    def stop_once_a_part(record, *args):
        begun = len(record.parts) + (step == "add") - 1
        if left and PARTS[begun] == left[0] and (step == "add" or any(record.folder.glob(".pending-*"))):
            del left[0]
            raise Stopped
        return work(record, *args)

    monkeypatch.setattr(Record, step, stop_once_a_part)
    for _ in PARTS:
        with pytest.raises(Stopped):
            pretrain(step, "--state", place / f"{step}_state")
    monkeypatch.undo()
    pretrain(step, "--state", place / f"{step}_state")
    assert not left and same(weights_in(place / "whole"), weights_in(place / step))


def test_two_processes_do_not_write_in_one_folder(pretrain, place):
    (place / "claimed").mkdir()
    with FileLock(place / "claimed/.lock"), pytest.raises(UserError, match="is writing in .*claimed"):
        pretrain("claimed")


def test_the_record_has_every_figure(whole):
    facts = whole["parts"]["unet_2"]
    assert facts["steps"] == 4 and facts["batch"] == 8 and len(facts["loss"]) == 2 and facts["seconds"] >= 0
    assert set(facts["files"]) == set(facts["parameters"]) == {"unet.weights.h5", "text_encoder.weights.h5"}
    assert facts["inputs"]["unet.weights.h5"] == whole["parts"]["unet_1"]["files"]["unet.weights.h5"]
    assert whole["categories"] == list(CATEGORIES) and whole["words"] == all_words(CATEGORIES)
    assert [source["file"] for source in whole["sources"]] == ["caltech101.tar", "trash.tar"]


def test_what_does_not_fit_is_refused_in_one_line(pretrain, whole, place):
    shutil.copytree(place / "whole", place / "out")
    out, photographs = place / "out", place / "photographs"
    with pytest.raises(UserError, match=r"a finished autoencoder with other arguments: --vae_steps 4 \(now 6\)"):
        pretrain("out", "--vae_steps", 6)
    with pytest.raises(UserError, match="a finished decoder with other arguments: --decoder_steps"):
        pretrain("out", "--decoder_steps", 6)
    shutil.move(photographs / "trash.tar", place / "trash.tar")
    write_tar(photographs / "trash.tar", ["glass"], seed=2)
    with pytest.raises(UserError, match="a finished autoencoder with other inputs: trash.tar"):
        pretrain("out")
    shutil.move(place / "trash.tar", photographs / "trash.tar")

    content = (out / "decoder.weights.h5").read_bytes()
    (out / "decoder.weights.h5").write_bytes(content[:-1] + b"x")
    with pytest.raises(UserError, match="decoder.weights.h5 is not the file that training.json speaks of"):
        pretrain("out")
    (out / "decoder.weights.h5").unlink()
    with pytest.raises(UserError, match="decoder.weights.h5 is missing"):
        pretrain("out")
    (out / "decoder.weights.h5").write_bytes(content)
    assert pretrain("out") == whole  # nothing to do
    for fewer in (["--unet_cycles", 1], ["--until", "autoencoder"]):  # later parts have replaced their files
        assert pretrain("out", *fewer) == whole

    record = json.loads((out / "training.json").read_text())
    del record["parts"]["autoencoder"]
    (out / "training.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="has decoder without autoencoder"):
        pretrain("out")
    (out / "training.json").unlink()
    with pytest.raises(UserError, match="holds decoder.weights.h5, image_encoder.weights.h5, .* without training.json"):
        pretrain("out")
    assert list(pretrain("out", "--restart", "--until", "autoencoder")["parts"]) == PARTS[:1]


def test_captions_of_the_sheets_are_words_that_there_are():
    most = np.array(list(all_words(CATEGORIES).values()))
    glyphs, shown = draws.glyph_captions(), draws.photograph_captions(CATEGORIES)
    assert (glyphs < np.array(list(WORDS.values()))).all() and (shown < most).all()
    assert sorted(set(shown[:, 0] - WORDS["character"])) == [0, 1, 2] and len(shown) == 3 * draws.DRAWS
    assert len(draws.photograph_captions([str(i) for i in range(147)])) == draws.CATEGORIES * draws.DRAWS


@pytest.mark.parametrize("flags, said", [
    (["--backbone", "small"], "small learns from photographs"),
    (["--backbone", "mini", "--photographs", "x"], "mini takes none"),
    (["--backbone", "sd1"], "invalid choice"),
    ([], "required: --backbone"),
])  # fmt: skip
def test_flags_that_do_not_go_together(capsys, flags, said):
    with pytest.raises(SystemExit):
        pretraining.parse_args(flags)
    assert said in capsys.readouterr().err


def test_the_shipped_weights_of_mini_are_not_overwritten_by_the_way():
    args = pretraining.parse_args(["--backbone", "mini"])
    assert (args.images, args.vae_steps, args.decoder_steps, args.unet_steps, args.batch_size) == (
        240_000, 2000, 3000, 6000, 128
    )  # fmt: skip
    with pytest.raises(UserError, match="training.json is not the record of such a run of mini: name another --out"):
        pretraining.plan(args)


def test_a_fit_is_cut_into_tenths(monkeypatch):
    monkeypatch.setattr(resumable, "TENTHS", 10)
    monkeypatch.setattr(resumable, "MOST_STEPS", 200)
    lengths = resumable.Fit("x", 0, 1, 4000, 64, 1e-3, 0.9).lengths
    assert lengths == [200] * 20
    assert resumable.Fit("x", 0, 1, 25, 64, 1e-3, 0.9).lengths == [2, 3] * 5
    assert resumable.tenths([1.0, 3.0] * 10, lengths) == [2.0] * 10
    assert resumable.tenths([1.0, 2.0, 3.0], [1, 1, 1]) == [1.0, 2.0, 3.0]


def test_a_short_fit_forgets_its_first_weights():
    fits = [resumable.Fit("x", 0, 1, steps, 64, 1e-3, 0.9995) for steps in (2000, 20_000)]
    momenta = [fit.optimizer().ema_momentum for fit in fits]
    assert momenta[0] ** 2000 == pytest.approx(0.01) and momenta[1] == 0.9995


def test_recorded_losses_are_means_over_all_steps(monkeypatch):
    import keras

    monkeypatch.setattr(resumable, "TENTHS", 2)
    fit = resumable.Fit("x", 0, 1, 6, 4, 0.0, 0.9)  # it learns nothing
    values = keras.Input((1,))
    model = keras.Model(values, keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")(values))

    def batch(stream):
        return np.ones((4, 1), "float32"), stream.standard_normal((4, 1), dtype="float32")

    means = [float(np.mean([(batch(fit.stream(step))[1] ** 2).mean() for step in part])) for part in ((0, 1, 2), (3, 4, 5))]
    assert resumable.run_fit(fit, model, "mse", batch)["loss"] == pytest.approx(means, abs=1e-5)
