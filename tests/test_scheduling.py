"""The simulated search of many workers."""

import numpy as np
import pytest

import pipeline
from bench import plan
from bench.plan import side_by_side, table
from bench.scheduling import main, recorded_seconds, simulate
from Search.workers import GRACE
from Stages.work import START_UP


def rng():
    return np.random.default_rng(1)


def test_one_worker_runs_one_trial_after_the_other():
    found = simulate(np.array([10.0]), 1, 7, 0, 5, rng())
    assert found.wall == 5 + 70 and found.useful == 70 and (found.lost, found.killed, found.known) == (0, 0, 1)


@pytest.mark.parametrize("workers, wall", [(2, 5 + 40), (7, 5 + 10), (64, 5 + 10)])
def test_workers_share_the_budget(workers, wall):
    found = simulate(np.array([10.0]), workers, 7, 0, 5, rng())
    assert found.wall == wall and found.useful == 70
    assert found.known < 1 and (workers < 7 or found.known == 0)  # all begin at once: none knows of another


def test_killed_trials_are_run_again_after_the_others_have_noticed():
    """Half of the trials are killed; each costs what it had done, and a whole one is run in the end."""
    found = [simulate(np.array([100.0]), 4, 20, 0.5, 5, np.random.default_rng(seed)) for seed in range(20)]
    assert all(one.useful == 2000 and 0 < one.lost < 100 * one.killed for one in found)
    assert all(one.wall >= 5 + 100 + GRACE for one in found)
    assert 15 < np.mean([one.killed for one in found]) < 25  # 20 on average
    assert 0.4 < np.mean([one.lost / one.killed / 100 for one in found]) < 0.6  # at a random moment


def test_times_are_read_from_searches_and_drawn(tmp_path, capsys):
    file = tmp_path / "trials.csv"
    file.write_text("trial,state,seconds\n0,COMPLETE,100\n1,PRUNED,20\n2,RUNNING,\n")
    assert recorded_seconds([file]).tolist() == [100, 20]
    main([str(file), "--trials", "10", "--to", str(tmp_path / "a.png")])
    assert (tmp_path / "a.png").stat().st_size > 1000
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 recorded trials, 20 to 100 s, mean 60 s" and len(lines) == 2 + 7
    file.write_text("trial,state,seconds\n0,RUNNING,\n")
    with pytest.raises(SystemExit):
        main([str(file)])
    assert "no trial has a time" in capsys.readouterr().err


def test_what_is_no_record_of_trials_is_one_line(tmp_path, capsys):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    for flags, message in ((["gone.csv"], "gone.csv is no trials.csv"), (["other.csv"], "other.csv is no trials.csv"),
                           (["other.csv", "--trials", "0"], "--trials must be above 0")):  # fmt: skip
        with pytest.raises(SystemExit):
            main([str(tmp_path / flags[0]), *flags[1:]])
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_no_trial_knows_more_than_there_was():
    """One that is repeated knows trials of higher numbers too."""
    found = [simulate(np.array([10.0]), 1, 30, 0.3, 5, np.random.default_rng(seed)).known for seed in range(50)]
    assert max(found) <= 1


# A pipeline on paper


def test_tasks_side_by_side_take_the_time_of_the_busiest():
    assert side_by_side([3, 1, 2], 1) == 6 and side_by_side([3, 1, 2], 2) == 3 and side_by_side([3, 1, 2], 9) == 3


def test_a_pipeline_is_as_fast_as_its_stages_divide(tmp_path):
    flags = ["--dataset", "cifar10", "--exp", "e", "--root", str(tmp_path), "--sizes", "1", "2"]
    rows = table(pipeline.parse_args(flags), 100, (1, 4))
    names = [name for name, *_ in rows]
    assert names == ["transfer learning", "first search", "fine-tuning", "final search", "generation, 1x ... generation, 2x",
                     "classifier, real", "classifier, 1x ... classifier, 2x", "all"]  # fmt: skip
    of = {name: values for name, *values in rows}
    work, alone, four = of["transfer learning"]
    assert alone == four == pytest.approx((1e6 * work / 1000 / 100 + START_UP) / 3600)
    assert 3 < of[names[4]][1] / of[names[4]][2] <= 4 and of[names[6]][1] / of[names[6]][2] == pytest.approx(1.5, abs=0.05)
    assert of["all"][1] == pytest.approx(sum(of[name][1] for name in names[:-1]))


def test_the_plan_is_printed_as_a_table(tmp_path, capsys):
    plan.main(["--tflops", "50", "--", "--dataset", "cifar10", "--exp", "e", "--root", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| stage | PFLOP | 1 GPU | 8 GPUs | 64 GPUs |" and lines[-1].startswith("| all | ") and len(lines) == 10
