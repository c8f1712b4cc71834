import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import Independent, Normal, Uniform

from mfsbi import ALICES
from mfsbi.gold import PyroSimulator, mine, simulate
from mfsbi.simulating import Plan, simulate_to_store
from mfsbi.types import ProgramError
from tests.gold.programs import linear, linear_density, linear_score

BOX = Independent(Uniform(-torch.ones(2), torch.ones(2)), 1)


def test_a_program_is_a_simulator_whose_gold_is_mined():
    simulator, theta = PyroSimulator(linear, BOX), BOX.sample((30,))
    found, mined = simulator.simulate_with_gold(theta, seed=3), mine(linear, theta, theta_ref=torch.zeros(2), seed=3)
    assert all(torch.equal(a, b) for a, b in zip(found, mined, strict=True))
    assert torch.equal(simulator.simulate(theta, seed=3), found.x)
    assert not torch.equal(simulator.simulate(theta), simulator.simulate(theta))


@pytest.mark.usefixtures("float64")
def test_rows_at_the_reference_have_the_ratio_of_the_numerator_to_it():
    theta, reference, at_theta = torch.rand(40, 2), torch.full((2,), 0.2), torch.arange(40) % 2 == 0
    simulator = PyroSimulator(linear, BOX)
    gold = simulate(simulator, theta, theta_ref=reference, from_theta=at_theta, seed=1)
    ratio = linear_density(gold.x, theta) - linear_density(gold.x, reference.expand(40, 2))
    torch.testing.assert_close(gold.joint_log_ratio, ratio)
    torch.testing.assert_close(gold.joint_score, linear_score(gold.x, theta) * at_theta[:, None])


def test_alices_learns_from_a_program():
    theta, at_theta = BOX.sample((200,)), torch.arange(200) % 2 == 0
    gold = simulate(PyroSimulator(linear, BOX), theta, theta_ref=torch.zeros(2), from_theta=at_theta, seed=0)
    trainer = ALICES(BOX, seed=0, show_progress_bars=False)
    trainer.append_simulations(theta, **gold._asdict(), from_theta=at_theta)
    assert torch.isfinite(trainer.train(max_num_epochs=2).model.log_ratio(gold.x, theta)).all()


def test_a_program_fills_a_store_with_gold(tmp_path):
    store = simulate_to_store(Plan(PyroSimulator(linear, BOX, ["a", "b"]), rows=50), tmp_path / "sims")
    rows = store.read(range(50))
    torch.testing.assert_close(rows.joint_score, linear_score(rows.x, rows.theta), rtol=1e-4, atol=1e-4)
    assert store.attributes["parameter_names"] == ["a", "b"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((linear, Uniform(-torch.ones(2), 1.0)), r"`prior` should draw theta of shape .*`.to_event\(1\)`"),
        ((linear, BOX, ["a"]), "should name the 2 parameters"),
        ((linear, dist.Cauchy(torch.zeros(2), 1.0).to_event(1)), "`theta_ref` should be finite.*Say `theta_ref=`"),
    ],
)
def test_what_is_no_program_with_a_prior_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PyroSimulator(*arguments)


def test_a_program_that_cannot_be_mined_says_why():
    def board(theta):
        return theta + pyro.sample("z", dist.Normal(0.0, 1.0)).unsqueeze(-1)

    with pytest.raises(ValueError, match=r"feature 0 of x depends on theta"):
        PyroSimulator(board, Independent(Normal(torch.zeros(1), 1.0), 1)).simulate(torch.rand(5, 1))


def drawn_as_a_vector(theta):
    return pyro.sample("z", dist.Normal(theta, 1.0))


def drawn_once(theta):
    return pyro.sample("z", dist.Normal(theta[0], 1.0))


def branching(theta):
    z = pyro.sample("z", dist.Normal(theta[..., 0], 1.0))
    return z if z > 0 else -z


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (drawn_as_a_vector, r"Write `theta\[..., 0\]` for a parameter, .*Shape mismatch"),
        (drawn_once, r"Write `theta\[..., 0\]` for a parameter"),
        (branching, "may not take different branches: write `torch.where`"),
    ],
)
def test_programs_for_one_row_are_told_how_to_take_many(model, message):
    with pytest.raises(ProgramError, match=message):
        mine(model, torch.rand(20, 2))
