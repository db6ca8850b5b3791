"""The whole method of the paper on one dataset, by the other scripts' own command lines.

python pipeline.py --dataset path/to/folder --exp mine --backbone mini
python pipeline.py --dataset cifar10 --exp first --sizes 1 4 10
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
from Data.loaders import load_splits
from Data.registry import DATASETS, dataset_spec
from Experiment.errors import UserError
from Experiment.locks import claimed
from Experiment.paths import REAL_DATA, Experiment, is_trained
from Experiment.pictures import try_to_draw
from Experiment.plan import Plan
from Models.backbones import BACKBONES
from result_plots import experiment_cas_curve, experiment_pipeline_bars
from Stages.carried import Root
from Stages.display import Display
from Stages.outcome import outcome
from Stages.ray_running import MEMORY, Cluster, divided
from Stages.recipes import COARSE
from Stages.running import Runner
from Stages.stages import FILE_ADDRESSES, PARTS, at_once, stage_list
from Stages.work import operations, search_shares

SCRIPTS = {
    "SD_adapting": SD_adapting, "hyp_opt": hyp_opt, "generate_dataset": generate_dataset,
    "classifier_training": classifier_training,
}  # fmt: skip


def parse_args(argv=None):
    parser = new_pipeline_parser(__doc__)
    args = finish_args(parser, argv)
    if args.carry and not args.ray:
        parser.error("argument --carry: not allowed without --ray")
    args.sizes = sorted(set(args.sizes))
    args.also = further_flags(parser, args.also, PARTS)
    return args


def plan(args):
    """Look at the dataset, and let each script read its flags: what is wrong with them is told before anything runs.

    Returns:
        A `Plan`: the dataset's `spec`, the `experiment`, the `stages`, their `work` and the `shares` of the searches, the name of
        the `classifier`, a `note` for the user, and the `paths` that nodes must have where files travel; with --dry_run it is
        `done` with the commands.

    Raises:
        UserError: The path holds no dataset, or a study cannot travel.
    """
    spec = dataset_spec(args.dataset, args.skip_broken, args.resolution, args.background)
    side, note = BACKBONES[args.backbone].image_size, ""
    if args.resolution is None and spec.resolution > side:
        args.resolution, spec = side, replace(spec, resolution=side)
        note = f"classifiers see the images at {side} px, since {args.backbone} makes no larger ones (--resolution)"
    stages = stage_list(args, spec)
    parsed = {stage: SCRIPTS[stage.script].parse_args(stage.flags) for stage in stages}
    experiment = Experiment(args.root, args.exp, spec.name)
    of_script = {script: [parsed[stage] for stage in stages if stage.script == script] for script in SCRIPTS}
    searches, generations, trainings = (of_script[s] for s in ("hyp_opt", "generate_dataset", "classifier_training"))
    check_classifiers(args, experiment, trainings)
    judges = {each.filter_classifier for each in generations if each.filter is not None}
    judges -= {each.classifier for each in trainings}
    if not all(is_trained(experiment.classifier_dir(judge, "real")) for judge in judges):
        raise UserError(
            f"--also: nobody has trained or trains the --filter_classifier {', '.join(judges)} on the real images: give --classifier."
        )
    if any(each.repeat for each in trainings) or any(each.shard[1] > 1 for each in generations):
        raise UserError("--also: a stage is done as a whole: no --shard I/N and no --repeats I/N (--ray divides them itself).")
    for address in {each.storage for each in searches if each.storage is not None}:
        from Search.storages import check_address

        check_address(address, create=True)
    steps = (searches[0].is_min + searches[0].is_max) / 2
    known = Plan(
        spec=spec, experiment=experiment, stages=stages, note=note,
        work={stage: operations(stage.script, parsed[stage], spec, steps) for stage in stages},
        shares={stage: search_shares(parsed[stage], spec, steps) for stage in stages if stage.script == "hyp_opt"},
        classifier=trainings[-1].classifier, paths=named_paths(args, of_script) if args.carry else [],
    )  # fmt: skip
    if args.dry_run:
        known.done = "\n".join(stage.shown for stage in stages)
    return known


def check_classifiers(args, experiment, stages):
    """Refuse classifiers that the table and the page of the experiment could not compare.

    Args:
        args: The pipeline's arguments.
        experiment: The `Experiment`.
        stages: The arguments of each classifier's stage.

    Raises:
        UserError: They are of different kinds, are not tested, or are not of the sizes of --sizes.
    """
    if len(kinds := sorted({stage.classifier for stage in stages})) > 1:
        raise UserError(f"--also: classifiers of different kinds are not compared ({', '.join(kinds)}): give --classifier.")
    if not all(stage.test for stage in stages):
        raise UserError("--also: the pipeline ends with the accuracies on test, so classifiers are tested.")
    if any(stage.synthetic_dir and stage.synthetic_dir.parent != experiment.synthetic_root.resolve() for stage in stages):
        raise UserError(f"--also: --synthetic_dir must name a set of the experiment, in {experiment.synthetic_root}.")
    if [stage.take for stage in stages if stage.synthetic] != args.sizes:
        raise UserError("--also: how large the synthetic sets are is said by --sizes.")


def named_paths(args, of_script):
    """What the user has named by path, in order: it does not travel.

    Args:
        args: The pipeline's arguments.
        of_script: {script: the arguments of each of its stages}.

    Raises:
        UserError: A study lies in a file, or a teacher in a folder, which no other node would see.
    """
    trainings, named = of_script["classifier_training"], set()
    if any(str(each.storage).startswith(FILE_ADDRESSES) for each in of_script["hyp_opt"]):
        raise UserError("--carry: a --storage that is a file lies on one node: leave it out, or name a database server.")
    if any(each.labels != "hard" for each in trainings):
        raise UserError(
            "--carry: classifiers with labels of a teacher (of --recipe best) share it, which needs a folder that all nodes "
            "see: --also 'classifier_training --labels hard' goes without."
        )
    for script, stages in of_script.items():
        own = "synthetic_dir" if script == "classifier_training" else "weights_dir"
        named |= {path for each in stages for path in (each.data_dir, getattr(each, own))}
    found = {str(path) for path in named - {None, args.root / REAL_DATA}}
    return sorted(found if args.dataset in DATASETS else found | {args.dataset})


def run_pipeline(args, known=None):
    """All steps of the paper, up to three stages of a light backbone at a time. The same call again goes on where one was stopped.

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
        if args.carry:  # each task has drawn its own results and those before it
            try_to_draw("the curve", experiment_cas_curve, known.experiment)
            try_to_draw("the steps", experiment_pipeline_bars, known.experiment.root, known.experiment.exp)
        lines = outcome(args, known.spec, known.experiment, known.classifier, runner.stages, runner.seconds())
    print("\n".join(lines))


@contextlib.contextmanager
def start_runner(args, known):
    """What runs the stages: processes of this machine; with --ray tasks of a cluster, a stage in parts where it can be."""
    if not args.ray:
        yield Runner(known.stages, at_once(args), Display(known.stages, known.work, known.shares))
        return
    # Scripts claim the folders of their copies: here is what they are copies of.
    claim = claimed(args.root / "Checkpoints" / ".carried", f"-{args.exp}-{known.spec.name}")
    with claim if args.carry else contextlib.nullcontext():
        root = Root(args.root, args.exp, known.spec.name) if args.carry else None
        if root:
            root.begin()
            if known.spec.name in DATASETS and args.data_dir == args.root / REAL_DATA:
                load_splits(known.spec, args.data_dir, args.seed)  # here, so that no node has to download it
        cluster = Cluster(args.ray, MEMORY[BACKBONES[args.backbone].light], root)
        try:
            cluster.check_paths(known.paths)
            work = divided(known.work, cluster.slots, cluster.one_machine, args.carry)
            yield Runner([*work], cluster.slots, Display([*work], work, known.shares), cluster.running)
        finally:
            cluster.close()


if __name__ == "__main__":
    run(run_pipeline, parse_args, plan, starts_keras=False)
