"""Search inference steps, guidance scale and epoch by Bayesian optimisation of validation accuracy.

python hyp_opt.py --dataset cifar10 --exp first --train_model enc
python hyp_opt.py --dataset cifar10 --exp first --train_model dif --best
"""

import logging
import time

from cli.best import BEST, add_best_flag, settle_best, take_best
from cli.flags import (
    add_classifier_flags,
    add_model_flags,
    add_spacing_flag,
    check_batch_size,
    finish_args,
    new_parser,
)  # fmt: skip
from cli.levers import add_classifier_levers
from cli.lora import updates_fit
from cli.process import logging_to, run, tell_software, telling_what_is_saved
from cli.sampling import (
    add_sampling_levers,
    add_search_levers,
    check_search_levers,
    check_steps,
    fill_in_spacing,
    finish_sampling_levers,
    guide_parts,
)  # fmt: skip
from cli.search_flags import add_measurement_flags, add_search_flags, complete_bounds
from Data.loaders import load_splits
from Data.registry import class_names, dataset_spec
from Experiment import presets
from Experiment.errors import UserError
from Experiment.files import read_json
from Experiment.levers import OFF
from Experiment.locks import refuse_if_written
from Experiment.paths import FIT_STATE, Experiment
from Experiment.plan import Plan
from Experiment.progress import FINISHED_BEFORE
from Experiment.results import PIPELINE_SCHEMA, read_results
from Models.backbones import BACKBONES
from Models.pretrained import pretrained_inputs
from Models.weight_cards import check_pretrained, compare_encoders, warn_of_tuned
from Models.weight_names import chosen_epochs, guide_epoch, saved_epochs
from Search.inputs import search_inputs

log = logging.getLogger("experiment")

# What the second search takes from the first, and is without it.
FIRST_SEARCH = {"enc_epoch": 0, "is_1": presets.INFERENCE_STEPS, "ugs_1": presets.GUIDANCE_SCALE}


def parse_args(argv=None):
    parser = new_parser(__doc__, script="hyp_opt")
    add_search_flags(parser.add_argument)
    add_best_flag(parser, "--enc_epoch, --is_1, --ugs_1, solver and guidance interval of the second search")
    add_measurement_flags(parser.add_argument)
    add_classifier_flags(parser)
    add_classifier_levers(parser)
    add_spacing_flag(parser)
    add_sampling_levers(parser)
    parser.set_defaults(solver=None)  # with --best the first search's
    add_search_levers(parser)
    add_model_flags(parser)
    args = finish_args(parser, argv)
    settle_best(parser, args, FIRST_SEARCH)
    check_search_levers(parser, args)
    if args.search_solver or not args.best:
        args.solver = args.solver or OFF["solver"]
    if args.train_model == "enc" and (args.best or args.enc_epoch == BEST):
        parser.error(f"argument {'--best' if args.best else '--enc_epoch best'}: is for --train_model dif")
    given = [name for name, off in FIRST_SEARCH.items() if getattr(args, name) != off]
    if given and args.train_model == "enc":
        parser.error(f"argument --{given[0]}: is for --train_model dif, the second search")
    args.n_trials = args.n_trials or presets.TRIALS[args.train_model]
    args.test_imgs = args.test_imgs or args.num_imgs
    args.repeats = presets.REPEATS[args.select_on] if args.repeats is None else args.repeats
    check_batch_size(args, presets.CLASSIFIER_BATCH, args.num_imgs)
    if args.restart and (args.prune or not args.optimize):
        parser.error(f"argument --restart: not allowed with {'--prune' if args.prune else '--no-optimize'}")
    if not args.best and (wrong := complete_bounds(args)):
        parser.error(wrong)
    finish_sampling_levers(parser, args)
    args.optimize &= not args.prune
    return args


def sqlite_address(file):
    """The address of a study in a file of SQLite, in which a % of its name, say, is a code."""
    import sqlalchemy

    return sqlalchemy.URL.create("sqlite", database=str(file)).render_as_string()


