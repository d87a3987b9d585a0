"""Experiments: each a function that returns Runs and a function that draws Records."""
