import math
import warnings

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal

from mfsbi import AF, PAE, Chains, ManifoldNLE, MFlow, compare, log_evidence
from mfsbi.flows import SplineCouplings
from mfsbi.inference.chains import Info
from mfsbi.inference.run_smc import _mean_evidence
from mfsbi.plugin import evidence
from mfsbi.plugin.host import EnsemblePosterior
from mfsbi.plugin.parameter_prior import parameter_prior
from mfsbi.plugin.posteriors import posterior_of
from tests.plugin.test_priors import KINDS, NOISE
from tests.problems import surface_data

SMALL = SplineCouplings(layers=2, width=16)


def normal(dims, spread):
    return Independent(Normal(torch.zeros(dims), spread * torch.ones(dims)), 1)


def exact(x, spread):
    """Return the log evidence of observations N(theta, NOISE^2) of theta ~ N(0, spread^2), each parameter its own."""
    events = len(x)
    covariance = NOISE**2 * torch.eye(events) + spread**2
    return float(MultivariateNormal(torch.zeros(events), covariance).log_prob(x.T).sum())


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(0)
    return 0.4 + NOISE * torch.randn(3, 2, generator=generator)


def posterior(dims, spread, kind="likelihood"):
    return posterior_of(KINDS[kind], parameter_prior(normal(dims, spread)), "smc", None, "cpu")


def test_the_evidence_of_a_normal_model_is_within_its_error_in_nineteen_of_twenty_runs(x):
    found = [log_evidence(posterior(2, 1.0), x, seed=seed) for seed in range(20)]
    assert sum(abs(each.log - exact(x, 1.0)) < each.error for each in found) >= 18
    assert max(each.error for each in found) < 0.3


def test_a_bayes_factor_of_priors_is_right(x):
    found = compare({"wide": posterior(2, 10.0), "narrow": posterior(2, 0.5)}, x, particles=1000)
    factor = found.log_bayes_factor("narrow", "wide")
    assert abs(factor.log - (exact(x, 0.5) - exact(x, 10.0))) < factor.error < 0.2
    assert math.isclose(sum(found.probability.values()), 1.0)
    assert str(found).startswith("narrow  log p(x) ")
    assert list(found.evidence) == ["wide", "narrow"]


def test_ratios_are_compared_where_it_is_one_network(x):
    found = compare({"wide": posterior(2, 10.0, "ratio"), "narrow": posterior(2, 0.5, "ratio")}, x, particles=1000)
    factor = found.log_bayes_factor("narrow", "wide")
    assert abs(factor.log - (exact(x, 0.5) - exact(x, 10.0))) < factor.error


@pytest.fixture(scope="module")
def trained():
    surface, theta, x = surface_data(300)
    specs = {
        "flow": AF(SMALL),
        "other flow": AF(SMALL),
        "surface": MFlow(2, SMALL, SMALL),
        "coordinates": PAE(2, SMALL, 16, 1),
    }
    found = {"observed": x[:5]}
    for seed, (name, spec) in enumerate([*specs.items(), ("other surface", specs["surface"])]):
        trainer = ManifoldNLE(surface.prior, spec, seed=seed, show_progress_bars=False).append_simulations(theta, x)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The chart")
            trainer.train(max_num_epochs=2, restarts=0)
        found[name] = trainer.build_posterior()
    return found


def test_models_in_data_space_are_compared_whatever_they_are(trained):
    two = {name: trained[name] for name in ("flow", "other flow")}
    assert set(compare(two, trained["observed"], particles=50).evidence) == set(two)


def test_manifolds_that_were_learned_apart_are_a_warning(trained):
    two = {name: trained[name] for name in ("surface", "other surface")}
    with pytest.warns(UserWarning, match="'surface' and 'other surface' learned their manifolds apart"):
        compare(two, trained["observed"], particles=50)


@pytest.mark.parametrize("other", ["surface", "coordinates"])
def test_different_spaces_are_refused(trained, other):
    with pytest.raises(
        ValueError, match=f"'flow' is counted in data space and '{other}' (on a manifold of 2|in coord)"
    ):
        compare({"flow": trained["flow"], other: trained[other]}, trained["observed"])


def test_one_model_is_not_compared(trained):
    with pytest.raises(ValueError, match="`posteriors` should be two or more, by name; got 1"):
        compare({"flow": trained["flow"]}, trained["observed"])


def test_an_ensemble_is_refused_by_name(trained):
    ensemble = EnsemblePosterior([trained["flow"], trained["other flow"]])
    with pytest.raises(TypeError, match="got an ensemble"):
        compare({"flow": trained["flow"], "both": ensemble}, trained["observed"])


def test_populations_that_disagree_are_a_warning(trained, monkeypatch):
    found = Chains(torch.zeros(8, 4, 1), torch.zeros(8, 4), Info("smc", log_evidence=-3.0, log_evidence_error=0.9))
    monkeypatch.setattr(evidence, "sample_chains", lambda *_, **__: found)
    with pytest.warns(UserWarning, match=r"Populations of particles disagree on log p\(x\): -3.00 ± 2.13"):
        log_evidence(trained["flow"], trained["observed"])


def test_the_error_of_evidences_that_have_nothing_in_common_is_large():
    log, error = _mean_evidence(torch.tensor([-100.0] + [-300.0] * 7, dtype=torch.float64))
    assert abs(log + 100 + math.log(8)) < 1e-6
    assert error > 20


def test_what_is_no_posterior_is_refused(trained):
    with pytest.raises(TypeError, match="posteriors\\['theirs'\\]"):
        compare({"flow": trained["flow"], "theirs": 3}, trained["observed"])
