"""A trained classifier's folder: its best weights, history and facts, and how it is read again."""

import logging
import shutil
import time

import numpy as np

from Experiment import presets
from Experiment.errors import UserError
from Experiment.files import write_csv
from Experiment.paths import BEST_WEIGHTS, FIT_STATE, TRAINING_RECORD
from Experiment.pictures import try_to_draw
from Experiment.predictions import FILE, Predictions, write_predictions
from Experiment.results import TESTED
from Models.classifier import accuracies
from Models.resnet import multiply_accumulates
from Models.weights import load_weights, save_weights

log = logging.getLogger("experiment")

# Column of model_history.csv, and Keras's name.
HISTORY = {
    "loss": "loss", "accuracy": "accuracy", "val_loss": "val_loss", "val_accuracy": "val_accuracy", "learning_rate": "lr"
}  # fmt: skip


def throw_away(folder):
    """Remove what an earlier run has left, its repeats too."""
    names = (TESTED, FILE, TRAINING_RECORD, FIT_STATE, BEST_WEIGHTS)
    there = [folder / name for name in names if (folder / name).exists()]
    repeats = sorted(folder.glob("repeat_*"))
    if there or repeats:
        log.info("throwing away %s in %s", ", ".join(path.name for path in [*there, *repeats]), folder)
    for path in repeats:  # first: without a record of the first one they would be those of the next
        shutil.rmtree(path)
    for path in there:
        path.unlink()


def train_and_save(classifier, images, val, folder, settings, *, epochs, batch_size, seed, **how):
    """Train, and write best_model.weights.h5, model_history.csv and training_info.csv.

    Args:
        classifier: A `Classifier`.
        images, val: (uint8 (N, H, H, 3), int32 (N,)) each; see `Classifier.fit`.
        folder: Of the files; an interrupted run of the same settings goes on from its state there.
        settings: What makes another run the same, as `identity` gives it.
        epochs, batch_size, seed, how: As in `Classifier.fit`.

    Returns:
        The best validation accuracy.

    Raises:
        UserError: The loss is not finite.
    """
    history, seconds = classifier.fit(
        images, val, epochs=epochs, batch_size=batch_size, seed=seed, patience=presets.CLASSIFIER_PATIENCE,
        state_file=folder / FIT_STATE, settings=settings, **how,
    )  # fmt: skip
    if not np.isfinite(history["loss"]).all():
        raise UserError(f"the loss is not finite after {len(seconds)} epochs: nothing is saved.")
    save_weights(classifier.model, folder / BEST_WEIGHTS)
    rows = [{column: history[key][i] for key, column in HISTORY.items()} for i in range(len(seconds))]
    write_csv(folder / "model_history.csv", rows)
    start = time.perf_counter()
    classifier.probabilities(val.images)
    best = int(np.argmax(history["val_accuracy"]))
    info = {
        "Total Training Time (s)": sum(seconds),
        "Average Epoch Time (s)": np.mean(seconds),
        "Best Epoch": best + 1,
        "Best Score": history["val_accuracy"][best],
        "Inference Time (s)": time.perf_counter() - start,
        "Number of Parameters": classifier.model.count_params(),
        "Number of MACs": multiply_accumulates(classifier.model),
    }
    write_csv(folder / "training_info.csv", [info])
    return history["val_accuracy"][best]


def load_best(classifier, folder):
    """Load the trained weights: ours, or a published best_model.h5, some of which lie one folder deeper.

    Raises:
        UserError: There are none.
    """
    names = [BEST_WEIGHTS, "best_model.h5/best_model.h5", "best_model.h5"]
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise UserError(f"there is no trained classifier in {folder} ({' or '.join(names)}): run with --train True.")
    load_weights(classifier.model, found[0])


def measure(classifier, test, classes, folder, source, test_hash):
    """Test on real images that nothing has been selected on: predictions of each image, and the confusion matrix.

    Args:
        classifier: A `Classifier`.
        test: Images uint8 (N, H, H, 3) and labels int32 (N,).
        classes: Names of the classes.
        folder: Of the classifier.
        source: (dataset, size) in the title of the picture.
        test_hash: Of the test images.

    Returns:
        What `accuracies` returns, and the `Predictions`.
    """
    from plots import confusion_matrix

    dataset, size = source
    result = accuracies(classifier.probabilities(test.images), test.labels)
    ranking, labels = result.pop("ranking").astype(np.int16), test.labels.astype(np.int16)
    predictions = Predictions(ranking, labels, test_hash)
    write_predictions(folder, predictions)
    title = f"{dataset}, trained on {size}: top-1 {result['top_1_accuracy']:.4f}"
    path = folder / "confusion_matrix.png"
    try_to_draw("the confusion", confusion_matrix, result["confusion"], classes, path, title)
    return result, predictions


def write_tested(folder, classes, result):
    """Write the accuracy of each class, the last file of a test."""
    by_class = [{"class": name, "accuracy": value} for name, value in zip(classes, result["class_accuracies"])]
    write_csv(folder / TESTED, by_class)
