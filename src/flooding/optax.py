"""A shorter name for :mod:`flooding.integrations.optax`."""

from flooding.integrations.optax import FloodState, flood, multi_steps

__all__ = ["FloodState", "flood", "multi_steps"]
