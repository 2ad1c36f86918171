"""Model: a traced network, what is true of it, and what can be done to it. Knows no choices."""
