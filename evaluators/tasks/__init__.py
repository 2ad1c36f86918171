"""Tasks that come with netcarve."""
