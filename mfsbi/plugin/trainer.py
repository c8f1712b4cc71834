"""What the trainers of mfsbi share: sbi's three verbs, and the record of what was learned."""

from abc import ABC, abstractmethod
from copy import copy
from dataclasses import replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from torch import Tensor
from tqdm.auto import tqdm

from mfsbi.checks import require_device, require_kind, require_not_negative, require_seed, require_whole
from mfsbi.plugin.estimator import ManifoldEstimator
from mfsbi.plugin.host import BasePotential, NeuralPosterior, RatioEstimator
from mfsbi.plugin.parameter_prior import ParameterPrior, parameter_prior
from mfsbi.plugin.posteriors import PosteriorParameters, posterior_of
from mfsbi.plugin.rounds import Rounds
from mfsbi.seeds import derived, seeded
from mfsbi.simulating.fingerprint import agree, fingerprint
from mfsbi.simulations import Simulations
from mfsbi.store import Store
from mfsbi.train.checkpoint import opened
from mfsbi.train.data import Split
from mfsbi.train.loop import require_phases
from mfsbi.train.losses import Loss, as_loss
from mfsbi.train.ranks import Ranks
from mfsbi.train.reach import Reach, warn_of_outliers, warn_of_prior, warn_of_simulations
from mfsbi.train.record import History, ScoreNoise
from mfsbi.train.schedules import Schedule, Settings, measured, needs_noise, require_decay, unfolded, with_noise
from mfsbi.train.training import Model, Training, scores_of
from mfsbi.types import Prior
from mfsbi.warp import require_digits

__all__ = ["AbstractTrainer", "Request"]

EstimatorT = TypeVar("EstimatorT", bound=ManifoldEstimator | RatioEstimator)
TrainerT = TypeVar("TrainerT", bound="AbstractTrainer")


class Request(NamedTuple):
    """What a training was asked for.

    Arguments:
        data: rows to learn from, and rows to judge by
        settings: how to optimise
        weight_decay: if it was given; settings have that of the trainer otherwise
        score_weight: of joint scores; by their noise if None
    """

    data: Split
    settings: Settings
    weight_decay: float | None
    score_weight: float | None


