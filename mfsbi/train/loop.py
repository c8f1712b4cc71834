"""The optimisation loop, the only one: `fit` runs a schedule.

Each group of parts (chart, latent) has one learning rate, which warms up over its first steps and then falls to zero
along a cosine over all the steps the schedule grants that group, so alternating phases continue where they left off.
One split into training and validation rows serves the whole schedule.

After every epoch the validation loss is taken without gradients. A phase keeps a *copy* of its best weights, those it
began with included, and ends with the best copy in place, also when it is interrupted. It stops early only if asked
to: steps gain most when the learning rate has fallen, and a phase that stops on a plateau of the large steps never gets
there. With `stop_after_epochs` a phase ends when as many epochs brought nothing better, judged by the mean over the
last few. While the chart stands still its coordinates are computed once for the whole phase. A phase that trains the
density begins by measuring where they lie: reconstruction alone may blow them up to any size, and splines reach six
spreads (a chart of the Lorenz attractor had coordinates up to 24, and its density stayed on a patch).
"""

import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
from torch import Generator, Tensor, nn
from tqdm.auto import tqdm

from mfsbi.checks import require_positive, require_positive_integer
from mfsbi.models import AbstractModel
from mfsbi.seeds import derived, seeded
from mfsbi.train.data import Batch, in_chunks, minibatches, steps_per_epoch
from mfsbi.train.losses import Adaptive, ScoreNoise
from mfsbi.train.optimizers import PartsOptimizer
from mfsbi.train.schedules import Phase, Schedule

__all__ = ["EpochRecord", "History", "Settings", "fit"]

SMOOTH = 5  # epochs whose validation losses are averaged to decide when to stop


@dataclass(frozen=True)
class Settings:
    """How to optimise, whatever the loss.

    Arguments:
        training_batch_size: rows per step
        learning_rate: peak of the learning rate
        weight_decay: decoupled, as in AdamW; a phase has a factor on it
        clip_max_norm: largest norm of the gradient; None for no such limit
        stop_after_epochs: epochs without a better validation loss (averaged over five) before a phase stops; None for
            no early end
        seed: of the order of the rows
        show_progress_bars: True, False, or None for "only on a terminal"

    Raises:
        ValueError: if a number is not positive, or weight_decay negative
    """

    training_batch_size: int = 500
    learning_rate: float = 7e-3
    weight_decay: float = 0.1
    clip_max_norm: float | None = 5.0
    stop_after_epochs: int | None = None
    seed: int = 0
    show_progress_bars: bool | None = None

    def __post_init__(self) -> None:
        for name in ("training_batch_size", "learning_rate", "stop_after_epochs", "clip_max_norm"):
            if getattr(self, name) is not None:
                require_positive(name, getattr(self, name))
        if not self.weight_decay >= 0:
            raise ValueError(f"`weight_decay` should not be negative; got {self.weight_decay}.")


class EpochRecord(NamedTuple):
    """What one pass over the data did; losses are means over rows."""

    phase: int
    loss: str
    epoch: int
    training_loss: float
    validation_loss: float
    learning_rate: float
    seconds: float


@dataclass
class History:
    """The record of a training.

    Arguments:
        epochs: one `EpochRecord` per pass
        interrupted: whether it was
        collapses: what was wrong with starts that failed
        score_noise: of joint scores, where it was measured
    """

    epochs: list[EpochRecord] = field(default_factory=list)
    interrupted: bool = False
    collapses: list[str] = field(default_factory=list)
    score_noise: ScoreNoise | None = None

    def of(self, loss: str) -> tuple[list[float], list[float]]:
        """Return (training, validation) losses of all epochs that minimised `loss`, in order."""
        chosen = [epoch for epoch in self.epochs if epoch.loss == loss]
        return [epoch.training_loss for epoch in chosen], [epoch.validation_loss for epoch in chosen]

    def __str__(self) -> str:
        lines = [
            f"{loss}: {len(self.of(loss)[1])} epochs, best validation loss {min(self.of(loss)[1]):.4g}"
            for loss in self.losses
        ]
        gold = [] if self.score_noise is None else [str(self.score_noise)]
        return "\n".join(gold + lines + [f"collapsed start: {verdict}" for verdict in self.collapses])

    @property
    def losses(self) -> list[str]:
        """The names of the losses that were minimised, in order of appearance."""
        return list(dict.fromkeys(epoch.loss for epoch in self.epochs))


class _Best:
    """A copy of the best weights of some parts; `state_dict` alone is a live view and restores nothing.

    Epoch 0 stands for the weights the phase began with.
    """

    def __init__(self, parts: nn.Module) -> None:
        self.parts = parts
        self.keep(math.inf, 0)

    def keep(self, loss: float, epoch: int) -> None:
        self.loss, self.epoch = loss, epoch
        self.weights = {name: value.detach().clone() for name, value in self.parts.state_dict().items()}

    def restore(self) -> None:
        self.parts.load_state_dict(self.weights)


