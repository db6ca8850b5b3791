"""Search inference steps, guidance scale and epoch by Bayesian optimisation of validation accuracy.

python hyp_opt.py --dataset cifar10 --exp 0001 --train_model enc
python hyp_opt.py --dataset cifar10 --exp 0001 --train_model dif --enc_epoch 31 --is_1 31 --ugs_1 1.19
"""

import argparse
import time
from dataclasses import dataclass

from cli.flags import (
    CLASSIFIER_BATCH_SIZE,
    add_classifier_flags,
    add_model_flags,
    add_spacing_flag,
    check_batch_size,
    finish_args,
    integer,
    new_parser,
    number,
)
from cli.process import log, log_to, run, tell_if_interrupted
from cli.startup import import_keras, make_repeatable, share_cores
from Experiment.errors import UserError
from Experiment.files import merge_json, read_json, write_csv, write_json
from Experiment.locks import locked
from Experiment.paths import Experiment
from Experiment.records import describe_run
from Experiment.results import PIPELINE_SCHEMA, read_results

TRIALS = {"enc": 50, "dif": 40}  # paper's code
PATIENCE = (25, 50)  # of learning rate and training within the search (paper's code)
STEPS_MIN, STEPS_MAX, SCALE_MAX = 5, 50, 7.5  # ranges of the first search (paper, section 3)
DEFAULT_STEPS, DEFAULT_SCALE = 50, 7.5  # of generation without a search
SELECTED = {"val": "validation", "test": "TEST"}
# Best settings of the paper's searches: share of all epochs, steps, scale. Read off its plots: steps within about one
# half, scales within about 0.05.
PAPER_BEST = {
    "enc": {
        "cifar10": (31 / 50, 31, 1.19),
        "cifar100": (41 / 50, 35, 1.95),
        "pathmnist": (28 / 50, 48, 1.02),
        "dermamnist": (5 / 50, 43, 0.65),
        "bloodmnist": (35 / 50, 47, 2.38),
        "retinamnist": (31 / 50, 37, 6.75),
    },
    "dif": {
        "cifar10": (1, 31, 1.74),
        "cifar100": (1, 28, 2.08),
        "pathmnist": (0.9, 48, 1.85),
        "dermamnist": (1, 27, 0.65),
        "bloodmnist": (0.8, 44, 1.49),
        "retinamnist": (0.7, 30, 1.06),
    },
}
STAGE_NAMES = {"enc": "After Transfer Learning", "dif": "After Fine-Tuning"}


