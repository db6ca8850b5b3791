"""Variants that the study of the levers measures: the plain recipe with other flags of some scripts."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """Flags beside the plain recipe's, as text, for the scripts of each step; the size of the set, in real sizes; and how many
    times as many epochs the UNet is fine-tuned for, and a classifier learns for at most.

    `{early}` in the flags of `made` is the first saved epoch of the UNet. A variant `real` learns from real images.
    """

    enc: str = ""
    dif: str = ""
    made: str = ""
    learned: str = ""
    size: int = 1
    tuned: int = 1
    longer: int = 1
    real: bool = False


DPMPP = "--solver dpmpp --inf_steps 8"
VARIANTS = {
    "real": Variant(real=True),
    "plain": Variant(),
    "label_dropout": Variant(enc="--label_dropout 0.1", dif="--label_dropout 0.1"),
    "ema": Variant(dif="--ema"),
    "min_snr": Variant(dif="--min_snr 5"),
    "tuned_longer": Variant(tuned=2),
    "dpmpp_6": Variant(made="--solver dpmpp --inf_steps 6"),
    "dpmpp_8": Variant(made=DPMPP),
    "interval": Variant(made="--guidance_interval 0.28 1.6"),
    # Of the light backbones fine-tuning begins with 8e-4.
    "rate_half": Variant(dif="--lr 4e-4", made=DPMPP),
    "rate_double": Variant(dif="--lr 1.6e-3", made=DPMPP),
    "unguided": Variant(made="--ugs 1"),
    "guided_3": Variant(made=f"{DPMPP} --ugs 3"),
    "autoguide": Variant(made="--autoguide {early}"),
    "class_prior": Variant(made="--class_prior real"),
    "filter": Variant(made="--filter --filter_classifier resnet20_16"),
    "soft": Variant(learned="--labels soft"),
    "augment": Variant(learned="--augment standard"),
    "sgd": Variant(learned="--optimizer sgd"),
    "plateau": Variant(learned="--optimizer adam"),
    "real_plateau": Variant(learned="--optimizer adam", real=True),
    "augment_plateau": Variant(learned="--augment standard --optimizer adam"),
    "augment_soft_plateau": Variant(learned="--augment standard --labels soft --optimizer adam"),
    "plain_4x": Variant(size=4),
    "recycle_4x": Variant(learned="--recycle", size=4),
    "real_share": Variant(learned="--real_share 0.5"),
    "long": Variant(longer=3),
    "augment_long": Variant(learned="--augment standard", longer=3),
    "augment_soft_long": Variant(learned="--augment standard --labels soft", longer=3),
    "best": Variant(made=DPMPP, learned="--augment standard --labels both", longer=3),
    "best_4x": Variant(made=DPMPP, learned="--augment standard --labels both", size=4, longer=3),
    "best_tuned_longer": Variant(made=DPMPP, learned="--augment standard --labels both", tuned=2, longer=3),
    "best_filter": Variant(
        made=f"{DPMPP} --filter --filter_classifier resnet20_16", learned="--augment standard --labels both", longer=3
    ),
    # `best` with other labels, of which "soft" were its own at first.
    "best_hard": Variant(made=DPMPP, learned="--augment standard", longer=3),
    "best_soft": Variant(made=DPMPP, learned="--augment standard --labels soft", longer=3),
    "best_soft_4x": Variant(made=DPMPP, learned="--augment standard --labels soft", size=4, longer=3),
    "best_aligned": Variant(made=DPMPP, learned="--augment standard --labels aligned", longer=3),
    # Of a dataset whose classes bear numbers, which may be mirrored all the same: of photographs, say.
    "best_soft_mirrored": Variant(made=DPMPP, learned="--augment mirrored --labels soft", longer=3),
    "best_soft_prior": Variant(made=f"{DPMPP} --class_prior real", learned="--augment standard --labels soft", longer=3),
    "real_augment_long": Variant(learned="--augment standard", longer=3, real=True),
}
