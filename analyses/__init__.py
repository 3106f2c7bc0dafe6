"""What the tables say: statistics, gates, published figures and summaries.

Knows a results folder and nothing else, so that it runs where no model and no GPU is.
"""
