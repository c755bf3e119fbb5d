"""sleep-trl."""
