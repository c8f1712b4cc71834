"""One phase of a training: epochs of steps, the best weights, and an early end if asked for.

After every epoch the validation loss is taken without gradients. A phase keeps a *copy* of its best weights, those it
began with included, and ends with the best copy in place, also when it is interrupted. It stops early only if asked to:
steps gain most when the learning rate has fallen, and a phase that stops on a plateau of the large steps never gets
there. With `stop_after_epochs` a phase ends when as many epochs brought nothing better, judged by the mean over the
last few. An epoch that loses all that had been learned takes the phase back to its best weights, with a warning.

While the chart stands still its coordinates are computed once for the whole phase. A phase that trains the density
begins by measuring where they lie: reconstruction alone may blow them up to any size, and splines reach six spreads.
"""

import math
import time
import warnings
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor
from tqdm.auto import tqdm

from mfsbi.models import AbstractModel
from mfsbi.seeds import derived
from mfsbi.train.checkpoint import Keeper
from mfsbi.train.data import Batch, steps_per_epoch
from mfsbi.train.losses import Kind
from mfsbi.train.record import EpochRecord, Settings
from mfsbi.train.schedules import Phase
from mfsbi.train.state import State
from mfsbi.train.stream import Split, TrainingData

__all__ = ["PhaseRun", "rows_of_step"]

COURSE = 20  # parts of an epoch whose training losses are recorded


class PhaseRun:
    """Runs the phase that a state is in; its loss may adapt to the held-out rows before each epoch.

    Arguments:
        state: what the training has come to
        settings: how to optimise
        bar: shows the steps
        keeper: asked after each step whether to write a checkpoint, or to leave
    """

    def __init__(self, state: State, settings: Settings, bar: tqdm, keeper: Keeper) -> None:
        self.state, self.settings, self.bar, self.keeper = state, settings, bar, keeper
        self.ranks = keeper.ranks
        self.scatter = math.inf  # of the held-out rows' losses about their mean, when last judged

    def epochs(self, data: Split) -> None:
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
            steps = steps_per_epoch(training.rows, rows_of_step(state.phase, self.settings))
            self.bar.update(steps * (state.epoch - 1) + len(state.losses))
            while state.epoch <= state.phase.epochs and not state.patience.over:
                record = self._epoch(training, validation)
                state.history.epochs.append(record)
                if self._broke_down(record):
                    self._go_back(record, validation)
                else:
                    if record.validation_loss < state.best.loss:
                        state.best.keep(record.validation_loss, state.epoch, self.scatter)
                    state.patience.see(record.validation_loss)
                state.next_epoch(state.epoch + 1)
                self.keeper.keep(state.snapshot, ended=False)
            self.keeper.keep(state.snapshot, ended=True)
        except KeyboardInterrupt:
            self._keep_if_better(validation)
            raise
        finally:
            state.best.restore()

    def _epoch(self, training: TrainingData, validation: Batch) -> EpochRecord:
        """Pass over the training rows once, then judge by the validation rows."""
        state, phase, bar, began = self.state, self.state.phase, self.bar, time.perf_counter()
        bar.set_description(f"{'+'.join(phase.trains)} {state.epoch}/{phase.epochs}", refresh=False)
        state.generator.set_state(state.order)
        self.ranks.hand_out(state.model)
        size, taken = rows_of_step(phase, self.settings), len(state.losses)
        for batch in training.minibatches(size, state.generator, skip=taken):
            state.losses.append(self._step(batch))
            if len(state.losses) % 20 == 1:
                bar.set_postfix(loss=f"{float(state.losses[-1]):.4g}", refresh=False)
            bar.update()
            self.keeper.keep(state.snapshot, ended=False)
        where = f"in phase {state.number + 1} ({state.loss.__name__}), epoch {state.epoch}"
        losses = torch.stack(state.losses)
        training_loss = _number(losses.mean(), f"training loss {where}")
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
        state.optimizer.halt()
        self._held_out(validation)
        warnings.warn(
            f"Training broke down in phase {state.number + 1} ({state.loss.__name__}), epoch {state.epoch}: the "
            f"validation loss went from {state.best.loss:.4g} to {record.validation_loss:.4g}. The weights of epoch "
            f"{state.best.epoch} are taken up again; if this is said once more, take a lower `learning_rate`.",
            stacklevel=2,
        )

    def _keep_if_better(self, validation: Batch) -> None:
        """Copy the present weights if they do better on the validation rows than the best so far."""
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
        state, parts = self.state, self.state.optimizer.parts
        parts.zero_grad(set_to_none=True)
        if self.ranks.size > 1:  # each rank draws its own random numbers, the same whenever the step is repeated
            place = state.number, state.epoch, len(state.losses), self.ranks.rank
            torch.manual_seed(derived(self.settings.seed, 2, *place))
        losses = state.loss(state.model, batch.paired.select(self.ranks.share(batch.rows)))
        loss = self.ranks.backward(losses, batch.rows, parts.parameters())
        state.optimizer.step(self.settings.clip_max_norm)
        return loss

    def _with_coordinates(self, data: Batch) -> Batch:
        """Return the rows with their coordinates, computed once, if the phase leaves the chart alone."""
        moving = "chart" in self.state.phase.trains or not isinstance(self.state.model, AbstractModel)
        return replace(data, u=None if moving else self._encode(data))

    def _measure_coordinates(self, training: TrainingData, validation: Batch) -> None:
        """Let the latent density know where the coordinates lie, if the phase trains it and that lowers its loss."""
        if "latent" in self.state.phase.trains and isinstance(self.state.model, AbstractModel):
            latent, before = self.state.model.latent, self._held_out(validation)
            old = [value.clone() for value in latent.frame]
            latent.measure(self._encode(training.excerpt) if training.u is None else training.u)
            if not self._held_out(validation) <= before:  # it had learned better than that already
                latent.set_scaling(*old)

    def _encode(self, data: Batch) -> Tensor:
        model = cast(AbstractModel, self.state.model)
        return self.ranks.in_shares(lambda rows: model.encode(rows.x, rows.theta), data)


def rows_of_step(phase: Phase, settings: Settings) -> int:
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