class AbstractTrainer(ABC, Generic[EstimatorT]):
    """A trainer in sbi's three verbs: append_simulations, train, build_posterior.

    Arguments:
        prior: distribution of theta, as sbi accepts them; None for data without parameters
        seed: of the split, the first weights and the order of the rows
        device: where to train
        show_progress_bars: True, False, or None for "only on a terminal"

    Raises:
        ValueError: if the seed is negative, there is no such device, or a parameter has an offset that costs its digits
        TypeError: if the prior is not a distribution, or the seed not an integer
    """

    estimator_type: type[EstimatorT]
    estimator: EstimatorT | None
    settings: Settings
    """How to optimise unless somebody says otherwise."""
    restarts: int | None = None
    """New starts of a chart that has collapsed, unless another number is given; None where there is no chart."""
    discrete = False
    """Whether discrete features of x are no trouble."""

    def __init__(self, prior: Prior | None, *, seed: int, device: str, show_progress_bars: bool | None) -> None:
        require_seed(seed)
        require_device(device)
        self.seed = seed
        self.device = device
        self.show_progress_bars = show_progress_bars
        self.prior = None if prior is None else parameter_prior(prior).to("cpu")
        self.parameter_dim = 0 if self.prior is None else self.prior.event_shape[0]
        if self.prior is not None:
            with seeded(0):
                require_digits("theta", self.prior.sample((1000,)))
        self.estimator = None
        self._told: EstimatorT | None = None  # the estimator whose simulations were compared with the prior
        self.history = History()
        self.simulations = Rounds(self.prior, self.parameter_dim)

    def append_simulations(
        self: TrainerT,
        theta: Tensor | Simulations | Store,
        x: Tensor | None = None,
        *,
        joint_score: Tensor | None = None,
        joint_log_ratio: Tensor | None = None,
        from_theta: Tensor | None = None,
        exclude_invalid_x: bool = False,
        from_round: int = 0,
    ) -> TrainerT:
        """Keep simulations for training and return the trainer.

        Arguments:
            theta: shape `(rows, parameter)`, inside the prior's support; or alone, with all that belongs to it:
                `Simulations`, as `simulate`, `mine` and `read_madminer` of `mfsbi.gold` return them, or a store, which
                is streamed if it takes more than 256 MiB
            x: shape `(rows, data)`; both are converted to torch's default type, x unless offsets need its digits
            joint_score: d/dtheta log p(x, z|theta) of each run, shape `(rows, parameter)`, in the units of theta; a
                likelihood then learns by the SCANDAL loss, a ratio as ALICES (`mfsbi.train.losses`). Finite, also
                where x was drawn at a reference
            joint_log_ratio: log p(x, z|theta) - log p(x, z|reference) of each run, shape `(rows,)`; for ratios
            from_theta: whether x was drawn at theta, or else at the reference, shape `(rows,)`; all at theta if None.
                The reference is a point, or a distribution of points, that does not depend on theta. A likelihood
                learns from the rows drawn at theta alone
            exclude_invalid_x: drop rows whose x holds NaN or infinity, with their gold and a warning, instead of
                refusing them; what is learned is then the likelihood of valid data
            from_round: the round they were drawn in; 0 for the prior

        Raises:
            TypeError: if something is not a tensor
            ValueError: if rows do not match, feature counts differ from the prior's or from earlier simulations,
                a value is NaN or infinite, theta lies outside the prior, joint scores do not average to zero, or joint
                log ratios do not predict how many rows were drawn at the reference
        """
        others = {"joint_score": joint_score, "joint_log_ratio": joint_log_ratio, "from_theta": from_theta}
        given = [name for name, value in {"x": x, **others}.items() if value is not None]
        if isinstance(theta, Store | Simulations) and given:
            whole = "A store brings" if isinstance(theta, Store) else "`Simulations` bring"
            raise ValueError(f"{whole} x and its gold: pass it alone, without {', '.join(given)}.")
        if isinstance(theta, Store):
            self.simulations.append_store(theta, from_round)
            return self
        if not isinstance(theta, Simulations):
            if x is None:
                raise ValueError("`x` is missing: pass theta and x, or simulations or a store alone.")
            theta = Simulations(theta, x, **others)
        self.simulations.append(self._learnable(theta), from_round, exclude_invalid_x=exclude_invalid_x)
        warn_of_outliers(self.simulations[-1].x)
        return self

    def train(  # noqa: PLR0913 - sbi's signature
        self,
        schedule: Schedule | None = None,
        *,
        training_batch_size: int | None = None,
        learning_rate: float | None = None,
        validation_fraction: float = 0.1,
        stop_after_epochs: int | None = None,
        max_num_epochs: int | None = None,
        clip_max_norm: float | None = 5.0,
        weight_decay: float | None = None,
        score_weight: float | None = None,
        restarts: int | None = None,
        retrain_from_scratch: bool = False,
        discard_prior_samples: bool = False,
        show_train_summary: bool = False,
        checkpoint: str | Path | None = None,
        checkpoint_minutes: float = 5.0,
        resume_training: bool = False,
    ) -> EstimatorT:
        """Train and return the estimator in evaluation mode.

        The trainer keeps it too, also after an error once an epoch was finished. Ctrl-C ends the training, not the
        program: the best weights so far stay and a warning says so. With `checkpoint` a training survives whatever else
        ends it: the same call with `resume_training=True` goes on bit for bit.

        Arguments:
            schedule: phases of training; for a `ManifoldNLE` `spec.schedule(max_num_epochs)` if None, for most specs
                `sequential`; for `ALICES` one phase, `Phase(Alices(), ("network",), max_num_epochs)`
            training_batch_size: rows per step; if None 500, or 128 for `ALICES`
            learning_rate: peak of the learning rate; if None 0.007, or 0.002 for `ALICES`
            validation_fraction: share of the rows held out
            stop_after_epochs: epochs without a better validation loss before a phase stops; None for no such end
            max_num_epochs: passes over the data of the default schedule; None for as many as they ask for, by
                `mfsbi.train.course`, and for `ALICES` 50
            clip_max_norm: largest norm of the gradient; None for no such limit
            weight_decay: decoupled, as in AdamW. If None, 0.1 for densities on a manifold, and none for an ambient
                flow, for phases that move a chart and for `ALICES`. A number holds, in the default schedule, for all
                phases that train a density and move no chart that is learned, an ambient flow's too; a schedule of your
                own says by `Phase.decay` which phases have it
            score_weight: where simulations have joint scores, nats per squared standardised score (alpha is 1 in the
                paper of ALICES); measured from the noise of the scores if None, and zero to leave them out. What a
                `Scandal` or `Alices` in the schedule says, of weight, limit, size or log odds, it keeps
            restarts: how often to start again if the chart collapsed, unless there is nothing but noise that it could
                have learned (see `mfsbi.train.guard`); 2 if None. A ratio has no chart
            retrain_from_scratch: start from new weights although the trainer has trained before
            discard_prior_samples: leave out round 0 once later rounds are there
            show_train_summary: print the summary at the end
            checkpoint: a folder to keep the state of the training in (see `mfsbi.train.checkpoint`)
            checkpoint_minutes: time between two states
            resume_training: go on from the newest state in that folder, or begin if there is none

        Raises:
            RuntimeError: if no simulations were appended
            ValueError: if there are too few of them, an argument is out of range, a weight decay is given and no phase
                has any, what there is to resume is of another training, or the share of a ratio's rows that were drawn
                at theta depends on theta, as it may where rounds have different shares
            TypeError: if the schedule holds what this trainer cannot minimise, or restarts are given for a ratio
            ArithmeticError: if the loss becomes NaN or infinite
            OSError: if no state can be written
            SystemExit: after SIGTERM, once the state is written, if there is a folder for it
            KeyboardInterrupt: after Ctrl-C while the noise of joint scores is measured: there are no weights yet
        """
        if score_weight is not None:
            require_not_negative("score_weight", score_weight)
        starts = self._restarts(restarts)
        given: dict[str, Any] = {"training_batch_size": training_batch_size, "learning_rate": learning_rate}
        given |= {"weight_decay": weight_decay, "stop_after_epochs": stop_after_epochs}
        given |= {"seed": derived(self.seed, 1), "show_progress_bars": self.show_progress_bars}
        given = {name: value for name, value in given.items() if value is not None}
        settings = replace(self.settings, **given, clip_max_norm=clip_max_norm)
        data = self._split(validation_fraction, discard_prior_samples=discard_prior_samples)
        request = Request(data, settings, weight_decay, score_weight)
        phases = self._schedule(request, schedule, max_num_epochs)
        require_decay(phases, weight_decay)
        build = cache(partial(self._built, data))
        learned = None if self.estimator is None else self.estimator.to(self.device).model
        require_phases(phases, learned or build(0))
        phases = unfolded(measured(phases, data[0].rows, settings.training_batch_size), learned or build(0))
        about = partial(self._about, request, phases, starts)
        kept = opened(checkpoint, about, minutes=checkpoint_minutes, resume=resume_training, agree=agree)
        noise = None
        if data[0].excerpt.joint_score is not None and score_weight != 0:
            phases = self._scored(request, phases)
            if score_weight is None and needs_noise(phases):
                noise, size = scores_of(data, settings, None if kept is None else kept.start)
                phases = with_noise(phases, data[1].theta.new_tensor(self._limit(noise)), size)
        training = Training(build, data, phases, settings, kept, learned, noise)
        try:
            training.run(starts, retrain=retrain_from_scratch)
        finally:
            self._take(training)
        if show_train_summary and Ranks.current().first:
            tqdm.write(str(self.history))
        return (self._wrapped(training.model) if self.estimator is None else self.estimator).eval()

    def build_posterior(
        self,
        density_estimator: EstimatorT | None = None,
        prior: Prior | None = None,
        sample_with: str = "smc",
        posterior_parameters: PosteriorParameters | None = None,
    ) -> NeuralPosterior:
        """Return sbi's posterior for what was trained; it owns a frozen copy of the estimator.

        Arguments:
            density_estimator: the trained estimator if not given; sbi calls ratio estimators so, too
            prior: the trainer's if not given
            sample_with: "smc", "mcmc", "rejection", "vi" or "importance"; what posterior_parameters say if given
            posterior_parameters: settings of the sampler, one of sbi's `...PosteriorParameters`; for MCMC
                the defaults are sbi's, but the start of each chain is drawn from 1,000 candidates instead of 10,000

        Returns:
            sbi's `MCMC-`, `Rejection-`, `VI-` or `ImportanceSamplingPosterior`; for "smc" the first, drawing by `SMC`

        Raises:
            RuntimeError: if nothing was trained
            ValueError: if sample_with is unknown, or there is no prior
        """
        estimator = self._trained(density_estimator)
        potential_with = partial(self._potential, estimator)
        prior_of_posterior = self._prior_of_posterior(prior, estimator)
        return posterior_of(potential_with, prior_of_posterior, sample_with, posterior_parameters, self.device)

    def with_seed(self, seed: int) -> "AbstractTrainer[EstimatorT]":
        """Return a trainer of the same simulations with another seed, which has not trained.

        Arguments:
            seed: of the split, the first weights and the order of the rows

        Raises:
            ValueError: if the seed is negative
        """
        require_seed(seed)
        other = copy(self)
        other.seed, other.estimator, other.history, other._told = seed, None, History(), None
        return other

    @property
    def summary(self) -> dict[str, list[float]]:
        """Losses of each epoch of the last training, by the names sbi uses."""
        epochs = self.history.epochs
        return {
            "epochs_trained": [len(epochs)],
            "training_loss": [epoch.training_loss for epoch in epochs],
            "validation_loss": [epoch.validation_loss for epoch in epochs],
            "epoch_durations_sec": [epoch.seconds for epoch in epochs],
        }

    def _trained(self, estimator: EstimatorT | None) -> EstimatorT:
        """Return the estimator given, or else the trainer's."""
        estimator = self.estimator if estimator is None else estimator
        if estimator is None:
            raise RuntimeError("There is no trained estimator yet: call `train()` before `build_posterior()`.")
        wanted = f"an estimator of {type(self).__name__}"
        require_kind("density_estimator", estimator, self.estimator_type, wanted)
        return estimator

    def _prior_of_posterior(self, prior: Prior | None, estimator: EstimatorT) -> ParameterPrior | None:
        """Return the trainer's prior, or another one of as many parameters; warn if it reaches beyond simulations."""
        processed = self.prior if prior is None else parameter_prior(prior).to("cpu")
        found = 0 if processed is None else processed.event_shape[0]
        if found != self.parameter_dim:
            raise ValueError(f"`prior` should have the trainer's {self.parameter_dim} parameters; it has {found}.")
        reach = Reach.of_record(estimator.training_record)
        if processed is not None and reach is not None and (prior is not None or estimator is not self._told):
            warn_of_prior(processed, reach, "the posterior's prior")
        return processed

    def _split(self, fraction: float, *, discard_prior_samples: bool) -> Split:
        """Return the rows to train on and those held out, on the device; warn of what they cannot tell."""
        training, validation = self.simulations.split(
            fraction, derived(self.seed, 2), discard_prior_samples=discard_prior_samples
        )
        if Ranks.current().first:
            all_from_prior = all(part.number == 0 for part in self.simulations)
            excerpt = training.excerpt.to("cpu")
            warn_of_simulations(excerpt, self.prior, all_from_prior=all_from_prior, discrete=self.discrete)
        return training.to(self.device), validation.to(self.device)

    def _restarts(self, wanted: int | None) -> int:
        """Return how often to start again."""
        if wanted is not None and self.restarts is None:
            raise TypeError(f"`restarts` are new starts of a chart, and a ratio has none: leave it out; got {wanted}.")
        wanted = self.restarts or 0 if wanted is None else wanted
        require_whole("restarts", wanted)
        return wanted

    def _about(self, request: Request, schedule: Schedule, restarts: int) -> dict[str, object]:
        """Return what tells a training from others."""
        return self._described(restarts) | {
            "score_weight": request.score_weight,
            "mfsbi": version("mfsbi"),
            "trainer": type(self).__name__,
            "schedule": [phase._asdict() | {"loss": _told(phase.loss)} for phase in schedule],
            "settings": request.settings.described,
            "simulations": self.simulations.digest(),
            "rows": [part.rows for part in request.data],
        }

    def _take(self, training: Training) -> None:
        """Keep what a training has learned, and its record."""
        if training.history is not None:
            self.history = training.history
        if training.record is None or training.learned is None:
            return
        if self.estimator is None or self.estimator.model is not training.learned:
            self.estimator = self._wrapped(training.learned)
        about = {"simulations": self.simulations.rows, "sha256": self.simulations.digest()}
        about["reach"] = Reach.of(training.data[0].excerpt)._asdict()
        self._told = self.estimator
        self.estimator.training_record = training.record.as_record() | about

    @abstractmethod
    def _learnable(self, simulations: Simulations) -> Simulations:
        """Return the simulations that the trainer can learn from, or raise ValueError if it cannot learn from them."""

    @abstractmethod
    def _schedule(self, request: Request, schedule: Schedule | None, epochs: int | None) -> Schedule:
        """Return the schedule, the default of so many epochs if none is given, once it is known to suit the data."""

    @abstractmethod
    def _described(self, restarts: int) -> dict[str, object]:
        """Return what is trained, as JSON can hold it."""

    @abstractmethod
    def _scored(self, request: Request, schedule: Schedule) -> Schedule:
        """Return the schedule with joint scores in its losses."""

    @abstractmethod
    def _limit(self, noise: ScoreNoise) -> list[float]:
        """Return the limit of the noise of joint scores, parameter by parameter, as its losses have it."""

    @abstractmethod
    def _built(self, data: Split, number: int) -> Model:
        """Return a model with new weights for such data, other ones for each number."""

    @abstractmethod
    def _wrapped(self, model: Model) -> EstimatorT:
        """Return a model in the shape sbi speaks."""

    @abstractmethod
    def _potential(self, estimator: EstimatorT, prior: ParameterPrior) -> BasePotential:
        """Return the potential of an estimator, of which it owns a frozen copy."""


def _told(loss: Loss) -> str:
    """Return the name of a loss, a hash of one that is not ours, and the weight of the score if it was given."""
    loss = as_loss(loss)
    weight, base = loss.weight, loss.origin
    own = getattr(base, "__module__", "").partition(".")[0] == "mfsbi"
    name = loss.__name__ if own else f"{loss.__name__} {fingerprint(base)}"
    return name if weight is None else f"{name} of weight {weight}"
