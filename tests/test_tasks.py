"""Which task of a batch job a process is: what SLURM, Kubernetes and SkyPilot say, and what they leave open."""

import argparse

import pytest

import classifier_training
import generate_dataset
from cli.tasks import SYSTEMS, find_task, shard, size


def array(number, first, last, count, step=1):
    values = {"ID": number, "MIN": first, "MAX": last, "COUNT": count, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


KUBERNETES = {"JOB_COMPLETION_INDEX": "2", "JOB_COMPLETIONS": "3"}
SKYPILOT = {"SKYPILOT_NODE_RANK": "0", "SKYPILOT_NUM_NODES": "2"}
STEP = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}


@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
    """No batch system, whatever runs these tests."""
    for variables in SYSTEMS.values():
        for name in variables:
            monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("environ, place", [
    (array(0, 0, 7, 8), (0, 8)), (array(8, 1, 8, 8), (7, 8)), (array(6, 0, 8, 5, step=2), (3, 5)),
    (KUBERNETES, (2, 3)), (SKYPILOT, (0, 2)), (STEP, (3, 4)),
    (array(2, 0, 3, 4) | {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, (2, 4)),  # each task of an array is a job of one task
    (array(2, 0, 3, 4) | {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, (5, 8)),  # or of several, one a GPU
])  # fmt: skip
def test_every_system_says_which_task_this_is(environ, place):
    assert find_task(environ=environ) == place


@pytest.mark.parametrize("environ, message", [
    ({}, "no batch system is at work: none of SLURM_ARRAY_TASK_ID"),
    (array(3, 3, 3, 1), "1 task from 3 to 3, so it may be a part of one"),  # one shard that is made again: not the whole set
    (array(0, 0, 0, 1), "1 task from 0 to 0"), (array(1, 1, 1, 1), "1 task from 1 to 1"),
    (array(5, 1, 7, 3), "has 3 tasks from 1 to 7"),
    ({"JOB_COMPLETION_INDEX": "2"}, "JOB_COMPLETIONS does not say of how many"),
    ({"SKYPILOT_NODE_RANK": "-1", "SKYPILOT_NUM_NODES": "2"}, "SKYPILOT_NODE_RANK must be a whole number, received -1"),
    ({"SLURM_PROCID": "4", "SLURM_NTASKS": "4"}, "task 4 of 4, counted from 0, is not there"),
])  # fmt: skip
def test_what_leaves_the_place_open_is_refused(environ, message):
    with pytest.raises(ValueError, match=message):
        find_task(environ=environ)


def test_a_part_of_an_array_is_made_again_when_the_whole_is_named():
    assert find_task(8, array(3, 3, 3, 1)) == (3, 8) and find_task(3, {"JOB_COMPLETION_INDEX": "2"}) == (2, 3)
    with pytest.raises(ValueError, match="task 8 of 8"):
        find_task(8, array(8, 1, 8, 8))


def test_all_tasks_of_a_job_make_all_shards_once():
    shards = [find_task(environ=array(i, 1, 20, 20)) for i in range(1, 21)]
    assert shards == [(i, 20) for i in range(20)]


def test_the_flags_take_it(monkeypatch):
    for name, value in array(2, 0, 3, 4).items():
        monkeypatch.setenv(name, value)
    assert shard("auto") == (3, 4) and shard("auto/9") == (3, 9) and shard("2/5") == (2, 5)
    assert generate_dataset.parse_args(["--img_total", "10", "--shard", "auto"]).shard == (3, 4)
    assert classifier_training.parse_args(["--take", "auto"]).take == 3
    assert classifier_training.parse_args(["--take", "auto/9"]).take == 3
    assert classifier_training.parse_args(["--take", "10"]).take == 10


def test_two_flags_that_take_the_same_number_are_refused(monkeypatch, capsys):
    for name, value in array(2, 0, 3, 4).items():
        monkeypatch.setenv(name, value)
    for flags in (["--repeats", "2/4"], ["--repeats", "2"]):
        assert classifier_training.parse_args(["--take", "auto", *flags]).take == 3
    with pytest.raises(SystemExit):
        classifier_training.parse_args(["--take", "auto", "--repeats", "auto/4"])
    assert "argument --repeats: auto is not allowed with --take auto" in capsys.readouterr().err


def test_what_is_wrong_is_one_line(capsys):
    for flags, message in ((["--shard", "auto"], "argument --shard: auto: no batch system is at work"),
                           (["--shard", "auto/0"], "argument --shard: auto/0: "), (["--shard", "auto/"], "must be I/N")):  # fmt: skip
        with pytest.raises(SystemExit, match="2"):
            generate_dataset.parse_args(["--img_total", "10", *flags])
        assert message in (error := capsys.readouterr().err) and len(error.splitlines()) == 1
    with pytest.raises(argparse.ArgumentTypeError, match="no batch system"):
        size(int)("auto")
