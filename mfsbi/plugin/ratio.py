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
from pathlib import Path
from typing import Any, cast

import torch
from torch import Size, Tensor

from mfsbi.checks import require_positive_integer, require_tensor
from mfsbi.gold.checks import log_odds, require_constant_odds
from mfsbi.plugin.host import NeuralPosterior, RatioEstimator
from mfsbi.plugin.parameter_prior import ParameterPrior
from mfsbi.plugin.posteriors import PosteriorParameters, posterior_of
from mfsbi.plugin.potential import RatioPotential
from mfsbi.plugin.trainer import AbstractTrainer, Training
from mfsbi.ratio import RatioModel
from mfsbi.seeds import derived, seeded
from mfsbi.simulations import Simulations
from mfsbi.train.checkpoint import Keeping
from mfsbi.train.data import Batch, joined
from mfsbi.train.losses import Alices
from mfsbi.train.record import History
from mfsbi.train.schedules import Phase
from mfsbi.types import Prior
from mfsbi.warp import Warp, spreads

__all__ = ["ALICES", "GoldenRatio"]


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
        super().__init__(prior, seed, device, show_progress_bars)
        self.size = width, depth

    def __repr__(self) -> str:
        rows, trained = self.simulations.rows, self.estimator is not None
        return f"ALICES(width, depth={self.size}, seed={self.seed}, simulations={rows:,}, trained={trained})"

    def train(  # noqa: PLR0913 - sbi's signature
        self,
        *,
        training_batch_size: int = 128,
        learning_rate: float = 2e-3,
        validation_fraction: float = 0.1,
        stop_after_epochs: int | None = None,
        max_num_epochs: int = 50,
        clip_max_norm: float | None = 5.0,
        weight_decay: float = 0.0,
        score_weight: float | None = None,
        retrain_from_scratch: bool = False,
        discard_prior_samples: bool = False,
        show_train_summary: bool = False,
        checkpoint: str | Path | None = None,
        checkpoint_minutes: float = 5.0,
        resume_training: bool = False,
    ) -> GoldenRatio:
        """Train and return the estimator; the trainer keeps it too, also after an error once an epoch was finished.

        Ctrl-C ends the training, not the program: the best weights so far stay and a warning says so. With `checkpoint`
        a training survives whatever else ends it: the same call with `resume_training=True` goes on bit for bit.

        Arguments:
            training_batch_size: rows per step; 128 as in the reference setting
            learning_rate: peak of the learning rate
            validation_fraction: share of the rows held out
            stop_after_epochs: epochs without a better validation loss before training stops; by default it does not
            max_num_epochs: passes over the data
            clip_max_norm: largest norm of the gradient; None for no such limit
            weight_decay: decoupled, as in AdamW
            score_weight: where simulations have joint scores, nats per squared standardised score (the paper's alpha is
                1); measured from the noise of the scores if None, and zero to leave them out
            retrain_from_scratch: start from new weights although the trainer has trained before
            discard_prior_samples: leave out round 0 once later rounds are there
            show_train_summary: print the summary at the end
            checkpoint: a folder to keep the state of the training in (see `mfsbi.train.checkpoint`)
            checkpoint_minutes: time between two states
            resume_training: go on from the newest state in that folder, or begin if there is none

        Raises:
            RuntimeError: if no simulations were appended
            ValueError: if there are too few of them, an argument is out of range, the share of rows that were drawn
                at theta depends on theta, as it may where rounds have different shares, or what there is to resume is
                of another training
            ArithmeticError: if the loss becomes NaN or infinite
            OSError: if no state can be written
            SystemExit: after SIGTERM, once the state is written, if there is a folder for it
            KeyboardInterrupt: after Ctrl-C while the noise of joint scores is measured: there are no weights yet
        """
        settings = self._settings(
            score_weight,
            training_batch_size=training_batch_size,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            clip_max_norm=clip_max_norm,
            stop_after_epochs=stop_after_epochs,
        )
        training, validation = self._split(validation_fraction, discard_prior_samples=discard_prior_samples)
        order = torch.randperm(validation.rows, generator=torch.Generator().manual_seed(derived(self.seed, 4)))
        validation = validation.select(order.to(validation.theta.device))  # pairs are made of neighbours, of any round
        odds = 0.0
        if validation.from_theta is None and min(settings.training_batch_size, training.rows, validation.rows) < 2:
            raise ValueError(
                "Pairs are made of two rows: `training_batch_size` should be at least 2, and so should the rows held "
                f"out; got {settings.training_batch_size} and {validation.rows}."
            )
        if isinstance(training, Batch) and training.from_theta is not None:
            rows = joined([training, validation])
            require_constant_odds(rows.theta, cast(Tensor, rows.from_theta))
            odds = log_odds(cast(Tensor, rows.from_theta))
        loss = Alices(score_weight, log_odds=odds)
        phase = Phase(loss, ("network",), max_num_epochs)
        about = {"network": self.size, "score_weight": score_weight}
        keeping = Keeping(checkpoint, checkpoint_minutes, resume_training)
        plan = self._kept(Training((training, validation), [phase], settings), keeping, about)
        noise, size = self._noise(plan, score_weight)
        if noise is not None:
            limit = validation.theta.new_tensor(noise.variance)
            plan = plan._replace(schedule=[phase._replace(loss=replace(loss, limit=limit, size=size))])
        anew = self._begins_anew(plan, retrain_from_scratch)
        estimator = self._untrained(training.excerpt) if self.estimator is None or anew else self.estimator
        estimator = self._fit(estimator, plan, History(score_noise=noise, anew=anew))
        self._summarise(show_train_summary)
        return estimator

    def build_posterior(
        self,
        density_estimator: GoldenRatio | None = None,
        prior: Prior | None = None,
        sample_with: str = "mcmc",
        posterior_parameters: PosteriorParameters | None = None,
    ) -> NeuralPosterior:
        """Return sbi's posterior for the trained ratio; it owns a frozen copy of the estimator.

        Arguments:
            density_estimator: the trained estimator if not given; sbi calls ratio estimators so, too
            prior: the trainer's if not given
            sample_with: "mcmc", "rejection", "vi" or "importance"; what posterior_parameters say if they are given
            posterior_parameters: settings of the sampler, one of sbi's `...PosteriorParameters`

        Raises:
            RuntimeError: if nothing was trained
            ValueError: if sample_with is unknown
        """
        estimator = self._trained(density_estimator)
        frozen = deepcopy(estimator).requires_grad_(requires_grad=False).eval().to(self.device)

        def potential_with(own: ParameterPrior) -> RatioPotential:
            return RatioPotential(frozen, own, device=self.device)

        prior_of_posterior = self._prior_of_posterior(prior, estimator)
        return posterior_of(potential_with, prior_of_posterior, sample_with, posterior_parameters, self.device)

    def _learnable(self, simulations: Simulations) -> Simulations:
        """Return the simulations; joint log ratios come with rows drawn at the reference."""
        if simulations.joint_log_ratio is not None and simulations.from_theta is None:
            raise ValueError(
                "`joint_log_ratio` needs rows drawn at the reference as well: pass `from_theta`, True for rows drawn "
                "at theta. `mfsbi.gold.simulate(simulator, theta, theta_ref=..., from_theta=...)` makes both."
            )
        return simulations

    def _untrained(self, training: Batch) -> GoldenRatio:
        """Return an estimator with new weights, for data like these."""
        kind = training.theta.dtype
        warps = Warp.of_data(training.x, kind), Warp.of(training.theta)
        x, theta = warps[0](training.x), warps[1](training.theta)
        frames = x.mean(0), spreads(x), theta.mean(0), spreads(theta)
        with seeded(derived(self.seed, 3)):
            model = RatioModel(*frames, *self.size, warps)
        return GoldenRatio(model.to(kind)).to(self.device)
