import copy
import pickle

import pytest
import torch
from sbi.inference import NLE_A

from mfsbi import AF, PAE, MFlow
from mfsbi.flows import SplineCouplings
from mfsbi.plugin import estimator as module
from tests.laws import perturbed
from tests.problems import DENSITIES, SMALL, SPECS, plane, surface_data


@pytest.fixture(params=DENSITIES)
def estimator(request):
    torch.manual_seed(0)
    return perturbed(SPECS[request.param](*plane(theta_dim=2)), 0.03)


@pytest.fixture
def x():
    return plane(5, seed=4)[1]


@pytest.fixture
def theta():
    return plane(5, seed=4, theta_dim=2)[0]


def rows(estimator, x, theta):
    return estimator.model.log_prob(x, theta)


def test_log_prob_without_a_sample_axis(estimator, x, theta):
    value = estimator.log_prob(x, theta)
    assert value.shape == (1, 5)
    torch.testing.assert_close(value[0], rows(estimator, x, theta))


def test_log_prob_with_a_sample_axis(estimator, x, theta):
    samples = torch.stack([x, x + 0.1, x - 0.1])
    value = estimator.log_prob(samples, theta)
    assert value.shape == (3, 5)
    torch.testing.assert_close(value[1], rows(estimator, x + 0.1, theta), rtol=1e-5, atol=1e-5)


def test_log_prob_of_a_condition_with_a_sample_axis(estimator, x, theta):
    conditions = torch.stack([theta, theta + 0.1])
    value = estimator.log_prob(x, conditions)
    assert value.shape == (2, 5)
    torch.testing.assert_close(value[1], rows(estimator, x, theta + 0.1))


def test_one_x_or_one_theta_serves_a_batch(estimator, x, theta):
    torch.testing.assert_close(
        estimator.log_prob(x[:1], theta)[0], rows(estimator, x[:1].expand(5, 3).contiguous(), theta)
    )
    torch.testing.assert_close(
        estimator.log_prob(x, theta[:1])[0], rows(estimator, x, theta[:1].expand(5, 2).contiguous())
    )


def test_views_of_stride_zero_are_welcome(estimator, x, theta):
    value = estimator.log_prob(x[:, None].expand(-1, 5, -1), theta)
    assert value.shape == (5, 5)
    torch.testing.assert_close(value[2], rows(estimator, x[2:3].expand(5, 3).contiguous(), theta))


def test_repeated_observations_are_encoded_once(estimator, x, theta, monkeypatch):
    if estimator.model.chart.conditional:
        pytest.skip("where they lie depends on theta")
    rows = []
    place = type(estimator.model).place
    monkeypatch.setattr(type(estimator.model), "place", lambda model, y: rows.append(y.shape[0]) or place(model, y))
    estimator.log_prob(x[:, None].expand(-1, 5, -1), theta)
    assert rows[0] == 5


def test_each_repetition_of_an_observation_has_its_own_gradient(estimator, x, theta):
    repeated = x[:1].expand(5, 3).detach().requires_grad_()
    apart = repeated.detach().clone().requires_grad_()
    by_repeated, by_apart = (torch.autograd.grad(estimator.log_prob(y, theta).sum(), y)[0] for y in (repeated, apart))
    torch.testing.assert_close(by_repeated, by_apart)


def test_rows_of_another_type_are_converted_to_that_of_the_weights(estimator, x, theta):
    value = estimator.log_prob(x.double(), theta.double())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, estimator.log_prob(x, theta))


@pytest.mark.parametrize("shape", [(), (2,)])
@pytest.mark.parametrize("rows", [0, 3])
def test_data_without_parameters_are_drawn_too(shape, rows):
    estimator = AF(SMALL)(torch.zeros(50, 0), torch.randn(50, 3))
    x, log_prob = estimator.sample_and_log_prob(shape, torch.zeros(rows, 0))
    assert x.shape == (*shape, rows, 3)
    assert log_prob.shape == (*shape, rows)


def test_chunks_change_nothing(estimator, x, theta, monkeypatch):
    whole = estimator.log_prob(x[:, None].expand(-1, 5, -1), theta)
    monkeypatch.setattr(module, "rows_at_work", lambda features: 3)
    torch.testing.assert_close(estimator.log_prob(x[:, None].expand(-1, 5, -1), theta), whole)


