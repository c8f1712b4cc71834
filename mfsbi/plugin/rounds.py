"""What trainers learn from: simulations in rounds, checked as they come, with their gold."""

from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Generator, Tensor
from torch.distributions import Distribution

from mfsbi.checks import require_features, require_finite, require_matching_rows, require_tensor, require_whole, warn
from mfsbi.gold.checks import require_centred_labels, require_centred_score, require_matching_score
from mfsbi.plugin.parameter_prior import ParameterPrior
from mfsbi.simulations import Simulations
from mfsbi.store import Store
from mfsbi.train.data import Batch, Stream, TrainingData, require_fraction, rows_of_excerpt, split
from mfsbi.warp import Warp, converted, require_digits, spreads

__all__ = ["Round", "Rounds", "require_labels"]

MINIMUM_ROWS = 20
FEW_ROWS = 50
"""Rows of a round that cannot tell whether they need all digits in which they came."""

KEPT = {"x"}
"""Fields that keep their type where offsets need more digits than torch's default type has."""

IN_MEMORY = 2**28
"""Bytes of a store that is read at once."""


class Round(NamedTuple):
    """Simulations appended together."""

    batch: Batch
    number: int

    @property
    def theta(self) -> Tensor:
        """Shape `(rows, parameter)`."""
        return self.batch.theta

    @property
    def x(self) -> Tensor:
        """Shape `(rows, data)`."""
        return self.batch.x


