"""Every prior that users bring, on every road to its posterior, judged by weighted draws of the prior itself."""

import warnings

import numpy as np
import pytest
import torch
from sbi.utils import BoxUniform
from sbi.utils.restriction_estimator import RestrictedPrior
from scipy import stats
from torch import nn
from torch.distributions import (
    Beta,
    Categorical,
    Cauchy,
    Dirichlet,
    Exponential,
    ExpTransform,
    Gamma,
    HalfCauchy,
    HalfNormal,
    Independent,
    Kumaraswamy,
    LogNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    Pareto,
    StudentT,
    TransformedDistribution,
    Uniform,
    Weibull,
)

from mfsbi import AF, ALICES, ManifoldNLE
from mfsbi.charts import AmbientChart
from mfsbi.flows import Flow
from mfsbi.inference.to_arviz import diagnose
from mfsbi.models import Latent, ManifoldModel
from mfsbi.plugin.estimator import ManifoldEstimator
from mfsbi.plugin.host import MCMCPosteriorParameters
from mfsbi.plugin.parameter_prior import parameter_prior
from mfsbi.plugin.posteriors import posterior_of
from mfsbi.plugin.potential import ManifoldPotential, RatioPotential
from mfsbi.plugin.sampling import sample_chains
from mfsbi.seeds import seeded

pytestmark = pytest.mark.usefixtures("as_users_have_it")
NOISE = 0.5
SHORT = MCMCPosteriorParameters(num_chains=30, warmup_steps=8, init_strategy_parameters={"num_candidate_samples": 50})


class OwnOfTorch:
    """A prior of one's own: a triangle on (0, 2), with `sample` and `log_prob` alone, NaN outside."""

    def sample(self, shape=()):
        return torch.rand(*shape, 1) + torch.rand(*shape, 1)

    def log_prob(self, theta):
        return (1 - (theta[..., 0] - 1).abs()).log()


class OwnOfNumpy:
    """The same in numpy."""

    def sample(self, shape=()):
        return np.random.rand(*shape, 1) + np.random.rand(*shape, 1)  # noqa: NPY002 - as users write it

    def log_prob(self, theta):
        return np.log(1 - np.abs(theta[..., 0] - 1))


def tensor(*values):
    return torch.tensor(values)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


PRIORS = {
    "uniform": lambda: Uniform(tensor(0.0), tensor(1.0)),
    "box": lambda: BoxUniform(torch.zeros(2), torch.ones(2)),
    "normal": lambda: MultivariateNormal(torch.zeros(2), tensor([1.0, 0.6], [0.6, 1.0])),
    "exponential": lambda: Exponential(tensor(1.0)),
    "log-normal": lambda: LogNormal(tensor(0.0), tensor(1.0)),
    "gamma": lambda: Gamma(tensor(2.0), tensor(2.0)),
    "beta": lambda: Beta(tensor(2.0), tensor(3.0)),
    "Pareto": lambda: Pareto(tensor(0.3), tensor(2.0)),
    "log-uniform": lambda: TransformedDistribution(Uniform(tensor(-4.0), tensor(1.0)), ExpTransform()),
    "half-normal": lambda: HalfNormal(tensor(1.0)),
    "half-Cauchy": lambda: HalfCauchy(tensor(1.0)),
    "Cauchy": lambda: Cauchy(tensor(0.0), tensor(1.0)),
    "Student's t": lambda: StudentT(tensor(2.0)),
    "Weibull": lambda: Weibull(tensor(1.0), tensor(1.5)),
    "Kumaraswamy": lambda: Kumaraswamy(tensor(2.0), tensor(2.0)),
    "Dirichlet": lambda: Dirichlet(tensor(2.0, 1.0, 3.0)),
    "mixture": lambda: MixtureSameFamily(
        Categorical(tensor(0.3, 0.7)), Independent(Normal(tensor([-0.5], [1.0]), tensor([0.5], [0.5])), 1)
    ),
    "mixture of intervals": lambda: MixtureSameFamily(
        Categorical(tensor(0.4, 0.6)), Independent(Uniform(tensor([-0.5], [0.5]), tensor([0.0], [1.0])), 1)
    ),
    "list": lambda: [Gamma(tensor(2.0), tensor(2.0)), Uniform(tensor(0.0), tensor(1.0))],
    "list with a simplex": lambda: [Dirichlet(torch.ones(2)), Exponential(tensor(1.0))],
    "float64": lambda: Independent(Uniform(double(0.0, 0.0), double(1.0, 1.0)), 1),
    "normal of float64": lambda: MultivariateNormal(double(0.0, 0.0), torch.eye(2, dtype=torch.float64)),
    "restricted": lambda: RestrictedPrior(BoxUniform(-torch.ones(2), torch.ones(2)), lambda theta: theta[:, 0] > -0.2),
    "scipy's gamma": lambda: stats.gamma(2.0, scale=0.5),
    "scipy's normal": lambda: stats.multivariate_normal(np.zeros(2), np.eye(2)),
    "one's own": OwnOfTorch,
    "one's own of numpy": OwnOfNumpy,
}

