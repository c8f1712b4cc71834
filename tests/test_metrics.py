import math

import pytest
import torch

from mfsbi.metrics import auc, kl_divergence, mmd2, mmd2_on_grid, total_variation


def gaussians(shift, rows=800, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 2, generator=generator), torch.randn(rows, 2, generator=generator) + shift


def test_mmd_is_unbiased_at_zero_and_grows_with_the_shift():
    same = torch.tensor([mmd2(*gaussians(0.0, 100, seed)) for seed in range(60)])
    assert abs(same.mean()) < 4 * same.std() / 60**0.5
    assert mmd2(*gaussians(0.0)) < 0.003 < mmd2(*gaussians(0.3)) < mmd2(*gaussians(1.0))


def test_mmd_is_the_sum_written_out():
    a, b = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.5], [2.0]])
    h = 2.0  # median of 1, 2, 3

    def k(p, q):
        return math.exp(-((p - q) ** 2) / (2 * h * h))

    within_a = 2 * (k(0, 1) + k(0, 3) + k(1, 3)) / 6
    between = sum(k(p, q) for p in (0, 1, 3) for q in (0.5, 2)) / 6
    assert mmd2(a, b) == pytest.approx(within_a + k(0.5, 2) - 2 * between, rel=1e-9)


def test_total_variation_and_divergence_of_known_vectors():
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.25, 0.5])
    assert total_variation(p, q) == pytest.approx(0.5)
    assert kl_divergence(p.log(), q.log()) == pytest.approx(math.log(2))
    assert kl_divergence(q.log(), p.log()) == math.inf
    assert kl_divergence(p.log(), p.log()) == total_variation(p, p) == 0


def test_divergence_is_finite_where_probabilities_underflow():
    log_p = torch.tensor([0.0, -800.0]).double().log_softmax(0)
    log_q = torch.tensor([-800.0, 0.0]).double().log_softmax(0)
    assert kl_divergence(log_p, log_q) == pytest.approx(800)


@pytest.mark.parametrize("metric", [total_variation, kl_divergence])
def test_vectors_that_are_no_probabilities_are_refused(metric):
    good, bad, short = torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.6]), torch.tensor([1.0])
    if metric is kl_divergence:
        good, bad, short = good.log(), bad.log(), short.log()
    with pytest.raises(ValueError, match="`q` should be non-negative and sum to 1"):
        metric(good, bad)
    with pytest.raises(ValueError, match="on one grid"):
        metric(good, short)


@pytest.mark.parametrize(("a", "b"), [((1, 2), (5, 2)), ((5, 2), (5, 3))])
def test_samples_that_cannot_be_compared_are_refused(a, b):
    with pytest.raises(ValueError, match="at least 2 rows and equal features"):
        mmd2(torch.randn(a), torch.randn(b))


def test_a_sample_of_equal_rows_is_refused():
    with pytest.raises(ValueError, match="`a` should vary"):
        mmd2(torch.zeros(5, 2), torch.randn(5, 2))


def test_auc_counts_pairs():
    inliers, outliers = torch.randn(50, generator=torch.Generator().manual_seed(0)), torch.linspace(-1, 3, 40)
    outliers[3] = inliers[7]
    pairs = outliers[:, None] - inliers
    expected = ((pairs > 0).double() + 0.5 * (pairs == 0).double()).mean()
    assert auc(inliers, outliers) == pytest.approx(float(expected))
    assert auc(outliers, inliers) == pytest.approx(1 - float(expected))


@pytest.mark.parametrize("bad", [torch.zeros(0), torch.zeros(2, 2), torch.tensor([torch.nan])])
def test_scores_that_are_no_numbers_are_refused(bad):
    with pytest.raises(ValueError, match="should be a vector of numbers"):
        auc(torch.zeros(3), bad)


def test_mmd_on_a_grid_is_that_of_many_draws():
    theta = torch.linspace(-1, 1, 60, dtype=torch.float64)[:, None]
    p, q = (torch.softmax(-((theta[:, 0] - mean) ** 2) / 0.1, 0) for mean in (0.0, 0.2))
    generator = torch.Generator().manual_seed(0)
    a, b = (theta[torch.multinomial(mass, 3000, replacement=True, generator=generator)] for mass in (p, q))
    assert mmd2_on_grid(theta, p, q) == pytest.approx(mmd2(a, b), rel=0.1)
    assert mmd2_on_grid(theta, p, p) == 0
