"""Stages of an experiment: their keys, what flows between them, what stands in for what is still to come."""
