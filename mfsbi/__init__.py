"""mfsbi: neural likelihoods for simulators whose data lie on a manifold.

    from mfsbi import ManifoldNLE, MFlow, sequential

Two nouns: a *chart* says where the manifold lies in data space, a *latent density* how probability lies on it. Specs
(`AF`, `FOM`, `PIE`, `MFlow`, `MeFlow`, `PAE`) choose both; `ManifoldNLE` trains them and builds sbi's posteriors.

Names are imported when first used, so that importing the package is quick and touches nothing outside it.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "ALICES": "mfsbi.plugin.ratio",
    "AF": "mfsbi.plugin.specs",
    "AffineCouplings": "mfsbi.flows",
    "AutoregressiveSplines": "mfsbi.flows",
    "Chains": "mfsbi.inference.chains",
    "FOM": "mfsbi.plugin.specs",
    "MFlow": "mfsbi.plugin.specs",
    "ManifoldNLE": "mfsbi.plugin.likelihood",
    "MeFlow": "mfsbi.plugin.specs",
    "PAE": "mfsbi.plugin.specs",
    "PIE": "mfsbi.plugin.specs",
    "Phase": "mfsbi.train.schedules",
    "Plan": "mfsbi.simulating",
    "SplineCouplings": "mfsbi.flows",
    "Store": "mfsbi.store",
    "alternating": "mfsbi.train.schedules",
    "ambient": "mfsbi.train.schedules",
    "calibrate": "mfsbi.plugin.calibrating",
    "density_only": "mfsbi.train.schedules",
    "dimension_scan": "mfsbi.plugin.dimension",
    "ensemble_posterior": "mfsbi.plugin.ensembles",
    "interpolate": "mfsbi.manifold",
    "load": "mfsbi.plugin.saving",
    "load_trainer": "mfsbi.plugin.saving",
    "outlier_p_value": "mfsbi.manifold",
    "posterior_predictive": "mfsbi.inference.predictive",
    "sample_chains": "mfsbi.plugin.sampling",
    "save": "mfsbi.plugin.saving",
    "sequential": "mfsbi.train.schedules",
    "simulate_to_store": "mfsbi.simulating",
    "simultaneous": "mfsbi.train.schedules",
    "to_arviz": "mfsbi.inference.to_arviz",
    "train_ensemble": "mfsbi.plugin.ensembles",
    "workers": "mfsbi.simulating",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _HOMES:
        raise AttributeError(f"module 'mfsbi' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
