"""One phase of a training: epochs of steps, the best weights, and an early end if asked for.

After every epoch the validation loss is taken without gradients. A phase keeps a *copy* of its best weights, those it
began with included, and ends with the best copy in place, also when it is interrupted. It stops early only if asked to:
steps gain most when the learning rate has fallen, and a phase that stops on a plateau of the large steps never gets
there. With `stop_after_epochs` a phase ends when as many epochs brought nothing better, judged by the mean over the
last few. An epoch that loses all that had been learned takes the phase back to its best weights, with a warning.
While the chart stands still its coordinates are computed once for the whole phase. A phase that trains the density
begins by measuring where they lie: reconstruction alone may blow them up to any size, and splines reach six spreads (a
chart of the Lorenz attractor had coordinates up to 24, and its density stayed on a patch).
"""

import math
import time
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Generator, Tensor, nn
from tqdm.auto import tqdm

from mfsbi.models import AbstractModel
from mfsbi.seeds import derived
from mfsbi.train.checkpoint import Snapshot
from mfsbi.train.data import Batch, steps_per_epoch
from mfsbi.train.losses import Adaptive
from mfsbi.train.optimizers import PartsOptimizer
from mfsbi.train.ranks import Ranks
from mfsbi.train.record import EpochRecord, History, Settings
from mfsbi.train.schedules import Phase
from mfsbi.train.stream import TrainingData

__all__ = ["PhaseRun", "rows_of_step"]

COURSE = 20  # parts of an epoch whose training losses are recorded
SMOOTH = 5  # epochs whose validation losses are averaged to decide when to stop