ROADS = {
    "importance": (250, {"oversampling": 16}),
    "rejection": (100, {}),
    "grid": (250, {}),
    "smc": (250, {}),
    "emcee": (15, {"warmup": 12}),
    "slice": (8, {}),
    "nuts": (14, {"warmup": 8, "chains": 2, "max_tree_depth": 3}),
    "hmc": (14, {"warmup": 10, "chains": 2, "trajectory_length": 1.0, "max_num_steps": 6}),
    "vi": (40, {"max_num_iters": 5}),
}
LONG = ROADS | {
    "emcee": (60, {"warmup": 80, "thin": 2}),
    "slice": (50, {}),
    "rejection": (250, {}),
    "nuts": (200, {"warmup": 150, "chains": 3}),
    "hmc": (200, {"warmup": 150, "chains": 3, "trajectory_length": 1.5, "max_num_steps": 64}),
    "vi": (250, {"max_num_iters": 300}),
}
"""Draws of each chain and settings: as few as show a road that leaves a support, and as many as show a bias."""


class Exact(nn.Module):
    """The layer y = (x - theta) / NOISE of a flow: with it p(x|theta) = N(theta, NOISE^2) to the last digit."""

    def forward(self, x, theta):
        return (x - theta) / NOISE, x.new_full((), -len(x) * np.log(NOISE))


class ExactRatio(nn.Module):
    """log N(x; theta, NOISE^2) up to a constant, for sbi's potential of ratios."""

    def __init__(self):
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(()))  # sbi asks a network where its weights are

    def forward(self, theta, x):
        return self.zero - 0.5 * ((x - theta) / NOISE).square().sum(-1)


def likelihood(parameters):
    """Return an estimator whose likelihood is exact."""
    latent = Latent(Flow([Exact()], parameters, parameters), torch.zeros(parameters), torch.ones(parameters))
    model = ManifoldModel(AmbientChart(parameters), latent)
    model.latent.register_parameter("unused", nn.Parameter(torch.zeros(1)))
    return ManifoldEstimator(model)


KINDS = {
    "likelihood": lambda prior: ManifoldPotential(likelihood(prior.event_shape[0]), prior),
    "ratio": lambda prior: RatioPotential(ExactRatio(), prior),
}


SIMPLICES = "Dirichlet", "list with a simplex"

JUMPS = "mixture of intervals"
"""A density with gaps, which trajectories along slopes do not cross."""

ALIKE = {"box", "normal of float64", "scipy's normal", "Weibull", "Kumaraswamy", "half-normal", "log-uniform"}
"""Priors that the gate need not take on slow roads, since others are as these."""

SLOWER = "rejection", "emcee", "slice", "nuts", "hmc", "vi"

TABLE = [
    (name, kind, road)
    for name in PRIORS
    for kind in KINDS
    for road in ROADS
    if not (road == "grid" and name in SIMPLICES) and not (road in ("nuts", "hmc") and name == JUMPS)
]


def drawn(prior, rows):
    """Return draws of a prior by its own methods, in float64, shape `(rows, parameter)`."""
    if isinstance(prior, list):
        return torch.cat([drawn(part, rows) for part in prior], dim=-1)
    if hasattr(prior, "rvs"):
        return torch.as_tensor(prior.rvs(size=rows)).double().view(rows, -1)
    return torch.as_tensor(prior.sample((rows,))).double().view(rows, -1)


class Case:
    """A prior with an observation and the mean and standard deviation of the exact posterior."""

    def __init__(self, name):
        self.name, self.prior = name, PRIORS[name]()
        with seeded(1):
            theta = drawn(self.prior, 400_000)
            self.x = (theta[0] + NOISE * torch.randn(theta.shape[1], dtype=torch.float64)).float()[None]
        weight = (-0.5 * ((self.x.double() - theta) / NOISE).square().sum(-1)).softmax(0)
        self.mean = weight @ theta
        self.std = (weight @ (theta - self.mean).square()).sqrt()
        fourth = weight @ (theta - self.mean).pow(4) / self.std.pow(4)
        self.spread_of_std = self.std * ((fourth - 1) / 4).sqrt()


@pytest.fixture(scope="module")
def cases():
    """Return cases by name, each made once."""
    made = {}
    return lambda name: made.get(name) or made.setdefault(name, Case(name))


