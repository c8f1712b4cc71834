import pytest
import torch

from mfsbi import AF, PAE, PIE, MeFlow, MFlow, load, save
from mfsbi.charts import frames
from mfsbi.charts.frames import frame_of, principal_axes
from mfsbi.plugin import specs
from tests.problems import SMALL

KINDS = {
    "MFlow": lambda *coordinates: MFlow(2, SMALL, SMALL, coordinates),
    "MeFlow": lambda *coordinates: MeFlow(2, SMALL, SMALL, 16, 2, coordinates),
    "PAE": lambda *coordinates: PAE(2, SMALL, 16, 2, coordinates),
    "PIE": lambda *coordinates: PIE(2, chart=SMALL, latent=SMALL, coordinates=coordinates),
}


@pytest.fixture
def bowl():
    """Return theta and x = (r^2, a, a + b, a + r^2), with r^2 = a^2 + b^2 and small b; features 1 and 2 tell all."""
    a, b = torch.randn(2, 500, generator=torch.Generator().manual_seed(0))
    b = 0.2 * b
    square = a**2 + b**2
    x = torch.stack([square, a, a + b, a + square], dim=1)
    return a[:, None], x * torch.tensor([10.0, 1.0, 1.0, 5.0]) + torch.tensor([3.0, 0.0, 0.0, 1.0])


