r"""Coordinates in which the density is simple: directions C, learned by likelihood once a chart is there.

A chart that learned by reconstruction has coordinates that are smooth and otherwise arbitrary, and a law that is linear
in some is curved in those. With w = C^T y (`mfsbi.charts.linear`) the density on the manifold is

    log p(y|theta) = log p(w|theta) + log|det C^T J| - 1/2 log det J^T J,    J the tangents of the chart at y,

whose last term does not depend on C. So C and a density of w are learned together, by a training of their own, from J
that are computed once. C starts as the linear regression of u on y, and the determinant keeps it from folding the
manifold, where it is zero. But C might still wind a manifold about itself, where different u have the same w. So a
small network f learns along that tells u from w, and what it misses counts as if u were normal about it,

    L = -log p(w|theta) - log|det C^T J| + 1/2 |u - f(w)|^2,    u with a spread of one.

They are the coordinates from then on if the manifold is a graph over them, and held-out rows are likelier than with a
density of u that learned the same way, for as long as the data ask for, and tell no less of theta. What a row tells is

    log p(y|theta) - log sum_k p(y|theta_k)/K,    theta_k its own and those of some other rows:

where data are sharp, as those of a detector that obey conservation laws, coordinates that are sharp, too, gain nats
that say nothing of theta, while the density learns to see theta where there is only chance. It is a graph if the
determinant has one sign at all held-out rows but one or a thousandth, and f tells u but for a twentieth of its
variance. A closed manifold has no such coordinates, and keeps those of its chart. Both densities are given up
afterwards.

The record gives the difference with two standard errors. The likelier coordinates are taken even where it is less than
these; if they are no better, posteriors are as good, and draws of x take longer, by Newton's method.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from mfsbi.charts import Standardized, Warped
from mfsbi.flows import AutoregressiveMixtures
from mfsbi.models import AbstractModel, ManifoldModel
from mfsbi.networks import perceptron
from mfsbi.seeds import derived, seeded
from mfsbi.train.checkpoint import Keeper
from mfsbi.train.course import rows_of_step
from mfsbi.train.data import Batch, Split, in_chunks
from mfsbi.train.loop import fit
from mfsbi.train.losses import Kind
from mfsbi.train.losses.plain import FunctionLoss
from mfsbi.train.schedules import STEADY, Phase, Settings

__all__ = ["learn_directions"]

LONGEST = 2_000
"""Steps after which the learning rate falls in any case: C is found by then, and more only improves the density."""

SPEED = 3.0
"""Factor on the steps of C, which has far to go."""

NUMBERS = 10**8
"""Of tangents that are kept, at most: rows are left out where they would be more."""

RIDGE = 1e-6
"""Of the regression that C starts as, in units of the variance of a feature."""

FOLDED, UNKNOWN = 1e-3, 0.05
"""Share of rows on the other side of a fold, and of the variance of u that w does not tell, which are too much."""

ERRORS, FEWEST = 2.0, 30
"""Standard errors that the record gives, and held-out rows below which nothing can be told."""

OTHERS = 20
"""Rows whose theta stand for all others."""


@dataclass(frozen=True, eq=False)
class _Rows(Batch):
    """Rows on a chart that stands still; theta is standardised, and x is y, in the frame.

    Arguments:
        own: u of the chart over its spreads, shape `(rows, manifold)`
        tangents: J with respect to these, shape `(rows, data, manifold)`
    """

    own: Tensor | None = None
    tangents: Tensor | None = None


class _Own(nn.Module):
    """The coordinates of the chart."""

    def forward(self, rows: _Rows) -> Tensor:
        """Return u, shape `(rows, manifold)`."""
        return cast(Tensor, rows.own)

    def judged(self, rows: _Rows) -> tuple[Tensor, Tensor, Tensor]:
        """Return sign and log of their determinant, which is one, and what they do not tell of u, which is nothing."""
        nothing = rows.theta.new_zeros(rows.rows)
        return nothing + 1, nothing, nothing


class _Linear(nn.Module):
    """Coordinates w = C^T (y - mean), and the network that tells u from them."""

    def __init__(self, rows: _Rows) -> None:
        super().__init__()
        self.centre = nn.Buffer(rows.x.mean(0))
        y, u = (rows.x - self.centre).double(), cast(Tensor, rows.own).double()
        (_, d), n = y.shape, u.shape[1]
        ridge = RIDGE * len(y) * torch.eye(d, dtype=y.dtype, device=y.device)
        directions = torch.linalg.solve(y.T @ y + ridge, y.T @ u)
        self.start = nn.Buffer((directions / (y @ directions).std(0)).to(rows.x))
        self.moved = nn.Parameter(torch.zeros_like(self.start))
        self.straight, self.bent = nn.Linear(n, n), perceptron([n, 64, 64, n], nn.SiLU)
        self.to(rows.x)
        with torch.no_grad():
            self.straight.weight.copy_(torch.linalg.lstsq(self(rows).double(), u).solution.T)
            for weight in (self.straight.bias, *self.bent[-1].parameters()):
                weight.zero_()

    @property
    def directions(self) -> Tensor:
        """C, shape `(data, manifold)`."""
        return self.start + SPEED * self.moved

    def forward(self, rows: _Rows) -> Tensor:
        """Return w, shape `(rows, manifold)`."""
        return (rows.x - self.centre) @ self.directions

    def judged(self, rows: _Rows) -> tuple[Tensor, Tensor, Tensor]:
        """Return sign and log|det dw/du|, and the squared error of u as told by w, for each row."""
        w = self(rows)
        unknown = (rows.own - self.straight(w) - self.bent(w)).square().sum(-1)
        sign, log_det = torch.linalg.slogdet(self.directions.T @ cast(Tensor, rows.tangents))
        return sign, log_det, unknown


class _Learned(nn.Module):
    """Coordinates with a density of them."""

    def __init__(self, coordinates: _Own | _Linear, rows: _Rows) -> None:
        super().__init__()
        self.coordinates = coordinates
        with torch.no_grad():
            w = coordinates(rows)
            self.density = AutoregressiveMixtures(start="linear", bends=0).build(w.shape[1], rows.theta.shape[1]).to(w)
            self.density.measure(w, rows.theta)

    def judged(self, rows: _Rows) -> tuple[Tensor, Tensor, Tensor]:
        """Return log p(y|theta) but for what all coordinates have in common, and how these are judged, for each row."""
        sign, log_det, unknown = self.coordinates.judged(rows)
        return self.density.log_prob(self.coordinates(rows), rows.theta) + log_det, sign, unknown

    def told(self, rows: _Rows, others: Tensor) -> Tensor:
        """Return what y tells of theta, in nats, shape `(rows,)`.

        Arguments:
            rows: of y and theta
            others: theta of other rows, shape `(others, parameter)`
        """
        w, theta = self.coordinates(rows), torch.cat([rows.theta[None], others[:, None].expand(-1, rows.rows, -1)])
        each = torch.stack([self.density.log_prob(w, some) for some in theta])
        return each[0] - each.logsumexp(0) + math.log(len(each))


@partial(FunctionLoss, kind=Kind.DENSITY)
def coordinates_nll(model: _Learned, batch: Batch) -> Tensor:
    """Return -log p(y|theta) and half the squared error of u as told by w, in nats, shape `(rows,)`."""
    log_prob, _, unknown = model.judged(cast(_Rows, batch))
    return 0.5 * unknown - log_prob


def learn_directions(model: AbstractModel, data: Split, settings: Settings, keeper: Keeper | None = None) -> str:
    """Give a model linear coordinates in which its density is simple, if there are any, and return what was found.

    Arguments:
        model: whose chart has learned by reconstruction
        data: rows to learn from, and rows to judge by
        settings: how to optimise
        keeper: of the training that this is a part of, if it is

    Returns:
        a line for the record of the training; empty for models that are left as they are: those without a learned
        manifold of fewer dimensions than the data, with one that depends on theta, or with such coordinates already

    Raises:
        KeyboardInterrupt: after Ctrl-C; the model is as it was
    """
    frame = _frame(model)
    if frame is None or frame.linear.given or data[1].rows < FEWEST:
        return ""
    keeper = Keeper(outer=Keeper() if keeper is None else keeper)
    rows = _rows(model, frame, data, keeper)
    try:
        with seeded(derived(settings.seed, 3)):
            linear = _Linear(rows[0])
        found = _trained(linear, rows, settings, keeper)
        faults = keeper.ranks.from_first(lambda: _faults(found, frame.manifold_dim))
        if faults:
            return f"coordinates: those of the chart; over no linear functions of x is the manifold a graph: {faults}"
        own = _trained(_Own(), rows, settings, keeper)
    except (ArithmeticError, torch.linalg.LinAlgError) as reason:  # type: ignore[attr-defined]
        return f"coordinates: those of the chart, since the search for linear functions of x ended early: {reason}"
    gains, told = found.log_prob - own.log_prob, found.told - own.told
    (gain, error), (tells, doubt) = keeper.ranks.from_first(lambda: [_mean(each) for each in (gains, told)])
    found_that = f"linear functions of x, which gain {gain:.2g} ± {error:.1g} nats of a row over the chart's"
    if tells < -doubt:
        return f"coordinates: those of the chart, not {found_that} but tell {-tells:.2g} ± {doubt:.1g} less of theta"
    if not gain > 0:  # nor if it is NaN
        return f"coordinates: those of the chart, not {found_that}"
    directions, kind = linear.directions.detach(), frame.mean
    w = torch.cat([rows[0].x @ directions, torch.ones_like(rows[0].x[:, :1])], 1).double()
    u = in_chunks(lambda some: frame.chart.encode(some.x.to(kind)), rows[0]).double()
    frame.linear.take(directions.to(kind), torch.linalg.lstsq(w, u).solution.to(kind))
    return f"coordinates: {found_that}"


class _Judged(NamedTuple):
    """What held-out rows say of coordinates and their density, each of shape `(rows,)`."""

    log_prob: Tensor
    sign: Tensor
    unknown: Tensor
    told: Tensor


def _mean(values: Tensor) -> tuple[float, float]:
    """Return the mean of some values, and its error."""
    return float(values.mean()), ERRORS * float(values.std()) / len(values) ** 0.5


def _faults(judged: _Judged, dims: int) -> str:
    """Return why a manifold is no graph over coordinates, or nothing."""
    sign, untold = judged.sign, float(judged.unknown.mean()) / dims
    folded = int((sign != sign.sum().sign()).sum())
    if folded <= max(1.0, FOLDED * len(sign)) and untold <= UNKNOWN:
        return ""
    return f"{folded} of {len(sign)} held-out rows are beyond a fold, and {100 * untold:.2g}% of their variance is lost"


def _frame(model: AbstractModel) -> Standardized | None:
    """Return the frame whose chart can have other coordinates."""
    chart = model.chart.chart if isinstance(model.chart, Warped) else model.chart
    if not (isinstance(chart, Standardized) and isinstance(model, ManifoldModel)) or chart.conditional:
        return None
    return chart if chart.manifold_dim < chart.chart.data_dim else None


def _rows(model: AbstractModel, frame: Standardized, data: Split, keeper: Keeper) -> tuple[_Rows, _Rows]:
    """Return rows to learn from and to judge by, as they are learned from, in the type of theta, alike on all ranks."""
    d, n = frame.chart.data_dim, frame.manifold_dim
    count = NUMBERS // (d * n)

    def charted(some: Batch) -> Tensor:
        y = frame.inward(model.chart.straightened(model.as_data(some.x)))
        blocks = [frame.chart.encode(block) for block in y.split(1_000)]
        tangents = [frame.chart.tangents(u).flatten(1) for u in blocks]
        theta = model.latent.standardize(some.theta)
        return torch.cat([each.to(theta) for each in (theta, y, torch.cat(blocks), torch.cat(tangents))], 1)

    sizes = [data[1].theta.shape[1], d, n, d * n]
    chosen = data[0].excerpt.select(slice(count)), data[1].select(slice(count // 4))
    learned, held_out = (keeper.ranks.in_shares(charted, some).split(sizes, 1) for some in chosen)
    middle, spread = keeper.ranks.from_first(lambda: (learned[2].mean(0), learned[2].std(0)))

    def made(theta: Tensor, y: Tensor, u: Tensor, tangents: Tensor) -> _Rows:
        return _Rows(theta=theta, x=y, own=(u - middle) / spread, tangents=tangents.unflatten(1, (d, n)) * spread)

    return made(*learned), made(*held_out)


def _trained(coordinates: _Own | _Linear, rows: tuple[_Rows, _Rows], settings: Settings, keeper: Keeper) -> _Judged:
    """Train coordinates and a density of them, and return what held-out rows say of them."""
    with seeded(derived(settings.seed, 4)):
        learned = _Learned(coordinates, rows[0])
    trains = tuple(name for name, part in learned.named_children() if any(True for _ in part.parameters()))
    size = rows_of_step(rows[0].rows, settings.training_batch_size)
    settings = replace(settings, seed=derived(settings.seed, 5), stop_after_epochs=None, longest=LONGEST)
    fit(learned, rows, [Phase(coordinates_nll, trains, None, STEADY, rows=size)], settings, keeper=keeper)
    keeper.ranks.hand_out(learned)

    def judged(some: Batch) -> Tensor:
        own = cast(_Rows, some)
        return torch.stack([*learned.judged(own), learned.told(own, rows[1].theta[:OTHERS])], 1)

    return _Judged(*keeper.ranks.in_shares(judged, rows[1]).unbind(1))
