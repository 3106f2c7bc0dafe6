"""What a feature's word means: a number for each trial of a condition."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analyses.statistics.clusters import Floats
from analyses.studies.aligned import Source
from analyses.studies.naming import DONOR_LENGTH, GROUP, named
from analyses.studies.study import NoStudy
from analyses.tables.by_condition import Positions
from analyses.tables.lookup import OWN


def features(source: Source, rows: Positions, words: Sequence[str]) -> pd.DataFrame:
    """The features of some trials of one condition, a column for each; NaN where a trial has no value.

    A word is a column of the condition (`n_prompt`), one of another condition for the same item and repeat
    (`baseline.score`), `donor_length` (tokens of the item's donor) or `group` (a column of 0 and 1 for each
    group but the largest). Raises NoStudy for a word that is none of these.
    """
    found: dict[str, Floats] = {}
    for word in words:
        if word == GROUP and source.has(GROUP):
            found |= _groups(source.trials[GROUP].iloc[rows])
        elif word == DONOR_LENGTH and source.has("donor_ids"):
            found[word] = _donor_lengths(source, rows)
        elif source.has(word):
            found[word] = source.column(word)[rows]
        else:
            found[word] = _of_other(source, rows, word)
    return pd.DataFrame(found)


def _of_other(source: Source, rows: Positions, word: str) -> Floats:
    found = named(word, source.conditions)
    if found is None or not source.has(found[1]):
        raise NoStudy(f"{word} is no column of the table, nor of a condition as CONDITION.COLUMN")
    condition, column = found
    place = source.place(condition)[source.lookup.units.codes[rows]]
    values: Floats = np.where(place >= 0, source.column(column)[place], np.nan)
    return values


def _groups(labels: pd.Series) -> dict[str, Floats]:
    others = sorted(labels.value_counts().index[1:])
    return {f"{GROUP} {name}": (labels == name).to_numpy(dtype=np.float64) for name in others}


def _donor_lengths(source: Source, rows: Positions) -> Floats:
    roles = source.lookup.roles
    codes = roles.codes.get(OWN)
    if codes is None:
        return np.full(len(rows), np.nan)
    mine = codes[rows]
    lengths = {int(code): float(len(roles.tokens(int(code)))) for code in np.unique(mine[mine >= 0])}
    return np.array([lengths.get(int(code), np.nan) for code in mine])
