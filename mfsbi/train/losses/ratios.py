r"""The cross-entropy of a ratio, with as much gold as there is.

ALICES (Stoye, Brehmer, Louppe, Pavez, Cranmer, arXiv:1808.00973) classifies whether x was drawn at theta (y = 1) or at
a reference (y = 0) by the logit log r(x|theta) + log w, w the prior odds. It takes the chance s(x, z) of y given the
whole run for the label,

    L = -s log sigmoid(logit) - (1 - s) log sigmoid(-logit) + alpha y |t - d/dtheta log r(x|theta)|^2.

E[s|x, theta] is the chance of y given x alone, with less noise than y has. Everything is computed from logits: no ratio
is exponentiated. Without the ratios s is y (NRE, or CARL), without t it is ALICE. Where all rows were drawn at theta,
y = 0 is made by handing each x the theta of another row: the reference then is the distribution of all x, and the loss
of a row that of the two pairs it makes.

Here alpha_i = 1 / (2 V_i), with V_i the noise of the score of parameter i (`mfsbi.train.losses.scores`), the same for
all theta: chances tell more than x does, and the weights that suit a likelihood are too large beside them
(`notebooks/measurements.md`).
"""

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from mfsbi.gold.checks import soft_labels
from mfsbi.ratio import RatioModel
from mfsbi.train.data import Batch
from mfsbi.train.losses.plain import Kind
from mfsbi.train.losses.scores import ScoreLoss

__all__ = ["Alices"]


@dataclass(frozen=True)
class Alices(ScoreLoss):
    """The cross-entropy of a ratio with as much gold as the batch has.

    Arguments:
        weight: alpha, nats per squared standardised score, the same for all parameters; by the noise if None
        noise: V, shape `(parameter,)`, as `adapted` measured it; measured on the batch itself if None
        limit: of the noise, shape `(parameter,)`: it is known to be no larger
        size: whose `theta_unit(theta)` is the unit of the limit's scores, and of all unless the weight is fixed; the
            model's if None
        log_odds: log w, of how many rows were drawn at theta for each one drawn at the reference; 0, as many, if None,
            for which `ALICES` puts that of its simulations

    Raises:
        ValueError: if the weight is negative
    """

    log_odds: float | None = None
    kind = Kind.RATIO
    __name__ = "alices"

    def _values(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        ratio = cast(RatioModel, model)
        log_ratio = ratio.log_ratio(batch.x, batch.theta)
        if batch.from_theta is None:
            other = batch.theta.detach().roll(1, 0) if batch.other_theta is None else batch.other_theta
            return functional.softplus(-log_ratio) + functional.softplus(ratio.log_ratio(batch.x, other)), log_ratio
        label, odds = batch.from_theta, self.log_odds or 0.0
        if batch.joint_log_ratio is not None:
            label = soft_labels(batch.joint_log_ratio, odds)
        return functional.binary_cross_entropy_with_logits(log_ratio + odds, label, reduction="none"), log_ratio

    def _unit_of(self, model: nn.Module, theta: Tensor) -> Tensor:
        return cast(RatioModel, model).theta_unit(theta)
