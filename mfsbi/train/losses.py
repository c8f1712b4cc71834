r"""Losses: one number for each row, from a model and a batch.

    reconstruction = |x - project(x)|^2, in standardised units     moves the chart
    robust_reconstruction = its root, rounded off near zero         moves the chart, and minds far rows less
    latent_nll     = -log p(u|theta), at fixed coordinates u        moves the latent density
    joint          = 1000 reconstruction + latent_nll               moves both, each by its own term
    nll            = -log p(x|theta) in data space                  moves both: pseudo-invertible encoders
    joint_nll      = 1000 reconstruction - log p(x|theta)           moves both: simultaneous training, a cautionary tale
    Scandal(base)  = base, and the joint score as a second label    moves what base moves
    Alices()       = cross-entropy, and the joint score             moves a ratio

Likelihood alone cannot find a manifold: one that crosses the data instead of following them projects all of them to
one place, where the density grows without bound. So the chart learns from reconstruction and the density from
likelihood (Brehmer & Cranmer, arXiv:2003.13913, §2.3). In `joint` the coordinates are detached for that
reason; its weight matters only to what looks at the sum: early stopping, and the clipping of gradients. In `joint_nll`
they are not, and likelihood pulls the chart towards places where the data are dense.

**The joint score as a second label.** Where the joint score t(x, z|theta) of each run is known (`mfsbi.gold`), the
score of the model, s(x|theta) = d/dtheta log p(x|theta), is fitted to it as well (SCANDAL: Brehmer, Louppe, Pavez,
Cranmer, arXiv:1805.12244),

    L = -log p(x|theta) + alpha |t - s|^2,    minimal in the mean at the true density, for any alpha > 0,

with both scores for standardised theta: theta -> (theta - mean)/std takes t to std * t. How much a label is worth is
said by its noise. If t were Gaussian about the true score with the variance V_i of parameter i, then the likelihood of
what was simulated, x and t together, would be

    L = -log p(x|theta) + 1/2 sum_i [(t_i - s_i)^2 / V_i + log V_i],    so    alpha_i = 1 / (2 V_i)  nats.

**Noise and size.** A score is as large as a simulation is informative, and that depends on theta and x: on the LHC
process E[t^2|theta] falls from 100 at the Standard Model to 0.2 two standard deviations away, and at the Standard Model
one event in a hundred holds most of it. One V for all then lets a few rows be most of the score's loss. What a
posterior notices is an error over the size of the score, and so the noise is taken as the same share everywhere of the
size that is usual at theta, with a quarter of the true score's own square,

    V_i(x, theta) = nu_i (F_i + c s_i^2),    F_i(theta) = E[t_i^2|theta],    nu_i = E[(t_i - s_i)^2 / (F_i + c s_i^2)].

The second term then is a quasi-likelihood (Wedderburn, Biometrika 61, 439, 1974): D_i / nu_i + 1/2 log nu_i with

    D = 1/c [a (atan a - atan b) - 1/2 log[(1 + a^2) / (1 + b^2)]],    a = (c/F_i)^1/2 t_i,    b = (c/F_i)^1/2 s_i,

whose derivative by s_i is (s_i - t_i) / (F_i + c s_i^2). So D is close to (t - s)^2 / 2 (F + c s^2) for small errors,
and minimal in the mean at s = E[t|x, theta] whatever the noise really is. Scores of more than two sizes are where the
own square rules: errors there count by their size, not its square. An ordinary flow of the 40 features of the LHC
process, whose density has hardly any width in some directions and whose scores there grow to thousands of sizes,
diverged in its second epoch with errors over F alone, c = 0, and does not with c = 1/4.

F is regressed before training, on theta alone (`mfsbi.train.noise`). nu is not known, but whatever predicts t errs by
no less on rows it has not seen, in the mean over theta, if errors are small beside sizes: it is taken as the least that
was reached, by a regression of t before training or by the model itself, which is measured again before each pass.
Errors on training rows would fall without bound as they are learned by heart; and since a few held-out rows may look
explained by luck, two more count of which nothing is.

A bound is the looser the less noise there is: of scores that x does not tell a regression leaves all at once, of those
that it tells as much as it has not learned yet. So the second term is taken 2 - b times, b the regression's nu: as it
stands where scores are noise, and twice where they are told. More than twice can do harm. Of two independent estimates
with informations I and r I, the second weighed k times as it should be, the mean has the variance
(1 + k^2 r) / (1 + k r)^2 / I, no more than 1/I for all r if and only if k <= 2, and for k = 2 no more than 9/8 of the
least. (Twice for all b did: with x and scores of which 94 % are noise, 1,000 simulations, the NLL of new rows was 0.03
above that without scores.)

c = 1/4 is a compromise: smaller c brings posteriors closer to the exact ones, until single rows break a training down.
Scores cost likelihood: the more the second term counts, the less well drawn x obey constraints
(`notebooks/measurements.md`).

**Ratios.** ALICES (Stoye, Brehmer, Louppe, Pavez, Cranmer, arXiv:1808.00973) classifies whether x was drawn at theta
(y = 1) or at a reference (y = 0) by the logit log r(x|theta) + log w, w the prior odds, but with the chance s(x, z) of
y given the whole run for the label,

    L = -s log sigmoid(logit) - (1 - s) log sigmoid(-logit) + alpha y |t - d/dtheta log r(x|theta)|^2.

E[s|x, theta] is the chance of y given x alone, with less noise than y has. All in logits: no ratio is exponentiated.
Here alpha_i = 1 / (2 V_i), the same for all theta: chances tell more than x does, and weights that suit a likelihood
are too large beside them (LHC process, one seed: KL 0.088 with those of SCANDAL, 0.053 to 0.075 with a single V).
Without the ratios s is y (NRE, or CARL), without t it is ALICE. Where all rows were drawn at theta, y = 0 is made by
handing each x the theta of another row: the reference then is the distribution of all x, and the loss of a row that of
the two pairs it makes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from mfsbi.gold.checks import soft_labels
from mfsbi.models import AbstractModel, AmbientModel, DensityModel, ManifoldModel
from mfsbi.ratio import RatioModel
from mfsbi.train.data import Batch
from mfsbi.train.ranks import Ranks

__all__ = [
    "RECONSTRUCTION_WEIGHT",
    "Adaptive",
    "Alices",
    "Loss",
    "Scandal",
    "deviance",
    "joint",
    "joint_nll",
    "latent_nll",
    "nll",
    "reconstruction",
    "robust_reconstruction",
    "variance_function",
    "with_doubt",
]

Loss = Callable[[Any, Batch], Tensor]
"""(model, batch) -> (rows,)"""


@runtime_checkable
class Adaptive(Protocol):
    """A loss with a setting, its noise, that it takes from held-out rows as training goes on."""

    @property
    def noise(self) -> Tensor | None:
        """The setting; None before it was taken."""

    def adapted(self, model: Any, held_out: Batch) -> "Adaptive":  # noqa: ANN401 - whatever it is a loss of
        """Return the same loss with settings for the model as it is."""

    def __call__(self, model: Any, batch: Batch) -> Tensor:  # noqa: ANN401
        """Return the loss of each row, shape `(rows,)`."""


CORE = 0.01
"""Distance, in standard deviations, below which robust reconstruction is quadratic."""

RECONSTRUCTION_WEIGHT = 1000.0
"""Nats for a squared distance of one standard deviation; the paper's setting for the polynomial surface."""


