"""Likelihood-ratio intervals of posteriors whose likelihood is known to the last digit."""

import pytest
import torch
from scipy import stats
from torch.distributions import Dirichlet, Independent, Normal, Poisson, Uniform

from mfsbi import ManifoldNLE, MFlow, confidence_belt, profile
from mfsbi.plugin.host import EnsemblePosterior
from mfsbi.plugin.parameter_prior import parameter_prior
from mfsbi.plugin.posteriors import posterior_of
from simulators.polynomial import PolynomialSurface
from tests.plugin.test_priors import KINDS, NOISE
from tests.problems import SMALL, surface_data

NAMES = ["mass", "width", "tilt", "drift"]


def box(*ends):
    low, high = torch.tensor(ends, dtype=torch.float32).T
    return Independent(Uniform(low, high), 1)


def posterior_with(prior, kind="likelihood", sample_with="smc"):
    return posterior_of(KINDS[kind], parameter_prior(prior), sample_with, None, "cpu")


def events(count, *theta, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor(theta) + NOISE * torch.randn(count, len(theta), generator=generator)


def simulate(theta, *, seed=None):
    generator = torch.Generator().manual_seed(seed)
    return theta + NOISE * torch.randn(theta.shape, generator=generator)


def shifted(theta, *, seed=None):
    """A simulator of which the likelihood knows nothing: it is off by a third and too narrow."""
    return 1 / 3 + theta + 1.5 * (simulate(theta, seed=seed) - theta)


@pytest.mark.parametrize("kind", KINDS)
def test_intervals_of_a_mean_are_exact(kind):
    x = events(25, 0.3, -0.2)
    found = profile(posterior_with(box((-1, 1), (-2, 2)), kind), x, "width", parameter_names=NAMES[:2])
    half = stats.norm.ppf(0.975) * NOISE / 5
    ((low, high),) = found.intervals(0.95)
    mean = float(x[:, 1].mean())
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=1e-3)
    assert found.best.tolist() == pytest.approx(x.mean(0).tolist(), abs=1e-3)
    assert found.axes[0][[0, -1]].tolist() == pytest.approx([-2, 2])
    assert (found.events, found.q.shape) == (25, (101,))
    expected = (found.axes[0] - mean).square() * 25 / NOISE**2
    torch.testing.assert_close(found.q, expected, atol=2e-3, rtol=1e-3)


def test_only_the_support_of_a_prior_plays_a_role():
    x = events(10, 0.3)
    flat, narrow = (
        profile(posterior_with(prior), x, bounds=(-1, 1), points=21)
        for prior in (box((-9, 9)), Independent(Normal(-0.5 * torch.ones(1), 0.1 * torch.ones(1)), 1))
    )
    torch.testing.assert_close(flat.q, narrow.q, atol=1e-3, rtol=1e-3)