def parse_args(argv=None):
    parser = new_parser(__doc__)
    parser.add_argument(
        "--optimize",
        default=True,
        action=argparse.BooleanOptionalAction,
        help="search; --no-optimize only reports an earlier search (--optimize)",
    )
    parser.add_argument(
        "--train_model",
        default="enc",
        choices=["enc", "dif"],
        help="search after training the Class Encoder (enc) or the UNet (dif) (enc)",
    )
    parser.add_argument("--enc_epoch", default=0, type=integer(0), help="Class Encoder of the second search (0)")
    parser.add_argument("--num_imgs", default=4000, type=integer(1), help="images of a trial (4000)")
    parser.add_argument(
        "--is_1",
        default=DEFAULT_STEPS,
        type=integer(1, 1000),
        help="best inference steps of the first search: upper bound of the second (50)",
    )
    parser.add_argument(
        "--ugs_1",
        default=DEFAULT_SCALE,
        type=number(0, 1000, above=True),
        help="best guidance scale of the first search: half the upper bound of the second (7.5)",
    )
    parser.add_argument("--save_plots", action="store_true", help="write the ten plots")
    parser.add_argument("--n_trials", type=integer(1), help="finished trials in all, over all runs (enc 50, dif 40)")
    parser.add_argument("--timeout", type=number(0, above=True), help="seconds after which no trial is begun")
    parser.add_argument(
        "--storage",
        help="where the study lies: sqlite:///FILE, journal:FILE, postgresql://... (SQLite beside the plots)",
    )
    parser.add_argument(
        "--pruner",
        default="hyperband",
        choices=["hyperband", "halving", "median", "none"],
        help="what stops bad trials early (hyperband)",
    )
    parser.add_argument(
        "--rungs",
        default=3,
        type=integer(1, 6),
        help="a trial begins with 1/4 of its images, goes on with 1/2, then all; 1: all at once (3)",
    )
    parser.add_argument("--warm_start", action="store_true", help="try the paper's best settings first")
    parser.add_argument("--is_min", default=STEPS_MIN, type=integer(1, 1000), help="fewest inference steps (5)")
    parser.add_argument("--is_max", type=integer(1, 1000), help="most inference steps (enc 50; dif --is_1)")
    parser.add_argument("--ugs_max", type=number(0, 1000, above=True), help="largest scale (enc 7.5; dif 2 * --ugs_1)")
    parser.add_argument("--test_imgs", type=integer(1), help="images of the final measurement on test (--num_imgs)")
    parser.add_argument("--gen_batch_size", default=250, type=integer(1), help="images generated at a time (250)")
    parser.add_argument("--epochs", default=100, type=integer(1), help="most epochs of a trial's classifier (100)")
    parser.add_argument(
        "--select_on",
        default="val",
        choices=["val", "test"],
        help="images whose accuracy is maximised; test as published, which is no fair test (val)",
    )
    add_classifier_flags(parser)
    add_spacing_flag(parser)
    add_model_flags(parser)
    parser.add_argument("--restart", action="store_true", help="throw away the study that is there")
    args = finish_args(parser, argv)
    first = args.train_model == "enc"
    args.n_trials = args.n_trials or TRIALS[args.train_model]
    args.is_max = args.is_max or (STEPS_MAX if first else args.is_1)
    args.ugs_max = args.ugs_max or (SCALE_MAX if first else 2 * args.ugs_1)
    args.test_imgs = args.test_imgs or args.num_imgs
    check_batch_size(args, CLASSIFIER_BATCH_SIZE, args.num_imgs)
    if args.restart and not args.optimize:
        parser.error("argument --restart: not allowed with --no-optimize")
    if args.is_min > args.is_max:
        parser.error(f"argument --is_min: {args.is_min} is more than the most inference steps, {args.is_max}")
    return args


@dataclass
class Context:
    """All that a trial needs besides its settings."""

    args: argparse.Namespace
    spec: object
    experiment: Experiment
    encoder: object
    sampler: object
    classifier: object
    epochs: dict
    val: tuple

    def load(self, epoch):
        """Load the searched part's weights of an epoch."""
        from Models.weights import load_weights

        load_weights(self.encoder if self.args.train_model == "enc" else self.sampler.unet, self.epochs[epoch])

    def nearest_epoch(self, epoch):
        """The saved epoch nearest to a suggested one: weights may have been saved every few epochs only."""
        return min(self.epochs, key=lambda saved: abs(saved - epoch))

    def images(self, steps, scale, first, last):
        """Images number `first` to `last` of the loaded weights, uint8 (N, px, px, 3), and their labels (N,).

        Image n is the (n // C)th of class n % C: any number of them from the first on is balanced.
        """
        import numpy as np

        from Data.loaders import resize_images
        from Models.sampler import generate_images

        indices, labels = np.divmod(np.arange(first, last), self.spec.num_classes)
        made = generate_images(
            self.sampler,
            self.encoder,
            labels,
            indices,
            num_steps=steps,
            scale=scale,
            seed=self.args.seed,
            batch_size=min(self.args.gen_batch_size, self.rungs()[0][1]),
            spacing=self.args.timestep_spacing,
        )
        return np.concatenate(
            [resize_images(images, self.spec.resolution, self.args.resize) for _, _, images in made]
        ), labels

    def rungs(self):
        """[(last epoch, images)] of the rungs of a trial: one at a half of the images, say, lasts half of the epochs."""
        args, rungs = self.args, []
        for share in (2 ** -(args.rungs - 1 - i) for i in range(args.rungs)):  # 1/4, 1/2, 1
            rung = max(1, round(args.epochs * share)), max(1, round(args.num_imgs * share))
            if rungs and (rungs[-1][0] == rung[0] or rungs[-1][1] == rung[1]):
                rungs.pop()  # too few epochs or images for two rungs
            rungs.append(rung)
        return rungs

    def train(self, images, labels, **how):
        """Train the classifier on synthetic images; returns its history, with the real validation accuracy."""
        how = {"epochs": self.args.epochs, **how}
        history, _ = self.classifier.fit(
            (images, labels),
            self.val,
            batch_size=self.args.batch_size,
            seed=self.args.seed,
            patience=PATIENCE,
            verbose=0,
            **how,
        )
        return history