def reconstruction(model: AbstractModel, batch: Batch) -> Tensor:
    """Return |x - project(x)|^2 in standardised units, shape `(rows,)`."""
    return model.chart_at(batch.theta).squared_distance(batch.x)


def robust_reconstruction(model: AbstractModel, batch: Batch) -> Tensor:
    """Return (|x - project(x)|^2 + 0.01^2)^1/2 in standardised units, shape `(rows,)`.

    Squares are ruled by the few rows in the tails of heavy-tailed features. On the LHC process, after 1,500 steps of
    500 rows, the mean distance of new events was 0.0335 by this loss and 0.0373 by squares, and their root mean square
    0.0440 and 0.0474.
    """
    return (reconstruction(model, batch) + CORE**2).sqrt()


def latent_nll(model: AbstractModel, batch: Batch) -> Tensor:
    """Return -log p(u|theta) in nats, shape `(rows,)`; the batch must carry u, or the chart gives it, held fixed."""
    u = model.encode(batch.x, batch.theta).detach() if batch.u is None else batch.u
    return -model.latent.log_prob(u, batch.theta)


def nll(model: AbstractModel, batch: Batch) -> Tensor:
    """Return -log p(x|theta) in nats, shape `(rows,)`; for models of data space, where likelihood alone will do.

    Raises:
        TypeError: if the model has no density of x, or one on a manifold that is to be learned
    """
    learns = any(weight.requires_grad for weight in model.chart.parameters())
    if not isinstance(model, DensityModel) or (learns and not isinstance(model, AmbientModel)):
        raise TypeError(
            f"Likelihood alone cannot find the manifold of a {type(model).__name__}: "
            "train it by `sequential`, or `alternating`."
        )
    return -model.log_prob(batch.x, batch.theta)


