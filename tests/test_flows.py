import pytest
import torch

from mfsbi.flows import Couplings, Flow, Linear, SplineCoupling
from tests.laws import jacobian_by_differences, perturbed
from tests.problems import Permutation

pytestmark = pytest.mark.usefixtures("float64")


def with_permutations():
    cycle, back = torch.tensor([1, 2, 0]), torch.tensor([2, 0, 1])
    keep = torch.tensor([True, False, False])
    layers = [SplineCoupling(keep, 2, Couplings()), Permutation(cycle), SplineCoupling(~keep, 2, Couplings())]
    return Flow([*layers, Permutation(back), SplineCoupling(keep, 2, Couplings())], 3, 2)


FLOWS = {
    "couplings": lambda: Couplings(layers=4).build(3, 2),
    "one coordinate": lambda: Couplings(layers=2).build(1, 2),
    "3-cycles": with_permutations,
    "lu": lambda: Couplings(layers=3, lu=True).build(5, 2),
    "lu layer alone": lambda: Flow([Linear(4)], 4, 2),
}


@pytest.fixture(params=FLOWS)
def flow(request):
    torch.manual_seed(0)
    return perturbed(FLOWS[request.param]())


@pytest.fixture
def x(flow):
    return 2 * torch.randn(7, flow.features)


@pytest.fixture
def theta(flow):
    return torch.randn(7, flow.parameter_dim)


def test_inverse_undoes_forward(flow, x, theta):
    torch.testing.assert_close(flow.inverse(flow(x, theta), theta), x, rtol=0, atol=1e-9)


def test_log_det_is_that_of_the_jacobian_by_differences(flow, x, theta):
    _, log_det = flow.forward_and_log_det(x, theta)
    expected = [
        torch.linalg.slogdet(jacobian_by_differences(lambda row, i=i: flow(row, theta[i]), x[i]))[1] for i in range(7)
    ]
    torch.testing.assert_close(log_det, torch.stack(expected), rtol=0, atol=1e-6)


def test_value_is_the_same_with_and_without_log_det(flow, x, theta):
    torch.testing.assert_close(flow(x, theta), flow.forward_and_log_det(x, theta)[0])


def test_rows_do_not_see_each_other(flow, x, theta):
    torch.testing.assert_close(flow(x, theta)[3], flow(x[3:4], theta[3:4])[0])


def test_far_outside_the_splines_a_flow_is_finite(flow, theta):
    x = torch.full((7, flow.features), 1e4)
    assert torch.isfinite(flow.forward_and_log_det(x, theta)[1]).all()


@pytest.mark.parametrize("features", [1, 3])
def test_a_flow_depends_on_theta(features):
    flow, x = perturbed(Couplings(layers=2).build(features, 1)), torch.randn(4, features)
    assert not torch.allclose(flow(x, torch.zeros(4, 1)), flow(x, torch.ones(4, 1)))


@pytest.mark.parametrize("settings", [Couplings(), Couplings(lu=True)])
@pytest.mark.parametrize("features", [1, 2, 3, 8])
def test_a_new_flow_is_the_identity(settings, features):
    x = torch.randn(9, features)
    torch.testing.assert_close(settings.build(features)(x), x)


@pytest.mark.parametrize("features", [2, 3, 5, 40])
def test_every_coordinate_is_moved_and_conditions(features):
    masks = torch.stack(
        [torch.isin(torch.arange(features), layer.kept) for layer in Couplings(layers=6).build(features).layers]
    )
    assert (masks.any(0) & (~masks).any(0)).all()


@pytest.mark.parametrize("field", ["layers", "bins", "bound", "width", "depth", "sharpness"])
def test_settings_below_one_are_refused_by_name(field):
    with pytest.raises(ValueError, match=f"`Couplings.{field}` should be (a )?positive( integer)?; got 0"):
        Couplings(**{field: 0})
