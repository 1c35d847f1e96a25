"""Groundswell turns any set of computers into one elastic service for generative AI and video."""

__version__ = "0.1.0"
