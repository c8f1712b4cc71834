r"""Coordinates in which the density is simple: directions C, learned by likelihood once a chart is there.

A chart that learned by reconstruction has coordinates that are smooth and otherwise arbitrary, and a law that is linear
in some is curved in those. With w = C^T y (`mfsbi.charts.linear`) the density on the manifold is

    log p(y|theta) = log p(w|theta) + log|det C^T J| - 1/2 log det J^T J,    J the tangents of the chart at y,

whose last term does not depend on C. So C and a density of w are learned together, from J that are computed once; the
determinant keeps C from folding the manifold, where it is zero. C starts as the linear regression of u on y.

They are the coordinates from then on if held-out rows are likelier than with a density of u that learned the same way,
and the manifold is a graph over them: the determinant has one sign at all held-out rows but a thousandth, and u is
known from w, by a small network that learns along, but for a twentieth of its variance. A closed manifold has no such
coordinates, and keeps those of its chart. Both densities are given up afterwards.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from mfsbi.charts import Standardized, Warped
from mfsbi.flows import AutoregressiveMixtures
from mfsbi.models import AbstractModel, ManifoldModel
from mfsbi.networks import perceptron
from mfsbi.seeds import derived, seeded
from mfsbi.train.course import Average, rows_of_step
from mfsbi.train.data import Batch, TrainingData, in_chunks
from mfsbi.train.ranks import Ranks
from mfsbi.train.schedules import Settings
from mfsbi.train.state import Best

__all__ = ["learn_directions"]

RATES = 0.03, 2e-3
"""Learning rates of C and of everything else."""

LONGEST, EVERY = 4_000, 25
"""Steps at most, and between two looks at held-out rows."""

FEWEST = 300
"""Steps without a gain before it ends, at least; half as many as brought the best otherwise."""

BATCH = 250
"""Rows of a step, at most."""

VAGUE = 1.0
"""Spread of the error of u, in its own spreads, above which w costs a nat."""

RIDGE = 1e-6
"""Of the regression that C starts as, in units of the variance of a feature."""

NUMBERS = 10**8
"""Of tangents that are kept, at most: rows are left out where they would be more."""

FOLDED, UNKNOWN = 1e-3, 0.05
"""Share of rows on the other side of a fold, and of the variance of u that w does not tell, which are too much."""


class _Rows(NamedTuple):
    """What is learned from: standardised theta, data in the frame, the chart's coordinates and its tangents."""

    theta: Tensor
    y: Tensor
    u: Tensor
    tangents: Tensor

    def some(self, rows: Tensor) -> "_Rows":
        """Return the rows with these indices."""
        return _Rows(*(each[rows] for each in self))


class _Learned(nn.Module):
    """A density of coordinates w = C^T y with C, and the network that tells u from w; or a density of u alone."""

    directions: nn.Parameter | None

    def __init__(self, rows: _Rows, *, linear: bool) -> None:
        super().__init__()
        (_, d), n = rows.y.shape, rows.u.shape[1]
        self.centre, self.middle, self.spread = rows.y.mean(0), rows.u.mean(0), rows.u.std(0)
        y, u = (rows.y - self.centre).double(), self._scaled(rows.u).double()
        self.density = AutoregressiveMixtures(start="linear", bends=0).build(n, rows.theta.shape[1])
        self.back, self.bent = nn.Linear(n, n), perceptron([n, 64, 64, n], nn.SiLU)
        self.register_parameter("directions", None)
        if linear:
            ridge = RIDGE * len(y) * torch.eye(d, dtype=y.dtype, device=y.device)
            directions = torch.linalg.solve(y.T @ y + ridge, y.T @ u)
            self.directions = nn.Parameter((directions / (y @ directions).std(0)).to(rows.y))
        for weight in self.bent[-1].parameters():
            nn.init.zeros_(weight)
        self.to(rows.y)
        with torch.no_grad():
            w = self.of(rows)
            self.density.measure(w, rows.theta)
            self.back.weight.copy_(torch.linalg.lstsq(w.double(), u).solution.T)
            self.back.bias.zero_()

    def of(self, rows: _Rows) -> Tensor:
        """Return the coordinates, of mean zero."""
        return self._scaled(rows.u) if self.directions is None else (rows.y - self.centre) @ self.directions

    def losses(self, rows: _Rows) -> Tensor:
        """Return -log p(y|theta), but for what is the same for all coordinates, for each row."""
        log_det = -self.spread.log().sum()
        if self.directions is not None:
            log_det = torch.linalg.slogdet(self.directions.T @ rows.tangents)[1]
        return -self.density.log_prob(self.of(rows), rows.theta) - log_det

    def unknown(self, rows: _Rows) -> Tensor:
        """Return the share of the variance of u that w does not tell."""
        w = self.of(rows)
        return (self._scaled(rows.u) - self.back(w) - self.bent(w)).square().mean()

    def is_graph(self, rows: _Rows) -> bool:
        """Return whether the manifold is one over C."""
        assert self.directions is not None
        sign = torch.linalg.slogdet(self.directions.T @ rows.tangents)[0]
        folded = float((sign != sign.sum().sign()).float().mean())
        return folded <= FOLDED and float(self.unknown(rows)) <= UNKNOWN

    def _scaled(self, u: Tensor) -> Tensor:
        return (u - self.middle) / self.spread


