"""Searchers with a policy that is taught by rewards."""