class Rounds:
    """Rounds of simulations, in order.

    Arguments:
        prior: of theta, as `parameter_prior` returns it; None for data without parameters
        parameter_dim: features of theta
    """

    def __init__(self, prior: ParameterPrior | None, parameter_dim: int) -> None:
        self.prior, self.parameter_dim = prior, parameter_dim
        self.rounds: list[Round] = []
        self.store: Store | None = None

    def __len__(self) -> int:
        return len(self.rounds)

    def __getitem__(self, number: int) -> Round:
        return self.rounds[number]

    def __iter__(self) -> Iterator[Round]:
        return iter(self.rounds)

    @property
    def rows(self) -> int:
        """The number of simulations."""
        return sum(part.batch.rows for part in self.rounds) + (0 if self.store is None else len(self.store))

    def append(self, simulations: Simulations, number: int, *, exclude_invalid_x: bool) -> None:
        """Keep simulations after checking them; nothing is kept if a check fails.

        Arguments:
            simulations: of any type and device
            number: of the round
            exclude_invalid_x: drop those whose x holds NaN or infinity, with a warning

        Raises:
            TypeError: if a field is not a tensor of real numbers
            ValueError: if shapes do not fit the prior, each other or earlier rounds, a value is NaN or infinite, theta
                lies outside the prior, an offset has cost theta or x its digits, or gold contradicts itself (see
                `mfsbi.gold.checks`)
        """
        require_whole("from_round", number)
        if self.store is not None:
            raise ValueError(f"Simulations are streamed from {self.store.path} already, and nothing can join them.")
        batch = Batch.of(simulations)
        fields = batch.fields
        for name, value in fields.items():
            require_tensor(name, value)
        self._require_shapes(batch)
        require_finite("theta", batch.theta, "A simulator's parameters are known: look for the cause.")
        given = batch.theta.cpu()
        batch = replace(batch, **{name: _as_default_type(name, value) for name, value in fields.items()})
        given_x = fields["x"].detach().cpu()
        if _finer(given_x) and (len(given_x) < FEW_ROWS or any(_finer(part.x) for part in self.rounds)):
            batch = replace(batch, x=given_x)  # `split` asks all rows which digits they need
        self._require_inside_prior(batch.theta, given)
        if exclude_invalid_x:
            batch = _without_invalid_x(batch)
        require_finite("x", batch.x, "Remove these rows with their theta, or pass exclude_invalid_x=True.")
        for name in ("theta", "x"):
            require_digits(name, getattr(batch, name))
        _require_gold(batch, self.prior if number == 0 else None)
        self.rounds.append(Round(batch, number))

    def append_store(self, store: Store, number: int) -> None:
        """Keep the simulations of a store with their joint scores: read at once if they fit, or else to be streamed.

        Arguments:
            store: of which finished shards are taken, and rows that did not fail; without joint log ratios, which need
            other rows drawn at the reference
            number: of the round

        Raises:
            ValueError: as `append`; where rows are streamed, what is checked of values is a sample, and there can be no
                other simulations
        """
        if store.failed:
            warn(
                f"{store.failed:,} simulations of {store.path} failed and are left out. The likelihood will be that of "
                "valid data only; if failing depends on theta, the posterior is biased."
            )
        if store.bytes <= IN_MEMORY:
            self.append(replace(store.read(), joint_log_ratio=None), number, exclude_invalid_x=False)
            return
        if self.rounds or self.store is not None:
            raise ValueError(f"{store} does not fit into memory, and what is streamed has to be all there is.")
        excerpt = store.read(slice(0, rows_of_excerpt(store)))
        self.append(replace(excerpt, joint_log_ratio=None), number, exclude_invalid_x=False)  # for its checks
        self.rounds.clear()
        self.store = store

    def split(self, fraction: float, seed: int, *, discard_prior_samples: bool) -> tuple[TrainingData, Batch]:
        """Return the simulations to train on and those held out, always the same but as `split` has it.

        Of a store that is streamed the first rows are held out, 100,000 of them or 256 MiB at most.

        Raises:
            RuntimeError: if there are none
            ValueError: if there are too few, or fraction is not between 0 and 1
        """
        if self.store is not None:
            require_fraction(fraction)
            held = max(1, min(round(fraction * len(self.store)), len(self.store) - 1, rows_of_excerpt(self.store)))
            return Stream(self.store.after(held)), Stream(self.store).first(held)
        if not self.rounds:
            raise RuntimeError("There are no simulations yet: call `append_simulations(theta, x)` before `train()`.")
        later = max(part.number for part in self.rounds) > 0
        kept = [part.number > 0 or not (discard_prior_samples and later) for part in self.rounds]
        parts = [part.batch for part in self.rounds]
        rows = sum(part.rows for part, keep in zip(parts, kept, strict=True) if keep)
        if rows < MINIMUM_ROWS:
            raise ValueError(
                f"Training needs at least {MINIMUM_ROWS} simulations (thousands to learn something); got {rows}."
            )
        training, held_out = split(parts, fraction, Generator().manual_seed(seed), kept)
        x, kind = training.x, torch.get_default_dtype()
        if converted(x, kind) is x:
            return training, held_out
        return replace(training, x=x.to(kind)), replace(held_out, x=held_out.x.to(kind))

    def digest(self) -> str:
        """Return a hash of all simulations, by which a result can be told to be from the same data."""
        digest = sha256()
        if self.store is not None:
            digest.update(repr((self.store.attributes, self.store.marks)).encode())
        for part in self.rounds:
            for value in part.batch.fields.values():
                digest.update(np.ascontiguousarray(value.cpu()).data)
        return digest.hexdigest()

    def _require_shapes(self, batch: Batch) -> None:
        theta, x = batch.theta, batch.x
        require_features("theta", theta, self.parameter_dim, "the prior")
        if x.ndim != 2 or 0 in x.shape:
            raise ValueError(f"`x` should have shape (rows, data), neither of them zero; got {tuple(x.shape)}.")
        if self.rounds:
            require_features("x", x, self.rounds[0].x.shape[1], "earlier simulations")
        for name, value in batch.fields.items():
            require_matching_rows("theta", theta, name, value)
        earlier = self.rounds[0].batch.fields if self.rounds else batch.fields
        for name in sorted(batch.fields.keys() ^ earlier.keys()):
            there = "brought it" if name in earlier else "came without it"
            raise ValueError(f"`{name}` should come with every round or with none; earlier simulations {there}.")
        if batch.joint_score is not None:
            require_features("joint_score", batch.joint_score, self.parameter_dim, "theta")
        for name in ("joint_log_ratio", "from_theta"):
            value = getattr(batch, name)
            if value is not None and value.ndim != 1:
                raise ValueError(f"`{name}` should have shape (rows,), a number for each; got {tuple(value.shape)}.")

    def _require_inside_prior(self, theta: Tensor, given: Tensor) -> None:
        if self.prior is None:
            return
        outside = ~self.prior.inside(theta)
        if outside.any() and given.dtype != theta.dtype:  # rounding may have moved it over a bound
            outside &= ~self.prior.inside(given)
        if outside.any():
            first = int(outside.nonzero()[0])
            raise ValueError(
                f"`theta` should lie inside the prior; {int(outside.sum())} of {len(theta)} rows do not, the first of "
                f"them row {first}: {theta[first].tolist()}. Draw theta from the prior, or widen it."
            )


