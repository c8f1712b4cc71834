"""What gold is worth to a ratio: the error of log r from 2,000 simulations, with soft labels and with hard ones.

z ~ N(bent(theta), 1)^2 and x = z + N(0, 1)^2, theta against zero; half of the variance of the joint score is noise that
x does not see. The exact log r is in closed form.
"""

import pytest

from mfsbi import ALICES
from tests.plugin.test_ratio import PRIOR
from tests.problems import scattered, scattered_log_ratio

TRAINING = {"training_batch_size": 100, "max_num_epochs": 60}


def squared_error(seed, **fields):
    """Return the mean of (learned - exact)^2 over new simulations, after training with these fields of the gold."""
    theta, gold = scattered(2000, seed=seed)
    trainer = ALICES(PRIOR, seed=seed, show_progress_bars=False)
    trainer.append_simulations(theta, **(gold | fields))
    estimator = trainer.train(**TRAINING).requires_grad_(requires_grad=False)
    theta, gold = scattered(20_000, seed=1000 + seed)
    return float((estimator(theta, gold["x"]) - scattered_log_ratio(gold["x"], theta)).square().mean())


@pytest.mark.slow
def test_gold_leaves_at_most_a_third_of_the_error_of_labels_alone():
    seeds = range(4)
    golden = [squared_error(seed) for seed in seeds]
    alone = [squared_error(seed, joint_score=None, joint_log_ratio=None) for seed in seeds]
    print(f"{golden=} {alone=}")  # noqa: T201 - the figures, for pytest -rP
    assert sum(golden) <= sum(alone) / 3
