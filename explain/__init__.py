"""Explanations: what choices, layers and samples say about a subnetwork, and sections of the page."""
