"""What the pipeline shows while its stages run: their lines, and how far all is: on a terminal as a bar below them."""

import contextlib
import sys
import time

from tqdm import tqdm

from Experiment.progress import duration
from Stages.work import START_UP

LEAST_SHARE = 0.02  # of all work: before that much is done, nothing is said about the time that is left


def share_of(run):
    """How much of a stage is done, 0..1; of one that was not begun None is given."""
    return 0.0 if run is None else 1.0 if run.code == 0 else run.fraction


class Display:
    """Shows the stages.

    Args:
        stages: A list of `Stage`.
        work: {stage: GFLOP}, see `Stages.work`.
        shares: {stage: {part: share}} of searches.

    Attributes:
        live: Whether there is a bar: then the stages leave out lines that only tell how far they are.
        runs: {stage: Running} of those that were begun.
    """

    def __init__(self, stages, work, shares=None):
        self.stages, self.work, self.shares, self.runs, self.bar = stages, work, shares or {}, {}, None
        self.started, self.live = time.monotonic(), sys.stderr.isatty()

    @contextlib.contextmanager
    def showing(self, runs):
        """Show the bar within the block, if there is a terminal for it."""
        self.runs = runs
        if self.live:
            self.bar = tqdm(total=100, bar_format="|{bar:20}| {desc}", leave=False, dynamic_ncols=True)
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
        self.tell(stage, f"{self.times()}: {stage.shown}")

    def times(self):
        """The time so far and the time that is left."""
        left = self.left()
        estimate = "" if left is None else f", about {duration(left)} left"
        return f"{duration(time.monotonic() - self.started)} so far{estimate}"

    def idle(self, run):
        """Seconds of a stage that was begun in which it did not work off its share: start-up, or a look at what is finished."""
        if run.finished_before:
            return run.seconds
        if run.first:
            return run.first[0] - run.begun
        return time.monotonic() - run.begun if run.code is None else min(run.seconds, START_UP)

    def worked(self, runs):
        """Seconds in which at least one of these stages worked: they may run side by side."""
        now, worked, until = time.monotonic(), 0.0, self.started
        times = ((run.begun + self.idle(run), now if run.code is None else run.begun + run.seconds) for run in runs)
        for begun, ended in sorted(times):
            worked += max(0.0, ended - max(begun, until))
            until = max(until, ended)
        return worked

    def left(self):
        """Seconds that are left; None while too little has been done to tell."""
        runs = dict(self.runs)
        working = {stage: run for stage, run in runs.items() if not run.finished_before}
        before = {stage: run.first[1] if run.first else 0.0 for stage, run in working.items()}
        done = sum(self.work[stage] * (share_of(run) - before[stage]) for stage, run in working.items())  # by this run
        if done <= LEAST_SHARE * sum(self.work.values()):
            return None
        pace = self.worked(working.values()) / done  # s a GFLOP
        starts = [self.idle(run) for run in working.values() if run.first]
        start_up = sum(starts) / len(starts) if starts else START_UP
        missing = sum(work * (1 - share_of(runs.get(stage))) for stage, work in self.work.items())
        return pace * missing + start_up * (len(self.stages) - len(runs))

    def refresh(self):
        """Bring the bar up to date."""
        if self.bar is None:
            return
        runs = dict(self.runs)
        done = sum(work * share_of(runs.get(stage)) for stage, work in self.work.items())
        self.bar.n = round(100 * done / sum(self.work.values()))
        running = "; ".join(self.state(run) for run in runs.values() if run.code is None)
        self.bar.set_description_str(f"{running}; {self.times()}", refresh=False)
        self.bar.refresh()

    def state(self, run):
        """Where a running stage is: `3/9 fine-tuning, step 40 of 640 (epoch 2, loss 0.08)`."""
        said = [f"{self.stages.index(run.stage) + 1}/{len(self.stages)} {run.stage.name}"]
        said += [f"{unit} {done} of {total}" + f" ({note})" * bool(note) for unit, done, total, note in run.parts]
        return ", ".join(said)
