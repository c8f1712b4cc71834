"""Measurements of ourselves and of others, made side by side."""
