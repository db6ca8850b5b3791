"""Which generated images a set keeps: those that a classifier calls what they were asked to be.

Dynamic Sample Filtering (GaFi, Lomurno et al., BMVC 2023): first as many candidates as the set shall have, then in each
round twice what is missing of each class, until every class is full.
"""

import numpy as np

from Experiment.errors import UserError
from Experiment.files import read_json, write_json

LEDGER = "filter.json"
ROUNDS = 10  # after which what is still missing is made without the filter


def agrees(probabilities, labels, threshold):
    """Which images are kept, bool (n,): the likeliest class is theirs, with a probability above the threshold.

    Args:
        probabilities: (n, C), of the classifier.
        labels: int (n,).
        threshold: 0..1.
    """
    of_class = probabilities[np.arange(len(labels)), labels]
    return (probabilities.argmax(axis=1) == labels) & (of_class > threshold)


class Selection:
    """The candidates of a set, round by round, and how many of them were kept; on disk after each block of them.

    A round is a function of what the rounds before have kept: so a selection that goes on is the same as one in one go.

    Attributes:
        round: Number of the round, from 0.
        judged: Candidates of this round that are judged.
        tried, kept, unfiltered: For each class: candidates that were judged, and kept, and of those without the filter.

    Args:
        folder: Of the set.
        counts: Images that each class shall have.
        numbering: What numbers the candidates of the first round.
    """

    def __init__(self, folder, counts, numbering):
        self.file, self.counts, self.numbering = folder / LEDGER, np.array(counts), numbering
        self.begin()

    def begin(self):
        zeros = np.zeros(len(self.counts), int)
        self.round, self.judged = 0, 0
        self.tried, self.kept, self.unfiltered = zeros.copy(), zeros.copy(), zeros.copy()
        self.first, self.missing = zeros.copy(), self.counts.copy()  # of this round: tried before it, wanted by it

    @property
    def last(self):
        """Whether this round keeps whatever it makes."""
        return self.round >= ROUNDS

    @property
    def full(self):
        return (self.kept >= self.counts).all()

    def load(self):
        """Go on where an earlier run was."""
        if self.file.exists():
            known = read_json(self.file)
            try:
                for name in ("tried", "kept", "unfiltered", "first", "missing"):
                    setattr(self, name, np.array(known[name], int).reshape(len(self.counts)))
                self.round, self.judged = int(known["round"]), int(known["judged"])
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"{self.file} is damaged ({error}): --restart makes the set afresh.") from None

    def save(self):
        names = ("round", "judged", "tried", "kept", "unfiltered", "first", "missing")
        write_json(self.file, {name: np.asarray(getattr(self, name)).tolist() for name in names})

    def candidates(self):
        """Labels and indices, int (n,) each, of this round's candidates, in the order in which they are made."""
        if not self.round:
            return self.numbering.places(np.arange(self.counts.sum()))
        wanted = self.missing if self.last else 2 * self.missing
        later = np.arange(wanted.max())[:, None] < wanted  # (most, C), of which each row is a turn of all classes
        turns, labels = np.nonzero(later)
        return labels, self.first[labels] + turns

    def keep(self, labels, good):
        """Judge the next candidates of this round.

        Args:
            labels: int (n,): theirs.
            good: bool (n,): what the filter says of them.

        Returns:
            bool (n,): whether each becomes an image of the set, and int (n,): its index within its class.
        """
        kept, ranks = np.zeros(len(labels), bool), np.zeros(len(labels), int)
        for i, label in enumerate(labels):
            self.tried[label] += 1
            kept[i] = good[i] and self.kept[label] < self.counts[label]
            ranks[i] = self.kept[label]
            self.kept[label] += kept[i]
            self.unfiltered[label] += kept[i] and self.last
        self.judged += len(labels)
        return kept, ranks

    def next_round(self):
        self.round, self.judged = self.round + 1, 0
        self.first, self.missing = self.tried.copy(), self.counts - self.kept


def read_selection(folder):
    """What the manifest says of a selection that is full: {"rounds": int, "tried": [by class], "kept": ..., "unfiltered": ...}."""
    known = read_json(folder / LEDGER)
    return {"rounds": known["round"] + 1, **{name: known[name] for name in ("tried", "kept", "unfiltered")}}
