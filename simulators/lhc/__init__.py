"""Weak-boson fusion at the LHC: a process with forty observables whose likelihood is known exactly."""
