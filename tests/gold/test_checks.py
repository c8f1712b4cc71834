import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, Uniform

from mfsbi.gold import PyroSimulator, simulate
from mfsbi.gold.checks import (
    log_odds,
    require_centred_labels,
    require_centred_score,
    require_constant_odds,
    require_matching_score,
    soft_labels,
)
from simulators.lhc.process import WBFHiggs
from simulators.polynomial import PolynomialSurface
from tests.gold.programs import linear

SURFACE = PolynomialSurface()


@pytest.fixture(scope="module")
def gold():
    theta = torch.rand(20_000, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
    at_theta = torch.rand(20_000, generator=torch.Generator().manual_seed(1)) < 0.4
    _, score, ratio = simulate(SURFACE, theta, theta_ref=torch.tensor([0.3]), from_theta=at_theta, seed=2)
    return theta, score, ratio, at_theta


def test_true_gold_passes(gold):
    theta, score, ratio, at_theta = gold
    require_centred_score(theta[at_theta], score[at_theta])
    require_centred_labels(theta, ratio, at_theta.float())


def test_true_gold_at_a_few_values_of_theta_passes_in_any_order():
    """Rows drawn at theta first: a cut between equal values would find all of one label below it."""
    at_theta = torch.arange(6000) < 3000
    theta = torch.tensor([-0.5, 0.0, 0.5])[torch.arange(6000) % 3, None]
    _, score, ratio = simulate(SURFACE, theta, theta_ref=torch.tensor([0.3]), from_theta=at_theta, seed=2)
    require_centred_score(theta[at_theta], score[at_theta])
    require_centred_labels(theta, ratio, at_theta.float())
    require_constant_odds(theta, at_theta.float())
    with pytest.raises(ValueError, match=r"over theta_0 in \[-0\.5, -0\.5\], the mean of 1000 rows"):
        require_centred_score(theta[at_theta], score[at_theta] + theta[at_theta])


def at_theta_only(gold):
    theta, score, _, at_theta = gold
    return theta[at_theta], score[at_theta]


def test_a_score_without_its_normalisation_is_refused_with_component_and_z(gold):
    theta, score = at_theta_only(gold)
    wrong = torch.cat([score, score + 0.2], dim=1)
    with pytest.raises(ValueError, match=r"For parameter 1, over all theta, the mean of \d+ rows is 0\.\d+, z = \d\d"):
        require_centred_score(theta.repeat(1, 2), wrong)


def test_errors_that_cancel_over_theta_are_found_in_its_regions(gold):
    theta, score = at_theta_only(gold)
    wrong = score + 0.5 * (theta - theta.mean())
    with pytest.raises(ValueError, match=r"over theta_0 in \[-0\.\d+, -0\.\d+\]"):
        require_centred_score(theta, wrong)


def test_rows_out_of_order_are_found(gold):
    theta, score = at_theta_only(gold)
    with pytest.raises(ValueError, match="`joint_score` should average to zero at any theta"):
        require_centred_score(theta, SURFACE.score(SURFACE.simulate(theta, seed=9), -theta) + 0 * score)


def test_a_score_that_is_a_constant_is_refused():
    with pytest.raises(ValueError, match="z = inf"):
        require_centred_score(torch.rand(50, 1), torch.ones(50, 1))


def test_a_score_that_is_zero_everywhere_passes_for_nothing_is_wrong_with_it():
    require_centred_score(torch.rand(50, 1), torch.zeros(50, 1))


@pytest.mark.parametrize("wrong", [lambda ratio: -ratio, lambda ratio: ratio + 0.5, lambda ratio: 2 * ratio])
def test_a_ratio_that_does_not_predict_the_labels_is_refused(gold, wrong):
    theta, _, ratio, at_theta = gold
    with pytest.raises(ValueError, match=r"it says that \d+.\d% of \d+ rows were drawn at theta, and"):
        require_centred_labels(theta, wrong(ratio), at_theta.float())


def test_soft_labels_are_bayes_theorem():
    ratio, labels = torch.tensor([2.0]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    expected = 3 * ratio.exp() / (3 * ratio.exp() + 1)
    torch.testing.assert_close(soft_labels(ratio, log_odds(labels)), expected)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_a_few_rows_of_a_true_score_pass(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    require_centred_score(torch.rand(rows, 1, generator=generator), torch.randn(rows, 1, generator=generator))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("rows", [200, 1000])
def test_scores_of_rare_outcomes_pass(rows, seed):
    """A process of chance theta/10 does not happen in every region: the score is then a constant there."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.rand(rows, 1, generator=generator)
    happens = (torch.rand(rows, 1, generator=generator) < theta / 10).float()
    require_centred_score(theta, (happens - theta / 10) / (theta * (1 - theta / 10)))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [2.0, 5.0, 12.0])
def test_ratios_that_are_hardly_ever_wrong_pass(size, seed):
    """log r = +-size, the sign being that of the label with a chance of sigmoid(size)."""
    generator = torch.Generator().manual_seed(seed)
    label = (torch.rand(1000, generator=generator) < 0.5).float()
    right = torch.rand(1000, generator=generator) < torch.tensor(size).sigmoid()
    ratio = size * torch.where(right, 2 * label - 1, 1 - 2 * label)
    require_centred_labels(torch.rand(1000, 1, generator=generator), ratio, label)


def test_classes_of_a_constant_share_pass(gold):
    require_constant_odds(gold[0], gold[3].float())


def test_classes_whose_odds_depend_on_theta_are_refused(gold):
    theta = gold[0]
    label = (torch.rand(len(theta), generator=torch.Generator().manual_seed(3)) < 0.5 + 0.2 * theta[:, 0]).float()
    with pytest.raises(ValueError, match=r"It is True in 49\.\d% of all rows, and in 3\d\.\d% of 2000 over theta_0 in"):
        require_constant_odds(theta, label)


PRIORS = {
    "box": Independent(Uniform(-torch.ones(2), torch.tensor([1.0, 2.0])), 1),
    "normal": Independent(Normal(torch.zeros(2), torch.tensor([1.0, 2.0])), 1),
    "correlated": MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.8], [0.8, 2.0]])),
}
WRONG = {
    "of the wrong sign": lambda score: -score,
    "in other units": lambda score: 10 * score,
    "twice as large": lambda score: 2 * score,
    "in another order": lambda score: score.roll(1, 0),
    "absent": lambda score: 0 * score,
}


def drawn(prior, rows=3000, seed=0):
    torch.manual_seed(seed)
    theta = prior.sample((rows,))
    x, score, _ = simulate(PyroSimulator(linear, prior), theta, seed=seed)
    return theta, x, score


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_scores_that_x_does_not_follow_are_refused(prior, wrong):
    theta, x, score = drawn(prior)
    require_matching_score(theta, x, score, prior)
    with pytest.raises(ValueError, match="`joint_score` and x contradict each other. For parameter 0"):
        require_matching_score(theta, x, wrong(score), prior)


def test_what_a_score_should_be_multiplied_by_is_told():
    theta, x, score = drawn(PRIORS["normal"], 30_000)
    with pytest.raises(ValueError, match="x contradict each other") as refusal:
        require_matching_score(theta, x, score * torch.tensor([10.0, 1.0]), PRIORS["normal"])
    factor = float(str(refusal.value).partition("as if the score were ")[2].split()[0])
    assert factor == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("rows", [100, 1000])
@pytest.mark.parametrize("simulator", [SURFACE, WBFHiggs(2)])
def test_true_scores_match_x(simulator, rows):
    for seed in range(5):
        torch.manual_seed(seed)
        theta = simulator.prior.sample((rows,))
        gold = simulate(simulator, theta, seed=seed)
        require_matching_score(theta, gold.x, gold.joint_score, simulator.prior)


@pytest.mark.parametrize("power", [0.5, 2.0])
def test_theta_that_was_not_drawn_from_the_prior_says_nothing(power):
    prior = PRIORS["box"]
    theta, x, score = drawn(prior)
    wider = Independent(Uniform(-3 * torch.ones(2), 3 * torch.ones(2)), 1)
    require_matching_score(theta, x, -score, wider)
    bent = 1 - 2 * torch.rand(3000, 2) ** power
    gold = simulate(PyroSimulator(linear, prior), bent, seed=0)
    require_matching_score(bent, gold.x, gold.joint_score, Independent(Uniform(-torch.ones(2), torch.ones(2)), 1))


def test_a_prior_with_another_support_says_nothing():
    prior = torch.distributions.Independent(torch.distributions.Exponential(torch.ones(2)), 1)
    theta, x, score = drawn(prior)
    require_matching_score(theta, x, -score, prior)


def coin(theta):
    return pyro.sample("seen", dist.Bernoulli(theta[..., 0]))


def test_equal_values_have_one_rank_whatever_the_order_of_rows():
    prior = Independent(Uniform(torch.zeros(1), torch.ones(1)), 1)
    torch.manual_seed(0)
    theta = prior.sample((2000,)).sort(0).values
    x, score, _ = simulate(PyroSimulator(coin, prior), theta, seed=0)
    require_matching_score(theta, x, score, prior)
    with pytest.raises(ValueError, match="x contradict each other"):
        require_matching_score(theta, x, -score, prior)


@pytest.mark.parametrize("at", [0.0, 0.5])
def test_theta_that_is_always_the_same_says_nothing(at):
    prior = Independent(Uniform(-torch.ones(2), torch.ones(2)), 1)
    theta = torch.full((2000, 2), at)
    x, score, _ = simulate(PyroSimulator(linear, prior), theta, seed=0)
    require_matching_score(theta, x, score, prior)


class Unsupported(torch.distributions.Distribution):
    """A prior that does not say where it is, and whose density torch does not follow."""

    def sample(self, shape=()):
        return PRIORS["normal"].sample(shape)

    def log_prob(self, theta):
        return PRIORS["normal"].log_prob(theta).detach()


WIDE = torch.eye(2, dtype=torch.float64)


@pytest.mark.parametrize("prior", [Unsupported(validate_args=False), MultivariateNormal(torch.zeros(2).double(), WIDE)])
def test_a_prior_that_does_not_say_enough_says_nothing(prior):
    theta, x, score = drawn(PRIORS["normal"])
    require_matching_score(theta, x, -score, prior)
