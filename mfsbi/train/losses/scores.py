r"""The joint score as a second label of a likelihood.

Where the joint score t(x, z|theta) of each run is known (`mfsbi.gold`), the score of the model,
s(x|theta) = d/dtheta log p(x|theta), is fitted to it as well (SCANDAL: Brehmer, Louppe, Pavez, Cranmer,
arXiv:1805.12244),

    L = -log p(x|theta) + alpha |t - s|^2,    minimal in the mean at the true density, for any alpha > 0,

with both scores for standardised theta: theta -> (theta - mean)/std takes t to std * t. How much a label is worth
depends on its noise. If t were Gaussian about the true score with the variance V_i of parameter i, the likelihood of
what was simulated, x and t together, would be

    L = -log p(x|theta) + 1/2 sum_i [(t_i - s_i)^2 / V_i + log V_i],    so    alpha_i = 1 / (2 V_i)  nats.

**Noise and size.** A score is as large as a simulation is informative, and that depends on theta and x: on the LHC
process E[t^2|theta] falls from 100 at the Standard Model to 0.2 two standard deviations away, and at the Standard Model
one event in a hundred holds most of it. With one V for all, a few rows would be most of the score's loss. What matters
to a posterior is the error relative to the size of the score. So the noise is taken as the same share, everywhere, of
the size that is usual at theta plus a quarter of the true score's own square,

    V_i(x, theta) = nu_i (F_i + c s_i^2),    F_i(theta) = E[t_i^2|theta],    nu_i = E[(t_i - s_i)^2 / (F_i + c s_i^2)].

The second term then is a quasi-likelihood (Wedderburn, Biometrika 61, 439, 1974): D_i / nu_i + 1/2 log nu_i with

    D = 1/c [a (atan a - atan b) - 1/2 log[(1 + a^2) / (1 + b^2)]],    a = (c/F_i)^1/2 t_i,    b = (c/F_i)^1/2 s_i,

whose derivative by s_i is (s_i - t_i) / (F_i + c s_i^2). So D is close to (t - s)^2 / 2 (F + c s^2) for small errors,
and minimal in the mean at s = E[t|x, theta] whatever the noise really is. The own square takes over for scores of more
than two sizes: errors there count in proportion to their size, not its square. With c = 0, single rows can make a
training diverge.

F is regressed before training, on theta alone (`mfsbi.train.noise`). nu is not known, but whatever predicts t errs by
no less on rows it has not seen, in the mean over theta, if errors are small beside sizes. It is therefore the least
that was reached, by a regression of t before training or by the model itself, which is measured again before each pass.
It has to be measured on held-out rows, since errors on training rows fall without bound as the model overfits; and
because a few held-out rows may happen to be predicted well, two rows are added whose scores are not predicted at all.

The less noise there is, the looser the bound: of scores that x does not tell, a regression leaves all at once, and of
those that it tells as much as it has not learned yet. So the second term is taken 2 - b times, b the regression's nu:
once where scores are noise, and twice where x tells them. More than twice can do harm. Of two independent estimates
with informations I and r I, the second weighed k times as it should be, the mean has the variance
(1 + k^2 r) / (1 + k r)^2 / I, no more than 1/I for all r if and only if k <= 2, and for k = 2 no more than 9/8 of the
least.

c = 1/4 is a compromise: smaller c brings posteriors closer to the exact ones, until single rows break a training down.
Scores cost likelihood: the more the second term counts, the less well drawn x obey constraints. All of this is measured
in `notebooks/measurements.md`.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from mfsbi.models import AbstractModel, DensityModel
from mfsbi.train.data import Batch
from mfsbi.train.losses.plain import AbstractLoss, Kind, Loss, as_loss, latent_nll
from mfsbi.train.ranks import Ranks

__all__ = ["DOUBT", "Scandal", "ScoreLoss", "deviance", "variance_function", "with_doubt"]

DOUBT = 2.0
"""Rows of which nothing is explained, added to those that the noise is measured on."""

OWN = 0.25
"""c, the part of the true score's own square in the size that its errors are counted by."""


