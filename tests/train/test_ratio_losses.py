"""The labels of ratios, soft and hard: what the loss is least for."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from mfsbi.ratio import RatioModel
from mfsbi.train.data import Batch
from mfsbi.train.losses import Alices
from mfsbi.train.losses.scores import DOUBT
from tests.train.test_score_losses import ROWS, golden, network


class Offset(torch.nn.Module):
    """z ~ N(theta, 1), x = z + N(0, 1), reference 0: log r(x|theta) = theta x/2 - theta^2/4, and deviations from it."""

    def __init__(self, shift=0.0, tilt=0.0):
        super().__init__()
        self.shift, self.tilt = shift, tilt
        self.theta_std = torch.ones(1, dtype=torch.float64)

    def theta_unit(self, theta):
        return self.theta_std.expand_as(theta)

    def log_ratio(self, x, theta):
        return (0.5 * x * theta - 0.25 * theta.square())[..., 0] + self.shift + self.tilt * x[..., 0]


def toy(rows=100_000, share=0.5, theta=1.2):
    """Return gold of `Offset`, a share of it drawn at theta."""
    generator = torch.Generator().manual_seed(0)
    draw = {"generator": generator, "dtype": torch.float64}
    y = (torch.rand(rows, **draw) < share).double()
    z = theta * y[:, None] + torch.randn(rows, 1, **draw)
    x = z + torch.randn(rows, 1, **draw)
    ratio = (theta * z - theta**2 / 2)[:, 0]
    return Batch(torch.full_like(x, theta), x, z - theta, ratio, y)


WITHOUT = {
    "ALICES": (),
    "ALICE": ("joint_score",),
    "CARL": ("joint_score", "joint_log_ratio"),
}


@pytest.mark.parametrize("share", [0.5, 0.2])
@pytest.mark.parametrize(("shift", "tilt"), [(0.2, 0.0), (-0.2, 0.0), (0.0, 0.15), (0.0, -0.15)])
@pytest.mark.parametrize("name", WITHOUT)
def test_the_true_log_ratio_has_the_least_loss_of_all(name, shift, tilt, share):
    """Prior odds included: without them a shift by log w would do better."""
    batch = replace(toy(share=share), **dict.fromkeys(WITHOUT[name]))
    loss = Alices(noise=torch.tensor([1.5], dtype=torch.float64), log_odds=math.log(share / (1 - share)))
    more = loss(Offset(shift, tilt), batch) - loss(Offset(), batch)
    assert more.mean() > 3 * more.std() / len(more) ** 0.5


def test_odds_that_are_forgotten_shift_the_ratio():
    batch = replace(toy(share=0.2), joint_score=None, joint_log_ratio=None)
    forgotten = Alices()
    assert forgotten(Offset(math.log(0.25)), batch).mean() < forgotten(Offset(), batch).mean() - 0.01


def test_soft_labels_have_the_mean_of_hard_ones_and_less_noise():
    """Of the slope of the loss at the truth, projected on features of x; its mean is zero for both."""
    batch = replace(toy(share=0.3), joint_score=None)
    odds = math.log(0.3 / 0.7)
    chance = torch.sigmoid(Offset().log_ratio(batch.x, batch.theta) + odds)
    features = torch.stack([torch.ones_like(chance), batch.x[:, 0]])
    spread = []
    for labels in (batch.from_theta, torch.sigmoid(batch.joint_log_ratio + odds)):
        noise = features * (labels - chance)
        assert (noise.mean(1).abs() < 4 * noise.std(1) / len(chance) ** 0.5).all()
        spread.append(noise.var(1))
    assert (spread[1] < 0.5 * spread[0]).all()


def test_labels_are_soft_where_ratios_came_and_hard_elsewhere():
    batch, model = replace(toy(20, share=0.3), joint_score=None), Offset(0.1)
    logit = model.log_ratio(batch.x, batch.theta) - 0.5
    soft = torch.sigmoid(batch.joint_log_ratio - 0.5)
    for labels, rows in ((soft, batch), (batch.from_theta, replace(batch, joint_log_ratio=None))):
        expected = -labels * functional.logsigmoid(logit) - (1 - labels) * functional.logsigmoid(-logit)
        torch.testing.assert_close(Alices(log_odds=-0.5)(model, rows), expected)


@pytest.mark.parametrize("ratio", [-800.0, 800.0])
def test_ratios_beyond_all_numbers_are_no_trouble(ratio):
    batch = replace(toy(20), joint_log_ratio=torch.full((20,), ratio, dtype=torch.float64))
    values = Alices(noise=torch.ones(1, dtype=torch.float64))(Offset(ratio), batch)
    assert torch.isfinite(values).all()


def test_the_score_counts_only_where_x_was_drawn_at_theta():
    batch = toy(40)
    wild = replace(batch, joint_score=torch.where(batch.from_theta[:, None] > 0, batch.joint_score, 1e6))
    loss, model = Alices(weight=0.7), Offset(0.1)
    assert (loss(model, wild) == loss(model, batch)).all()
    assert (Alices().adapted(model, wild).noise == Alices().adapted(model, batch).noise).all()
    errors = (batch.joint_score - (0.5 * batch.x - 0.5 * batch.theta))[:, 0]
    noise = Alices().adapted(model, batch).noise
    at_theta = batch.from_theta > 0
    own = batch.joint_score[at_theta].square().mean(0)
    expected = (errors[at_theta].square().sum() + DOUBT * own) / (at_theta.sum() + DOUBT)
    torch.testing.assert_close(noise, expected)


def test_the_limit_of_the_noise_has_a_unit_of_theta_of_its_own():
    """A network that learned from wide theta, and rows of narrow ones."""
    batch, model = toy(40), Offset(0.1)
    limit, size = torch.tensor([1e-3], dtype=torch.float64), Offset()
    size.theta_std = torch.tensor([0.5], dtype=torch.float64)
    ours, same = Alices(limit=limit).adapted(model, batch), Alices(limit=limit / 4, size=size).adapted(model, batch)
    torch.testing.assert_close(same.noise, ours.noise / 4)
    shift = 0.5 * batch.from_theta * math.log(4)  # of log V
    torch.testing.assert_close(same(model, batch), ours(model, batch) - shift)
    assert (Alices(0.7, size=size)(model, batch) == Alices(0.7)(model, batch)).all()


def test_without_rows_at_theta_the_score_is_left_out():
    batch = replace(toy(40), from_theta=torch.zeros(40, dtype=torch.float64))
    loss, model = Alices(), Offset(0.1)
    assert loss.adapted(model, batch) == loss
    assert (loss(model, batch) == loss(model, replace(batch, joint_score=None))).all()


def test_where_all_rows_are_drawn_at_theta_pairs_are_made_with_the_theta_of_another():
    """Each row is one pair that belongs together and one that does not."""
    batch, model = golden(classes=False), network()
    others = batch.theta.roll(1, 0)
    hard = Batch(
        torch.cat([batch.theta, others]),
        batch.x.repeat(2, 1),
        joint_score=batch.joint_score.repeat(2, 1),
        from_theta=torch.arange(2 * ROWS).lt(ROWS).double(),
    )
    loss = Alices(weight=0.7)
    assert not (others == batch.theta).any()
    torch.testing.assert_close(loss(model, batch), loss(model, hard).view(2, ROWS).sum(0))


def test_the_reference_of_pairs_is_the_distribution_of_all_x():
    """theta ~ N(0, 1), x ~ N(theta, 1): a slope too much or too little costs something."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(100_000, 1, generator=generator, dtype=torch.float64)
    batch = Batch(theta, theta + torch.randn(theta.shape, generator=generator, dtype=torch.float64))

    class Evidence(Offset):
        def log_ratio(self, x, theta):
            exact = -0.5 * (x - theta).square() + 0.25 * x.square() + 0.5 * math.log(2)
            return exact[..., 0] + self.shift + self.tilt * (x * theta)[..., 0]

    least = Alices()(Evidence(), batch)
    for wrong in (Evidence(shift=0.2), Evidence(shift=-0.2), Evidence(tilt=0.15), Evidence(tilt=-0.15)):
        more = Alices()(wrong, batch) - least
        assert more.mean() > 3 * more.std() / len(more) ** 0.5


def test_a_share_of_one_row_has_the_pair_of_the_whole_batch():
    torch.manual_seed(0)
    model = RatioModel(torch.zeros(2), torch.ones(2), torch.zeros(2), torch.ones(2), 8, 1)
    batch = Batch(torch.randn(5, 2), torch.randn(5, 2))
    shares = torch.cat([Alices()(model, batch.paired.select(slice(row, row + 1))) for row in range(5)])
    torch.testing.assert_close(shares, Alices()(model, batch))
