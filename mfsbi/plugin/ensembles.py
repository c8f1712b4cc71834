r"""Ensembles: one trainer, several seeds, and the posterior of them all.

    estimators = train_ensemble(trainer, members=5, executor=executor, max_num_epochs=50)
    posterior = ensemble_posterior(trainer, estimators)  # sbi's EnsemblePosterior
    draws = posterior.sample((1000,), x=x_o)

A member is what the trainer would have learned with another seed: with other first weights, another order of the
simulations, and others held out (the same ones of a store that is streamed). Where members disagree, the simulations do
not determine the posterior. Each member is trained by one thread, so that it is the same from any executor.

**What the ensemble means.** With the members' posteriors p_i(theta|x), weights w_i, likelihoods L_i and the prior p,

    sample:               p(theta|x) = sum_i w_i p_i(theta|x),               every member its share of the draws,
    potential, log_prob:  log sum_i w_i L_i(x|theta) p(theta),               every member by its evidence as well,

since a likelihood's potential is not normalised: p_i = L_i p / Z_i. Both are right, for different questions: the first
trusts all members equally; the second is the posterior of the mean likelihood, in which a member that explains x better
counts more, and often only one if there are many events. They agree where the evidences Z_i do, so do not weight draws
of `sample` by `potential`. `sample` returns draws member after member: shuffle them before taking some. `sample_chains`
takes one member at a time, `posterior.posteriors[i]`.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Executor, Future, wait
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch

from mfsbi.checks import require_positive_integer, warn
from mfsbi.plugin.host import EnsemblePosterior
from mfsbi.plugin.saving import Estimator, Trainer
from mfsbi.plugin.trainer import AbstractTrainer
from mfsbi.seeds import alone, derived

__all__ = ["ensemble_posterior", "train_ensemble"]


class _Member(NamedTuple):
    """What became of a member."""

    estimator: Any
    warnings: list[str]
    error: Exception | None


def train_ensemble(
    trainer: Trainer, members: int | Sequence[int] = 5, *, executor: Executor | None = None, **training: object
) -> list[Estimator]:
    """Train a trainer's model with several seeds, from new weights, and leave the trainer as it is.

    If a member fails or its worker dies, a warning says so and the others are returned. After Ctrl-C those that have
    ended are returned, and in this process the one under way with its best weights so far.

    Arguments:
        trainer: with its simulations, of which each worker gets a copy, or the path if they are in a store
        members: how many, with seeds derived from the trainer's; or their seeds
        executor: anything with `submit`: `workers(k)`, `dask.distributed.Client(...).get_executor()`; this process if
            None. Executors other than loky's need a prior and a spec that `pickle` can pickle
        training: arguments of `trainer.train`; a `checkpoint` folder gets one for each seed

    Returns:
        the estimators, in the order of their seeds, on the trainer's device and in evaluation mode

    Raises:
        ValueError: if there are no members, or two have the same seed
        Exception: what the first member raised, if all failed
        KeyboardInterrupt: after Ctrl-C, if no member has ended
    """
    seeds = _seeds(trainer, members)
    train, trainers = partial(_train_member, torch.get_default_dtype(), training), map(trainer.with_seed, seeds)
    if executor is None:
        made = _one_by_one(train, trainers)
    else:
        made = _collected({each.seed: executor.submit(train, each) for each in trainers})
    for message in dict.fromkeys(message for member in made.values() for message in member.warnings):
        who = [str(seed) for seed, member in made.items() if message in member.warnings]
        warn(f"The member{'s' if len(who) > 1 else ''} with seed {', '.join(who)}: {message}")
    errors = {seed: member.error for seed, member in made.items() if member.error is not None}
    if len(errors) == len(made):
        raise next(iter(errors.values()), KeyboardInterrupt())
    good = len(made) - len(errors)
    if good < len(seeds):
        failed = ", ".join(f"{seed} ({type(error).__name__}: {error})" for seed, error in errors.items()) or "none"
        left = ", ".join(str(seed) for seed in seeds if seed not in made)
        late = f"; interrupted before {left}" if left else ""
        warn(f"{good} of {len(seeds)} members were trained. Failed seeds: {failed}{late}.")
    return [member.estimator.to(trainer.device) for member in made.values() if member.error is None]


def ensemble_posterior(
    trainer: Trainer, estimators: Sequence[Estimator], *, weights: Sequence[float] | None = None, **building: object
) -> EnsemblePosterior:
    """Return sbi's posterior of several estimators; see above for what its `sample` and its `potential` mean.

    Arguments:
        trainer: that builds the posterior of each
        estimators: what `train_ensemble` returned, or any with the same parameters
        weights: of each estimator, positive; all the same if None
        building: further arguments of `trainer.build_posterior`, such as `sample_with`

    Raises:
        ValueError: if there are no estimators, weights do not fit them, or an argument is out of range
    """
    if not estimators:
        raise ValueError("`estimators` should hold one estimator at least; it is empty.")
    if weights is not None and not (len(weights) == len(estimators) and all(0 < each < math.inf for each in weights)):
        raise ValueError(f"`weights` should be {len(estimators)} positive numbers, one each; got {list(weights)}.")
    posteriors = [cast(Any, trainer).build_posterior(estimator, **building) for estimator in estimators]
    transform = posteriors[0].theta_transform
    return _Ensemble(posteriors, None if weights is None else list(weights), transform, trainer.device)


class _Ensemble(EnsemblePosterior):
    """sbi's ensemble, whose weights and potential are where its members are; sbi 0.27 leaves both on the processor."""

    def _build_potential_fns(self) -> None:
        self._weights: torch.Tensor = self._weights.to(self.device)
        super()._build_potential_fns()
        self.potential_fn.device = self.device

    def to(self, device: str | torch.device) -> "_Ensemble":
        """Move the members to a device, and return the ensemble."""
        observed = self._x
        for member in self.posteriors:
            member.to(device)
        self.device = self._device = str(torch.empty(0, device=device).device)
        self.prior = self.posteriors[0].potential_fn.prior
        self.theta_transform = self.posteriors[0].theta_transform
        self._build_potential_fns()
        if observed is not None:
            self.set_default_x(observed.to(device))
        return self


