"""Gold on its way through `ALICES`: what is refused before training, and what a loss in the schedule says of it."""

import pytest
import torch

from mfsbi import ALICES
from mfsbi.gold.checks import log_odds
from mfsbi.train.losses import Alices
from mfsbi.train.schedules import Phase
from tests.plugin.test_ratio import FEW, PRIOR, trainer
from tests.problems import scattered


def changed(tensor, row, value):
    tensor = tensor.clone()
    tensor[row] = value
    return tensor


BAD = {
    "no classes": (lambda gold: gold | {"from_theta": None}, "needs rows drawn at the reference as well.*theta_ref="),
    "one class": (lambda gold: gold | {"from_theta": torch.ones(400)}, r"have some of either; it holds \[1.0\]"),
    "other class": (lambda gold: gold | {"from_theta": torch.zeros(400)}, r"have some of either; it holds \[0.0\]"),
    "no labels": (lambda gold: gold | {"from_theta": torch.rand(400)}, "should say True for rows drawn at theta"),
    "NaN in the ratio": (
        lambda gold: gold | {"joint_log_ratio": changed(gold["joint_log_ratio"], 3, torch.nan)},
        "`joint_log_ratio` should be finite; 1 of 400 rows.*row 3",
    ),
    "infinity in the score": (
        lambda gold: gold | {"joint_score": changed(gold["joint_score"], (5, 1), torch.inf)},
        "`joint_score` should be finite; 1 of 400 rows.*row 5.*Mend it in the simulator",
    ),
    "columns of the ratio": (
        lambda gold: gold | {"joint_log_ratio": gold["joint_log_ratio"][:, None]},
        r"`joint_log_ratio` should have shape \(rows,\).*got \(400, 1\)",
    ),
    "columns of labels": (
        lambda gold: gold | {"from_theta": gold["from_theta"][:, None]},
        r"`from_theta` should have shape \(rows,\).*got \(400, 1\)",
    ),
    "features of the score": (
        lambda gold: gold | {"joint_score": gold["joint_score"][:, :1]},
        r"`joint_score` should have shape \(rows, 2\), 2 being the features of theta; got shape \(400, 1\)",
    ),
    "rows": (lambda gold: gold | {"joint_log_ratio": gold["joint_log_ratio"][:9]}, "400 rows of `theta` and 9 of"),
    "a ratio upside down": (
        lambda gold: gold | {"joint_log_ratio": -gold["joint_log_ratio"]},
        r"`joint_log_ratio` should be log p\(x, z\|theta\) - log p\(x, z\|reference\)",
    ),
    "a score without its normalisation": (
        lambda gold: gold | {"joint_score": gold["joint_score"] + 1},
        "`joint_score` should average to zero",
    ),
    "labels upside down": (
        lambda gold: gold | {"from_theta": ~gold["from_theta"]},
        "`joint_score` should average to zero|drawn at theta, and",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_gold_that_cannot_be_right_is_refused(name):
    spoil, message = BAD[name]
    theta, gold = scattered()
    made = ALICES(PRIOR)
    with pytest.raises(ValueError, match=message):
        made.append_simulations(theta, **spoil(gold))
    assert made.simulations.rows == 0


@pytest.mark.parametrize("own", [{}, {"log_odds": 0.7}, {"limit": torch.full((2,), 0.01)}, {"weight": 0.3}])
def test_what_a_loss_in_the_schedule_says_is_kept_and_the_rest_is_the_trainers(own, short_noise):
    used = {}

    class Watched(Alices):
        def __call__(self, model, batch):
            used.update(vars(self))
            return super().__call__(model, batch)

    made = trainer()
    made.train([Phase(Watched(**own), ("network",), 1)], **FEW)
    expected = {"log_odds": log_odds(made.simulations[0].batch.from_theta), "weight": None} | own
    assert {name: used[name] for name in expected} == expected
    assert (used["size"] is None) == bool(own.keys() & {"limit", "weight"})
