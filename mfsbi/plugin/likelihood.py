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
import warnings
from functools import partial
from pathlib import Path

from mfsbi.checks import require_matching_rows, require_tensor, require_whole
from mfsbi.plugin.estimator import ManifoldEstimator
from mfsbi.plugin.host import NeuralPosterior
from mfsbi.plugin.posteriors import PosteriorParameters, posterior_of
from mfsbi.plugin.potential import ManifoldPotential
from mfsbi.plugin.rounds import require_labels
from mfsbi.plugin.specs import Spec
from mfsbi.plugin.trainer import AbstractTrainer, Training
from mfsbi.seeds import derived, seeded
from mfsbi.simulating.fingerprint import fingerprint
from mfsbi.simulations import Simulations
from mfsbi.train.checkpoint import Keeping
from mfsbi.train.guard import ChartGuard, ChartVerdict
from mfsbi.train.record import History, ScoreNoise
from mfsbi.train.schedules import Schedule, require_schedule, with_score
from mfsbi.types import Prior

__all__ = ["ManifoldNLE"]

DECAY = 0.1
"""Weight decay unless one is given, times the factor of each phase."""


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
        super().__init__(prior, seed, device, show_progress_bars)
        self.spec = density_estimator

    def __repr__(self) -> str:
        rows, trained = self.simulations.rows, self.estimator is not None
        return f"ManifoldNLE({self.spec!r}, seed={self.seed}, simulations={rows:,}, trained={trained})"

    def train(  # noqa: PLR0913 - sbi's signature
        self,
        schedule: Schedule | None = None,
        *,
        training_batch_size: int = 500,
        learning_rate: float = 7e-3,
        validation_fraction: float = 0.1,
        stop_after_epochs: int | None = None,
        max_num_epochs: int = 50,
        clip_max_norm: float | None = 5.0,
        weight_decay: float | None = None,
        score_weight: float | None = None,
        restarts: int = 2,
        retrain_from_scratch: bool = False,
        discard_prior_samples: bool = False,
        show_train_summary: bool = False,
        checkpoint: str | Path | None = None,
        checkpoint_minutes: float = 5.0,
        resume_training: bool = False,
    ) -> ManifoldEstimator:
        """Train and return the estimator; the trainer keeps it too, also after an error once an epoch was finished.

        Ctrl-C ends the training, not the program: the best weights so far stay and a warning says so. With `checkpoint`
        a training survives whatever else ends it: the same call with `resume_training=True` goes on bit for bit.

        Arguments:
            schedule: phases of training; `spec.schedule(max_num_epochs)` if not given, for most specs `sequential`
            training_batch_size: rows per step
            learning_rate: peak of the learning rate
            validation_fraction: share of the rows held out
            stop_after_epochs: epochs without a better validation loss before a phase stops; by default none does, since
                the learning rate falls to zero by its end and the last steps gain most
            max_num_epochs: passes over the data of the default schedule
            clip_max_norm: largest norm of the gradient; None for no such limit
            weight_decay: decoupled, as in AdamW; 0.1 if None, for densities on a manifold, while an ambient flow and
                phases that move a chart have none. A number holds, in the default schedule, for all phases that train
                a density and move no chart that is learned, an ambient flow's too; a schedule of your own says by
                `Phase.decay` which phases have it
            score_weight: where simulations have joint scores, nats per squared standardised score; measured from the
                noise of the scores if None, and zero for likelihood alone. A `Scandal` in the schedule keeps its own
            restarts: how often to start again if the chart collapsed, unless there is nothing but noise that it could
                have learned (see `mfsbi.train.guard`)
            retrain_from_scratch: start from new weights although the trainer has trained before
            discard_prior_samples: leave out round 0 once later rounds are there
            show_train_summary: print the summary at the end
            checkpoint: a folder to keep the state of the training in (see `mfsbi.train.checkpoint`)
            checkpoint_minutes: time between two states
            resume_training: go on from the newest state in that folder, or begin if there is none

        Returns:
            the estimator, in evaluation mode

        Raises:
            RuntimeError: if no simulations were appended
            ValueError: if there are too few of them, an argument is out of range, a weight decay is given and no phase
                has any, or what there is to resume is of another training
            ArithmeticError: if the loss becomes NaN or infinite
            OSError: if no state can be written
            SystemExit: after SIGTERM, once the state is written, if there is a folder for it
            KeyboardInterrupt: after Ctrl-C while the noise of joint scores is measured: there are no weights yet
        """
        require_whole("restarts", restarts)
        settings = self._settings(
            score_weight,
            training_batch_size=training_batch_size,
            learning_rate=learning_rate,
            weight_decay=DECAY if weight_decay is None else weight_decay,
            clip_max_norm=clip_max_norm,
            stop_after_epochs=stop_after_epochs,
        )
        rows = self._split(validation_fraction, discard_prior_samples=discard_prior_samples)
        some = rows[0].excerpt
        given, schedule = schedule, self._schedule(some.x.shape[1], max_num_epochs) if schedule is None else schedule
        require_schedule(schedule)
        if weight_decay:
            schedule = self._decaying(Training(rows, schedule, settings)) if given is None else schedule
            _require_decay(schedule, weight_decay)
        about = {"spec": _spec_told(self.spec), "score_weight": score_weight, "restarts": restarts}
        keeping = Keeping(checkpoint, checkpoint_minutes, resume_training)
        plan = self._kept(Training(rows, schedule, settings), keeping, about)
        noise, size = self._noise(plan, score_weight)
        if some.joint_score is not None and score_weight != 0:
            limit = None if noise is None else some.theta.new_tensor(noise.noise)
            plan = plan._replace(schedule=with_score(schedule, score_weight, limit, size))
        if self._begins_anew(plan, retrain_from_scratch):
            estimator = self._train_anew(plan, noise, restarts)
        else:
            estimator = self._built(plan, 0) if self.estimator is None else self.estimator
            estimator = self._fit(estimator, plan, History(score_noise=noise, anew=False))
        self._summarise(show_train_summary)
        return estimator

    def build_posterior(
        self,
        density_estimator: ManifoldEstimator | None = None,
        prior: Prior | None = None,
        sample_with: str = "mcmc",
        posterior_parameters: PosteriorParameters | None = None,
    ) -> NeuralPosterior:
        """Return sbi's posterior for the trained likelihood; it owns a frozen copy of the estimator.

        Arguments:
            density_estimator: the trained estimator if not given
            prior: the trainer's if not given
            sample_with: "mcmc", "rejection", "vi" or "importance"; what posterior_parameters say if they are given
            posterior_parameters: settings of the sampler, one of sbi's `...PosteriorParameters`; for MCMC
                the defaults are sbi's, but the start of each chain is drawn from 1,000 candidates instead of 10,000

        Returns:
            sbi's `MCMCPosterior`, `RejectionPosterior`, `VIPosterior` or `ImportanceSamplingPosterior`

        Raises:
            RuntimeError: if nothing was trained
            ValueError: if sample_with is unknown, or there is no prior
        """
        estimator = self._trained(density_estimator)
        potential_with = partial(ManifoldPotential, estimator, device=self.device)
        prior_of_posterior = self._prior_of_posterior(prior, estimator)
        return posterior_of(potential_with, prior_of_posterior, sample_with, posterior_parameters, self.device)

    def _learnable(self, simulations: Simulations) -> Simulations:
        """Return the rows that were drawn at theta."""
        if simulations.from_theta is None:
            return simulations
        for name, value in simulations.fields.items():
            require_tensor(name, value)
            require_matching_rows("from_theta", simulations.from_theta, name, value)
        require_labels(simulations.from_theta)
        return simulations.at_theta()

    def _schedule(self, data_dim: int, epochs: int) -> Schedule:
        """Return the default schedule for data with so many features."""
        return self.spec.suited(data_dim).schedule(epochs)

    def _decaying(self, plan: Training) -> Schedule:
        """Return the schedule with weight decay in phases that train the density and move no chart that is learned."""
        chart = self._built(plan, 0).model.chart
        learned = {"chart"} if any(weight.requires_grad for weight in chart.parameters()) else set()
        return [
            phase
            if phase.decay or "latent" not in phase.trains or learned & set(phase.trains)
            else phase._replace(decay=1.0)
            for phase in plan.schedule
        ]

    def _built(self, plan: Training, number: int) -> ManifoldEstimator:
        """Return an estimator with new weights, other ones for each number."""
        excerpt = plan.rows[0].excerpt.to("cpu")
        with seeded(derived(self.seed, 3, number)):
            return self.spec(excerpt.theta, excerpt.x).to(self.device)

    def _train_anew(self, plan: Training, noise: ScoreNoise | None, restarts: int) -> ManifoldEstimator:
        """Train from new weights, and again from others while the chart collapses."""
        collapses = [] if plan.start is None else plan.start.history.collapses
        for left in range(restarts - len(collapses), -1, -1):
            estimator = self._built(plan, restarts - left)
            guard = ChartGuard(estimator.model, plan.schedule, plan.rows, may_stop=left > 0)
            estimator = self._fit(estimator, plan, History(collapses=list(collapses), score_noise=noise), guard)
            if guard.verdict is None or not guard.verdict.collapsed:
                return estimator
            if guard.verdict.noise:
                warnings.warn(_noise_told(guard.verdict, estimator.model.chart.manifold_dim), stacklevel=3)
                return estimator
            collapses.append(str(guard.verdict))
            self.history.collapses = estimator.training_record["collapses"] = list(collapses)
            if left:
                warnings.warn(
                    f"The chart is not clearly better than a hyperplane: {guard.verdict}. Starting again; {left} left.",
                    stacklevel=3,
                )
        warnings.warn(
            f"The chart is not clearly better than a hyperplane after {restarts + 1} starts: {collapses[-1]}. "
            "Train longer, or take a larger `manifold_dim`: the data may have more dimensions than that.",
            stacklevel=3,
        )
        return estimator


def _noise_told(verdict: ChartVerdict, dims: int) -> str:
    """Return what to say of data that are noise about a hyperplane."""
    return (
        f"The chart is not clearly better than a hyperplane: {verdict}. What {dims} principal components leave looks "
        "like noise, which no chart can reconstruct, so there is no new start; the posterior loses what the dropped "
        "directions say about theta. Take a larger `manifold_dim`, or `AF`."
    )


def _require_decay(schedule: Schedule, weight_decay: float) -> None:
    """Raise ValueError unless some phase of a schedule has weight decay."""
    if not any(phase.decay for phase in schedule):
        raise ValueError(
            f"`weight_decay` should be zero or None, since no phase of this schedule has weight decay; got "
            f"{weight_decay}. Pass a schedule that has, e.g. `[phase._replace(decay=1.0) for phase in schedule]`, "
            "or leave `weight_decay` out."
        )


def _spec_told(spec: Spec) -> list[str]:
    """Return what a spec says of itself, and hashes of the functions in it, the same in every process."""
    own = [
        value for value in vars(spec).values() if callable(value) and not type(value).__module__.startswith("mfsbi.")
    ]
    return [re.sub(r" at 0x[0-9a-f]+", "", repr(spec)), *map(fingerprint, own)]
