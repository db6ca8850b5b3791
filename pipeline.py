"""The whole method of the paper on one dataset, by the other scripts' own command lines.

python pipeline.py --dataset path/to/folder --exp mine --backbone mini
python pipeline.py --dataset cifar10 --exp 0001 --sizes 1 4 10
"""

import contextlib
from dataclasses import replace

import classifier_training
import generate_dataset
import hyp_opt
import SD_adapting
from cli.flags import finish_args
from cli.pipeline_flags import further_flags, new_pipeline_parser
from cli.process import run, telling_what_is_saved
from cli.startup import share_cores
from Data.registry import dataset_spec
from Experiment.paths import Experiment
from Experiment.plan import Plan
from Models.backbones import BACKBONES
from Stages.display import Display
from Stages.outcome import outcome
from Stages.ray_running import MEMORY, Cluster, divided
from Stages.recipes import COARSE
from Stages.running import Runner
from Stages.stages import PARTS, at_once, stage_list
from Stages.work import operations

SCRIPTS = {
    "SD_adapting": SD_adapting, "hyp_opt": hyp_opt, "generate_dataset": generate_dataset,
    "classifier_training": classifier_training,
}  # fmt: skip


def parse_args(argv=None):
    parser = new_pipeline_parser(__doc__)
    args = finish_args(parser, argv)
    args.sizes = sorted(set(args.sizes))
    args.also = further_flags(parser, args.also, PARTS)
    return args


def plan(args):
    """Look at the dataset, and let each script read its flags: what is wrong with them is told before anything runs.

    Returns:
        A `Plan`: the dataset's `spec`, the `experiment`, the `stages` and their `work`, the name of the `classifier`, a
        `note` for the user; with --dry_run it is `done` with the commands.

    Raises:
        UserError: The path holds no dataset.
    """
    spec = dataset_spec(args.dataset, args.skip_broken, args.resolution, args.background)
    side, note = BACKBONES[args.backbone].image_size, ""
    if args.resolution is None and spec.resolution > side:
        args.resolution, spec = side, replace(spec, resolution=side)
        note = f"classifiers see the images at {side} px, since {args.backbone} makes no larger ones (--resolution)"
    stages = stage_list(args, spec)
    parsed = {stage: SCRIPTS[stage.script].parse_args(stage.flags) for stage in stages}
    first_search = next(args for args in parsed.values() if hasattr(args, "n_trials"))
    steps = (first_search.is_min + first_search.is_max) / 2
    known = Plan(
        spec=spec, experiment=Experiment(args.root, args.exp, spec.name), stages=stages, note=note,
        work={stage: operations(stage.script, parsed[stage], spec, steps) for stage in stages},
        classifier=parsed[stages[-1]].classifier,
    )  # fmt: skip
    if args.dry_run:
        known.done = "\n".join(stage.shown for stage in stages)
    return known


def run_pipeline(args, known=None):
    """All steps of the paper, one stage after the other. The same call again goes on where an earlier one was stopped.

    Args:
        args: What `parse_args` returns.
        known: What `plan` has found, if it was asked before.

    Raises:
        UserError: A stage has failed.
    """
    known = known or plan(args)
    if known.spec.resolution <= COARSE:
        share_cores(args.backbone)  # for all stages, which inherit it: a classifier of small pictures is small as well
    if known.note:
        print(known.note)
    with start_runner(args, known) as runner, telling_what_is_saved(runner.told):
        runner.run()
        lines = outcome(args, known.spec, known.experiment, known.classifier, runner.stages, runner.seconds())
    print("\n".join(lines))


@contextlib.contextmanager
def start_runner(args, known):
    """What runs the stages: processes of this machine; with --ray tasks of a cluster, a stage in parts where it can be."""
    if not args.ray:
        yield Runner(known.stages, at_once(args), Display(known.stages, known.work))
        return
    cluster = Cluster(args.ray, MEMORY[BACKBONES[args.backbone].small])
    try:
        work = divided(known.work, cluster.slots, cluster.one_machine)
        yield Runner([*work], cluster.slots, Display([*work], work), cluster.running)
    finally:
        cluster.close()


if __name__ == "__main__":
    run(run_pipeline, parse_args, plan, starts_keras=False)
