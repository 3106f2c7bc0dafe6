"""Measuring probes with torch: what `backends.probes` defines, reduced where the logits are."""
