"""The default searcher keeps the contract."""
from netcarve.search.auto import Auto
from netcarve.search.testing import SearcherConformance


class TestAuto(SearcherConformance):
    searcher = Auto
