"""The datasets: one entry each. A new published dataset is one line here; the user's own needs none."""

import contextlib
import io
import logging
import re
import unicodedata
from dataclasses import dataclass, field, replace
from pathlib import Path

from Data.folders import Scan, scan_folder
from Data.npz import describe
from Data.own_split import train_count
from Data.pictures import WHITE, colour
from Experiment.errors import UserError
from Experiment.files import file_hash
from Experiment.licences import CC_BY, OF_DATA, Licence
from Experiment.text import shown

log = logging.getLogger("experiment")

MAX_CLASSES = 1000
MIN_SIDE = 4  # px, as --resolution allows
MAX_SIDE = 128  # of the user's own images: larger ones show a classifier nothing that the backbones can make
MEDMNIST_SIDES = (28, 64, 128, 224)  # px, a file each
# Words in the name of a class that a mirrored image may belie.
SIDES_AND_NUMBERS = (
    "gauche|droite?|(?:links|rechts)[^\\W\\d_]*|linke[rs]?|rechte[rs]?|sinistr[ao]|destr[ao]|izquierd[ao]|derech[ao]|"
    "esquerd[ao]|direit[ao]|vänster|höger|venstre|høyre|højre|lew[aeyo]|praw[aeyo]|lev[aoáéýě]|prav[aoáéýě]|bal|jobb|vasen|"
    "oikea|sol|sağ|stâng[aă]?|dreapt[aă]?|kiri|kanan|east|west|clockwise|counterclockwise|anticlockwise|zero|one|two|three|four|five|six|seven|eight|nine"
)

# fmt: off
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100_CLASSES = tuple(
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle "
    "caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant "
    "flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man "
    "maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree "
    "plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train "
    "trout tulip turtle wardrobe whale willow_tree wolf woman worm".split()
)
# fmt: on


@dataclass(frozen=True)
class DatasetSpec:
    """What is known of a dataset before its images are read.

    Attributes:
        name: Name in folders and results.
        source: Which loader reads it: `cifar`, `medmnist`, `digits`, `folder` or `npz`.
        num_classes: Number of classes.
        resolution: Side in px at which a classifier sees the images; a folder's are read at it.
        train_size: Number of real training images; of a folder those that are in it, be some broken inside.
        unit: Number of images of a synthetic dataset of size 1x (the paper's round figures).
        classes: Names of the classes in label order; empty where the loader's source has them.
        path: Folder or file of the user's own data, or a MedMNIST file that was named by its path.
        skip_broken: Whether images of that folder that cannot be read are left out, instead of being an error.
        background: Colour (red, green, blue) behind transparent pixels of that folder.
        chosen: How the resolution was chosen: a few words, empty where it is the published one.
        scan: What was found in that folder; the loader need not look again.
        flips: Whether mirrored images are of the same class; None: the names of the classes decide, see `augmentations`.
    """

    name: str
    source: str
    num_classes: int
    resolution: int
    train_size: int
    unit: int
    classes: tuple = ()
    path: Path | None = None
    skip_broken: bool = False
    background: tuple = WHITE
    chosen: str = field(default="", compare=False)
    scan: Scan | None = field(default=None, compare=False, repr=False)
    flips: bool | None = None


