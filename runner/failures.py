"""How a failure is told: all mistakes of a configuration, a sentence for what a machine lacks, a traceback
for ours."""

from __future__ import annotations

import sys
import traceback

from runner import status
from runner.config.errors import ConfigurationError


def crash(error: Exception) -> int:
    """Report what ended a command: a sentence for what a user can act on (status 2), a traceback for a
    fault of ours."""
    from analyses.tables.run import TableError
    from backends.contract import BackendError, OutOfMemory
    from runner.results.store import CannotWrite, StoreError

    if isinstance(error, CannotWrite | OutOfMemory):
        print(f"patchbay: {error}", file=sys.stderr)
        return status.CRASH
    if isinstance(error, BackendError | StoreError | TableError):
        print(f"patchbay: {error}", file=sys.stderr)
        return status.CONFIGURATION
    traceback.print_exception(error)
    print("patchbay: this is a fault of patchbay's, not of your configuration", file=sys.stderr)
    return status.CRASH


def complain(error: ConfigurationError) -> None:
    count = len(error.problems)
    print(f"patchbay: {count} mistake{'s' if count != 1 else ''} in the configuration", file=sys.stderr)
    for problem in error.problems:
        print(f"  {problem}", file=sys.stderr)
