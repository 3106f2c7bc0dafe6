"""What the prompts say: banks, roles, templates, and what does not fit."""
