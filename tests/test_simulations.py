"""The carrier: one object from wherever simulations come to whoever learns from them."""

import pyro
import pytest
import torch
from pyro import distributions as dist

from mfsbi import ALICES, ManifoldNLE
from mfsbi.gold import mine, read_madminer, simulate
from mfsbi.simulating import Plan, simulate_to_store
from mfsbi.simulations import Simulations
from simulators.polynomial import PolynomialSurface
from tests.problems import SPECS, mined_surface, write_mined_surface

SURFACE = PolynomialSurface()
THETA = torch.linspace(-0.9, 0.9, 40)[:, None]


def of_a_simulator(_folder):
    return simulate(SURFACE, THETA, theta_ref=torch.zeros(1), from_theta=torch.arange(40) % 2 == 0, seed=0)


def blurred(theta):
    shift = pyro.sample("shift", dist.Normal(theta[..., 0], 1.0))
    return pyro.sample("seen", dist.Normal(shift, 0.5))


def of_a_program(_folder):
    return mine(blurred, THETA, seed=0)


def of_files(folder):
    write_mined_surface(folder)
    return read_madminer(folder)


def of_a_store(folder):
    return simulate_to_store(Plan(SURFACE, rows=40), folder / "store", show_progress_bar=False).read()


@pytest.mark.parametrize("source", [of_a_simulator, of_a_program, of_files, of_a_store])
def test_trainers_take_whole_what_any_source_returns(source, tmp_path):
    simulations = source(tmp_path)
    assert isinstance(simulations, Simulations)
    trainer = ManifoldNLE(SURFACE.prior, SPECS["AF"]).append_simulations(simulations)
    (kept,) = trainer.simulations
    assert (kept.x == simulations.at_theta().x.to(kept.x)).all()
    assert (kept.batch.joint_score is None) == (simulations.joint_score is None)


def test_labels_and_ratios_travel_with_their_simulations():
    theta, at_theta, simulations = mined_surface(40)
    whole = ALICES(SURFACE.prior).append_simulations(simulations)
    apart = ALICES(SURFACE.prior).append_simulations(theta, **simulations._asdict(), from_theta=at_theta)
    assert whole.simulations.digest() == apart.simulations.digest()


@pytest.mark.parametrize("extra", ["x", "joint_score", "joint_log_ratio", "from_theta"])
def test_what_simulations_bring_is_not_given_twice(extra):
    simulations = of_a_simulator(None)
    with pytest.raises(ValueError, match=f"`Simulations` bring .* without {extra}"):
        ALICES(SURFACE.prior).append_simulations(simulations, **{extra: getattr(simulations, extra)})


def test_unpacked_they_are_what_a_simulator_adds_to_theta():
    simulations = of_a_simulator(None)
    x, joint_score, joint_log_ratio = simulations
    assert x is simulations.x
    assert joint_score is simulations.joint_score
    assert joint_log_ratio is simulations.joint_log_ratio


def test_a_selection_keeps_fields_together_and_those_at_theta_have_no_labels():
    simulations = of_a_simulator(None)
    some = simulations.select(torch.tensor([3, 0]))
    assert (some.theta == THETA[[3, 0]]).all()
    assert (some.joint_score == simulations.joint_score[[3, 0]]).all()
    assert simulations.at_theta().rows == 20
    assert simulations.at_theta().from_theta is None
    assert str(simulations) == (
        "40 simulations, 20 of them drawn at the reference, with joint score and joint log ratio"
    )


@pytest.mark.parametrize("source", [of_files, of_a_store])
def test_what_brings_its_own_theta_cannot_be_unpacked(source, tmp_path):
    with pytest.raises(TypeError, match="unpack|iterable"):
        _theta, _x, *_others = source(tmp_path)
