"""Stages as tasks of a Ray cluster of two nodes on this machine; skipped where Ray is not installed (make ray)."""

import contextlib
import csv
import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from Experiment.errors import UserError
from Experiment.files import read_json
from Experiment.paths import REPOSITORY
from Experiment.records import software
from Stages import ray_running
from Stages.carried import Root
from Stages.display import Display
from Stages.ray_running import Cluster, divided, slots_of
from Stages.running import Runner
from Stages.stages import Stage
from tests.test_scripts import succeed, tree


def test_without_ray_the_way_to_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="pip install -r cluster/ray-requirements.txt"):
        Cluster("local", 1)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere.invalid:6379", "local-host", "127.0.0.1:x", "127.0.0.1:99999"])
def test_an_address_where_no_cluster_answers(monkeypatch, address):
    monkeypatch.setitem(sys.modules, "ray", types.ModuleType("ray"))
    with pytest.raises(UserError, match="no cluster answers there"):
        Cluster(address, 1)


def test_a_cluster_of_another_version_is_one_line(monkeypatch):
    class Listening:
        def close(self):
            pass

    ray = types.ModuleType("ray")

    def init(**_):
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.0.0")

    ray.init = init
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(ray_running.socket, "create_connection", lambda *_: Listening())
    with pytest.raises(UserError, match="--ray head:6379: Version mismatch: The cluster was started with: Ray: 2.0.0"):
        Cluster("head:6379", 1)


def test_generation_is_divided_and_nothing_else():
    generation, other = (Stage("generation, 1x", "generate_dataset", ("--best",), 4), Stage("first search", "hyp_opt", (), 1))
    filtered = Stage("generation, 4x", "generate_dataset", ("--best", "--filter=0.5"), 4)
    anew = Stage("generation, 4x", "generate_dataset", ("--best", "--restart"), 4)
    work = divided({other: 5.0, generation: 9.0, filtered: 2.0}, 3)
    assert [stage.name for stage in work] == [
        "first search", *(f"generation, 1x, shard {i} of 3" for i in (1, 2, 3)), "generation, 4x", "generation, 1x, all shards"
    ]  # fmt: skip
    assert [stage.flags for stage in work][1] == ("--best", "--shard", "1/3") and list(work.values()) == [5, 3, 3, 3, 2, 0]
    *_, last = work  # each shard may see the images of the others too late to write the manifest
    assert (last.flags, last.group) == (generation.flags, 4.5)
    assert len(divided({generation: 9.0}, 3, one_machine=True)) == 3
    assert divided({generation: 9.0}, 1) == {generation: 9.0} and divided({anew: 9.0}, 3) == {anew: 9.0}


def test_workers_share_a_search_where_they_can_share_its_study():
    search = Stage("first search", "hyp_opt", ("--n_trials", "5"), 1)
    stored = Stage("first search", "hyp_opt", ("--storage", "postgresql://x/y"), 1)
    assert divided({search: 8.0}, 2) == {search: 8.0}
    work = divided({search: 8.0}, 2, one_machine=True)
    assert [stage.name for stage in work] == ["first search, worker 1 of 2", "first search, worker 2 of 2"]
    assert {stage.flags for stage in work} == {search.flags} and list(work.values()) == [4, 4]
    assert len(divided({stored: 8.0}, 64)) == ray_running.SEARCH_WORKERS
    for file in ("sqlite:////shared/study.db", "journal:/shared/study.log"):
        assert len(divided({replace(search, flags=(f"--storage={file}",)): 8.0}, 2)) == 1
    anew = replace(stored, flags=(*stored.flags, "--restart"))  # each worker would take the study from the others
    assert divided({anew: 8.0}, 2) == {anew: 8.0}


