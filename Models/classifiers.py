"""The classifiers by name. A new one is a line here: a builder of (resolution, num_classes) -> keras.Model.

A model takes images (B, H, W, 3) in 0..1 and returns class probabilities (B, C). Nothing heavy is imported until one is
built, since command lines read the names.
"""

from Experiment import presets


def resnet20_of(filters):
    def build(resolution, num_classes):
        from Models.resnet import resnet20

        return resnet20(resolution, num_classes, filters)

    return build


CLASSIFIERS = {
    "resnet20": resnet20_of(presets.CLASSIFIER_FILTERS),  # the paper's
    "resnet20_16": resnet20_of(presets.CLASSIFIER_FILTERS // 4),
}
