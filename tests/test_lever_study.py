"""The study of the levers: which commands a variant is, what variants share, and the table."""

import json
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest

import classifier_training
import generate_dataset
import SD_adapting
from bench import levers, levers_page
from bench.levers import Subject
from bench.levers_table import difference, hits, machines, measured, table
from bench.variants import VARIANTS
from Experiment.intervals import difference_interval

PARSERS = {
    "SD_adapting.py": SD_adapting.parse_args, "generate_dataset.py": generate_dataset.parse_args,
    "classifier_training.py": classifier_training.parse_args,
}  # fmt: skip


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Run the study with scripts that only parse their flags and write them down. Returns (commands of this run, its rows)."""

    def planned(args):
        folder = tmp_path / f"set of {args.exp}"
        folder.mkdir(exist_ok=True)
        (folder / "manifest.json").write_text('{"total": 1000, "precision": "float32", "weights": {"dif": "d"}}')
        return SimpleNamespace(folder=folder)

    def run(*flags):
        commands = []

        def script(self, name, *words):
            PARSERS[name](words)  # refuses what the script does not know
            commands.append((name, *words))

        monkeypatch.setattr(Subject, "script", script)
        monkeypatch.setattr(generate_dataset, "plan", planned)
        monkeypatch.setattr(Subject, "scores", lambda *_: {"val": [0.5], "test": [0.5], "hits": ["10"], "test_images": "t"})
        place = [
            "--work",
            tmp_path / "work",
            "--results",
            tmp_path / "rows.json",
            "--datasets",
            "digits",
            "--precision",
            "float32",
        ]
        levers.main(levers.parse_args(list(map(str, [*place, *flags]))))
        return commands, json.loads((tmp_path / "rows.json").read_text())["rows"]

    return run


def value(command, flag):
    return command[command.index(flag) + 1]


def test_variants_share_what_is_the_same_for_them_and_rows_are_not_measured_again(study):
    commands, rows = study("--variants", "plain", "soft", "ema", "real", "--repeats", "2")
    made = [command for command in commands if command[0] == "generate_dataset.py"]
    learned = [command for command in commands if command[0] == "classifier_training.py"]
    assert [command[0] for command in commands].count("SD_adapting.py") == 4  # twice a Class Encoder and a UNet
    assert len(made) == 2 and value(made[0], "--exp") != value(made[1], "--exp")
    assert ["--labels" in command for command in learned] == [False, True, False, False]
    assert value(learned[0], "--synthetic_dir") == value(learned[1], "--synthetic_dir") != value(learned[2], "--synthetic_dir")
    assert value(learned[3], "--synthetic") == "False" and all(value(c, "--repeats") == "2" for c in learned)
    assert len({value(command, "--exp") for command in learned}) == 4  # accuracies of one do not replace those of another
    assert [row["variant"] for row in rows] == ["plain", "soft", "ema", "real"]
    assert [row["precision"] for row in rows] == ["float32"] * 3 + [None]
    commands, rows = study("--variants", "plain", "soft", "--seeds", "1234", "1")
    assert all(value(command, "--seed") == "1" for command in commands) and len(rows) == 6


def test_best_is_the_recipe_of_that_name(study):
    commands, rows = study("--variants", "best", "best_4x")
    made, made_4x = (command for command in commands if command[0] == "generate_dataset.py")
    learned, learned_4x = (command for command in commands if command[0] == "classifier_training.py")
    totals = [int(value(command, "--img_total")) for command in (made, made_4x)]
    assert value(made, "--solver") == value(made_4x, "--solver") == "dpmpp" and totals == [1000, 4000]
    assert (value(learned, "--labels"), value(learned, "--augment")) == ("both", "standard")
    assert (value(learned, "--take"), value(learned_4x, "--take")) == ("1", "4")
    assert int(value(learned, "--epochs")) == 120  # three times the plain recipe's
    assert [row["passes"] for row in rows] == [16, 16] and value(learned, "--exp") == value(learned_4x, "--exp")


def test_a_unet_that_is_tuned_for_longer_is_one_of_its_own_and_its_last_epoch_draws(study):
    commands, _ = study("--variants", "plain", "tuned_longer")
    plain, longer = (command for command in commands if "dif" in command)
    made = [command for command in commands if command[0] == "generate_dataset.py"]
    assert (value(plain, "--epochs"), value(longer, "--epochs")) == ("64", "128")
    assert [value(command, "--dif_epoch") for command in made] == ["64", "128"]
    assert [value(command, "--exp") for command in made] == [value(plain, "--exp"), value(longer, "--exp")]
    assert value(plain, "--exp") != value(longer, "--exp")


def test_a_teacher_is_trained_once_for_all_variants_and_seeds(study, tmp_path):
    folder = tmp_path / "work/Checkpoints/Classifiers/Exp_s1234csoft/resnet20_16/digits/teacher"
    folder.mkdir(parents=True)
    for name in (".lock", "best_model.weights.h5", "training.json"):
        (folder / name).write_text("{}")
    interrupted = folder.with_name("augmented_teacher")
    interrupted.mkdir()
    study("--variants", "best_soft_4x", "plain", "--seeds", "1")
    for exp in ("s1cbest_soft", "s1cplain"):
        copied = tmp_path / f"work/Checkpoints/Classifiers/Exp_{exp}/resnet20_16/digits"
        assert [path.name for path in copied.iterdir()] == ["teacher"]
        assert sorted(path.name for path in copied.rglob("*.*")) == ["best_model.weights.h5", "training.json"]


def rows_of(variant, *hits, seed=1234, dataset="digits"):
    return {"dataset": dataset, "seed": seed, "variant": variant, "passes": 28, "val": [0.5], "test": [0.5], "hits": hits}


def test_the_table_compares_with_plain_of_the_same_size_and_with_real():
    right, wrong = "1" * 50 + "0" * 50, "1" * 20 + "0" * 80
    rows = [rows_of("real", right), rows_of("plain", wrong), rows_of("soft", right), rows_of("recycle_4x", right)]
    lines = {line.split(" | ")[1]: line.split(" | ") for line in table(rows)[2:]}
    assert "+30.0" in lines["`soft`"][-2] and lines["`soft`"][-2].endswith(") better, of these two trainings")
    assert "`plain`" in lines["`recycle_4x`"] and "better" not in lines["`soft`"][-1]  # there is no plain one of its size
    assert lines["`plain`"][-3:-1] == ["", ""] and "worse" in lines["`plain`"][-1]


def test_several_trainings_are_compared_by_seeds_where_there_are_some():
    """Repeats of one seed share an adapted model: against three seeds they count as one training of the recipe."""
    right, half = "1" * 90 + "0" * 10, "1" * 50 + "0" * 50
    seeds = [rows_of("plain", half, half, seed=seed) for seed in (1, 2, 3)]
    alone = [rows_of("soft", right, right)]
    assert difference(alone, seeds).endswith(")")  # how much others would vary is not known
    real = [rows_of("real", half, seed=seed) for seed in (1, 2, 3)]
    assert table([*real, *alone])[-1].split(" | ")[-1].removesuffix(" |").endswith(")")
    assert difference(alone, seeds[:1]).endswith("**better**")  # two repeats of one seed each
    ours, theirs = hits(alone, by_seed=True), hits(seeds, by_seed=True)
    low, high = (100 * x for x in difference_interval(ours, theirs))
    assert ours.shape == (1, 100) and theirs.shape == (3, 100)
    assert f"+40.0 ({low:+.1f} to {high:+.1f})" in difference(alone, seeds)


def test_no_word_stands_beside_sets_of_two_adapted_models_of_one_seed_each():
    right, wrong = "1" * 90 + "0" * 10, "1" * 50 + "0" * 50
    real, plain = rows_of("real", right, right), rows_of("plain", wrong, wrong) | {"adapted": "a"}
    soft, same, other = rows_of("soft", right, right), {"adapted": "a"}, {"adapted": "b"}
    for row, word in ((soft | same, True), (soft | other, False), (soft, False), (rows_of("ema", right, right), False)):
        lines = [line.split(" | ") for line in table([real, plain, row])[2:]]
        told = {line[1]: line for line in lines}
        against_plain = told[f"`{row['variant']}`"][-2]
        assert against_plain.endswith("**better**") is word and "+40.0" in against_plain
        assert "**worse**" in told["`plain`"][-1]  # real images are of no model


def test_the_published_rate_is_compared_with_itself():
    right, half, wrong = "1" * 100, "1" * 50 + "0" * 50, "1" * 20 + "0" * 80
    rows = [rows_of("real", right), rows_of("plain", half), rows_of("real_plateau", right), rows_of("plateau", wrong),
            rows_of("augment_plateau", half)]  # fmt: skip
    lines = {line.split(" | ")[1]: line.split(" | ") for line in table(rows)[2:]}
    assert "+30.0" in lines["`augment_plateau`"][-2] and "-80.0" in lines["`plateau`"][-1]
    lines = {line.split(" | ")[1]: line.split(" | ") for line in table(rows[:2] + rows[4:])[2:]}
    assert lines["`augment_plateau`"][-2:] == ["", " |"]


def test_rows_say_on_what_they_were_measured():
    cpu, gpu = {"processor": {"name": "A"}, "gpus": []}, {"processor": {"name": "A"}, "gpus": [{"name": "G"}]}
    rows = [rows_of("real", "1") | {"machine": cpu, "precision": None}, rows_of("plain", "1") | {"machine": gpu, "precision": "float32"},
            rows_of("soft", "1") | {"machine": gpu, "precision": "float32"}, rows_of("ema", "1")]  # fmt: skip
    assert machines(rows) == ["digits, A: real", "digits, G, float32: plain, soft", "digits, not recorded: ema"]


def test_a_file_of_another_study_is_refused(study):
    study("--variants", "real")
    with pytest.raises(SystemExit, match="name another --results"):
        study("--variants", "real", "--backbone", "small")


def test_rows_of_another_precision_are_refused(study):
    study("--variants", "real", "plain")
    with pytest.raises(SystemExit, match="has rows of float32, not mixed_bfloat16: name another --results"):
        study("--variants", "soft", "--precision", "mixed_bfloat16")


def test_rows_by_other_pretrained_weights_are_refused(study, tmp_path):
    study("--variants", "plain")
    there = json.loads((tmp_path / "rows.json").read_text())
    (tmp_path / "rows.json").write_text(json.dumps(there | {"unet": "0" * 8}))
    with pytest.raises(SystemExit, match="'unet': '00000000'.*name another --results"):
        study("--variants", "soft")


def test_rows_of_another_recipe_or_of_other_test_images_are_not_compared(study, tmp_path, monkeypatch, capsys):
    _, (row,) = study("--variants", "real")
    assert row["recipe"] == {"enc": 12, "dif": 64, "classifier": "resnet20_16", "batch_size": 64, "epochs": 40}
    scores = {"val": [0.5], "test": [0.5], "hits": ["10"], "test_images": "other"}
    levers_run = [
        "--work",
        tmp_path / "work",
        "--results",
        tmp_path / "rows.json",
        "--datasets",
        "digits",
        "--precision",
        "float32",
    ]
    monkeypatch.setattr(Subject, "scores", lambda *_: scores)
    args = levers.parse_args(list(map(str, [*levers_run, "--variants", "plain"])))
    levers.main(args)
    assert "tested on other images" in capsys.readouterr().out
    assert [row["variant"] for row in json.loads((tmp_path / "rows.json").read_text())["rows"]] == ["real"]
    monkeypatch.setattr(Subject, "recipe", row["recipe"] | {"optimizer": "sgd"})
    with pytest.raises(SystemExit, match="by another recipe.*name another --results"):
        levers.main(args)


def test_every_variant_is_a_command_line_that_the_scripts_take(study):
    names = [name for name in VARIANTS if name != "plain"]
    _, rows = study("--variants", *names)
    assert [row["variant"] for row in rows] == names


def test_a_variant_is_compared_with_the_plain_one_that_has_most_of_its_seeds():
    right, half = "1" * 90 + "0" * 10, "1" * 50 + "0" * 50
    seeds = [rows_of(name, half, seed=seed) for name in ("dpmpp_8", "best", "best_4x") for seed in (1, 2)]
    few = [
        rows_of("plain", right, seed=1),
        rows_of("sgd", right, seed=1),
        rows_of("best_hard", right, seed=2),
        rows_of("ema", right),
    ]

    def against(rows):
        found = {one.name: one.plain for one in measured(rows)}
        return {name: rows and (rows[0]["variant"], [row["seed"] for row in rows]) for name, rows in found.items()}

    found = against(seeds + few)
    assert found["best"] == found["best_4x"] == ("dpmpp_8", [1, 2]) and found["best_hard"] == ("dpmpp_8", [2])
    assert found["dpmpp_8"] == found["sgd"] == ("plain", [1]) and found["plain"] is None
    assert found["ema"] is None  # none has its seed
    assert against([*seeds, *(rows_of("plain_4x", half, seed=seed) for seed in (1, 2))])["best_4x"][0] == "plain_4x"
    mixed = [rows_of("best", right, seed=1), rows_of("plain", half, seed=1)]
    assert against([*mixed, rows_of("dpmpp_8", half, seed=2)])["best"] == ("plain", [1])


def test_the_page_is_what_the_files_of_the_study_give():
    assert {path.name for path in levers_page.HERE.glob("levers*.json")} == set(levers_page.STUDIES)
    assert levers_page.PAGE.read_text() == levers_page.page()


def test_the_picture_colours_what_several_trainings_show(tmp_path, monkeypatch):
    right, half, wrong = "1" * 90 + "0" * 10, "1" * 50 + "0" * 50, "1" * 10 + "0" * 90
    rows = [
        rows_of(name, *each, seed=seed)
        for name, each in (("plain", [half]), ("best", [right]), ("ema", [half]))
        for seed in (1, 2)
    ]
    rows += [rows_of("plain", half, half, dataset="eyes"), rows_of("soft", wrong, wrong, dataset="eyes"),
             rows_of("plain", half, dataset="cats"), rows_of("soft", wrong, dataset="cats")]  # fmt: skip
    (tmp_path / "rows.json").write_text(json.dumps({"rows": rows}))
    monkeypatch.setattr(levers_page, "SHOWN", {("rows.json", name): name for name in ("digits", "eyes", "cats")})
    figures = []
    monkeypatch.setattr(levers_page, "save_figure", lambda figure, path: figures.append(figure))
    levers_page.draw(tmp_path / "levers.png", tmp_path)
    drawn = [[(line.get_color(), line.get_linestyle()) for line in axis.get_lines()[:-1:2]] for axis in figures[0].axes]
    assert drawn == [[("tab:gray", "-"), ("tab:green", "-")], [("tab:red", ":")], [("tab:gray", ":")]]
    assert [text.get_text() for text in figures[0].axes[1].get_yticklabels()] == ["soft against plain, 1 seed, 2 classifiers"]
    plt.close(figures[0])