class _Patience:
    """Ends when the mean of the last few losses has had no new minimum for a number of epochs."""

    def __init__(self, epochs: int | None) -> None:
        self.epochs = math.inf if epochs is None else epochs
        self.recent: deque[float] = deque(maxlen=SMOOTH)
        self.least, self.waited = math.inf, 0

    def ends_with(self, loss: float) -> bool:
        self.recent.append(loss)
        mean = math.fsum(self.recent) / len(self.recent)
        self.waited = 0 if mean < self.least else self.waited + 1
        self.least = min(mean, self.least)
        return self.waited >= self.epochs


def fit(
    model: nn.Module,
    training: Batch,
    validation: Batch,
    schedule: Schedule,
    settings: Settings | None = None,
    keep_going: Callable[[int], bool] | None = None,
    history: History | None = None,
) -> History:
    """Train a model in place and return the record of it.

    Ctrl-C ends the training, not the program: the best weights so far are in place and a warning says so.

    Arguments:
        model: its parts, such as chart and latent, are its children; on the device and in the type of the data
        training: rows to learn from
        validation: rows to judge by
        schedule: phases in order, as `sequential()` returns them
        settings: how to optimise; the defaults if not given
        keep_going: asked after each phase, with its index; training ends when it says no
        history: the record to write to, which then survives an error; a new one if not given

    Raises:
        ValueError: if the schedule is empty, or a phase has no epochs or rows or names parts that models do not have
        ArithmeticError: if a loss becomes NaN or infinite; the best weights before that are in place
    """
    _require_phases(schedule, model)
    settings = Settings() if settings is None else settings
    history = History() if history is None else history
    generator = Generator().manual_seed(settings.seed)
    optimizers = {phase.trains: _optimizer(model, phase.trains, schedule, training, settings) for phase in schedule}
    index, end, best = 0, 0, _Best(nn.ModuleList())
    steps = sum(_steps(phase, training, settings) for phase in schedule)
    with _progress_bar(steps, settings) as bar, seeded(derived(settings.seed, 0)):  # some losses draw numbers
        try:
            for index, phase in enumerate(schedule):
                end += _steps(phase, training, settings)
                optimizer = optimizers[phase.trains]
                if optimizer is not None:
                    best = _Best(optimizer.parts)
                    run = _PhaseRun(model, index, phase, optimizer, settings)
                    run.epochs(training, validation, generator, bar, history, best)
                bar.update(end - bar.n)
                if keep_going is not None and not keep_going(index):
                    break
        except KeyboardInterrupt:
            history.interrupted = True
            warnings.warn(_interruption(best, index, schedule), stacklevel=2)
    return history


@dataclass
class _PhaseRun:
    """One phase at work; its loss may adapt to the held-out rows before each epoch."""

    model: nn.Module
    number: int
    phase: Phase
    optimizer: PartsOptimizer
    settings: Settings

    def __post_init__(self) -> None:
        self.loss = self.phase.loss

    def epochs(
        self, training: Batch, validation: Batch, generator: Generator, bar: tqdm, history: History, best: _Best
    ) -> None:
        """Run the phase; its records are in `history` and the best weights in place however it ends."""
        try:
            training, validation = self._with_coordinates(training), self._with_coordinates(validation)
            self._measure_coordinates(training, validation)
            self._keep_if_better(best, 0, validation)
            patience = _Patience(self.settings.stop_after_epochs)
            for epoch in range(1, self.phase.epochs + 1):
                bar.set_description(f"{'+'.join(self.phase.trains)} {epoch}/{self.phase.epochs}", refresh=False)
                record = self._epoch(epoch, training, validation, generator, bar)
                history.epochs.append(record)
                if record.validation_loss < best.loss:
                    best.keep(record.validation_loss, epoch)
                if patience.ends_with(record.validation_loss):
                    break
        except KeyboardInterrupt:
            started = sum(record.phase == self.number for record in history.epochs) + 1
            self._keep_if_better(best, started, validation)
            raise
        finally:
            best.restore()

    def _epoch(self, epoch: int, training: Batch, validation: Batch, generator: Generator, bar: tqdm) -> EpochRecord:
        """Pass over the training rows once, then judge by the validation rows."""
        began = time.perf_counter()
        losses = []
        for batch in minibatches(training, _rows(self.phase, self.settings), generator):
            losses.append(self._step(batch))
            if len(losses) % 20 == 1:
                bar.set_postfix(loss=f"{float(losses[-1]):.4g}", refresh=False)
            bar.update()
        where = f"in phase {self.number + 1} ({self.phase.loss.__name__}), epoch {epoch}"
        training_loss = _number(torch.stack(losses).mean(), f"training loss {where}")
        validation_loss = _number(self._held_out(validation), f"validation loss {where}")
        bar.set_postfix(loss=f"{training_loss:.4g}", validation=f"{validation_loss:.4g}")
        return EpochRecord(
            phase=self.number,
            loss=self.phase.loss.__name__,
            epoch=epoch,
            training_loss=training_loss,
            validation_loss=validation_loss,
            learning_rate=self.optimizer.learning_rate,
            seconds=time.perf_counter() - began,
        )

    def _keep_if_better(self, best: _Best, epoch: int, validation: Batch) -> None:
        """Copy the present weights if they do better on the validation rows than the best so far."""
        loss = float(self._held_out(validation))
        if loss < best.loss:
            best.keep(loss, epoch)

    def _held_out(self, validation: Batch) -> Tensor:
        """Return the mean loss of the validation rows, to which it has adapted if it can."""
        if isinstance(self.loss, Adaptive):
            self.loss = self.loss.adapted(self.model, validation)
        return in_chunks(lambda rows: self.loss(self.model, rows), validation).mean()

    def _step(self, batch: Batch) -> Tensor:
        """Move the weights once along the gradient of the mean loss and return that."""
        self.optimizer.parts.zero_grad(set_to_none=True)
        loss = self.loss(self.model, batch).mean()
        loss.backward()
        self.optimizer.step(self.settings.clip_max_norm)
        return loss.detach()

    def _with_coordinates(self, data: Batch) -> Batch:
        """Return the rows with their coordinates, computed once, if the phase leaves the chart alone."""
        moving = "chart" in self.phase.trains or not isinstance(self.model, AbstractModel)
        return data._replace(u=None if moving else self._encode(data))

    def _measure_coordinates(self, training: Batch, validation: Batch) -> None:
        """Let the latent density know where the coordinates lie, if the phase trains it and that lowers its loss."""
        if "latent" in self.phase.trains and isinstance(self.model, AbstractModel):
            latent, before = self.model.latent, self._held_out(validation)
            old = latent.u_mean.clone(), latent.u_std.clone()
            latent.measure(self._encode(training) if training.u is None else training.u)
            if self._held_out(validation) > before:  # it had learned better than that already
                latent.u_mean.copy_(old[0])
                latent.u_std.copy_(old[1])

    def _encode(self, data: Batch) -> Tensor:
        model = cast(AbstractModel, self.model)
        return in_chunks(lambda rows: model.encode(rows.x, rows.theta), data)


