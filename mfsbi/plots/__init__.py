"""Figures: arrays in, matplotlib figures out.

Figures are made without pyplot, so drawing one opens no window and changes no global state; a notebook shows what a
cell returns.
"""

from mfsbi.plots.comparison import bars, scaling
from mfsbi.plots.coverage import calibration
from mfsbi.plots.manifold import clouds, dimension_scan, outliers, planes, surface
from mfsbi.plots.posterior import corner, posterior_against_truth, posteriors, roads
from mfsbi.plots.training import training_curves

__all__ = [
    "bars",
    "calibration",
    "clouds",
    "corner",
    "dimension_scan",
    "outliers",
    "planes",
    "posterior_against_truth",
    "posteriors",
    "roads",
    "scaling",
    "surface",
    "training_curves",
]