def test_repeats_of_a_classifier_are_tasks():
    stage = Stage("classifier, 1x", "classifier_training", ("--take", "1", "--repeats=3"), 5)
    work = divided({stage: 9.0}, 2, one_machine=True)
    assert [part.name for part in work] == [f"classifier, 1x, repeat {i} of 3" for i in (1, 2, 3)]
    *_, last = divided({stage: 9.0}, 2)  # two that end together on two machines may not see each other
    assert (last.name, last.flags, last.group) == ("classifier, 1x, all repeats", stage.flags, 5.5)
    assert [part.flags[-2:] for part in work] == [("--repeats", f"{i}/3") for i in (1, 2, 3)]
    for flags in (
        ("--take", "1"),
        ("--repeats", "2/3"),
        ("--repeats", "3", "--restart"),
        ("--repeats", "3", "--train", "False"),
    ):
        other = replace(stage, flags=flags)
        assert divided({other: 9.0}, 2) == {other: 9.0}


def test_tasks_are_counted_node_by_node():
    """What is promised and does not fit anywhere would wait for ever, without a word."""
    gib = 2**30
    nodes = [{"CPU": 4, "memory": 9 * gib}, {"CPU": 1, "memory": 99 * gib, "GPU": 1}, {"memory": 99 * gib}]
    assert slots_of(nodes, {"CPU": 1, "memory": 2 * gib}) == 5
    assert slots_of(nodes, {"CPU": 1, "memory": 24 * gib, "GPU": 1}) == 1
    with pytest.raises(UserError, match="a task needs, 1 CPU, 24.0 GiB; they offer 4 CPU, 9.0 GiB$"):
        slots_of(nodes[:1], {"CPU": 1, "memory": 24 * gib})
    with pytest.raises(UserError, match="they offer nothing"):
        slots_of([], {"CPU": 1, "memory": gib})


def test_where_files_travel_a_task_closes_each_set_in_the_end():
    """On a node like those of the shards: what `auto` means on the head may be something else."""
    one = Stage("generation, 1x", "generate_dataset", ("--best",), 4)
    real, search = Stage("classifier, real", "classifier_training", (), 4), Stage("first search", "hyp_opt", (), 1)
    after = Stage("classifier, 1x", "classifier_training", (), 5)
    work = list(divided({search: 8.0, one: 9.0, real: 1.0, after: 1.0}, 2, one_machine=True, carried=True))
    assert [stage.name for stage in work] == ["first search", "generation, 1x, shard 1 of 2", "generation, 1x, shard 2 of 2",
                                              "classifier, real", "generation, 1x, all shards", "classifier, 1x"]  # fmt: skip
    assert [stage.group for stage in work] == [1, 4, 4, 4, 4.5, 5] and work[4].flags == one.flags
    assert type(Cluster.running(None, work[4], Display(work, dict.fromkeys(work, 1.0)))) is ray_running.RayRunning
    stored = replace(search, flags=("--storage", "postgresql://x/y"))
    assert divided({stored: 8.0}, 2, carried=True) == {stored: 8.0}  # one worker alone must measure the best trial
    repeated = replace(after, flags=("--repeats", "2"))
    *repeats, last = divided({repeated: 8.0}, 2, carried=True)
    assert len(repeats) == 2 and (last.name, last.flags) == ("classifier, 1x, all repeats", repeated.flags)


