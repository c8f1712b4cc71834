"""Simulators whose truth is known: they judge what mfsbi learns, and share no code with it."""
