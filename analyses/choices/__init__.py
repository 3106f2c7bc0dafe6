"""What a select stage takes, by which rule, and what chance alone would pass."""
