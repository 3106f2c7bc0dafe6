"""The figures that an experiment is for: computed, and told."""