def learn_directions(model: AbstractModel, training: TrainingData, validation: Batch, settings: Settings) -> bool:
    """Give a model linear coordinates in which its density is simple, if there are any, and return whether there are.

    Arguments:
        model: whose chart has learned by reconstruction; others are left as they are
        training: rows to learn from
        validation: rows to judge by
        settings: the seed, whether bars are shown
    """
    frame = _frame(model)
    if frame is None or frame.linear.given:
        return False
    found = Ranks.current().from_first(lambda: _search(model, frame, (training, validation), settings))
    if found is not None:
        frame.linear.take(*(each.to(frame.mean) for each in found))
    return found is not None


def _frame(model: AbstractModel) -> Standardized | None:
    """Return the frame whose chart can have other coordinates."""
    chart = model.chart.chart if isinstance(model.chart, Warped) else model.chart
    if not (isinstance(chart, Standardized) and isinstance(model, ManifoldModel)) or chart.conditional:
        return None
    return chart if chart.manifold_dim < chart.chart.data_dim else None


def _search(
    model: AbstractModel, frame: Standardized, data: tuple[TrainingData, Batch], settings: Settings
) -> tuple[Tensor, Tensor] | None:
    """Return directions and where Newton's method starts, or None if the manifold is no graph over any."""
    count = NUMBERS // (frame.chart.data_dim * frame.manifold_dim)
    training, held_out = _rows(model, frame, data[0].excerpt, count), _rows(model, frame, data[1], count // 4)
    hidden = None if settings.show_progress_bars is None else not settings.show_progress_bars
    learned, losses = {}, {}
    for linear in (False, True):
        with seeded(derived(settings.seed, 3, int(linear))), torch.enable_grad():
            learned[linear] = _Learned(training, linear=linear)
            with tqdm(disable=hidden, unit="step", leave=False, desc="coordinates") as bar:
                losses[linear] = _descend(learned[linear], training, held_out, bar)
    with torch.no_grad():
        directions = learned[True].directions
        if directions is None or losses[False] <= losses[True] or not learned[True].is_graph(held_out):
            return None
        w = torch.cat([training.y @ directions, torch.ones_like(training.y[:, :1])], 1)
        return directions.detach(), torch.linalg.lstsq(w.double(), training.u.double()).solution


def _rows(model: AbstractModel, frame: Standardized, data: Batch, count: int) -> _Rows:
    """Return so many rows at most, as they are learned from, in single precision."""
    data = data.select(slice(count))
    y = in_chunks(lambda some: frame.inward(model.chart.straightened(model.as_data(some.x))), data)
    with torch.no_grad():
        u = torch.cat([frame.chart.encode(block) for block in y.split(1_000)])
        tangents = torch.cat([frame.chart.tangents(block) for block in u.split(1_000)])
    return _Rows(model.latent.standardize(data.theta), *(each.to(data.theta) for each in (y, u, tangents)))


def _descend(learned: _Learned, training: _Rows, held_out: _Rows, bar: tqdm) -> float:
    """Learn until held-out rows gain no more, and return their mean loss with the best averaged weights, in place.

    Then the learning rates fall to zero from there, as those of densities do (`mfsbi.train.course`).
    """
    rest = [weight for name, weight in learned.named_parameters() if name != "directions"]
    groups: list[dict[str, Any]] = [{"params": rest, "lr": RATES[1]}]
    if learned.directions is not None:
        groups.append({"params": [learned.directions], "lr": RATES[0], "weight_decay": 0.0})
    optimizer, average, best = torch.optim.AdamW(groups, weight_decay=0.1), Average(learned), Best(learned)
    rows, size = len(training.y), rows_of_step(len(training.y), BATCH)
    weight, step, ends, fall = training.u.shape[1] / (2 * VAGUE**2), 0, math.inf, EVERY
    while step < ends:
        some = training.some(torch.randint(rows, (size,), device=training.y.device))
        loss = learned.losses(some).mean()
        optimizer.zero_grad()
        cost = loss if learned.directions is None else loss + weight * learned.unknown(some)
        cost.backward()
        nn.utils.clip_grad_norm_(learned.parameters(), 5.0)
        optimizer.step()
        average.update()
        bar.update()
        step += 1
        if ends < math.inf:
            for group, rate in zip(optimizer.param_groups, RATES[::-1], strict=False):
                group["lr"] = rate * (ends - step) / fall
        if step % EVERY:
            continue
        with average.in_place(), torch.no_grad():
            found = float(learned.losses(held_out).mean())
            if found < best.loss:
                best.keep(found, step, 0.0)
        bar.set_postfix(loss=f"{float(loss.detach()):.4g}", validation=f"{found:.4g}", refresh=False)
        if ends == math.inf and step >= min(best.epoch + max(FEWEST, best.epoch // 2), LONGEST):
            fall = EVERY * max(1, best.epoch // (2 * EVERY))
            ends = step + fall
            best.restore()
            average.restart()
    best.restore()
    return best.loss
