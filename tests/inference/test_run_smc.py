import math

import pytest
import torch
from torch.distributions import Gamma, Independent, MultivariateNormal, Normal, Uniform, biject_to

from mfsbi import SMC
from mfsbi.inference.samplers import Problem
from mfsbi.inference.to_arviz import diagnose


def problem(prior, log_likelihood):
    """Return a posterior whose likelihood is known."""

    def potential(theta, track_gradients=True):
        return log_likelihood(theta.double()) + prior.log_prob(theta)

    return Problem(potential, prior, biject_to(prior.support).inv, torch.zeros(1, 1), None, show_progress_bars=False)


def gaussian(dims):
    """Return a problem with a normal likelihood, stretched thirtyfold, its exact posterior and log evidence."""
    generator = torch.Generator().manual_seed(dims)
    turn = torch.linalg.qr(torch.randn(dims, dims, generator=generator, dtype=torch.float64))[0]
    noise = (turn * torch.logspace(-1.5, 0, dims, dtype=torch.float64)) @ turn.T
    centre = torch.randn(dims, generator=generator, dtype=torch.float64)
    prior = Independent(Normal(torch.zeros(dims), 3 * torch.ones(dims)), 1)
    likelihood = MultivariateNormal(centre, noise @ noise.T)
    covariance = torch.linalg.inv(likelihood.precision_matrix + torch.eye(dims) / 9)
    posterior = MultivariateNormal(covariance @ likelihood.precision_matrix @ centre, covariance)
    evidence = MultivariateNormal(torch.zeros(dims).double(), noise @ noise.T + 9 * torch.eye(dims))
    return problem(prior, likelihood.log_prob), posterior, float(evidence.log_prob(centre))


@pytest.mark.parametrize("dims", [1, 2, 10])
def test_a_normal_posterior_and_its_evidence_are_right(dims):
    found, exact, log_evidence = gaussian(dims)
    chains = SMC(chains=8).draw(found, 250, seed=1)
    draws = chains.pooled.double()
    assert ((draws.mean(0) - exact.mean).abs() < 0.12 * exact.stddev).all()
    root = torch.linalg.cholesky(exact.covariance_matrix)
    spread = torch.linalg.solve_triangular(root, (draws - exact.mean).T, upper=False).T.std(0)
    assert (spread.log().abs() < 0.1).all()
    assert abs(chains.info.log_evidence - log_evidence) < 4 * chains.info.log_evidence_error < 0.8
    assert diagnose(chains).converged


def test_eight_separate_modes_have_their_masses():
    angle = torch.arange(8).double() * math.pi / 4
    modes, prior = (
        2 * torch.stack([angle.cos(), angle.sin()], -1),
        Independent(Uniform(-3 * torch.ones(2), torch.full((2,), 3.0)), 1),
    )

    def log_likelihood(theta):
        return (-0.5 * ((theta[:, None] - modes) / 0.1).square().sum(-1)).logsumexp(-1)

    chains = SMC().draw(problem(prior, log_likelihood), 500, seed=0)
    shares = (chains.pooled.double()[:, None] - modes).norm(dim=-1).argmin(-1).bincount(minlength=8) / 2000
    assert ((shares - 1 / 8).abs() < 0.03).all()
    assert abs(chains.info.log_evidence - math.log(8 * 2 * math.pi * 0.01 / 36)) < 0.2


def test_a_posterior_a_thousandth_of_the_prior_and_one_at_its_edge():
    prior = Independent(Uniform(torch.zeros(2), torch.ones(2)), 1)

    def log_likelihood(theta):
        return -theta[:, 0] / 0.05 - 0.5 * ((theta[:, 1] - 0.3) / 1e-3).square()

    draws = SMC().draw(problem(prior, log_likelihood), 500, seed=0).pooled.double()
    mean, spread = draws.mean(0), draws.std(0)
    torch.testing.assert_close(mean, torch.tensor([0.05, 0.3]).double(), rtol=0.08, atol=0)
    torch.testing.assert_close(spread, torch.tensor([0.05, 1e-3]).double(), rtol=0.1, atol=0)


def test_a_likelihood_that_is_zero_at_most_of_the_prior_is_followed():
    prior = Independent(Uniform(-torch.ones(1), torch.ones(1)), 1)
    found = problem(prior, lambda theta: torch.where(theta[:, 0].abs() < 0.1, 0.0, -math.inf))
    chains = SMC().draw(found, 250, seed=0)
    assert (chains.draws.abs() < 0.1).all()
    assert abs(float(chains.draws.std()) - 0.2 / 12**0.5) < 0.005
    assert abs(chains.info.log_evidence - math.log(0.1)) < 4 * chains.info.log_evidence_error + 0.05


