import pytest
import torch

from mfsbi import blocks
from mfsbi.inference.potential import EncodedLikelihood
from tests.laws import perturbed
from tests.problems import DENSITIES, SPECS, plane

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture(params=DENSITIES)
def model(request):
    torch.manual_seed(0)
    return perturbed(SPECS[request.param].build(*(part.double() for part in plane(theta_dim=2))), 0.03)


@pytest.fixture
def x():
    return plane(4, seed=9)[1].double()


def test_iid_is_the_sum_of_log_densities(model, x):
    theta = torch.randn(5, 2)
    full = torch.stack([model.log_prob(x, row.expand(4, 2)).sum() for row in theta])
    torch.testing.assert_close(EncodedLikelihood(model, x).iid(theta), full)


def test_rowwise_pairs_observations_with_parameters(model, x):
    theta = torch.randn(4, 2)
    torch.testing.assert_close(EncodedLikelihood(model, x).rowwise(theta), model.log_prob(x, theta))


def test_sets_have_a_theta_each(model):
    theta, x = torch.randn(3, 2), plane(12, seed=5)[1].double().view(3, 4, 3)
    expected = model.log_prob(x, theta[:, None].expand(3, 4, 2)).sum(-1)
    torch.testing.assert_close(EncodedLikelihood(model, x).rowwise(theta), expected)
    shared = torch.stack([model.log_prob(x, row.expand(3, 4, 2)).sum() for row in theta])
    torch.testing.assert_close(EncodedLikelihood(model, x).iid(theta), shared)


def test_no_theta_has_no_likelihood(model, x):
    assert EncodedLikelihood(model, x).iid(torch.zeros(0, 2)).shape == (0,)
    assert EncodedLikelihood(model, x).of_sets(torch.zeros(2, 0, 2), torch.arange(2)).shape == (2, 0)


def test_each_set_meets_its_own_parameters(model):
    x, which = plane(12, seed=5)[1].double().view(3, 4, 3), torch.tensor([2, 0])
    theta = torch.randn(2, 5, 2)
    pairs = x[which][:, None].expand(2, 5, 4, 3), theta[:, :, None].expand(2, 5, 4, 2)
    expected = model.log_prob(*pairs).sum(-1)
    torch.testing.assert_close(EncodedLikelihood(model, x).of_sets(theta, which), expected)


def test_chunks_change_nothing(model, x, monkeypatch):
    theta, likelihood = torch.randn(7, 2), EncodedLikelihood(model, x)
    whole = likelihood.iid(theta)
    few = torch.randn(4, 3, 2)
    each = likelihood.of_sets(few, torch.arange(4))
    monkeypatch.setattr(blocks, "NUMBERS", 3 * 2**11)  # three rows at a time
    likelihood = EncodedLikelihood(model, x)
    torch.testing.assert_close(likelihood.iid(theta), whole)
    torch.testing.assert_close(likelihood.of_sets(few, torch.arange(4)), each)


def test_a_chart_that_does_not_depend_on_theta_is_not_asked_again(model, x, monkeypatch):
    if model.chart.conditional:
        pytest.skip("it depends on theta")
    likelihood = EncodedLikelihood(model, x)
    monkeypatch.setattr(type(model.chart), "encode", None)
    monkeypatch.setattr(type(model.chart), "decode", None)
    assert likelihood.iid(torch.randn(3, 2)).shape == (3,)


def test_gradients_in_theta_flow(model, x):
    theta = torch.randn(3, 2, requires_grad=True)
    EncodedLikelihood(model, x).iid(theta).sum().backward()
    assert theta.grad.abs().min() > 0


def test_observations_with_other_features_are_refused(model):
    with pytest.raises(ValueError, match=r"`x` should have shape \(rows, 3\).*got shape \(2, 4\)"):
        EncodedLikelihood(model, torch.zeros(2, 4))
