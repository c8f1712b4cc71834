"""Ways to a wrong result that nobody would notice: each has a word, and its innocent twin has none.

A row is a fault, the error or warning that tells it, and a control that differs from the fault in that alone.
"""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.distributions import (
    Independent,
    Poisson,
    StudentT,
    Uniform,
)
from typer.testing import CliRunner

from mfsbi import AF, ALICES, ManifoldNLE, load, sample_chains, save, to_arviz
from mfsbi.cli import app
from mfsbi.cli.learning import trainer_for
from mfsbi.gold import simulate
from mfsbi.inference.chains import Chains
from mfsbi.inference.to_arviz import diagnose
from mfsbi.plugin.host import MCMCPosteriorParameters
from simulators.polynomial import PolynomialSurface
from tests.problems import SMALL

pytestmark = pytest.mark.usefixtures("as_users_have_it")
ROWS = 400
PRIOR = Independent(Uniform(-2 * torch.ones(2), 2 * torch.ones(2)), 1)
SHORT = MCMCPosteriorParameters(num_chains=4, warmup_steps=5, init_strategy_parameters={"num_candidate_samples": 50})
ERROR = ValueError
WARNING = UserWarning


def box(low, high):
    return Independent(Uniform(torch.full((2,), low), torch.full((2,), high)), 1)


def theta_of(prior=PRIOR, rows=ROWS):
    torch.manual_seed(0)
    return prior.sample((rows,))


def x_of(theta):
    torch.manual_seed(1)
    return torch.cat([theta + 0.5 * torch.randn_like(theta), theta[:, :1].sin() + 0.5 * torch.randn(len(theta), 1)], 1)


def trained(theta=None, x=None, prior=PRIOR, kind=ManifoldNLE, epochs=1, **settings):
    """Return a trainer of few steps."""
    theta = theta_of() if theta is None else theta
    x = x_of(theta) if x is None else x
    trainer = ManifoldNLE(prior, AF(SMALL)) if kind is ManifoldNLE else ALICES(prior, width=8, depth=1)
    trainer.append_simulations(theta, x)
    trainer.train(max_num_epochs=epochs, training_batch_size=100, **settings)
    return trainer


def changed(values, column, new):
    """Return values with another column."""
    values = values.clone()
    values[:, column] = new
    return values


def with_offset(values, kind):
    return torch.cat([values[:, :2].double(), 1.7e9 + 40 * values[:, 2:].double()], 1).to(kind)


def with_huge(size):
    x = x_of(theta_of())
    return changed(x, 1, torch.where(torch.arange(ROWS) % 150 == 0, size, x[:, 1]))


def heavy():
    torch.manual_seed(0)
    return changed(x_of(theta_of()), 1, StudentT(4.0).sample((ROWS,)))


def band(width):
    theta = theta_of()
    return changed(theta, 1, (theta[:, 0] + width * theta[:, 1]).clamp(-2, 2))


def posterior(at, **settings):
    return at.trainer.build_posterior(posterior_parameters=SHORT, **settings)


def chains(shift, rows=500):
    draws = torch.randn(4, rows, 2, generator=torch.Generator().manual_seed(0))
    draws[0] += shift
    return Chains(draws, draws[..., 0])


def complained(shift, rows=500):
    if diagnose(chains(shift, rows)).complaint:
        warnings.warn(diagnose(chains(shift, rows)).complaint, stacklevel=1)


def golden(change=lambda score: score):
    """Train with the score of x = theta + noise, changed."""
    torch.manual_seed(0)
    prior = Independent(Uniform(-2 * torch.ones(1), 2 * torch.ones(1)), 1)
    theta = prior.sample((2000,))
    x = theta + 0.5 * torch.randn(2000, 1)
    ManifoldNLE(prior, AF(SMALL)).append_simulations(theta, x, joint_score=change((x - theta) / 0.25))