@pytest.fixture
def nodes():
    """Two nodes of one core each; yields the cluster of Ray's own tests and the address of its head."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster as Nodes

    interrupts = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a shell
    made = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 * 2**20})
    made.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    made.wait_for_nodes()
    signal.signal(signal.SIGINT, interrupts)
    yield made
    made.shutdown()


@pytest.fixture
def cluster(nodes):
    stops = signal.getsignal(signal.SIGTERM)
    made = Cluster(nodes.address, 100 * 2**20)
    assert signal.getsignal(signal.SIGTERM) is stops  # else a stop would end the pipeline without a word
    yield made
    made.close()


def without_checkout(*task):
    import nowhere  # noqa: F401


def stub_stages(folder, count=40, shards=2):
    return [Stage(f"shard {i}", "tests/ray_stub", (str(folder), "--count", str(count), "--shard", f"{i}/{shards}"), 0)
            for i in range(1, shards + 1)]  # fmt: skip


def start(cluster, stages):
    runner = Runner(stages, cluster.slots, Display(stages, dict.fromkeys(stages, 1.0)), cluster.running)

    def run():
        with contextlib.suppress(UserError):  # of a stop; each test looks at the codes
            runner.run()

    thread = threading.Thread(target=run)
    thread.start()
    return runner, thread


def wait(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def pids(folder, shard):
    """(process, its task's worker) of a stand-in that is at work."""
    wait(lambda: (folder / f"pid-{shard}-2").exists() and (folder / f"pid-{shard}-2").read_text().count(" ") == 1)
    return tuple(map(int, (folder / f"pid-{shard}-2").read_text().split()))


def check_whole(folder, count=40):
    assert all((folder / f"{i}.txt").read_text() == str(i * i) for i in range(count))
    writes = (folder / "writes").read_text().split()
    assert sorted(map(int, set(writes))) == list(range(count)) and len(writes) - count <= 2  # one in the making at a kill


def test_tasks_run_side_by_side_and_tell_what_they_do(cluster, tmp_path, capsys):
    assert cluster.slots == 2
    runner, thread = start(cluster, stub_stages(tmp_path / "out"))
    thread.join()
    check_whole(tmp_path / "out")
    said = capsys.readouterr().out
    assert "[1/2 shard 1] 40 files are there" in said and "[2/2 shard 2] finished, " in said
    assert all(run.code == 0 for run in runner.runs.values())


def test_a_mistake_of_the_user_is_told_and_not_tried_again(cluster, tmp_path):
    stage = Stage("stub", "tests/ray_stub", (str(tmp_path / "out"), "--mistake"), 0)
    runner = Runner([stage], 1, Display([stage], {stage: 1.0}), cluster.running)
    with pytest.raises(UserError, match="stage 1/1 stub: something is wrong"):
        runner.run()


@pytest.mark.parametrize("who", ["process", "worker"])
def test_what_is_killed_runs_again(cluster, tmp_path, who):
    """The script, or the task's worker, with which the script dies: its successor would write beside it."""
    runner, thread = start(cluster, stub_stages(tmp_path / "out"))
    process, worker = pids(tmp_path / "out", 1)
    wait(lambda: len(list((tmp_path / "out").glob("*.txt"))) > 5)
    os.kill(process if who == "process" else worker, signal.SIGKILL)
    thread.join()
    assert all(run.code == 0 for run in runner.runs.values())
    assert pids(tmp_path / "out", 1)[0] != process
    check_whole(tmp_path / "out")


def test_a_node_that_goes_is_replaced(nodes, cluster, tmp_path):
    runner, thread = start(cluster, stub_stages(tmp_path / "out", 60))
    wait(lambda: len(list((tmp_path / "out").glob("*.txt"))) > 5)
    nodes.remove_node(next(node for node in nodes.list_all_nodes() if node is not nodes.head_node), allow_graceful=False)
    nodes.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    thread.join()
    assert all(run.code == 0 for run in runner.runs.values())
    check_whole(tmp_path / "out", 60)


DRIVER = """
import sys
from tests.test_ray import Cluster, start, stub_stages
from pathlib import Path
cluster = Cluster(sys.argv[1], 100 * 2**20)
runner, thread = start(cluster, stub_stages(Path(sys.argv[2]), 60))
thread.join()
assert all(run.code == 0 for run in runner.runs.values())
"""


def test_a_driver_that_is_killed_and_begun_again(nodes, tmp_path):
    command = [sys.executable, "-c", DRIVER, nodes.address, str(tmp_path / "out")]
    first = subprocess.Popen(command, cwd=REPOSITORY)
    process, _ = pids(tmp_path / "out", 1)
    wait(lambda: len(list((tmp_path / "out").glob("*.txt"))) > 5)
    first.kill()
    first.wait()
    subprocess.run(command, cwd=REPOSITORY, check=True, timeout=120)
    assert not Path(f"/proc/{process}").exists()
    check_whole(tmp_path / "out", 60)


def test_a_stop_lets_tasks_save_what_they_have(cluster, tmp_path):
    runner, thread = start(cluster, stub_stages(tmp_path / "out", 400))
    wait(lambda: (tmp_path / "out/4.txt").exists() and (tmp_path / "out/5.txt").exists())  # of both
    for run in runner.runs.values():
        run.stop()
    wait(lambda: all(run.code for run in runner.runs.values()), 30)
    assert [run.said for run in runner.runs.values()] == ["all is saved"] * 2
    assert [run.code for run in runner.runs.values()] == [143] * 2


def test_a_script_that_is_stopped_while_it_starts_is_not_begun_again(cluster, tmp_path):
    """It dies by its SIGTERM, before it has a handler."""
    runner, thread = start(cluster, [replace(stage, flags=(*stage.flags, "--slow")) for stage in stub_stages(tmp_path)])
    pids(tmp_path, 1)
    for run in runner.runs.values():
        run.stop()
    thread.join()
    assert all(run.code for run in runner.runs.values()) and not list(tmp_path.glob("*.txt"))


SET = "Data/Synthetic/Exp_x/digits/set"


@pytest.fixture
def carrying(nodes, tmp_path):
    """A cluster whose nodes do not see the root."""
    made = Cluster(nodes.address, 100 * 2**20, Root(tmp_path / "root", "x", "digits"))
    yield made
    made.close()


def carried_stages(count=400):
    """Longer than the time between two sendings."""
    return [replace(stage, flags=(SET, *stage.flags[1:])) for stage in stub_stages("", count)]


@pytest.fixture(scope="module")
def made_alone(tmp_path_factory):
    """{file: content} of what the stages make without Ray."""
    root = tmp_path_factory.mktemp("alone")
    running = [subprocess.Popen([sys.executable, REPOSITORY / stage.command[0], *stage.flags, "--root", root])
               for stage in carried_stages()]  # fmt: skip
    assert [process.wait() for process in running] == [0, 0]
    return {path.name: path.read_bytes() for path in (root / SET).glob("*.txt")}


def check_same(folder, alone):
    assert alone == {path.name: path.read_bytes() for path in folder.glob("*.txt")}
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("who", ["process", "worker"])
def test_files_travel_where_nodes_share_no_folder(carrying, made_alone, tmp_path, who):
    """One is killed on the way: its successor goes on from what had arrived."""
    folder = tmp_path / "root" / SET
    runner, thread = start(carrying, carried_stages())
    killed = pids(folder, 1)[who == "worker"]
    wait(lambda: len(list(folder.glob("*.txt"))) > 20)
    os.kill(killed, signal.SIGKILL)
    thread.join()
    assert all(run.code == 0 for run in runner.runs.values())
    check_same(folder, made_alone)


def test_files_travel_though_the_board_goes(carrying, made_alone, tmp_path):
    folder = tmp_path / "root" / SET
    runner, thread = start(carrying, carried_stages())
    wait(lambda: len(list(folder.glob("*.txt"))) > 5)
    carrying.ray.kill(carrying.board, no_restart=False)
    thread.join()
    assert all(run.code == 0 for run in runner.runs.values())
    check_same(folder, made_alone)


def test_a_stop_brings_what_nodes_have_made(carrying, tmp_path):
    folder = tmp_path / "root" / SET
    runner, thread = start(carrying, carried_stages(4000))
    wait(lambda: len(list(folder.glob("*.txt"))) > 5)
    before = len(list(folder.glob("*.txt")))
    for run in runner.runs.values():
        run.stop()
    thread.join(60)
    assert [run.code for run in runner.runs.values()] == [143] * 2
    there = {path.stem for path in folder.glob("*.txt")}
    assert before < len(there) < 4000 and len(set((folder / "writes").read_text().split()) - there) <= 1


class FullRoot(Root):
    """A root on a disk that is full as long as a file says so."""

    def write(self, *args):
        if (self.root / "full").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().write(*args)


def test_a_root_without_room_is_one_line_and_tried_again(nodes, tmp_path, capsys):
    root = FullRoot(tmp_path / "root", "x", "digits")
    root.root.mkdir()
    (root.root / "full").touch()
    cluster, said = Cluster(nodes.address, 100 * 2**20, root), ""
    try:
        runner, thread = start(cluster, carried_stages(20))
        while "disk" not in said:
            time.sleep(0.1)
            said += capsys.readouterr().err
        (root.root / "full").unlink()
        thread.join()
    finally:
        cluster.close()
    assert re.search(
        r"--carry, node \S+: the disk of the pipeline is full: .*No space left on device: tried again$", said, re.M
    )
    assert all(run.code == 0 for run in runner.runs.values())
    assert {path.stem for path in (root.root / SET).glob("*.txt")} == set(map(str, range(20)))


def test_a_full_object_store_is_one_line_and_tried_again(tmp_path, capsys):
    """The store is full, and Ray may not put on disk what others hold in it."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster as Nodes

    full = {"automatic_object_spilling_enabled": False, "local_fs_capacity_threshold": 0.0}
    nodes = Nodes(
        initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 * 2**20, "_system_config": full}
    )
    cluster, said = Cluster(nodes.address, 100 * 2**20, Root(tmp_path, "x", "digits")), ""
    try:
        held = cluster.ray.put(np.zeros(75 * 2**20, "uint8"))
        (stage,) = stub_stages(SET, 2, shards=1)
        runner, thread = start(cluster, [replace(stage, flags=(*stage.flags, "--size", str(12 * 2**20)))])
        while "object store" not in said:
            time.sleep(0.1)
            said += capsys.readouterr().err
        del held
        thread.join()
    finally:
        cluster.close()
        nodes.shutdown()
    assert re.search(r"--carry, node \S+: Ray's object store has no room: .*: tried again$", said, re.M)
    assert all(run.code == 0 for run in runner.runs.values())
    assert [path.stat().st_size for path in (tmp_path / SET).glob("*.txt")] == [12 * 2**20] * 2


def test_nodes_are_asked_for_what_is_named_by_path(carrying, tmp_path):
    carrying.check_paths([])
    carrying.check_paths([str(tmp_path)])
    with pytest.raises(UserError, match="must lie there on every node: .* lacks /nowhere/data; .* lacks /nowhere/data$"):
        carrying.check_paths([str(tmp_path), "/nowhere/data"])


def test_a_node_of_another_version_is_one_line(cluster, tmp_path, monkeypatch):
    """It would make images of another kind without a word."""
    (stage,) = stub_stages(tmp_path, shards=1)
    other = re.sub("code .{12}", "code 0123456789ab", software())
    monkeypatch.setattr(ray_running, "software", lambda: other)
    runner = Runner([stage], 1, Display([stage], {stage: 1.0}), cluster.running)
    with pytest.raises(UserError, match="node .* has code .{12} where the pipeline has code 0123456789ab$"):
        runner.run()
    assert "keras-cv " in other and not list(tmp_path.iterdir())


def test_a_node_without_the_checkout_is_one_line(cluster, tmp_path):
    (stage,) = stub_stages(tmp_path, shards=1)
    cluster.task = cluster.ray.remote(max_calls=1)(without_checkout)
    runner = Runner([stage], 1, Display([stage], {stage: 1.0}), cluster.running)
    with pytest.raises(UserError, match=r"do all nodes see .*\? \(ModuleNotFoundError: No module named 'nowhere'\)"):
        runner.run()


class OneTask:
    """A cluster whose only task ends when it is cancelled."""

    def __init__(self):
        self.cancelled = 0

    def submit(self, *_):
        return "task"

    def ended(self, task):
        return self.cancelled > 0

    def said(self, key):
        return [("a line", False)]

    def cancel(self, task):
        self.cancelled += 1

    def code(self, task):
        return None


def test_a_task_whose_lines_cannot_be_passed_on_is_stopped(monkeypatch):
    def tell(display, stage, line, to=None):
        if line == "a line":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Display, "tell", tell)
    stage, cluster = Stage("stub", "stub", (), 0), OneTask()
    runner = Runner([stage], 1, Display([stage], {stage: 1.0}), lambda *of: ray_running.RayRunning(*of, cluster))
    with pytest.raises(OSError, match="No space left"):
        runner.run()
    assert cluster.cancelled == 1


# The real stages


def processes(root, script):
    """Processes of a script that work below a root, oldest first."""
    import psutil

    found = [process for process in psutil.process_iter(["cmdline", "create_time"])
             if process.info["cmdline"] and str(root) in process.info["cmdline"]
             and any(word.endswith(script) for word in process.info["cmdline"])]  # fmt: skip
    return sorted(found, key=lambda process: process.info["create_time"])


TINY = ["--dataset", "digits", "--exp", "r", "--backbone", "mini", "--enc_epochs", 1, "--dif_epochs", 1, "--n_trials", 2,
        "--num_imgs", 32, "--test_imgs", 32, "--trial_epochs", 1, "--classifier_epochs", 1,
        "--also", "hyp_opt --repeats 0 --rungs 1 --is_min 12 --is_max 13 --pruner none",
        "--also", "generate_dataset --batch_size 48"]  # fmt: skip


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The pipeline's root, without Ray."""
    root, started = tmp_path_factory.mktemp("alone"), time.time()
    succeed("pipeline.py", *TINY, "--root", root)
    print(f"without Ray: {time.time() - started:.0f} s")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("how", [(), ("--carry",)], ids=["one folder", "no shared folder"])
def test_the_pipeline_through_kills_gives_the_bytes_of_one_machine(nodes, alone, tmp_path, how):
    """While a set is generated a script is killed, a node goes and another comes, and the driver is killed and begun again."""
    spread, started = tmp_path / "spread", time.time()
    command = [sys.executable, REPOSITORY / "pipeline.py", *TINY, "--root", spread, "--ray", nodes.address, *how]
    command = list(map(str, command))
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def images():
        return len(list(spread.rglob("img_*.png")))

    def make(count):
        wait(lambda: first.poll() is not None or images() >= count, 1800)
        assert first.poll() is None, "it has ended before it was killed"

    make(50)
    killed = processes(spread, "generate_dataset.py")[0]
    killed.kill()
    make(250)
    assert killed.pid not in {process.pid for process in processes(spread, "generate_dataset.py")}
    nodes.remove_node(next(node for node in nodes.list_all_nodes() if node is not nodes.head_node), allow_graceful=False)
    nodes.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    make(450)
    first.kill()
    first.wait()
    there = images()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "an earlier run has finished it" in done.stdout and there < 1000
    print(f"through the faults: {time.time() - started:.0f} s, {there} images when the driver was killed")
    ours, theirs = tree(alone), tree(spread)
    same = {path for path in ours if path.suffix == ".png" and "Synthetic" in path.parts and path.name.startswith("img_")}
    assert len(same) == 1000 and same == {p for p in theirs if p.name.startswith("img_") and p.suffix == ".png"}
    same |= {path for path in ours if path.name == "manifest.json"}
    same |= {path for path in ours if path.name.endswith(".weights.h5")}
    assert not [path for path in same if ours[path] != theirs.get(path)]
    results = ("test_accuracies_expr.json", "pipeline_optimization_expr.json")
    assert all(read_json(alone / "CAS Results" / name) == read_json(spread / "CAS Results" / name) for name in results)
    for part in ("enc", "dif"):  # the same trials, none stuck or done twice
        rows = [sorted(row["state"] for row in csv.DictReader(open(root / f"optimization_plots/r/digits/{part}/trials.csv")))
                for root in (alone, spread)]  # fmt: skip
        assert rows[0] == rows[1] == ["COMPLETE"] * 2
