"""Searchers that improve step by step, and those that combine one table of single changes."""
