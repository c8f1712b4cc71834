"""Neural ratio estimation with gold, in sbi's three verbs.

    trainer = ALICES(prior, seed=0)
    trainer.append_simulations(theta, x, joint_log_ratio=r, joint_score=t, from_theta=y)
    estimator = trainer.train()
    posterior = trainer.build_posterior()

It learns log p(x|theta) - log p(x|reference), which is all that a posterior needs, for data of any kind: nothing is
said about a manifold, and no x can be drawn. How much gold comes decides what it is:

| rows bring | name |
|---|---|
| joint_log_ratio, joint_score, from_theta | ALICES |
| joint_log_ratio, from_theta | ALICE |
| from_theta | NRE, or CARL |
| nothing: all drawn at theta | NRE against the distribution of all x, as sbi's |

(Stoye, Brehmer, Louppe, Pavez, Cranmer, arXiv:1808.00973). sbi's trainers form pairs within the batch and have no
place for labels of single pairs; its estimator, potential and posteriors are used as they are.
"""

from copy import deepcopy
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Size, Tensor

from mfsbi.checks import require_kind, require_positive_integer, require_tensor
from mfsbi.gold.checks import log_odds, require_constant_odds
from mfsbi.plugin.host import RatioEstimator
from mfsbi.plugin.parameter_prior import ParameterPrior
from mfsbi.plugin.potential import RatioPotential
from mfsbi.plugin.trainer import AbstractTrainer, Request
from mfsbi.ratio import RatioModel
from mfsbi.seeds import derived, seeded
from mfsbi.simulations import Simulations
from mfsbi.train.data import Batch, Split, joined
from mfsbi.train.losses import Alices
from mfsbi.train.record import ScoreNoise
from mfsbi.train.schedules import Phase, Schedule, Settings, require_schedule
from mfsbi.train.training import Model
from mfsbi.types import Prior
from mfsbi.warp import Warp, spreads

__all__ = ["ALICES", "GoldenRatio"]

EPOCHS = 50
"""Passes over the data, unless somebody says otherwise."""


class GoldenRatio(RatioEstimator):
    """A `RatioModel` as one of sbi's ratio estimators.

    Arguments:
        model: the network with its standardisation; also at `estimator.model`
    """

    training_record: dict[str, Any]
    """What its `ALICES` did: losses of each epoch, how many simulations and their hash."""

    def __init__(self, model: RatioModel) -> None:
        super().__init__(model, theta_shape=Size(model.theta_mean.shape), x_shape=Size(model.x_mean.shape))
        self.training_record = {}

    def __repr__(self) -> str:
        return f"GoldenRatio({self.model!r})"

    @property
    def model(self) -> RatioModel:
        """The network behind this estimator."""
        return self.net

    def unnormalized_log_ratio(self, theta: Tensor, x: Tensor) -> Tensor:
        """Return log p(x|theta) - log p(x|reference), shape `(*)`.

        Arguments:
            theta: shape `(*, parameter)`
            x: shape `(*, data)`

        Raises:
            ValueError: if features or leading axes differ from each other's
        """
        require_tensor("theta", theta)
        require_tensor("x", x)
        self._check_theta_shape_suffix(theta)
        self._check_x_shape_suffix(x)
        self._get_shape_prefix(theta, x)
        kind = self.model.theta_mean  # where the weights are, and in their type
        return self.model.log_ratio(self.model.as_data(x), theta.to(kind))


