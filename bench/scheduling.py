"""How a search spreads over workers, by simulation on the trial times of a real one.

    python -m bench.scheduling optimization_plots/0001/cifar10/enc/trials.csv --trials 50

Workers share one study, as `hyp_opt.py --storage` lets them: each takes the next trial until the budget is used up. With
some probability a trial's worker is killed at a random moment. The others notice it after the grace period, the batch system
starts the worker again, and the trial is run anew from its beginning. Batch systems start workers at once here: the queue before
is not simulated. Nor is what a search loses because its workers know less of one another; `known` says how much less.
"""

import argparse
import csv
import heapq
import statistics
from pathlib import Path
from typing import NamedTuple

import numpy as np

from Experiment.errors import UserError
from Experiment.paths import REPOSITORY
from figures import plt, save_figure
from Search.workers import GRACE

WORKERS = (1, 2, 4, 8, 16, 32, 64)
RUNS = 200  # simulated searches for each number of workers


class Outcome(NamedTuple):
    """A simulated search: seconds from start to end, of finished trials, and of killed ones; trials that were killed.

    `known` is how many finished trials a trial could look back on when it began, mean of all, as a share of those begun before.
    """

    wall: float
    useful: float
    lost: float
    killed: int
    known: float


def simulate(seconds, workers, trials, failures, start, rng):
    """One search.

    Args:
        seconds: Times of recorded trials, s: each simulated one has the time of one of them, drawn by chance.
        workers: Processes that share the search.
        trials: The budget.
        failures: Probability that the worker of a trial is killed while it is at it.
        start: Seconds from a worker's start to its first trial.
        rng: A NumPy generator.
    """
    durations = rng.choice(seconds, trials)
    waiting = list(enumerate(durations))[::-1]  # trials that are to be begun, the next one last
    free = [(start, worker) for worker in range(workers)]  # when each worker asks for its next trial
    heapq.heapify(free)
    noticed, ends, known, lost, killed = [], [], [], 0.0, 0
    while len(ends) < trials:
        now, worker = heapq.heappop(free)
        while noticed and noticed[0][0] <= now:
            waiting.append(heapq.heappop(noticed)[1:])
        if not waiting:
            if noticed:  # all others are at work or done: this one waits for what is still to be noticed
                heapq.heappush(free, (noticed[0][0], worker))
            continue
        number, duration = waiting.pop()
        if rng.random() < failures:
            broken = rng.random() * duration
            lost, killed = lost + broken, killed + 1
            heapq.heappush(noticed, (now + broken + GRACE, number, duration))
            heapq.heappush(free, (now + broken + start, worker))
            continue
        if ends:  # of trials that were begun before, by whatever number
            known.append(sum(end <= now for end in ends) / len(ends))
        ends.append(now + duration)
        heapq.heappush(free, (now + duration, worker))
    return Outcome(max(ends), float(durations.sum()), lost, killed, statistics.fmean(known) if known else 1.0)


def recorded_seconds(files):
    """Times of the finished and pruned trials of searches, s."""
    seconds = []
    for file in files:
        try:
            with open(file, newline="", encoding="utf-8") as lines:
                seconds += [float(row["seconds"]) for row in csv.DictReader(lines) if row["seconds"]]
        except (OSError, KeyError, ValueError) as error:
            raise UserError(f"{file} is no trials.csv of a search ({error!r})") from None
    return np.array(seconds)


def table(seconds, trials, failures, start, seed=1234):
    """For each number of workers the mean of `RUNS` searches, {column: value}."""
    rows = []
    for workers in WORKERS:
        rng = np.random.default_rng([seed, workers])
        made = [simulate(seconds, workers, trials, failures, start, rng) for _ in range(RUNS)]
        wall, useful, lost, killed, known = (statistics.fmean(values) for values in zip(*made))
        rows.append(
            {"workers": workers, "wall_s": wall, "speedup": (start + useful) / wall, "efficiency": useful / (workers * wall),
             "lost": lost / useful, "killed": killed, "known": known}
        )  # fmt: skip
    return rows


def draw(rows, title, path):
    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    for column, label in (("efficiency", "efficiency"), ("known", "earlier trials known when one begins")):
        axes.plot([row["workers"] for row in rows], [row[column] for row in rows], marker="o", label=label)
    axes.set(xscale="log", xlabel="workers", ylabel="share", ylim=(0, 1.05), title=title)
    axes.set_xticks(WORKERS, list(map(str, WORKERS)))
    axes.minorticks_off()
    axes.legend()
    save_figure(figure, path)


def main(argv=None):
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, help="trials.csv of searches")
    parser.add_argument("--trials", type=int, default=50, help="the budget (50)")
    parser.add_argument("--failures", type=float, default=0.01, help="probability that a trial's worker is killed (0.01)")
    parser.add_argument("--start", type=float, default=15, help="seconds from a worker's start to its first trial (15)")
    parser.add_argument("--to", type=Path, default=REPOSITORY / "cluster/simulation.png", help="the picture")
    args = parser.parse_args(argv)
    if args.trials < 1 or not 0 <= args.failures < 1 or args.start < 0:
        parser.error("--trials must be above 0, --failures a share below 1, --start no time before 0")
    try:
        seconds = recorded_seconds(args.files)
    except UserError as error:
        parser.error(str(error))
    if not len(seconds):
        parser.error(f"{', '.join(map(str, args.files))}: no trial has a time")
    rows = table(seconds, args.trials, args.failures, args.start)
    print(f"{len(seconds)} recorded trials, {seconds.min():.0f} to {seconds.max():.0f} s, mean {seconds.mean():.0f} s")
    print("workers     wall   speed-up   efficiency   lost   killed   known")
    for row in rows:
        print(
            "{workers:7d} {wall_s:6.0f} s {speedup:10.1f} {efficiency:12.2f} {lost:6.2%} {killed:8.2f} {known:7.2f}".format(
                **row
            )
        )
    draw(rows, f"{args.trials} trials, {args.failures:.0%} of them killed", args.to)


if __name__ == "__main__":
    main()
