"""All that a training has come to between two steps, and the names under which a checkpoint holds it.

| tensors | |
|---|---|
| `model.*` | weights and buffers |
| `best.*` | the best of those that the phase trains |
| `order` | state of the generator of the order of rows, before the epoch under way |
| `losses` | of the steps of that epoch; missing before the first |
| `average.*` | averaged weights, in a phase without a number of epochs |
| `noise`, `size.*` | what the losses keep (`AbstractLoss.state`) |
| `optimizer.N.taken`, `optimizer.N.usual_norm` | steps and usual gradient of the N-th group of parts |
| `optimizer.N.I.J.*` | what its I-th optimiser remembers of its J-th weight |
| `random.cpu`, `random.cuda.N` | states of torch's generators |

| numbers | |
|---|---|
| `phase`, `epoch` | under way, phases counted from 0 and epochs from 1 |
| `best` | loss, epoch and scatter of the best weights |
| `began` | the validation loss that the phase began with |
| `averaged`, `ends`, `falls` | steps averaged; the last epoch; `PartsOptimizer.falls`: without a number of epochs |
| `recent`, `patience` | the last validation losses; the least mean of them, and epochs since |
| `history` | the record up to there |

Numbers are what JSON can hold.
"""

import math
from collections import deque
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from mfsbi.train.course import Average
from mfsbi.train.losses import as_loss
from mfsbi.train.optimizers import NEVER, PartsOptimizer
from mfsbi.train.record import History
from mfsbi.train.schedules import Phase, Schedule

__all__ = ["Best", "Patience", "Snapshot", "State"]

NOT_OF_LOSSES = "model.", "best.", "average.", "optimizer.", "random."

SMOOTH = 5  # epochs whose validation losses are averaged to decide when to stop