def test_the_same_call_has_the_same_result():
    posterior = posterior_with(box((-1, 1), (-1, 1), (-1, 1)))
    one, other = (profile(posterior, events(5, 0.1, 0.2, 0.3), [0, 2], points=5) for _ in range(2))
    assert torch.equal(one.q, other.q)
    belts = [confidence_belt(posterior, one, simulate, toys=30, points=2, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(belts[0].q, belts[1].q)
    assert not torch.equal(belts[0].q, belts[2].q)
    assert belts[0].q.shape == (2, 2, 30)


TABLE = {
    (-1.0, 0.683): (0.0, 0.27),
    (0.0, 0.683): (0.0, 1.00),
    (1.0, 0.683): (0.24, 2.00),
    (2.0, 0.683): (1.00, 3.00),
    (-1.0, 0.9): (0.0, 0.81),
    (0.0, 0.9): (0.0, 1.64),
    (1.0, 0.9): (0.0, 2.64),
    (2.0, 0.9): (0.58, 3.64),
    (-1.0, 0.95): (0.0, 1.10),
    (1.0, 0.95): (0.0, 2.96),
    (2.0, 0.95): (0.35, 3.96),
    (3.0, 0.95): (1.14, 4.96),
}
"""Of Feldman & Cousins (1998), table X: intervals of a Gaussian mean that is not negative, in standard deviations."""


@pytest.fixture(scope="module")
def near_zero():
    """Return a posterior of one mean that is not negative, and a belt of one event."""
    posterior = posterior_with(box((0.0, 8 * NOISE)))
    found = profile(posterior, torch.tensor([[NOISE]]), points=161)
    return posterior, confidence_belt(posterior, found, simulate, toys=3000, points=33, seed=3)


@pytest.mark.parametrize(("observed", "level"), TABLE)
def test_near_an_edge_intervals_are_those_of_feldman_and_cousins(near_zero, observed, level):
    posterior, belt = near_zero
    found = profile(posterior, torch.tensor([[observed * NOISE]]), points=161)
    ((low, high),) = belt.intervals(level, found)
    assert (low / NOISE, high / NOISE) == pytest.approx(TABLE[observed, level], abs=0.09)


def test_critical_values_are_within_their_errors(near_zero):
    _, belt = near_zero
    value, error = belt.critical(0.9)
    far = belt.axes[0] > 3 * NOISE  # where the edge is no longer felt
    far &= belt.axes[0] < 5 * NOISE
    limit = stats.chi2.ppf(0.9, 1)
    expected = (0.9 * 0.1 / belt.q.shape[-1]) ** 0.5 / stats.chi2.pdf(limit, 1)
    assert error[far].mean() == pytest.approx(expected, rel=0.2)
    assert ((value[far] - limit) / expected).abs().max() < 3
    assert abs(float(belt.coverage_of_wilks(0.9)[far].mean()) - 0.9) < 0.01
    assert belt.coverage_of_wilks(0.9)[0] == pytest.approx(0.95, abs=0.02)  # of half of all toys q = 0 there
    assert belt.p_value(float(belt.axes[0][12])) == pytest.approx(
        float((belt.q[12] >= belt.profile.at(float(belt.axes[0][12]))).double().mean()), abs=1e-3
    )


def test_toys_of_the_simulator_mend_a_wrong_likelihood():
    """Coverage of 90 % where Wilks's theorem has a half."""
    posterior = posterior_with(box((-6.0, 6.0)))
    found = profile(posterior, shifted(torch.zeros(4, 1), seed=0), points=81)
    belt, others = (confidence_belt(posterior, found, shifted, toys=1000, points=5, seed=seed) for seed in (1, 2))
    covered = (others.q <= belt.critical(0.9).value[:, None]).double().mean(-1)
    assert (covered[1:-1] - 0.9).abs().max() < 0.04
    assert belt.coverage_of_wilks(0.9)[1:-1].max() < 0.6
    low, high = belt.intervals(0.9)[0]
    assert found.intervals(0.9)[0].low > low + 0.2
    assert low < 0 < high


def test_with_nuisance_parameters_toys_are_simulated_at_profiled_values():
    posterior = posterior_with(box((-1, 1), (-3, 3)))
    found = profile(posterior, events(4, 0.0, 1.5), points=21)
    seen = []

    def recorded(theta):
        seen.append(theta)
        return theta + NOISE * torch.randn_like(theta)

    belt = confidence_belt(posterior, found, recorded, toys=300, points=3)
    assert [each[0].tolist() for each in seen] == [pytest.approx(found.theta[i].tolist()) for i in (0, 10, 20)]
    assert [each.shape for each in seen] == [(1200, 2)] * 3
    assert abs(float(belt.coverage_of_wilks(0.683)[1]) - 0.683) < 0.08
    with pytest.raises(ValueError, match="A belt with nuisance parameters is of the data that it was made for"):
        belt.intervals(0.9, profile(posterior, events(4, 0.0, 1.0), points=21))


def test_without_a_simulator_the_model_draws_toys():
    surface, theta, x = surface_data(300)
    trainer = ManifoldNLE(surface.prior, MFlow(2, SMALL, SMALL), show_progress_bars=False).append_simulations(theta, x)
    with pytest.warns(UserWarning, match="The chart"):
        trainer.train(max_num_epochs=2, restarts=0)
    posterior = trainer.build_posterior()
    found = profile(posterior, surface.simulate(torch.zeros(5, 1), seed=1), points=11)
    own, again, true = (
        confidence_belt(posterior, found, simulator, toys=50, points=3, seed=4)
        for simulator in (None, None, PolynomialSurface())
    )
    assert torch.equal(own.q, again.q)
    assert not torch.equal(own.q, true.q)
    assert "by Neyman's construction" in str(own)


def profiled(x=None, prior=None, **settings):
    posterior = posterior_with(prior or box(*[(-1, 1)] * 4), sample_with="rejection")
    return profile(posterior, events(3, 0, 0, 0, 0) if x is None else x, **settings)


REFUSED = {
    "four parameters": (lambda: profiled(parameters=[0, 1, 2, 3]), "1 to 3 different parameters of interest"),
    "none": (lambda: profiled(parameters=[]), "1 to 3 different parameters of interest"),
    "one twice": (lambda: profiled(parameters=["mass", 0], parameter_names=NAMES), "1 to 3 different parameters"),
    "an unknown name": (
        lambda: profiled(parameters="spin", parameter_names=NAMES),
        r"`parameters` should be among \['mass', .* got \['spin'\]",
    ),
    "an unknown number": (lambda: profiled(parameters=4), r"as numbers from 0 to 3; got \[4\]"),
    "a negative number": (lambda: profiled(parameters=-1), r"from 0 to 3; got \[-1\]"),
    "names of other parameters": (lambda: profiled(parameter_names=["mass"]), "`parameter_names` should have 4"),
    "events of NaN": (lambda: profiled(x=torch.full((3, 4), torch.nan)), "`x` should be finite; 3 of 3 rows"),
    "sets of events": (lambda: profiled(x=torch.zeros(2, 3, 4)), r"`x` should have shape \(events, data\): one set"),
    "other features": (lambda: profiled(x=torch.zeros(3, 2)), r"`x` should have shape \(rows, 4\)"),
    "bounds of two": (lambda: profiled(bounds=[(0, 1), (0, 1)]), "`bounds` should be 1 finite pairs"),
    "bounds upside down": (lambda: profiled(bounds=(1, 0)), "`bounds` should be 1 finite pairs"),
    "no bounds": (
        lambda: profiled(torch.zeros(3, 1), Independent(Normal(torch.zeros(1), torch.ones(1)), 1)),
        "`bounds` should say .* its draws lie between ",
    ),
    "one point": (lambda: profiled(points=1), "`points` should be 2 or more; got 1"),
    "few values": (
        lambda: profiled(torch.zeros(3, 1), Independent(Poisson(torch.ones(1)), 1), bounds=(0, 3)),
        "The prior has parameters that take few values",
    ),
    "a sum of one": (lambda: profiled(torch.zeros(3, 2), Dirichlet(torch.ones(2))), "those of this prior sum to one"),
}


@pytest.mark.parametrize("call", REFUSED)
def test_what_cannot_be_profiled_is_refused(call):
    with pytest.raises(ValueError, match=REFUSED[call][1]):
        REFUSED[call][0]()


def belt_of(simulator=simulate, kind="likelihood", bounds=(-1, 1), **settings):
    posterior = posterior_with(box((-1, 1)), kind)
    found = profile(posterior, events(3, 0.1), bounds=bounds, points=5)
    return confidence_belt(posterior, found, simulator, **({"toys": 10, "points": 3} | settings))


def other(count=3, **settings):
    return profile(posterior_with(box((-2, 2))), events(count, 0.1), **({"bounds": (-1, 1), "points": 5} | settings))


BELTS = {
    "rows of one's own": (lambda: belt_of(lambda theta: theta[:3]), ValueError, "should return 30 rows, one for each"),
    "toys of NaN": (lambda: belt_of(lambda theta: theta * torch.nan), ValueError, r"simulated at theta = \[-1.0\]"),
    "a number": (lambda: belt_of(3), TypeError, "`simulator` should be one with `simulate`, or a function"),
    "arrays": (lambda: belt_of(lambda theta: theta.numpy()), TypeError, r"`simulator\(theta\)` should be a torch"),
    "a ratio without a simulator": (lambda: belt_of(None, "ratio"), TypeError, "A ratio draws no events"),
    "a grid beyond the prior": (lambda: belt_of(bounds=(-1, 1.5)), ValueError, r"the first of them \[1.5\]"),
    "too few toys": (lambda: belt_of().critical(0.95), ValueError, "0.95 needs 19 toys or more; there are 10"),
    "no toys": (lambda: belt_of(toys=0), ValueError, "`toys` should be a positive integer; got 0"),
    "other events": (lambda: belt_of().region(0.5, other(4)), ValueError, r"of 3 events and parameters \(0,\); got"),
    "a wider grid": (lambda: belt_of().region(0.5, other(bounds=(-2, 1))), ValueError, "from -1 to 1; got .* from -2"),
    "no level": (lambda: belt_of().critical(95), ValueError, "`level` should be a share"),
    "no profile": (lambda: confidence_belt(posterior_with(box((-1, 1))), 3), TypeError, "what `profile"),
    "another posterior": (
        lambda: confidence_belt(posterior_with(box((-1, 1), (-1, 1))), other(), simulate),
        ValueError,
        "`found` should be of the 2 parameters of `posterior`; it has 1",
    ),
}


@pytest.mark.parametrize("call", BELTS)
def test_what_makes_no_belt_is_refused(call, as_users_have_it):
    make, error, message = BELTS[call]
    with pytest.raises(error, match=message):
        make()


def test_what_is_no_posterior_is_refused(as_users_have_it):
    with pytest.raises(TypeError, match="`posterior` should be a posterior"):
        profile(3, torch.zeros(1, 1))
    one = posterior_with(box((-1, 1)))
    with pytest.raises(TypeError, match="got an ensemble"):
        profile(EnsemblePosterior([one, one]), torch.zeros(1, 1))
