import pytest
import torch

from simulators.lhc.detector import (
    CHART,
    ETA,
    FEATURES,
    PHI,
    PT,
    accepted,
    closure,
    decode,
    encode,
    jet_spread,
    measure,
)

GOOD = torch.tensor([80, 0.3, 1.0, 50, -0.5, -2.0, 120, 2.5, 2.6, 9, 60, -2.0, -0.6, 5], dtype=torch.float64)


@pytest.fixture(scope="module")
def charts():
    """Return charts all over the accepted region, from the corners of the detector to its middle."""
    u = torch.rand(20_000, 14, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chart = torch.empty_like(u)
    chart[:, PT] = torch.tensor([10.0, 10.0, 20.0, 20.0], dtype=torch.float64) * (5 * u[:, PT]).exp()
    chart[:, ETA] = torch.tensor([5.0, 5.0, 10.0, 10.0], dtype=torch.float64) * (u[:, ETA] - 0.5)
    chart[:, PHI] = 2 * torch.pi * (u[:, PHI] - 0.5)
    chart[:, [9, 13]] = chart[:, [6, 10]] * 0.5 * u[:, [9, 13]]
    chart = chart[accepted(chart)]
    assert len(chart) > 1000
    return chart


def test_names_are_as_many_as_numbers(charts):
    assert len(CHART) == charts.shape[1] == 14
    assert len(FEATURES) == decode(charts).shape[1] == 40
    assert FEATURES[:6] == ("e_a1", "px_a1", "py_a1", "pz_a1", "pt_a1", "eta_a1")
    assert FEATURES[32:] == ("e_jj", "px_jj", "py_jj", "pz_jj", "pt_jj", "m_jj", "eta_jj", "deltaeta_jj")


def test_all_constraints_hold(charts):
    x = decode(charts)
    residual = closure(x).abs().amax(-1) / x.abs().amax(-1)
    assert closure(x).shape[1] == 26
    assert residual.max() < 1e-12


@pytest.mark.parametrize("feature", range(40))
def test_no_feature_is_free(charts, feature):
    x = decode(charts[:100])
    x[:, feature] += 0.01 * x[:, feature].abs() + 0.01
    assert (closure(x).abs().amax(-1) > 1e-4).all()


def test_features_and_chart_are_one_to_one(charts):
    x = decode(charts)
    assert ((decode(encode(x)) - x).abs().amax(-1) / x.abs().amax(-1)).max() < 1e-12
    torch.testing.assert_close(encode(x), charts, rtol=1e-4, atol=1e-9)


def test_the_manifold_has_fourteen_dimensions(charts):
    jacobian = torch.func.vmap(torch.func.jacfwd(decode))(charts[:200])
    values = torch.linalg.svdvals(jacobian / jacobian.norm(dim=1, keepdim=True))
    assert jacobian.shape[1:] == (40, 14)
    assert (values[:, -1] > 1e-4 * values[:, 0]).all()


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        (3, 9.9),
        (10, 19.9),
        (3, 81.0),
        (10, 121.0),
        (1, 2.51),
        (7, 5.01),
        (4, 0.2),
        (13, -1.0),
    ],
)
def test_what_is_not_selected(entry, value):
    assert accepted(GOOD)
    bad = GOOD.clone()
    bad[entry] = value
    if entry == 4:
        bad[5] = bad[2] + 0.45 - 2 * torch.pi  # close to the other photon once angles are wrapped
    assert not accepted(bad)


def test_response():
    generator = torch.Generator().manual_seed(0)
    photons = torch.tensor([[100.0, 0.5, 1.0], [40.0, -1.0, -2.0]], dtype=torch.float64).expand(200_000, 2, 3)
    partons = torch.tensor([[200.0, 3.0, 2.0], [50.0, -2.0, 0.1]], dtype=torch.float64).expand(200_000, 2, 3)
    chart = measure(photons, partons, generator)
    log_pt = chart[:, PT].log()
    means = torch.tensor([100.0, 40.0, 0.93 * 200, 0.93 * 50], dtype=torch.float64).log()
    spreads = torch.tensor([0.03, 0.03, (0.0025 + 1 / 220) ** 0.5, (0.0025 + 1 / 70) ** 0.5], dtype=torch.float64)
    torch.testing.assert_close(log_pt.mean(0), means, rtol=0, atol=2e-3)
    torch.testing.assert_close(log_pt.std(0), spreads, rtol=0.01, atol=0)
    log_mass = (chart[:, [9, 13]] / chart[:, [6, 10]]).log()
    torch.testing.assert_close(log_mass.mean(0).exp(), torch.full((2,), 0.12, dtype=torch.float64), rtol=0.01, atol=0)
    torch.testing.assert_close(log_mass.std(0), torch.full((2,), 0.4, dtype=torch.float64), rtol=0.01, atol=0)
    assert (chart[:, [1, 2]] == photons[:, 0, 1:]).all()
    torch.testing.assert_close(jet_spread(torch.tensor(20.0)), torch.tensor(0.1658), rtol=1e-3, atol=0)


def test_the_harder_object_comes_first():
    generator = torch.Generator().manual_seed(0)
    pair = torch.tensor([[50.0, 0.5, 1.0], [52.0, -1.0, -2.0]], dtype=torch.float64).expand(1000, 2, 3)
    chart = measure(pair, pair, generator)
    assert (chart[:, 0] >= chart[:, 3]).all()
    assert (chart[:, 6] >= chart[:, 10]).all()
    assert set(chart[:, 1].tolist()) == {0.5, -1.0}
    assert (chart[:, 1] != chart[:, 4]).all()