def suggest(trial, context):
    """The settings of a trial: inference steps, guidance scale and epoch in the paper's ranges."""
    args = context.args
    steps = trial.suggest_int("is", args.is_min, args.is_max)
    scale = trial.suggest_float("ugs", 0.0, args.ugs_max)
    epoch = trial.suggest_int("epoch", 1, max(context.epochs))
    return steps, scale, context.nearest_epoch(epoch)


def objective(trial, context):
    """Best validation accuracy of a classifier trained on images of the suggested settings.

    A trial climbs rungs: the classifier begins on a quarter of the images, goes on with half of them, then all; the
    images of the next rung are made when it is reached. An epoch has as many steps on every rung, so that accuracies
    after equal epochs can be compared, and bad settings are pruned before most of their images exist.

    Real images are read from the validation split alone (with --select_on test, as published, from the test split).
    """
    import keras
    import numpy as np
    import optuna

    args, rungs = context.args, context.rungs()
    steps, scale, epoch = suggest(trial, context)
    trial.set_user_attr("saved_epoch", epoch)
    context.load(epoch)

    def report(epoch, logs):
        if not np.isfinite(logs["loss"]):
            raise optuna.TrialPruned("the classifier's loss is not finite")
        trial.report(logs["val_accuracy"], epoch + 1)
        if trial.should_prune():
            raise optuna.TrialPruned

    parts, accuracies, made, done = [], [], 0, 0
    for rung, (last_epoch, count) in enumerate(rungs, start=1):
        trial.set_user_attr("rung", f"{rung}/{len(rungs)}")
        parts.append(context.images(steps, scale, made, count))
        images, labels = (np.concatenate(arrays) for arrays in zip(*parts))
        history = context.train(
            images,
            labels,
            epochs=last_epoch,
            first_epoch=done,
            steps=-(-args.num_imgs // args.batch_size),
            callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=report)],
        )
        accuracies += history["val_accuracy"]
        made, done = count, last_epoch
    return max(accuracies)


def study_settings(args, epochs):
    """What two runs must share to be one study."""
    names = (
        "dataset",
        "backbone",
        "seed",
        "num_imgs",
        "batch_size",
        "epochs",
        "classifier",
        "is_min",
        "is_max",
        "ugs_max",
        "enc_epoch",
        "select_on",
        "resize",
        "timestep_spacing",
        "rungs",
        "pruner",
        "precision",
        "test_imgs",
        "is_1",
        "ugs_1",
        "skip_broken",
    )
    return {name: getattr(args, name) for name in names} | {"last_epoch": max(epochs)}


def claim_study(study, settings, address):
    """Note the settings in a study without trials, or compare them with those of one that has some.

    Raises:
        UserError: They differ; it shows both.
    """
    from Search.studies import trials

    before = study.user_attrs.get("settings", {})
    shown = ", ".join(f"{k} {before[k]} (now {v})" for k, v in settings.items() if k in before and before[k] != v)
    if shown and trials(study):
        raise UserError(f"the study {study.study_name} in {address} has other settings: {shown}. Use another --exp.")
    study.set_user_attr("settings", settings)


