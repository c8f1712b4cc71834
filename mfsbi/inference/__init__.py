"""From a trained model to a posterior: potentials, chains, grids, and the door to ArviZ."""
