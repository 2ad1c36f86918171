"""Searchers made of other searchers."""