def _seeds(trainer: Trainer, members: int | Sequence[int]) -> list[int]:
    """Return the seeds of the members, all different."""
    if not isinstance(members, Iterable):
        require_positive_integer("members", members)
        return [derived(trainer.seed, 5, number) for number in range(int(members))]
    seeds = list(members)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"`members` should be their number, or seeds that differ from each other; got {seeds}.")
    return seeds


def _one_by_one(train: Callable[[Any], _Member], trainers: Iterable[AbstractTrainer[Any]]) -> dict[int, _Member]:
    """Return the members trained in this process by their seeds, fewer if one was interrupted."""
    made: dict[int, _Member] = {}
    for trainer in trainers:
        try:
            member = made[trainer.seed] = train(trainer)
        except KeyboardInterrupt:  # before there was a model to keep
            break
        if member.error is None and member.estimator.training_record["interrupted"]:
            break
    return made


def _train_member(kind: torch.dtype, training: dict[str, Any], trainer: AbstractTrainer[Any]) -> _Member:
    """Train one member, on whatever process this is; an error is returned, since workers may not survive it."""
    if training.get("checkpoint") is not None:  # of which each member has its own
        training = {**training, "checkpoint": Path(training["checkpoint"]) / f"seed-{trainer.seed}"}
    with alone(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.set_default_dtype(kind)  # `alone` puts it back
        try:
            estimator, error = cast(Any, trainer).train(**training).cpu(), None
        except Exception as raised:
            estimator, error = None, raised
    return _Member(estimator, [str(warning.message) for warning in caught], error)


def _collected(futures: dict[int, "Future[_Member]"]) -> dict[int, _Member]:
    """Return what became of members; after Ctrl-C, of those that have ended, and call the others off."""
    try:
        wait(futures.values())
    except KeyboardInterrupt:
        for future in futures.values():
            future.cancel()
    results = {seed: _result(future) for seed, future in futures.items() if future.done()}
    return {seed: member for seed, member in results.items() if member is not None}


def _result(future: "Future[_Member]") -> _Member | None:
    """Return a member, or the error of the worker that should have trained it; None if it was called off."""
    try:
        return future.result()
    except (CancelledError, KeyboardInterrupt):
        return None
    except Exception as error:
        return _Member(None, [], error)
