import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from simulators import lorenz
from simulators.lorenz import Lorenz


def state_at(time):
    """Return where the only trajectory of a seed is at a time: there is one step between burn-in and end."""
    simulator = Lorenz(trajectories=1, burn_in=time - lorenz.STEP, end=time)
    x = simulator.simulate(torch.zeros(1, 0, dtype=torch.float64), seed=3)[0]
    return (x * lorenz.STD + lorenz.MEAN).numpy()


def test_a_trajectory_is_that_of_an_ode_solver():

    def velocity(_, state):
        x, y, z = state
        return [10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z]

    expected = solve_ivp(velocity, (0, 2), state_at(0.01), rtol=1e-10, atol=1e-12).y[:, -1]
    np.testing.assert_allclose(state_at(2.01), expected, atol=5e-4)


def test_points_are_standardised_and_on_the_attractor():
    """Moments of the invariant measure, two of which the symmetry (x, y) -> (-x, -y) sets to zero."""
    x = Lorenz(trajectories=4000, burn_in=20, end=24).simulate(torch.zeros(50_000, 0), seed=0)
    torch.testing.assert_close(x.mean(0), torch.zeros(3), rtol=0, atol=0.05)
    torch.testing.assert_close(x.std(0), torch.ones(3), rtol=0.03, atol=0)
    assert x.abs().max() < 4


def test_the_attractor_is_nearly_a_surface():
    """Correlation dimension: log of the pairs within r against log r (Grassberger & Procaccia); literature: 2.05."""
    x = Lorenz(trajectories=4000, burn_in=20, end=24).simulate(torch.zeros(6000, 0), seed=1).double()
    pairs = torch.pdist(x)
    counts = torch.stack([(pairs < r).double().mean() for r in (0.05, 0.2)]).log()
    assert float((counts[1] - counts[0]) / np.log(4)) == pytest.approx(2.03, abs=0.12)


def test_one_seed_gives_one_sample():
    simulator = Lorenz(trajectories=10, burn_in=1, end=2)
    one, two, other = (simulator.simulate(torch.zeros(20, 0), seed=seed) for seed in (1, 1, 2))
    assert (one == two).all()
    assert not (one == other).all()


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="0 <= `burn_in` < `end`; got 100, 5, 5"):
        Lorenz(burn_in=5, end=5)
    with pytest.raises(ValueError, match="`theta` should have 0 features"):
        Lorenz().simulate(torch.zeros(3, 1))
