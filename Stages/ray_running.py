"""Stages as tasks of a Ray cluster: the same commands, on whatever node is free, and again where a node or process is lost.

All nodes must see the checkout under the same path, and the root too, unless its files travel (`carried.py`). The truth is in the
files, as it is without Ray: a command goes on where it was stopped, and the scripts divide shards and trials. So a task that is run
again repeats nothing.
"""

import argparse
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import replace

from Experiment.errors import MAY_PASS, UserError
from Experiment.paths import REPOSITORY
from Experiment.text import one_line
from Stages.ray_task import LOOK, Board, absent, run_command, software
from Stages.running import Running
from Stages.stages import FILE_ADDRESSES

REQUIREMENTS = "cluster/ray-requirements.txt"
ANSWER = 10  # s in which the cluster must answer; Ray by itself tries for minutes
MEMORY = {True: 2 * 2**30, False: 24 * 2**30}  # bytes of a task, of a small backbone or not
PAUSE = {True: 30, False: 0}  # s before a stage begins again, where something may pass or not
ALONE = {"--restart", "--prune", "--no-optimize"}  # of a search: what several workers would do to one another
SEARCH_WORKERS = 4  # at most: the more, the fewer earlier trials a trial learns from (python -m bench.scheduling)
PART_FLAGS = {"shard": "--shard", "repeat": "--repeats"}
KILLS = 5  # times that a task's process may be killed, by the system where memory lacks, before its stage fails


def import_ray():
    """The package. Raises a UserError that says how to get it."""
    try:
        import ray
    except ImportError:
        raise UserError(f"--ray needs Ray: pip install -r {REQUIREMENTS} (0.25 GB)") from None
    return ray


def connect(address):
    """Join the cluster at HOST:PORT, or begin one on this machine where `address` is `local`. Returns the package.

    Raises:
        UserError: There is no Ray, nobody answers, or the cluster is of another version.
    """
    ray = import_ray()
    how = {"address": address, "logging_level": "ERROR", "log_to_driver": False}
    if address == "local":  # files travel through the object store in small pieces: the least that Ray takes will do
        how |= {"num_cpus": os.cpu_count(), "object_store_memory": 100 * 2**20, "include_dashboard": False}
    else:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), ANSWER).close()
        except (OSError, ValueError, OverflowError) as error:
            raise UserError(f"--ray {address}: no cluster answers there ({error})") from None
    stops = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**how)
    except Exception as error:  # Ray's own, RuntimeError, ConnectionError: of other versions, of a head that is no head
        raise UserError(f"--ray {address}: {one_line(error)}") from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, stops)  # Ray's own ends the process without a word of what is saved
    return ray