DATASETS = {
    spec.name: spec
    for spec in [
        DatasetSpec("cifar10", "cifar", 10, 32, 40_000, 40_000, CIFAR10_CLASSES, flips=True),
        DatasetSpec("cifar100", "cifar", 100, 32, 40_000, 40_000, CIFAR100_CLASSES, flips=True),
        DatasetSpec("pathmnist", "medmnist", 9, 28, 89_996, 90_000, flips=True),
        DatasetSpec("dermamnist", "medmnist", 7, 28, 7_007, 7_000, flips=True),
        DatasetSpec("bloodmnist", "medmnist", 8, 28, 11_959, 12_000, flips=True),
        DatasetSpec("retinamnist", "medmnist", 5, 28, 1_080, 1_000, flips=True),
        DatasetSpec("octmnist", "medmnist", 4, 28, 97_477, 97_477, flips=True),
        DatasetSpec("pneumoniamnist", "medmnist", 2, 28, 4_708, 4_708, flips=True),
        DatasetSpec("breastmnist", "medmnist", 2, 28, 546, 546, flips=True),
        DatasetSpec("tissuemnist", "medmnist", 8, 28, 165_466, 165_466, flips=True),
        DatasetSpec("organamnist", "medmnist", 11, 28, 34_561, 34_561, flips=False),
        DatasetSpec("organcmnist", "medmnist", 11, 28, 12_975, 12_975, flips=False),
        DatasetSpec("organsmnist", "medmnist", 11, 28, 13_932, 13_932, flips=False),
        DatasetSpec("digits", "digits", 10, 8, 1_000, 1_000, tuple("0123456789"), flips=False),
    ]
}


@dataclass(frozen=True)
class Origin:
    """Where the real images of a dataset come from.

    Attributes:
        page: Its address.
        citation: The publication to name.
        licence: Its licence, None where its authors state none.
    """

    page: str
    citation: str
    licence: Licence | None


# By loader. Those of MedMNIST differ: the package knows them.
ORIGINS = {
    "cifar": Origin(
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
        None,
    ),
    "digits": Origin(
        "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
        "E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998, doi 10.24432/C50P49",
        CC_BY,
    ),
    "medmnist": Origin(
        "https://medmnist.com",
        "J. Yang et al., MedMNIST v2, Scientific Data 10, 41, 2023, doi 10.1038/s41597-022-01721-8",
        None,
    ),
}


def origin(spec):
    """The `Origin` of a registered dataset's images; None for the user's own."""
    if spec.source != "medmnist":
        return ORIGINS.get(spec.source)
    return replace(ORIGINS["medmnist"], licence=OF_DATA.get(medmnist_info(spec.name)["license"]))


def dataset_spec(name, skip_broken=False, resolution=None, background="white"):
    """The spec of a registered dataset, or one made from what lies at a path.

    Args:
        name: A key of `DATASETS`, or a path.
        skip_broken: Whether broken images of an image folder are left out.
        resolution: Side in px at which a classifier sees the images, if not the dataset's own.
        background: Colour behind transparent pixels of an image folder, a name or #rrggbb.

    Raises:
        UserError: The path holds neither class folders with images nor a MedMNIST-style npz.
    """
    if name in DATASETS:
        spec = DATASETS[name]
    else:
        path = Path(name)
        if path.is_file():
            spec = official_spec(path) or npz_spec(path)
        else:
            spec = replace(folder_spec(path), skip_broken=skip_broken, background=colour(background))
        if not 2 <= spec.num_classes <= MAX_CLASSES:
            found = spec.num_classes
            raise UserError(f"{shown(path)}: a dataset needs 2 to {MAX_CLASSES} classes. Received: {found}")
        if spec.scan and not resolution and spec.resolution < MIN_SIDE:
            raise UserError(
                f"{shown(path)}: the images are seen at {spec.resolution} px ({spec.chosen or 'the size of the file'}): "
                "are these photographs? Else choose a --resolution."
            )
    return replace(spec, resolution=resolution, chosen="--resolution") if resolution else spec


def own_name(path):
    """A dataset name for the user's own data that cannot be mistaken for a published dataset's."""
    name = unicodedata.normalize("NFC", path.name if path.is_dir() else path.stem)
    name = "".join(c if c.isalnum() or c in "_-" else "_" for c in name)
    return f"{name}_own" if name.casefold() in DATASETS else name  # some systems ignore case