def ratio_gold(labels):
    """Append gold of a surface with labels for what was drawn at theta."""
    surface = PolynomialSurface()
    theta = surface.prior.sample((400,))
    at_theta = torch.arange(400) % 2 == 0
    gold = simulate(surface, theta, theta_ref=torch.zeros(1), from_theta=at_theta, seed=0)
    ALICES(surface.prior).append_simulations(theta, **gold._asdict(), from_theta=labels(at_theta))


def whole(at, prior, sampler):
    """Sample with a prior of whole numbers or another."""
    torch.manual_seed(0)
    theta = prior.sample((ROWS,))
    posterior = trained(theta, theta + 0.5 * torch.randn_like(theta), prior).build_posterior(sample_with="rejection")
    settings = {"oversampling": 64} if sampler == "importance" else {}
    sample_chains(posterior, theta[:1], 300, sampler=sampler, **settings)


def interrupted(at, stop):
    """Load, as the command line does, an estimator whose training a Ctrl-C ended, or another one."""
    trainer = ManifoldNLE(PRIOR, AF(SMALL)).append_simulations(theta_of(), x_of(theta_of()))
    trainer.train(max_num_epochs=1, training_batch_size=100)
    record = trainer.estimator.training_record | ({"interrupted": True} if stop else {})
    trainer.estimator.training_record = record
    save(trainer.estimator, at.folder / "stopped")
    np.save(at.folder / "x_o.npy", x_of(theta_of())[:1].numpy())
    line = (
        "sample {0}/stopped {0}/x_o.npy --prior=-2:2 --prior=-2:2 --sampler grid --draws 400 --quiet --out {0}/draws.nc"
    )
    result = CliRunner().invoke(app, line.format(at.folder).split(), catch_exceptions=False)
    assert result.exit_code == 0, result.output


def damaged(at, byte):
    content = bytearray((at.folder / "model").read_bytes())
    content[-20] ^= byte
    (at.folder / "copy").write_bytes(content)
    load(at.folder / "copy")


def sampled(at, x, sampler="importance", draws=200, **settings):
    sample_chains(posterior(at), x, draws, sampler=sampler, **settings)


def one_after_another(at, kind):
    potential = at.clock.build_posterior().potential_fn
    potential.set_x(with_offset(INSIDE, torch.float64))
    potential.set_x(with_offset(INSIDE, torch.float64).to(kind))


INSIDE = torch.tensor([[0.3, -0.4, 0.2]])

