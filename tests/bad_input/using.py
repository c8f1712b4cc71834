"""Bad calls of estimators, posteriors and what is made of them: a call, its error if not ValueError, the message."""

import torch
from torch.distributions import Independent, Uniform

from mfsbi import (
    AF,
    NUTS,
    Chains,
    ManifoldNLE,
    calibrate,
    dimension_scan,
    ensemble_posterior,
    interpolate,
    outlier_p_value,
    posterior_predictive,
    sample_chains,
    to_arviz,
)
from tests.bad_input.learning import changed

NAN = float("nan")
WIDE = Independent(Uniform(torch.zeros(2), torch.ones(2)), 1)
CHAINS = Chains(torch.zeros(2, 4, 2), torch.zeros(2, 4))
CURVE = torch.randn(120, 3, generator=torch.Generator().manual_seed(0))


def sampled(x=lambda at: at.x[:4], **settings):
    """Return a call that samples a posterior."""
    return lambda at: sample_chains(at.posterior, x(at), **({"draws": 4} | settings))


def calibrated(theta=lambda at: at.theta[:4], x=lambda at: at.x[:4], **settings):
    """Return a call that calibrates a posterior."""
    return lambda at: calibrate(at.posterior, theta(at), x(at), **({"draws": 4, "sampler": "importance"} | settings))


ESTIMATORS = {
    "another number of features": (
        lambda at: at.estimator.log_prob(at.x[:, :1], at.theta),
        r"`input` should have shape \(batch, 3\) or \(sample, batch, 3\); got \(60, 1\)",
    ),
    "four axes": (lambda at: at.estimator.log_prob(at.x[None, None], at.theta), r"got \(1, 1, 60, 3\)"),
    "batches that do not fit": (
        lambda at: at.estimator.log_prob(at.x[:5], at.theta[:3]),
        r"equal sample and batch sizes, or 1; got \(1, 5\) and \(1, 3\)",
    ),
    "rows in a list": (lambda at: at.estimator.log_prob(at.x.tolist(), at.theta), TypeError, "`input` should be a tor"),
    "complex rows": (
        lambda at: at.estimator.log_prob(at.x + 1j, at.theta),
        TypeError,
        "`input` should be .* real numbers; got torch.complex64",
    ),
    "a loss without theta": (lambda at: at.estimator.loss(at.x, condition=None), TypeError, "`condition` .* got None"),
    "fewer than no draws": (
        lambda at: at.estimator.sample((-1,), at.theta),
        r"`sample_shape` should be a tuple of whole numbers, none negative; got \(-1,\)",
    ),
    "a number of draws": (lambda at: at.estimator.sample(3, at.theta), "`sample_shape` .* got 3"),
    "draws at a sample axis": (
        lambda at: at.estimator.sample((2,), at.theta[None]),
        r"`condition` should have shape \(batch, 1\); got \(1, 60, 1\)",
    ),
    "NaN on a manifold": (lambda at: at.model.log_prob(at.x * NAN, at.theta), ArithmeticError, r"no volume at row \(0"),
    "one feature that would be broadcast": (
        lambda at: at.model.project(at.x[:, :1]),
        r"`x` should have shape \(\*, 3\), 3 being the features of the data .* got shape \(60, 1\)",
    ),
    "parameters that would be broadcast": (
        lambda at: at.model.sample(at.theta.expand(-1, 2)),
        r"`theta` should have shape \(\*, 1\), 1 being the features of theta in training; got shape \(60, 2\)",
    ),
}