def _optimizer(
    model: nn.Module, trains: tuple[str, ...], schedule: Schedule, training: Batch, settings: Settings
) -> PartsOptimizer | None:
    """Return what moves some parts through the whole schedule, or None if they have nothing to train."""
    parts = nn.ModuleList([getattr(model, name) for name in trains])
    if not any(weight.requires_grad for weight in parts.parameters()):
        return None
    phases = [phase for phase in schedule if phase.trains == trains]
    steps = sum(_steps(phase, training, settings) for phase in phases)
    rate, decay = phases[0].rate * settings.learning_rate, phases[0].decay * settings.weight_decay
    return PartsOptimizer(parts, rate, decay, steps)


def _rows(phase: Phase, settings: Settings) -> int:
    return settings.training_batch_size if phase.rows is None else phase.rows


def _steps(phase: Phase, training: Batch, settings: Settings) -> int:
    """Return the steps of a phase that does not stop early."""
    return phase.epochs * steps_per_epoch(training, _rows(phase, settings))


@contextmanager
def _progress_bar(steps: int, settings: Settings) -> Iterator[tqdm]:
    hidden = None if settings.show_progress_bars is None else not settings.show_progress_bars
    with tqdm(total=steps, disable=hidden, unit="step", leave=False, dynamic_ncols=True) as bar:
        yield bar


def _require_phases(schedule: Schedule, model: nn.Module) -> None:
    parts = tuple(name for name, _ in model.named_children())
    if not schedule:
        raise ValueError("`schedule` should have at least one phase; it is empty.")
    for phase in schedule:
        if phase.epochs < 1:
            raise ValueError(f"A phase should have at least 1 epoch; got {phase}.")
        if phase.rows is not None:
            require_positive_integer("Phase.rows", phase.rows)
        if not isinstance(phase.trains, tuple) or not set(phase.trains) <= set(parts):
            raise ValueError(f"A phase should train a tuple of parts out of {parts}; got {phase.trains!r}.")


def _number(loss: Tensor, what: str) -> float:
    """Return a loss as a number, or refuse to go on."""
    value = float(loss)
    if not math.isfinite(value):
        raise ArithmeticError(
            f"The {what} is {value}: training diverged. The best weights before that are kept; "
            "a lower `learning_rate` or `clip_max_norm` usually helps."
        )
    return value


def _interruption(best: _Best, index: int, schedule: Schedule) -> str:
    kept = f"those of epoch {best.epoch}, validation loss {best.loss:.4g}" if best.epoch else "those it began with"
    left = ", ".join(dict.fromkeys(phase.loss.__name__ for phase in schedule[index + 1 :]))
    return (
        f"Training was interrupted in phase {index + 1} of {len(schedule)}; its best weights so far are kept: "
        f"{kept}." + (f" Phases that did not run: {left}." if left else "")
    )