def joint_nll(model: ManifoldModel, batch: Batch) -> Tensor:
    """Return reconstruction and likelihood on the manifold, with the volume's gradient by one tangent, `(rows,)`."""
    chart = model.chart_at(batch.theta)
    u = chart.encode(batch.x)
    density = model.latent.log_prob(u, batch.theta) - chart.noisy_log_volume(u)
    return RECONSTRUCTION_WEIGHT * chart.squared_distance(batch.x) - density


def joint(model: AbstractModel, batch: Batch) -> Tensor:
    """Return what trainers with one optimiser minimise, shape `(rows,)`.

    That is reconstruction and latent likelihood, or for an `AmbientModel` the likelihood of x.
    """
    if isinstance(model, AmbientModel):
        return nll(model, batch)
    return RECONSTRUCTION_WEIGHT * reconstruction(model, batch) + latent_nll(model, batch)


DOUBT = 2.0
"""Rows of which nothing is explained, added to those that the noise is measured on."""


@dataclass(frozen=True)
class _ScoreLoss(ABC):
    """A loss with the joint score as a second label, where the batch has one."""

    weight: float | None = None
    noise: Tensor | None = None
    limit: Tensor | None = None

    def __post_init__(self) -> None:
        if self.weight is not None and not self.weight >= 0:
            raise ValueError(f"The weight of the score should not be negative; got {self.weight}.")

    @abstractmethod
    def _values(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss without score, and what the score is the gradient of, each of shape `(rows,)`."""

    @abstractmethod
    def _unit(self, model: nn.Module, theta: Tensor) -> Tensor:
        """Return what a score of theta is multiplied by to be that of standardised theta, shape `(rows, parameter)`."""

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of each row, shape `(rows,)`."""
        if batch.joint_score is None or self.weight == 0 or not _of_theta(batch).any():
            return self._values(model, batch)[0]
        loss, joint_score, score = self._with_scores(model, batch)
        if self.weight is not None:
            return loss + self.weight * _of_theta(batch) * (joint_score - score).square().sum(-1)
        errors = deviance(joint_score, score, self._sizes(batch.theta))
        noise = self._noise(joint_score, score.detach(), batch) if self.noise is None else self.noise
        return loss + 0.5 * _of_theta(batch) * (self.emphasis * (errors / noise + noise.log())).sum(-1)

    @property
    def emphasis(self) -> Tensor | float:
        """How many times the score counts."""
        return 1.0

    def adapted(self, model: nn.Module, held_out: Batch) -> "_ScoreLoss":
        """Return the loss with the noise as it is on rows the model has not seen."""
        if held_out.joint_score is None or self.weight is not None or not _of_theta(held_out).any():
            return self
        score = Ranks.current().in_shares(lambda rows: self._with_scores(model, rows)[2], held_out)
        return replace(self, noise=self._noise(self._joint_score(model, held_out), score, held_out))

    def _with_scores(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss without score, and joint and model's score for standardised theta, `(rows, parameter)`."""
        learning = torch.is_grad_enabled()
        with torch.enable_grad():
            theta = batch.theta.detach().requires_grad_()
            loss, log_density = self._values(model, replace(batch, theta=theta))
            (score,) = torch.autograd.grad(log_density.sum(), theta, create_graph=learning)
        return (
            (loss if learning else loss.detach()),
            self._joint_score(model, batch),
            score * self._unit(model, batch.theta),
        )

    def _joint_score(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the joint scores of standardised theta, shape `(rows, parameter)`."""
        return cast(Tensor, batch.joint_score) * self._unit(model, batch.theta)

    def _sizes(self, theta: Tensor) -> Tensor | None:  # noqa: ARG002 - those of a ratio are not asked for
        """Return F, shape `(rows, parameter)`; None if it is not known."""
        return None

    def _noise(self, joint_score: Tensor, score: Tensor, batch: Batch) -> Tensor:
        """Return the noise of rows drawn at theta as the model's errors have it, or the limit where that is less.

        One where a score is always zero and has no size.
        """
        at_theta = _of_theta(batch).expand(len(joint_score)) > 0
        size = self._sizes(batch.theta)
        squared, own = (joint_score - score).square(), joint_score.square()
        if size is not None:
            squared, own = squared / variance_function(score, size), own / size
        noise = with_doubt(squared[at_theta], own[at_theta])
        noise = noise if self.limit is None else torch.minimum(noise, self.limit)
        return torch.where((noise > 0) & (own[at_theta] > 0).any(0), noise, torch.ones_like(noise))


@dataclass(frozen=True)
class Scandal(_ScoreLoss):
    """-log p with the joint score as a second label; see above.

    Arguments:
        weight: alpha, nats per squared standardised score, the same for all parameters; by the noise if None
        noise: nu, or V if sizes are not known, shape `(parameter,)`, as `adapted` measured it, which trainers call
            before the first step; measured on the batch itself if None
        limit: of the noise, shape `(parameter,)`: it is known to be no larger; with the size it sets how often the
            score counts, too
        size: F, from theta of shape `(rows, parameter)` to that shape, for scores times its `theta_unit(theta)`, which
            then is the unit of the scores' errors; of no consequence if the weight is fixed
        base: a loss that is -log p(x|theta) but for terms without theta, unless the chart depends on theta: the score
            then is that of the model's own log p(x|theta)

    Raises:
        ValueError: if the weight is negative
    """

    size: nn.Module | None = None
    base: Loss = latent_nll

    @property
    def emphasis(self) -> Tensor | float:
        """2 - b, shape `(parameter,)`, b the limit of the noise; see above. Once if noise is no share of a size."""
        return 1.0 if self.limit is None or self.size is None else (2 - self.limit).clamp(1, 2)

    @property
    def __name__(self) -> str:
        return f"scandal({self.base.__name__})"

    def _values(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        loss = self.base(model, batch)
        if self.base is nll or not cast(AbstractModel, model).chart.conditional:
            return loss, -loss
        return loss, cast(DensityModel, model).log_prob(batch.x, batch.theta)  # theta moves u and the manifold, too

    def _unit(self, model: nn.Module, theta: Tensor) -> Tensor:
        learned = self.size is None or self.weight is not None
        with torch.no_grad():
            return cast(Any, cast(AbstractModel, model).latent if learned else self.size).theta_unit(theta)

    def _sizes(self, theta: Tensor) -> Tensor | None:
        if self.size is None:
            return None
        with torch.no_grad():
            return cast(Tensor, self.size(theta))


@dataclass(frozen=True)
class Alices(_ScoreLoss):
    """The cross-entropy of a ratio with as much gold as the batch has; see above.

    Arguments:
        weight: alpha, nats per squared standardised score, the same for all parameters; by the noise if None
        noise: V, shape `(parameter,)`, as `adapted` measured it; measured on the batch itself if None
        limit: of the noise, shape `(parameter,)`: it is known to be no larger
        size: whose `theta_unit(theta)` is the unit of the limit's scores, and of all unless the weight is fixed; the
            model's if None
        log_odds: log w, of how many rows were drawn at theta for each one drawn at the reference

    Raises:
        ValueError: if the weight is negative
    """

    size: nn.Module | None = None
    log_odds: float = 0.0
    __name__ = "alices"

    def _values(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        ratio = cast(RatioModel, model)
        log_ratio = ratio.log_ratio(batch.x, batch.theta)
        if batch.from_theta is None:
            other = batch.theta.detach().roll(1, 0) if batch.other_theta is None else batch.other_theta
            return functional.softplus(-log_ratio) + functional.softplus(ratio.log_ratio(batch.x, other)), log_ratio
        label = batch.from_theta
        if batch.joint_log_ratio is not None:
            label = soft_labels(batch.joint_log_ratio, self.log_odds)
        logit = log_ratio + self.log_odds
        return functional.binary_cross_entropy_with_logits(logit, label, reduction="none"), log_ratio

    def _unit(self, model: nn.Module, theta: Tensor) -> Tensor:
        learned = self.size is None or self.weight is not None
        with torch.no_grad():
            return cast(Any, model if learned else self.size).theta_unit(theta)


OWN = 0.25
"""c, the part of the true score's own square in the size that its errors are counted by."""


def variance_function(score: Tensor, size: Tensor) -> Tensor:
    """Return F + c s^2, shape `(rows, parameter)`: what the noise is a share of."""
    return size + OWN * score.square()


def deviance(joint_score: Tensor, score: Tensor, size: Tensor | None) -> Tensor:
    """Return 2 D, shape `(rows, parameter)`; the squared error if sizes are not known."""
    if size is None:
        return (joint_score - score).square()
    a, b = ((OWN / size).sqrt() * each for each in (joint_score, score))
    return (2 * a * (a.atan() - b.atan()) + b.square().log1p() - a.square().log1p()) / OWN


def with_doubt(squared: Tensor, own: Tensor) -> Tensor:
    """Return (sum_r e_r^2 + k <t^2>) / (n + k), the mean square error as if k = 2 rows more were unexplained.

    Arguments:
        squared: e^2 of standardised joint scores, over their size or not, shape `(rows, parameter)`
        own: t^2, those of a score that is always zero
    """
    return (squared.sum(0) + DOUBT * own.mean(0)) / (len(squared) + DOUBT)


def _of_theta(batch: Batch) -> Tensor:
    """Return 1 for rows drawn at theta and 0 for others, shape `(rows,)`, or one 1 for all."""
    return batch.theta.new_ones(()) if batch.from_theta is None else batch.from_theta