POSTERIORS = {
    "an untrained trainer": (
        lambda at: ManifoldNLE(at.surface.prior, AF()).build_posterior(),
        RuntimeError,
        r"no trained estimator yet: call `train\(\)`",
    ),
    "a network of one's own": (
        lambda at: at.trainer.build_posterior(torch.nn.Identity()),
        TypeError,
        "`density_estimator` should be an estimator of ManifoldNLE; got Identity",
    ),
    "another prior": (
        lambda at: at.trainer.build_posterior(prior=WIDE),
        "`prior` should have the trainer's 1 parameters; it has 2",
    ),
    "an unknown way to sample": (
        lambda at: at.trainer.build_posterior(sample_with="magic"),
        "`sample_with` should be one of .*got 'magic'",
    ),
    "settings in a dictionary": (
        lambda at: at.trainer.build_posterior(posterior_parameters={"num_chains": 4}),
        TypeError,
        "`posterior_parameters` should be MCMC-.*; got dict",
    ),
    "an unknown sampler": (sampled(sampler="gibbs"), r"`sampler` should be one of \['emcee'.*got 'gibbs'"),
    "no draws": (sampled(draws=0), "`draws` should be a positive integer; got 0"),
    "half a draw": (sampled(draws=2.5, sampler="importance"), "`draws` .* integer; got 2.5"),
    "observations of other features": (sampled(lambda at: at.x[:4, :2]), r"`x` should have shape \(rows, 3"),
    "no observations": (sampled(lambda at: at.x[:0]), r"with an observation; got \(0, 3\)"),
    "observations of NaN": (sampled(lambda at: at.x * NAN, sampler="nuts"), "`x` should be finite; 60 of"),
    "observations of nothing": (sampled(lambda at: None), TypeError, "`x` should be a torch tensor; got None"),
    "a warm-up before the start": (sampled(sampler="emcee", warmup=-1), "`warmup` should not be negative"),
    "no chains": (sampled(sampler="nuts", chains=0), "`chains` should be a positive integer; got 0"),
    "half an oversampling": (sampled(sampler="importance", oversampling=1.5), "`oversampling` .* got 1.5"),
    "bounds of other parameters": (
        sampled(sampler="grid", bounds=[(-1, 1)] * 3),
        r"`bounds` should be 1 finite pairs \(low, high\) with low < high, one for each parameter; got \[",
    ),
    "bounds upside down": (sampled(sampler="grid", bounds=[(1, -1)]), "`bounds` should be 1 finite pairs"),
    "a setting there is not": (sampled(sampler="nuts", speed=3), TypeError, "unexpected keyword argument 'speed'"),
    "a sampler that is not called": (sampled(sampler=NUTS), TypeError, r"a value such as NUTS\(chains=8\); got <class"),
    "a sampler that cannot draw": (sampled(sampler=3), TypeError, "`sampler` should be a word, or a value .* got 3"),
    "settings beside a value": (
        sampled(sampler=NUTS(), chains=2),
        TypeError,
        r"`sampler` has its own settings, NUTS\(chains=4.*: leave out `chains`",
    ),
    "draws twice": (
        lambda at: sample_chains(at.posterior, at.x, 500, draws=10),
        TypeError,
        "The draws came after `x`, 500: leave out `draws`",
    ),
    "a sampler twice": (
        lambda at: sample_chains(at.posterior, at.x, NUTS(), sampler="slice"),
        TypeError,
        r"The sampler came after `x`, NUTS\(.*: leave out `sampler`",
    ),
    "a word and a sampler": (
        lambda at: sample_chains(at.posterior, at.x, "nuts", sampler="nuts"),
        TypeError,
        "The sampler came after `x`, 'nuts': leave out `sampler`",
    ),
    "a length and a number of steps": (
        sampled(sampler="hmc", trajectory_length=1.0, num_steps=3),
        TypeError,
        "`trajectory_length` says it too: leave out `num_steps`",
    ),
    "an ensemble": (
        lambda at: sample_chains(ensemble_posterior(at.trainer, [at.estimator]), at.x),
        TypeError,
        "should be one posterior; got an ensemble. Take each of its `posteriors`",
    ),
    "no walkers": (sampled(sampler="emcee", walkers=0), "`walkers` should be a positive integer; got 0"),
    "a grid without points": (sampled(sampler="grid", points=0), "`points` .* positive integer; got 0"),
    "an estimator for a posterior": (
        lambda at: sample_chains(at.estimator, at.x, sampler="emcee"),
        TypeError,
        "`posterior` should come from build_posterior.*got ManifoldEstimator with the potential NoneType",
    ),
    "an exam without draws": (calibrated(draws=0), "`draws` should be a positive integer; got 0"),
    "an exam with a setting there is not": (
        calibrated(sampler=None, walk=3),
        TypeError,
        "none is given: leave out `walk`",
    ),
    "an exam by half a particle": (
        calibrated(sampler="smc", particles=0.5),
        "`particles` should be a positive integer",
    ),
    "an exam of other rows": (calibrated(lambda at: at.theta[:3]), "got 3 rows of `theta` and 4 of `x`"),
    "an exam of one set": (
        calibrated(lambda at: at.theta[:1], lambda at: at.x[:1]),
        r"`theta` should have shape \(sets, 1\) with two sets or more.*got \(1, 1\) and \(1, 3\)",
    ),
    "an exam of other parameters": (
        calibrated(lambda at: at.theta[:4].expand(-1, 2)),
        r"`theta` should have shape \(sets, 1\) .*got \(4, 2\)",
    ),
    "a truth that is no number": (calibrated(lambda at: at.theta[:4] * NAN), "`theta` should be finite; 4"),
    "an exam of NaN": (calibrated(x=lambda at: changed(at.x[:4], 3, NAN)), "`x` should be finite; 1 of 4"),
    "an exam of no posterior": (
        lambda at: calibrate(at.estimator, at.theta, at.x),
        TypeError,
        "`posterior` should be a posterior, as .* got ManifoldEstimator",
    ),
}


