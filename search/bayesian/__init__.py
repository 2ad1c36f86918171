"""Searchers that model what has to be measured."""