def test_a_likelihood_that_is_zero_at_nearly_all_of_the_prior_is_found():
    """Two in a thousand draws of the prior are possible: fewer than one of the first 250 of each population."""
    prior = Independent(Uniform(-torch.ones(1), torch.ones(1)), 1)
    found = problem(prior, lambda theta: torch.where(theta[:, 0].abs() < 0.002, 0.0, -math.inf))
    chains = SMC().draw(found, 250, seed=0)
    assert (chains.draws.abs() < 0.002).all()
    assert abs(float(chains.draws.std()) - 0.004 / 12**0.5) < 0.0001
    assert abs(chains.info.log_evidence - math.log(0.002)) < 0.15


def test_a_draw_of_the_prior_on_its_edge_does_no_harm():
    """Where the logarithm ends: laws of small shapes have such draws in float32."""

    class WithZero(Gamma):
        def sample(self, sample_shape=()):
            theta = super().sample(sample_shape)
            theta[0] = 0.0
            return theta

    prior = Independent(WithZero(torch.ones(1), torch.ones(1), validate_args=False), 1, validate_args=False)
    found = problem(prior, lambda theta: Normal(1.0, 0.1).log_prob(theta[:, 0]))
    draws = SMC().draw(found, 250, seed=0).pooled
    assert abs(float(draws.mean()) - 0.99) < 0.02
    assert abs(float(draws.std()) - 0.1) < 0.01


def test_each_of_several_data_sets_has_its_own_posterior_and_evidence():
    """One far from the prior, one that is hardly informative, one that leaves a hundredth of the prior."""
    spread, centre = torch.tensor([0.1, 5.0, 0.02]).double(), torch.tensor([3.0, 0.0, -1.0]).double()
    prior = Independent(Normal(torch.zeros(1), torch.ones(1)), 1)
    evidence = Normal(torch.zeros(3).double(), (1 + spread.square()).sqrt()).log_prob(centre)

    class OfSets:
        device = "cpu"

        def of_sets(self, theta, which):
            at = Normal(centre[which, None], spread[which, None])
            return at.log_prob(theta[..., 0].double()) + prior.log_prob(theta)

    transform = biject_to(prior.support).inv
    several = Problem(OfSets(), prior, transform, torch.zeros(3, 1), None, show_progress_bars=False, sets=3)
    found = SMC(chains=4, particles=400).draw_each(several, 400, seed=0)
    assert found.theta.shape == (3, 4, 400, 1)
    draws, variance = found.theta[..., 0].double().flatten(1), 1 / (1 + spread**-2)
    assert ((draws.mean(1) - variance * centre / spread**2).abs() < 0.15 * variance.sqrt()).all()
    assert ((draws.std(1) / variance.sqrt()).log().abs() < 0.1).all()
    assert ((found.log_evidence.logsumexp(1) - math.log(4) - evidence).abs() < 0.2).all()
    again = SMC(chains=4, particles=400).draw_each(several, 400, seed=0)
    assert (again.theta == found.theta).all()


@pytest.mark.filterwarnings("ignore:At temperature")
def test_populations_that_disagree_are_told_of_by_their_effective_size():
    """A wide mode and one of a fifth of its width, which few of 150 particles find."""
    prior = Independent(Uniform(-5 * torch.ones(4), 5 * torch.ones(4)), 1)
    modes = [
        Independent(Normal(at * torch.ones(4), width * torch.ones(4)), 1) for at, width in ((-2.0, 1.0), (3.0, 0.2))
    ]

    def log_likelihood(theta):
        return torch.stack([mode.log_prob(theta) for mode in modes]).logsumexp(0)

    chains = SMC(particles=150).draw(problem(prior, log_likelihood), 150, seed=2)
    assert not diagnose(chains).enough
    assert chains.info.log_evidence_error > 0.5


@pytest.mark.parametrize(
    ("log_likelihood", "told"),
    [
        (lambda theta: theta[:, 0] * math.nan, "it is nan at 1000 of 1000 theta"),
        (lambda theta: theta[:, 0] * 0 + math.inf, "it is inf at 1000 of 1000 theta"),
        (lambda theta: theta[:, 0] * 0 - math.inf, "zero at all but 0 of 25000 draws of the prior"),
    ],
)
def test_a_posterior_without_numbers_is_refused(log_likelihood, told):
    prior = Independent(Uniform(-torch.ones(1), torch.ones(1)), 1)
    with pytest.raises(ValueError, match=told):
        SMC().draw(problem(prior, log_likelihood), 10, seed=0)


@pytest.mark.parametrize("settings", [{"chains": 1}, {"particles": 1}, {"chains": 0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}`"):
        SMC(**settings)
