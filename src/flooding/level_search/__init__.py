"""Searches for a level: the driver, ``find_level``, and one file for each strategy."""
