"""Search inference steps, guidance scale and epoch by Bayesian optimisation of validation accuracy.

    python hyp_opt.py --dataset cifar10 --exp 0001 --train_model enc
    python hyp_opt.py --dataset cifar10 --exp 0001 --train_model dif --enc_epoch 31 --is_1 31 --ugs_1 1.19
"""

import argparse
import time
from dataclasses import dataclass

from cli import (
    add_classifier_flags, add_model_flags, add_spacing_flag, finish_args, import_keras, integer, log, new_parser, number,
    run, start_logging
)  # fmt: skip
from experiment import Experiment, UserError, describe_run, merge_json, write_json

TRIALS = {"enc": 50, "dif": 40}  # paper's code
PATIENCE = (25, 50)  # of learning rate and training within the search (paper's code)
STEPS_MIN, STEPS_MAX, SCALE_MAX = 5, 50, 7.5  # ranges of the first search (paper, section 3)
DEFAULT_STEPS, DEFAULT_SCALE = 50, 7.5  # of generation without a search
SELECTED = {"val": "validation", "test": "TEST"}
STAGE_NAMES = {"enc": "After Transfer Learning", "dif": "After Fine-Tuning"}


def parse_args(argv=None):
    parser = new_parser(__doc__)
    parser.add_argument("--optimize", default=True, action=argparse.BooleanOptionalAction,
                        help="search; --no-optimize only reports an earlier search (--optimize)")  # fmt: skip
    parser.add_argument("--train_model", default="enc", choices=["enc", "dif"],
                        help="search after training the Class Encoder (enc) or the UNet (dif) (enc)")  # fmt: skip
    parser.add_argument("--batch_size", default=256, type=integer(1), help="batch of the classifier (256)")
    parser.add_argument("--enc_epoch", default=0, type=integer(0), help="Class Encoder of the second search (0)")
    parser.add_argument("--num_imgs", default=4000, type=integer(1), help="images of a trial (4000)")
    parser.add_argument("--is_1", default=DEFAULT_STEPS, type=integer(1, 1000),
                        help="best inference steps of the first search: upper bound of the second (50)")  # fmt: skip
    parser.add_argument("--ugs_1", default=DEFAULT_SCALE, type=number(0, 1000, above=True),
                        help="best guidance scale of the first search: half the upper bound of the second (7.5)")  # fmt: skip
    parser.add_argument("--save_plots", action="store_true", help="write the ten plots")
    parser.add_argument("--n_trials", type=integer(1), help="finished trials in all, over all runs (enc 50, dif 40)")
    parser.add_argument("--is_min", default=STEPS_MIN, type=integer(1, 1000), help="fewest inference steps (5)")
    parser.add_argument("--is_max", type=integer(1, 1000), help="most inference steps (enc 50; dif --is_1)")
    parser.add_argument("--ugs_max", type=number(0, 1000, above=True), help="largest scale (enc 7.5; dif 2 * --ugs_1)")
    parser.add_argument("--test_imgs", type=integer(1), help="images of the final measurement on test (--num_imgs)")
    parser.add_argument("--gen_batch_size", default=250, type=integer(1), help="images generated at a time (250)")
    parser.add_argument("--epochs", default=100, type=integer(1), help="most epochs of a trial's classifier (100)")
    parser.add_argument("--select_on", default="val", choices=["val", "test"],
                        help="images whose accuracy is maximised; test as published, which is no fair test (val)")  # fmt: skip
    add_classifier_flags(parser)
    add_spacing_flag(parser)
    add_model_flags(parser)
    args = finish_args(parser, argv)
    first = args.train_model == "enc"
    args.n_trials = args.n_trials or TRIALS[args.train_model]
    args.is_max = args.is_max or (STEPS_MAX if first else args.is_1)
    args.ugs_max = args.ugs_max or (SCALE_MAX if first else 2 * args.ugs_1)
    args.test_imgs = args.test_imgs or args.num_imgs
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

    def images(self, steps, scale, count):
        """`count` balanced images of the loaded weights, uint8 (count, px, px, 3) at the dataset's resolution."""
        import numpy as np

        from Data.loaders import resize_images
        from Data.synthetic import balanced_counts
        from Models.sampler import generate_images

        counts = balanced_counts(count, self.spec.num_classes)
        labels = np.repeat(np.arange(self.spec.num_classes), counts)
        indices = np.concatenate([np.arange(n) for n in counts])
        made = generate_images(self.sampler, self.encoder, labels, indices, num_steps=steps, scale=scale,
                               seed=self.args.seed, batch_size=min(self.args.gen_batch_size, self.args.num_imgs),
                               spacing=self.args.timestep_spacing)  # fmt: skip
        return np.concatenate([resize_images(images, self.spec.resolution, self.args.resize) for _, _, images in made]), labels

    def train(self, images, labels, callbacks=()):
        """Train the classifier on synthetic images; returns the history of real validation accuracy."""
        history, _ = self.classifier.fit(
            (images, labels), self.val, epochs=self.args.epochs, batch_size=self.args.batch_size,
            seed=self.args.seed, patience=PATIENCE, callbacks=callbacks, verbose=0,
        )  # fmt: skip
        return history["val_accuracy"]


