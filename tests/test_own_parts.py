from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pytest
import torch
from torch import nn

from mfsbi import ManifoldNLE, MFlow, load, load_trainer, save, sequential
from mfsbi.charts import AbstractChart, ChartConfig
from mfsbi.flows import FlowConfig
from mfsbi.networks import perceptron
from mfsbi.plugin import describing
from tests.problems import plane, surface_data


class Graph(AbstractChart):
    """The graph v = g(u) of a network."""

    def __init__(self, data_dim, manifold_dim, width):
        super().__init__(data_dim, manifold_dim)
        self.network = perceptron([manifold_dim, width, data_dim - manifold_dim], nn.Tanh)
        for weight in self.network[-1].parameters():
            nn.init.zeros_(weight)

    def decode(self, u):
        return torch.cat([u, self.network(u)], -1)

    def encode(self, x):
        return x[..., : self.manifold_dim]


@dataclass(frozen=True)
class MyChart(ChartConfig):
    width: int = 8

    def build(self, data_dim, manifold_dim, parameters=0):
        return Graph(data_dim, manifold_dim, self.width)


class Normal(nn.Module):
    """y = (x - a theta - b) exp(-c): a normal density whose mean moves with theta."""

    def __init__(self, features, parameters):
        super().__init__()
        self.features, self.parameter_dim = features, parameters
        self.mean, self.log_std = nn.Linear(parameters, features), nn.Parameter(torch.zeros(features))

    def forward_and_log_det(self, x, theta=None):
        return (x - self.mean(theta)) * (-self.log_std).exp(), -self.log_std.sum().expand(x.shape[:-1])

    def inverse(self, y, theta=None):
        return y * self.log_std.exp() + self.mean(theta)


@dataclass(frozen=True)
class MyFlow(FlowConfig):
    def build(self, features, parameters=0, cut=None):
        return Normal(features, parameters)


def test_parts_of_ones_own_train_sample_save_load_and_resume(tmp_path, monkeypatch):
    prior, (theta, x), parts = surface_data(2)[0].prior, plane(300), [MyChart, MyFlow]
    trainer = ManifoldNLE(prior, MFlow(2, MyChart(), MyFlow()), show_progress_bars=False)
    kept = {"checkpoint": tmp_path / "kept", "checkpoint_minutes": 1e-3, "training_batch_size": 50}
    estimator = trainer.append_simulations(theta, x).train(sequential(2), **kept)
    assert trainer.build_posterior().sample((9,), x=x[:1], show_progress_bars=False).abs().max() <= 1
    save(trainer, tmp_path / "trainer")
    with pytest.raises(ValueError, match=r"names the part 'MyChart', .* pass `parts=\[MyChart\]`.*'mfsbi.parts'"):
        load(tmp_path / "trainer", parts=[MyFlow])
    twin = load_trainer(tmp_path / "trainer", prior, parts=parts)
    assert (twin.estimator.log_prob(x[:9], theta[:9]) == estimator.log_prob(x[:9], theta[:9])).all()
    again = ManifoldNLE(prior, MFlow(2, MyChart(), MyFlow()), show_progress_bars=False)
    resumed = again.append_simulations(theta, x).train(sequential(2), **kept, resume_training=True)
    assert (resumed.log_prob(x[:9], theta[:9]) == estimator.log_prob(x[:9], theta[:9])).all()
    entries = {part.__name__: EntryPoint(part.__name__, f"{__name__}:{part.__name__}", "mfsbi.parts") for part in parts}
    monkeypatch.setattr(describing, "entry_points", lambda group, name: [entries[name]])
    assert load(tmp_path / "trainer").spec == trainer.spec