class PhaseRun:
    """One phase at work; its loss may adapt to the held-out rows before each epoch.

    Attributes:
        epoch: the one under way, counted from 1; 0 before the phase has begun
        losses: of the steps taken in it
        order: the state of the generator before it
    """

    def __init__(
        self,
        model: nn.Module,
        number: int,
        phase: Phase,
        optimizer: PartsOptimizer,
        settings: Settings,
        generator: Generator,
    ) -> None:
        self.model, self.number, self.phase = model, number, phase
        self.optimizer, self.settings, self.generator = optimizer, settings, generator
        self.loss, self.ranks = phase.loss, Ranks.current()
        self.best, self.patience = _Best(optimizer.parts), _Patience(settings.stop_after_epochs)
        self.epoch, self.order = 0, generator.get_state()
        self.began = math.inf  # at which validation loss
        self.scatter = math.inf  # of the held-out rows' losses about their mean, when last judged
        self.losses: list[Tensor] = []

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all that the phase has come to, as tensors and numbers."""
        tensors = {f"best.{name}": value for name, value in self.best.weights.items()} | {"order": self.order}
        if self.losses:
            tensors["losses"] = torch.stack(self.losses)
        if isinstance(self.loss, Adaptive) and self.loss.noise is not None:
            tensors["noise"] = self.loss.noise
        best, patience = self.best, self.patience
        numbers = {"epoch": self.epoch, "best": [best.loss, best.epoch, best.scatter], "recent": list(patience.recent)}
        return tensors, numbers | {"patience": [patience.least, patience.waited], "began": self.began}

    def restore(self, snapshot: Snapshot) -> None:
        """Take up what `state` returned."""
        tensors, numbers = snapshot.tensors, snapshot.numbers
        self.best.weights = snapshot.part("best.")
        self.best.loss, self.best.epoch, self.best.scatter = numbers["best"]
        self.patience.recent.extend(numbers["recent"])
        self.patience.least, self.patience.waited = numbers["patience"]
        self.epoch, self.began, self.order = numbers["epoch"], numbers["began"], tensors["order"]
        self.generator.set_state(self.order)
        device = next(self.optimizer.parts.parameters()).device
        self.losses = list(tensors["losses"].to(device)) if "losses" in tensors else []
        if "noise" in tensors:
            self.loss = replace(cast(Any, self.loss), noise=tensors["noise"].to(device))

    def epochs(
        self, training: TrainingData, validation: Batch, bar: tqdm, history: History, keep: Callable[..., None]
    ) -> None:
        """Run the phase; its records are in `history` and the best weights in place however it ends."""
        try:
            if isinstance(training, Batch):  # of a stream they are computed as they are needed
                training = self._with_coordinates(training)
            validation = self._with_coordinates(validation)
            if self.epoch == 0:
                self._measure_coordinates(training, validation)
                self._keep_if_better(validation)
                self.epoch, self.began = 1, self.best.loss
            steps = steps_per_epoch(training.rows, rows_of_step(self.phase, self.settings))
            bar.update(steps * (self.epoch - 1) + len(self.losses))
            while self.epoch <= self.phase.epochs and not self.patience.over:
                bar.set_description(f"{'+'.join(self.phase.trains)} {self.epoch}/{self.phase.epochs}", refresh=False)
                record = self._epoch(training, validation, bar, keep)
                history.epochs.append(record)
                if self._broke_down(record):
                    self._go_back(record, validation)
                else:
                    if record.validation_loss < self.best.loss:
                        self.best.keep(record.validation_loss, self.epoch, self.scatter)
                    self.patience.see(record.validation_loss)
                self.epoch, self.losses, self.order = self.epoch + 1, [], self.generator.get_state()
                keep(ended=False)
            keep(ended=True)
        except KeyboardInterrupt:
            self._keep_if_better(validation)
            raise
        finally:
            self.best.restore()

    def _epoch(self, training: TrainingData, validation: Batch, bar: tqdm, keep: Callable[..., None]) -> EpochRecord:
        """Pass over the training rows once, then judge by the validation rows."""
        began = time.perf_counter()
        self.generator.set_state(self.order)
        self.ranks.hand_out(self.model)
        size, taken = rows_of_step(self.phase, self.settings), len(self.losses)
        for batch in training.minibatches(size, self.generator, skip=taken):
            self.losses.append(self._step(batch))
            if len(self.losses) % 20 == 1:
                bar.set_postfix(loss=f"{float(self.losses[-1]):.4g}", refresh=False)
            bar.update()
            keep(ended=False)
        where = f"in phase {self.number + 1} ({self.phase.loss.__name__}), epoch {self.epoch}"
        losses = torch.stack(self.losses)
        training_loss = _number(losses.mean(), f"training loss {where}")
        validation_loss = _number(self._held_out(validation), f"validation loss {where}")
        bar.set_postfix(loss=f"{training_loss:.4g}", validation=f"{validation_loss:.4g}")
        return EpochRecord(
            phase=self.number,
            loss=self.phase.loss.__name__,
            epoch=self.epoch,
            training_loss=training_loss,
            validation_loss=validation_loss,
            learning_rate=self.optimizer.learning_rate,
            seconds=time.perf_counter() - began,
            course=[float(some.mean()) for some in losses.tensor_split(min(COURSE, len(losses)))],
        )

    def _broke_down(self, record: EpochRecord) -> bool:
        """Return whether an epoch lost all that had been learned, and by more than rows differ from their mean.

        On held-out rows, that is, and on those it learned from as well: rows learned by heart are no break-down.
        """
        best, least = self.best, min(record.validation_loss, record.training_loss)
        return best.epoch > 0 and least > max(self.began, best.loss + best.scatter)

    def _go_back(self, record: EpochRecord, validation: Batch) -> None:
        """Take up the best weights again, without the momentum that led away from them, and say so."""
        self.best.restore()
        self.optimizer.halt()
        self._held_out(validation)
        warnings.warn(
            f"Training broke down in phase {self.number + 1} ({self.phase.loss.__name__}), epoch {self.epoch}: the "
            f"validation loss went from {self.best.loss:.4g} to {record.validation_loss:.4g}. The weights of epoch "
            f"{self.best.epoch} are taken up again; if this is said once more, take a lower `learning_rate`.",
            stacklevel=2,
        )

    def _keep_if_better(self, validation: Batch) -> None:
        """Copy the present weights if they do better on the validation rows than the best so far."""
        loss = float(self._held_out(validation))
        if loss < self.best.loss:
            self.best.keep(loss, self.epoch, self.scatter)

    def _held_out(self, validation: Batch) -> Tensor:
        """Return the mean loss of the validation rows, to which it has adapted if it can."""
        validation = validation.paired
        if isinstance(self.loss, Adaptive):
            self.loss = self.loss.adapted(self.model, validation)
        losses = self.ranks.in_shares(lambda rows: self.loss(self.model, rows), validation)
        mean = losses.mean()
        self.scatter = float((losses - mean).abs().mean())
        return mean

    def _step(self, batch: Batch) -> Tensor:
        """Move the weights once along the gradient of the mean loss and return that."""
        parts = self.optimizer.parts
        parts.zero_grad(set_to_none=True)
        if self.ranks.size > 1:
            torch.manual_seed(self._seed_of_step())
        losses = self.loss(self.model, batch.paired.select(self.ranks.share(batch.rows)))
        loss = self.ranks.backward(losses, batch.rows, parts.parameters())
        self.optimizer.step(self.settings.clip_max_norm)
        return loss

    def _seed_of_step(self) -> int:
        """Return a seed of this rank's own for the step that comes."""
        return derived(self.settings.seed, 2, self.number, self.epoch, len(self.losses), self.ranks.rank)

    def _with_coordinates(self, data: Batch) -> Batch:
        """Return the rows with their coordinates, computed once, if the phase leaves the chart alone."""
        moving = "chart" in self.phase.trains or not isinstance(self.model, AbstractModel)
        return replace(data, u=None if moving else self._encode(data))

    def _measure_coordinates(self, training: TrainingData, validation: Batch) -> None:
        """Let the latent density know where the coordinates lie, if the phase trains it and that lowers its loss."""
        if "latent" in self.phase.trains and isinstance(self.model, AbstractModel):
            latent, before = self.model.latent, self._held_out(validation)
            old = [value.clone() for value in latent.scaling]
            latent.measure(self._encode(training.excerpt) if training.u is None else training.u)
            if not self._held_out(validation) <= before:  # it had learned better than that already
                latent.set_scaling(*old)

    def _encode(self, data: Batch) -> Tensor:
        model = cast(AbstractModel, self.model)
        return self.ranks.in_shares(lambda rows: model.encode(rows.x, rows.theta), data)


class _Best:
    """A copy of the best weights of some parts; `state_dict` alone is a live view and restores nothing.

    Epoch 0 stands for the weights the phase began with.
    """

    def __init__(self, parts: nn.Module) -> None:
        self.parts = parts
        self.keep(math.inf, 0, math.inf)

    def keep(self, loss: float, epoch: int, scatter: float) -> None:
        self.weights = {name: value.detach().clone() for name, value in self.parts.state_dict().items()}
        self.loss, self.epoch, self.scatter = loss, epoch, scatter  # after them, since Ctrl-C may come between

    def restore(self) -> None:
        self.parts.load_state_dict(self.weights)


class _Patience:
    """Ends when the mean of the last few losses has had no new minimum for a number of epochs."""

    def __init__(self, epochs: int | None) -> None:
        self.epochs = math.inf if epochs is None else epochs
        self.recent: deque[float] = deque(maxlen=SMOOTH)
        self.least, self.waited = math.inf, 0

    @property
    def over(self) -> bool:
        return self.waited >= self.epochs

    def see(self, loss: float) -> None:
        self.recent.append(loss)
        mean = math.fsum(self.recent) / len(self.recent)
        self.waited = 0 if mean < self.least else self.waited + 1
        self.least = min(mean, self.least)


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
