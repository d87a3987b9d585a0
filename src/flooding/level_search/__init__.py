"""Searches for a level: the driver, ``find_level``, and one file for each strategy.

``protocol`` says what a strategy is, ``result`` what it returns, ``driver`` runs any of them,
``find`` runs one on a Problem in a single call, and ``external`` adapts training code of your own.
``level_stats`` holds what strategies compute from Records. Every other file is a strategy, or, as
``plot``, the figure of a result.
"""
