"""What a write says: its values, the rules for its fields, the write in sentences."""
