"""What the trainers of mfsbi share: simulations in rounds, how they are split, and the record of what was learned."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from mfsbi.checks import require_kind, require_not_negative, require_positive, require_seed
from mfsbi.plugin.estimator import ManifoldEstimator
from mfsbi.plugin.host import NeuralPosterior, RatioEstimator
from mfsbi.plugin.parameter_prior import ParameterPrior, parameter_prior
from mfsbi.plugin.posteriors import PosteriorParameters
from mfsbi.plugin.reach import Reach, warn_of_outliers, warn_of_prior, warn_of_simulations
from mfsbi.plugin.rounds import Rounds
from mfsbi.seeds import derived, seeded
from mfsbi.simulating.fingerprint import fingerprint
from mfsbi.simulations import Simulations
from mfsbi.store import Store
from mfsbi.train.checkpoint import Checkpoints, Keeping
from mfsbi.train.data import Batch
from mfsbi.train.loop import fit, require_phases
from mfsbi.train.losses import Loss, as_loss
from mfsbi.train.noise import ScoreSize, score_noise
from mfsbi.train.ranks import Ranks
from mfsbi.train.record import History, ScoreNoise, Settings
from mfsbi.train.schedules import Schedule
from mfsbi.train.state import Snapshot
from mfsbi.train.stream import TrainingData
from mfsbi.types import Prior
from mfsbi.warp import require_digits

__all__ = ["AbstractTrainer", "Training"]

EstimatorT = TypeVar("EstimatorT", bound=ManifoldEstimator | RatioEstimator)
TrainerT = TypeVar("TrainerT", bound="AbstractTrainer")


class Training(NamedTuple):
    """A training to come.

    Arguments:
        rows: to learn from, and to judge by
        schedule: phases in order
        settings: how to optimise
        checkpoints: where it is kept on disk, if anywhere
    """

    rows: tuple[TrainingData, Batch]
    schedule: Schedule
    settings: Settings
    checkpoints: Checkpoints | None = None

    @property
    def start(self) -> Snapshot | None:
        """Where an earlier training goes on, if one does."""
        return None if self.checkpoints is None else self.checkpoints.start


class AbstractTrainer(ABC, Generic[EstimatorT]):
    """A trainer in sbi's three verbs: append_simulations, train, build_posterior.

    Arguments:
        prior: distribution of theta, as sbi accepts them; None for data without parameters
        seed: of the split, the first weights and the order of the rows
        device: where to train
        show_progress_bars: True, False, or None for "only on a terminal"

    Raises:
        ValueError: if the seed is negative, there is no such device, or a parameter has an offset that costs its digits
        TypeError: if the prior is no distribution, or the seed no integer
    """

    estimator_type: type[EstimatorT]
    estimator: EstimatorT | None
    discrete = False
    """Whether discrete features of x are no trouble."""

    def __init__(self, prior: Prior | None, seed: int, device: str, show_progress_bars: bool | None) -> None:  # noqa: FBT001
        require_seed(seed)
        _require_device(device)
        self.seed = seed
        self.device = device
        self.show_progress_bars = show_progress_bars
        self.prior, self.parameter_dim = self._processed(prior)
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

    @abstractmethod
    def build_posterior(
        self,
        density_estimator: EstimatorT | None = None,
        prior: Prior | None = None,
        sample_with: str = "mcmc",
        posterior_parameters: PosteriorParameters | None = None,
    ) -> NeuralPosterior:
        """Return sbi's posterior for what was trained."""

    def with_seed(self, seed: int) -> "AbstractTrainer[EstimatorT]":
        """Return a trainer of the same simulations with another seed, which has not trained.

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

    def _learnable(self, simulations: Simulations) -> Simulations:
        """Return the simulations that the trainer can learn from, or raise ValueError if it cannot learn from them."""
        return simulations

    def _processed(self, prior: Prior | None) -> tuple[ParameterPrior | None, int]:
        """Return a prior as samplers want it, a copy on the processor, and how many parameters it has."""
        if prior is None:
            return None, 0
        processed = parameter_prior(prior).to("cpu")
        return processed, processed.event_shape[0]

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
        processed, parameters = (self.prior, self.parameter_dim) if prior is None else self._processed(prior)
        if parameters != self.parameter_dim:
            raise ValueError(f"`prior` should have the trainer's {self.parameter_dim} parameters; it has {parameters}.")
        reach = Reach.of_record(estimator.training_record)
        if processed is not None and reach is not None and (prior is not None or estimator is not self._told):
            warn_of_prior(processed, reach, "the posterior's prior")
        return processed

    def _settings(self, score_weight: float | None, **settings: Any) -> Settings:  # noqa: ANN401 - Settings checks them
        """Return how to optimise, with the trainer's seed and manners."""
        if score_weight is not None:
            require_not_negative("score_weight", score_weight)
        return Settings(seed=derived(self.seed, 1), show_progress_bars=self.show_progress_bars, **settings)

    def _split(self, fraction: float, *, discard_prior_samples: bool) -> tuple[TrainingData, Batch]:
        """Return the rows to train on and those held out, on the device; warn of what they cannot tell."""
        training, validation = self.simulations.split(
            fraction, derived(self.seed, 2), discard_prior_samples=discard_prior_samples
        )
        if Ranks.current().first:
            all_from_prior = all(part.number == 0 for part in self.simulations)
            excerpt = training.excerpt.to("cpu")
            warn_of_simulations(excerpt, self.prior, all_from_prior=all_from_prior, discrete=self.discrete)
        return training.to(self.device), validation.to(self.device)

    def _kept(self, plan: Training, keeping: Keeping, about: dict[str, Any]) -> Training:
        """Return the plan with a place on disk, if one is wanted; `about` is what tells it from other trainings."""
        require_positive("checkpoint_minutes", keeping.minutes)
        if keeping.folder is None:
            if keeping.resume:
                raise ValueError("`resume_training` needs `checkpoint`, the folder where an earlier training was kept.")
            return plan
        about = about | {
            "mfsbi": version("mfsbi"),
            "trainer": type(self).__name__,
            "schedule": [phase._asdict() | {"loss": _told(phase.loss)} for phase in plan.schedule],
            "settings": asdict(plan.settings) | {"show_progress_bars": None},
            "simulations": self.simulations.digest(),
            "rows": [part.rows for part in plan.rows],
        }
        checkpoints = Checkpoints(keeping.folder, about, minutes=keeping.minutes, resume=keeping.resume)
        return plan._replace(checkpoints=checkpoints)

    def _begins_anew(self, plan: Training, wanted: bool) -> bool:  # noqa: FBT001
        """Return whether a training begins from new weights; one that is resumed, whether it did."""
        return self.estimator is None or wanted if plan.start is None else plan.start.history.anew

    def _noise(self, plan: Training, weight: float | None) -> tuple[ScoreNoise | None, ScoreSize | None]:
        """Return how noisy joint scores are, and how large, if there are any and their weight depends on it."""
        training = plan.rows[0].excerpt
        if training.joint_score is None or weight is not None:
            return None, None
        if plan.start is None:
            return score_noise(*plan.rows, plan.settings)
        noise, state, size = plan.start.history.score_noise, plan.start.part("size."), None
        if state:
            with seeded(0):  # its first weights are of no consequence
                size = ScoreSize(training.theta.shape[1]).to(training.theta)
            size.load_state_dict(state)
        return noise, size

    def _fit(
        self,
        estimator: EstimatorT,
        plan: Training,
        history: History,
        keep_going: Callable[[int], bool] | None = None,
    ) -> EstimatorT:
        """Train an estimator and keep it, with its history, if it learned anything, however the training ends.

        Of a training that was interrupted before its first epoch was finished nothing is kept if there is an earlier
        one, whose estimator is returned.
        """
        require_phases(plan.schedule, estimator.model)  # before the history of an earlier training is given up
        _require_type(estimator, plan.rows[0].excerpt.theta.dtype)
        estimator.to(self.device)
        rows = plan.rows
        if isinstance(rows[0], Batch):  # an earlier training may have needed other digits
            as_data = estimator.model.as_data
            rows = replace(rows[0], x=as_data(rows[0].x)), replace(rows[1], x=as_data(rows[1].x))
        self.history = history
        try:
            fit(
                estimator.train().model,
                rows,
                plan.schedule,
                plan.settings,
                keep_going=keep_going,
                history=history,
                checkpoints=plan.checkpoints,
            )
        finally:
            estimator.eval()
            if history.epochs or (history.interrupted and self.estimator is None):
                self.estimator = estimator
            elif history.interrupted:
                warnings.warn("Nothing was learned anew: the earlier estimator is kept.", stacklevel=3)
            if self.estimator is estimator:
                about = {"simulations": self.simulations.rows, "sha256": self.simulations.digest()}
                about["reach"] = Reach.of(plan.rows[0].excerpt)._asdict()
                self._told = estimator
                estimator.training_record = history.as_record() | about
        return estimator if self.estimator is None else self.estimator

    def _summarise(self, wanted: bool) -> None:  # noqa: FBT001
        if wanted and Ranks.current().first:
            tqdm.write(str(self.history))


def _told(loss: Loss) -> str:
    """Return the name of a loss, a hash of one that is not ours, and the weight of the score if it was given."""
    loss = as_loss(loss)
    weight, base = loss.weight, loss.origin
    own = getattr(base, "__module__", "").partition(".")[0] == "mfsbi"
    name = loss.__name__ if own else f"{loss.__name__} {fingerprint(base)}"
    return name if weight is None else f"{name} of weight {weight}"


def _require_type(estimator: torch.nn.Module, kind: torch.dtype) -> None:
    """Raise ValueError unless the weights have the type of the simulations."""
    found = next(estimator.parameters()).dtype
    if found != kind:
        raise ValueError(
            f"The estimator has weights of {found}, and simulations are converted to torch's default type, {kind}: "
            "set that by `torch.set_default_dtype` to what it was, or train with `retrain_from_scratch=True`."
        )


def _require_device(device: str) -> None:
    """Raise ValueError unless torch has that device."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"`device` should be one that torch has here, such as 'cpu'; got {device!r}. {reason}"
        ) from error
