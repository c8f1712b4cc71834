"""What joint scores are worth, and that noisy ones do no harm: the automatic weight on problems with known gold."""

import warnings

import pytest
import torch
from torch.distributions import MultivariateNormal

from mfsbi import AF, FOM, ManifoldNLE, SplineCouplings
from simulators.polynomial import PolynomialSurface

pytestmark = pytest.mark.slow

MIXING = torch.tensor([[1.0, 0.3, 0.0, 0.0], [0.2, 1.0, 0.5, 0.0], [0.0, -0.4, 1.0, 0.3], [0.1, 0.0, 0.2, 1.0]])
SMALL = SplineCouplings(layers=4, width=32, bins=5)
SURFACE = PolynomialSurface()


def linear_gaussian(noise):
    """z ~ N(A theta, 1/4), x ~ N(z, noise^2), so that t = A^T (z - A theta)/(1/4): the noise hides z, and so t."""

    def simulate(rows, seed):
        generator = torch.Generator().manual_seed(seed)
        theta, first, second = torch.randn(3, rows, 4, generator=generator)
        return theta, theta @ MIXING.T + 0.5 * first + noise * second, 2 * first @ MIXING

    return MultivariateNormal(torch.zeros(4), torch.eye(4)), AF(SMALL), simulate


def surface():
    """The polynomial surface on its true chart: which component a point came from cannot be seen."""

    def simulate(rows, seed):
        theta = torch.rand(rows, 1, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        gold = SURFACE.simulate_with_gold(theta, seed=seed + 1)
        return theta, gold.x, gold.joint_score

    return SURFACE.prior, FOM(SURFACE.decode, SURFACE.encode, SMALL), simulate


def nll_of_new_rows(problem, simulations, seed, weights):
    """Return the test NLL of each weight of the score, and its rows' standard deviation over their root."""
    prior, spec, simulate = problem
    theta, x, score = simulate(simulations, 100 + 10 * seed)
    new_theta, new_x, _ = simulate(5000, 7)
    found = []
    for weight in weights:
        trainer = ManifoldNLE(prior, spec, seed=seed, show_progress_bars=False)
        trainer.append_simulations(theta, x, joint_score=score)
        with warnings.catch_warnings():
            if weight:  # training may break down by a fixed one that is far too large, never by the automatic one
                warnings.filterwarnings("ignore", message="Training broke down")
            estimator = trainer.train(training_batch_size=50, max_num_epochs=50, score_weight=weight)
        with torch.no_grad():
            found.append(-estimator.log_prob(new_x[None], new_theta)[0])
    return found


@pytest.mark.parametrize("seed", range(10))
def test_scores_without_noise_lower_the_nll_of_new_rows_of_300_simulations(seed):
    plain, scandal = nll_of_new_rows(linear_gaussian(0.0), 300, seed, [0.0, None])
    assert scandal.mean() < plain.mean()


NOISY = {"hidden": lambda: linear_gaussian(2.0), "surface": surface}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NOISY)
def test_noisy_scores_do_no_harm(name, seed):
    plain, scandal = nll_of_new_rows(NOISY[name](), 1000, seed, [0.0, None])
    gain = plain - scandal
    assert gain.mean() > -gain.std() / len(gain) ** 0.5


PROBLEMS = {
    "no noise": (lambda: linear_gaussian(0.0), 300),
    "hidden": (NOISY["hidden"], 1000),
    "surface": (surface, 1000),
}
FACTORS = 0.01, 0.1, 1.0, 10.0


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_automatic_weight_is_near_the_best_of_a_scan(name):
    """No fixed weight around it wins more than a quarter of what scores are worth, and a standard error, on top.

    The standard error is that of four trainings: each has other simulations and other weights.
    """
    problem, simulations = PROBLEMS[name]
    theta, x, score = problem()[2](simulations, 100)
    trainer = ManifoldNLE(*problem()[:2], seed=0, show_progress_bars=False)
    trainer.append_simulations(theta, x, joint_score=score).train(training_batch_size=50, max_num_epochs=1, restarts=0)
    usual = 1 / min(trainer.history.score_noise.variance)
    weights = [0.0, None, *(factor * usual for factor in FACTORS)]
    found = [torch.stack(nll_of_new_rows(problem(), simulations, seed, weights)) for seed in range(4)]
    plain, automatic, *others = torch.cat(found, 1)
    best = min(others, key=lambda nll: nll.mean())
    means = [round(float(nll.mean()), 4) for nll in (plain, automatic, *others)]
    print(f"{name}: NLL without, automatic, {FACTORS} times {usual:.3g}: {means}")  # noqa: T201 - for pytest -rP
    loss = (automatic - best).view(4, -1).mean(1)
    doubt = loss.std() / 2
    assert loss.mean() <= 0.25 * max(0.0, plain.mean() - best.mean()) + doubt