def warm_start(args, study, epochs):
    """Let the search begin with the settings that the paper found, within the bounds of this search.

    A dataset that is not the paper's begins with the median of the paper's six. After fine-tuning, the first search's
    settings are tried too: the final ones are then better than those, or they are those.
    """
    from statistics import median

    known = PAPER_BEST[args.train_model]
    found = [known.get(args.dataset) or [median(values) for values in zip(*known.values())]]
    if args.train_model == "dif":
        found.append((1, args.is_1, args.ugs_1))
    for share, steps, scale in found:
        study.enqueue_trial(
            {
                "is": min(max(round(steps), args.is_min), args.is_max),
                "ugs": round(min(scale, args.ugs_max), 4),
                "epoch": max(1, round(share * max(epochs))),
            },
            skip_if_exists=True,
        )


def trial_line(trial):
    """Number, settings and result of a trial."""
    p, rung = trial.params, trial.user_attrs.get("rung", "1")
    result = {"COMPLETE": f"{trial.value or 0:.4f}", "PRUNED": f"pruned on rung {rung}, epoch {trial.last_step or 1}"}
    settings = f"steps {p['is']:2d}, scale {p['ugs']:4.2f}, epoch {p['epoch']:2d}" if p else "not begun"
    return f"trial {trial.number:3d}: {settings} -> {result.get(trial.state.name, trial.state.name.lower())}"


def search(args, study, context):
    """Run the trials that are missing, one progress line each. Returns whether the budget is complete."""
    from Search.studies import FINISHED, run_trials, trials

    started = time.time()
    there = len(trials(study, *FINISHED))

    def progress(study, trial):
        finished = trials(study, *FINISHED)
        left = (time.time() - started) / max(1, len(finished) - there) * (args.n_trials - len(finished))
        best = max((t.value for t in finished if t.state.name == "COMPLETE"), default=float("nan"))
        log.info(
            "%s   best %.4f   %d of %d, %.0f s, %.0f s left",
            trial_line(trial),
            best,
            len(finished),
            args.n_trials,
            time.time() - started,
            max(0, left),
        )

    return run_trials(study, lambda trial: objective(trial, context), args.n_trials, args.timeout, progress)


def measure(args, context, test, best):
    """Accuracy on test of the default and of the best settings: the only look at the test images.

    Returns:
        {"no_opt": {...}, "opt": {...}} in the published schema.
    """
    import numpy as np

    from Models.classifier import accuracies

    last = max(context.epochs)
    default = (DEFAULT_STEPS, DEFAULT_SCALE) if args.train_model == "enc" else (args.is_1, args.ugs_1)
    settings = {
        "no_opt": (*default, last),
        "opt": (best.params["is"], best.params["ugs"], best.user_attrs["saved_epoch"]),
    }
    results = {}
    for name, (steps, scale, epoch) in settings.items():
        context.load(epoch)
        history = context.train(*context.images(steps, scale, 0, args.test_imgs))
        if not np.isfinite(history["loss"]).all():
            raise UserError(
                f"the loss of the classifier that is tested is not finite ({name}: steps {steps}, scale {scale:g})."
            )
        scores = accuracies(context.classifier.probabilities(test.images), test.labels)
        results[name] = {"top_1": scores["top_1_accuracy"], "top_5": scores["top_5_accuracy"]}
        log.info(
            "test, %-6s: steps %d, scale %.2f, epoch %d, %d images -> top-1 %.4f, top-5 %.4f",
            name,
            steps,
            scale,
            epoch,
            args.test_imgs,
            *results[name].values(),
        )
    return results