def require_posterior(case, kind, road, draws, settings):
    """Assert mean and spread within 4 standard errors of the exact ones, and no draw outside the prior."""
    prior = parameter_prior(case.prior)
    posterior = posterior_of(KINDS[kind], prior, "mcmc", SHORT, "cpu")
    if road == "grid":
        reach = torch.stack([case.mean - 8 * case.std, case.mean + 8 * case.std], dim=-1)
        settings = {"bounds": reach.tolist(), "points": 600 if len(reach) == 1 else 240}
    if road == "vi" and len(case.mean) > 1 and case.name not in SIMPLICES:
        settings = settings | {"q": "gaussian"}  # sbi's default there is a flow, which is slower
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "invalid value encountered")  # ArviZ's, of a chain that stands still
        warnings.filterwarnings("ignore", "The chains have not|There are few|Only .* candidates|.* trajectories div")
        chains = sample_chains(posterior, case.x, draws, sampler=road, seed=3, **settings)
        size = min(diagnose(chains).ess_bulk)
    theta = chains.pooled.double()
    if chains.draws.shape[1] < 100:
        size = size / 2  # which of short chains is a rough number
    if road in ("importance", "vi"):
        size = min(size, chains.info.acceptance * settings.get("oversampling", 8) * 4 * draws)
    cell = 16 * case.std / settings["points"] / 2 if road == "grid" else 0.0
    assert prior.inside(chains.pooled).all()
    assert torch.isfinite(chains.log_prob).all()
    assert ((theta.mean(0) - case.mean).abs() <= 4 * case.std / size**0.5 + cell).all()
    assert ((theta.std(0) - case.std).abs() <= 4 * case.spread_of_std / size**0.5 + cell).all()
    return size


QUICK = [
    (name, kind, road)
    for name, kind, road in TABLE
    if road not in SLOWER
    or (name not in ALIKE and (list(PRIORS).index(name) + SLOWER.index(road)) % 2 == list(KINDS).index(kind))
]
"""Slow roads are taken by likelihoods and ratios in turns: each has half of the priors on every road."""


@pytest.mark.parametrize(("name", "kind", "road"), QUICK)
def test_every_road_gives_the_posterior_of_every_prior(cases, short_tuning, name, kind, road):
    require_posterior(cases(name), kind, road, *ROADS[road])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind", "road"), TABLE)
def test_every_road_gives_it_precisely(cases, short_tuning, name, kind, road):
    assert require_posterior(cases(name), kind, road, *LONG[road]) > 20


@pytest.mark.parametrize("name", SIMPLICES)
def test_a_grid_says_that_it_has_no_mass_on_a_simplex(cases, name):
    prior = parameter_prior(cases(name).prior)
    posterior = posterior_of(KINDS["likelihood"], prior, "mcmc", SHORT, "cpu")
    bounds = [(0.0, 1.0)] * prior.event_shape[0]
    with pytest.raises(ValueError, match="A grid cannot cover parameters that sum to one"):
        sample_chains(posterior, cases(name).x, 10, sampler="grid", bounds=bounds)


@pytest.mark.parametrize("name", PRIORS)
def test_trainers_of_likelihoods_and_ratios_take_every_prior_and_leave_it_as_it_was(name):
    prior = PRIORS[name]()
    before = repr(vars(prior)) if hasattr(prior, "__dict__") else ""
    for trainer in (ManifoldNLE(prior, AF()), ALICES(prior)):
        assert trainer.parameter_dim == drawn(prior, 2).shape[1]
        assert trainer.prior.sample((3,)).dtype == torch.float32
    assert name == "restricted" or before == (repr(vars(prior)) if hasattr(prior, "__dict__") else "")


@pytest.mark.parametrize(
    "name", ["exponential", "Dirichlet", "mixture of intervals", "one's own", "one's own of numpy"]
)
def test_the_potential_is_minus_infinity_outside_with_gradients_that_are_numbers(name):
    prior = parameter_prior(PRIORS[name]())
    theta = torch.full((2, prior.event_shape[0]), -3.0)
    theta[1] = prior.sample((1,))
    for kind in KINDS.values():
        potential = kind(prior)
        potential.set_x(torch.zeros(1, theta.shape[1]))
        at = theta.clone().requires_grad_()
        value = potential(at)
        assert value[0] == -torch.inf
        assert torch.isfinite(value[1])
        (gradient,) = torch.autograd.grad(value[1:].sum(), at)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", PRIORS)
def test_the_way_to_free_coordinates_leads_back_and_its_volume_is_that_of_small_steps(name):
    prior = parameter_prior(PRIORS[name]())
    with seeded(2):
        theta = prior.sample((20,))
    way = prior.unconstrained
    y = way(theta)
    assert torch.allclose(way.inv(y), theta, rtol=1e-3, atol=1e-4)
    if y.shape == theta.shape:
        jacobian = torch.stack([torch.autograd.functional.jacobian(way.inv, row) for row in y])
        expected = -torch.linalg.slogdet(jacobian.double())[1]
        assert torch.allclose(way.log_abs_det_jacobian(theta, y).double(), expected, rtol=1e-3, atol=1e-3)


REFUSED = {
    "a scalar": (lambda: Normal(0.0, 1.0), ValueError, r"shape \(2, parameters\); got \(2,\)"),
    "a batch": (lambda: Uniform(torch.zeros(2), torch.ones(2)), ValueError, "one number for each row"),
    "a list of nothing": (list, ValueError, "the list is empty"),
    "matrices": (lambda: Independent(Normal(torch.zeros(2, 2), 1.0), 2), ValueError, r"got \(2, 2, 2\)"),
    "no density": (lambda: nn.Linear(1, 1), TypeError, "`prior` should be a distribution"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_by_the_trainer_itself(name):
    make, error, message = REFUSED[name]
    for trainer in (lambda: ManifoldNLE(make(), AF()), lambda: ALICES(make())):
        with pytest.raises(error, match=message):
            trainer()
