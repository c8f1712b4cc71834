"""The noise of joint scores, by regression: an upper bound that comes close where the truth is known."""

from dataclasses import replace
from functools import lru_cache

import pytest
import torch

from mfsbi.train.data import Batch
from mfsbi.train.noise import ScoreRegression, score_noise
from mfsbi.train.schedules import Settings

SETTINGS = Settings(training_batch_size=500, show_progress_bars=False)
MIXING = torch.tensor([[1.0, 0.5], [0.0, 2.0]])


def walk(rows, noise, seed):
    """z ~ N(A theta, 1/4), x ~ N(z, noise^2), t = A^T (z - A theta)/(1/4)."""
    theta, first, second = torch.randn(3, rows, 2, generator=torch.Generator().manual_seed(seed))
    return Batch(theta, theta @ MIXING.T + 0.5 * first + noise * second, joint_score=2 * first @ MIXING)


@lru_cache
def measured(noise, training=2000, held_out=4000):
    return score_noise(walk(training, noise, 0), walk(held_out, noise, 1), SETTINGS)[0]


@pytest.mark.parametrize("noise", [0.5, 1.0])
def test_the_bound_is_close_to_the_variance_of_the_score_given_x(noise):
    hidden = 0.25 * noise**2 / (0.25 + noise**2)  # the variance of z given x
    truth = 16 * hidden * (MIXING**2).sum(0)
    found = torch.tensor(measured(noise).variance)
    assert (found > 0.93 * truth).all()  # the standard error of a mean over 4,000 squares is 2.2%
    assert (found < 1.25 * truth).all()


def test_scores_that_x_tells_have_little_noise_and_others_are_all_noise():
    assert max(measured(0.0).share) < 0.01
    assert min(measured(30.0).share) > 0.95


def test_few_rows_are_not_believed_to_explain_more_than_they_do():
    few, _ = score_noise(walk(30, 1.0, 0), walk(4, 1.0, 3), SETTINGS)
    assert min(few.share) > 0.3  # 0.8 in truth; of four rows, two more count as not explained at all


def test_rows_drawn_at_a_reference_are_left_out():
    rows, held_out = walk(500, 0.5, 0), walk(500, 0.5, 1)
    alone, _ = score_noise(rows, held_out, SETTINGS)
    wild = Batch(torch.zeros(100, 2), torch.full((100, 2), 50.0), joint_score=torch.full((100, 2), 1e3))

    def mixed(at_theta):
        both = Batch(torch.cat([at_theta.theta, wild.theta]), torch.cat([at_theta.x, wild.x]))
        labels = torch.cat([torch.ones(500), torch.zeros(100)])
        return replace(both, joint_score=torch.cat([at_theta.joint_score, wild.joint_score]), from_theta=labels)

    assert score_noise(mixed(rows), mixed(held_out), SETTINGS)[0] == alone


def test_rows_of_which_none_was_drawn_at_theta_are_refused():
    rows = walk(5, 0.5, 1)
    none = replace(rows, from_theta=torch.zeros(5))
    with pytest.raises(ValueError, match="some should be drawn at theta.*; 5 and 0 are.*score_weight"):
        score_noise(rows, none, SETTINGS)
    with pytest.raises(ValueError, match="some should be drawn at theta.*; 0 and 5 are"):
        score_noise(none, rows, SETTINGS)


def test_the_noise_counts_over_the_size_of_the_score_itself_too():
    """t_i = sum_j A_ji y_j: of the variance 4 of y_j, x tells all but 4 noise^2 / (1/4 + noise^2)."""
    hidden = 4 * 0.5**2 / (0.25 + 0.5**2) * (MIXING**2).sum(0)
    size = 4 * (MIXING**2).sum(0)
    score = (size - hidden).sqrt() * torch.randn(100_000, 2, generator=torch.Generator().manual_seed(0))
    truth = (hidden / (size + score.square() / 4)).mean(0)
    found = measured(0.5)
    assert torch.tensor(found.noise) == pytest.approx(truth, rel=0.15)
    assert (torch.tensor(found.noise) < 0.98 * torch.tensor(found.share)).all()


