"""mfsbi: neural likelihoods for simulators whose data lie on a manifold.

    from mfsbi import ManifoldNLE, MFlow, sequential

Two nouns: a *chart* says where the manifold lies in data space, a *latent density* how probability lies on it. Specs
(`AF`, `FOM`, `PIE`, `MFlow`, `MeFlow`, `PAE`) choose both; `ManifoldNLE` trains them and builds sbi's posteriors.

Names are imported when first used, so that importing the package is quick and touches nothing outside it. The public
names are the lines of `__init__.pyi`, which type checkers read as well.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