def slots_of(nodes, needed):
    """How many tasks run at a time on the nodes of a cluster.

    Args:
        nodes: {resource: amount} of each node.
        needed: The same of a task.

    Raises:
        UserError: No node has all that one task needs: Ray would wait for one without a word.
    """
    slots = sum(min(int(node.get(name, 0) // amount) for name, amount in needed.items()) for node in nodes)
    if not slots:
        offers = "; ".join(amounts({name: node.get(name, 0) for name in needed}) for node in nodes[:3])
        raise UserError(f"--ray: no node has what a task needs, {amounts(needed)}; they offer {offers or 'nothing'}")
    return slots


def amounts(resources):
    return ", ".join(f"{x / 2**30:.1f} GiB" if name == "memory" else f"{x:.0f} {name}" for name, x in resources.items())


class Cluster:
    """A Ray cluster that runs commands.

    Args:
        address: HOST:PORT, or `local`.
        memory: Bytes that a task needs.
        root: The `Root` of the experiment where its files travel; None where all nodes see it.

    Attributes:
        slots: Tasks that can run at a time: one a GPU; without GPUs one a core, as far as memory goes.
        one_machine: Whether all of them run on one machine.

    Raises:
        UserError: There is no such cluster, or no task fits on any of its nodes.
    """

    def __init__(self, address, memory, root=None):
        self.ray, self.carried = connect(address), root and (str(root.root), root.exp, root.dataset)
        needed = {"CPU": 1, "memory": memory}
        if self.ray.cluster_resources().get("GPU"):
            needed["GPU"] = 1  # of which Ray shows a task its own alone
        nodes = [node for node in self.ray.nodes() if node["Alive"]]
        self.slots = slots_of([node["Resources"] for node in nodes], needed)
        self.one_machine = len({node["NodeManagerAddress"] for node in nodes}) == 1
        shared = {name: value for name, value in os.environ.items() if name.startswith("TF_")}  # how cores are shared
        self.nodes = [node["NodeID"] for node in nodes]
        self.environment = environment = {"env_vars": {"PYTHONPATH": str(REPOSITORY), **shared}}
        # Nodes that are lost and workers that are killed are for Ray to replace, without end.
        how = {"max_retries": -1, "max_calls": 1, "num_cpus": 1, "num_gpus": needed.get("GPU", 0), "memory": memory}
        self.task = self.ray.remote(runtime_env=environment, **how)(run_command)
        here = self.at(self.ray.get_runtime_context().get_node_id(), soft=root is None)
        board = self.ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here, runtime_env=environment)(Board)
        self.board = board.remote(root)

    def at(self, node, soft=False):
        return self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=soft)

    def check_paths(self, paths):
        """Ask each node whether it has what the user has named by path.

        Raises:
            UserError: One of them has not.
        """
        asking = self.ray.remote(num_cpus=0, max_calls=1, runtime_env=self.environment)(absent)
        tasks = [asking.options(scheduling_strategy=self.at(node)).remote(paths) for node in self.nodes if paths]
        lacking = [f"{name} lacks {', '.join(missing)}" for name, missing in map(self.code, tasks) if missing]
        if lacking:
            raise UserError(f"--carry: what you name by path must lie there on every node: {'; '.join(lacking)}")

    def submit(self, command, live, key):
        return self.task.remote(command, live, self.board, key, software(), self.carried)

    def said(self, key):
        """Lines of a task since the last call, and whether they are errors."""
        try:
            return self.ray.get(self.board.take.remote(key))
        except self.ray.exceptions.RayActorError:
            return []  # the board has died and is begun again; results do not depend on what it knew

    def ended(self, task):
        """Whether a task has ended, after `LOOK` seconds at most."""
        return bool(self.ray.wait([task], timeout=LOOK)[0])

    def code(self, task):
        """The exit code of an ended task's command; None of one that was cancelled.

        Raises:
            UserError: A node could not run it.
        """
        try:
            return self.ray.get(task)
        except self.ray.exceptions.TaskCancelledError:
            return None
        except self.ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            # Without the checkout there, not even this module is found.
            asked = f"; do all nodes see {REPOSITORY}?" if "ModuleNotFoundError" in reason else ""
            raise UserError(f"a node could not run it{asked} ({reason})") from None

    def cancel(self, task):
        self.ray.cancel(task)

    def running(self, stage, display):
        """A stage as a task: what `Runner` asks for."""
        return RayRunning(stage, display, self)

    def close(self):
        # A stop comes again while it is passed on, and would take the place of what it says.
        with contextlib.suppress(KeyboardInterrupt):
            self.ray.shutdown()


class RayRunning(Running):
    """A stage whose command is a task of a `Cluster`."""

    def __init__(self, stage, display, cluster):
        super().__init__(stage, display)
        self.cluster, self.task, self.key, self.stopping = cluster, None, str(id(self)), False

    def begin(self):
        self.task = self.cluster.submit(self.stage.command, self.display.live, self.key)

    def follow(self):
        """Pass its lines on until it ends; what was killed, or may pass, is begun again."""
        started, kills = time.time(), 0
        while self.code is None:
            ended = self.cluster.ended(self.task)
            for line, is_error in self.cluster.said(self.key):
                self.pass_on(line, sys.stderr if is_error else sys.stdout)
            if not ended:
                if self.stopping:  # more than once: an interrupt can be lost in a busy worker
                    self.cluster.cancel(self.task)
                continue
            try:
                code = self.cluster.code(self.task)
            except UserError as error:
                self.said, code = str(error), 2
            if code is not None and (code < 0 or code == MAY_PASS) and kills < KILLS and not self.stopping:
                kills += 1
                what = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}, which may pass"
                self.display.tell(self.stage, f"{what}: begun again", sys.stderr)
                time.sleep(PAUSE[code == MAY_PASS])
                self.begin()
            else:
                self.code = 128 + signal.SIGTERM if code is None else code
        self.seconds = time.time() - started
        if self.lost:
            raise self.lost

    def stop(self):
        self.stopping = True


def value_of(flags, name, default):
    """The value that a command line gives to a flag."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(name, dest="value", default=default)
    return parser.parse_known_args(flags)[0].value


def repeats_of(flags):
    """How many repeats the command line of a classifier asks for; 1 where it is one of several."""
    repeats = value_of(flags, "--repeats", "1")
    return int(repeats) if repeats.isdigit() else 1


def on_a_server(flags):
    """Whether the command line of a search names a database that several machines share: no file."""
    return not value_of(flags, "--storage", "sqlite").startswith(FILE_ADDRESSES)


def divided(work, slots, one_machine=False, carried=False):
    """{stage: GFLOP} in which generations are shards, searches are workers and classifiers are repeats, which need nothing of
    one another.

    The last shard to end writes the manifest, the last repeat tests all; on several machines the undivided command does it
    after them, since none is sure to see all of the others. Sets that are filtered, or made anew, are not divided; nor are searches that
    are begun anew, whose study is a file, which several machines cannot share, or whose files travel:
    which worker measures the best trial is settled by a lock in their folder.

    Args:
        work: {stage: GFLOP}.
        slots: Tasks that run at a time.
        one_machine: Whether all of them run on one machine.
        carried: Whether files travel.
    """
    parts = {}
    for stage, operations in work.items():
        given = {flag.partition("=")[0] for flag in stage.flags}
        count, what = 1, ""
        if stage.script == "generate_dataset" and not {"--filter", "--restart", "--shard"} & given:
            count, what = slots, "shard"
        elif stage.script == "hyp_opt" and not ALONE & given and not carried and (one_machine or on_a_server(stage.flags)):
            count, what = min(slots, SEARCH_WORKERS), "worker"
        elif stage.script == "classifier_training" and not {"--restart", "--train"} & given:
            count, what = repeats_of(stage.flags), "repeat"
        for i in range(1, count + 1):
            part = stage if count == 1 else replace(stage, name=f"{stage.name}, {what} {i} of {count}")
            if count > 1 and what in PART_FLAGS:
                part = replace(part, flags=(*stage.flags, PART_FLAGS[what], f"{i}/{count}"))
            parts[part] = operations / count
        # Of two parts that end together on two machines each may see a file of the other too late.
        if count > 1 and what in PART_FLAGS and (carried or not one_machine):
            parts[replace(stage, name=f"{stage.name}, all {what}s", group=stage.group + 0.5)] = 0.0
    return dict(sorted(parts.items(), key=lambda pair: pair[0].group))
