"""The pictures: what is drawn, where it is written, and the notebook that shows it."""

import shutil

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import optuna
import pytest
from nbclient import NotebookClient
from PIL import Image

import curves
import plots
import result_plots
import sheets
from Experiment.errors import UserError
from Experiment.files import read_json, write_json
from Experiment.paths import (
    PUBLISHED_CAS,
    PUBLISHED_CAS_PLOTS,
    PUBLISHED_PIPELINE,
    PUBLISHED_PIPELINE_PLOTS,
    REPOSITORY,
    Experiment,
)
from Experiment.results import FOUR_STEPS
from Search.pictures import search_plots

PUBLISHED_DATASETS = ["cifar10", "cifar100", "pathmnist", "dermamnist", "bloodmnist", "retinamnist"]


def scores(top_1, top_5=1.0):
    return {"top_1_accuracy": top_1, "top_5_accuracy": top_5}


def steps(*values):
    """Results of the four steps (or the first of them) with these top-1 accuracies, top-5 half-way to 1."""
    entries = [{"top_1": value, "top_5": (1 + value) / 2} for value in values]
    stages = {
        "After Transfer Learning": dict(zip(["no_opt", "opt"], entries[:2])),
        "After Fine-Tuning": dict(zip(["no_opt", "opt"], entries[2:])),
    }
    return {stage: found for stage, found in stages.items() if found}


