"""Explanations: what choices, layers and samples say about a subnetwork, as plain arrays and as one page."""
