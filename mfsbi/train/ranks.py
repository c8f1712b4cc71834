r"""One training by several processes: `torchrun --nproc-per-node 2 -m mfsbi train ...`.

    with process_group() as ranks:
        trainer = ManifoldNLE(prior, MFlow(2), device=ranks.device).append_simulations(theta, x)
        estimator = trainer.train()
        if ranks.first:
            save(estimator, "model.safetensors")

Every process, called a rank, has the same rows, weights and optimisers. All draw the same order of rows, and each takes
its share of a minibatch, of n_r of the n rows. The gradient of the mean loss of the minibatch is a sum over ranks,

    grad 1/n sum_i L_i = sum_r grad [1/n sum_{i in r} L_i],

so each rank divides the sum over its share by n, whatever n_r is, goes backward, and one sum over ranks of one flat
vector, with the loss at its end, leaves the gradient of the whole minibatch everywhere. Then all ranks take the same
step. Parts of a model are moved by different losses, some of them with gradients of gradients, for which torch's
`DistributedDataParallel` has no place. What several ranks learn is what one learns, up to the rounding of sums, which
grows as training goes on (`notebooks/measurements.md`).

| loss | on several ranks |
|---|---|
| `reconstruction`, `latent_nll`, `nll`, `joint` | the same |
| `Scandal`, `Alices` | the same: noise is measured on all held-out rows, and pairs are made before rows are shared |
| these without held-out rows at theta | the noise is that of a share, the same in the limit of large ones |
| `joint_nll` | the same in expectation: the signs of its noisy volume are drawn by each rank for its rows |

**Held-out rows** are shared like those of a step, and their losses brought together in order, as are coordinates that
are computed once for a phase. So best weights, patience, noises and guards see the same numbers on all ranks; weights
are handed out by the first rank before each epoch, should processors round differently. What is done by every rank as a
whole: measuring the noise of joint scores at the end of its regression, the first weights, and reading a stream.

**Random numbers.** With several ranks the generators are seeded anew for each step, from the place of the step and the
rank: noise of different rows is independent, and a checkpoint holds for any number of ranks.

**Files, bar and end.** The first rank alone shows the bar, writes, and reads checkpoints, which it sends to the others:
no file system need be shared. After each step ranks tell each other, in one small sum, whether any was told to end or
interrupted, so that all leave after the same step. A second Ctrl-C ends the process there and then. After an error on
one rank torchrun ends the others.

**Cost.** Each step sends gradients, and each rank moves all weights: ranks gain where the gradients of a minibatch take
longer than that, which those of 500 rows and small networks do not. All rows are in the memory of each rank, and a
`Stream` is read by each, which takes its share of every minibatch.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mfsbi.train.data import Batch, in_chunks

__all__ = ["Ranks", "process_group"]

ResultT = TypeVar("ResultT")

ENVIRONMENT = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}
"""What torchrun tells the processes it starts."""

PATIENCE = timedelta(days=1)
"""For how long ranks wait for one that simulates or writes; torchrun ends them if it dies."""


class Ranks(NamedTuple):
    """This process among those that train together. What it does with others, all have to call.

    Arguments:
        rank: of this process, from 0
        size: how many there are
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> "Ranks":
        """Return those of torch's process group; this process alone if there is none."""
        together = dist.is_available() and dist.is_initialized()
        return cls(dist.get_rank(), dist.get_world_size()) if together else cls()

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks and writes."""
        return self.rank == 0

    @property
    def device(self) -> str:
        """Where this process of `process_group` should train: a GPU of its own if there are any."""
        if "LOCAL_RANK" in os.environ and dist.is_initialized() and torch.cuda.is_available():
            return f"cuda:{os.environ['LOCAL_RANK']}"
        return "cpu"

    def share(self, rows: int) -> slice:
        """Return which rows are this process's; shares differ by one row at most.

        Arguments:
            rows: how many there are for all processes
        """
        return slice(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)

    def backward(self, losses: Tensor, rows: int, weights: Iterable[Tensor]) -> Tensor:
        """Leave in the weights the gradient of the mean loss of all ranks' rows, and return that mean.

        Arguments:
            losses: of this process's share, shape `(share,)`
            rows: of all shares
            weights: whose gradients are wanted; they have none yet
        """
        mean = losses.sum() / rows
        mean.backward()
        if self.size == 1:
            return mean.detach()
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        flat = torch.cat([value.flatten() for value in (*gradients, mean.detach())])
        dist.all_reduce(flat)
        *summed, total = flat.split([value.numel() for value in (*gradients, mean)])
        for gradient, values in zip(gradients, summed, strict=True):
            gradient.copy_(values.view_as(gradient))
        return total.squeeze(0)

    def in_shares(self, function: Callable[[Batch], Tensor], data: Batch) -> Tensor:
        """Return function(data) row by row as `in_chunks` does, each process computing its share.

        Arguments:
            function: of a batch, row by row, to a tensor of as many rows
            data: the same rows on all processes; fewer rows than processes are computed by each of them
        """
        if data.rows < self.size or self.size == 1:
            return in_chunks(function, data)
        mine = self.share(data.rows)
        values = in_chunks(function, data.select(mine))
        everything = values.new_zeros(data.rows, *values.shape[1:])
        everything[mine] = values
        dist.all_reduce(everything)
        return everything

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return of each flag whether it is set on any process."""
        if self.size == 1:
            return flags
        counts = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(counts)
        return tuple((counts > 0).tolist())

    def hand_out(self, module: nn.Module) -> None:
        """Give all processes the weights and buffers of the first."""
        if self.size == 1:
            return
        for value in module.state_dict().values():
            theirs = value.contiguous()
            dist.broadcast(theirs, src=0)
            value.copy_(theirs)

    def from_first(self, function: Callable[[], ResultT]) -> ResultT:
        """Return what a function returns on the first process, the only one to call it, or raise what it raises.

        The result travels by pickle, between processes of one program.
        """
        if self.size == 1:
            return function()
        told: list[Any] = [None, None]
        if self.first:
            try:
                told[0] = function()
            except Exception as error:
                told[1] = error
        dist.broadcast_object_list(told, src=0)
        if told[1] is not None:
            raise told[1]
        return told[0]

    def require_same(self, what: str, value: object) -> None:
        """Raise ValueError on all processes unless they have the same value.

        Arguments:
            what: the values are, for the message
            value: that of this process, which can be pickled
        """
        if self.size == 1:
            return
        values = [None] * self.size
        dist.all_gather_object(values, value)
        if any(other != value for other in values):
            raise ValueError(f"All processes should have the same {what}; they have {values}.")


@contextmanager
def process_group() -> Iterator[Ranks]:
    """Join the processes that torchrun started, and part from them in the end; without torchrun there are none.

    They talk by gloo, and GPUs by nccl where there are any.

    Raises:
        ValueError: if there are GPUs, but fewer than processes on this machine
    """
    if not os.environ.keys() >= ENVIRONMENT:
        yield Ranks()
        return
    on_gpus, local = torch.cuda.is_available(), int(os.environ["LOCAL_RANK"])
    if on_gpus and local >= torch.cuda.device_count():
        raise ValueError(
            f"There should be a GPU for each process; there are {torch.cuda.device_count()} on this machine. Lower "
            "`--nproc-per-node`, or hide them by CUDA_VISIBLE_DEVICES= to train on processors."
        )
    if on_gpus:
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo", timeout=PATIENCE)
    try:
        yield Ranks.current()
    finally:
        dist.destroy_process_group()