def folder_spec(path):
    """The spec of an image folder: classes and sizes from its names, resolution from the median of its images."""
    scan = scan_folder(path)
    whole = "all" if "all" in scan.splits else "train"
    count = len(scan.splits[whole].files)
    if "val" not in scan.splits:
        count = train_count(count, whole)
    sides = [(int(of_class.min()), int(of_class.max())) for of_class in scan.sides]
    smallest, largest = min(low for low, _ in sides), max(high for _, high in sides)
    if smallest == largest <= MAX_SIDE:
        chosen = "as they are"
    else:
        chosen = f"shorter sides are {smallest}..{largest} px, median {scan.side}; --resolution chooses another"
    side = min(scan.side, MAX_SIDE)
    return DatasetSpec(
        own_name(Path(path)), "folder", len(scan.classes), side, count, count, scan.classes, scan.path, chosen=chosen, scan=scan
    )


def npz_spec(path):
    """The spec of a MedMNIST-style npz; its classes are the label values that occur, and named after them."""
    shape, values = describe(path)
    names = tuple(str(value) for value in values[:MAX_CLASSES].tolist())
    side = min(*shape[1:3], MAX_SIDE)
    return DatasetSpec(own_name(path), "npz", len(values), side, shape[0], shape[0], names, path)


def official_spec(path):
    """The spec of an official MedMNIST file, told by its name and MD5; None for any other file."""
    match = re.fullmatch(r"([a-z]+mnist)(?:_(64|128|224))?\.npz", path.name)
    spec = DATASETS.get(match[1]) if match else None
    if not spec or spec.source != "medmnist":
        return None
    suffix = f"_{match[2]}" if match[2] else ""
    if file_hash(path, "md5") != medmnist_info(spec.name)[f"MD5{suffix}"]:
        return None
    return replace(spec, path=path, resolution=int(match[2] or 28), chosen="the size of the file" if suffix else "")


def medmnist_info(name):
    """What the medmnist package knows of a dataset: classes, addresses, hashes."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that PyTorch is missing, which nothing here needs
        from medmnist import INFO
    return INFO[name]


def class_names(spec):
    """Names of the classes in label order."""
    if spec.source == "medmnist":
        names = medmnist_info(spec.name)["label"]
        return tuple(names[str(i)] for i in range(spec.num_classes))
    return spec.classes


def augmentations(spec, how):
    """What `--augment` does to training images: `flip` (left and right), `crop`, `erase`, as names; none of `none`.

    Images are mirrored where that keeps their class. With `standard` the names of the classes decide of the user's own data:
    none says left or right in a language that is known here, is a number, is written in another script than the Latin one, or
    ends in a letter by itself: letters and numbers may name what is written in the image. `mirrored` and `unmirrored` say it.
    """
    if how == "none":
        return ()
    flips = belied_by_mirroring(class_names(spec)) is None if spec.flips is None else spec.flips
    flips = {"mirrored": True, "unmirrored": False}.get(how, flips)
    return ("flip", "crop", "erase") if flips else ("crop", "erase")


def belied_by_mirroring(names):
    """The first of the names of classes that a mirrored image may belie, or that are of another script; None if none may."""
    letter = r"[^\W\d_]"
    sided = re.compile(rf"\d|left|(?<!b)right|(?<!{letter})({letter}$|[lr]|{SIDES_AND_NUMBERS})(?!{letter})", re.IGNORECASE)
    for name in names:
        if any(c.isalpha() and "LATIN" not in unicodedata.name(c, "LATIN") for c in name):  # nobody here can read it
            return name
        if sided.search(re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)):  # LeftEye, turnLeft
            return name
    return None


def tell_augmentations(spec, how):
    """Log what `--augment` does to these images, and which name of a class has decided it where one has."""
    names = augmentations(spec, how)
    if not names:
        return
    told, why = "mirrored left and right, " if "flip" in names else "not mirrored, ", ""
    if spec.flips is None and how == "standard":
        name = belied_by_mirroring(class_names(spec))
        why = (
            f"; because of the class {shown(name)} (--augment mirrored: in any case)"
            if name
            else "; no name of a class says left or right, as far as is known, a number or a letter"
        )
    log.info("--augment %s: training images are %scut and partly erased%s", how, told, why)


def channels(spec):
    """How many channels the real images have: 1 for MedMNIST's grey ones, else 3, as which all others are read."""
    return medmnist_info(spec.name)["n_channels"] if spec.source == "medmnist" else 3