class ALICES(AbstractTrainer[GoldenRatio]):
    """Neural ratio estimation with joint log ratios and joint scores.

    Arguments:
        prior: distribution of theta, as sbi accepts them
        width: units in each hidden layer of the network; 100 as in the reference setting
        depth: hidden layers; 3 as in the reference setting
        seed: of the split, the first weights and the order of the rows; the same seed gives the same result
        device: where to train
        show_progress_bars: True, False, or None for "only on a terminal"

    Example:
        >>> from mfsbi import ALICES
        >>> from mfsbi.gold import simulate
        >>> from simulators.polynomial import PolynomialSurface
        >>> surface = PolynomialSurface()
        >>> theta, at_theta = surface.prior.sample((400,)), torch.rand(400) < 0.5
        >>> simulations = simulate(surface, theta, theta_ref=torch.zeros(1), from_theta=at_theta, seed=0)
        >>> trainer = ALICES(surface.prior, seed=0).append_simulations(simulations)
        >>> posterior = trainer.train(max_num_epochs=2) and trainer.build_posterior()
    """

    estimator_type = GoldenRatio
    settings = Settings(training_batch_size=128, learning_rate=2e-3, weight_decay=0.0)
    discrete = True

    def __init__(
        self,
        prior: Prior,
        *,
        width: int = 100,
        depth: int = 3,
        seed: int = 0,
        device: str = "cpu",
        show_progress_bars: bool | None = None,
    ) -> None:
        require_positive_integer("width", width)
        require_positive_integer("depth", depth)
        if prior is None:
            raise TypeError("`prior` should be a distribution: a ratio without parameters is one; got None.")
        super().__init__(prior, seed=seed, device=device, show_progress_bars=show_progress_bars)
        self.size = width, depth

    def __repr__(self) -> str:
        rows, trained = self.simulations.rows, self.estimator is not None
        return f"ALICES(width, depth={self.size}, seed={self.seed}, simulations={rows:,}, trained={trained})"

    def _learnable(self, simulations: Simulations) -> Simulations:
        """Return the simulations; joint log ratios come with rows drawn at the reference."""
        if simulations.joint_log_ratio is not None and simulations.from_theta is None:
            raise ValueError(
                "`joint_log_ratio` needs rows drawn at the reference as well: pass `from_theta`, True for rows drawn "
                "at theta. `mfsbi.gold.simulate(simulator, theta, theta_ref=..., from_theta=...)` makes both."
            )
        return simulations

    def _split(self, fraction: float, *, discard_prior_samples: bool) -> Split:
        """Return the rows to train on, and those held out in random order: pairs are made of neighbours."""
        training, validation = super()._split(fraction, discard_prior_samples=discard_prior_samples)
        order = torch.randperm(validation.rows, generator=torch.Generator().manual_seed(derived(self.seed, 4)))
        return training, validation.select(order.to(validation.theta.device))

    def _schedule(self, request: Request, schedule: Schedule | None, epochs: int | None) -> Schedule:
        schedule = [Phase(Alices(), ("network",), epochs or EPOCHS)] if schedule is None else schedule
        require_schedule(schedule)
        for phase in schedule:
            require_kind("Phase.loss", phase.loss, Alices, "`Alices()`, which a ratio is trained by")
        training, validation = request.data
        rows = min(phase.rows or request.settings.training_batch_size for phase in schedule)
        if validation.from_theta is None and min(rows, training.rows, validation.rows) < 2:
            raise ValueError(
                "Pairs are made of two rows: `training_batch_size` should be at least 2, or `Phase.rows` where a phase "
                f"has that, and so should the rows held out; got {rows} and {validation.rows}."
            )
        odds = 0.0
        if isinstance(training, Batch) and training.from_theta is not None:
            whole = joined([training, validation])
            labels = cast(Tensor, whole.from_theta)
            require_constant_odds(whole.theta, labels)
            odds = log_odds(labels)
        ours = {"log_odds": odds, "weight": request.score_weight}
        return [phase._replace(loss=_completed(cast(Alices, phase.loss), ours)) for phase in schedule]

    def _described(self, _restarts: int) -> dict[str, object]:
        return {"network": self.size}

    def _scored(self, _request: Request, schedule: Schedule) -> Schedule:
        return schedule

    def _limit(self, noise: ScoreNoise) -> list[float]:
        return noise.variance

    def _built(self, data: Split, _number: int) -> RatioModel:
        training = data[0].excerpt
        kind = training.theta.dtype
        warps = Warp.of_data(training.x, kind), Warp.of(training.theta)
        x, theta = warps[0](training.x), warps[1](training.theta)
        frames = x.mean(0), spreads(x), theta.mean(0), spreads(theta)
        with seeded(derived(self.seed, 3)):
            return RatioModel(*frames, *self.size, warps).to(kind).to(self.device)

    def _wrapped(self, model: Model) -> GoldenRatio:
        return GoldenRatio(cast(RatioModel, model)).eval()

    def _potential(self, estimator: GoldenRatio, prior: ParameterPrior) -> RatioPotential:
        frozen = deepcopy(estimator).requires_grad_(requires_grad=False).eval().to(self.device)
        return RatioPotential(frozen, prior, device=self.device)


def _completed(loss: Alices, settings: dict[str, Any]) -> Alices:
    """Return a loss with these settings where it has none of its own."""
    return replace(loss, **{name: value for name, value in settings.items() if getattr(loss, name) is None})
