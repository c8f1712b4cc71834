"""Neural likelihood estimation on manifolds, in sbi's three verbs.

    trainer = ManifoldNLE(prior, MFlow(manifold_dim=2), seed=0)
    trainer.append_simulations(theta, x)
    estimator = trainer.train(schedule=sequential(epochs=50))
    posterior = trainer.build_posterior()

The trainer differs from sbi's in what it can do while training: phases that move chart and density by different
losses, a learning rate that ends at zero, a guard against charts that never found the manifold. Argument names and
their meaning are sbi's where sbi has them.
"""

import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict
from hashlib import sha256
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Generator, Tensor
from tqdm.auto import tqdm

from mfsbi.checks import require_features, require_finite, require_matching_rows
from mfsbi.plugin.estimator import ManifoldEstimator
from mfsbi.plugin.host import (
    ImportanceSamplingPosterior,
    ImportanceSamplingPosteriorParameters,
    MCMCPosterior,
    MCMCPosteriorParameters,
    NeuralPosterior,
    RejectionPosterior,
    RejectionPosteriorParameters,
    VIPosterior,
    VIPosteriorParameters,
    mcmc_transform,
    move_distribution_to_device,
    process_prior,
    within_support,
)
from mfsbi.plugin.potential import ManifoldPotential
from mfsbi.plugin.specs import Spec
from mfsbi.seeds import derived, seeded
from mfsbi.train.data import Batch, joined, split
from mfsbi.train.guard import ChartGuard
from mfsbi.train.loop import History, Settings, fit
from mfsbi.train.schedules import Schedule
from mfsbi.types import Prior

__all__ = ["ManifoldNLE"]

PosteriorParameters: TypeAlias = (
    MCMCPosteriorParameters
    | RejectionPosteriorParameters
    | VIPosteriorParameters
    | ImportanceSamplingPosteriorParameters
)

DEFAULTS: dict[str, Callable[[], PosteriorParameters]] = {
    "mcmc": lambda: MCMCPosteriorParameters(init_strategy_parameters={"num_candidate_samples": 1000}),
    "rejection": RejectionPosteriorParameters,
    "vi": VIPosteriorParameters,
    "importance": ImportanceSamplingPosteriorParameters,
}
"""sbi's settings, but for chain starts drawn from 1,000 candidates each instead of 10,000."""

MINIMUM_ROWS = 20


class Round(NamedTuple):
    """Simulations appended together."""

    theta: Tensor
    x: Tensor
    number: int


