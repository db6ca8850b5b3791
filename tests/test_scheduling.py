"""The simulated search of many workers."""

import numpy as np
import pytest

from bench.scheduling import main, recorded_seconds, simulate
from Search.workers import GRACE


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
