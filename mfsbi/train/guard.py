r"""The collapse guard: has the chart found the manifold?

A chart is trained by reconstruction alone, from a start at n principal axes. A training that went wrong ends about
where it began: the manifold is then the hyperplane of the first n principal components, or worse. Both errors are
root mean squares over held-out rows, in standardised units:

    collapsed  <=>  error >= 1/4 error of n principal components,  and  error >= 0.05.

Charts that only likelihood has moved are not judged, since nothing asks them to reconstruct. If a hundredth of the rows
holds more than half of all squares, it is left out of either error: those are runs that blew up.

The second condition spares data that lie on a hyperplane up to 5 % noise, where principal components are already right.
With more noise on a flat manifold the verdict is true all the same, but new starts will not help. So a collapsed chart
is examined further: is there anything to find in r, the scores of a row on the components that the first n leave?

    noise  <=>  u, the scores on the first n, explain at most 20 % of the variance of r, and of r^2,
                the chart explains no more of r,
                and neighbours in the data do not lie near n-dimensional planes of their own.

What u explains and how flat neighbours lie is measured by nearest neighbours among training rows, at held-out rows. A
circle has E[r|u] = 0, but r^2 follows from u. A curve that folds over u has neither, but is straight from near by.

If not noise, has the chart found a manifold through the rows it learned from alone, with less than half the error? Then
they are too few, and new starts will not help either.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mfsbi.charts.frames import KEPT, MANY, principal_axes
from mfsbi.models import AbstractModel
from mfsbi.train.data import Batch, Split, TrainingData, in_chunks
from mfsbi.train.losses import Kind, as_loss
from mfsbi.train.ranks import Ranks
from mfsbi.train.schedules import Phase, Schedule

__all__ = ["ChartGuard", "ChartVerdict", "judge_chart"]

SMALL_ERROR = 0.05

SMALLER = 0.5
"""Error of rows that a chart learned from, in units of that of others, below which there are too few."""

EXPLAINED = 0.2
"""Share of a variance that nearest neighbours have to explain for it to be more than noise."""

FLAT = 0.25
"""Share of what round clouds of neighbours leave to n axes that is little enough for a manifold of n dimensions."""

ROWS = 5000, 2000, 300
"""Rows to find neighbours among, to judge by, and to lay planes at, at most."""

FEWEST = 30
"""Held-out rows below which nothing is called noise."""


class ChartVerdict(NamedTuple):
    """How well a chart reconstructs held-out rows, against as many principal components.

    Arguments:
        error: of the chart
        principal_component_error: of as many principal components
        noise: whether what these leave is noise, which no chart can reconstruct; only asked if the chart has collapsed
        few: whether it reconstructs the rows it learned from alone; likewise
    """

    error: float
    principal_component_error: float
    noise: bool = False
    few: bool = False

    @property
    def hopeless(self) -> bool:
        """Whether another start would end as this one did."""
        return self.noise or self.few

    @property
    def collapsed(self) -> bool:
        """Whether the chart is not clearly better than a hyperplane."""
        return self.error >= self.bound

    @property
    def bound(self) -> float:
        """The error above which it is none."""
        return max(0.25 * self.principal_component_error, SMALL_ERROR)

    def __str__(self) -> str:
        return (
            f"held-out reconstruction error {self.error:.3g}, that of as many principal components "
            f"{self.principal_component_error:.3g} (root mean squares, standardised units)"
        )


@dataclass
class ChartGuard:
    """Judges the chart once its last phase of training has ended; for `fit(..., keep_going=guard)`.

    Arguments:
        model: the model in training
        schedule: its phases
        data: rows the principal components are measured on, and rows to judge by
        may_stop: end the training when the chart has collapsed, and not because of noise

    Attributes:
        verdict: what was found, or None before that and if no phase trains a chart
    """

    model: AbstractModel
    schedule: Schedule
    data: Split
    may_stop: bool
    verdict: ChartVerdict | None = None

    @property
    def judged(self) -> int | None:
        """The index of the last phase that trains the chart."""
        return max((i for i, phase in enumerate(self.schedule) if _moves_chart(self.model, phase)), default=None)

    def __call__(self, number: int) -> bool:
        """Return whether to go on after the phase with this index."""
        if number != self.judged:
            return True
        self.verdict = Ranks.current().from_first(lambda: judge_chart(self.model, *self.data))
        return not (self.verdict.collapsed and not self.verdict.hopeless and self.may_stop)


def _moves_chart(model: AbstractModel, phase: Phase) -> bool:
    """Return whether a phase moves the chart, and by more than likelihood."""
    trainable = any(weight.requires_grad for weight in model.chart.parameters())
    return trainable and phase.moves("chart") and as_loss(phase.loss).kind is not Kind.LIKELIHOOD


def judge_chart(model: AbstractModel, training: TrainingData, validation: Batch) -> ChartVerdict:
    """Return the verdict on the chart of a model, judged on the validation rows.

    Arguments:
        model: whose chart has been trained
        training: rows on which principal components are measured and neighbours are looked for
        validation: rows whose errors count; with fewer than 30 nothing is called noise

    Returns:
        both errors, in standardised units and float64; whether the rest is noise is asked only of a collapsed chart
    """

    def squared(some: Batch) -> Tensor:
        return in_chunks(lambda rows: model.chart_at(rows.theta).squared_distance(rows.x), some).double()

    straight = model.chart.straightened
    x = straight(training.excerpt.x).double()
    mean, std = x.mean(0), x.std(0)
    standardised = (x - mean) / std
    dims = model.chart.manifold_dim
    axes = _principal_axes(standardised, dims)
    dropped = axes.shape[1] - dims
    rows = (straight(validation.x).double() - mean) / std
    held_out = rows @ axes
    left = held_out[:, :dropped].square().sum(-1)
    if axes.shape[1] < len(axes):  # what stands beside the kept axes is left, too
        left = rows.square().sum(-1) - held_out[:, dropped:].square().sum(-1)
    verdict = ChartVerdict(_usual(squared(validation)), _usual(left))
    if not verdict.collapsed:
        return verdict
    learned = verdict.error**2 < (1 - EXPLAINED) * verdict.principal_component_error**2
    noise = not learned and _is_noise(_some(standardised, ROWS[0]) @ axes, held_out, dropped)
    seen = _usual(squared(training.excerpt.select(slice(ROWS[0]))))
    return verdict._replace(noise=noise, few=not noise and seen < min(SMALLER * verdict.error, verdict.bound))


def _principal_axes(standardised: Tensor, dims: int) -> Tensor:
    """Return principal axes as columns, those of the least variance first, shape `(data, axes)`.

    All of them, or of more than 1,000 features the leading ones that a chart of so many dimensions starts from.
    """
    rows, features = standardised.shape
    if features > MANY:
        return principal_axes(standardised, min(max(KEPT, 2 * dims), rows - 1))[1].flip(1)
    return torch.linalg.eigh(torch.cov(standardised.T).reshape(features, features)).eigenvectors


def _usual(squared: Tensor) -> float:
    """Return the root mean square of errors, without a hundredth of the rows if half of all squares is theirs.

    Runs that blew up lie on no manifold, and say nothing of how the others are reconstructed.
    """
    worst = squared.topk(max(1, len(squared) // 100))
    if worst.values.sum() > squared.sum() / 2 and len(squared) > len(worst.values):
        squared = squared[torch.ones_like(squared, dtype=torch.bool).index_fill(0, worst.indices, value=False)]
    return float(squared.mean().sqrt())


def _is_noise(scores: Tensor, held_out: Tensor, dropped: int) -> bool:
    """Return whether the first scores are noise about the others.

    Arguments:
        scores: of training rows on their principal axes, shape `(rows, data)`
        held_out: of held-out rows
        dropped: how many come first
    """
    held_out = _some(held_out, ROWS[1])
    neighbours = max(5, min(20, len(scores) // 50))
    if len(held_out) < FEWEST or len(scores) <= neighbours:
        return False
    nearest = _nearest(held_out[:, dropped:], scores[:, dropped:], neighbours)
    for power in (1, 2):
        known, true = scores[:, :dropped] ** power, held_out[:, :dropped] ** power
        left = (true - known[nearest].mean(1)).square().sum()
        if left < (1 - EXPLAINED) * (true - known.mean(0)).square().sum():
            return False
    return not _is_flat_nearby(scores, _some(held_out, ROWS[2]), dropped)


def _is_flat_nearby(scores: Tensor, held_out: Tensor, dropped: int) -> bool:
    """Return whether rows lie near the planes, of as many dimensions as scores are kept, through their neighbours."""
    kept = scores.shape[1] - dropped
    neighbours = 2 * kept + 8
    if len(scores) <= neighbours:
        return False
    clouds = scores[_nearest(held_out, scores, neighbours)]
    centres = clouds.mean(1, keepdim=True)
    around, off = clouds - centres, held_out[:, None] - centres
    squares, weights = torch.linalg.eigh(around @ around.mT)  # of few neighbours, however many features there are
    squares, weights = squares[:, None, -kept:], weights[:, :, -kept:]
    floor = 1e-12 * squares.amax(-1, keepdim=True) + 1e-30
    on = ((off @ around.mT @ weights).square() / squares.clamp(min=floor)).sum()
    total = off.square().sum()
    little = total * FLAT * dropped / scores.shape[1]
    known = EXPLAINED * held_out[:, :dropped].square().sum()
    return bool(total - on < torch.minimum(little, known))


def _nearest(rows: Tensor, among: Tensor, count: int) -> Tensor:
    """Return the indices of the nearest neighbours of rows, shape `(rows, count)`."""
    return torch.cdist(rows, among).topk(count, largest=False).indices


def _some(rows: Tensor, count: int) -> Tensor:
    """Return so many rows at most, evenly spaced."""
    return rows[:: -(-len(rows) // count)]