FAULTS = {
    "a parameter that never varied": (
        lambda at: trained(changed(theta_of(), 1, 0.5)),
        WARNING,
        r"Parameter 1 never varied in the simulations \(always 0.5\).* the posterior will be the prior",
        lambda at: trained(theta_of()),
    ),
    "theta from a part of the prior": (
        lambda at: trained(theta_of(box(-2.0, 1.0))),
        WARNING,
        "Parameters 0, 1 of the prior reach beyond the simulations: 2. % of the prior",
        lambda at: trained(theta_of(), prior=PRIOR),
    ),
    "theta in a band of the prior": (
        lambda at: trained(band(0.1)),
        WARNING,
        "cover a small part of the prior: along one direction",
        lambda at: trained(band(2.0)),
    ),
    "a posterior with a wider prior": (
        lambda at: posterior(at, prior=box(-3.0, 3.0)),
        WARNING,
        "of the posterior's prior reach beyond the simulations",
        lambda at: posterior(at, prior=box(-1.0, 1.0)),
    ),
    "a loaded estimator with a wider prior": (
        lambda at: trainer_for(load(at.folder / "model"), box(-3.0, 3.0)).build_posterior(),
        WARNING,
        "of the posterior's prior reach beyond the simulations",
        lambda at: trainer_for(load(at.folder / "model"), PRIOR).build_posterior(),
    ),
    "an observation that no simulation was near": (
        lambda at: posterior(at).potential_fn.set_x(INSIDE + torch.tensor([0.0, 0.0, 9.0])),
        WARNING,
        "Observation 0 lies outside all simulations: feature 2 is 9.2",
        lambda at: posterior(at).potential_fn.set_x(INSIDE),
    ),
    "such an observation for a ratio": (
        lambda at: at.ratio.build_posterior().potential_fn.set_x(INSIDE + torch.tensor([0.0, 0.0, 9.0])),
        WARNING,
        "Observation 0 lies outside all simulations: feature 2 is 9.2",
        lambda at: at.ratio.build_posterior().potential_fn.set_x(INSIDE),
    ),
    "one such observation among many": (
        lambda at: posterior(at).potential_fn.set_x(changed(x_of(theta_of(rows=50)), 0, torch.arange(50) - 10.0)),
        WARNING,
        "Observation 49 lies outside all simulations, and .* more of 50",
        lambda at: posterior(at).potential_fn.set_x(x_of(theta_of(rows=50))),
    ),
    "runs that blew up": (
        lambda at: trained(x=with_huge(1e6)),
        WARNING,
        "Feature 1 of x holds rare huge values: feature 1 has 3 in 400 rows, up to 1e[+]06",
        lambda at: trained(x=heavy()),
    ),
    "an offset that took the digits of x": (
        lambda at: trained(x=with_offset(x_of(theta_of()), torch.float32)),
        ERROR,
        "`x` should have digits left beside its offset: feature 2 is 1.7e[+]09",
        lambda at: trained(x=with_offset(x_of(theta_of()), torch.float64)),
    ),
    "an observation that lost its digits": (
        lambda at: at.clock.build_posterior().potential_fn.set_x(with_offset(INSIDE, torch.float32)),
        ERROR,
        "`x` should be of float64, as the simulations were: features .2. have offsets",
        lambda at: at.clock.build_posterior().potential_fn.set_x(with_offset(INSIDE, torch.float64)),
    ),
    "an observation without digits after one with them": (
        lambda at: one_after_another(at, torch.float32),
        ERROR,
        "`x` should be of float64, as the simulations were",
        lambda at: one_after_another(at, torch.float64),
    ),
    "an offset that takes the digits of theta": (
        lambda at: ManifoldNLE(box(1.7e9 - 400, 1.7e9 + 400), AF()),
        ERROR,
        "`theta` should have digits left beside its offset",
        lambda at: ManifoldNLE(box(1.7e3 - 400, 1.7e3 + 400), AF()),
    ),
    "features of zeros and ones": (
        lambda at: trained(x=(x_of(theta_of()) > 0).float()),
        WARNING,
        "Features 0, 1, 2 of x take few values .feature 0 2 in 360 rows.",
        lambda at: trained(x=(x_of(theta_of()) > 0) + torch.rand(ROWS, 3)),
    ),
    "counts": (
        lambda at: trained(x=x_of(theta_of()).round()),
        WARNING,
        "Features 0, 1, 2 of x take few values",
        lambda at: trained(x=x_of(theta_of()).round(), kind=ALICES),
    ),
    "a feature that is always the same": (
        lambda at: trained(x=changed(x_of(theta_of()), 1, 3.0)),
        ERROR,
        r"features \[1\] are constant",
        lambda at: trained(),
    ),
    "theta outside the prior": (
        lambda at: trained(1.1 * theta_of()),
        ERROR,
        "`theta` should lie inside the prior",
        lambda at: trained(0.99 * theta_of()),
    ),
    "x without numbers": (
        lambda at: trained(x=changed(x_of(theta_of()), 1, torch.nan)),
        ERROR,
        "`x` should be finite|NaN",
        lambda at: trained(),
    ),
    "scores that do not average to zero": (
        lambda at: golden(lambda score: score + 1),
        ERROR,
        "average to zero|should average",
        lambda at: golden(),
    ),
    "scores by logarithms to base ten": (
        lambda at: golden(lambda score: score + 0.3 * score.abs()),
        ERROR,
        "average to zero|should average",
        lambda at: golden(),
    ),
    "labels that do not fit the ratios": (
        lambda at: ratio_gold(lambda labels: ~labels),
        ERROR,
        "Were they drawn at a reference. Pass `from_theta`",
        lambda at: ratio_gold(lambda labels: labels),
    ),
    "a weight decay that acts on nothing": (
        lambda at: trained(weight_decay=0.1, schedule=AF().schedule(1)),
        ERROR,
        "`weight_decay` should be zero or None, since no phase of this schedule has weight decay",
        lambda at: trained(weight_decay=0.1),
    ),
    "chains that do not agree": (
        lambda at: complained(3.0),
        WARNING,
        "The chains have not converged: largest R-hat 1",
        lambda at: complained(0.05),
    ),
    "few independent draws": (
        lambda at: complained(0.0, rows=40),
        WARNING,
        "There are few independent draws",
        lambda at: complained(0.0),
    ),
    "chains of whole numbers": (
        lambda at: whole(at, Independent(Poisson(3 * torch.ones(1)), 1), "emcee"),
        ERROR,
        "'emcee' moves through theta continuously",
        lambda at: whole(at, Independent(Poisson(3 * torch.ones(1)), 1), "importance"),
    ),
    "a grid that cuts the posterior off": (
        lambda at: sampled(at, INSIDE, "grid", bounds=[(-0.2, 2.0), (-2.0, 2.0)], points=60),
        WARNING,
        "`bounds` cut off a part of the posterior: that of parameter 0",
        lambda at: sampled(at, INSIDE, "grid", bounds=[(-2.0, 2.0), (-2.0, 2.0)], points=60),
    ),
    "a grid wider than the posterior": (
        lambda at: sampled(at, INSIDE.repeat(3000, 1), "grid", bounds=[(-2.0, 2.0), (-2.0, 2.0)], points=5),
        WARNING,
        "The grid is too coarse: the posterior of parameter",
        lambda at: sampled(at, INSIDE, "grid", bounds=[(-2.0, 2.0), (-2.0, 2.0)], points=60),
    ),
    "candidates of which few count": (
        lambda at: sampled(at, INSIDE.repeat(3000, 1), "importance", oversampling=1),
        WARNING,
        "Only .* candidates make 800 draws",
        lambda at: sampled(at, INSIDE, "importance", oversampling=64),
    ),
    "a name that ArviZ takes for its own": (
        lambda at: to_arviz(chains(0.0), ["chain", "b"]),
        ERROR,
        "chain",
        lambda at: to_arviz(chains(0.0), [r"$\Omega_m$", "b"]),
    ),
    "two parameters of one name": (
        lambda at: to_arviz(chains(0.0), ["a", "a"]),
        ERROR,
        "different|twice|same|distinct",
        lambda at: to_arviz(chains(0.0), ["a", "b"]),
    ),
    "a training that was interrupted": (
        lambda at: interrupted(at, True),
        WARNING,
        "was interrupted: what it says may be far off",
        lambda at: interrupted(at, False),
    ),
    "a number of a file that changed": (
        lambda at: damaged(at, 1),
        ERROR,
        "damaged|changed",
        lambda at: damaged(at, 0),
    ),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return what users have after training, of each kind."""
    folder = tmp_path_factory.mktemp("made")
    trainer = trained(epochs=10)
    save(trainer.estimator, folder / "model")
    clock = trained(x=with_offset(x_of(theta_of()), torch.float64))
    return SimpleNamespace(folder=folder, trainer=trainer, ratio=trained(kind=ALICES), clock=clock)


def quietly(call, made):
    """Run a call with every warning an error, but for those of libraries."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        call(made)


@pytest.mark.parametrize("name", FAULTS)
def test_what_could_be_wrong_silently_has_a_word(made, name):
    call, kind, message, _ = FAULTS[name]
    with pytest.warns(kind, match=message) if kind is WARNING else pytest.raises(kind, match=message):
        call(made)


@pytest.mark.parametrize("name", FAULTS)
def test_its_innocent_twin_has_none(made, name):
    quietly(FAULTS[name][3], made)
