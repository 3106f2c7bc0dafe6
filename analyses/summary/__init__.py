"""What a run comes to: one mapping, as JSON, Markdown and on the screen."""
