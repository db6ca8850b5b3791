"""How long a pipeline takes on several GPUs, on paper: from its operations, the rate of a GPU, and which stages divide.

    python -m bench.plan --tflops 100 -- --dataset cifar10 --exp 0001 --sizes 1 2 3 4 5 6 7 8 9 10

What stands behind `--` are the flags of pipeline.py. Operations are those of Stages/work.py, of which the UNet's were counted;
the rate that a GPU keeps up is the reader's to say (`python -m bench.gpu` measures it). An adaptation runs on one GPU. A search
has a worker a GPU, four at most as with --ray, and is as much faster as `bench.scheduling` finds for equal trials of which 1 %
are killed. Generation divides into shards; a classifier is one task. The queue of a batch system is not in it.
"""

import argparse
import heapq
import statistics
from itertools import groupby

import numpy as np

import pipeline
from bench.scheduling import simulate
from Experiment.errors import UserError
from Stages.ray_running import SEARCH_WORKERS
from Stages.work import START_UP

GPUS = (1, 8, 64)
FAILURES, RUNS = 0.01, 50


def side_by_side(seconds, gpus):
    """Seconds until tasks of these times are done, the longest begun first, each on the GPU that is free first."""
    ends = [0.0] * gpus
    for time in sorted(seconds, reverse=True):
        heapq.heapreplace(ends, ends[0] + time)
    return max(ends)


def search_seconds(seconds, trials, gpus):
    """Seconds of a search of equal trials, of which one GPU alone takes so many in all."""
    rng, each = np.random.default_rng(0), np.array([seconds / trials])
    workers = min(gpus, trials, SEARCH_WORKERS)
    runs = [simulate(each, workers, trials, FAILURES, START_UP, rng) for _ in range(RUNS)]
    return statistics.fmean(run.wall for run in runs)


def stage_seconds(stages, parsed, seconds, gpus):
    """Seconds of a group of stages on so many GPUs.

    Args:
        stages: Stages that need nothing of each other.
        parsed: {stage: its arguments}.
        seconds: {stage: s on one GPU, start-up aside}.
        gpus: How many.
    """
    if stages[0].script == "hyp_opt":
        return sum(search_seconds(seconds[stage], parsed[stage].n_trials, gpus) for stage in stages)
    tasks = []
    for stage in stages:
        parts = gpus if stage.script == "generate_dataset" else 1
        tasks += [seconds[stage] / parts + START_UP] * parts
    return side_by_side(tasks, gpus)


def table(args, tflops, gpus=GPUS):
    """[what, PFLOP, hours on so many GPUs ...] for each kind of stage, and for all.

    Args:
        args: Of the pipeline.
        tflops: What a GPU computes in a second, in trillions of operations.
        gpus: Numbers of GPUs.
    """
    known = pipeline.plan(args)
    seconds = {stage: work / 1000 / tflops for stage, work in known.work.items()}
    parsed = {stage: pipeline.SCRIPTS[stage.script].parse_args(stage.flags) for stage in known.stages}
    rows = []
    for _, group in groupby(known.stages, lambda stage: (stage.group, stage.script)):
        group = list(group)
        hours = [stage_seconds(group, parsed, seconds, count) / 3600 for count in gpus]
        name = group[0].name if len(group) == 1 else f"{group[0].name} ... {group[-1].name}"
        rows.append([name, sum(known.work[stage] for stage in group) / 1e6, *hours])
    return [*rows, ["all", *(sum(column) for column in list(zip(*rows))[1:])]]


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m bench.plan", allow_abbrev=False, description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--tflops", type=float, required=True, help="what a GPU keeps up, trillions of operations a second")
    parser.add_argument("flags", nargs="+", metavar="FLAG", help="of pipeline.py")
    args = parser.parse_args(argv)
    if not args.tflops > 0:
        parser.error("argument --tflops: must be above 0")
    try:
        rows = table(pipeline.parse_args(args.flags), args.tflops)
    except UserError as error:
        parser.error(str(error))
    print(f"| stage | PFLOP | {' | '.join('1 GPU' if count == 1 else f'{count} GPUs' for count in GPUS)} |")
    print("|---" * (2 + len(GPUS)) + "|")
    for name, work, *hours in rows:
        print(f"| {name} | {work:,.0f} | {' | '.join(f'{count:.1f} h' for count in hours)} |")


if __name__ == "__main__":
    main()
