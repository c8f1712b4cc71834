"""Ten million rows of forty features, 1.6 GB: learned from in bounded memory, at nearly the speed of memory."""

import json
import subprocess
import sys

import pytest
import torch
from torch.distributions import Independent, Uniform

from mfsbi import Plan, simulate_to_store

pytestmark = pytest.mark.slow

ROWS, SHARD = 10_000_000, 100_000
TRAINING = """
import json, resource, sys, time, warnings
import torch
from mfsbi import AffineCouplings, ManifoldNLE, MFlow, Store
import mfsbi.plugin.rounds as simulations
torch.set_num_threads(1)
prior = torch.distributions.Independent(torch.distributions.Uniform(torch.tensor([-1.0]), torch.tensor([1.0])), 1)
store, streamed, rows = Store(sys.argv[1]), sys.argv[2] == "streamed", int(sys.argv[3])
store = store.only(store.finished[: rows // store.layout.shard_rows].tolist())
small = AffineCouplings(layers=2, width=32)
if not streamed:
    simulations.IN_MEMORY = 1e12
trainer = ManifoldNLE(prior, MFlow(14, chart=small, latent=small), show_progress_bars=False)
trainer.append_simulations(store)
warnings.simplefilter("ignore")
trainer.train(max_num_epochs=2, training_batch_size=1000, validation_fraction=0.01, restarts=0)
epochs = trainer.history.epochs
print(json.dumps({
    "streamed": trainer.simulations.store is not None,
    "rows_per_second": [rows / epoch.seconds for epoch in epochs],
    "validation": [epoch.validation_loss for epoch in epochs],
    "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
}))
"""


class Plane:
    """Rows on a bent plane of 14 dimensions in 40."""

    parameter_names = ("shift",)
    prior = Independent(Uniform(torch.tensor([-1.0]), torch.tensor([1.0])), 1)

    def simulate(self, theta, *, seed=None):
        generator = torch.Generator().manual_seed(0 if seed is None else seed)
        u = torch.randn(len(theta), 14, generator=generator) + theta
        mixing = torch.randn(14, 26, generator=torch.Generator().manual_seed(0))
        return torch.cat([u, (u @ mixing).tanh()], dim=1)


def measured(path, how, rows):
    done = subprocess.run(
        [sys.executable, "-c", TRAINING, str(path), how, str(rows)], stdout=subprocess.PIPE, check=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def seconds_per_row(found):
    return sum(1 / rate for rate in found["rows_per_second"])


def test_a_store_larger_than_memory_is_learned_from_in_little_memory_and_hardly_slower(tmp_path):
    simulate_to_store(Plan(Plane(), rows=ROWS, shard_rows=SHARD), tmp_path / "sims", show_progress_bar=False)
    streamed = measured(tmp_path / "sims", "streamed", ROWS)
    at_once = measured(tmp_path / "sims", "at once", ROWS)
    print(streamed, at_once)  # noqa: T201 - to be quoted
    assert streamed["streamed"]
    assert not at_once["streamed"]
    assert streamed["gib"] <= 1.5
    assert (
        seconds_per_row(streamed) <= seconds_per_row(at_once) / 0.7
    )  # of an epoch of the chart and one of the density
    assert streamed["validation"][0] < 1.1 * at_once["validation"][0]
