"""What the stages run with where the user says nothing: one function a kind of backbone."""

from Experiment import presets
from Models.backbones import BACKBONES

PAPER_SIDE = 32  # px: the largest images of its datasets
MINI_CLASSIFIER = "resnet20_16"  # a quarter of the paper's width, for speed
FEWEST_IMAGES = 128  # for a classifier's batch of 64: some may be copies, or broken

# Images that the trainings of light backbones see in all, over their epochs: about the same work for a small and a large dataset.
ENC_IMAGES, DIF_IMAGES = 12_000, 64_000
# Of classifiers: batch, epochs and fewest images in a trial, most images of the measurement on test (or as many as in a
# trial), images that a final one sees in all. Where images have more than COARSE px a side a classifier takes most of the
# time: smaller batches. In so few epochs the published rate of Adam hardly ever falls, and accuracies differ by points from
# seed to seed (Models/levers.md).
# Photographs are harder to tell apart: of 300 a classifier learns so little that trials differ by chance.
COARSE = 16
LONGER = 3  # times as many epochs, at most, where images are augmented: each epoch shows others
SMALL_PICTURES = {"batch": 64, "epochs": 32, "trial_images": 300, "most_test_imgs": 1000, "images": 125_000, "optimizer": None}
LARGER_PICTURES = {
    "batch": 32,
    "epochs": 16,
    "trial_images": 600,
    "most_test_imgs": 600,
    "images": 60_000,
    "optimizer": "adam_steps",
}


def paper_recipe(args, spec):
    """The paper's values, which are the scripts' own; of larger pictures than the paper's a classifier sees fewer at a time.

    At 128 px its batch of 256 would keep 25 GB for the gradients, more than most GPUs have.
    """
    side, smallest = max(spec.resolution, PAPER_SIDE), min(spec.train_size, spec.unit)
    batch = max(32, presets.CLASSIFIER_BATCH * PAPER_SIDE**2 // side**2) if side > PAPER_SIDE else None
    fewer = batch and max(1, min(batch, smallest // 2))  # some of few images may be copies, or broken
    return {
        "enc": {"epochs": args.enc_epochs},
        "dif": {"epochs": args.dif_epochs},
        "search": {
            "classifier": args.classifier, "n_trials": args.n_trials, "num_imgs": args.num_imgs,
            "test_imgs": args.test_imgs, "epochs": args.trial_epochs, "save_plots": True,
            "batch_size": batch and min(batch, args.num_imgs or presets.TRIAL_IMAGES),
        },
        "first_search": {},
        "classifier": {"classifier": args.classifier, "batch_size": fewer},
        "classifier_epochs": lambda take: args.classifier_epochs,
    }  # fmt: skip


def light_recipe(args, spec):
    """For a light backbone on a laptop: few trials, few images each, and trainings of about equal work whatever the dataset.

    On the digits these are the values of the demo.
    """
    how = SMALL_PICTURES if spec.resolution <= COARSE else LARGER_PICTURES
    images, few = spec.train_size, max(how["trial_images"], 30 * spec.num_classes)
    enc_epochs = args.enc_epochs or max(round(ENC_IMAGES / images), min(12, round(2 * ENC_IMAGES / images)), 1)
    dif_epochs = args.dif_epochs or max(round(DIF_IMAGES / images), 1)
    classifier_epochs = min(40, max(10, how["images"] // spec.unit)) * (LONGER if args.recipe == "best" else 1)
    smallest = min(images, spec.unit)
    classifier = args.classifier or MINI_CLASSIFIER
    return {
        "enc": {"epochs": enc_epochs, "freq": max(1, enc_epochs // 3)},
        "dif": {"epochs": dif_epochs, "freq": max(1, dif_epochs // 8)},
        "search": {
            "classifier": classifier, "batch_size": min(how["batch"], args.num_imgs or few), "n_trials": args.n_trials or 5,
            "num_imgs": args.num_imgs or few, "test_imgs": args.test_imgs or max(few, min(how["most_test_imgs"], spec.unit)),
            "epochs": args.trial_epochs or how["epochs"], "optimizer": how["optimizer"], "solver": "dpmpp", "is_min": 5,
            "warm_start": True, "save_plots": True,
        },
        "first_search": {"is_max": 8, "ugs_max": 4},
        "classifier": {
            "classifier": classifier, "batch_size": 64 if smallest >= FEWEST_IMAGES else max(1, smallest // 2),
            "optimizer": how["optimizer"],
        },
        # A larger set is seen less often.
        "classifier_epochs": lambda take: args.classifier_epochs or max(1, round(classifier_epochs / take**0.5)),
    }  # fmt: skip


def recipe(args, spec):
    """Flags of the stages, {part: {flag: value}}; None stands for the script's own default. "classifier_epochs" is a function: of
    a classifier's epochs, by the size of its set.

    Args:
        args: The pipeline's arguments: what the user has chosen stays.
        spec: The `DatasetSpec`.
    """
    return (light_recipe if BACKBONES[args.backbone].light else paper_recipe)(args, spec)
