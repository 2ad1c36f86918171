"""Splits: where a network is cut into stages, and which device runs each."""