def plan(args):
    """Look at what is there.

    Returns:
        A `Plan`: the dataset's `spec`, the `experiment`, the `folder` of the report and the `best_file` in it, the `address`
        of the study, the real `splits` without training images, `epochs` {epoch: file} of what is searched, `epoch_files` of
        those that stay as they are, and of the `guide`, None where none guides or it is the pretrained UNet; `inputs` by
        content, and `hashes` {epoch as text: SHA-256} of what is searched; `doubts`, why accuracies on test may be too good;
        and what was `adopted` from the first search, see `take_first_levers`.

    Raises:
        UserError: The search cannot begin: no weights, or those of other classes, or results or data that are broken.
    """
    spec = dataset_spec(args.dataset, args.skip_broken, args.resolution, args.background)
    experiment, part = Experiment(args.root, args.exp, spec.name), args.train_model
    names = {"enc_epoch": "epoch", "is_1": "is", "ugs_1": "ugs"}
    taken = take_best(args, experiment, class_names(spec), "enc", names, second_search=True)
    if wrong := complete_bounds(args) or check_steps(args):
        raise UserError(wrong)
    fill_in_spacing(args)
    folder, weights = experiment.search_dir(part), experiment.part_dir(part)
    epochs = saved_epochs(weights)
    if not epochs:
        raise UserError(f"there are no weights in {weights}: run SD_adapting.py --train_model {part} first.")
    if args.optimize:
        refuse_if_written(weights)
        if (weights / FIT_STATE).exists():
            log.warning("the training in %s is not finished: this search sees its epochs of now, %d to %d, and none that follow",
                        weights, min(epochs), max(epochs))  # fmt: skip
    lora = updates_fit(args, *epochs.values())  # refuses low-rank updates of another UNet
    epoch_files = chosen_epochs(experiment, args.enc_epoch if part == "dif" else 0, 0)
    if args.optimize and experiment.pipeline_file.exists():
        read_results(experiment.pipeline_file, PIPELINE_SCHEMA)  # reject a broken file before days of search
    address = sqlite_address(folder.parent / "study.db") if args.storage is None else args.storage
    splits = load_splits(spec, args.data_dir, args.seed, spec.resolution, experiment)
    guide = guide_epoch(experiment, part, None, args.autoguide)
    epochs = {epoch: file for epoch, file in epochs.items() if epoch > (args.autoguide or 0)}
    if not epochs:
        raise UserError(f"argument --autoguide: there are no epochs after {args.autoguide} in {weights}.")
    inputs, hashes, told = search_inputs(splits, spec, epochs, epoch_files | ({"guide": guide} if guide else {}))
    pretrained = {"decoder", *(["unet"] if part == "enc" else guide_parts(args, guide))}
    backbone = BACKBONES[args.backbone]
    base = pretrained_inputs(backbone, sorted(pretrained), args.weights_dir)
    under = pretrained_inputs(backbone, ["unet"], args.weights_dir) if lora else {}
    check_pretrained([*epochs.values(), *epoch_files.values(), guide], base | under, backbone.prediction_type)
    if part == "enc":
        warn_of_tuned(epochs.values())
    else:
        compare_encoders(epoch_files["enc"], args.seed, *epochs.values())
    inputs["weights"] |= base
    splits = splits._replace(train=None)  # memory: a search reads none of them
    return Plan(
        spec=spec, experiment=experiment, folder=folder, best_file=folder / "best.json", address=address, splits=splits,
        epochs=epochs, epoch_files=epoch_files, guide=guide, inputs=inputs, hashes=hashes, doubts=told,
        adopted=taken.get("adopted", {}),
    )  # fmt: skip


def search(args, known=None):
    """Steps 2 and 4 of the paper: find the settings of the best validation accuracy, then look at test once.

    Args:
        args: What `parse_args` returns.
        known: What `plan` has found, if it was asked before.

    Returns:
        The content of best.json; None where only a report was asked for and there is none.
    """
    import optuna

    from Search import stage
    from Search.context import prepare
    from Search.storages import check_address, database_errors
    from Search.studies import FINISHED, trials

    started = time.time()
    known = known or plan(args)
    check_address(known.address, create=args.optimize)
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # each trial has its own line here
    with database_errors(known.address):
        # A first search tells all that may be wrong with its input before it writes or throws away anything.
        first = args.restart or not known.folder.exists()
        ready = prepare(args, known) if args.optimize and first else None
        study = stage.begin_study(args, known)
        saved = lambda: f"{len(trials(study, *FINISHED))} of {args.n_trials} trials are finished"  # noqa: E731
        with logging_to(known.folder), telling_what_is_saved(saved):
            tell_software(known.folder)
            stage.announce(args, known, study)
            if args.prune:
                stage.remove_unchosen(args, known, study)
            elif args.optimize and stage.is_finished(args, known, study):
                log.info("%s: this is its report", FINISHED_BEFORE)
                stage.note_if_gone(args, known, read_json(known.best_file).get("test", {}))
            elif args.optimize:
                stage.check_epochs(known, study)
                context = ready or prepare(args, known)
                stage.run_budget(args, known, study, context)
                stage.measure_best(args, known, study, context, started)
            stage.report(args, known, study, started)
            return read_json(known.best_file) if known.best_file.exists() else None


if __name__ == "__main__":
    run(search, parse_args, plan)
