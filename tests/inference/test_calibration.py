import re
from dataclasses import replace

import pytest
import torch

from mfsbi.inference import calibration
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
    assert not result.faults
    assert str(result).startswith("No fault found in 400 data sets: p = ")


SD = 0.5**0.5


@pytest.mark.parametrize(
    ("wrong", "verdict", "fault"),
    [
        ({"std": SD / 1.3}, "NOT calibrated", r"too narrow by a factor of 1\.[23]\d"),
        ({"std": SD * 1.3}, "Too wide", r"too wide by a factor of 1\.[23]\d"),
        ({"shift": SD / 2}, "NOT calibrated", r"too high by 0\.[3-6]\d of its standard deviations"),
        ({"shift": -SD / 2}, "NOT calibrated", r"too low by 0\.[3-6]\d of its standard deviations"),
    ],
)
def test_a_wrong_posterior_fails_and_the_verdict_names_the_way(problem, wrong, verdict, fault):
    result = exam(*problem, **wrong)
    assert not result.passed
    for parameter, told in enumerate(result.faults):
        assert re.fullmatch(f"parameter {parameter} is {fault}", told)
    assert len(result.faults) == 2
    assert repr(result).startswith(f"Calibration({verdict} in 400 data sets: parameter 0 is too")


@pytest.mark.parametrize("draws", [5, 20, 1000])
def test_ranks_among_few_draws_have_no_width_of_their_own(draws):
    """The p-values of shift and width are uniform however coarse ranks are."""
    generator = torch.Generator().manual_seed(draws)
    rank = (torch.randint(draws + 1, (300, 400), generator=generator) + 0.5) / (draws + 1)
    found = [calibration._Normal.of(column, draws) for column in rank]
    for p_values in ([each.p_of_shift for each in found], [each.p_of_width for each in found]):
        assert abs(sum(p < 0.05 for p in p_values) / 300 - 0.05) < 0.04


def test_few_data_sets_seldom_call_a_right_posterior_too_narrow():
    rank = torch.rand(2000, 15, generator=torch.Generator().manual_seed(0))
    found = [calibration._Normal.of((100 * column).floor() / 101 + 0.5 / 101, 100) for column in rank]
    assert sum(each.p_of_width < 0.005 for each in found) < 24  # ten expected; a normal law of the spread had 32


def test_wide_parameters_in_regions_that_are_too_small_are_not_called_honest(problem):
    wide = exam(*problem, std=SD * 1.3)
    assert wide.conservative
    small = replace(wide, levels=1 - wide.levels)
    assert not small.conservative
    assert "NOT calibrated" in str(small)


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