def suggest(trial, context):
    """The settings of a trial: inference steps, guidance scale and epoch in the paper's ranges."""
    args = context.args
    steps = trial.suggest_int("is", args.is_min, args.is_max)
    scale = trial.suggest_float("ugs", 0.0, args.ugs_max)
    epoch = trial.suggest_int("epoch", 1, max(context.epochs))
    return steps, scale, context.nearest_epoch(epoch)


def objective(trial, context):
    """Best validation accuracy of a classifier trained on images of the suggested settings.

    Real images are read from the validation split alone (with --select_on test, as published, from the test split).
    """
    import keras
    import numpy as np
    import optuna

    steps, scale, epoch = suggest(trial, context)
    trial.set_user_attr("saved_epoch", epoch)
    context.load(epoch)
    images, labels = context.images(steps, scale, context.args.num_imgs)

    def report(epoch, logs):
        if not np.isfinite(logs["loss"]):
            raise optuna.TrialPruned("the classifier's loss is not finite")
        trial.report(logs["val_accuracy"], epoch)
        if trial.should_prune():
            raise optuna.TrialPruned(f"after {epoch + 1} epochs of the classifier")

    return max(context.train(images, labels, [keras.callbacks.LambdaCallback(on_epoch_end=report)]))


def study_settings(args, epochs):
    """What two runs must share to be one study."""
    names = ("dataset", "backbone", "seed", "num_imgs", "batch_size", "epochs", "classifier", "is_min", "is_max",
             "ugs_max", "enc_epoch", "select_on", "resize",
             "timestep_spacing")  # fmt: skip
    return {name: getattr(args, name) for name in names} | {"last_epoch": max(epochs)}


def open_study(args, experiment, epochs):
    """Create or continue the study in the experiment's SQLite file.

    Raises:
        UserError: The study there has other settings, or there is none to report.
    """
    import optuna

    database = experiment.search_dir(args.train_model).parent / "study.db"
    database.parent.mkdir(parents=True, exist_ok=True)
    storage, name = f"sqlite:///{database}", experiment.study_name(args.train_model)
    if not args.optimize and name not in optuna.get_all_study_names(storage=storage):
        raise UserError(f"there is no study {name} in {database} to report: run with --optimize.")
    study = optuna.create_study(
        study_name=name, storage=storage, direction="maximize", load_if_exists=True,
        pruner=optuna.pruners.HyperbandPruner(min_resource=5, max_resource=args.epochs),
    )  # fmt: skip
    # The sampler starts from the number of trials too, or a continued search would suggest the same again.
    study.sampler = optuna.samplers.TPESampler(seed=(args.seed + len(study.trials)) % 2**32)
    settings = study_settings(args, epochs)
    before = study.user_attrs.get("settings")
    if before and before != settings:
        shown = ", ".join(f"{k} {before.get(k)} (now {v})" for k, v in settings.items() if before.get(k) != v)
        raise UserError(f"the study {name} in {database} has other settings: {shown}. Use another --exp.")
    study.set_user_attr("settings", settings)
    return study


def finished_trials(study):
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def search(args, study, context):
    """Run the trials that are missing, one progress line each."""
    started = time.time()
    there = len(finished_trials(study))

    def progress(study, trial):
        done = len(finished_trials(study))
        left = (time.time() - started) / max(1, done - there) * (args.n_trials - done)
        p = trial.params
        result = f"{trial.value:.4f}" if trial.value is not None and trial.state.name == "COMPLETE" else trial.state.name
        best = max((t.value for t in finished_trials(study) if t.state.name == "COMPLETE"), default=float("nan"))
        log.info("trial %3d: steps %2d, scale %4.2f, epoch %2d -> %s   best %.4f   %d of %d, %.0f s, %.0f s left",
                 trial.number, p["is"], p["ugs"], p["epoch"], result, best, done, args.n_trials,
                 time.time() - started, left)  # fmt: skip

    study.optimize(lambda trial: objective(trial, context), n_trials=max(0, args.n_trials - there), callbacks=[progress])