@dataclass(frozen=True)
class ScoreLoss(AbstractLoss):
    """A loss with the joint score as a second label, where the batch has one.

    `Scandal` and `Alices` say what the arguments are.

    Raises:
        ValueError: if the weight is negative
    """

    weight: float | None = None
    noise: Tensor | None = None
    limit: Tensor | None = None
    size: nn.Module | None = None

    def __post_init__(self) -> None:
        if self.weight is not None and not self.weight >= 0:
            raise ValueError(f"The weight of the score should not be negative; got {self.weight}.")

    @abstractmethod
    def _values(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss without score, and what the score is the gradient of, each of shape `(rows,)`."""

    @abstractmethod
    def _unit_of(self, model: nn.Module, theta: Tensor) -> Tensor:
        """Return what a score of theta is multiplied by to be that of the model's standardised theta."""

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

    @property
    def unmeasured(self) -> bool:
        """Whether it goes by the noise of the scores, and has neither a limit of that nor their size."""
        return self.weight is None and self.limit is None and self.size is None

    def adapted(self, model: nn.Module, held_out: Batch) -> "ScoreLoss":
        """Return the loss with the noise as it is on rows the model has not seen.

        Without held-out rows drawn at theta, without joint scores or with a fixed weight there is nothing to measure.

        Arguments:
            model: in training
            held_out: the rows to measure on, in shares where several processes train
        """
        if held_out.joint_score is None or self.weight is not None or not _of_theta(held_out).any():
            return self
        score = Ranks.current().in_shares(lambda rows: self._with_scores(model, rows)[2], held_out)
        return replace(self, noise=self._noise(self._joint_score(model, held_out), score, held_out))

    def state(self) -> dict[str, Tensor]:
        """Return the noise, and the weights of the size."""
        size = {} if self.size is None else self.size.state_dict()
        noise = {} if self.noise is None else {"noise": self.noise}
        return noise | {f"size.{name}": value for name, value in size.items()}

    def restored(self, state: Mapping[str, Tensor]) -> "ScoreLoss":
        """Return the loss with the noise of a checkpoint; the size, which losses share, takes up its weights."""
        if self.size is not None:
            self.size.load_state_dict({name: state[f"size.{name}"] for name in self.size.state_dict()})
        return replace(self, noise=state.get("noise", self.noise))

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

    def _unit(self, model: nn.Module, theta: Tensor) -> Tensor:
        """Return what a score is multiplied by, shape `(rows, parameter)`: the unit of the size, or the model's."""
        with torch.no_grad():
            if self.size is None or self.weight is not None:
                return self._unit_of(model, theta)
            return cast(Any, self.size).theta_unit(theta)

    def _sizes(self, _theta: Tensor) -> Tensor | None:
        """Return the sizes that errors are counted by, shape `(rows, parameter)`; None if as they are."""
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
class Scandal(ScoreLoss):
    """-log p with the joint score as a second label; the formulas are in `mfsbi.train.losses.scores`.

    Arguments:
        weight: alpha, nats per squared standardised score, the same for all parameters; by the noise if None
        noise: nu, or V if sizes are not known, shape `(parameter,)`, as `adapted` measured it, which trainings call
            before the first step; measured on the batch itself if None
        limit: of the noise, shape `(parameter,)`: it is known to be no larger; together with the size it also decides
            how often the score counts
        size: F, from theta of shape `(rows, parameter)` to that shape, for scores times its `theta_unit(theta)`, which
            then is the unit of the scores' errors; not used if the weight is fixed
        base: a loss that is -log p(x|theta) but for terms without theta, unless the chart depends on theta: the score
            then is that of the model's own log p(x|theta)

    Raises:
        ValueError: if the weight is negative
    """

    base: Loss = latent_nll

    @property
    def kind(self) -> Kind:
        """That of the base."""
        return as_loss(self.base).kind

    @property
    def origin(self) -> object:
        """That of the base."""
        return as_loss(self.base).origin

    @property
    def emphasis(self) -> Tensor | float:
        """2 - b, shape `(parameter,)`, with b the limit of the noise; once if noise is not a share of a size."""
        return 1.0 if self.limit is None or self.size is None else (2 - self.limit).clamp(1, 2)

    @property
    def __name__(self) -> str:
        return f"scandal({as_loss(self.base).__name__})"

    def _values(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        loss = self.base(model, batch)
        if self.kind is Kind.LIKELIHOOD or not cast(AbstractModel, model).chart.conditional:
            return loss, -loss
        return loss, cast(DensityModel, model).log_prob(batch.x, batch.theta)  # theta moves u and the manifold, too

    def _unit_of(self, model: nn.Module, theta: Tensor) -> Tensor:
        return cast(AbstractModel, model).latent.theta_unit(theta)

    def _sizes(self, theta: Tensor) -> Tensor | None:
        if self.size is None:
            return None
        with torch.no_grad():
            return cast(Tensor, self.size(theta))


def variance_function(score: Tensor, size: Tensor) -> Tensor:
    """Return F + c s^2, shape `(rows, parameter)`: what the noise is a share of.

    Arguments:
        score: s, of standardised theta, shape `(rows, parameter)`
        size: F, shape `(rows, parameter)`
    """
    return size + OWN * score.square()


def deviance(joint_score: Tensor, score: Tensor, size: Tensor | None) -> Tensor:
    """Return 2 D, shape `(rows, parameter)`; the squared error if sizes are not known.

    Arguments:
        joint_score: t, of standardised theta, shape `(rows, parameter)`
        score: s, that of the model, in the same unit
        size: F, shape `(rows, parameter)`; None if it is not known
    """
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
