"""From YAML to a checked, resolved design: composing, checking, resolving, and saying it in words."""
