"""Scoring without building: one resident network that switches between candidates."""