@pytest.mark.filterwarnings("error")
def test_ctrl_c_ends_more_than_the_regression(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ScoreRegression, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        score_noise(walk(200, 0.5, 0), walk(100, 0.5, 1), SETTINGS)


def test_same_seed_same_numbers_and_the_generator_of_torch_is_left_alone():
    before = torch.get_rng_state()
    assert measured.__wrapped__(1.0, 300, 300) == measured.__wrapped__(1.0, 300, 300)
    assert (torch.get_rng_state() == before).all()


def test_it_says_how_much_x_tells():
    noise = measured(0.0)
    assert str(noise) == "joint scores: x and theta tell at least 100%, 100% of their squares, parameter by parameter"


def test_a_parameter_that_does_nothing_has_no_noise_to_speak_of():
    rows, held_out = (
        replace(batch, joint_score=batch.joint_score * torch.tensor([1.0, 0.0]))
        for batch in (walk(300, 0.5, 0), walk(300, 0.5, 1))
    )
    noise, size = score_noise(rows, held_out, SETTINGS)
    assert (noise.variance[1], noise.share[1]) == (0, 1)
    assert size(torch.zeros(1, 2))[0, 1].item() == pytest.approx(1, rel=0.01)


def loud(rows, seed):
    """Scores of which x tells nothing, a hundred times as large, squared, at theta > 1 as at theta < -1."""
    theta, score, x = torch.randn(3, rows, 1, generator=torch.Generator().manual_seed(seed))
    return Batch(theta, x, joint_score=score * 10 ** theta.clamp(-1, 1).div(2) * torch.tensor([3.0]))


def test_the_size_of_scores_is_known_at_every_theta():
    noise, size = score_noise(loud(3000, 0), loud(3000, 1), SETTINGS)
    theta = torch.tensor([[-1.5], [-0.5], [0.0], [0.5], [1.5]])
    found, truth = size(theta).detach(), 9 * 10 ** theta.clamp(-1, 1) * loud(3000, 0).theta.var()
    assert ((found / truth - 1).abs() < 0.25).all()
    assert min(noise.share[0], noise.noise[0]) > 0.9


def test_the_variance_is_a_bound_where_the_largest_scores_are_the_noisiest():
    """Below theta = 1 x tells the score; above it nothing does, and scores are ten times as large."""

    def rows(seed):
        theta, x, hidden = torch.randn(3, 3000, 1, generator=torch.Generator().manual_seed(seed))
        return Batch(theta, x, joint_score=torch.where(theta > 1, 10 * hidden, x))

    noise, _ = score_noise(rows(0), rows(1), SETTINGS)
    assert noise.variance[0] > 0.9 * 15.9  # 100 P(theta > 1)
    assert noise.noise[0] < 0.5


@pytest.mark.parametrize("unit", [1e-20, 1e20])
def test_units_of_theta_are_of_no_consequence(unit):
    rows, held_out = walk(300, 0.5, 0), walk(300, 0.5, 1)
    expected, _ = score_noise(rows, held_out, SETTINGS)
    scaled = [
        replace(batch, theta=batch.theta * unit, joint_score=batch.joint_score / unit) for batch in (rows, held_out)
    ]
    assert score_noise(*scaled, SETTINGS)[0].share == pytest.approx(expected.share, rel=0.05)


def test_the_size_of_few_scores_is_not_learned_by_heart():
    rows, held_out = walk(30, 0.5, 0), walk(30, 0.5, 1)
    size = score_noise(rows, held_out, SETTINGS)[1](walk(1000, 0.5, 2).theta)
    assert (size.std(0) < 0.5 * size.mean(0)).all()  # it does not depend on theta


def test_no_score_counts_more_than_a_thousand_usual_ones():
    rows, held_out = (
        replace(batch, joint_score=torch.where(batch.theta > 0, batch.joint_score, 0.0))
        for batch in (walk(1500, 0.5, 0), walk(1500, 0.5, 1))
    )
    size = score_noise(rows, held_out, SETTINGS)[1](held_out.theta)
    assert (size > 0.9e-3 * rows.joint_score.square().mean(0)).all()
