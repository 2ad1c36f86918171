"""Explanations that need the networks and the data: one analysis a file."""
