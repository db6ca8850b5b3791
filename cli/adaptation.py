"""Flags of the adaptation that the paper does not have, all off by default."""

from cli.flags import add_devices_flag, number
from Experiment.levers import OFF
from Models.averages import WIDTHS


def add_training_levers(parser):
    """The flags of the adaptation."""
    add_devices_flag(parser)
    parser.add_argument(
        "--label_dropout", default=OFF["label_dropout"], type=number(0, 0.9), metavar="P",
        help="train without the label with this probability, so that the unconditional pass is trained too (0)",
    )  # fmt: skip
    parser.add_argument(
        "--ema", nargs="?", const=0.1, type=number(*WIDTHS), metavar="WIDTH",
        help="save averages of the weights over the run, of this width relative to its length (off; alone: 0.1)",
    )  # fmt: skip
    parser.add_argument(
        "--min_snr", type=number(0, 1e6, above=True), metavar="GAMMA",
        help="weigh the loss by min(SNR, GAMMA) / SNR, divided by its mean over the timesteps (off; usual: 5)",
    )  # fmt: skip