USES = {
    "no tolerance": (lambda at: dimension_scan(CURVE, tolerance=NAN), "`tolerance` .* positive; got nan"),
    "half a step": (lambda at: dimension_scan(CURVE, steps=1.5), "`steps` .* positive integer; got 1.5"),
    "one number for dimensions": (lambda at: dimension_scan(CURVE, dims=2), TypeError, "`dims` .* in a list; got 2"),
    "dimensions of letters": (lambda at: dimension_scan(CURVE, dims="12"), "`dims` should be whole numbers"),
    "all dimensions": (lambda at: dimension_scan(CURVE, dims=[3]), r"`dims` .* between 1 and 2.*got \(3,"),
    "no dimensions to try": (lambda at: dimension_scan(CURVE, dims=[]), "`dims` should be whole numbers"),
    "a scan of NaN": (lambda at: dimension_scan(CURVE * NAN), "`x` should be finite; 120 of 120 rows"),
    "a scan of few rows": (lambda at: dimension_scan(at.x), "at least 100 rows, a tenth to judge by; got 60"),
    "a scan of a list": (
        lambda at: dimension_scan([[0.0]]),
        TypeError,
        r"`x` should be a torch tensor; got \[\[0.0\]\]",
    ),
    "outliers of an estimator": (
        lambda at: outlier_p_value(at.estimator, at.x, at.x),
        TypeError,
        "`model` should be a model, such as `estimator.model`; got ManifoldEstimator",
    ),
    "nothing ordinary": (
        lambda at: outlier_p_value(at.model, at.x, at.x[:0]),
        "`ordinary` should have at least one row",
    ),
    "outliers of other features": (
        lambda at: outlier_p_value(at.model, at.x[:, :2], at.x),
        r"`x` should have shape \(rows, 3\)",
    ),
    "ordinary points of NaN": (
        lambda at: outlier_p_value(at.model, at.x, at.x * NAN),
        "`ordinary` should be finite; 60 of 60 rows",
    ),
    "a curve of one point": (
        lambda at: interpolate(at.model, at.x[0], at.x[1], steps=1),
        "`steps` should be at least 2",
    ),
    "a curve between numbers": (
        lambda at: interpolate(at.model, at.x[0, 0], at.x[1, 0]),
        r"`start` should have shape \(\*, 3\).*got shape \(\)",
    ),
    "a curve from NaN": (lambda at: interpolate(at.model, at.x[0] * NAN, at.x[1]), "`start` should be finite"),
    "no new observations": (
        lambda at: posterior_predictive(CHAINS, at.model.sample, 0),
        "`observations` should be a positive integer; got 0",
    ),
    "draws instead of chains": (
        lambda at: posterior_predictive(CHAINS.draws, at.model.sample),
        TypeError,
        "`chains` should be `Chains`.*a Tensor",
    ),
    "a simulator instead of a function": (
        lambda at: posterior_predictive(CHAINS, at.surface),
        TypeError,
        "`simulate` should be a function theta -> x.*got PolynomialSurface",
    ),
    "a simulator that loses rows": (
        lambda at: posterior_predictive(CHAINS, lambda theta: theta[1:]),
        "`simulate` should return 8 rows, one for each theta",
    ),
    "new data of NaN": (
        lambda at: posterior_predictive(CHAINS, torch.log),
        "`x` should be finite; 8 of 8 rows.*Look for the cause in `simulate`",
    ),
    "new data of numpy": (
        lambda at: posterior_predictive(CHAINS, lambda theta: theta.numpy()),
        TypeError,
        r"`simulate\(theta\)` should be a torch tensor; got array",
    ),
    "chains of one axis too few": (
        lambda at: Chains(torch.zeros(4, 1), torch.zeros(4)),
        r"`draws` should have shape \(chain, draw, parameter\).*got \(4, 1\)",
    ),
    "chains with a dictionary": (
        lambda at: Chains(CHAINS.draws, CHAINS.log_prob, {"seconds": 1.0}),
        TypeError,
        r"`info` should be of `mfsbi.inference.chains.Info`, such as Info\(\*\*info\); got .*a dict",
    ),
    "a name too few": (lambda at: to_arviz(CHAINS, ["a"]), r"`parameter_names` should have 2 .*got \['a'\]"),
    "one name for two parameters": (lambda at: to_arviz(CHAINS, ["a", "a"]), "no two the same; got"),
    "names in one word": (lambda at: to_arviz(CHAINS, "ab"), "`parameter_names` should have 2 .*got 'ab'"),
    "draws of another prior": (
        lambda at: to_arviz(CHAINS, prior=torch.zeros(5, 3)),
        r"`prior` should have shape \(rows, 2\)",
    ),
    "new data of other chains": (
        lambda at: to_arviz(CHAINS, posterior_predictive=torch.zeros(3, 4, 1, 3)),
        r"`posterior_predictive` should have shape \(chain, draw, \*\), for \(2, 4\).*has shape \(3, 4, 1, 3\)",
    ),
}
