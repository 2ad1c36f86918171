"""Searchers with a population."""
