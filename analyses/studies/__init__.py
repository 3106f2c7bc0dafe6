"""Declared analyses beyond contrasts: what an experiment asks that no single difference answers."""
