"""Numeric execution of tile programs on the CPU."""
