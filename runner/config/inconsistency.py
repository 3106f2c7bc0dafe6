"""What does not fit in a checked configuration, and where that is told."""

from __future__ import annotations

from dataclasses import dataclass

Key = tuple[str | int, ...]


@dataclass(frozen=True)
class Inconsistency:
    """What does not fit, and the key under which it is reported. rests_on: other keys that it was found with;
    where one of these is wrong itself, this says nothing."""

    key: Key
    message: str
    rests_on: tuple[Key, ...] = ()
