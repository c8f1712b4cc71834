r"""How long a phase goes on that was given no number of epochs, and the averaged weights that judge it.

A chart learns without noise, by steps whose rate has to fall to zero for it to become exact; how many it gets, and of
how many rows, grows slowly with the number of rows. Small steps keep it from following few rows too closely. Of a
density nobody knows beforehand how many it needs: few rows are fitted too closely after a hundred, many go on teaching
after ten thousand. Its phase keeps the learning rate and is judged, after each epoch, by the weights averaged over the
last steps,

    a <- a + (w - a) / min(100, 1 + t/10),    t the steps taken,

which lie where the falling rate of a longer schedule would lead. It waits for a better epoch as many steps as it took
to the best one, times 0.5, and 120 at least. Then it goes back to the best weights and lets the rate fall to zero from
there, over half as many steps, which brings what is left to be gained. So the data decide, at a cost of
twice the steps to the best epoch (`notebooks/measurements.md` has what that brought).
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = [
    "LONGEST",
    "Average",
    "epochs_of_fall",
    "gain_that_counts",
    "rows_of_chart",
    "rows_of_step",
    "steps_of_chart",
    "waits_until",
]

FEWEST, SHARE = 120, 0.5
"""Steps without a better epoch before the learning rate falls: at least, and in units of those to the best one."""

FALL = 0.5
"""Steps over which it falls, in units of those to the best epoch."""

LONGEST = 30_000
"""Steps after which it falls in any case."""

MEMORY = 100
"""Steps over which weights are averaged."""


def steps_of_chart(rows: int) -> int:
    """Return how many steps a chart gets that learns from so many rows: 1,300 for 1,000 and 8,200 for 100,000."""
    return round(1300 * max(1.0, rows / 1000) ** 0.4)


def rows_of_chart(rows: int, most: int) -> int:
    """Return how many rows such a step takes: 100 of 1,000 and 400 of 100,000, and no more than `most`."""
    return min(most, round(100 * max(1.0, rows / 1000) ** 0.3))


def rows_of_step(rows: int, most: int) -> int:
    """Return how many rows a step of a density takes: a twentieth of them, between 50 and `most`."""
    return min(most, max(50, rows // 20))


def waits_until(best: int, steps: int) -> int:
    """Return the epoch until which a phase waits for a better one.

    Arguments:
        best: the best epoch so far
        steps: of an epoch
    """
    return best + max(math.ceil(FEWEST / steps), math.ceil(SHARE * best))


def gain_that_counts(rows: int) -> float:
    """Return by how many nats an epoch has to be better than the best one for it to count, before the rate falls.

    Arguments:
        rows: to learn from, which leave more than that undecided
    """
    return min(1e-3, 10 / rows)


def epochs_of_fall(best: int) -> int:
    """Return over how many epochs the learning rate falls from the best one; none if the start was best."""
    return math.ceil(FALL * best)


class Average:
    """The weights of some parts averaged over the last steps.

    Arguments:
        parts: whose weights; none are averaged if None
    """

    def __init__(self, parts: nn.Module | None) -> None:
        self.parts = parts
        self.restart()

    @torch.no_grad()
    def restart(self) -> None:
        """Begin anew at the present weights."""
        self.steps, found = 0, {} if self.parts is None else dict(self.parts.named_parameters())
        self.weights = {name: weight.detach().clone() for name, weight in found.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights after a step into the average."""
        if self.parts is not None:
            self.steps += 1
            share = 1 / min(MEMORY, 1 + self.steps / 10)
            torch._foreach_lerp_(list(self.weights.values()), list(self.parts.parameters()), share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the parts have the averaged weights inside the block."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def restore(self, weights: Mapping[str, Tensor], steps: int) -> None:
        """Take up an average of so many steps."""
        for name, value in weights.items():
            self.weights[name].copy_(value)
        self.steps = steps

    @torch.no_grad()
    def _exchange(self) -> None:
        if self.parts is None:
            return
        for name, weight in self.parts.named_parameters():
            own = weight.clone()
            weight.copy_(self.weights[name])
            self.weights[name] = own
