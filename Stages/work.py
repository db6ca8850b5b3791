"""How much work a stage is, for the time that is left: rough numbers of operations, of which only the proportions matter."""

from Experiment import presets
from Models.backbones import BACKBONES

# Billions of operations (GFLOP) of one pass of one image at 32 px.
CLASSIFIER = {"resnet20_16": 0.082, "resnet20": 1.3}
TRAINING = 3  # passes that a training step costs: forward, and twice as much backward
GUIDED = 2  # passes a step with guidance
TEACHER = 0.4  # of a classifier's stage that has a teacher to train first, about
START_UP = 15.0  # s of a stage until it computes

# Parts of a stage as its messages name them, in their order, and their shares of its time: of a search of five trials, if
# nobody knows of how many, see `search_shares`.
SHARES = {
    "SD_adapting": {"step": 1.0},
    "hyp_opt": {"trial": 0.4, "repeat": 0.3, "measurement": 0.3},
    "generate_dataset": {"image": 1.0},
    "classifier_training": {"step": 1.0},
}


def operations(script, args, spec, steps):
    """About how many GFLOP a stage is.

    Args:
        script: Name of the script.
        args: Its parsed arguments.
        spec: The `DatasetSpec`.
        steps: Inference steps of a trial, about.
    """
    gflop = BACKBONES[args.backbone].gflop
    sampling = GUIDED * gflop  # a step of an image
    if script == "SD_adapting":
        return TRAINING * spec.train_size * args.epochs * gflop
    if script == "generate_dataset":
        return args.img_total * steps * sampling
    if script == "classifier_training":
        seen = spec.unit * (args.take if args.synthetic else 1) * args.epochs * args.repeats
        if args.labels != "hard":  # of sizes that are trained side by side each waits for the teacher
            seen += spec.train_size * presets.CLASSIFIER_EPOCHS / 2  # it ends early
        return seen * learning(args, spec)
    return sum(search_operations(args, spec, steps).values())


def learning(args, spec):
    """GFLOP of an epoch of a classifier for an image."""
    return TRAINING * CLASSIFIER.get(args.classifier, CLASSIFIER["resnet20"]) * (spec.resolution / 32) ** 2


def search_operations(args, spec, steps):
    """The same of the parts of a search: {"trial" | "repeat" | "measurement": GFLOP}."""
    sampling = GUIDED * BACKBONES[args.backbone].gflop
    default_steps = presets.STEPS_OF_SOLVER[args.solver] if args.train_model == "enc" else steps
    run = args.num_imgs * (steps * sampling + args.epochs * learning(args, spec))
    both = (default_steps + steps) * sampling + 2 * args.epochs * learning(args, spec)
    # Half of a trial: many end on a lower rung.
    return {"trial": args.n_trials / 2 * run, "repeat": 3 * args.repeats * run, "measurement": args.test_imgs * both}


def search_shares(args, spec, steps):
    """The parts of a search and their shares of its time."""
    parts = search_operations(args, spec, steps)
    return {name: operations / sum(parts.values()) for name, operations in parts.items()}


def fraction(script, parts, shares=None):
    """How far a stage is, 0..1, by the messages of `Experiment.progress`: a list of [unit, done, total, note].

    Args:
        script: Name of the script.
        parts: The messages.
        shares: Of its parts, those of `SHARES` if None.
    """
    shares = shares or SHARES[script]
    if parts and parts[0][0] == "teacher":
        # Then comes its own training, of which the beginning has been shown.
        return TEACHER * fraction(script, parts[1:], shares)
    for unit, done, total, _ in parts:
        if unit in shares:
            before = sum(list(shares.values())[: list(shares).index(unit)])
            return before + shares[unit] * min(1.0, done / max(1, total))
    return 0.0
