"""What sbi's own tests (v0.27) state of density estimators and of those who use them, held for every spec."""

import copy
import io
import pickle
from contextlib import chdir
from functools import cache
from tempfile import TemporaryDirectory

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS
from sbi.inference import NLE_A, MCMCPosterior, likelihood_estimator_based_potential
from sbi.utils import BoxUniform
from sbi.utils.pyroutils import to_pyro_distribution

from mfsbi import AF, AffineCouplings, ManifoldNLE, MFlow, density_only
from mfsbi.inference.grid import grid_posterior
from tests.laws import perturbed
from tests.problems import DENSITIES, SMALL, SPECS, off_plane, on_plane

SIZES = [
    ("FOM", 3, 1),
    ("FOM", 3, 7),
    *((name, 4, parameters) for name in SPECS if name != "FOM" for parameters in (1, 7)),
    ("AF", 1, 1),
    ("AF", 1, 7),
]
"""A spec, features of x, parameters; one feature leaves nothing but `AF`."""

SIZES_OF_DENSITIES = [size for size in SIZES if size[0] in DENSITIES]

BOX = BoxUniform(-2 * torch.ones(2), 2 * torch.ones(2))


def simulated(rows, seed=0):
    """Return theta of `BOX` and x of a tilted plane in three dimensions: u ~ N(theta, 1/4), x linear in u."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.rand(rows, 2, generator=generator) * 4 - 2
    return theta, on_plane(theta + 0.5 * torch.randn(rows, 2, generator=generator))


@cache
def built(name, features, parameters):
    """Return an estimator of these sizes with weights moved at random, and twelve rows of data."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theta, x = torch.randn(100, parameters), torch.randn(100, features)
        x = on_plane(off_plane(x)) if features == 3 else x
        return perturbed(SPECS[name](theta, x), 0.03), theta[:12], x[:12]


@cache
def trained_by_sbi(name):
    """Return sbi's trainer after ten passes, the estimator it trained, and one that never learned."""
    with torch.random.fork_rng(), TemporaryDirectory() as folder, chdir(folder):  # sbi writes its logs there
        torch.manual_seed(0)
        theta, x = simulated(600)
        untrained = SPECS[name](theta, x)
        trainer = NLE_A(BOX, density_estimator=SPECS[name], show_progress_bars=False).append_simulations(theta, x)
        with pytest.warns(UserWarning, match="not yet fully converged"):
            estimator = trainer.train(max_num_epochs=10, learning_rate=2e-2, training_batch_size=50)
    return trainer, estimator, untrained


@pytest.fixture(params=SPECS)
def trained(request):
    return copy.deepcopy(trained_by_sbi(request.param)[1])


@pytest.fixture(params=DENSITIES)
def density(request):
    return copy.deepcopy(trained_by_sbi(request.param)[1])


@pytest.fixture
def theta():
    return simulated(5, seed=4)[0]


@pytest.fixture
def x():
    return simulated(5, seed=4)[1]


@pytest.mark.parametrize("batch", [1, 10])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_loss_is_one_finite_number_per_row(size, batch):
    estimator, theta, x = built(*size)
    loss = estimator.loss(x[:batch], condition=theta[:batch])
    assert loss.shape == (batch,)
    assert torch.isfinite(loss).all()