def contact_sheet(context, study, folder, columns=8):
    """Samples of the best and of the worst trial, one row a class. Returns the file."""
    import numpy as np

    from Data.loaders import class_names
    from plots import MAX_SHEET_ROWS, side_by_side
    from Search.studies import FINISHED, trials

    def last_value(trial):
        return -1.0 if trial.value is None else trial.value  # of a pruned trial: the last it reported

    ranked = sorted(trials(study, *FINISHED), key=last_value)
    classes = min(context.spec.num_classes, MAX_SHEET_ROWS)
    sheets, titles = [], []
    for kind, trial in (("best", study.best_trial), ("worst", ranked[0])):
        context.load(trial.user_attrs["saved_epoch"])
        images, labels = context.images(trial.params["is"], trial.params["ugs"], 0, context.spec.num_classes * columns)
        order = np.argsort(labels, kind="stable")[: classes * columns]
        sheets.append(images[order])
        titles.append(
            f"{kind}: trial {trial.number}, {trial.params['is']} steps, scale {trial.params['ugs']:.2f}, "
            f"epoch {trial.user_attrs['saved_epoch']}: "
            f"{last_value(trial):.3f}{' when pruned' * (trial.state.name == 'PRUNED')}"
        )
    labels = np.repeat(np.arange(classes), columns)
    return side_by_side(*sheets, labels, class_names(context.spec), folder / "best_and_worst.png", titles)


def write_trials(study, folder):
    """A table of all trials as trials.csv. Returns the file."""
    rows = [
        {
            "trial": t.number,
            "state": t.state.name,
            **{k: t.params.get(k, "") for k in ("is", "ugs", "epoch")},
            "saved_epoch": t.user_attrs.get("saved_epoch", ""),
            "accuracy": "" if t.value is None else t.value,
            "epochs_trained": t.last_step or "",
            "rung": t.user_attrs.get("rung", ""),
            "seconds": round(t.duration.total_seconds(), 1) if t.duration else "",
        }
        for t in study.get_trials(deepcopy=False)
    ]
    write_csv(folder / "trials.csv", rows)
    return folder / "trials.csv"


def prepare(args, spec, experiment, epochs):
    """The dataset's splits, and what the trials share."""
    from Data.loaders import load_splits
    from Models.backbones import BACKBONES, set_precision
    from Models.class_encoder import class_encoder
    from Models.classifier import Classifier
    from Models.sampler import Sampler
    from Models.weights import check_weights, load_epoch

    make_repeatable(args)
    splits = load_splits(spec, args.data_dir, args.seed, spec.resolution)
    classifier = Classifier(args.classifier, spec.resolution, spec.num_classes)
    set_precision(args.precision)
    backbone = BACKBONES[args.backbone]
    encoder = class_encoder(spec.num_classes, backbone.hidden_units, backbone.context_shape)
    if args.train_model == "dif":
        load_epoch(encoder, experiment.part_dir("enc"), args.enc_epoch, "enc")
    sampler = Sampler(backbone.unet(args.weights_dir), backbone.decoder(args.weights_dir), backbone.parts)
    for file in epochs.values():
        check_weights(encoder if args.train_model == "enc" else sampler.unet, file)
    chosen_on = splits.test if args.select_on == "test" else splits.val
    return splits, Context(args, spec, experiment, encoder, sampler, classifier, epochs, chosen_on)


def main(args):
    from Data.registry import dataset_spec

    started = time.time()
    spec = dataset_spec(args.dataset, args.skip_broken)
    experiment = Experiment(args.root, args.exp, spec.name)
    folder = experiment.search_dir(args.train_model)

    share_cores(args.backbone)
    import_keras()
    from Models.weights import saved_epochs
    from Search.studies import check_address, database_errors

    epochs = saved_epochs(experiment.part_dir(args.train_model))
    if not epochs:
        raise UserError(
            f"there are no weights in {experiment.part_dir(args.train_model)}: run SD_adapting.py "
            f"--train_model {args.train_model} first."
        )
    if args.optimize and experiment.pipeline_file.exists():
        read_results(experiment.pipeline_file, PIPELINE_SCHEMA)  # a broken one shall be told before days of search
    address = args.storage or f"sqlite:///{folder.parent / 'study.db'}"
    check_address(address, create=args.optimize)
    with database_errors(address):
        run_study(args, spec, experiment, folder, epochs, address, started)


