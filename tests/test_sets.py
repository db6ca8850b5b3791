"""What a set holds beside balanced classes: the prior of the real ones, and what a classifier has kept."""

from types import SimpleNamespace

import numpy as np
import pytest

import classifier_training
import generate_dataset
from Data.filtering import ROUNDS, Selection, agrees
from Data.loaders import load_splits
from Data.numbering import Balanced, Proportional, subset_counts
from Data.registry import DATASETS
from Data.stored_set import load_synthetic
from Data.synthetic import SyntheticWriter
from Experiment.errors import UserError
from Experiment.files import read_json, write_json
from Experiment.paths import Experiment
from Generating import images as making
from Generating import material
from Models import sampler
from tests.conftest import Stopped, stopped_writing_images

pytestmark = pytest.mark.usefixtures("no_pictures")

FLAGS = ["--enc_epoch", "31", "--dif_epoch", "10", "--inf_steps", "2", "--ugs", "1.5"]
PRIOR = [70, 20, 5, 5]


# Numbers


def test_equal_frequencies_are_balanced():
    numbers = np.arange(101)
    ours, balanced = Proportional([3, 3, 3], 101), Balanced(3)
    assert np.array_equal(ours.places(numbers), balanced.places(numbers)) and ours.counts(101) == balanced.counts(101)


def test_every_beginning_of_a_set_has_the_prior():
    numbering = Proportional(PRIOR, 1000)
    for total in (20, 100, 333, 1000):
        counts = np.array(numbering.counts(total))
        assert counts.sum() == total and np.abs(counts - total * np.array(PRIOR) / 100).max() <= 1
    labels, indices = numbering.places(np.arange(1000))
    for label in range(4):
        assert np.array_equal(indices[labels == label], np.arange(numbering.counts(1000)[label]))
    assert numbering.counts(100) == PRIOR and Proportional(PRIOR, 100).counts(100) == PRIOR


@pytest.mark.parametrize("shards", [1, 3])
def test_shards_of_a_prior_are_blocks_that_make_up_the_set(tmp_path, shards):
    numbering = Proportional(PRIOR, 60)
    writer = SyntheticWriter(tmp_path, numbering.counts(50), 8, numbering)
    parts = [writer.shard((i + 1, shards)) for i in range(shards)]
    assert np.array_equal(np.concatenate(parts), np.arange(50))
    assert all(part[0] % 8 == 0 for part in parts)
    places = {writer.place(number) for number in range(50)}
    assert places == {(label, index) for label, n in enumerate(numbering.counts(50)) for index in range(n)}


# A set with the prior


def images_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("class_*/*.png"))}


def test_a_set_has_the_prior_of_the_real_ones_in_shards_too(tiny_experiment, tmp_path, monkeypatch):
    skewed = np.repeat(np.arange(10), [40, 30, 10, 5, 5, 3, 3, 2, 1, 1])
    monkeypatch.setattr(material, "load_splits", lambda *a: SimpleNamespace(train=SimpleNamespace(labels=skewed)))
    flags = [*tiny_experiment, *FLAGS, "--img_total", "100", "--class_prior", "real"]
    whole = generate_dataset.generate(generate_dataset.parse_args(flags))
    manifest = read_json(whole / "manifest.json")
    assert whole.name.endswith("PriorReal") and manifest["counts"] == np.bincount(skewed).tolist() == manifest["prior"]
    images = images_of(whole)
    assert len(images) == 100
    # Another process after an interruption, and shards, make the same images.
    for name in list(images)[::7]:
        (whole / name).unlink()
    generate_dataset.generate(generate_dataset.parse_args(flags))
    assert images_of(whole) == images and read_json(whole / "manifest.json") == manifest
    assert generate_dataset.plan(generate_dataset.parse_args(flags)).done
    moved = whole.rename(tmp_path / "whole")
    for shard in ("1/2", "2/2"):
        generate_dataset.generate(generate_dataset.parse_args([*flags, "--shard", shard]))
    assert images_of(whole) == images_of(moved)
    # A subset keeps the prior.
    labels = load_synthetic(whole, 10, 8, 50, 1)[1]
    counts = np.bincount(labels, minlength=10)
    assert np.abs(counts - np.bincount(skewed) / 2).max() <= 0.5 and counts.tolist() == Proportional(
        manifest["prior"], 50
    ).counts(50)
    # Other frequencies are another set.
    monkeypatch.setattr(material, "load_splits", lambda *a: SimpleNamespace(train=SimpleNamespace(labels=skewed[5:])))
    with pytest.raises(UserError, match="prior: 40, 30, .* there, 35, 30, .* now"):
        generate_dataset.plan(generate_dataset.parse_args(flags))