@pytest.mark.parametrize("batch", [1, 10])
@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("size", SIZES_OF_DENSITIES, ids=str)
def test_log_prob_is_one_number_per_sample_and_row_and_the_same_for_the_same(size, samples, batch):
    estimator, theta, x = built(*size)
    value = estimator.log_prob(x[:batch].expand(samples, -1, -1), condition=theta[:batch])
    assert value.shape == (samples, batch)
    expected = estimator.log_prob(x[:batch], condition=theta[:batch]).expand(samples, -1)
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 10])
@pytest.mark.parametrize("shape", [(), (1,), (2, 3)], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_draws_have_the_shape_that_was_asked_for(size, shape, batch):
    estimator, theta, x = built(*size)
    assert estimator.sample(shape, condition=theta[:batch]).shape == (*shape, batch, x.shape[-1])


@pytest.mark.parametrize("batch", [1, 10])
@pytest.mark.parametrize("shape", [(), (1,), (2, 3)], ids=str)
@pytest.mark.parametrize("size", SIZES_OF_DENSITIES, ids=str)
def test_draws_and_their_log_prob_have_the_shape_that_was_asked_for(size, shape, batch):
    estimator, theta, x = built(*size)
    draws, log_prob = estimator.sample_and_log_prob(torch.Size(shape), condition=theta[:batch])
    assert draws.shape == (*shape, batch, x.shape[-1])
    assert log_prob.shape == (*shape, batch)
    assert torch.isfinite(log_prob).all()


@pytest.mark.parametrize("axes", ["batch", "sample and batch", "one row of stride zero"])
def test_log_prob_of_a_batch_is_a_loop_over_its_rows(density, theta, x, axes):
    inputs = torch.stack([x, x.flip(0), 0.5 * x])
    conditions = {
        "batch": theta,
        "sample and batch": torch.stack([theta, theta + 0.2, theta.flip(0)]),
        "one row of stride zero": theta[:1].expand(5, -1),
    }[axes]
    every = conditions.expand(3, 5, 2)
    with torch.no_grad():
        value = density.log_prob(inputs, condition=conditions)
        loop = [[density.log_prob(inputs[s, None, b], every[s, None, b]) for b in range(5)] for s in range(3)]
    torch.testing.assert_close(value, torch.tensor(loop), rtol=1e-3, atol=1e-3)


def test_each_row_follows_its_own_condition(trained):
    conditions = torch.tensor([[-0.8, -0.8], [0.8, 0.8]])
    together = trained.sample((500, 2), condition=conditions).flatten(0, 1)
    apart = torch.cat([trained.sample((1000,), condition=row[None]) for row in conditions], dim=1)
    error = (together.var(0) / 1000 + apart.var(0) / 1000).sqrt()
    assert ((together.mean(0) - apart.mean(0)).abs() < 5 * error).all()
    assert (apart[:, 1].mean(0) - apart[:, 0].mean(0))[0] > 10 * error.max()


@pytest.mark.parametrize(
    ("inputs", "conditions"), [((3, 5), (2, 5)), ((3, 5), (4,)), ((5,), (2, 4)), ((2, 5), (3,))], ids=str
)
def test_batches_that_do_not_match_are_refused(density, inputs, conditions):
    with pytest.raises(ValueError, match="equal sample and batch sizes, or 1"):
        density.log_prob(torch.zeros(*inputs, 3), condition=torch.zeros(*conditions, 2))


def test_an_estimator_tells_its_shapes_and_has_no_embedding(trained):
    assert (trained.input_shape, trained.condition_shape) == (torch.Size([3]), torch.Size([2]))
    assert trained.embedding_net is None


def test_training_mode_changes_no_number(trained, theta, x):
    expected = trained.eval().loss(x, condition=theta)
    assert (trained.train().loss(x, condition=theta) == expected).all()


def test_a_row_hears_nothing_of_the_others(trained, theta, x):
    loss = trained.loss(x, condition=theta)
    torch.testing.assert_close(trained.loss(x[2:3], condition=theta[2:3]), loss[2:3], rtol=1e-4, atol=1e-4)


def test_every_weight_learns_from_the_loss(trained, theta, x):
    trained.loss(x, condition=theta).mean().backward()
    silent = [name for name, weight in trained.named_parameters() if weight.requires_grad and weight.grad is None]
    assert not silent
    assert all(torch.isfinite(weight.grad).all() for weight in trained.parameters() if weight.requires_grad)


def test_log_prob_is_differentiable_in_x(density, theta, x):
    x = x.double().requires_grad_()
    density, theta = density.double(), theta.double()
    (slope,) = torch.autograd.grad(density.log_prob(x, condition=theta).sum(), x)
    along = on_plane(torch.tensor([1.0, 0.5], dtype=x.dtype))
    with torch.no_grad():
        ends = [density.log_prob(x + sign * 1e-6 * along, condition=theta)[0] for sign in (1, -1)]
    torch.testing.assert_close(slope @ along, (ends[0] - ends[1]) / 2e-6, rtol=1e-3, atol=1e-3)


def by_torch(estimator):
    buffer = io.BytesIO()
    torch.save(estimator, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("twin", [copy.deepcopy, by_torch, lambda e: pickle.loads(pickle.dumps(e))])
def test_copies_are_equal_after_use(trained, theta, x, twin):
    trained.loss(x, condition=theta).sum().backward()
    trained.sample((2,), condition=theta)
    torch.testing.assert_close(twin(trained).loss(x, condition=theta), trained.loss(x, condition=theta))


@pytest.mark.parametrize("name", SPECS)
def test_its_state_makes_a_twin_of_one_that_was_built_from_other_data(name, theta, x):
    estimator, twin = trained_by_sbi(name)[1], SPECS[name](*simulated(50, seed=8))
    expected = estimator.loss(x, condition=theta)
    assert not torch.allclose(twin.loss(x, condition=theta), expected)
    twin.load_state_dict(estimator.state_dict())
    assert (twin.loss(x, condition=theta) == expected).all()


@pytest.mark.parametrize("name", SPECS)
def test_sbis_trainer_trains_every_spec(name):
    _, estimator, untrained = trained_by_sbi(name)
    theta, x = simulated(300, seed=5)
    with torch.no_grad():
        gain = untrained.loss(x, condition=theta) - estimator.loss(x, condition=theta)
    assert gain.mean() > 5 * gain.std() / 300**0.5


@pytest.mark.parametrize("name", DENSITIES)
def test_sbis_trainer_builds_a_posterior_for_every_density(name):
    posterior = trained_by_sbi(name)[0].build_posterior()
    theta = torch.tensor([[0.9, -0.6]])
    x = on_plane(theta + 0.5 * torch.randn(16, 2))
    grid = grid_posterior(lambda rows: posterior.potential(rows, x=x), [-2, -2], [2, 2], 40)
    assert ((grid.mean - off_plane(x).mean(0)).abs() < 0.55).all()
    assert ((grid.std > 0.06) & (grid.std < 0.5)).all()  # 0.125 if all is learned, 1.15 if nothing


@pytest.mark.parametrize(("dims", "features"), [(3, 3), (5, 3), (1, 1)])
def test_an_m_flow_without_codimension_is_the_ambient_flow(dims, features):
    theta, x = torch.randn(100, 2), torch.randn(100, features)
    torch.manual_seed(3)
    with pytest.warns(UserWarning, match="there is no manifold to learn"):
        estimator = perturbed(MFlow(dims, latent=SMALL)(theta, x), 0.03)
    torch.manual_seed(3)
    expected = perturbed(AF(SMALL)(theta, x), 0.03)
    assert (estimator.log_prob(x, condition=theta) == expected.log_prob(x, condition=theta)).all()
    assert (estimator.loss(x, condition=theta) == expected.loss(x, condition=theta)).all()


@pytest.mark.parametrize("spec", [AF(AffineCouplings(2, 16)), MFlow(1, latent=AffineCouplings(2, 16))])
@pytest.mark.filterwarnings("ignore:.*there is no manifold to learn")
def test_one_feature_and_one_parameter_are_enough(spec):
    prior = BoxUniform(-torch.ones(1), torch.ones(1))
    theta = prior.sample((1000,))
    trainer = ManifoldNLE(prior, spec, show_progress_bars=False)
    trainer.append_simulations(theta, theta + 0.3 * torch.randn(1000, 1))
    trainer.train(schedule=density_only(20), training_batch_size=100, learning_rate=1e-2, weight_decay=0.0)
    posterior = trainer.build_posterior().set_default_x(torch.tensor([[0.5], [0.1]]))
    grid = grid_posterior(posterior.potential, [-1], [1], 200)
    assert grid.mean == pytest.approx(0.3, abs=0.1)
    assert grid.std == pytest.approx(0.3 / 2**0.5, rel=0.25)


@pytest.fixture(scope="module")
def likelihood():
    """Return a trained p(x|theta) of x on a plane, u ~ N(theta, 1/4) there."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        prior = BoxUniform(-2 * torch.ones(2), 2 * torch.ones(2))
        theta = prior.sample((2000,))
        small = AffineCouplings(2, 32)
        trainer = ManifoldNLE(prior, MFlow(2, small, small), show_progress_bars=False)
        trainer.append_simulations(theta, on_plane(theta + 0.5 * torch.randn(2000, 2)))
    return trainer.train(schedule=density_only(20), training_batch_size=100, learning_rate=1e-2, weight_decay=0.0)


def test_in_pyro_it_is_a_distribution(density, theta, x):
    wrapped = to_pyro_distribution(density, condition=theta)
    assert (wrapped.batch_shape, wrapped.event_shape) == ((5,), (3,))
    assert wrapped.sample().shape == (5, 3)
    assert wrapped.sample(torch.Size([4])).shape == (4, 5, 3)
    assert wrapped.log_prob(torch.stack([x, x])).shape == (2, 5)
    torch.testing.assert_close(wrapped.log_prob(x), density.log_prob(x, condition=theta)[0])


def test_in_pyro_it_can_be_expanded(density, theta, x):
    wrapped = to_pyro_distribution(density, condition=theta).expand(torch.Size([2, 5]))
    assert (wrapped.batch_shape, wrapped.event_shape) == ((2, 5), (3,))
    assert wrapped.sample(torch.Size([4])).shape == (4, 2, 5, 3)
    each = torch.stack([x, x.flip(0)])
    torch.testing.assert_close(wrapped.log_prob(each), density.log_prob(each, condition=theta), rtol=1e-4, atol=1e-4)


def test_a_condition_of_another_size_is_refused_in_pyro(density, theta):
    with pytest.raises(ValueError, match="not compatible with"):
        to_pyro_distribution(density, condition=theta[:, :1])


def test_a_hierarchical_model_in_pyro_draws_every_level(likelihood):
    truth = torch.tensor([[-0.6, 0.9], [0.0, 0.5], [0.9, -0.1]])
    x = on_plane(truth + 0.5 * torch.randn(6, 3, 2))

    def model():
        mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("subjects", 3):
            theta = pyro.sample("theta", dist.Normal(mean, 1.0).to_event(1))
            with pyro.plate("trials", 6):
                pyro.sample("x", to_pyro_distribution(likelihood, condition=theta), obs=x)

    pyro.set_rng_seed(0)
    chain = MCMC(NUTS(model, max_tree_depth=5), num_samples=60, warmup_steps=40, disable_progbar=True)
    chain.run()
    draws = chain.get_samples()
    u, weight = off_plane(x).mean(0), 24.0  # 6 trials of variance 1/4 against one prior of variance 1
    mean = u.mean(0) / (1 + (1 + 1 / weight) / 3)
    exact = (weight * u + mean) / (weight + 1)
    assert ((draws["theta"].mean(0) - exact).abs() < 0.2).all()  # one standard deviation of theta
    assert ((draws["mean"].mean(0) - mean).abs() < 0.35).all()
    assert ((draws["theta"].std(0) > 0.1) & (draws["theta"].std(0) < 0.4)).all()


@pytest.mark.parametrize("sampled", [(2,), (1, 2)], ids=["rows", "with a sample axis"])
def test_what_is_local_to_each_trial_can_be_given(density, theta, x, sampled):
    """sbi's conditioned potential sums log p(x_i|global theta, local theta_i) over trials i."""
    potential, _ = likelihood_estimator_based_potential(density, BOX, x)
    conditioned = potential.condition_on_theta(theta[:, 1:], dims_global_theta=[0])
    free = torch.tensor([[0.1], [-0.3]])
    value = conditioned(free.expand(*sampled, 1))
    rows = [torch.cat([row.expand(5, 1), theta[:, 1:]], dim=1) for row in free]
    expected = torch.stack([density.log_prob(x, condition=row).sum() for row in rows])
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)


def test_a_conditioned_potential_can_be_sampled(likelihood):
    local = torch.tensor([[-1.0], [0.0], [1.0], [0.5]])
    x = on_plane(torch.cat([torch.full((4, 1), 0.4), local], dim=1))
    prior = BoxUniform(-2 * torch.ones(1), 2 * torch.ones(1))
    potential, _ = likelihood_estimator_based_potential(likelihood, prior, x)
    settings = {"num_chains": 10, "warmup_steps": 0, "init_strategy_parameters": {"num_candidate_samples": 50}}
    posterior = MCMCPosterior(potential.condition_on_theta(local, dims_global_theta=[0]), proposal=prior, **settings)
    draws = posterior.sample((200,), x=x, show_progress_bars=False)
    assert draws.shape == (200, 1)
    assert draws.mean() == pytest.approx(0.4, abs=0.12)
    assert draws.std() == pytest.approx(0.25, rel=0.4)
