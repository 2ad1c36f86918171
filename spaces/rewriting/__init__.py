"""Edits that change a built network beyond its widths and blocks."""
