"""Exact flooding of a whole optimiser step, in any PyTorch loop.

A step may be split into micro-batches and ranks, scale its loss, or evaluate a closure. Flooding
is not linear in the loss, so flooding each micro-batch or rank by itself is another method. Here
the raw gradients accumulate and are multiplied by one slope before the optimiser steps.
``docs/accumulation.md`` is the guide.
"""

from flooding.step.flood_step import FloodStep

__all__ = ["FloodStep"]
