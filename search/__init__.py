"""Searchers: algorithms that propose candidates, by name. Needs no torch to import."""

from .base import Searcher
from .registry import known_searchers, searcher

__all__ = ["Searcher", "known_searchers", "searcher"]
