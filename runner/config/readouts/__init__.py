"""What a readout says: kinds, positions, columns that are derived, and what does not fit."""
