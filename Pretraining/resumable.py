"""A fit that goes on after a kill as if nothing had happened.

A batch is a function of (seed, fit, step), so what a killed run needs is its weights, its optimizer and the number of the
step: a `FitState`, written every few minutes.
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from Experiment.errors import UserError
from Experiment.progress import duration
from Experiment.randomness import random_stream
from Models.fit_state import FitState

log = logging.getLogger("experiment")

WARM_UP = 300  # steps
OF_THE_START = 0.01  # share of the first weights in the average at the end
TENTHS = 10  # in which losses are recorded
MOST_STEPS = 200  # between two states


@dataclass(frozen=True)
class Fit:
    """How a network learns.

    Attributes:
        name: Such as `autoencoder`; the state is kept under it.
        number: The address of its random numbers.
        seed: Of everything random.
        steps, batch_size: Of the fit.
        peak: Highest learning rate.
        ema: Momentum of the averaged weights, which are the result; of a short fit at most what leaves `OF_THE_START`.
        state: Folder of what a killed run goes on from, or None.
        settings: What a continued fit must share with the killed one, flat.
    """

    name: str
    number: int
    seed: int
    steps: int
    batch_size: int
    peak: float
    ema: float
    state: Path | None = None
    settings: dict | None = None

    def stream(self, step):
        """The random numbers of a step."""
        return random_stream(self.seed, "pretraining", self.number, step)

    @property
    def lengths(self):
        """Steps between states: of equal parts of the tenths of the fit, of at most `MOST_STEPS`."""
        parts = min(self.steps, TENTHS * -(-self.steps // (TENTHS * MOST_STEPS)))
        return np.diff(np.arange(parts + 1) * self.steps // parts).tolist()

    def kept(self, model):
        """The `FitState` of a compiled model; None where nothing is to be kept."""
        if not self.state:
            return None
        variables = [*model.weights, *model.optimizer.variables]
        return FitState(self.state / f"{self.name}.npz", self.settings or {}, variables)

    def optimizer(self):
        """AdamW with a warm-up, a cosine to zero and averaged weights."""
        warm_up = min(WARM_UP, self.steps // 2)
        schedule = keras.optimizers.schedules.CosineDecay(
            0.0, self.steps - warm_up, warmup_target=self.peak, warmup_steps=warm_up
        )
        momentum = min(self.ema, OF_THE_START ** (1 / self.steps))
        return keras.optimizers.AdamW(schedule, clipnorm=1.0, use_ema=True, ema_momentum=momentum)


def tenths(losses, lengths):
    """Mean losses of the tenths of a fit, from those of its parts and their steps."""
    of_tenths = zip(np.array_split(losses, TENTHS), np.array_split(lengths, TENTHS))
    return [round(float(np.average(part, weights=steps)), 5) for part, steps in of_tenths if len(part)]


def run_fit(fit, model, loss, make_batch):
    """Train a model, from a killed run's state if there is one. It has its averaged weights afterwards.

    Args:
        fit: A `Fit`.
        model: The keras.Model.
        loss: Its loss.
        make_batch: Function of the random numbers of a step that returns (inputs, targets), float32 or int32.

    Returns:
        Facts for the record: steps, batch, losses by tenths, seconds.
    """
    model.compile(fit.optimizer(), loss, jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    state = fit.kept(model)
    done, history, _ = state.load() if state else (0, {}, [])
    losses, seconds = history.get("loss", []), history.get("seconds", [])
    ends = np.cumsum([0, *fit.lengths]).tolist()
    if done:
        log.info("%s: goes on from step %d", fit.name, ends[done])
    # Not by fit(): it would put the averaged weights in the place of the weights whenever it is left.
    for first, end in list(zip(ends, ends[1:]))[done:]:
        began = time.time()
        of_steps = [model.train_on_batch(*make_batch(fit.stream(step))) for step in range(first, end)]
        losses.append(float(np.mean(of_steps)))
        seconds.append(time.time() - began)
        if not np.isfinite(losses[-1]):
            raise UserError(f"the loss of {fit.name} at step {end} is {losses[-1]}: try --precision float32.")
        log.info("%s: step %d of %d, loss %.5f, %s", fit.name, end, fit.steps, losses[-1], duration(sum(seconds)))
        if state:
            state.save(len(losses), {"loss": losses, "seconds": seconds})
    model.optimizer.finalize_variable_values(model.trainable_variables)
    return {
        "steps": fit.steps,
        "batch": fit.batch_size,
        "peak": fit.peak,
        "loss": tenths(losses, fit.lengths),
        "seconds": round(sum(seconds), 1),
    }
