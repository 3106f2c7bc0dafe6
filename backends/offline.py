"""Sentences for what could not be loaded, with what to do about it."""

from __future__ import annotations

from backends.contract import ModelSource

_UNREACHABLE = (
    "connect",
    "offline",
    "internet",
    "resolve",
    "cached",
    "locate",
    "network",
    "client has been closed",
)


def explain_missing(source: ModelSource, what: str, error: Exception) -> str:
    """One sentence for a failed load of the weights or the tokenizer.

    Tells apart: access refused, no network and nothing cached, a corrupt file, and anything else (first
    line kept).
    """
    text = str(error).strip()
    low = text.lower()
    where = source.path if source.path is not None else f"{source.hub_id} at revision {source.revision}"
    if "gated" in low or "401" in low or "403" in low:
        return (
            f"model '{source.name}': {where} is gated; ask for access on its page, then log in with "
            "`hf auth login`"
        )
    if type(error).__name__ == "SafetensorError" or "safetensor" in low or "header" in low:
        return f"model '{source.name}': the {what} in {where} is corrupt: {first_line(error)}"
    if source.path is None and any(word in low for word in _UNREACHABLE):
        return (
            f"model '{source.name}': the {what} of {where} is neither in the local cache nor reachable "
            "(no network?). Give a downloaded folder with +model.path=FOLDER, or use model=organism, which "
            "needs no network"
        )
    return f"model '{source.name}': the {what} of {where} could not be loaded: {first_line(error)}"


def first_line(error: Exception) -> str:
    """The first non-empty line of an error's message, or its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
