"""Scores read the generated text alone; they can be taken again from a stored text without running the
model."""
