"""What makes an accuracy too good, in words that go with it into results, pages and cards."""

from Data.identity import split_hash
from Data.npz import SPLITS
from Data.repeated import copies_within, count_between, looks_repeated, repeated_images
from Data.resizing import resize_images

FEW = 0.01  # of the test images: copies so few do not change an interval
OTHER_IMAGES = (
    "the generator has learnt from other training images than those of today, and these test images may be among them"
)


OTHER_SIZE = (
    "the generator has learnt from images of another resolution than the classifiers': whether these test images were among "
    "them is not known"
)


def doubts(splits, data, learned_from=(), own=False):
    """Why accuracies on the test images may be too good: a list of text, empty where nothing is known.

    Args:
        splits: The real `Splits`.
        data: Their `data_identity`.
        learned_from: Training images of the generator, as `seen_images` describes them.
        own: Whether they are the user's own, whose images another resolution may stand for other ones.
    """
    pairs, count = repeated_images(splits), len(splits.test.labels)
    told = []
    for other in SPLITS[:2]:
        if found := count_between(pairs, "test", other):
            told.append(f"{found} of the {count} test images have the pixels of one in {other}")
    if (copies := copies_within(splits.test)) > FEW * count:
        told.append(
            f"{copies} of the {count} test images are copies of other ones, and what is measured on them is less sure than its interval says"
        )
    if alike := looks_repeated(splits, pairs)[1]:
        told.append(alike)
    if own and any(seen["resolution"] != data["resolution"] for seen in learned_from):
        told.append(OTHER_SIZE)
    return told + ([OTHER_IMAGES] if others(learned_from, data) else [])


def seen_images(train, spec):
    """What identifies training images to those who see them at the classifiers' resolution: {"resolution": px, "train": SHA-256}.

    Args:
        train: A `Split`, of any resolution.
        spec: The `DatasetSpec`.
    """
    images = resize_images(train.images, spec.resolution)
    return {"resolution": spec.resolution, "train": split_hash(train._replace(images=images))}


def others(learned_from, data):
    """Whether some of these training images are others than those of a `data_identity`; at other resolutions nobody knows."""
    return any(seen["resolution"] == data["resolution"] and seen["train"] != data["train"] for seen in learned_from)
