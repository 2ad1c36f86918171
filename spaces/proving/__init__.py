"""Every operator and block run pruned, and what was proven before."""