def run_study(args, spec, experiment, folder, epochs, address, started):
    """Finish the study at an address, measure its best trial once, and report."""
    import optuna
    from optuna.trial import TrialState

    from plots import experiment_pipeline_bars, search_plots
    from Search.studies import FINISHED, delete_study, open_study, pruner, shown_address, trials

    # The study
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # each trial has its own line here
    name = experiment.study_name(args.train_model)
    # A first search tells all that may be wrong with its input before it writes anything.
    ready = prepare(args, spec, experiment, epochs) if args.optimize and not folder.exists() else None
    if args.restart:
        thrown_away = delete_study(address, name, folder.parent / "study")
        log.info("throwing away the study %s with %d trials", name, thrown_away)
        (folder / "best.json").unlink(missing_ok=True)
    study = open_study(
        address, name, args.seed, pruner(args.pruner, args.epochs), args.optimize, folder.parent / "study"
    )
    claim_study(study, study_settings(args, epochs), shown_address(address))
    log_to(folder)
    if args.select_on == "test":
        log.warning("settings are chosen on TEST images, as published: the accuracies below are too good")
    log.info(
        "search %s: %d of %d trials there, steps %d..%d, scale 0..%g, epoch 1..%d, %d images a trial, seed %d -> %s",
        name,
        len(trials(study, *FINISHED)),
        args.n_trials,
        args.is_min,
        args.is_max,
        args.ugs_max,
        max(epochs),
        args.num_imgs,
        args.seed,
        folder,
    )

    tell_if_interrupted(lambda: f"{len(trials(study, *FINISHED))} of {args.n_trials} trials are finished")

    # The search, then one look at the test images
    best_file = folder / "best.json"
    if args.optimize and (len(trials(study, *FINISHED)) < args.n_trials or not best_file.exists()):
        splits, context = ready or prepare(args, spec, experiment, epochs)
        if args.warm_start and not trials(study):
            warm_start(args, study, epochs)
        if not search(args, study, context):
            log.info(
                "%g s are over: %d of %d trials are finished, the same command goes on",
                args.timeout,
                len(trials(study, *FINISHED)),
                args.n_trials,
            )
            return
        if not trials(study, TrialState.COMPLETE):
            raise UserError(f"none of the {args.n_trials} trials was completed: all were pruned. Raise --n_trials.")
        with locked(best_file):  # of several workers one measures
            best = study.best_trial
            if not (best_file.exists() and read_json(best_file).get("trial") == best.number):
                results = measure(args, context, splits.test, best)
                merge_json(experiment.pipeline_file, {spec.name: {STAGE_NAMES[args.train_model]: results}})
                experiment_pipeline_bars(args.root, args.exp)
                if args.save_plots:
                    log.info("  %s", contact_sheet(context, study, folder))
                write_json(
                    best_file,
                    {
                        "trial": best.number,
                        "is": best.params["is"],
                        "ugs": best.params["ugs"],
                        "epoch": best.user_attrs["saved_epoch"],
                        f"{args.select_on}_accuracy": best.value,
                        "test": results,
                        "run": describe_run(args, started),
                    },
                )
    elif args.optimize:
        log.info("finished already: this is its report")

    # Report
    done = trials(study, *FINISHED)
    if not trials(study, TrialState.COMPLETE):
        raise UserError(f"the study {name} has no completed trial yet.")
    best = study.best_trial
    table = write_trials(study, folder)
    if not args.optimize:
        for trial in trials(study):
            log.info(trial_line(trial))
    if args.save_plots:
        for plot in search_plots(study, folder):
            log.info("  %s", plot)
    log.info("all trials -> %s", table)
    log.info(
        "best of %d trials: --inf_steps %d --ugs %g --%s_epoch %d, %s accuracy %.4f, %.0f s -> %s",
        len(done),
        best.params["is"],
        best.params["ugs"],
        args.train_model,
        best.user_attrs["saved_epoch"],
        SELECTED[args.select_on],
        best.value,
        time.time() - started,
        best_file,
    )


if __name__ == "__main__":
    run(main, parse_args)
