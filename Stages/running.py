"""Stages as processes: their output, their end, and what is told when they are stopped."""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import groupby

from Experiment.errors import MAY_PASS, PassingError, UserError
from Experiment.paths import REPOSITORY
from Experiment.progress import FINISHED_BEFORE, GOES_ON, INTERRUPTED, LIVE, MARK, TO_PIPELINE
from Stages.work import fraction

KILLED = "was killed by signal {}: by somebody, or by the system where memory lacks"
REFRESH = 1.0  # s


def start_process(command, live, preexec_fn=None):
    """A script as a process whose output is read. It sends messages of its progress; unless `live`, lines that tell of it too."""
    environment = os.environ | {TO_PIPELINE: LIVE if live else "with lines"}
    script, *flags = command
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / script), *flags], env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True,
        preexec_fn=preexec_fn,
    )  # fmt: skip


class Running:
    """A stage and the process that it runs in.

    The process has a session of its own: Ctrl-C in a terminal reaches the pipeline alone, which passes it on, waits, and
    tells in one line how all ended.

    Args:
        stage: The `Stage`.
        display: The `Display` that shows its lines.

    Attributes:
        code: Exit code; None where the stage has not ended.
        said: What its last line said where it ended by a mistake or a stop.
        finished_before: Whether an earlier run has finished it.
        seconds: How long it took.
        parts: Its last message of progress, see `fraction`.
        fraction: How far it is, 0..1.
        begun: When it began, s.
        first: When its first message of progress came, s, and its fraction then; None before.
        lost: Why its lines could not be passed on, an OSError; None where they could.
    """

    def __init__(self, stage, display):
        self.stage, self.display, self.process = stage, display, None
        self.code, self.said, self.finished_before, self.seconds = None, "", False, 0.0
        self.parts, self.fraction, self.begun, self.first = [], 0.0, time.monotonic(), None
        self.lost = None
        self.last_line = re.compile(rf"{stage.script}\.py: (?:error: |{INTERRUPTED})(.*)")

    def begin(self):
        self.process = start_process(self.stage.command, self.display.live)

    def follow(self):
        """Pass its lines on until it ends."""
        started = time.time()
        errors = threading.Thread(target=self.read, args=(self.process.stderr, sys.stderr))
        errors.start()
        self.read(self.process.stdout, sys.stdout)
        errors.join()
        self.code, self.seconds = self.process.wait(), time.time() - started
        if self.lost:
            raise self.lost

    def read(self, output, to):
        """Pass lines on. Where that fails the stage is stopped, and read to its end: it would wait for a reader for ever."""
        for line in output:
            self.pass_on(line, to)

    def pass_on(self, line, to):
        try:
            self.take(line, to)
        except OSError as error:  # the disk that our own output goes to is full, or its reader is gone
            if not self.lost:
                self.lost = error
                self.stop()

    def take(self, line, to):
        """Pass a line on. The one that ends a script on a mistake or a stop becomes part of the pipeline's own."""
        if line.startswith(MARK):
            with contextlib.suppress(ValueError):  # cut off, where the process was killed
                self.parts = json.loads(line.removeprefix(MARK))
                now = fraction(self.stage.script, self.parts, self.display.shares.get(self.stage))
                self.fraction = max(self.fraction, now)
                self.first = self.first or (time.monotonic(), self.fraction)
        elif last := self.last_line.match(line):
            self.said = last[1].removesuffix(f": the same command {GOES_ON}")
        else:
            self.finished_before |= line.startswith(FINISHED_BEFORE)
            self.display.tell(self.stage, line.rstrip(), to)

    def stop(self):
        """Let it save what it has and end. SIGTERM, since it ends a process that is still starting without a word."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()

    @property
    def reason(self):
        """Why it failed."""
        return self.said or (KILLED.format(-self.code) if self.code < 0 else f"ended with exit code {self.code}")


class Runner:
    """Runs stages in their order, those of a group side by side.

    Args:
        stages: A list of `Stage`.
        at_once: Most stages that run at a time.
        display: The `Display`.
        running: What a stage runs as: a function of it and of the display, or a class like `Running`.

    Attributes:
        runs: {stage: Running} of those that were begun.
    """

    def __init__(self, stages, at_once, display, running=Running):
        self.stages, self.at_once, self.display, self.running = stages, at_once, display, running
        self.started = time.time()
        self.runs, self.lock, self.stopped = {}, threading.Lock(), False

    def run(self):
        """Run all stages. Raises a UserError that says which one failed, and why."""
        with self.display.showing(self.runs):
            for _, group in groupby(self.stages, lambda stage: stage.group):
                self.run_group(list(group))

    def run_group(self, stages):
        with ThreadPoolExecutor(self.at_once) as pool:
            futures = [pool.submit(self.run_stage, stage) for stage in stages]
            try:
                while wait(futures, REFRESH).not_done:
                    self.display.refresh()
            except KeyboardInterrupt as stop:
                self.stop(futures)
                raise stop from None
        for stage, future in zip(stages, futures):
            future.result()
            if (run := self.runs.get(stage)) and run.code:
                kind = PassingError if run.code == MAY_PASS else UserError
                raise kind(f"stage {self.display.label(stage)}: {run.reason}")

    def run_stage(self, stage):
        """Run a stage to its end, unless the user has stopped all, or one beside it has failed."""
        with self.lock:
            if self.stopped or any(run.code for run in self.runs.values()):
                return
            run = self.running(stage, self.display)
            self.display.announce(stage)
            run.begin()
            self.runs[stage] = run
        run.follow()
        if run.code == 0:
            said = "an earlier run has finished it" if run.finished_before else f"finished, {run.seconds:.0f} s"
            self.display.tell(stage, said)

    def stop(self, futures):
        """Let the running stages save what they have, and wait for them. Further stops change nothing."""
        with self.lock:
            self.stopped = True
        for run in self.runs.values():
            if run.code is None:
                run.stop()
        while not all(future.done() for future in futures):
            with contextlib.suppress(KeyboardInterrupt):
                wait(futures)

    def seconds(self):
        """{name of a stage: s} of this run, and of the whole as `all`."""
        return {stage.name: self.runs[stage].seconds for stage in self.stages} | {"all": time.time() - self.started}

    def told(self):
        """What is finished, and how far the others are: for the line that a stop ends with."""
        label = self.display.label
        done = [label(stage) for stage, run in self.runs.items() if run.code == 0]
        begun = [f"{label(stage)}: {run.said}" for stage, run in self.runs.items() if run.code and run.said]
        return "; ".join([f"finished: {', '.join(done) or 'no stage'}", *begun])
