"""The record of a training."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

__all__ = ["EpochRecord", "History", "ScoreNoise"]

CLEAR_RISE = 1.0
"""Nats of validation loss above the best that are worth mentioning."""


class ScoreNoise(NamedTuple):
    """What a regression of the joint score on x and theta left, for each parameter, on rows it had not seen.

    Arguments:
        variance: an upper bound on E Var(t_i|x, theta), for theta over its unit
        noise: nu with the regression's scores for the true ones
        share: what it left of E[t_i^2 / F_i]; 0 if x and theta tell all of the score, 1 if nothing
        unit: the standard deviation of theta
    """

    variance: list[float]
    noise: list[float]
    share: list[float]
    unit: list[float]

    def __str__(self) -> str:
        shares = ", ".join(f"{100 * (1 - share):.0f}%" for share in self.share)
        return f"joint scores: x and theta tell at least {shares} of their squares, parameter by parameter"


class EpochRecord(NamedTuple):
    """What one pass over the data did.

    Losses are means over rows.

    Arguments:
        phase: its place in the schedule, counted from 0
        loss: the name of what was minimised
        epoch: its number within the phase, counted from 1
        training_loss: over the steps of the epoch, while weights moved
        validation_loss: of held-out rows, after it
        learning_rate: after its last step
        seconds: of computing, both passes together
        course: the training losses of its twentieths, or of its steps if they are fewer
        nats: whether losses are in nats
    """

    phase: int
    loss: str
    epoch: int
    training_loss: float
    validation_loss: float
    learning_rate: float
    seconds: float
    course: Sequence[float] = ()
    nats: bool = True


@dataclass
class History:
    """The record of a training.

    Arguments:
        epochs: one `EpochRecord` per pass
        interrupted: whether it was
        collapses: what was wrong with starts that failed
        coordinates: what was found of those on the manifold (`mfsbi.train.directions`); empty if nothing was looked for
        score_noise: of joint scores, where it was measured
        anew: whether it began from new weights, or else from those of an earlier training
    """

    epochs: list[EpochRecord] = field(default_factory=list)
    interrupted: bool = False
    collapses: list[str] = field(default_factory=list)
    coordinates: str = ""
    score_noise: ScoreNoise | None = None
    anew: bool = True

    def of(self, loss: str) -> tuple[list[float], list[float]]:
        """Return (training, validation) losses of all epochs that minimised `loss`, in order.

        Arguments:
            loss: its name, one of `losses`; both lists are empty for any other
        """
        chosen = [epoch for epoch in self.epochs if epoch.loss == loss]
        return [epoch.training_loss for epoch in chosen], [epoch.validation_loss for epoch in chosen]

    def course(self, loss: str) -> tuple[list[float], list[float]]:
        """Return (passes, training losses) within the epochs that minimised `loss`, passes counted from 0.

        A twentieth of an epoch stands at its middle: 0.025, 0.075, ... in the first one.

        Arguments:
            loss: its name, one of `losses`
        """
        chosen = [epoch.course for epoch in self.epochs if epoch.loss == loss]
        passes = [number + (part + 0.5) / len(each) for number, each in enumerate(chosen) for part in range(len(each))]
        return passes, [value for each in chosen for value in each]

    def __str__(self) -> str:
        lines = [self._told(loss) for loss in self.losses]
        gold = [] if self.score_noise is None else [str(self.score_noise)]
        found = [self.coordinates] if self.coordinates else []
        return "\n".join(gold + lines + found + [f"collapsed start: {verdict}" for verdict in self.collapses])

    def _told(self, loss: str) -> str:
        """Return which epoch of a loss was best, and how far the last one is above it if that is clearly so."""
        chosen = [epoch for epoch in self.epochs if epoch.loss == loss]
        values = [epoch.validation_loss for epoch in chosen]
        best, number = min(values), values.index(min(values)) + 1
        text = f"{loss}: {len(values)} epochs, best validation loss {best:.4g} in epoch {number}"
        if values[-1] <= (best + CLEAR_RISE if chosen[-1].nats else 2 * best):
            return text
        kept = self.anew and chosen[number - 1].phase == chosen[-1].phase  # a phase keeps its best, the first included
        weights = f", and the weights of epoch {number} are kept" if kept else ""
        return f"{text}; it rose by {values[-1] - best:.3g} since{weights}"

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> "History":
        """Return the history that `asdict` made a record of, as JSON gives it back.

        Raises:
            KeyError: if something is missing
            TypeError: if something is of another form
        """
        epochs, noise = [_epoch(epoch) for epoch in record["epochs"]], record.get("score_noise")
        noise = None if noise is None else ScoreNoise(*noise)
        found = {"coordinates": record.get("coordinates", ""), "score_noise": noise, "anew": record.get("anew", True)}
        return cls(epochs, record["interrupted"], record["collapses"], **found)

    def as_record(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return asdict(self)

    @property
    def losses(self) -> list[str]:
        """The names of the losses that were minimised, in order of appearance."""
        return list(dict.fromkeys(epoch.loss for epoch in self.epochs))


def _epoch(values: Sequence[Any]) -> EpochRecord:
    """Return the record of an epoch from a file; those of 0.1.0 leave out whether losses are in nats."""
    epoch = EpochRecord(*values)
    return epoch if len(values) == len(epoch) else epoch._replace(nats="reconstruction" not in epoch.loss)
