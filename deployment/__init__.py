"""Deployment: partitioners, networks cut into stages, and stages that serve."""
