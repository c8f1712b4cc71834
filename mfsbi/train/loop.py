"""The optimisation loop, the only one: `fit` runs a schedule.

**A schedule.** Each group of parts (chart, latent) has one learning rate, which warms up over its first steps and then
falls to zero along a cosine over all the steps the schedule grants that group, so alternating phases continue where
they left off. One split into training and validation rows serves the whole schedule.

**A phase.** After every epoch the validation loss is taken without gradients. A phase keeps a *copy* of its best
weights, those it began with included, and ends with the best copy in place, also when it is interrupted. It stops early
only if asked to: steps gain most when the learning rate has fallen, and a phase that stops on a plateau of the large
steps never gets there. With `stop_after_epochs` a phase ends when as many epochs brought nothing better, judged by the
mean over the last few. An epoch that loses all that had been learned takes the phase back to its best weights, with a
warning.

**Coordinates.** While the chart stands still its coordinates are computed once for the whole phase. A phase that trains
the density begins by measuring where they lie: reconstruction alone may blow them up to any size, and splines reach six
spreads.

`mfsbi.train.state` says what a training has come to, `mfsbi.train.checkpoint` how one that was stopped goes on, and
`mfsbi.train.ranks` how several processes share one: all of them then call `fit` alike.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from mfsbi.checks import warn
from mfsbi.models import AbstractModel
from mfsbi.seeds import derived, seeded
from mfsbi.train.checkpoint import Keeper
from mfsbi.train.course import LONGEST, epochs_of_fall, gain_that_counts, waits_until
from mfsbi.train.data import Batch, Split, TrainingData, steps_per_epoch
from mfsbi.train.losses import Kind
from mfsbi.train.optimizers import PartsOptimizer
from mfsbi.train.ranks import Ranks
from mfsbi.train.record import EpochRecord, History
from mfsbi.train.schedules import Phase, Schedule, Settings, require_schedule
from mfsbi.train.state import State

__all__ = ["fit", "require_phases"]

COURSE = 20  # parts of an epoch whose training losses are recorded


def fit(
    model: nn.Module,
    data: Split,
    schedule: Schedule,
    settings: Settings | None = None,
    *,
    keep_going: Callable[[int], bool] | None = None,
    history: History | None = None,
    keeper: Keeper | None = None,
) -> History:
    """Train a model in place and return the record of it.

    Ctrl-C ends the training, not the program: the best weights so far are in place and a warning says so.

    Arguments:
        model: its parts, such as chart and latent, are its children; on the device and in the type of the data
        data: rows to learn from, and rows to judge by
        schedule: phases in order, as `sequential()` returns them
        settings: how to optimise; the defaults if not given
        keep_going: asked after each phase, with its index; training ends when it says no
        history: the record to write to, which then survives an error; a new one if not given
        keeper: what keeps the training on disk, if anything, and knows where one that was stopped goes on

    Raises:
        ValueError: if the schedule is empty, or a phase has no epochs or rows or names parts that models do not have;
            if several processes have different rows, or a step has fewer rows than there are processes
        ArithmeticError: if a loss becomes NaN or infinite; the best weights before that are in place
        SystemExit: after SIGTERM, where there are checkpoints; after a second Ctrl-C, where there are several processes
        KeyboardInterrupt: after Ctrl-C, if this is part of another training, which then ends, too
    """
    require_phases(schedule, model)
    settings = Settings() if settings is None else settings
    history = History() if history is None else history
    keeper = Keeper() if keeper is None else keeper
    ranks = keeper.ranks
    _require_rows(ranks, data, schedule, settings)
    rows = data[0].rows
    steps = [(phase.epochs or 0) * steps_per_epoch(rows, _rows_of_step(phase, settings)) for phase in schedule]
    optimizers = {phase.trains: _optimizer(model, phase.trains, schedule, steps, settings) for phase in schedule}
    state = State(model, schedule, optimizers, history, seed=settings.seed, patience=settings.stop_after_epochs)
    show = settings.show_progress_bars if ranks.first else False
    hidden = None if show is None else not show
    total = sum(steps) if all(steps) else None
    bar = tqdm(total=total, disable=hidden, unit="step", leave=False, dynamic_ncols=True)
    with bar, seeded(derived(settings.seed, 0)), keeper.listening():
        try:
            _Run(state, settings, bar, keeper).phases(data, steps, keep_going or (lambda _: True))
        except KeyboardInterrupt:
            history.interrupted = True
            if keeper.outer is not None:
                raise
            warn(_interruption(state))
    return history


class _Run:
    """A training at work: what it has come to, how to go on, the bar that shows it, and what keeps it on disk."""

    def __init__(self, state: State, settings: Settings, bar: tqdm, keeper: Keeper) -> None:
        self.state, self.settings, self.bar, self.keeper = state, settings, bar, keeper
        self.ranks = keeper.ranks
        self.scatter = math.inf  # of the held-out rows' losses about their mean, when last judged

    def phases(self, data: Split, steps: Sequence[int], keep_going: Callable[[int], bool]) -> None:
        """Run the schedule, or what is left of it."""
        state, checkpoints, first = self.state, self.keeper.checkpoints, 0
        start = None if checkpoints is None else checkpoints.taken()
        if start is not None:
            state.restore(start)
            first = state.number
        self.ranks.hand_out(state.model)
        begun, goes_on = start is not None, all(keep_going(number) for number in range(first))
        for number in range(first, len(state.schedule)) if goes_on else ():
            trainable = state.optimizers[state.schedule[number].trains] is not None
            if trainable and (start is None or number > first):
                state.begin(number)
            begun = begun or trainable
            self._show(sum(steps[:number]))
            if trainable:
                self._epochs(data)
            self._show(sum(steps[: number + 1]))
            if not keep_going(number):
                break
        if begun:
            self.keeper.keep(state.snapshot, ended=False)  # a signal may have come after the last step

    def _epochs(self, data: Split) -> None:
        """Run the phase; its records are in the history and the best weights in place however it ends."""
        state, (training, validation) = self.state, data
        try:
            if isinstance(training, Batch):  # of a stream they are computed as they are needed
                training = self._with_coordinates(training)
            validation = self._with_coordinates(validation)
            if state.epoch == 0:
                self._measure_coordinates(training, validation)
                self._keep_if_better(validation)
                state.epoch, state.began = 1, state.best.loss
            steps = steps_per_epoch(training.rows, _rows_of_step(state.phase, self.settings))
            self._show(self.bar.n + steps * (state.epoch - 1) + len(state.losses))
            while self._goes_on(steps):
                record = self._epoch(training, validation)
                state.history.epochs.append(record)
                if self._broke_down(record):
                    self._go_back(record, validation)
                else:
                    least = gain_that_counts(training.rows) if state.ends is None else 0.0
                    if record.validation_loss < state.best.loss - least:
                        with state.average.in_place():
                            state.best.keep(record.validation_loss, state.epoch, self.scatter)
                    state.patience.see(record.validation_loss)
                state.next_epoch(state.epoch + 1)
                self.keeper.keep(state.snapshot, ended=False)
            self.keeper.keep(state.snapshot, ended=True)
        except KeyboardInterrupt:
            self._keep_if_better(validation)
            state.best.restore()
            self._settle(validation)
            raise
        finally:
            state.best.restore()
            state.model.eval()
        self._settle(validation)

    def _show(self, steps: int) -> None:
        """Let the bar say how many steps were taken, if it is known of how many."""
        if self.bar.total is not None:
            self.bar.update(steps - self.bar.n)

    def _goes_on(self, steps: int) -> bool:
        """Return whether there is another epoch, of so many steps; the learning rate may begin to fall with it."""
        state, done = self.state, self.state.epoch - 1
        if state.ends is None:
            longest = self.settings.longest or LONGEST
            waits = done < waits_until(state.best.epoch, steps) and done * steps < longest
            if waits and not state.patience.over:
                return True
            state.fall(epochs_of_fall(state.best.epoch), steps)
        return done < cast(int, state.ends) and not state.patience.over

    def _epoch(self, training: TrainingData, validation: Batch) -> EpochRecord:
        """Pass over the training rows once, then judge by the validation rows."""
        state, phase, bar, began = self.state, self.state.phase, self.bar, time.perf_counter()
        bar.set_description(f"{phase.label} {state.epoch}/{state.ends or '?'}", refresh=False)
        state.generator.set_state(state.order)
        self.ranks.hand_out(state.model)
        size, taken = _rows_of_step(phase, self.settings), len(state.losses)
        for batch in training.minibatches(size, state.generator, skip=taken):
            state.losses.append(self._step(batch))
            if len(state.losses) % 20 == 1:
                bar.set_postfix(loss=f"{float(state.losses[-1]):.4g}", refresh=False)
            bar.update()
            self.keeper.keep(state.snapshot, ended=False)
        where = f"in phase {state.number + 1} ({state.loss.__name__}), epoch {state.epoch}"
        losses = torch.stack(state.losses)
        training_loss = _number(losses.mean(), f"training loss {where}")
        with state.average.in_place():
            validation_loss = _number(self._held_out(validation), f"validation loss {where}")
        bar.set_postfix(loss=f"{training_loss:.4g}", validation=f"{validation_loss:.4g}")
        return EpochRecord(
            phase=state.number,
            loss=state.loss.__name__,
            epoch=state.epoch,
            training_loss=training_loss,
            validation_loss=validation_loss,
            learning_rate=state.optimizer.learning_rate,
            seconds=time.perf_counter() - began,
            course=[float(some.mean()) for some in losses.tensor_split(min(COURSE, len(losses)))],
            nats=state.loss.kind is not Kind.DISTANCE,
        )

    def _broke_down(self, record: EpochRecord) -> bool:
        """Return whether an epoch lost all that had been learned, and by more than rows differ from their mean.

        Both on held-out rows and on those it learned from: a model that merely overfits has not broken down.
        """
        best, least = self.state.best, min(record.validation_loss, record.training_loss)
        return best.epoch > 0 and least > max(self.state.began, best.loss + best.scatter)

    def _go_back(self, record: EpochRecord, validation: Batch) -> None:
        """Take up the best weights again, without the momentum that led away from them, and say so."""
        state = self.state
        state.best.restore()
        state.average.restart()
        state.optimizer.halt()
        self._held_out(validation)
        if self.keeper.outer is None:  # of a training within another nobody knows phases and epochs
            warn(
                f"Training broke down in phase {state.number + 1} ({state.loss.__name__}), epoch {state.epoch}: the "
                f"validation loss went from {state.best.loss:.4g} to {record.validation_loss:.4g}. It goes on from the "
                f"weights of epoch {state.best.epoch}. Should that happen again, take a lower `learning_rate`."
            )

    def _keep_if_better(self, validation: Batch) -> None:
        """Copy the present weights if they do better on the validation rows than the best so far."""
        with self.state.average.in_place():
            loss = float(self._held_out(validation))
            if loss < self.state.best.loss:
                self.state.best.keep(loss, self.state.epoch, self.scatter)

    def _held_out(self, validation: Batch) -> Tensor:
        """Return the mean loss of the validation rows, to which it has adapted if it can."""
        state, validation = self.state, validation.paired
        state.loss = state.loss.adapted(state.model, validation)
        losses = self.ranks.in_shares(lambda rows: state.loss(state.model, rows), validation)
        mean = losses.mean()
        self.scatter = float((losses - mean).abs().mean())
        return mean

    def _step(self, batch: Batch) -> Tensor:
        """Move the weights once along the gradient of the mean loss and return that."""
        state, weights = self.state, self.state.optimizer.weights
        for weight in weights:
            weight.grad = None
        if self.ranks.size > 1:  # each rank draws its own random numbers, the same whenever the step is repeated
            place = state.number, state.epoch, len(state.losses), self.ranks.rank
            torch.manual_seed(derived(self.settings.seed, 2, *place))
        losses = state.loss(state.model, batch.paired.select(self.ranks.share(batch.rows)))
        loss = self.ranks.backward(losses, batch.rows, weights)
        state.optimizer.step(self.settings.clip_max_norm)
        state.average.update()
        return loss

    def _with_coordinates(self, data: Batch) -> Batch:
        """Return the rows with their coordinates, computed once, if the phase leaves the chart alone."""
        moving = self.state.phase.moves("chart") or not isinstance(self.state.model, AbstractModel)
        return replace(data, u=None if moving else self._encode(data))

    def _measure_coordinates(self, training: TrainingData, validation: Batch) -> None:
        """Let the latent density know where the coordinates lie, if the phase trains it and that lowers its loss.

        Members of a stacked density share what coordinates are standardised by: all of them judge it, before the first.
        """
        state, model = self.state, self.state.model
        if not (state.phase.moves("latent") and isinstance(model, AbstractModel)):
            return
        u = self._encode(training.excerpt) if training.u is None else training.u
        learning = [module for module in model.modules() if module.training]
        if all(name in ("chart", "latent") or name.endswith(".0") for name in state.phase.trains):
            model.eval()
            self._try(lambda: model.latent.measure(u), validation)
            for module in learning:
                module.training = True
        if hasattr(model.latent.flow, "measure"):
            self._try(lambda: model.latent.begin(u, training.excerpt.theta), validation)

    def _try(self, change: Callable[[], None], validation: Batch) -> None:
        """Change the latent density, and undo that unless it lowers the loss: it may have learned better already."""
        latent, before = cast(AbstractModel, self.state.model).latent, self._held_out(validation)
        old = {name: value.clone() for name, value in latent.state_dict().items()}
        change()
        if not self._held_out(validation) <= before:
            latent.load_state_dict(old)

    def _settle(self, validation: Batch) -> None:
        """Let the latent density take from held-out rows what it ends with, if the phase trained it."""
        model = self.state.model
        if (
            self.state.phase.moves("latent")
            and isinstance(model, AbstractModel)
            and hasattr(model.latent.flow, "settle")
        ):
            model.latent.settle(self._encode(validation) if validation.u is None else validation.u, validation.theta)

    def _encode(self, data: Batch) -> Tensor:
        model = cast(AbstractModel, self.state.model)
        return self.ranks.in_shares(lambda rows: model.encode(rows.x, rows.theta), data)


def _optimizer(
    model: nn.Module, trains: tuple[str, ...], schedule: Schedule, steps: Sequence[int], settings: Settings
) -> PartsOptimizer | None:
    """Return what moves some parts through the whole schedule, or None if they have nothing to train."""
    parts = nn.ModuleList([model.get_submodule(name) for name in trains])
    if not any(weight.requires_grad for weight in parts.parameters()):
        return None
    own = [(phase, count) for phase, count in zip(schedule, steps, strict=True) if phase.trains == trains]
    rate, decay = own[0][0].rate * settings.learning_rate, own[0][0].decay * settings.weight_decay
    known = all(phase.epochs for phase, _ in own)
    if not known and any(phase.epochs for phase, _ in own):
        raise ValueError(f"Phases that train {trains} should all have a number of epochs, or none of them.")
    return PartsOptimizer(parts, rate, decay, sum(count for _, count in own) if known else None)


def require_phases(schedule: Schedule, model: nn.Module) -> None:
    """Raise ValueError or TypeError unless a schedule can train a model.

    Arguments:
        schedule: a list of phases, each with a loss, epochs and a tuple of parts
        model: which has these parts as its children
    """
    require_schedule(schedule)
    parts = tuple(name for name, _ in model.named_children())
    for phase in schedule:
        inside = dict(model.named_modules()).keys() - {""}
        if not isinstance(phase.trains, tuple) or not set(phase.trains) <= inside:
            raise ValueError(f"A phase should train a tuple of parts out of {parts}; got {phase.trains!r}.")


def _require_rows(ranks: Ranks, data: Split, schedule: Schedule, settings: Settings) -> None:
    """Raise ValueError unless several processes have the same rows, and each one of every step."""
    training, validation = data
    ranks.require_same("numbers of rows to learn from and to judge by", (training.rows, validation.rows))
    if ranks.size > 1:
        digests = training.digest[:8], validation.digest[:8]
        ranks.require_same("digests of rows, which one seed or `Ranks.from_first` gives", digests)
    rows = min(training.rows, *(_rows_of_step(phase, settings) for phase in schedule))
    if rows < ranks.size:
        raise ValueError(
            f"A step should have a row for each of {ranks.size} processes; one has {rows}. Take fewer processes, or a "
            "larger `training_batch_size`."
        )


def _interruption(state: State) -> str:
    """Return what an interrupted training has kept and left out."""
    kept = "those it began with"
    if state.best.epoch > 0:
        kept = f"those of epoch {state.best.epoch}, validation loss {state.best.loss:.4g}"
    left = ", ".join(dict.fromkeys(phase.loss.__name__ for phase in state.schedule[state.number + 1 :]))
    return (
        f"Training was interrupted in phase {state.number + 1} of {len(state.schedule)}; its best weights so far are "
        f"kept: {kept}." + (f" Phases that did not run: {left}." if left else "")
    )


def _rows_of_step(phase: Phase, settings: Settings) -> int:
    """Return how many rows a step of the phase takes."""
    return settings.training_batch_size if phase.rows is None else phase.rows


def _number(loss: Tensor, what: str) -> float:
    """Return a loss as a number, or refuse to go on."""
    value = float(loss)
    if not math.isfinite(value):
        raise ArithmeticError(
            f"The {what} is {value}: training diverged. The best weights before that are kept; "
            "a lower `learning_rate` or `clip_max_norm` usually helps."
        )
    return value
