"""Searchers that prove what they find."""