LARGEST_SCORE = 1e12
"""Of standardised theta, in nats; no run tells that much."""

MOST_WITHOUT_SCORE = 0.1
"""Of rows that have a ratio."""

INFINITE_GOLD = {
    "joint_score": "A derivative at the edge of what theta may be, or a root of zero? Mend it in the simulator.",
    "joint_log_ratio": "A run that is impossible at the reference? Choose one at which all runs are possible: without "
    "these rows, what is learned would be biased.",
}
"""What to do about gold that is not finite."""


def _require_gold(batch: Batch, prior: Distribution | None) -> None:
    """Raise ValueError if gold is not finite or cannot be right, for theta from the prior if that is given."""
    labels = batch.from_theta
    for name, advice in INFINITE_GOLD.items():
        if name in batch.fields:
            require_finite(name, batch.fields[name], advice)
    if labels is not None:
        require_labels(labels)
    if batch.joint_score is not None and batch.joint_score.shape[1]:
        _require_score(batch.at_theta(), prior)
    if batch.joint_log_ratio is not None and labels is not None:
        require_centred_labels(batch.theta, batch.joint_log_ratio, labels)


def _require_score(batch: Batch, prior: Distribution | None) -> None:
    """Raise ValueError if joint scores of rows drawn at theta cannot be right, for theta from a prior if given.

    So are those of rows that were drawn at a reference, as by `simulate`, and are said not to be.
    """
    theta, joint_score = batch.theta, cast(Tensor, batch.joint_score)
    warp = Warp.of(theta.double())
    unit = spreads(warp(theta.double())) * (-warp.log_slope(theta.double())).exp()
    largest = float((joint_score.double() * unit).abs().max())
    if largest > LARGEST_SCORE:
        raise ValueError(
            f"`joint_score` times the spread of theta should be below {LARGEST_SCORE:.0e}, so that it can be squared; "
            f"it is up to {largest:.3g}. Is it in the units of theta, and the score of one run?"
        )
    require_centred_score(theta, joint_score)
    if prior is not None:
        require_matching_score(theta, batch.x, joint_score, prior)
    if batch.joint_log_ratio is None:
        return
    elsewhere = (joint_score == 0).all(-1) & (batch.joint_log_ratio != 0)
    if elsewhere.float().mean() > MOST_WITHOUT_SCORE:
        raise ValueError(
            f"`joint_score` is zero in {int(elsewhere.sum())} of {len(elsewhere)} rows whose joint log ratio is not. "
            "Were they drawn at a reference? Pass `from_theta`, True for rows drawn at theta, or else leave ratios out."
        )


def require_labels(from_theta: Tensor) -> None:
    """Raise ValueError unless labels are 0 and 1, and both are there."""
    if from_theta.ndim != 1 or set(from_theta.unique().tolist()) != {0, 1}:
        raise ValueError(
            "`from_theta` should say True for rows drawn at theta and False for rows drawn at the reference, and have "
            f"some of either; it holds {from_theta.unique().tolist()[:5]}."
        )


def _finer(x: Tensor) -> bool:
    """Return whether x has more digits than torch's default type."""
    return x.is_floating_point() and torch.finfo(x.dtype).eps < torch.finfo(torch.get_default_dtype()).eps


def _as_default_type(name: str, value: Tensor) -> Tensor:
    """Return a tensor in torch's default type, which the weights have, on the processor; x with the digits it needs.

    Raises:
        ValueError: if numbers are too large
    """
    value, kind = value.detach().cpu(), torch.get_default_dtype()
    ours = converted(value, kind) if name in KEPT else value.to(kind)
    if (ours.isinf() & ~value.isinf()).any():
        largest, told = float(value[~value.isinf()].abs().max()), str(kind).removeprefix("torch.")
        raise ValueError(f"`{name}` holds {largest:.3g}, more than {told} can: choose other units.")
    return ours


def _without_invalid_x(batch: Batch) -> Batch:
    """Return the rows with finite x, warning about the others."""
    valid = torch.isfinite(batch.x).all(-1)
    if not valid.any():
        raise ValueError(f"`x` should have valid rows; all {len(valid)} hold NaN or infinity.")
    if not valid.all():
        warn(
            f"Dropped {int((~valid).sum())} of {len(valid)} simulations with NaN or infinity in x. The likelihood will "
            "be that of valid data only; if validity depends on theta, the posterior is biased."
        )
    return batch.select(valid)
