"""Charts and flows from outside the package that are not as they should be, or are unusual."""

from dataclasses import dataclass
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from torch import nn

from mfsbi import AF, MFlow, load, save
from mfsbi.charts import Autoencoder, ChartConfig, WithEncoder
from mfsbi.flows import AffineCouplings, FlowConfig
from mfsbi.plugin import describing
from tests.problems import plane
from tests.test_own_parts import Graph, MyChart, MyFlow, Normal


@dataclass(frozen=True)
class Off(ChartConfig):
    """A chart with more coordinates than it was asked for."""

    def build(self, data_dim, manifold_dim, parameters=0):
        return Graph(data_dim, manifold_dim + 1, 8)


@dataclass(frozen=True)
class NoChart(ChartConfig):
    def build(self, data_dim, manifold_dim, parameters=0):
        return nn.Linear(data_dim, manifold_dim)


@dataclass(frozen=True)
class NoModule(FlowConfig):
    """A flow whose weights nobody would train."""

    def build(self, features, parameters=0, cut=None):
        plain = type("Plain", (), dict(vars(Normal)) | {"__init__": lambda self: None})()
        plain.features, plain.parameter_dim = features, parameters
        return plain


@dataclass(frozen=True)
class Grows(ChartConfig):
    """A chart that has other tensors once it has measured data."""

    def build(self, data_dim, manifold_dim, parameters=0):
        class Growing(Graph):
            def measure(self, x):
                self.register_buffer("seen", x.mean(0))

        return Growing(data_dim, manifold_dim, 8)


@dataclass(frozen=True)
class Chain(FlowConfig):
    """The last of some flows; its seed is a large number."""

    flows: tuple[FlowConfig, ...] = (MyFlow(), MyFlow())
    seed: int = 10**6

    def build(self, features, parameters=0, cut=None):
        return self.flows[-1].build(features, parameters, cut)


OursByName = dataclass(frozen=True)(type("SplineCouplings", (MyFlow,), {}))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (MFlow(1, Off()), r"`Off.build\(3, 1\)` should return a chart of so many .*; it has 3 and 2"),
        (MFlow(1, NoChart()), r"`NoChart.build\(...\)` should be a chart"),
        (MFlow(1, latent=NoModule()), r"`NoModule.build\(...\)` should be a torch module"),
    ],
)
def test_parts_that_build_something_else_are_refused(spec, message):
    with pytest.raises(TypeError, match=message):
        spec(*plane(20))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (MFlow(1, latent=OursByName()), "names of their own; there is another SplineCouplings"),
        (MFlow(1, Grows()), "built again it has other tensors"),
    ],
)
def test_parts_that_could_not_be_read_back_are_not_saved(tmp_path, spec, message):
    with pytest.raises(TypeError, match=message):
        save(spec(*plane(20)), tmp_path / "file")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "spec",
    [MFlow(1, latent=Chain()), AF(Chain(seed=np.int64(3)))],
)
def test_parts_in_tuples_numbers_of_numpy_and_large_numbers_are_saved(tmp_path, spec):
    theta, x = plane(20)
    estimator = spec(theta, x).eval()
    save(estimator, tmp_path / "file")
    twins = load(tmp_path / "file", parts=[MyChart, MyFlow, Chain]), load(tmp_path / "file", spec)
    for twin in twins:
        assert twin.spec == spec
        assert (twin.log_prob(x, theta) == estimator.log_prob(x, theta)).all()


def test_a_package_that_fails_to_import_is_named(tmp_path, monkeypatch):
    save(MFlow(1, MyChart())(*plane(20)), tmp_path / "file")
    monkeypatch.setattr(describing, "entry_points", lambda group, name: [EntryPoint(name, "no.such:Chart", group)])
    with pytest.raises(ValueError, match=r"names the part 'MyChart', which 'no.such:Chart' should be; .*No module"):
        load(tmp_path / "file")


@pytest.mark.parametrize("make", [Autoencoder, lambda **size: WithEncoder(Autoencoder(), **size)])
@pytest.mark.parametrize("size", [{"width": 0}, {"blocks": -1}])
def test_sizes_of_charts_are_checked_at_once(make, size):
    with pytest.raises(ValueError, match="should be a positive integer"):
        make(**size)


def test_an_encoder_lets_the_chart_inside_measure():
    chart = WithEncoder(Grows()).build(3, 1)
    chart.measure(torch.ones(2, 3))
    assert (chart.chart.seen == 1).all()


def test_a_chart_may_project_in_its_own_way():
    class Rounded(Graph):
        def project(self, x):
            return x.round()

    @dataclass(frozen=True)
    class Rounds(ChartConfig):
        def build(self, data_dim, manifold_dim, parameters=0):
            return Rounded(data_dim, manifold_dim, 8)

    theta, x = plane(50)
    model = MFlow(1, Rounds(), AffineCouplings()).build(theta, x)
    inside = model.chart.inward(model.project(x))
    torch.testing.assert_close(inside, inside.round(), atol=1e-4, rtol=0)
