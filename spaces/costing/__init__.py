"""Analytic costs of candidates: polynomials in widths, what lives when, and certain bounds."""
