"""How declared analyses read in `summary.md`: a sentence and a table for each, whatever its kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analyses.summary.markdown_published import markdown_table


def analyses_section(analyses: Sequence[Mapping[str, Any]], mark: str) -> list[str]:
    """Sentence, table and note of every analysis of a summary; mark: of the heading above."""
    lines = []
    for each in analyses:
        lines += [f"{mark}# {each['label']}", "", str(each["sentence"]), ""]
        if each["table"]["rows"]:
            lines += [*markdown_table(each["table"]["columns"], each["table"]["rows"]), ""]
        if each["note"] and each["result"] is not None:
            lines += [f"Note: {each['note']}.", ""]
    about = (
        "Analyses are outside of the declared family of contrasts, hence exploratory. Interactions and "
        "specificity in the primary readout are corrected together, by Holm; other tests within their "
        "analysis."
    )
    return [*lines, about]
