import pytest
import torch

from mfsbi.inference.calibration import Calibration, closeness, coverage, levels, ranks, uniform_p_value

SETS, DRAWS = 400, 200


@pytest.fixture(scope="module")
def problem():
    """Return theta of a normal prior, and the mean of the exact posterior N(x/2, 1/2) of x ~ N(theta, 1)."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(SETS, 2, generator=generator)
    return theta, (theta + torch.randn(SETS, 2, generator=generator)) / 2


def exam(theta, mean, std=0.5**0.5, shift=0.0):
    noise = torch.randn(SETS, DRAWS, 2, generator=torch.Generator().manual_seed(1))
    draws = mean[:, None] + shift + std * noise

    def log_prob(at):
        return -((at - mean[:, None] - shift) ** 2).sum(-1) / (2 * std**2)

    level = levels(log_prob(draws), log_prob(theta[:, None])[:, 0])
    return Calibration(draws, ranks(theta, draws), level, closeness(theta, draws))


def test_the_exact_posterior_passes(problem):
    result = exam(*problem)
    assert result.p_value > 0.05
    assert result.coverage_gap < 0.06
    assert result.passed
    assert str(result).startswith("No fault found in 400 data sets: p = ")


@pytest.mark.parametrize("wrong", [{"std": 0.35}, {"std": 1.4}, {"shift": 0.3}])
def test_a_wrong_posterior_fails(problem, wrong):
    result = exam(*problem, **wrong)
    assert not result.passed
    assert "NOT calibrated" in repr(result)


def test_ranks_pass_a_posterior_that_is_the_prior(problem):
    """Simulation-based calibration does not see that the data are ignored."""
    theta, _ = problem
    draws = torch.randn(SETS, DRAWS, 2, generator=torch.Generator().manual_seed(2))
    assert uniform_p_value(ranks(theta, draws)[:, 0]) > 0.01


def test_values_worked_out_by_hand():
    theta = torch.tensor([[0.5], [2.0]])
    draws = torch.tensor([[[0.0], [0.2], [1.0]], [[0.0], [1.0], [1.5]]])
    assert ranks(theta, draws).tolist() == [[2.5 / 4], [3.5 / 4]]
    assert levels(torch.tensor([[-1.0, 0.0, 2.0]]), torch.tensor([-0.5])).tolist() == [2.5 / 4]
    assert coverage(torch.tensor([0.1, 0.4, 0.8, 0.9]), torch.tensor([0.5, 0.85])).tolist() == [0.5, 0.75]


def test_a_sure_and_wrong_posterior_is_never_covered():
    theta = torch.linspace(0, 1, 50)[:, None]
    draws = (theta + 0.4).expand(50, 20)[..., None]
    assert ((closeness(theta, draws) == 0.5 / 21) | (closeness(theta, draws) == 20.5 / 21)).all()


@pytest.mark.parametrize(
    ("theta", "draws", "message"),
    [
        (torch.zeros(5), torch.zeros(5, 10, 1), r"`theta` should have shape \(sets, parameter\).*got \(5,\)"),
        (torch.zeros(5, 1), torch.zeros(4, 10, 1), r"got \(5, 1\) and \(4, 10, 1\)"),
        (torch.zeros(5, 1), torch.full((5, 10, 1), torch.nan), "`draws` should be finite"),
    ],
)
def test_what_does_not_fit_is_refused(theta, draws, message):
    with pytest.raises(ValueError, match=message):
        ranks(theta, draws)