def test_too_few_images_for_a_rare_class_are_refused(tiny_experiment, monkeypatch):
    labels = np.repeat(np.arange(10), [100] * 9 + [1])
    monkeypatch.setattr(material, "load_splits", lambda *a: SimpleNamespace(train=SimpleNamespace(labels=labels)))
    args = generate_dataset.parse_args([*tiny_experiment, *FLAGS, "--img_total", "100", "--class_prior", "real"])
    with pytest.raises(UserError, match="of 100 images none would be of class 9, which 1 of 901 real images are: make more"):
        generate_dataset.plan(args)


def test_a_subset_of_a_damaged_manifest_is_refused():
    with pytest.raises(UserError, match="says no frequencies"):
        subset_counts({"class_prior": "real"}, 10, 4)
    assert subset_counts(None, 10, 4) == [3, 3, 2, 2]


# Filter


def test_what_agrees():
    probabilities = np.array([[0.6, 0.4], [0.6, 0.4], [0.1, 0.9]])
    assert agrees(probabilities, np.array([0, 1, 1]), 0.0).tolist() == [True, False, True]
    assert agrees(probabilities, np.array([0, 1, 1]), 0.6).tolist() == [False, False, True]


def play(selection, accept, block=4, stop_after=None):
    """Judge block by block; which images become whose."""
    images, blocks = {}, 0
    while not selection.full:
        labels, indices = selection.candidates()
        for first in range(selection.judged, len(labels), block):
            part = slice(first, first + block)
            good = np.array([selection.last or accept(*place) for place in zip(labels[part], indices[part])])
            kept, ranks = selection.keep(labels[part], good)
            images |= dict(zip(zip(labels[part][kept], ranks[kept]), indices[part][kept]))
            selection.save()
            blocks += 1
            if blocks == stop_after:
                return images
        if not selection.full:
            selection.next_round()
            selection.save()
    return images


def even_only(label, index):
    return label == 0 or index % 2 == 0


def test_rounds_make_more_of_what_is_missing_until_every_class_is_full(tmp_path):
    selection = Selection(tmp_path, [6, 6, 6], Balanced(3))
    images = play(selection, even_only)
    assert set(images) == {(label, rank) for label in range(3) for rank in range(6)}
    assert [images[1, rank] for rank in range(6)] == [0, 2, 4, 6, 8, 10]  # each even candidate, in their order, once
    assert [images[0, rank] for rank in range(6)] == list(range(6))
    assert selection.kept.tolist() == [6, 6, 6] and selection.tried.tolist() == [6, 12, 12] and selection.round == 1


@pytest.mark.parametrize("stop_after", range(1, 9))
def test_a_selection_that_is_interrupted_ends_the_same(tmp_path, stop_after):
    whole = play(Selection(tmp_path / "a", [6, 6, 6], Balanced(3)), even_only)
    first = play(Selection(tmp_path / "b", [6, 6, 6], Balanced(3)), even_only, stop_after=stop_after)
    again = Selection(tmp_path / "b", [6, 6, 6], Balanced(3))
    again.load()
    assert first | play(again, even_only) == whole


def test_tries_are_bounded_and_what_is_then_missing_is_counted(tmp_path):
    selection = Selection(tmp_path, [4, 4], Balanced(2))
    play(selection, lambda label, index: label == 0)
    assert selection.full and selection.unfiltered.tolist() == [0, 4] and selection.round == ROUNDS
    assert selection.tried.tolist() == [4, 4 + 8 * (ROUNDS - 1) + 4]


@pytest.fixture
def real_classifier(tiny_experiment):
    flags = ["--classifier", "resnet20_16", "--epochs", "1", "--batch_size", "64", "--synthetic", "False", "--test", "False"]
    classifier_training.train_classifier(classifier_training.parse_args([*without_backbone(tiny_experiment), *flags]))
    return [*tiny_experiment, *FLAGS, "--img_total", "40", "--filter_classifier", "resnet20_16"]


def without_backbone(flags):
    at = flags.index("--backbone")
    return [*flags[:at], *flags[at + 2 :]]


def test_a_filtered_set_is_full_resumed_and_says_what_it_took(real_classifier, monkeypatch, caplog):
    """The images of the tiny backbone are no digits; which the classifier agrees with is left to a rule here."""
    asked = []

    def judge_of(*a):
        def judge(images, labels):
            asked.append(len(labels))
            return images[:, 0, 0, 0] % 3 > 0

        return judge

    monkeypatch.setattr(making, "load_judge", judge_of)
    args = generate_dataset.parse_args([*real_classifier, "--filter", "0.5"])
    with caplog.at_level("INFO", logger="experiment"):
        folder = generate_dataset.generate(args)
    images, manifest = images_of(folder), read_json(folder / "manifest.json")
    counts = manifest["filter_counts"]
    assert len(images) == 40 and folder.name.endswith("Filter0.5") and counts["kept"] == [4] * 10
    assert sum(counts["tried"]) > 40 and counts["rounds"] > 1 and sum(counts["unfiltered"]) == 0
    assert len(manifest["weights"]["filter"]) == 64 and manifest["filter_classifier"] == "resnet20_16"
    assert [seen["resolution"] for seen in manifest["learned_from"]] == [8]  # what the filter has seen
    assert f"4 of {counts['tried'][0]} candidates kept" in caplog.text and "filter, round 1: 40 candidates" in caplog.text
    with monkeypatch.context() as patch:
        patch.setattr(material, "learned_from", lambda _: list(manifest["learned_from"]))  # the generator has seen them too
        assert material.facts_of_set(args, generate_dataset.plan(args))["learned_from"] == manifest["learned_from"]
    assert generate_dataset.plan(args).done

    with pytest.raises(Stopped), stopped_writing_images(3):
        generate_dataset.generate(generate_dataset.parse_args([*real_classifier, "--filter", "0.5", "--restart"]))
    asked.clear()
    generate_dataset.generate(args)
    assert images_of(folder) == images and read_json(folder / "manifest.json") == manifest
    assert sum(asked) < sum(counts["tried"])  # what was judged before was not again

    (folder / "class_03/img_1.png").unlink()  # an image that is gone is made again
    generate_dataset.generate(args)
    assert images_of(folder) == images


