"""The page of a run: one self-contained HTML file, made from its table, manifest and summary."""
