"""Measurements behind the figures in the documentation; each prints its configuration beside its result."""