@pytest.mark.parametrize("coordinates", [(), (2,), (2, 1)])
def test_a_frame_is_orthonormal_and_what_holds_exactly_comes_last(coordinates, bowl):
    frame = frame_of(bowl[1].double(), 2, coordinates)
    torch.testing.assert_close(frame.axes.T @ frame.axes, torch.eye(4).double())
    y = (bowl[1] - frame.mean) / frame.std @ frame.axes
    assert y[:, -1].std() < 1e-5  # x_3 is linear in x_0 and x_1
    rest = y[:, len(coordinates) :].std(0)
    assert (rest.diff() <= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_chart_starts_from_the_features_named(kind, bowl):
    theta, x = bowl
    torch.manual_seed(0)
    model = KINDS[kind](2, 1)(theta, x).model
    named = x.clone()
    named[:, [1, 2]] = model.project(x)[:, [1, 2]].detach()
    torch.testing.assert_close(named, x, rtol=1e-4, atol=1e-6)
    torch.manual_seed(0)
    usual = KINDS[kind]()(theta, x).model.project(x).detach()
    b, there = (value[:, 2] - value[:, 1] for value in (x, usual))
    assert (there - b).std() > 0.5 * b.std()  # b varies little, and is not among the first two principal axes


def test_features_may_come_in_any_order_and_number(bowl):
    x = bowl[1]
    one, other = (frame_of(x, 2, named).axes[:, :2] for named in ((1, 2), (2, 1)))
    torch.testing.assert_close(one @ one.T, other @ other.T)  # they span the same
    alone = frame_of(x, 2, (2,)).axes[:, 0]
    y = (x - x.mean(0)) / x.std(0)
    assert torch.corrcoef(torch.stack([y @ alone, y[:, 2]]))[0, 1].abs() > 0.999999


def test_no_coordinates_are_principal_axes(bowl):
    x = bowl[1]
    y = (x - x.mean(0)) / x.std(0)
    principal = torch.linalg.eigh((y.T @ y).double())[1].flip(1)
    same = (principal.T @ frame_of(x, 2).axes.double()).abs()
    torch.testing.assert_close(same, torch.eye(4).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_coordinates_are_saved(kind, bowl, tmp_path):
    estimator = KINDS[kind](2, 1)(*bowl)
    save(estimator, tmp_path / "a.safetensors")
    twin = load(tmp_path / "a.safetensors")
    assert twin.spec == estimator.spec
    torch.testing.assert_close(twin.model.project(bowl[1]), estimator.model.project(bowl[1]), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("coordinates", "message"),
    [
        ((0, 0), "a tuple of different features, counted from 0, such as"),
        ((-1,), "a tuple of different features"),
        ((True,), "a tuple of different features"),
        ((0, 1, 2), "at most as many as the manifold has dimensions, 2; got 3"),
    ],
)
def test_coordinates_that_are_none_are_refused(kind, coordinates, message):
    with pytest.raises(ValueError, match=message):
        KINDS[kind](*coordinates)


def test_coordinates_that_do_not_fit_the_data_are_refused(bowl):
    with pytest.raises(ValueError, match=r"`coordinates` should be among the 4 features of x; got \(1, 4\)"):
        MFlow(2, coordinates=(1, 4))(*bowl)
    with pytest.raises(ValueError, match=r"depend linearly on each other; features \[0, 1, 3\] of x do"):
        MFlow(3, coordinates=(0, 1, 3))(*bowl)


@pytest.fixture
def few(monkeypatch):
    """Let eight features be many, and return theta and x of ten, flat up to a little noise but for a bend."""
    monkeypatch.setattr(frames, "MANY", 8)
    monkeypatch.setattr(specs, "MANY", 8)
    monkeypatch.setattr(frames, "KEPT", 4)
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(30, 2, generator=generator)
    flat = u @ torch.randn(2, 10, generator=generator) + 0.3 * (u[:, :1] ** 2)
    return u[:, :1], flat + 0.01 * torch.randn(30, 10, generator=generator)


@pytest.mark.parametrize("rows", [12, 30])
@pytest.mark.parametrize("coordinates", [(), (3, 7)])
def test_of_many_features_the_leading_axes_are_kept(few, rows, coordinates):
    x = few[1][:rows]
    axes = frame_of(x, 2, coordinates).axes
    assert axes.shape == (10, 4)
    torch.testing.assert_close(axes.T @ axes, torch.eye(4))
    y = (x - x.mean(0)) / x.std(0)
    assert (y - y @ axes @ axes.T).square().sum() < 2e-3 * y.square().sum()
    if coordinates:  # the first axes span what the features are within the data
        span = axes[:, :2] @ axes[:, :2].T
        assert (y[:, [3, 7]] - (y @ span)[:, [3, 7]]).square().sum() < 0.01 * y[:, [3, 7]].square().sum()


@pytest.mark.parametrize("rows", [12, 30])
def test_leading_axes_by_rows_or_at_random_are_those_of_the_whole_decomposition(few, rows):
    z = (few[1][:rows] - few[1][:rows].mean(0)).double()
    squares, axes = principal_axes(z, 3)
    _, values, right = torch.linalg.svd(z, full_matrices=False)
    torch.testing.assert_close(squares, values[:3].square(), rtol=1e-6, atol=0)
    torch.testing.assert_close((right[:3] @ axes).abs(), torch.eye(3).double(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("spec", [KINDS[kind]() for kind in KINDS] + [AF(SMALL), MFlow(2, SMALL, SMALL, (3, 7))])
def test_models_of_many_features_are_built_judge_and_are_kept(few, spec, tmp_path):
    theta, x = few
    estimator = spec(theta, x)
    assert estimator.loss(x, theta).isfinite().all()
    save(estimator, tmp_path / "a")
    twin = load(tmp_path / "a")
    torch.testing.assert_close(twin.model.project(x), estimator.model.project(x), rtol=0, atol=0)


def test_what_many_features_do_not_allow_is_refused(few):
    theta, x = few
    with pytest.raises(ValueError, match="`coordinates` of a `PIE` need all axes of x, which 10 features"):
        PIE(2, coordinates=(1,))(theta, x)
    with pytest.raises(ValueError, match="4 rows of `x` should be more than"):
        MFlow(3)(theta[:4], x[:4])


def test_an_ambient_flow_needs_no_axes(few, monkeypatch):
    monkeypatch.setattr(torch.linalg, "eigh", None)
    assert AF(SMALL)(*few).model.chart.axes is None
