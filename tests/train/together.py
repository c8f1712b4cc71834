"""What `test_ranks.py` has two processes do: `python -m tests.train.together FOLDER`, with torchrun's environment."""

import os
import signal
import sys
import warnings
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import torch
from torch import Generator

from mfsbi import MFlow, Plan, alternating, sequential, simulate_to_store
from mfsbi.flows import SplineCouplings
from mfsbi.ratio import RatioModel
from mfsbi.train.checkpoint import Checkpoints, Keeper
from mfsbi.train.data import Batch, Stream, split
from mfsbi.train.loop import fit
from mfsbi.train.losses import Alices, Scandal, joint_nll, latent_nll, reconstruction
from mfsbi.train.ranks import Ranks, process_group
from mfsbi.train.schedules import Phase, Settings
from simulators.polynomial import PolynomialSurface

SMALL = SplineCouplings(layers=2, width=8, depth=1)
SETTINGS = Settings(training_batch_size=101, show_progress_bars=False)
NOISY = [Phase(joint_nll, ("chart", "latent"), 2)]
STREAMED = [Phase(reconstruction, ("chart",), 2), Phase(Scandal(), ("latent",), 2)]
SCHEDULES = {
    "sequential": sequential(4),
    "alternating": alternating(4),
    "with scores": [Phase(reconstruction, ("chart",), 1), Phase(Scandal(), ("latent",), 2)],
    "of few rows": [Phase(latent_nll, ("latent",), 1, rows=7)],
    "ratio": [Phase(Alices(), ("network",), 2)],
    "ratio of pairs": [Phase(Alices(), ("network",), 2)],
}
"""Which several processes learn as one does."""


def rows():
    surface = PolynomialSurface()
    theta = 2 * torch.rand(403, 1, generator=Generator().manual_seed(0)) - 1
    x, score, _ = surface.simulate_with_gold(theta, seed=0)
    labels = (torch.arange(len(theta)) % 2).to(x)
    return split([Batch(theta, x, joint_score=score, from_theta=labels)], 0.2, Generator().manual_seed(0))


def streamed(store):
    """Return the rows of a store to learn from, in blocks of two shards, and those of its first shard."""
    return Stream(store.only(store.finished[1:].tolist()), 2000), Stream(store.only([0])).excerpt


def simulated(path):
    plan = Plan(PolynomialSurface(), rows=500, shard_rows=40)
    return simulate_to_store(plan, path, show_progress_bar=False)


def built(name, data):
    torch.manual_seed(Ranks.current().rank)  # which only the first should count
    theta, x = data[0].excerpt.theta, data[0].excerpt.x
    if name.startswith("ratio"):
        return RatioModel(x.mean(0), x.std(0), theta.mean(0), theta.std(0), 8, 1).to(x)
    return MFlow(2, chart=SMALL, latent=SMALL).build(theta, x)


def weights(module):
    return torch.cat([value.flatten().double() for value in module.state_dict().values()])


def learned(name, schedule, data, **keeping):
    """Return the weights and the losses of a training, which all processes should have."""
    model = built(name, data)
    if name == "ratio of pairs":
        data = replace(data[0], from_theta=None), replace(data[1], from_theta=None)
    history = fit(model, data, schedule, SETTINGS, **keeping)
    values = weights(model)
    Ranks.current().require_same("weights", sha256(values.numpy().tobytes()).hexdigest())
    losses = [[epoch.training_loss, epoch.validation_loss] for epoch in history.epochs]
    return values, torch.tensor(losses, dtype=torch.float64)


def signalled(number):
    """Return a schedule in whose ninth step the second process gets a signal."""
    calls = []

    def loss(model, batch):
        calls.append(1)
        if len(calls) == 9 and Ranks.current().rank == 1:
            os.kill(os.getpid(), number)
        return joint_nll(model, batch)

    loss.__name__ = "joint_nll"
    return [NOISY[0]._replace(loss=loss)]


def message(function):
    """Return what an error says."""
    try:
        function()
    except (ValueError, SystemExit) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def keeper(folder, *, resume):
    return Keeper(Checkpoints(folder, {}, minutes=1e9, resume=resume))


def refuse(ranks):
    if ranks.first:
        raise ValueError("on the first alone")
    raise AssertionError("called elsewhere")


def main(folder):
    """Train in every way, and leave what came of it."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    data = rows()
    with process_group() as ranks:
        found = {name: learned(name, schedule, data) for name, schedule in SCHEDULES.items()}
        found["noisy"] = learned("noisy", NOISY, data)
        found["streamed"] = learned("", STREAMED, streamed(ranks.from_first(lambda: simulated(folder / "store"))))
        kept = folder / "kept" if ranks.first else folder / "nobody writes here"
        stopped = signalled(signal.SIGTERM)
        said = {"SIGTERM": message(lambda: learned("", stopped, data, keeper=keeper(kept, resume=False)))}
        found["resumed"] = learned("", NOISY, data, keeper=keeper(kept, resume=True))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found["interrupted"] = learned("", signalled(signal.SIGINT), data)
        said["SIGINT"] = str(caught[-1].message)
        said["from_first"] = message(lambda: ranks.from_first(lambda: refuse(ranks)))
        other = data[0].select(slice(0, data[0].rows - ranks.rank))
        said["other rows"] = message(lambda: learned("", NOISY, (other, data[1])))
        other = data[0].select(torch.arange(data[0].rows).roll(ranks.rank))
        said["another order"] = message(lambda: learned("", NOISY, (other, data[1])))
        few = [NOISY[0]._replace(rows=1)]
        said["few rows"] = message(lambda: learned("", few, data))
        shares = ranks.in_shares(lambda batch: batch.theta[:, 0], data[0].select(slice(0, 1)))
        assert (shares == data[0].theta[:1, 0]).all()
    torch.save((found, said), folder / f"{ranks.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
