from itertools import pairwise

import pytest
import torch

from mfsbi.flows import AffineCouplings, AutoregressiveSplines, Flow, Linear, SplineCoupling, SplineCouplings
from tests.laws import jacobian_by_differences, perturbed
from tests.problems import Permutation

pytestmark = pytest.mark.usefixtures("float64")


def with_permutations():
    cycle, back = torch.tensor([1, 2, 0]), torch.tensor([2, 0, 1])
    keep = torch.tensor([True, False, False])
    first, second, third = (SplineCoupling(mask, 2, SplineCouplings()) for mask in (keep, ~keep, keep))
    return Flow([first, Permutation(cycle), second, Permutation(back), third], 3, 2)


FLOWS = {
    "couplings": lambda: SplineCouplings(layers=4).build(3, 2),
    "affine": lambda: AffineCouplings(layers=4).build(3, 2),
    "affine, cut": lambda: AffineCouplings(layers=3, lu=True).build(5, 2, cut=2),
    "affine, one coordinate": lambda: AffineCouplings(layers=2).build(1, 2),
    "one coordinate": lambda: SplineCouplings(layers=2).build(1, 2),
    "3-cycles": with_permutations,
    "lu": lambda: SplineCouplings(layers=3, lu=True).build(5, 2),
    "autoregressive": lambda: AutoregressiveSplines(3, 20, theta_width=20, sharpness=1.0).build(5, 2),
    "autoregressive, lu": lambda: AutoregressiveSplines(2, 10, theta_width=10, sharpness=1.0, lu=True).build(3, 2),
    "autoregressive, one coordinate": lambda: AutoregressiveSplines(2, 10, theta_width=10, sharpness=1.0).build(1, 2),
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


@pytest.mark.parametrize("kind", [AffineCouplings, SplineCouplings])
@pytest.mark.parametrize("features", [1, 3])
def test_a_flow_depends_on_theta(features, kind):
    flow, x = perturbed(kind(layers=2).build(features, 1)), torch.randn(4, features)
    assert not torch.allclose(flow(x, torch.zeros(4, 1)), flow(x, torch.ones(4, 1)))


@pytest.mark.parametrize("settings", [SplineCouplings(), SplineCouplings(lu=True), AffineCouplings()])
@pytest.mark.parametrize("features", [1, 2, 3, 8])
def test_a_new_flow_is_the_identity(settings, features):
    x = torch.randn(9, features)
    torch.testing.assert_close(settings.build(features)(x), x)


@pytest.mark.parametrize("cut", [None, 1])
@pytest.mark.parametrize("features", [2, 3, 5, 40])
def test_every_coordinate_is_moved_and_conditions(features, cut):
    layers = SplineCouplings(layers=6).build(features, cut=cut).layers
    masks = torch.stack([torch.isin(torch.arange(features), layer.kept) for layer in layers])
    assert (masks.any(0) & (~masks).any(0)).all()


@pytest.mark.parametrize("field", ["layers", "bins", "bound", "width", "depth", "sharpness"])
def test_settings_below_one_are_refused_by_name(field):
    with pytest.raises(ValueError, match=f"`SplineCouplings.{field}` should be (a )?positive( integer)?; got 0"):
        SplineCouplings(**{field: 0})


def test_a_cut_keeps_the_first_coordinates_first():
    first, second = AffineCouplings(layers=2).build(5, cut=2).layers
    assert first.kept.tolist() == second.moved.tolist() == [0, 1]


def test_one_affine_coupling_learns_a_graph():
    """v = g(u) is one layer: after it the third coordinate is zero on the graph."""
    flow = AffineCouplings(layers=1).build(3, cut=2)
    optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
    u = torch.rand(500, 2) * 4 - 2
    x = torch.cat([u, (u[:, :1] * u[:, 1:]).sin()], -1)
    for _ in range(300):
        optimizer.zero_grad()
        flow(x)[:, 2].square().mean().backward()
        optimizer.step()
    assert flow(x)[:, 2].abs().mean() < 0.05


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
@pytest.mark.parametrize("kind", [AffineCouplings, SplineCouplings])
def test_derivatives_of_a_flow_pass_gradcheck(kind, check):
    flow, x = perturbed(kind(layers=2, width=4).build(3, 1)), torch.randn(2, 3).requires_grad_()
    theta = torch.randn(2, 1).requires_grad_()
    assert check(flow.forward_and_log_det, (x, theta))
    assert check(flow.inverse, (x, theta))


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_derivatives_of_an_autoregressive_flow_pass_gradcheck(check):
    torch.manual_seed(0)
    flow = perturbed(AutoregressiveSplines(2, width=4, theta_width=4, sharpness=1.0, theta_sharpness=2.0).build(3, 1))
    x, theta = torch.randn(2, 3).requires_grad_(), torch.randn(2, 1).requires_grad_()
    assert check(flow.forward_and_log_det, (x, theta))


def test_tangents_of_the_inverse_are_its_derivatives(flow, x, theta):
    tangents = torch.randn(7, flow.features, 2)
    back, moved = flow.inverse_with_tangents(x, tangents, theta)
    torch.testing.assert_close(back, flow.inverse(x, theta))
    for row in range(7):
        jacobian = jacobian_by_differences(lambda y, row=row: flow.inverse(y, theta[row]), x[row])
        torch.testing.assert_close(moved[row], jacobian @ tangents[row], rtol=1e-5, atol=1e-5)


def test_an_autoregressive_layer_tells_each_coordinate_only_of_those_before_it():
    torch.manual_seed(0)
    layer = perturbed(AutoregressiveSplines(1, theta_width=20).build(4, 1)).layers[0]
    jacobian = jacobian_by_differences(lambda x: layer(x[:, None], torch.zeros(1, 1))[0][:, 0], 0.3 * torch.randn(4))
    ordered = jacobian[layer.order][:, layer.order]
    assert (ordered.triu(1) == 0).all()
    assert (ordered.tril(-1) != 0).sum() == 6
    assert (ordered.diagonal() > 0).all()


def test_theta_meets_the_last_layer_of_an_autoregressive_flow_alone_and_far_theta_does_no_more_than_near():
    torch.manual_seed(0)
    flow = perturbed(AutoregressiveSplines(layers=3, theta_width=40).build(4, 2))
    assert [layer.network.gate is None for layer in flow.layers] == [True, True, False]
    assert [len(layer.network.shifts) for layer in flow.layers] == [0, 0, 3]
    assert [layer.network.last.weight.shape[1] for layer in flow.layers] == [64, 64, 40]
    x = torch.randn(1, 4)
    near, far, farther = (flow.forward_and_log_det(x, scale * torch.ones(1, 2))[1] for scale in (0.0, 1e3, 1e6))
    assert near != far
    torch.testing.assert_close(far, farther)


def test_every_hidden_layer_of_an_autoregressive_layer_is_shifted_and_one_is_gated():
    torch.manual_seed(0)
    flow = perturbed(AutoregressiveSplines(1, theta_width=20, depth=3).build(4, 2))
    network = flow.layers[0].network
    x, theta = torch.randn(5, 4), torch.randn(5, 2)
    before = [flow(x, theta)]
    for part in (*network.shifts, network.gate):
        with torch.no_grad():
            part.weight.add_(0.1)
        before.append(flow(x, theta))
    assert all((one - other).abs().max() > 1e-4 for one, other in pairwise(before))
