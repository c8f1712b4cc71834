r"""Gold: what a simulator knows besides x, and x alone does not tell.

A simulator runs through latent variables z to x, and often knows the density p(x, z|theta) of the whole run although
p(x|theta), its integral over z, is out of reach. Two quantities of the run cost next to nothing,

    joint score       t(x, z|theta) = d/dtheta log p(x, z|theta),
    joint log ratio   log r(x, z|theta, theta_ref) = log p(x, z|theta) - log p(x, z|theta_ref),

and at the same x they average to what is wanted:

    E[t | x, theta] = d/dtheta log p(x|theta),       E[r | x, theta_ref] = p(x|theta) / p(x|theta_ref)

(Brehmer, Louppe, Pavez, Cranmer, arXiv:1805.12244; 1805.00020). So they are unbiased, if noisy, labels for regression.
"""

from mfsbi.gold.madminer import MadMinerSample, read_madminer
from mfsbi.gold.mining import mine
from mfsbi.gold.program import PyroSimulator
from mfsbi.gold.simulate import simulate

__all__ = ["MadMinerSample", "PyroSimulator", "mine", "read_madminer", "simulate"]
