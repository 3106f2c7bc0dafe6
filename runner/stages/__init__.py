"""Carrying out the stages of an experiment: measure, extract, select."""
