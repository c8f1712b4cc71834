"""Figures: arrays in, matplotlib figures out.

Figures are made without pyplot, so drawing one opens no window and changes no global state; a notebook shows what a
cell returns.
"""

from mfsbi.plots.curves import bars as bars
from mfsbi.plots.curves import scaling as scaling
from mfsbi.plots.curves import training_curves as training_curves
from mfsbi.plots.manifold import clouds as clouds
from mfsbi.plots.manifold import dimension_scan as dimension_scan
from mfsbi.plots.manifold import outliers as outliers
from mfsbi.plots.manifold import planes as planes
from mfsbi.plots.manifold import surface as surface
from mfsbi.plots.posterior import calibration as calibration
from mfsbi.plots.posterior import corner as corner
from mfsbi.plots.posterior import posterior_against_truth as posterior_against_truth
from mfsbi.plots.posterior import posteriors as posteriors
from mfsbi.plots.posterior import roads as roads
from mfsbi.plots.profiles import profile as profile
from mfsbi.plots.profiles import profile_regions as profile_regions
