"""Figures: arrays in, matplotlib figures out.

Figures are made without pyplot, so drawing one opens no window and changes no global state; a notebook shows what a
cell returns.
"""

from mfsbi.plots.curves import bars, scaling, training_curves
from mfsbi.plots.manifold import clouds, dimension_scan, outliers, planes, surface
from mfsbi.plots.posterior import calibration, corner, posterior_against_truth, posteriors, roads

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
