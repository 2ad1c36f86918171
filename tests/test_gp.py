"""x"""
from netcarve.search.gp import GP
from netcarve.search.testing import SearcherConformance


class TestGP(SearcherConformance):
    searcher = GP
