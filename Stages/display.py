"""What the pipeline shows while its stages run: their lines, and how far all is: on a terminal as a bar below them."""

import contextlib
import shlex
import sys
import time

from tqdm import tqdm

from Experiment.progress import duration
from Stages.work import START_UP

LEAST_SHARE = 0.02  # of all work: before that much is done, nothing is said about the time that is left


class Display:
    """Shows the stages.

    Args:
        stages: A list of `Stage`.
        work: {stage: GFLOP}, see `Stages.work`.

    Attributes:
        live: Whether there is a bar, for which the stages send messages.
        runs: {stage: Running} of those that were begun.
    """

    def __init__(self, stages, work):
        self.stages, self.work, self.runs, self.bar = stages, work, {}, None
        self.started, self.live = time.monotonic(), sys.stderr.isatty()

    @contextlib.contextmanager
    def showing(self, runs):
        """Show the bar within the block, if there is a terminal for it."""
        self.runs = runs
        if self.live:
            self.bar = tqdm(total=100, bar_format="{desc} |{bar:20}| {postfix}", leave=False, dynamic_ncols=True)
        try:
            yield
        finally:
            if self.bar is not None:
                self.bar.close()
                self.bar = None

    def label(self, stage):
        return f"{self.stages.index(stage) + 1}/{len(self.stages)} {stage.name}"

    def tell(self, stage, line, to=None):
        to = to or sys.stdout
        with tqdm.external_write_mode(file=to) if self.bar is not None else contextlib.nullcontext():
            print(f"[{self.label(stage)}] {line}", file=to, flush=True)

    def announce(self, stage):
        self.tell(stage, f"{self.times()}: python {shlex.join(stage.command)}")

    def times(self):
        """The time so far and the time that is left."""
        left = self.left()
        estimate = "" if left is None else f", about {duration(left)} left"
        return f"{duration(time.monotonic() - self.started)} so far{estimate}"

    def done_work(self):
        """GFLOP that this run has done."""
        return sum(self.work[stage] * (1.0 if run.code == 0 else run.fraction)
                   for stage, run in self.runs.items() if not run.finished_before)  # fmt: skip

    def left(self):
        """Seconds that are left; None while too little has been done to tell."""
        runs = dict(self.runs)
        begun = [run for run in runs.values() if not run.finished_before]
        done = self.done_work()
        if done <= LEAST_SHARE * sum(self.work.values()):
            return None
        idle = START_UP * len(begun) + sum(run.seconds for run in runs.values() if run.finished_before)
        pace = max(0.0, time.monotonic() - self.started - idle) / done  # s a GFLOP
        over = done + sum(self.work[stage] for stage, run in runs.items() if run.finished_before)
        return pace * max(0.0, sum(self.work.values()) - over) + START_UP * (len(self.stages) - len(runs))

    def refresh(self):
        """Bring the bar up to date."""
        if self.bar is None:
            return
        running = [run for run in dict(self.runs).values() if run.code is None]
        finished = sum(self.work[stage] for stage, run in self.runs.items() if run.finished_before)
        self.bar.n = round(100 * (finished + self.done_work()) / sum(self.work.values()))
        self.bar.set_description_str("; ".join(map(self.state, running)), refresh=False)
        self.bar.set_postfix_str(self.times(), refresh=False)
        self.bar.refresh()

    def state(self, run):
        """Where a running stage is: `stage 3 of 9, fine-tuning, step 40 of 640 (epoch 2, loss 0.08)`."""
        said = [f"{self.stages.index(run.stage) + 1}/{len(self.stages)} {run.stage.name}"]
        said += [f"{unit} {done} of {total}" + f" ({note})" * bool(note) for unit, done, total, note in run.parts]
        return ", ".join(said)
