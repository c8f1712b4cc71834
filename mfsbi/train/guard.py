r"""The collapse guard: has the chart found the manifold?

A chart is trained by reconstruction alone, from a start at n principal axes. A training that went wrong ends about
where it began: the manifold is then the hyperplane of the first n principal components, or worse. Both errors are
root mean squares over held-out rows, in standardised units:

    collapsed  <=>  error >= 1/4 error of n principal components,  and  error >= 0.05.

Charts that only likelihood has moved are not judged: nobody promised that they reconstruct.

The second condition spares data that lie on a hyperplane up to 5 % noise, where principal components are already right;
with more noise on a flat manifold the verdict is true all the same, and new starts will not help.
"""

from typing import NamedTuple

import torch

from mfsbi.models import AbstractModel
from mfsbi.train.data import Batch, in_chunks
from mfsbi.train.losses import Loss, Scandal, nll
from mfsbi.train.ranks import Ranks
from mfsbi.train.schedules import Schedule
from mfsbi.train.stream import TrainingData

__all__ = ["ChartGuard", "ChartVerdict", "judge_chart"]

SMALL_ERROR = 0.05


class ChartVerdict(NamedTuple):
    """How well a chart reconstructs held-out rows, against as many principal components."""

    error: float
    principal_component_error: float

    @property
    def collapsed(self) -> bool:
        """Whether the chart is not clearly better than a hyperplane."""
        return self.error >= max(0.25 * self.principal_component_error, SMALL_ERROR)

    def __str__(self) -> str:
        return (
            f"held-out reconstruction error {self.error:.3g}, that of as many principal components "
            f"{self.principal_component_error:.3g} (root mean squares, standardised units)"
        )


class ChartGuard:
    """Judges the chart once its last phase of training has ended; for `fit(..., keep_going=guard)`.

    Arguments:
        model: the model in training
        schedule: its phases
        training: rows the principal components are measured on
        validation: rows to judge by
        may_stop: end the training when the chart has collapsed

    Attributes:
        verdict: what was found, or None before that and if no phase trains a chart
    """

    def __init__(
        self, model: AbstractModel, schedule: Schedule, training: TrainingData, validation: Batch, *, may_stop: bool
    ) -> None:
        self.model = model
        self.data = training, validation
        self.may_stop = may_stop
        self.verdict: ChartVerdict | None = None
        trainable = any(weight.requires_grad for weight in model.chart.parameters())
        phases = [
            i
            for i, phase in enumerate(schedule)
            if trainable and "chart" in phase.trains and _without_score(phase.loss) is not nll
        ]
        self.last = max(phases, default=None)

    def __call__(self, phase: int) -> bool:
        """Return whether to go on after the phase with this index."""
        if phase != self.last:
            return True
        self.verdict = Ranks.current().from_first(lambda: judge_chart(self.model, *self.data))
        return not (self.verdict.collapsed and self.may_stop)


def _without_score(loss: Loss) -> Loss:
    return loss.base if isinstance(loss, Scandal) else loss


def judge_chart(model: AbstractModel, training: TrainingData, validation: Batch) -> ChartVerdict:
    """Return the verdict on the chart of a model, judged on the validation rows."""
    squared = in_chunks(lambda rows: model.chart_at(rows.theta).squared_distance(rows.x), validation).double().mean()
    x = training.sample.x.double()
    mean, std = x.mean(0), x.std(0)
    _, axes = torch.linalg.eigh(torch.cov(((x - mean) / std).T).reshape(len(std), len(std)))
    dropped = axes[:, : model.chart.data_dim - model.chart.manifold_dim]
    residual = ((validation.x.double() - mean) / std) @ dropped
    return ChartVerdict(float(squared.sqrt()), float(residual.square().sum(-1).mean().sqrt()))
