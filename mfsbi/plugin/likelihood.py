"""Neural likelihood estimation on manifolds, in sbi's three verbs.

    trainer = ManifoldNLE(prior, MFlow(manifold_dim=2), seed=0)
    trainer.append_simulations(theta, x)
    estimator = trainer.train(schedule=sequential(epochs=50))
    posterior = trainer.build_posterior()

The trainer differs from sbi's in what it can do while training: phases that move chart and density by different
losses, a learning rate that ends at zero, a guard against charts that never found the manifold. Argument names and
their meaning are sbi's where sbi has them.
"""

import re
from typing import cast

from mfsbi.checks import require_matching_rows, require_tensor
from mfsbi.models import AbstractModel
from mfsbi.plugin.estimator import ManifoldEstimator
from mfsbi.plugin.parameter_prior import ParameterPrior
from mfsbi.plugin.potential import ManifoldPotential
from mfsbi.plugin.rounds import require_labels
from mfsbi.plugin.specs import Spec
from mfsbi.plugin.trainer import AbstractTrainer, Request
from mfsbi.seeds import derived, seeded
from mfsbi.simulating.fingerprint import fingerprint
from mfsbi.simulations import Simulations
from mfsbi.train.data import Split
from mfsbi.train.losses import Kind, as_loss
from mfsbi.train.record import ScoreNoise
from mfsbi.train.schedules import Schedule, Settings, require_schedule, with_score
from mfsbi.train.training import Model
from mfsbi.types import Prior

__all__ = ["ManifoldNLE"]


class ManifoldNLE(AbstractTrainer[ManifoldEstimator]):
    """Neural likelihood estimation with a model on a manifold.

    Arguments:
        prior: distribution of theta, as sbi accepts them; None for data without parameters, theta of shape `(rows, 0)`
        density_estimator: a spec such as `MFlow(manifold_dim=2)`
        seed: of the split, the first weights and the order of the rows; the same seed gives the same result
        device: where to train
        show_progress_bars: True, False, or None for "only on a terminal"

    Example:
        >>> from mfsbi import AF, ManifoldNLE
        >>> from simulators.polynomial import PolynomialSurface
        >>> surface = PolynomialSurface()
        >>> theta = surface.prior.sample((200,))
        >>> trainer = ManifoldNLE(surface.prior, AF(), seed=0)
        >>> trainer = trainer.append_simulations(theta, surface.simulate(theta, seed=0))
        >>> posterior = trainer.train(max_num_epochs=2) and trainer.build_posterior()
    """

    estimator_type = ManifoldEstimator
    settings = Settings(training_batch_size=500, learning_rate=7e-3, weight_decay=0.1)
    restarts = 2

    def __init__(
        self,
        prior: Prior | None,
        density_estimator: Spec,
        *,
        seed: int = 0,
        device: str = "cpu",
        show_progress_bars: bool | None = None,
    ) -> None:
        if not isinstance(density_estimator, Spec):
            raise TypeError(
                "`density_estimator` should be a spec such as MFlow(manifold_dim=2); "
                f"got {type(density_estimator).__name__}."
            )
        super().__init__(prior, seed=seed, device=device, show_progress_bars=show_progress_bars)
        self.spec = density_estimator

    def __repr__(self) -> str:
        rows, trained = self.simulations.rows, self.estimator is not None
        return f"ManifoldNLE({self.spec!r}, seed={self.seed}, simulations={rows:,}, trained={trained})"

    def _learnable(self, simulations: Simulations) -> Simulations:
        """Return the rows that were drawn at theta."""
        if simulations.from_theta is None:
            return simulations
        require_tensor("from_theta", simulations.from_theta)
        for name, value in simulations.fields.items():
            require_tensor(name, value)
            require_matching_rows("from_theta", simulations.from_theta, name, value)
        require_labels(simulations.from_theta)
        return simulations.at_theta()

    def _schedule(self, request: Request, schedule: Schedule | None, epochs: int | None) -> Schedule:
        given = schedule is not None
        if schedule is None:
            schedule = self.spec.suited(request.data[0].excerpt.x.shape[1]).schedule(epochs)
        require_schedule(schedule)
        for loss in (as_loss(phase.loss) for phase in schedule):
            if loss.kind is Kind.RATIO:
                raise TypeError(
                    f"`Phase.loss` should be a loss of a likelihood, such as `latent_nll`; got `{loss.__name__}`, by "
                    "which the trainer `ALICES` learns a ratio."
                )
        return self._decaying(request, schedule) if request.weight_decay and not given else schedule

    def _decaying(self, request: Request, schedule: Schedule) -> Schedule:
        """Return the schedule with weight decay in phases that train the density and move no chart that is learned."""
        chart = self._built(request.data, 0).chart
        learned = {"chart"} if any(weight.requires_grad for weight in chart.parameters()) else set()
        return [
            phase
            if phase.decay or not phase.moves("latent") or learned & set(phase.trains)
            else phase._replace(decay=1.0)
            for phase in schedule
        ]

    def _described(self, restarts: int) -> dict[str, object]:
        foreign = (value for value in vars(self.spec).values() if not type(value).__module__.startswith("mfsbi."))
        functions = map(fingerprint, filter(callable, foreign))
        return {"spec": [re.sub(r" at 0x[0-9a-f]+", "", repr(self.spec)), *functions], "restarts": restarts}

    def _scored(self, request: Request, schedule: Schedule) -> Schedule:
        return with_score(schedule, request.score_weight)

    def _limit(self, noise: ScoreNoise) -> list[float]:
        return noise.noise

    def _built(self, data: Split, number: int) -> AbstractModel:
        excerpt = data[0].excerpt.to("cpu")
        with seeded(derived(self.seed, 3, number)):
            return self.spec.build(excerpt.theta, excerpt.x).to(self.device)

    def _wrapped(self, model: Model) -> ManifoldEstimator:
        return ManifoldEstimator(cast(AbstractModel, model), spec=self.spec).eval()

    def _potential(self, estimator: ManifoldEstimator, prior: ParameterPrior) -> ManifoldPotential:
        return ManifoldPotential(estimator, prior, device=self.device)
