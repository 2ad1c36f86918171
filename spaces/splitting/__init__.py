"""Where a network is cut, what crosses there, and the stages themselves."""
