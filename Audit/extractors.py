"""What turns images into features. Each has a `name` that stands beside every number, what it is in `words`, a `width`,
and an `identity`."""

import hashlib

import numpy as np

from Data.resizing import resize_images
from Experiment.files import file_hash
from Experiment.randomness import random_stream

PIXEL_SIDE = 32  # px: most that the pixels' components look at
COMPONENTS, FITTED_ON = 64, 4000  # principal components, and most images that they are fitted on
BATCH = 256


class ClassifierFeatures:
    """The layer before the last one of a classifier that has learnt from the real training images and their labels.

    Args:
        classifier: A `Classifier`, trained.
        weights: Its weight file.
    """

    def __init__(self, classifier, weights):
        import keras

        model = classifier.model
        self.network = keras.Model(model.inputs, model.layers[-1].input)
        self.scale, self.width = classifier.scale, int(self.network.outputs[0].shape[-1])
        self.name, self.identity = f"{classifier.name} features", file_hash(weights)
        self.words = f"the {self.width} numbers before the last layer of {classifier.name}, which has learnt the real training images and labels"

    def __call__(self, images):
        """Features float32 (N, width) of images uint8 (N, H, H, 3)."""
        parts = []
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            padded = self.scale(batch[np.resize(np.arange(len(batch)), BATCH)])  # one shape, one graph
            parts.append(np.asarray(self.network.predict_on_batch(padded))[: len(batch)])
        return np.concatenate(parts)


class PixelFeatures:
    """Principal components of the pixels of the real training images: an extractor that has never seen a label.

    Args:
        images: The real training images, uint8 (N, H, H, 3).
        seed: Chooses those that it is fitted on, where there are many.
    """

    def __init__(self, images, seed):
        from sklearn.decomposition import PCA

        self.side = min(PIXEL_SIDE, images.shape[1])
        chosen = np.sort(random_stream(seed, "audit_subset", 0).permutation(len(images))[:FITTED_ON])
        pixels = self.flat(images[chosen])
        most = min(COMPONENTS, len(pixels) - 1, pixels.shape[1])
        fitted = PCA(most, svd_solver="randomized", random_state=0).fit(pixels)
        self.mean, self.components = fitted.mean_.astype("float32"), fitted.components_.astype("float32")
        self.width, share = most, 100 * fitted.explained_variance_ratio_.sum()
        self.name = "pixel components"
        self.words = f"{most} principal components of the real training images at {self.side} px ({share:.0f} % of their variance); no label was seen"
        self.identity = hashlib.sha256(np.concatenate([self.mean[None], self.components]).tobytes()).hexdigest()

    def flat(self, images):
        return resize_images(images, self.side).reshape(len(images), -1).astype("float32") / 255

    def __call__(self, images):
        """Features float32 (N, width) of images uint8 (N, H, H, 3); 1 is the range of a pixel."""
        return (self.flat(images) - self.mean) @ self.components.T

    def distance_of(self, difference):
        """How far two images may be apart in the features whose pixels differ by this, root mean square.

        A projection brings no two images further apart. A tenth is added for what shrinking does where images are larger.
        """
        return 1.1 * difference * np.sqrt(3) * self.side
