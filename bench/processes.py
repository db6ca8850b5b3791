"""Sides of a measurement, each a process of its own that waits for jobs, and how two or more of them take turns."""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile

from Experiment.paths import REPOSITORY


class Side:
    """A process of `bench.worker` or `bench.peer` that waits for jobs."""

    def __init__(self, module, *arguments, python=sys.executable):
        environment = os.environ | {"SD_UNTRAINED_BACKBONE": "1", "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
        self.name, self.memory_gb = " ".join(map(str, (module, *arguments))), 0
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [python, "-m", module, *map(str, arguments)],
            cwd=REPOSITORY,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
        )
        self.jobs = self.answer()["jobs"]

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise RuntimeError(f"{self.name} ended with code {self.process.wait()}:\n{self.errors.read()[-2000:]}")
        return json.loads(line)

    def run(self, job, save=None):
        """Do a job and return how long it took, s."""
        self.process.stdin.write(json.dumps({"job": job, "save": str(save) if save else None}) + "\n")
        self.process.stdin.flush()
        answer = self.answer()
        self.memory_gb = answer["memory_gb"]
        return answer["seconds"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


@contextlib.contextmanager
def sides(*descriptions):
    """Sides that are started one after the other and ended together; a description is (module, argument ...)."""
    with contextlib.ExitStack() as stack:
        started = []
        for description in descriptions:
            side = Side(*description) if isinstance(description, tuple) else description()
            stack.callback(side.close)
            started.append(side)
        yield started


def alternate(rounds, *jobs):
    """Median times of jobs (side, name), s, that are done in turn, A B A B."""
    seconds = [[] for _ in jobs]
    for _ in range(rounds):
        for times, (side, name) in zip(seconds, jobs):
            times.append(side.run(name))
            print(f"    {side.name}, {name}: {times[-1]:.2f} s", flush=True)
    return [statistics.median(times) for times in seconds]


def in_turn(rounds, known):
    """Medians of a training step's time, s, and of the peak memory, GB, by name.

    Several trainings of the full UNet do not fit into memory together, so A B A B is of processes that come and go.

    Args:
        rounds: Counted steps of a process.
        known: {name: description of a side whose job is `step`}.
    """
    seconds, memory = {name: [] for name in known}, {name: [] for name in known}
    for _ in range(2):
        for name, description in known.items():
            with sides(description) as (process,):
                process.run("step")
                seconds[name].append(alternate(rounds, (process, "step"))[0])
                memory[name].append(process.memory_gb)
    return [{name: statistics.median(values) for name, values in found.items()} for found in (seconds, memory)]


def peak_memory(command):
    """Most memory of a command, GB.

    Raises:
        RuntimeError: It failed; with the end of what it said.
    """
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(errors.decode()[-2000:])
    return usage.ru_maxrss / 2**20
