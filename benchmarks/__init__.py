"""How long patchbay takes: programs that print figures, and are no part of the tests."""
