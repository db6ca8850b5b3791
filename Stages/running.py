"""Stages as processes: their output, their end, and what is told when they are stopped."""

import contextlib
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import groupby

from Experiment.errors import UserError
from Experiment.paths import REPOSITORY

KILLED = "was killed by signal {}: by somebody, or by the system where memory lacks"
GOES_ON = ": the same command goes on from there"


class Running:
    """A stage and the process that it runs in.

    The process has a session of its own: Ctrl-C in a terminal reaches the pipeline alone, which passes it on, waits, and
    tells in one line how all ended.

    Args:
        stage: The `Stage`.
        tell: Function of the stage, a line and the stream that it belongs to. Threads call it.

    Attributes:
        code: Exit code; None where the stage has not ended, or was never begun.
        said: What its last line said where it ended by a mistake or a stop.
        finished_before: Whether an earlier run has finished it.
        seconds: How long it took.
    """

    def __init__(self, stage, tell):
        self.stage, self.tell, self.process = stage, tell, None
        self.code, self.said, self.finished_before, self.seconds = None, "", False, 0.0
        self.last_line = re.compile(rf"{stage.script}\.py: (?:error: |interrupted; )(.*)")

    def begin(self):
        self.process = subprocess.Popen(
            [sys.executable, str(REPOSITORY / self.stage.command[0]), *self.stage.command[1:]], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip

    def follow(self):
        """Pass its lines on until it ends."""
        started = time.time()
        errors = threading.Thread(target=self.read, args=(self.process.stderr, sys.stderr))
        errors.start()
        self.read(self.process.stdout, sys.stdout)
        errors.join()
        self.code, self.seconds = self.process.wait(), time.time() - started

    def read(self, output, to):
        """Pass lines on. The one that ends a script on a mistake or a stop becomes part of the pipeline's own."""
        for line in output:
            if last := self.last_line.match(line):
                self.said = last[1].removesuffix(GOES_ON)
            else:
                self.finished_before |= line.startswith("finished already")
                self.tell(self.stage, line.rstrip(), to)

    def stop(self, signum):
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signum)

    @property
    def reason(self):
        """Why it failed."""
        return self.said or (KILLED.format(-self.code) if self.code < 0 else f"ended with exit code {self.code}")


class Runner:
    """Runs stages in their order, those of a group side by side.

    Args:
        stages: A list of `Stage`.
        at_once: Most stages that run at a time.
    """

    def __init__(self, stages, at_once):
        self.stages, self.at_once, self.started = stages, at_once, time.time()
        self.runs, self.lock, self.stopped = {}, threading.Lock(), False

    def label(self, stage):
        return f"{self.stages.index(stage) + 1}/{len(self.stages)} {stage.name}"

    def tell(self, stage, line, to=None):
        print(f"[{self.label(stage)}] {line}", file=to or sys.stdout, flush=True)

    def run(self):
        """Run all stages. Raises a UserError that says which one failed, and why."""
        for _, group in groupby(self.stages, lambda stage: stage.group):
            self.run_group(list(group))

    def run_group(self, stages):
        with ThreadPoolExecutor(self.at_once) as pool:
            futures = [pool.submit(self.run_stage, stage) for stage in stages]
            try:
                wait(futures)
            except KeyboardInterrupt as stop:
                self.stop(futures)
                raise stop from None
        for stage, future in zip(stages, futures):
            future.result()
            if (run := self.runs.get(stage)) and run.code:
                raise UserError(f"stage {self.label(stage)}: {run.reason}")

    def run_stage(self, stage):
        """Run a stage to its end, unless the user has stopped all, or one beside it has failed."""
        with self.lock:
            if self.stopped or any(run.code for run in self.runs.values()):
                return
            run = self.runs[stage] = Running(stage, self.tell)
            self.tell(stage, f"{time.time() - self.started:.0f} s so far: python {shlex.join(stage.command)}")
            run.begin()
        run.follow()
        if run.code == 0:
            self.tell(
                stage, "an earlier run has finished it" if run.finished_before else f"finished, {run.seconds:.0f} s"
            )

    def stop(self, futures):
        """Let the running stages save what they have, and wait for them. Further stops change nothing."""
        with self.lock:
            self.stopped = True
        for run in self.runs.values():
            if run.code is None:
                run.stop(signal.SIGINT)
        while not all(future.done() for future in futures):
            with contextlib.suppress(KeyboardInterrupt):
                wait(futures)

    def seconds(self):
        """{stage: s} of this run, and of the whole."""
        return {stage.name: self.runs[stage].seconds for stage in self.stages} | {"all": time.time() - self.started}

    def told(self):
        """What is finished, and how far the others are: for the line that a stop ends with."""
        done = [self.label(stage) for stage, run in self.runs.items() if run.code == 0]
        begun = [f"{self.label(stage)}: {run.said}" for stage, run in self.runs.items() if run.code and run.said]
        return "; ".join([f"finished: {', '.join(done) or 'no stage'}", *begun])
