"""Exit statuses, as other programs read them."""

from __future__ import annotations

DONE = 0
CRASH = 1
CONFIGURATION = 2
INERT = 3
FAILED_TRIALS = 4
INTERRUPTED = 130
SEVERITY = (DONE, INERT, FAILED_TRIALS, CONFIGURATION, CRASH, INTERRUPTED)  # least to worst