def test_loss_is_one_finite_number_per_row(estimator, x, theta):
    value = estimator.loss(x, condition=theta)
    assert value.shape == (5,)
    assert torch.isfinite(value).all()


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_sample_shapes(estimator, theta, shape):
    assert estimator.sample(shape, theta).shape == (*shape, 5, 3)
    x, log_prob = estimator.sample_and_log_prob(torch.Size(shape), theta)
    assert x.shape == (*shape, 5, 3)
    assert log_prob.shape == (*shape, 5)


@pytest.mark.parametrize("name", DENSITIES)
def test_samples_come_with_their_log_prob(theta, name):
    torch.manual_seed(0)
    estimator = perturbed(SPECS[name](*(part.double() for part in plane(theta_dim=2))), 0.03)
    x, log_prob = estimator.sample_and_log_prob((3,), theta.double())
    torch.testing.assert_close(log_prob, estimator.log_prob(x, theta.double()), rtol=0, atol=1e-8)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_log_prob_works_without_gradients(estimator, x, theta, mode):
    expected = estimator.log_prob(x, theta).detach()
    with mode():
        torch.testing.assert_close(estimator.log_prob(x, theta), expected)


def test_log_prob_is_differentiable_in_theta(estimator, x, theta):
    theta.requires_grad_()
    estimator.log_prob(x, theta).sum().backward()
    assert theta.grad.abs().max() > 0


def test_far_outside_the_training_range_log_prob_is_no_nan(estimator, x, theta):
    assert not torch.isnan(estimator.log_prob(1e4 * x, 1e3 * theta)).any()


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_copies_are_equal_also_after_a_backward_pass(estimator, x, theta, twin):
    estimator.loss(x, condition=theta).sum().backward()
    torch.testing.assert_close(twin(estimator).log_prob(x, theta), estimator.log_prob(x, theta))


def test_state_makes_a_twin_of_a_network_built_from_other_data(x, theta):
    spec = SPECS["MFlow"]
    one, twin = perturbed(spec(*plane(theta_dim=2))), spec(*plane(50, seed=8, theta_dim=2))
    assert not torch.allclose(twin.log_prob(x, theta), one.log_prob(x, theta))
    twin.load_state_dict(one.state_dict())
    torch.testing.assert_close(twin.log_prob(x, theta), one.log_prob(x, theta))


def test_an_autoencoder_has_no_density_of_x_but_a_loss_and_samples(x, theta):
    estimator = PAE(2, SMALL, 16, 2)(*plane(theta_dim=2))
    with pytest.raises(TypeError, match="`PAE` has no density of x.*Use `MFlow`"):
        estimator.log_prob(x, theta)
    assert estimator.loss(x, condition=theta).shape == (5,)
    assert estimator.sample((4,), theta).shape == (4, 5, 3)


def test_one_feature_and_one_parameter():
    theta, x = torch.randn(100, 1), torch.randn(100, 1)
    estimator = AF(SMALL)(theta, x)
    assert estimator.log_prob(x, theta).shape == (1, 100)
    assert estimator.sample((3,), theta[:2]).shape == (3, 2, 1)


def test_a_stock_sbi_trainer_learns_chart_and_density_with_one_adam(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # sbi writes its logs there
    surface, theta, x = surface_data(2000)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        spec = MFlow(2, SplineCouplings(layers=4), SMALL)
        trainer = NLE_A(surface.prior, density_estimator=spec, show_progress_bars=False)
        before = spec(theta, x).model.distance(x).mean()
        with pytest.warns(UserWarning, match="not yet fully converged"):
            estimator = trainer.append_simulations(theta, x).train(max_num_epochs=12, learning_rate=2e-3)
        posterior = trainer.build_posterior()
    assert estimator.model.distance(x).mean() < 0.5 * before
    grid = torch.linspace(-0.9, 0.9, 7)[:, None]
    potential = posterior.potential(grid, x=x[:20])
    expected = torch.stack([estimator.log_prob(x[:20], row.expand(20, 1)).sum() for row in grid])
    torch.testing.assert_close(potential - potential[0], expected - expected[0], rtol=1e-3, atol=1e-3)
