"""Generate a synthetic dataset with an adapted Stable Diffusion: a folder of PNGs a class, or tars, and a manifest.

    python generate_dataset.py --dataset cifar10 --exp first --img_total 40000 --best
    python generate_dataset.py --dataset cifar10 --exp 0001 --img_total 40000 --enc_epoch 31 --dif_epoch 10 \\
        --inf_steps 31 --ugs 1.74
"""

import logging
import time

from cli import sampling, sets, tasks
from cli.best import add_best_flag, epoch_or_best, settle_best, take_best
from cli.flags import add_model_flags, add_spacing_flag, finish_args, integer, new_parser, number
from cli.lora import base_hashes
from cli.process import run, writing_in
from Data import generation
from Data.registry import class_names, dataset_spec
from Experiment import presets
from Experiment.disk import check_room
from Experiment.files import write_json
from Experiment.levers import without_off
from Experiment.locks import refuse_if_claimed
from Experiment.paths import Experiment, size_name
from Experiment.pictures import try_to_draw
from Experiment.plan import Plan
from Experiment.progress import FINISHED_BEFORE
from Experiment.records import DATA_FLAGS, describe_run, fixed_arguments
from Generating.material import facts_of_set, filter_hash, numbering_of, writer_of
from Models.backbones import BACKBONES
from Models.weight_cards import check_pretrained, compare_encoders, weights_hashes
from Models.weight_names import chosen_epochs, guide_epoch

log = logging.getLogger("experiment")

MOST_IMAGES = 10_000_000
# Arguments that do not change the images; what the data are decides no more than the classes.
FREE = (*DATA_FLAGS, "weights_dir", "batch_size", "img_class", "img_total", "shard")


def parse_args(argv=None):
    parser = new_parser(__doc__, script="generate_dataset")
    add, count = parser.add_argument, integer(1, MOST_IMAGES)
    epochs, batch = presets.GENERATION_EPOCHS, presets.GENERATION_BATCH
    add("--img_class", type=count, help="images of each class; or --img_total")
    add("--img_total", type=count, help="images in all, spread evenly unless --class_prior real")
    add("--batch_size", default=batch, type=integer(1), help="most images at a time (250; on a processor 16 or 96)")
    add_best_flag(parser, "epochs, steps, scale and levers")
    add("--enc_epoch", type=epoch_or_best, help="epoch of the Class Encoder, or best; 0: fresh (50)")
    add("--dif_epoch", type=epoch_or_best, help="epoch of the UNet, or best; 0: pretrained (10)")
    add("--inf_steps", type=integer(1, 1000), help="inference steps (50; with --solver dpmpp 15)")
    add("--ugs", type=number(0, 1000), help="unconditional guidance scale (7.5)")
    add_spacing_flag(parser)
    sampling.add_sampling_levers(parser)
    parser.set_defaults(solver=None)  # with --best the search's
    sets.add_set_levers(parser)
    add("--image_size", type=integer(1, 4096), help="side of the stored images, px (the backbone's)")
    add_model_flags(parser)
    add(
        "--shard", default=(1, 1), type=tasks.shard, metavar="I/N",
        help="make the Ith of N parts of the dataset, beside other processes or machines; auto: a batch job says which",
    )  # fmt: skip
    add("--no_mark", action="store_true", help="leave out the note in each PNG that a trained model has made it")
    add("--restart", action="store_true", help="throw away what an earlier run has left here")
    args = finish_args(parser, argv)
    sampling.settle_solver(parser, args)
    settings = {"enc_epoch": epochs["enc"], "dif_epoch": epochs["dif"], "inf_steps": presets.STEPS_OF_SOLVER[args.solver],
                "ugs": presets.GUIDANCE_SCALE}  # fmt: skip
    settle_best(parser, args, settings)
    if (args.img_class is None) == (args.img_total is None):
        parser.error("exactly one of --img_class and --img_total is needed")
    if args.restart and args.shard[1] > 1:
        parser.error("argument --restart: not allowed with --shard: it would throw away what other shards make")
    sampling.finish_sampling_levers(parser, args, args.best)
    sets.finish_set_levers(parser, args)
    return args