class Snapshot(NamedTuple):
    """A training between two steps.

    Arguments:
        tensors: by name
        numbers: everything else, as JSON can hold it
    """

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]

    @property
    def history(self) -> History:
        """The record up to there."""
        return History.of_record(self.numbers["history"])

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names begin like this, without that."""
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}


class Best:
    """A copy of the best weights of some parts; `state_dict` alone is a live view and restores nothing.

    Epoch 0 stands for the weights the phase began with.
    """

    def __init__(self, parts: nn.Module) -> None:
        self.parts = parts
        self.keep(math.inf, 0, math.inf)

    def keep(self, loss: float, epoch: int, scatter: float) -> None:
        """Copy the present weights, with their validation loss and how far rows scatter about it.

        Arguments:
            loss: mean over held-out rows
            epoch: after which; 0 for the weights the phase began with
            scatter: mean distance of the rows' losses from that mean
        """
        self.weights = {name: value.detach().clone() for name, value in self.parts.state_dict().items()}
        self.loss, self.epoch, self.scatter = loss, epoch, scatter  # after them, since Ctrl-C may come between

    def restore(self) -> None:
        """Put the copy in place."""
        self.parts.load_state_dict(self.weights)


class Patience:
    """Ends when the mean of the last few losses has had no new minimum for a number of epochs."""

    def __init__(self, epochs: int | None) -> None:
        self.epochs = math.inf if epochs is None else epochs
        self.recent: deque[float] = deque(maxlen=SMOOTH)
        self.least, self.waited = math.inf, 0

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.waited >= self.epochs

    def see(self, loss: float) -> None:
        """Take the loss of one more epoch."""
        self.recent.append(loss)
        mean = math.fsum(self.recent) / len(self.recent)
        self.waited = 0 if mean < self.least else self.waited + 1
        self.least = min(mean, self.least)


class State:
    """A training at work.

    Arguments:
        model: what is trained
        schedule: its phases
        optimizers: by the parts they move; None where parts have nothing to train
        history: its record
        seed: of the order of the rows
        patience: epochs without a better loss before a phase stops; None for no early end

    Attributes:
        number: the phase under way, counted from 0
        loss: of that phase, with the settings it has come to
        epoch: the one under way, counted from 1; 0 before the phase has begun
        losses: of the steps taken in it
        order: the state of the generator before it
        began: the validation loss that the phase began with
        average: of the weights, where the phase has no number of epochs
        ends: the last epoch, once that is known; None before
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        optimizers: dict[tuple[str, ...], PartsOptimizer | None],
        history: History,
        *,
        seed: int,
        patience: int | None,
    ) -> None:
        self.model, self.schedule, self.optimizers, self.history = model, schedule, optimizers, history
        self.generator, self.stop_after = Generator().manual_seed(seed), patience
        self.number, self.best, self.average = 0, Best(nn.Module()), Average(None)  # until a phase begins

    @property
    def phase(self) -> Phase:
        """The phase under way."""
        return self.schedule[self.number]

    @property
    def optimizer(self) -> PartsOptimizer:
        """What moves its parts."""
        found = self.optimizers[self.phase.trains]
        assert found is not None
        return found

    def begin(self, number: int) -> None:
        """Take up a phase from its beginning."""
        self.number, self.loss = number, as_loss(self.schedule[number].loss)
        self.best, self.patience = Best(self.optimizer.parts), Patience(self.stop_after)
        self.model.eval()
        for name in self.phase.trains:
            self.model.get_submodule(name).train()
        self.epoch, self.began, self.ends = 0, math.inf, self.phase.epochs
        self.average = Average(self.optimizer.parts if self.ends is None else None)
        self.optimizer.falls = NEVER
        self.optimizer.set_learning_rate()
        self.next_epoch(0)

    def next_epoch(self, epoch: int) -> None:
        """Go on to an epoch of which no step has been taken."""
        self.epoch, self.order = epoch, self.generator.get_state()
        self.losses: list[Tensor] = []

    def fall(self, epochs: int, steps: int) -> None:
        """Go back to the best weights and let the learning rate fall to zero from there.

        Arguments:
            epochs: over which it falls
            steps: of an epoch
        """
        self.ends, self.patience = self.epoch - 1 + epochs, Patience(None)
        self.best.restore()
        self.average.restart()
        if epochs:
            self.optimizer.fall(epochs * steps)

    def snapshot(self) -> Snapshot:
        """Return the state as tensors and numbers."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.weights.items()} | {"order": self.order}
        tensors |= {f"average.{name}": value for name, value in self.average.weights.items()}
        if self.losses:
            tensors["losses"] = torch.stack(self.losses)
        for loss in (*(as_loss(phase.loss) for phase in self.schedule), self.loss):
            tensors |= loss.state()
        for index, optimizer in enumerate(self.optimizers.values()):
            remembered = {} if optimizer is None else _remembered(optimizer)
            tensors |= {f"optimizer.{index}.{name}": value for name, value in remembered.items()}
        tensors["random.cpu"] = torch.get_rng_state()
        gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        tensors |= {f"random.cuda.{index}": value for index, value in enumerate(gpus)}
        best, patience = self.best, self.patience
        numbers = {
            "phase": self.number,
            "epoch": self.epoch,
            "best": [best.loss, best.epoch, best.scatter],
            "recent": list(patience.recent),
            "patience": [patience.least, patience.waited],
            "began": self.began,
            "history": self.history.as_record(),
        }
        if self.phase.epochs is None:
            falls = None if self.optimizer.falls == NEVER else self.optimizer.falls
            numbers |= {"averaged": self.average.steps, "ends": self.ends, "falls": falls}
        return Snapshot(tensors, numbers)

    def restore(self, snapshot: Snapshot) -> None:
        """Take up what `snapshot` returned, in this process or another.

        The generators of torch, on the processor and on GPUs that are there, go on as they were, too.

        Arguments:
            snapshot: of a training of the same model, schedule and optimisers
        """
        tensors, numbers = snapshot
        self.model.load_state_dict(snapshot.part("model."))
        for index, optimizer in enumerate(self.optimizers.values()):
            if optimizer is not None:
                _remember(optimizer, snapshot.part(f"optimizer.{index}."))
        self.history.epochs[:], self.history.coordinates = snapshot.history.epochs, snapshot.history.coordinates
        self.begin(numbers["phase"])
        device = next(self.optimizer.parts.parameters()).device
        rest = {name: value for name, value in tensors.items() if not name.startswith(NOT_OF_LOSSES)}
        here = {name: value.to(device) for name, value in rest.items()}
        self.loss = [as_loss(phase.loss).restored(here) for phase in self.schedule][self.number]
        self.best.weights = snapshot.part("best.")
        self.best.loss, self.best.epoch, self.best.scatter = numbers["best"]
        self.patience.recent.extend(numbers["recent"])
        self.patience.least, self.patience.waited = numbers["patience"]
        self.epoch, self.began, self.order = numbers["epoch"], numbers["began"], tensors["order"]
        if self.phase.epochs is None:
            self.average.restore(snapshot.part("average."), numbers["averaged"])
            self.ends, self.optimizer.falls = numbers["ends"], tuple(numbers["falls"] or NEVER)
            if self.ends is not None:
                self.patience = Patience(None)
            self.optimizer.set_learning_rate()
        self.losses = list(here.get("losses", ()))
        self.generator.set_state(self.order)
        torch.set_rng_state(tensors["random.cpu"])
        for name, value in snapshot.part("random.cuda.").items():
            if int(name) < torch.cuda.device_count():  # another machine may have fewer
                torch.cuda.set_rng_state(value, int(name))


def _remembered(optimizer: PartsOptimizer) -> dict[str, Tensor]:
    """Return all that an optimiser remembers, by name."""
    tensors = {"taken": torch.tensor(optimizer.taken)}
    if optimizer.usual_norm is not None:
        tensors["usual_norm"] = optimizer.usual_norm
    for number, each in enumerate(optimizer.optimizers):
        for index, values in each.state_dict()["state"].items():
            tensors |= {f"{number}.{index}.{name}": value for name, value in values.items()}
    return tensors


def _remember(optimizer: PartsOptimizer, tensors: dict[str, Tensor]) -> None:
    """Let an optimiser of the same weights remember what `_remembered` returned."""
    usual, device = tensors.get("usual_norm"), next(optimizer.parts.parameters()).device
    optimizer.taken, optimizer.usual_norm = int(tensors["taken"]), None if usual is None else usual.to(device)
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizer.optimizers]
    for name, value in tensors.items():
        if name.count(".") == 2:
            number, index, key = name.split(".")
            states[int(number)].setdefault(int(index), {})[key] = value
    for each, state in zip(optimizer.optimizers, states, strict=True):
        each.load_state_dict(each.state_dict() | {"state": state})
    optimizer.set_learning_rate()
