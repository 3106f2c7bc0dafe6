"""The command line: `python -m runner`, installed as `patchbay`."""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

OURS = ("backends", "analyses", "organisms")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status (0 done, 1 crash, 2 configuration, 3 inert write, 4
    failed trials, 130 interrupted)."""
    shadow = shadowed_packages()
    if shadow is not None:
        print(shadow, file=sys.stderr)
        return 2
    # The matrices of the analyses are small: threads that wait for one another only cost.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Until something runs, objects are made and none become garbage: looking for it would take a twentieth.
    gc.disable()
    from runner.command import dispatch

    signal.signal(signal.SIGTERM, _stop)
    try:
        return dispatch(list(sys.argv[1:] if argv is None else argv))
    finally:
        gc.enable()


def shadowed_packages() -> str | None:
    """A sentence where a folder of the current directory stands before one of our packages, else None."""
    home = Path(__file__).resolve().parent.parent
    for name in OURS:
        spec = importlib.util.find_spec(name)
        places = (
            [Path(p).resolve() for p in (spec.submodule_search_locations or [])] if spec is not None else []
        )
        if not any(place.parent == home for place in places):
            found = places[0] if places else "nowhere"
            return (
                f"patchbay: the package '{name}' was expected in {home / name}, but Python finds it in "
                f"{found}. A folder named '{name}' in the current directory shadows it: run from another "
                "directory, or rename that folder."
            )
    return None


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
