"""What membership is asked of: classifiers that the experiment has trained, and the epochs that made the set."""

from Audit.frequencies import unequal_in
from Data.doubts import others
from Data.measured import cas_results, is_of
from Experiment.errors import UserError
from Experiment.levers import in_words, levers_on
from Experiment.paths import BEST_WEIGHTS
from Experiment.predictions import no_better_than_largest
from Experiment.records import flattened, short
from Experiment.results import all_doubts, recorded_training
from Models.backbones import BACKBONES
from Models.weight_cards import learned_from, other_inputs, read_card, weights_hashes
from Models.weight_names import chosen_epochs

REAL = "real"


def classifier_entries(experiment, classifier, source):
    """Results of classifiers that have learnt from the real images or from this set: {"real" or size: entry}."""
    entries = cas_results(experiment).get(classifier, {}).get(experiment.dataset, {})
    sizes = sorted((size for size in entries if size != REAL and is_of(entries[size], size, source)), key=lambda s: int(s[1:]))
    return {size: entries[size] for size in ([REAL] if REAL in entries else []) + sizes}


def learnt(name, entry):
    """What a classifier has learnt from, and the levers of its training, in words."""
    levers = in_words(recorded_training(entry))
    images = "the real images" if name == REAL else f"{name[1:]}x generated images"
    return f"{images} ({levers})" if levers else images


def trained(experiment, entries, inputs, source):
    """Folders of those that can be asked, {name: folder}, and why others cannot, [text].

    Members are the training images of today: a classifier, or a generator, that has learnt from others would look private.
    Entries of classifiers that were tested on other images than those of today are taken out.
    """
    found, lacking, other_members = {}, [], others(source.manifest.get("learned_from", []), inputs["data"])
    test = short(inputs["data"]["test"])
    for name, entry in list(entries.items()):
        if entry.get("test", test) != test:
            lacking.append(f"the classifier {name}: it was tested on other images, and its accuracy is left out too")
            del entries[name]
            continue
        if share := levers_on(recorded_training(entry)).get("real_share"):
            lacking.append(f"the classifier {name}: it has learnt from real images too (--real_share {share:g})")
            continue
        folder = experiment.root / entry["predictions"] if "predictions" in entry else None
        if not folder or not (folder / BEST_WEIGHTS).exists():
            lacking.append(f"the classifier {name}: its weights are not there")
        elif other_inputs(folder, inputs, ["test"]):
            lacking.append(f"the classifier {name}: it was tested on other images")
        elif other_inputs(folder, inputs, ["train"]) if name == REAL else other_members:
            whose = "it" if name == REAL else "its generator"
            lacking.append(f"the classifier {name}: {whose} has learnt from other images than the training images of today")
        else:
            found[name] = folder
    return found, lacking


def real_folder(experiment, name, inputs):
    """Folder of the experiment's classifier that has learnt from the real images of today; None where there is none."""
    folder = experiment.classifier_dir(name, REAL)
    there = (folder / BEST_WEIGHTS).exists()
    return folder if there and not other_inputs(folder, inputs, ("resolution", "train", "val")) else None


def hashes_of(folders):
    """{name: SHA-256} of trained classifiers."""
    return {name: read_card(folder / BEST_WEIGHTS)["sha256"] for name, folder in folders.items()}


def usual_classifier(experiment):
    """The kind of classifier that the experiment has results of, if it is one; else the paper's."""
    kinds = [kind for kind, datasets in cas_results(experiment).items() if experiment.dataset in datasets]
    return kinds[0] if len(kinds) == 1 else "resnet20"


def epochs_of(experiment, source, data):
    """Files of the epochs that made a set, {"enc": path or None, "dif": path or None}, and {part: SHA-256}.

    Raises:
        UserError: They are not known, not there, or not what they were; it says why.
    """
    manifest = source.manifest
    if not manifest.get("backbone"):
        raise UserError("the set has no manifest: which model made it is not known")
    if manifest["backbone"] not in BACKBONES:
        raise UserError(f"the backbone {manifest['backbone']} of the set is not known here")
    numbers = [manifest.get(name) for name in ("enc_epoch", "dif_epoch")]
    if not any(numbers):
        raise UserError("the set is of a model that was not adapted")
    epochs = chosen_epochs(experiment, *numbers)
    hashes, theirs = weights_hashes(epochs, data["classes"]), manifest.get("weights", {})
    if changed := [part for part, found in hashes.items() if theirs.get(part) != found]:
        raise UserError(f"the epochs of {' and '.join(changed)} are not those that made the set")
    if others(learned_from(epochs.values()), data):
        raise UserError("its epochs have learnt from other images than the training images of today")
    return epochs, hashes


def in_one_text(values):
    """Values {name: value}, which may be nested, as one text; `none` where there are none."""
    return ", ".join(f"{name} {value}" for name, value in sorted(flattened(values).items())) or "none"


def doubts_in_words(entries, splits, source, classes):
    """What an audit's record says of results that may mislead, as one text; `none` where there is nothing.

    Unequal shares of the classes are in it since every record has it: audits of before, which compared them, are not taken for
    one of now.
    """
    doubts = [
        *all_doubts(entries.values()),
        *(f"{size}: {words}" for size, words in no_better_than_largest(entries)),
        *filter(None, [unequal_in(splits, source.labels, classes)]),
    ]
    return "; ".join(doubts) or "none"