def plan(args):
    """Look at what is there.

    Returns:
        A `Plan`: the dataset's `spec`, its `name` and `classes`, the `experiment`, the `folder` of the images, files of the
        `epochs` that make them and of the `guide`, the `settings` that decide the images (the precision that `auto` means is
        not known yet), `counts` of each class, their `numbering`, this run's `part` of the folder, empty for the whole, and facts
        of what was `taken` by name.

    Raises:
        UserError: The run cannot begin: images of other settings, weights of other classes, a missing epoch, another
            process at work.
    """
    spec = dataset_spec(args.dataset, args.skip_broken, args.resolution, args.background)
    experiment, backbone = Experiment(args.root, args.exp, spec.name), BACKBONES[args.backbone]
    names = {"enc_epoch": "enc_epoch", "dif_epoch": "epoch", "inf_steps": "is", "ugs": "ugs"}
    taken = take_best(args, experiment, class_names(spec), "dif", names)
    sampling.fill_in_spacing(args)
    total = args.img_total or args.img_class * spec.num_classes
    name = f"{size_name(total)}Enc{args.enc_epoch}Dif{args.dif_epoch}Is{args.inf_steps}Ugs{args.ugs:g}"
    name += sampling.sampling_name(args) + sets.set_name(args)
    epochs, classes = chosen_epochs(experiment, args.enc_epoch, args.dif_epoch), class_names(spec)
    guide = guide_epoch(experiment, *sampling.trained_last(args), args.autoguide)
    hashes = base_hashes(args, ["decoder", *sampling.guide_parts(args, guide)], epochs["dif"])
    check_pretrained([*epochs.values(), guide], hashes, backbone.prediction_type)
    compare_encoders(epochs["enc"], args.seed, epochs["dif"])
    hashes |= weights_hashes({**epochs, "guide": guide}, classes) | filter_hash(args, spec, experiment, classes)
    numbering, prior = numbering_of(args, spec, experiment, total, max(args.batch_size, backbone.block))
    settings = {
        "total": total,
        **fixed_arguments(args, FREE),
        "image_size": args.image_size or backbone.image_size,
        "classes": list(classes),
        "weights": hashes,
        **prior,
        **without_off({"store": args.store}),
    }
    if args.precision == "auto":
        del settings["precision"]  # a finished set is what was asked for, whichever it was
    folder, part = experiment.synthetic_root / name, "-{}-of-{}".format(*args.shard) if args.shard[1] > 1 else ""
    known = Plan(
        spec=spec, name=spec.name, classes=classes, experiment=experiment, folder=folder, epochs=epochs, guide=guide,
        settings=settings, counts=numbering.counts(total), numbering=numbering, part=part, taken=taken,
    )  # fmt: skip
    generation.refuse_foreign(folder, args.restart)
    if not args.restart:
        if generation.lacks_mark(folder):
            del settings["no_mark"]
        generation.check_folder(folder, settings)
        if generation.is_complete(writer_of(args, known)):
            generation.move_sheet(folder)
            known.done = f"{FINISHED_BEFORE}: {folder} (--restart makes the images again)"
            return known
    refuse_if_claimed(folder, part)
    return known


def generate(args, known=None):
    """Step 5 of the paper: labels in, a synthetic dataset on disk out.

    Args:
        args: What `parse_args` returns.
        known: What `plan` has found, if it was asked before.

    Returns:
        The folder of the images.

    Raises:
        UserError: Images are broken, or the run cannot begin.
    """
    from Generating.images import write_images
    from Models.adapter import load_diffusion
    from Models.devices import start_devices
    from Models.runtime import precision, resolve_precision

    started = time.time()
    known = known or plan(args)
    if known.done:
        return known.folder
    folder, backbone, parts = known.folder, BACKBONES[args.backbone], args.shard[1]
    settings = known.settings | {"precision": resolve_precision(args.precision)}  # shards on other hardware are refused
    if not args.restart:
        generation.check_folder(folder, settings)
    start_devices(args)  # a fresh encoder of --enc_epoch 0 is the same every time
    with precision(args.precision):
        diffusion = load_diffusion(backbone, len(known.classes), args.weights_dir, **known.epochs)
        guide = sampling.chosen_guide(args, backbone, sampling.trained_last(args)[0], known.guide, len(known.classes))
    writer = writer_of(args, known)
    there, whole = writer.progress(args.shard)
    needed = 0 if args.restart else generation.room_of(whole - there, settings["image_size"])
    check_room(folder, needed, "what is missing of the set")
    with writing_in(folder, known.part, saved=lambda: "{} of {} images are saved".format(*writer.progress(args.shard))):
        generation.begin_folder(folder, settings, args.restart)
        known.thrown_away = args.restart
        writer.begin()
        made = write_images(args, known, settings["precision"], diffusion, guide, writer)
        others = [f"{i}/{parts}" for i in range(1, parts + 1) if not writer.is_whole((i, parts))]
        if others:
            log.info("%d images in %.0f s -> %s; shards that are not complete: %s", made, time.time() - started, folder,
                     ", ".join(others))  # fmt: skip
            return folder
        title, images = f"{known.name}, {folder.name}", known.experiment.images_dir
        sheet = try_to_draw("the set", generation.draw_pictures, folder, known.classes, title, images)
        write_json(folder / "run.json", describe_run(args, started, {"weights": settings["weights"]}, **known.taken))
        facts = known.taken | facts_of_set(args, known)
        generation.finish_set(writer, settings | facts)  # last: what has a manifest is complete
        log.info("%d images in %.0f s -> %s, samples %s", made, time.time() - started, folder, sheet or "none")
    return folder


if __name__ == "__main__":
    run(generate, parse_args, plan)