def measure(args, context, test, best):
    """Accuracy on test of the default and of the best settings: the only look at the test images.

    Returns:
        {"no_opt": {...}, "opt": {...}} in the published schema.
    """
    from Models.classifier import accuracies

    last = max(context.epochs)
    default = (DEFAULT_STEPS, DEFAULT_SCALE) if args.train_model == "enc" else (args.is_1, args.ugs_1)
    settings = {"no_opt": (*default, last), "opt": (best.params["is"], best.params["ugs"], best.user_attrs["saved_epoch"])}
    results = {}
    for name, (steps, scale, epoch) in settings.items():
        context.load(epoch)
        context.train(*context.images(steps, scale, args.test_imgs))
        scores = accuracies(context.classifier.probabilities(test.images), test.labels)
        results[name] = {"top_1": scores["top_1_accuracy"], "top_5": scores["top_5_accuracy"]}
        log.info("test, %-6s: steps %d, scale %.2f, epoch %d, %d images -> top-1 %.4f, top-5 %.4f", name, steps, scale,
                 epoch, args.test_imgs, *results[name].values())  # fmt: skip
    return results


def build_context(args, spec, experiment, epochs, val):
    from Models.backbones import BACKBONES, set_precision
    from Models.class_encoder import class_encoder
    from Models.classifier import Classifier
    from Models.sampler import Sampler
    from Models.weights import load_epoch

    classifier = Classifier(args.classifier, spec.resolution, spec.num_classes)
    set_precision(args.precision)
    backbone = BACKBONES[args.backbone]
    encoder = class_encoder(spec.num_classes, backbone.hidden_units, backbone.context_shape)
    if args.train_model == "dif":
        load_epoch(encoder, experiment.part_dir("enc"), args.enc_epoch, "enc")
    sampler = Sampler(backbone.unet(args.weights_dir), backbone.decoder(args.weights_dir))
    return Context(args, spec, experiment, encoder, sampler, classifier, epochs, val)


def main(args):
    from Data.registry import dataset_spec

    started = time.time()
    spec = dataset_spec(args.dataset)
    experiment = Experiment(args.root, args.exp, spec.name)
    folder = experiment.search_dir(args.train_model)

    # The study
    keras = import_keras()
    import optuna

    from Models.weights import saved_epochs
    from plots import experiment_pipeline_bars, search_plots

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    epochs = saved_epochs(experiment.part_dir(args.train_model))
    if not epochs:
        raise UserError(f"there are no weights in {experiment.part_dir(args.train_model)}: run SD_adapting.py "
                        f"--train_model {args.train_model} first.")  # fmt: skip
    study = open_study(args, experiment, epochs)
    start_logging(folder)
    if args.select_on == "test":
        log.warning("settings are chosen on TEST images, as published: the accuracies below are too good")
    log.info("search %s: %d of %d trials there, steps %d..%d, scale 0..%g, epoch 1..%d, %d images a trial, seed %d -> %s",
             study.study_name, len(finished_trials(study)), args.n_trials, args.is_min, args.is_max, args.ugs_max,
             max(epochs), args.num_imgs, args.seed, folder)  # fmt: skip

    # The search, then one look at the test images
    best_file = folder / "best.json"
    if args.optimize and (len(finished_trials(study)) < args.n_trials or not best_file.exists()):
        from Data.loaders import load_splits

        keras.utils.set_random_seed(args.seed % 2**32)
        splits = load_splits(spec, args.data_dir, args.seed, spec.resolution)
        chosen_on = splits.test if args.select_on == "test" else splits.val
        context = build_context(args, spec, experiment, epochs, chosen_on)
        search(args, study, context)
        if not any(trial.state.name == "COMPLETE" for trial in finished_trials(study)):
            raise UserError(f"none of the {len(finished_trials(study))} trials was completed: all were pruned. "
                            "Raise --n_trials.")  # fmt: skip
        results = measure(args, context, splits.test, study.best_trial)
        merge_json(experiment.pipeline_file, {spec.name: {STAGE_NAMES[args.train_model]: results}})
        experiment_pipeline_bars(args.root, args.exp)
        best = study.best_trial
        write_json(best_file, {
            "is": best.params["is"], "ugs": best.params["ugs"], "epoch": best.user_attrs["saved_epoch"],
            f"{args.select_on}_accuracy": best.value, "test": results, "run": describe_run(args, started),
        })  # fmt: skip

    # Report
    best = study.best_trial
    if args.save_plots:
        for plot in search_plots(study, folder):
            log.info("  %s", plot)
    log.info("best of %d trials: --inf_steps %d --ugs %g --%s_epoch %d, %s accuracy %.4f, %.0f s -> %s",
             len(finished_trials(study)), best.params["is"], best.params["ugs"], args.train_model,
             best.user_attrs["saved_epoch"], SELECTED[args.select_on], best.value, time.time() - started, best_file)  # fmt: skip


if __name__ == "__main__":
    run(main, parse_args)
