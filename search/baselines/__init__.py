"""Searchers that learn nothing: the lines to beat."""
