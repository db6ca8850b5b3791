"""Which task of a job this process is, as batch systems say through the environment: for `--shard auto`, `--take auto` and `--repeats auto`."""

import argparse
import os
import re

# Of each system, the first that is there counts: its name, and the variables of the task's number and of how many there are.
# Kubernetes tells its indexed jobs no count, so the manifest sets one, by the name of the field.
SYSTEMS = {
    "SLURM array": ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"),
    "Kubernetes indexed job": ("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS"),
    "SkyPilot": ("SKYPILOT_NODE_RANK", "SKYPILOT_NUM_NODES"),
    "SLURM job of several tasks": ("SLURM_PROCID", "SLURM_NTASKS"),
}


def find_task(wanted=None, environ=os.environ):
    """This process's place among the tasks of its job: (index from 0, number of tasks).

    Args:
        wanted: The number of tasks, where the user says it: then a part of an array may be run again by itself.
        environ: The environment.

    Raises:
        ValueError: No batch system is at work, or what it says leaves the place open; the message is one line.
    """
    for system, (number, count) in SYSTEMS.items():
        if number not in environ:
            continue
        tasks, index = step_of(environ) if system == "SLURM array" else (1, 0)
        if wanted is not None:
            return within(whole(environ, number) * tasks + index, wanted, system)
        if count not in environ:
            raise ValueError(f"{system}: {number} says which task this is, but {count} does not say of how many")
        first, step = array_numbers(environ) if system == "SLURM array" else (0, 1)
        place = (whole(environ, number) - first) // step
        return within(place * tasks + index, whole(environ, count) * tasks, system)
    raise ValueError(f"no batch system is at work: none of {', '.join(number for number, _ in SYSTEMS.values())} is set")


def step_of(environ):
    """Tasks that srun has begun together in a task of a SLURM array, one a GPU for instance, and which of them this is."""
    if "SLURM_STEP_NUM_TASKS" not in environ:
        return 1, 0
    return whole(environ, "SLURM_STEP_NUM_TASKS"), whole(environ, "SLURM_PROCID")


def array_numbers(environ):
    """The first number of a SLURM array, and the step to the next.

    Raises:
        ValueError: It has one task, gaps, or begins late: then it may be a part of one that is run again.
    """
    first, last, count = (whole(environ, f"SLURM_ARRAY_TASK_{name}") for name in ("MIN", "MAX", "COUNT"))
    step = whole(environ, "SLURM_ARRAY_TASK_STEP")
    if count == 1 or first > 1 or first + (count - 1) * step != last:
        raise ValueError(
            f"the array has {count} task{'s' * (count > 1)} from {first} to {last}, so it may be a part of one: number all tasks from 0 or 1 "
            "without gaps, or say how many there are in all, auto/N with numbers from 0"
        )
    return first, step


def whole(environ, name):
    """The whole number in a variable.

    Raises:
        ValueError: There is none.
    """
    if not re.fullmatch(r"\d{1,9}", environ.get(name, "")):
        raise ValueError(f"{name} must be a whole number, received {environ.get(name, 'nothing')}")
    return int(environ[name])


def within(index, count, system):
    if index >= count:
        raise ValueError(f"{system}: task {index} of {count}, counted from 0, is not there")
    return index, count


class ThisTask(int):
    """A number that is this task's own: two flags that take it would not go through all pairs."""


def automatic(text):
    """This task's place in its job, (number from 1, of how many), where a flag says `auto` or `auto/N`; None otherwise."""
    if not (found := re.fullmatch(r"auto(?:/(\d{1,6}))?", text)):
        return None
    try:
        index, count = find_task(int(found[1]) if found[1] else None)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None
    return ThisTask(index + 1), count


def shard(text):
    """An argparse type: I/N with 1 <= I <= N; `auto`, or `auto/N`, is this task's place in its job."""
    if place := automatic(text):
        return place
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"must be I/N with I from 1 to N, or auto, received {text}")
    return int(match[1]), int(match[2])


def repeats(inner):
    """An argparse type: what `inner` takes, or one of several as `shard` does."""

    def parse(text):
        return shard(text) if "/" in text or text.startswith("auto") else inner(text)

    parse.__name__ = inner.__name__
    return parse


def size(inner):
    """An argparse type: what `inner` takes; `auto`, or `auto/N`, is 1 for the first task of a job, 2 for the second ..."""

    def parse(text):
        place = automatic(text)
        return ThisTask(inner(str(place[0]))) if place else inner(text)

    parse.__name__ = inner.__name__
    return parse