# What the demo leaves: real, 1x and 4x of digits, by a narrower classifier.
DEMO_CAS = {"resnet20_16": {"digits": {"real": scores(0.99), "x1": scores(0.92, 0.99), "x4": scores(0.95)}}}
DEMO_PIPELINE = {"digits": steps(0.7, 0.8, 0.9, 0.94)}


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, in order, to look at their lines and bars."""
    figures, save = [], plots.save_figure

    def keep(figure, path):
        figures.append(figure)
        return save(figure, path)

    for module in (plots, curves, sheets):
        monkeypatch.setattr(module, "save_figure", keep)
    return figures


@pytest.fixture(autouse=True)
def no_figure_left_open():
    yield
    left = plt.get_fignums()
    plt.close("all")
    assert left == []


def is_picture(path, width=300):
    with Image.open(path) as image:
        return image.format == "PNG" and image.width >= width and len(image.convert("L").getcolors(256)) > 2


# The published numbers


def test_published_cas_is_complete():
    results = read_json(PUBLISHED_CAS)
    assert list(results) == ["resnet20"] and list(results["resnet20"]) == PUBLISHED_DATASETS
    for curve in results["resnet20"].values():
        assert list(curve) == ["real", *(f"x{size}" for size in range(1, 11))]
        assert all(0 < entry["top_1_accuracy"] < entry["top_5_accuracy"] <= 1 for entry in curve.values())


@pytest.mark.parametrize("dataset, size, top_1, top_5", [
    ("cifar10", "real", 0.8326, 0.9856), ("cifar10", "x10", 0.8579, 0.9829), ("cifar100", "x1", 0.4519, 0.7200),
    ("pathmnist", "x9", 0.8184, 0.9713), ("dermamnist", "x4", 0.6858, 0.9142), ("bloodmnist", "real", 0.9623, 0.9991),
    ("retinamnist", "x4", 0.5200, 1.0),
])  # fmt: skip
def test_published_cas_values(dataset, size, top_1, top_5):
    assert read_json(PUBLISHED_CAS)["resnet20"][dataset][size] == scores(top_1, top_5)


def test_published_pipeline_is_complete():
    results = read_json(PUBLISHED_PIPELINE)
    assert list(results) == PUBLISHED_DATASETS
    found = [[found[stage][optimised]["top_1"] for stage, optimised in FOUR_STEPS.values()]
             for found in results.values()]  # fmt: skip
    assert found == [
        [0.3952, 0.4705, 0.5194, 0.5930], [0.1550, 0.1748, 0.1735, 0.2737], [0.3996, 0.6306, 0.5918, 0.7896],
        [0.1910, 0.6264, 0.6185, 0.6544], [0.7390, 0.7498, 0.7898, 0.8620], [0.3700, 0.4075, 0.4174, 0.4745],
    ]  # fmt: skip
    assert results["dermamnist"]["After Fine-Tuning"]["no_opt"]["top_5"] == 0.8219


def test_published_figures_are_there():
    """They are part of the repository: a clean checkout has them."""
    there = [PUBLISHED_CAS_PLOTS / f"{dataset}.png" for dataset in PUBLISHED_DATASETS]
    assert all(map(is_picture, there + [PUBLISHED_PIPELINE_PLOTS / f"{score}.png" for score in plots.STEP_SCORES]))


# CAS curves


def lines_of(axis):
    """{label: (x, y)} of an axis; dashed ones are the horizontal lines of real data."""
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axis.get_lines()}


def test_cas_curve_draws_both_scores(tmp_path, drawn):
    curve = {f"x{size}": scores(0.5 + size / 100, 0.8 + size / 100) for size in (10, 2, 1, 9, 3, 4, 5, 6, 7, 8)}
    path = curves.cas_curve({"ours": {**curve, "real": scores(0.55, 0.97)}}, tmp_path / "c.png", "cifar10")
    assert path == tmp_path / "c.png" and is_picture(path)
    (figure,) = drawn
    assert figure.get_suptitle() == "cifar10"
    assert [axis.get_title() for axis in figure.axes] == ["top-1", "top-5"]
    for axis, first, real in zip(figure.axes, (0.5, 0.8), (0.55, 0.97)):
        lines = lines_of(axis)
        assert lines.keys() == {"ours, trained on synthetic", "ours, trained on real"}
        sizes, heights = lines["ours, trained on synthetic"]
        assert sizes == list(range(1, 11))
        assert heights == pytest.approx([first + size / 100 for size in sizes])
        assert set(lines["ours, trained on real"][1]) == {real}
        low, high = axis.get_ylim()
        assert low < min(*heights, real) and max(*heights, real) < high


@pytest.mark.parametrize("curve, sizes", [
    (DEMO_CAS["resnet20_16"]["digits"], [1, 4]),
    ({"x3": scores(0.5)}, [3]),
    ({"real": scores(0.5)}, None),
    ({"x1": scores(0.5), "x40": scores(0.6)}, [1, 40]),
])  # fmt: skip
def test_cas_curve_with_missing_entries(tmp_path, drawn, curve, sizes):
    curves.cas_curve({"ours": curve}, tmp_path / "c.png")
    for axis in drawn[0].axes:
        lines = lines_of(axis)
        assert lines.get("ours, trained on synthetic", (None,))[0] == sizes
        assert ("ours, trained on real" in lines) == ("real" in curve)
        first, last = axis.get_xlim()
        assert first < 1 and last > max(10, *sizes or [0])


def test_cas_curve_of_several_sources(tmp_path, drawn):
    curves.cas_curve({"a": {"real": scores(0.5), "x1": scores(0.4)}, "b": {"real": scores(0.6), "x2": scores(0.3)},
                     "c": {"x2": scores(0.2)}}, tmp_path / "c.png")  # fmt: skip
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "a, trained on synthetic", "b, trained on synthetic", "c, trained on synthetic",
        "a, trained on real", "b, trained on real",
    ]  # fmt: skip
    colours = {line.get_label(): line.get_color() for line in drawn[0].axes[0].get_lines()}
    assert colours["a, trained on synthetic"] == colours["a, trained on real"]
    assert len(set(colours.values())) == 3


def test_a_real_result_of_other_test_images_is_marked(tmp_path, drawn):
    same, other = ({"real": scores(0.5) | {"test": "a"}, "x1": scores(0.4) | {"test": test}} for test in "ab")
    curves.cas_curve({"same": same, "other": other}, tmp_path / "c.png")
    real = [text.get_text() for text in drawn[0].legends[0].get_texts() if "on real" in text.get_text()]
    assert real == ["same, trained on real", "other, trained on real (other test images)"]


def test_levers_of_the_real_training_alone_are_said(tmp_path, drawn):
    def curve(real, made):
        trainings = [{"training": {"epochs": 9, "optimizer": name}} for name in (real, made)]
        return {"real": scores(0.5) | trainings[0], "x1": scores(0.4) | trainings[1]}

    sources = {"a": curve("sgd", "sgd"), "b": curve("adam", "sgd"), "c": curve("sgd", "adam")}
    curves.cas_curve(sources, tmp_path / "c.png")
    real = [text.get_text() for text in drawn[0].legends[0].get_texts() if "on real" in text.get_text()]
    assert real == ["a, trained on real", "b, trained on real (no levers)", "c, trained on real (optimizer sgd)"]


def test_points_of_other_settings_are_marked(tmp_path, drawn):
    made = {"folder": "20Enc1", "ugs": 1.5, "seed": 5, "weights": {"enc": "12345678"}}
    other = {**made, "folder": "40Enc1", "weights": {"enc": "87654321"}}
    curve = {
        "x1": scores(0.5) | {"set": made},
        "x2": scores(0.6) | {"set": other},
        "x3": scores(0.7) | {"set": {**made, "folder": "b"}},
    }
    curves.cas_curve({"ours": curve, "a": {"x1": scores(0.4), "x2": scores(0.3)}}, tmp_path / "c.png")
    for axis in drawn[0].axes:
        ours, open_points, theirs = axis.get_lines()
        assert ours.get_label() == "ours, trained on synthetic (weights enc 12345678)"
        assert open_points.get_label() == "ours, trained on synthetic (weights enc 87654321)"
        assert list(ours.get_xdata()) == [1, 2, 3] and ours.get_markevery() == [0, 2]
        assert list(open_points.get_xdata()) == [2] and open_points.get_linestyle() == "None"
        assert (ours.get_fillstyle(), open_points.get_fillstyle(), theirs.get_fillstyle()) == ("full", "none", "full")
        assert ours.get_color() == open_points.get_color() and theirs.get_label() == "a, trained on synthetic"


@pytest.mark.parametrize("values, height", [
    ([0.79, 0.86], 0.07), ([1.0, 1.0], 0.04), ([0.99, 1.0], 0.04), ([0.0], 0.04),
])  # fmt: skip
def test_accuracy_limits(values, height):
    low, high = curves.accuracy_limits(values)
    assert low < min(values) and max(values) < high
    assert height <= high - low < 1.2 * height


def uprights(axis):
    """[(x, low, high)] of the upright lines of an axis."""
    lines = [path for drawn in axis.collections for path in drawn.get_segments()]
    return [(line[0][0], *line[:, 1]) for line in lines if line[0][1] < line[1][1]]


def test_other_epochs_of_the_real_classifier_are_said_in_the_legend(drawn, tmp_path):
    def curve(real, *epochs):
        entry = {"top_1_accuracy": 0.5, "top_5_accuracy": 1.0}
        return {f"x{i}": entry | {"training": {"epochs": n}} for i, n in enumerate(epochs, start=1)} | {
            "real": entry | ({"training": {"epochs": real}} if real else {})
        }

    told = {(9, 9): ["", ""], (9, 9, 5): [", in at most 5 to 9 epochs", ""], (None, 9): ["", ""],
            (9, 5): [", in at most 5 epochs", ", in at most 9 epochs"]}  # fmt: skip
    for epochs, ends in told.items():
        curves.cas_curve({"ours": curve(*epochs)}, tmp_path / "c.png", "digits")
        labels = [line.get_label() for line in drawn[-1].axes[0].get_lines()]
        assert [label.split("synthetic")[-1].split("real")[-1] for label in labels if label[0] != "_"] == ends, epochs


def test_intervals_are_drawn_and_lie_within_the_axis(tmp_path, drawn):
    ends = {"top_1_accuracy": [0.4, 0.6], "top_5_accuracy": [0.7, 0.9]}
    curve = {
        "x1": scores(0.5, 0.8) | {"interval": ends},
        "x2": scores(0.55, 0.85),
        "real": scores(0.5, 0.8) | {"interval": ends},
    }
    curves.cas_curve({"ours": curve}, tmp_path / "c.png")
    for axis, (low, high) in zip(drawn[0].axes, ends.values()):
        assert uprights(axis) == [(1, low, high)]
        (band,) = axis.patches
        assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((low, high))
        assert axis.get_ylim()[0] < low and high < axis.get_ylim()[1]
    bars = {"digits": {"After Fine-Tuning": {"opt": {"top_1": 0.5, "top_5": 0.8, "interval": {"top_1": [0.4, 0.6]}}}}}
    plots.pipeline_bars({"ours": bars}, "top_1", tmp_path / "b.png")
    (axis,) = drawn[1].axes
    assert [line[1:] for line in uprights(axis)] == [(0.4, 0.6)]
    (value,) = [text for text in axis.texts if text.get_text() == "0.500"]
    assert value.get_position()[1] > 0.6


def test_published_figures_show_their_intervals(tmp_path, drawn, monkeypatch):
    monkeypatch.setattr(result_plots, "PUBLISHED_CAS_PLOTS", tmp_path)
    monkeypatch.setattr(result_plots, "PUBLISHED_PIPELINE_PLOTS", tmp_path)
    result_plots.published_cas_curves()
    result_plots.published_pipeline_bars()
    retina, bars = drawn[5].axes[0], drawn[6].axes[0]
    assert [x for x, *_ in uprights(retina)] == list(range(1, 11))
    assert all(0.08 < high - low < 0.1 for _, low, high in uprights(retina))  # of 400 images: 5 points to each side
    assert len(uprights(bars)) == 24


# Bars of the pipeline


def bars_of(figure):
    """Names of the steps, and their bars as (centre, height)."""
    (axis,) = figure.axes
    return {
        bars.get_label(): [(bar.get_x() + bar.get_width() / 2, round(bar.get_height(), 4)) for bar in bars]
        for bars in axis.containers
    }


@pytest.mark.parametrize("score", ["top_1", "top_5"])
def test_pipeline_bars(tmp_path, drawn, score):
    values = {"cifar10": (0.1, 0.2, 0.3, 0.4), "digits": (0.5, 0.6, 0.7, 0.8)}
    sources = {"ours": {dataset: steps(*found) for dataset, found in values.items()}}
    assert is_picture(plots.pipeline_bars(sources, score, tmp_path / "b.png"))
    bars = bars_of(drawn[0])
    assert list(bars) == list(FOUR_STEPS)
    for i, found in enumerate(bars.values()):
        expected = [value[i] if score == "top_1" else (1 + value[i]) / 2 for value in values.values()]
        assert [height for _, height in found] == pytest.approx(expected)
        assert [round(place) for place, _ in found] == [0, 1]
    assert [text.get_text() for text in drawn[0].axes[0].get_xticklabels()] == ["cifar10", "digits"]
    assert score.replace("_", "-") in drawn[0].axes[0].get_title()
    assert drawn[0].axes[0].get_ylim()[0] == 0  # bars are compared by their length
    # Side by side in the order of the steps, none on top of another.
    places = sorted(place for found in bars.values() for place, _ in found)
    assert min(np.diff(places)) >= 0.19
    assert [found[0][0] for found in bars.values()] == places[:4]


def test_pipeline_bars_with_missing_steps_and_two_sources(tmp_path, drawn):
    sources = {"published": {"cifar10": steps(0.1, 0.2, 0.3, 0.4)},
               "ours": {"digits": steps(0.5), "cifar10": steps(0.6, 0.7)}}  # fmt: skip
    plots.pipeline_bars(sources, "top_1", tmp_path / "b.png")
    labels = [text.get_text() for text in drawn[0].axes[0].get_xticklabels()]
    assert labels == ["cifar10\npublished", "cifar10\nours", "digits\nours"]
    found = [[(round(place), height) for place, height in bars] for bars in bars_of(drawn[0]).values()]
    assert found == [[(0, 0.1), (1, 0.6), (2, 0.5)], [(0, 0.2), (1, 0.7)], [(0, 0.3)], [(0, 0.4)]]


def test_what_is_doubtful_is_said_below_its_bars(tmp_path, drawn):
    ours = steps(0.1, 0.2, 0.3, 0.4)
    ours["After Fine-Tuning"]["opt"] |= {"select_on": "test", "doubts": ["few images"]}
    for stage, images in zip(ours.values(), (300, 900)):
        for step in stage.values():
            step["images"] = images
    plots.pipeline_bars({"ours": {"digits": ours, "cifar10": steps(0.1)}}, "top_1", tmp_path / "b.png")
    below = [text.get_text() for text in drawn[0].axes[0].get_xticklabels()]
    assert below == ["digits\nchosen on test\nmay be too good\nsearches differ", "cifar10"]


# Figures of an experiment


def test_experiment_figures_lie_in_its_own_folders(tmp_path, drawn):
    write_json(tmp_path / "CAS Results" / "test_accuracies_expmine.json", DEMO_CAS)
    write_json(tmp_path / "CAS Results" / "pipeline_optimization_expmine.json", DEMO_PIPELINE)
    assert result_plots.experiment_cas_curves(tmp_path, "mine") == [tmp_path / "CAS Results/CAS_plots/expmine/digits.png"]
    charts = [tmp_path / f"optimization_plots/mine/{score}.png" for score in ("top_1", "top_5")]
    assert result_plots.experiment_pipeline_bars(tmp_path, "mine") == charts
    assert all(map(is_picture, charts))
    assert {label.split(",")[0] for label in lines_of(drawn[0].axes[0])} == {"experiment mine resnet20_16"}
    assert "published" not in drawn[1].axes[0].get_title()


def test_published_results_are_drawn_beside_ours(tmp_path, drawn):
    experiment = Experiment(tmp_path, "0001", "cifar10")
    write_json(experiment.cas_file, {"resnet20": {"cifar10": {"x2": scores(0.8)}, "digits": {"x1": scores(0.7)}}})
    write_json(experiment.pipeline_file, {"cifar10": steps(0.3, 0.4), "digits": steps(0.5, 0.6)})
    assert result_plots.experiment_cas_curve(experiment) == experiment.cas_plot
    lines = lines_of(drawn[0].axes[0])
    assert lines["experiment 0001 resnet20, trained on synthetic"] == ([2], [0.8])
    assert lines["published resnet20, trained on synthetic"][1][:2] == [0.7909, 0.8149]
    result_plots.experiment_pipeline_bars(tmp_path, "0001")
    labels = [text.get_text() for text in drawn[1].axes[0].get_xticklabels()]
    assert labels == ["cifar10\npublished", "cifar10\nexperiment 0001", "digits\nexperiment 0001"]


def test_a_dataset_without_results_has_no_curve(tmp_path):
    experiment = Experiment(tmp_path, "mine", "other")
    write_json(experiment.cas_file, {"resnet20": {"digits": {"x1": scores(0.7)}}})
    with pytest.raises(UserError, match="holds no accuracies of other"):
        result_plots.experiment_cas_curve(experiment)


def test_experiment_without_results_has_no_figures(tmp_path):
    assert result_plots.experiment_cas_curves(tmp_path, "none") == result_plots.experiment_pipeline_bars(tmp_path, "none") == []
    assert list(tmp_path.iterdir()) == []


# Tiles of images


def plain_images(*greys, side=2):
    return np.stack([np.full((side, side, 3), grey, np.uint8) for grey in greys])


def test_grid_fills_row_by_row_on_white():
    tiles = sheets.grid(plain_images(10, 20, 30, 40), columns=3, gap=1)
    assert tiles.shape == (5, 8, 3) and tiles.dtype == np.uint8
    assert tiles[..., 0].tolist() == [
        [10, 10, 255, 20, 20, 255, 30, 30],
        [10, 10, 255, 20, 20, 255, 30, 30],
        [255] * 8,
        [40, 40] + [255] * 6,
        [40, 40] + [255] * 6,
    ]


def test_enlarge_repeats_pixels_of_small_images_only():
    image = np.arange(2 * 2 * 3, dtype=np.uint8).reshape(1, 2, 2, 3)
    large = sheets.enlarge(image, side=5)
    assert large.shape == (1, 6, 6, 3)
    assert (large[0, :3, 3:] == image[0, 0, 1]).all()
    assert sheets.enlarge(plain_images(1, side=64)).shape == (1, 64, 64, 3)


@pytest.mark.parametrize("count, rows", [(30, 3), (24, 3), (5, 1)])
def test_collage_is_eight_by_three_at_most(tmp_path, count, rows):
    path = sheets.collage(plain_images(*range(count), side=64), tmp_path / "new" / "class0.png")
    with Image.open(path) as image:
        assert image.size == (8 * 66 - 2, rows * 66 - 2)
        assert image.getpixel((0, 0)) == (0, 0, 0) and image.getpixel((4 * 66, 0)) == (4, 4, 4)


# Sheets: class 1 has no images


def test_sample_sheet_has_a_row_for_each_class_with_images(tmp_path, drawn):
    labels = np.array([2, 0, 0])
    path = sheets.sample_sheet(plain_images(1, 2, 3, side=8), labels, ["cat", "dog", "a_very_long_class_name"],
                              tmp_path / "s.png", "title")  # fmt: skip
    assert is_picture(path, 100)
    assert [axis.get_ylabel() for axis in drawn[0].axes] == ["cat", "a_very_long_clas"]
    cats = drawn[0].axes[0].images[0].get_array()
    assert cats.shape == (64, 130, 3) and cats[0, 0, 0] == 2 and cats[0, -1, 0] == 3


def test_sample_sheet_of_many_classes_is_cut(tmp_path, drawn, monkeypatch):
    monkeypatch.setattr(sheets, "MAX_SHEET_ROWS", 2)
    sheets.sample_sheet(plain_images(1, 2, 3), np.arange(3), ["a", "b", "c"], tmp_path / "s.png")
    assert [axis.get_ylabel() for axis in drawn[0].axes] == ["a", "b"]


def test_side_by_side_shows_the_same_class_in_a_row(tmp_path, drawn):
    real, synthetic = plain_images(1, 2, 3, 4), plain_images(11, 12, 13, 14)
    path = sheets.side_by_side(real, synthetic, np.array([0, 0, 2, 2]), ["a", "b", "c"], tmp_path / "s.png")
    assert is_picture(path, 100)
    assert [axis.get_title() for axis in drawn[0].axes] == ["real", "synthetic", "", ""]
    assert [axis.images[0].get_array()[0, 0, 0] for axis in drawn[0].axes] == [1, 11, 3, 13]


# Curves and matrices of a run


def test_loss_curve(tmp_path, drawn):
    history = [{"epoch": 2, "loss": 0.5}, {"epoch": 3, "loss": 0.25}]
    assert is_picture(plots.loss_curve(history, tmp_path / "loss.png", "digits"))
    ((x, y),) = lines_of(drawn[0].axes[0]).values()
    assert (x, y) == ([2, 3], [0.5, 0.25])


def test_confusion_matrix_shades_shares_and_writes_counts(tmp_path, drawn):
    path = plots.confusion_matrix(np.array([[30, 10], [0, 0]]), ["a", "b"], tmp_path / "m.png", "title")
    assert is_picture(path, 100)
    (axis,) = drawn[0].axes
    assert axis.images[0].get_array().tolist() == [[0.75, 0.25], [0, 0]]  # a class without test images is white
    assert [text.get_text() for text in axis.texts] == ["30", "10", "0", "0"]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["a", "b"]


def test_confusion_matrix_of_many_classes_has_no_counts(tmp_path, drawn):
    plots.confusion_matrix(np.eye(60, dtype=int), [str(i) for i in range(60)], tmp_path / "m.png")
    assert not drawn[0].axes[0].texts


# Plots of a search


def study_of(*values):
    """An in-memory study with these values, each reported once on the way."""
    ranges = {
        "is": optuna.distributions.IntDistribution(5, 50),
        "ugs": optuna.distributions.FloatDistribution(0, 7.5),
        "epoch": optuna.distributions.IntDistribution(1, 50),
    }
    study = optuna.create_study(direction="maximize")
    for i, value in enumerate(values):
        settings = {"is": 5 + 7 * i, "ugs": 0.5 + i, "epoch": 50 - 9 * i}
        study.add_trial(optuna.trial.create_trial(params=settings, distributions=ranges, value=value,
                                                  intermediate_values={0: value / 2, 1: value}))  # fmt: skip
    return study


def test_search_plots_are_the_ten_published_ones(tmp_path):
    style = matplotlib.rcParams.copy()
    files = list(search_plots(study_of(0.3, 0.5, 0.4, 0.6), tmp_path / "enc"))
    assert [file.name for file in files] == [f"{name}.png" for name in (
        "history", "contour_is_ugs", "contour_is_epoch", "contour_epoch_ugs", "intermediate_values",
        "parallel_coordinate", "param_importances", "rank", "slice", "timeline",
    )]  # fmt: skip
    assert all(map(is_picture, files))
    assert set(files) == set((tmp_path / "enc").iterdir())
    assert matplotlib.rcParams == style  # Optuna's style is not left to the figures that follow


def test_a_search_plot_that_fails_does_not_lose_the_others(tmp_path, monkeypatch, caplog):
    def cannot(study):
        raise ValueError("too few trials")

    for name in vars(optuna.visualization.matplotlib):
        if name.startswith("plot_"):
            monkeypatch.setattr(optuna.visualization.matplotlib, name, lambda study, params=None: plt.subplots()[1])
    monkeypatch.setattr(optuna.visualization.matplotlib, "plot_rank", cannot)
    files = {file.name for file in search_plots(study_of(0.3, 0.5, 0.4, 0.6), tmp_path)}
    assert len(files) == 9 and "rank.png" not in files
    assert "rank is not drawn: too few trials" in caplog.text


@pytest.mark.parametrize("values, alike, why", [
    ((0.5, 0.4, 0.6), False, "contour_is_ugs is not drawn: 3 completed trials are fewer than 4"),
    ((0.5, 0.4, 0.6, 0.7), True, "contour_is_epoch is not drawn: all completed trials have the same is"),
    ((0.5,), False, "param_importances is not drawn: 1 completed trials are fewer than 4"),
    ((0.5, 0.5, 0.5, 0.5), False, "contour_is_ugs is not drawn: all completed trials have the same accuracy"),
])  # fmt: skip
def test_a_search_plot_that_would_be_empty_is_left_out_and_nothing_else_is_said(values, alike, why, tmp_path, caplog, recwarn):
    study = study_of(*values)
    if alike:
        trials = [optuna.trial.create_trial(params={**t.params, "is": 9}, distributions=t.distributions, value=t.value,
                                            intermediate_values=t.intermediate_values) for t in study.trials]  # fmt: skip
        study = optuna.create_study(direction="maximize")
        study.add_trials(trials)
    (tmp_path / "contour_is_ugs.png").write_text("of an earlier run")
    files = {file.name for file in search_plots(study, tmp_path)}
    left_out = {"contour_is_ugs.png", "contour_is_epoch.png"} | (set() if alike else {"contour_epoch_ugs.png"})
    assert not (tmp_path / "contour_is_ugs.png").exists()
    assert why in caplog.text and not files & left_out and {"history.png", "slice.png", "timeline.png"} <= files
    assert not list(recwarn)


def test_a_search_of_which_hardly_a_trial_was_completed_has_its_plots(tmp_path, caplog):
    study = study_of(0.5)
    pruned = optuna.trial.create_trial(state=optuna.trial.TrialState.PRUNED, params=study.trials[0].params,
                                       distributions=study.trials[0].distributions)  # fmt: skip
    study.add_trials([pruned] * 10)  # unusable ones: they report nothing
    assert "intermediate_values.png" in {file.name for file in search_plots(study, tmp_path)}


# The notebook


@pytest.fixture
def run_notebook(tmp_path, monkeypatch):
    """Runs the notebook in a copy of what it needs; returns the pictures shown and the text printed by the cells."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    for file in [*REPOSITORY.glob("*.py"), REPOSITORY / "result_plot.ipynb"]:
        shutil.copy(file, tmp_path)
    shutil.copytree(REPOSITORY / "Experiment", tmp_path / "Experiment")
    for file in (PUBLISHED_CAS, PUBLISHED_PIPELINE):
        (tmp_path / "CAS Results").mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / "CAS Results")

    def run():
        notebook = nbformat.read(tmp_path / "result_plot.ipynb", 4)
        NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        pictures = [output for output in outputs if "image/png" in output.get("data", {})]
        return len(pictures), "".join(output.get("text", "") for output in outputs)

    return run


def test_notebook_shows_the_published_figures(run_notebook, tmp_path):
    pictures, text = run_notebook()
    assert pictures == 6 + 2
    assert "No CAS of experiment demo" in text and "No search of experiment demo" in text
    there = sorted(file.name for file in (tmp_path / "CAS Results" / "CAS_plots").iterdir())
    assert there == sorted(f"{dataset}.png" for dataset in PUBLISHED_DATASETS)
    assert sorted(file.name for file in (tmp_path / "optimization_plots").iterdir()) == ["top_1.png", "top_5.png"]


def test_notebook_shows_an_experiment(run_notebook, tmp_path):
    demo = Experiment(tmp_path / "demo", "demo", "digits")
    write_json(demo.cas_file, DEMO_CAS)
    write_json(demo.pipeline_file, DEMO_PIPELINE)
    pictures, text = run_notebook()
    assert pictures == 6 + 2 + 1 + 2
    assert text == ""
    assert all(map(is_picture, [demo.cas_plot, demo.pipeline_plot("top_1"), demo.pipeline_plot("top_5")]))


def test_notebook_is_stored_without_outputs():
    notebook = nbformat.read(REPOSITORY / "result_plot.ipynb", 4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")
