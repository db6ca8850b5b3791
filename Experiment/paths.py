"""Where everything of an experiment lies."""

import os
import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
REAL_DATA = "Data/Real"  # below a root: the official files of datasets, which are only read
# Folder of each adapted part below Checkpoints/DDPM/Exp_<exp>/<dataset>, as published.
PART_FOLDERS = {"enc": "MyEmbedding", "dif": "DiffusionFt"}
# In the folder of a training: the record that a finished one leaves, the state of an unfinished one, a classifier's weights.
TRAINING_RECORD, FIT_STATE, BEST_WEIGHTS = "training.json", "state.npz", "best_model.weights.h5"
# The paper's accuracies, in the schemas of `Experiment.cas_file` and `pipeline_file`, and the folders of their figures.
PUBLISHED_CAS = REPOSITORY / "CAS Results" / "published_test_accuracies.json"
PUBLISHED_PIPELINE = REPOSITORY / "CAS Results" / "published_pipeline_optimization.json"
PUBLISHED_INTERVALS = REPOSITORY / "CAS Results" / "published_intervals.md"
PUBLISHED_CAS_PLOTS = REPOSITORY / "CAS Results" / "CAS_plots"
PUBLISHED_PIPELINE_PLOTS = REPOSITORY / "optimization_plots"


def home(path):
    """A path with `~` spelt out; that of a user who is not known stays, where `Path.expanduser` raises RuntimeError."""
    return Path(os.path.expanduser(path))


class Experiment:
    """Every folder and file name of experiment `exp` on `dataset`, below one root.

    Args:
        root: Folder that holds `Checkpoints/`, `Data/Synthetic/`, `CAS Results/` and the other outputs.
        exp: Identifier of the experiment, such as `0001`.
        dataset: Name of the dataset, such as `cifar10`.
    """

    def __init__(self, root, exp, dataset):
        self.root, self.exp, self.dataset = Path(root), exp, dataset

    @property
    def results_dir(self):
        return self.root / "CAS Results"

    @property
    def cas_file(self):
        return self.results_dir / f"test_accuracies_exp{self.exp}.json"

    @property
    def pipeline_file(self):
        return self.results_dir / f"pipeline_optimization_exp{self.exp}.json"

    @property
    def latents_dir(self):
        return self.root / "Data" / "Latents"

    @property
    def decoded_dir(self):
        """Synthetic sets as arrays of decoded images."""
        return self.root / "Data" / "Decoded"

    @property
    def seen_dir(self):
        """Features of images that an audit has looked at."""
        return self.root / "Data" / "Seen"

    @property
    def report_page(self):
        """The page of the experiment, for a browser. A folder of its own, as experiments and datasets may have underscores."""
        return self.results_dir / f"report_exp{self.exp}" / f"{self.dataset}.html"

    @property
    def split_file(self):
        """Which of the user's own images are train, val and test, in an experiment of a folder without splits."""
        return self.root / "Data" / "Splits" / f"Exp_{self.exp}" / f"{self.dataset}.json"

    @property
    def used_file(self):
        """How many of the user's own images of each split and class are used, where a line cannot hold it."""
        return self.split_file.with_name(f"{self.dataset}_used.csv")

    @property
    def unused_file(self):
        """Files of the dataset that are not used, and images that stand in two splits."""
        return self.split_file.with_name(f"{self.dataset}_unused.csv")

    @property
    def synthetic_root(self):
        return self.root / "Data" / "Synthetic" / f"Exp_{self.exp}" / self.dataset

    @property
    def images_dir(self):
        return self.root / "Images" / self.dataset

    def part_dir(self, part):
        """Folder of the epoch weights of `enc` or `dif`."""
        return self.root / "Checkpoints" / "DDPM" / f"Exp_{self.exp}" / self.dataset / PART_FOLDERS[part]

    def classifier_dir(self, classifier, source):
        """Folder of a classifier trained on `source`: `real`, or the size of the synthetic set as published."""
        return self.root / "Checkpoints" / "Classifiers" / f"Exp_{self.exp}" / classifier / self.dataset / source

    def teacher_dir(self, classifier, augment="none"):
        """Folder of the classifier that has learnt from the real training images, augmented or not, and gives soft labels."""
        kind = {"none": "", "standard": "augmented_"}.get(augment, f"{augment}_")
        return self.classifier_dir(classifier, f"{kind}teacher")

    def search_dir(self, part):
        """Folder of the plots of a search; the study's database lies beside them."""
        return self.root / "optimization_plots" / self.exp / self.dataset / part

    @property
    def cas_plot(self):
        """The CAS curve, in a folder of the experiment: the names above it are those of the published curves."""
        return self.results_dir / "CAS_plots" / f"exp{self.exp}" / f"{self.dataset}.png"

    def pipeline_plot(self, score):
        """The bar chart of all datasets of the experiment, `score` being `top_1` or `top_5`."""
        return self.root / "optimization_plots" / self.exp / f"{score}.png"

    def study_name(self, part):
        return f"{self.dataset}_exp{self.exp}_study_{part}"


def is_trained(folder):
    """Whether a classifier in its folder is trained to the end: weights and record are there."""
    return (folder / BEST_WEIGHTS).exists() and (folder / TRAINING_RECORD).exists()


def repeat_folder(folder, repeat):
    """Where a repeat of a training lies: the first in the classifier's folder, the others below it."""
    return folder if repeat == 1 else folder / f"repeat_{repeat}"


def size_name(count):
    """Short form of a number of images, as the published folders have it: 40000 -> 40k, 1080 -> 1.08k, 300 -> 300."""
    return f"{count / 1000:.3f}".rstrip("0").rstrip(".") + "k" if count >= 1000 else str(count)


def size_from_name(name):
    """The number of images that a synthetic folder's name promises, or None: `40k`, `40.0kEnc50Dif10Is50Ugs7.5`."""
    match = re.match(r"(\d+(?:\.\d+)?)(k?)(?:Enc|$)", name)
    return round(float(match[1]) * (1000 if match[2] else 1)) if match else None