def test_the_filter_is_the_classifier_of_the_real_images(real_classifier, monkeypatch):
    args = generate_dataset.parse_args([*real_classifier, "--filter"])
    known = generate_dataset.plan(args)
    judge = making.load_judge(args, known.spec, known.experiment)
    train = load_splits(DATASETS["digits"], args.data_dir).train
    from Models.classifier import Classifier
    from Models.trained import load_best

    classifier = Classifier("resnet20_16", 8, 10)
    load_best(classifier, material.filter_folder(args, known.experiment))
    called = classifier.probabilities(train.images[:50]).argmax(axis=1)
    assert np.array_equal(judge(train.images[:50], train.labels[:50]), called == train.labels[:50])


def test_a_filter_without_its_classifier_names_the_command(tiny_experiment):
    args = generate_dataset.parse_args([*tiny_experiment, *FLAGS, "--img_total", "40", "--filter"])
    with pytest.raises(
        UserError, match="classifier_training.py --dataset digits --exp 0001 --root .* --classifier resnet20 --synthetic"
    ):
        generate_dataset.plan(args)


@pytest.mark.parametrize("flags, said", [
    (["--filter", "--shard", "1/2"], "argument --shard: not allowed with --filter"),
    (["--filter", "1"], "at most 0.999"),
    (["--filter_classifier", "resnet20"], "needs --filter"),
    (["--best", "--solver", "ddim"], "argument --best: not allowed with --solver"),
    (["--class_prior", "real"], None),
    (["--class_prior", "real", "--img_class", "4"], "argument --class_prior: not allowed with --img_class"),
])  # fmt: skip
def test_flags_that_do_not_go_together(flags, said, capsys):
    total = [] if "--img_class" in flags else ["--img_total", "40"]
    if said is None:
        assert generate_dataset.parse_args([*total, *flags]).solver == "ddim"
        return
    with pytest.raises(SystemExit):
        generate_dataset.parse_args([*total, *flags])
    assert said in capsys.readouterr().err


def test_images_of_another_numbering_are_the_same_images(tmp_path, tiny):
    """x_T is a function of (seed, class, index): the prior decides which images there are, not what they look like."""
    from Models.adapter import load_diffusion

    diffusion = load_diffusion(tiny, 4)
    numbering = Proportional(PRIOR, 40)
    how = {"num_steps": 2, "scale": 1.5, "seed": 3, "block": 8}
    found = {}
    for places in (None, numbering.places):
        made = sampler.generate_images(diffusion.sampler(), diffusion.encoder, np.arange(32), places=places, **how)
        images = np.concatenate([images for _, images, _ in made])
        labels, indices = (places or Balanced(4).places)(np.arange(32))
        found[places] = dict(zip(zip(labels.tolist(), indices.tolist()), images.astype(int)))
    ours, balanced = found[numbering.places], found[None]
    both = set(ours) & set(balanced)
    assert len(both) > 10 and all(np.abs(ours[place] - balanced[place]).max() <= 1 for place in both)


@pytest.mark.parametrize("change, told", [
    ({"classes": list("9876543210")}, "classes .* data.resolution None"), ({"data": {"resolution": 9}}, "data.resolution 9 .now 8"),
])  # fmt: skip
def test_a_filter_that_knows_other_classes_or_another_resolution_is_refused(tiny_experiment, tmp_path, change, told):
    folder = Experiment(tmp_path, "0001", "digits").classifier_dir("resnet20", "real")
    write_json(folder / "training.json", {"inputs": {"classes": list(DATASETS["digits"].classes)} | change})
    (folder / "best_model.weights.h5").touch()
    args = generate_dataset.parse_args([*tiny_experiment, *FLAGS, "--img_total", "40", "--filter"])
    with pytest.raises(UserError, match=f"--filter: the classifier in .* was trained on other inputs: {told}"):
        generate_dataset.plan(args)