class ManifoldNLE:
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
        if seed < 0:
            raise ValueError(f"`seed` should be a non-negative integer; got {seed!r}.")
        self.prior, self.parameter_dim = None, 0
        if prior is not None:
            with seeded(seed):  # sbi draws from the prior to learn its shape, and switches its argument checks off
                self.prior, self.parameter_dim, _ = process_prior(deepcopy(prior))
        self.spec = density_estimator
        self.seed = seed
        self.device = device
        self.show_progress_bars = show_progress_bars
        self.estimator: ManifoldEstimator | None = None
        self.history = History()
        self.simulations: list[Round] = []

    def __repr__(self) -> str:
        rows = sum(len(part.theta) for part in self.simulations)
        return (
            f"ManifoldNLE({self.spec!r}, seed={self.seed}, simulations={rows:,}, trained={self.estimator is not None})"
        )

    def append_simulations(
        self, theta: Tensor, x: Tensor, *, exclude_invalid_x: bool = False, from_round: int = 0
    ) -> "ManifoldNLE":
        """Keep simulations for training and return the trainer.

        Arguments:
            theta: shape `(rows, parameter)`, inside the prior's support
            x: shape `(rows, data)`; both are converted to torch's default type
            exclude_invalid_x: drop rows whose x holds NaN or infinity, with a warning, instead of refusing them;
                the likelihood is then that of the valid data
            from_round: the round they were drawn in; 0 for the prior

        Raises:
            ValueError: if rows do not match, feature counts differ from the prior's or from earlier simulations,
                a value is NaN or infinite, or theta lies outside the prior
        """
        theta, x = _as_default_type("theta", theta), _as_default_type("x", x)
        require_features("theta", theta, self.parameter_dim, "the prior")
        features = self.simulations[0].x.shape[1] if self.simulations else (x.shape[1] if x.ndim == 2 else 0)
        require_features("x", x, features, "earlier simulations" if self.simulations else "the data")
        require_matching_rows("theta", theta, "x", x)
        require_finite("theta", theta, "A simulator's parameters are known: look for the cause.")
        if exclude_invalid_x:
            theta, x = _drop_invalid(theta, x)
        require_finite("x", x, "Remove these rows with their theta, or pass exclude_invalid_x=True.")
        outside = (
            torch.zeros(len(theta), dtype=torch.bool) if self.prior is None else ~within_support(self.prior, theta)
        )
        if outside.any():
            first = int(outside.nonzero()[0])
            raise ValueError(
                f"`theta` should lie inside the prior; {int(outside.sum())} of {len(theta)} rows do not, the first of "
                f"them row {first}: {theta[first].tolist()}. Draw theta from the prior, or widen it."
            )
        self.simulations.append(Round(theta, x, from_round))
        return self

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
        weight_decay: float = 0.1,
        restarts: int = 2,
        retrain_from_scratch: bool = False,
        discard_prior_samples: bool = False,
        show_train_summary: bool = False,
    ) -> ManifoldEstimator:
        """Train and return the estimator; the trainer keeps it too, also after an error once an epoch was finished.

        Ctrl-C ends the training, not the program: the best weights so far stay and a warning says so.

        Arguments:
            schedule: phases of training; `spec.schedule(max_num_epochs)` if not given, for most specs `sequential`
            training_batch_size: rows per step
            learning_rate: peak of the learning rate
            validation_fraction: share of the rows held out
            stop_after_epochs: epochs without a better validation loss before a phase stops; by default none does, since
                the learning rate falls to zero by its end and the last steps gain most
            max_num_epochs: passes over the data of the default schedule
            clip_max_norm: largest norm of the gradient; None for no such limit
            weight_decay: of densities on a manifold, decoupled as in AdamW; phases that move a chart have none
            restarts: how often to start again if the chart collapsed (see `mfsbi.train.guard`)
            retrain_from_scratch: start from new weights although the trainer has trained before
            discard_prior_samples: leave out round 0 once later rounds are there
            show_train_summary: print the summary at the end

        Returns:
            the estimator, in evaluation mode

        Raises:
            RuntimeError: if no simulations were appended
            ValueError: if there are too few of them or an argument is out of range
            ArithmeticError: if the loss becomes NaN or infinite
        """
        if restarts < 0:
            raise ValueError(f"`restarts` should not be negative; got {restarts}.")
        settings = Settings(
            training_batch_size=training_batch_size,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            clip_max_norm=clip_max_norm,
            stop_after_epochs=stop_after_epochs,
            seed=derived(self.seed, 1),
            show_progress_bars=self.show_progress_bars,
        )
        training, validation = self._split(validation_fraction, discard_prior_samples=discard_prior_samples)
        if schedule is None:
            schedule = self.spec.suited(training.x.shape[1]).schedule(max_num_epochs)
        if self.estimator is None or retrain_from_scratch:
            estimator = self._train_anew(training, validation, schedule, settings, restarts)
        else:
            estimator = self._fit(self.estimator, training, validation, schedule, settings)
        if show_train_summary:
            tqdm.write(str(self.history))
        return estimator

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
        estimator = self.estimator if density_estimator is None else density_estimator
        if estimator is None:
            raise RuntimeError("There is no trained estimator yet: call `train()` before `build_posterior()`.")
        if sample_with not in DEFAULTS:
            raise ValueError(f"`sample_with` should be one of {sorted(DEFAULTS)}; got {sample_with!r}.")
        processed = self.prior if prior is None else process_prior(deepcopy(prior))[0]
        if processed is None:
            raise ValueError(
                "A posterior needs a `prior`; this trainer was made without one, for data without parameters."
            )
        own_prior = move_distribution_to_device(deepcopy(processed), self.device)
        parameters = DEFAULTS[sample_with]() if posterior_parameters is None else posterior_parameters
        shared = {"potential_fn": ManifoldPotential(estimator, own_prior, device=self.device), "device": self.device}
        transform = mcmc_transform(own_prior, device=self.device)
        match parameters:
            case MCMCPosteriorParameters():
                return MCMCPosterior(proposal=own_prior, theta_transform=transform, **shared, **asdict(parameters))
            case RejectionPosteriorParameters():
                return RejectionPosterior(proposal=own_prior, theta_transform=transform, **shared, **asdict(parameters))
            case VIPosteriorParameters():
                return VIPosterior(prior=own_prior, theta_transform=transform, **shared, **asdict(parameters))
            case ImportanceSamplingPosteriorParameters():
                settings = asdict(parameters) | {"theta_transform": parameters.theta_transform or transform}
                return ImportanceSamplingPosterior(proposal=own_prior, **shared, **settings)
        raise TypeError(
            "`posterior_parameters` should be MCMC-, Rejection-, VI- or ImportanceSamplingPosteriorParameters of sbi; "
            f"got {type(parameters).__name__}."
        )

    def _split(self, fraction: float, *, discard_prior_samples: bool) -> tuple[Batch, Batch]:
        """Return the simulations to train on and those held out; the fate of a row never changes."""
        if not self.simulations:
            raise RuntimeError("There are no simulations yet: call `append_simulations(theta, x)` before `train()`.")
        parts = [Batch(part.theta, part.x) for part in self.simulations]
        later = max(part.number for part in self.simulations) > 0
        kept = [part.number > 0 or not (discard_prior_samples and later) for part in self.simulations]
        rows = sum(part.size for part, keep in zip(parts, kept, strict=True) if keep)
        if rows < MINIMUM_ROWS:
            raise ValueError(
                f"Training needs at least {MINIMUM_ROWS} simulations (thousands to learn something); got {rows}."
            )
        pairs = split(parts, fraction, Generator().manual_seed(derived(self.seed, 2)))
        training, validation = zip(*(pair for pair, keep in zip(pairs, kept, strict=True) if keep), strict=True)
        return joined(training).to(self.device), joined(validation).to(self.device)

    def _train_anew(
        self, training: Batch, validation: Batch, schedule: Schedule, settings: Settings, restarts: int
    ) -> ManifoldEstimator:
        """Train from new weights, and again from others while the chart collapses."""
        collapses: list[str] = []
        for left in range(restarts, -1, -1):
            with seeded(derived(self.seed, 3, restarts - left)):
                estimator = self.spec(training.theta.cpu(), training.x.cpu()).to(self.device)
            guard = ChartGuard(estimator.model, schedule, training, validation, may_stop=left > 0)
            self._fit(estimator, training, validation, schedule, settings, guard)
            self.history.collapses = collapses
            if guard.verdict is None or not guard.verdict.collapsed:
                return estimator
            collapses.append(str(guard.verdict))
            if left:
                warnings.warn(f"The chart has collapsed: {guard.verdict}. Starting again; {left} left.", stacklevel=3)
        warnings.warn(
            f"The chart is not clearly better than a hyperplane after {restarts + 1} starts: {collapses[-1]}. "
            "Train longer, or take a larger `manifold_dim`: the data may have more dimensions than that.",
            stacklevel=3,
        )
        return estimator

    def _fit(
        self,
        estimator: ManifoldEstimator,
        training: Batch,
        validation: Batch,
        schedule: Schedule,
        settings: Settings,
        guard: ChartGuard | None = None,
    ) -> ManifoldEstimator:
        """Train an estimator and keep it, with its history, if it learned anything, however the training ends."""
        self.history = History()
        try:
            fit(estimator.train().model, training, validation, schedule, settings, guard, self.history)
        finally:
            estimator.eval()
            if self.history.epochs or self.history.interrupted:
                self.estimator = estimator
                estimator.training_record = {
                    **asdict(self.history),
                    "simulations": sum(len(part.theta) for part in self.simulations),
                    "sha256": _digest(self.simulations),
                }
        return estimator


def _digest(rounds: list[Round]) -> str:
    """Return a hash of all simulations, by which a result can be told to be from the same data."""
    digest = sha256()
    for part in rounds:
        for value in (part.theta, part.x):
            digest.update(np.ascontiguousarray(value.cpu()).data)
    return digest.hexdigest()


def _as_default_type(name: str, value: Tensor) -> Tensor:
    """Return a tensor in torch's default type, which the weights have."""
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` should be a torch tensor; got {type(value).__name__}. Try torch.from_numpy.")
    return value.detach().to(torch.get_default_dtype())


def _drop_invalid(theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows with finite x, warning about the others."""
    valid = torch.isfinite(x).all(-1)
    if not valid.all():
        warnings.warn(
            f"Dropped {int((~valid).sum())} of {len(x)} simulations with NaN or infinity in x. The likelihood will be "
            "that of valid data only; if validity depends on theta, the posterior is biased.",
            stacklevel=3,
        )
    return theta[valid], x[valid]
