"""A process that builds one side of a measurement once, and then does a job of it each time it is told to.

    python -m bench.worker SIDE [ARGUMENT ...]

It reads a JSON object a line, {"job": name, "save": file or null}, and answers with {"seconds", "memory_gb"}: how long
the job took, and the most memory that the process has had so far. What a job returns is saved where asked for.
"""

import argparse
import json
import os
import resource
import sys
import time


def pipe_for_answers():
    """What is standard output now: from here on whatever a library prints there goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def serve(jobs, answers):
    """Answer the lines of standard input until it ends."""
    print(json.dumps({"jobs": list(jobs)}), file=answers, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        start = time.perf_counter()
        result = jobs[order["job"]]()
        seconds = time.perf_counter() - start
        if order.get("save"):
            import numpy as np

            np.save(order["save"], np.asarray(result))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({"seconds": seconds, "memory_gb": memory}), file=answers, flush=True)


if __name__ == "__main__":
    from cli.startup import import_keras, share_cores

    side, *arguments = sys.argv[1:]
    backbone = "mini" if side in ("writing", "classifier", "precision") else "sd1"
    if backbone == "mini":
        share_cores(backbone)
    checkpoints = "checkpoints" in arguments if side.endswith("_training") else None  # None: no adaptation
    import_keras(argparse.Namespace(backbone=backbone, gradient_checkpointing=checkpoints))
    answers = pipe_for_answers()  # not before: this process may have begun again
    from bench.sides import SIDES

    serve(SIDES[side](*arguments), answers)
