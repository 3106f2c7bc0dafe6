"""Sentences for files of a model that could not be loaded."""

from __future__ import annotations

from backends.contract import ModelSource


def explain_broken(source: ModelSource, what: str, error: Exception) -> str:
    """One sentence for weights or a tokenizer that do not load: a corrupt file, or the first line of the
    error."""
    low = str(error).lower()
    if "no file named" in low:
        return f"model '{source.name}': there are no {what} in {source.path}: {first_line(error)}"
    if type(error).__name__ == "SafetensorError" or "header" in low or "incomplete" in low:
        return f"model '{source.name}': the {what} in {source.path} are corrupt: {first_line(error)}"
    return f"model '{source.name}': the {what} in {source.path} could not be loaded: {first_line(error)}"


def first_line(error: Exception) -> str:
    """The first non-empty line of an error's message, or its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
