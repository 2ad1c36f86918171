"""Compact operators: what a layer of a trained network may be replaced by, starting from its weights."""
