"""Two and more runs held against each other: paired on the items that they share, whatever their numbers."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analyses.runs.alignment import (
    IDENTITY,
    TEXTS,
    TOKENS,
    VALUES,
    AlignedStage,
    aligned,
    tokenizer_of,
)
from analyses.runs.compare_words import condition_sentence, effect_sentence, headline
from analyses.runs.comparison import Compared, Comparison, Effect, Example, Same, Side, Versus
from analyses.runs.differences import Operation, differences, operations, same_under_other_names
from analyses.runs.folders import run_name
from analyses.statistics.clusters import clustered_mean
from analyses.statistics.corrections import holm
from analyses.tables.lookup import Lookup
from analyses.tables.pairs import Paired, declared_pairs, pair
from analyses.tables.run import Run, older_schema, value_columns
from analyses.tables.stages import stage_runs, staged
from analyses.wording import count, listed, plural

EXAMPLES = 3  # texts of a condition that are shown side by side
_FINISHED = "done"
_NOT_MEASURED = (*IDENTITY, "output_ids", "text", "origin")
_HELD = {TOKENS: "output_ids", TEXTS: "text"}


class CompareError(ValueError):
    """What is asked of a comparison is in none of its runs; the message says what there is."""


def compare(
    runs: Sequence[Run],
    *,
    readout: str | None = None,
    conditions: Sequence[str] = (),
    names: Sequence[str] | None = None,
) -> Comparison:
    """Hold each run against the first, condition by condition, in one readout.

    Trials are paired on stage, condition, the bank ids of target and donor, the occurrence of that pair and
    repeat; the numbers of items do not matter. Tests are those of contrasts: the mean of second - first,
    clustered by the target and by every donor that the condition reads in either run, and the same of the
    difference of each contrast that either run declares. Holm runs over all tests of all runs together.

    readout: a column of one number; None: the primary one of the first run that both have. conditions: only
    these; none: all that are shared. names: what the runs are called, different ones; None: `name/v0001`.
    Raises CompareError for fewer than two runs, and for a readout or a condition that no run has.
    """
    if len(runs) < 2:
        raise CompareError(f"expected two or more runs, got {len(runs)}")
    names = _names(runs) if names is None else names
    _known(runs, readout, conditions)
    found = [
        _versus(runs[0], other, (names[0], name), readout, conditions)
        for other, name in zip(runs[1:], names[1:], strict=True)
    ]
    return _corrected([_side(run, name) for run, name in zip(runs, names, strict=True)], found)


def _names(runs: Sequence[Run]) -> list[str]:
    """What the runs are called: `name/v0001`, or the whole path where two would be called the same."""
    names = [run_name(run.folder) for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]


def _known(runs: Sequence[Run], readout: str | None, conditions: Sequence[str]) -> None:
    stages = [stage for run in runs for stage in stage_runs(run).values()]
    columns = dict.fromkeys(column for stage in stages for column in value_columns(stage.trials))
    named = dict.fromkeys(name for stage in stages for name in stage.trials["condition"].unique())
    asked = [("readout", readout, columns)] if readout is not None else []
    for what, word, known in (*asked, *(("condition", name, named) for name in conditions)):
        if word not in known:
            near = difflib.get_close_matches(str(word), list(known), n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise CompareError(f"no run has the {what} '{word}' ({', '.join(known)}){hint}")


def _side(run: Run, name: str) -> Side:
    manifest = run.manifest
    status = str(manifest.get("status") or "unknown")
    counted = {str(key): int(n) for key, n in run.trials["status"].value_counts().items()}
    older = older_schema(manifest)
    told = [] if older is None else [f"{name}: {older.removesuffix('.')}"]
    if pending := counted.get("pending", 0):
        word = "is still running" if status == "running" else "was not finished"
        told.append(f"{name} {word}: {count(pending)} of {plural(len(run.trials), 'trial')} are pending")
    elif status != _FINISHED:
        told.append(f"{name} has the status '{status}'")
    if failed := counted.get("failed", 0):
        told.append(f"{count(failed)} trials of {name} failed and are left out")
    experiment = manifest.get("experiment") or {}
    return Side(
        name=name,
        folder=str(run.folder),
        question=str(experiment.get("question") or ""),
        status=status,
        model=str((manifest.get("model") or {}).get("name") or "unknown"),
        dtype=str(manifest.get("dtype") or "unknown"),
        started=str((manifest.get("times") or {}).get("started") or ""),
        items=len(run.trials.drop_duplicates(["stage", "item"])),
        counts=counted,
        warning="; ".join(told) + "." if told else "",
        failing=_failing(run),
    )


def _failing(run: Run) -> tuple[str, ...]:
    """Sentences of the gates that fail, as the run's summary has them; none where there is no summary."""
    try:
        gates = json.loads((run.folder / "summary.json").read_text(encoding="utf-8"))["gates"]
        return tuple(
            f"{gate['condition']}: {gate['sentence']}" for gate in gates if gate["verdict"] == "fail"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def _versus(
    first: Run, second: Run, names: tuple[str, str], readout: str | None, wanted: Sequence[str]
) -> Versus:
    mine, theirs = stage_runs(first), stage_runs(second)
    notes: list[str] = []
    if tokenizer_of(first) != tokenizer_of(second):
        notes.append(
            "The models read with different tokenizers: items are paired by the ids that prompts have in "
            "their banks, and texts stand in for tokens."
        )
    alone = [*(f"{name} of {names[0]}" for name in mine if name not in theirs)]
    alone += [f"{name} of {names[1]}" for name in theirs if name not in mine]
    if alone:
        notes.append(f"Stages without a partner are left out: {listed(alone)}.")
    totals = np.zeros(4, dtype=int)
    compared: list[Compared] = []
    effects: list[Effect] = []
    meant: list[Operation] = []
    renamed: list[tuple[str, str]] = []
    only: tuple[list[str], list[str]] = ([], [])
    for name in (name for name in mine if name in theirs):
        prefix = f"{name}." if staged(first.manifest) or staged(second.manifest) else ""
        stage, items, said = aligned(name, mine[name], theirs[name], names, readout, prefix)
        totals += items
        notes += said
        meant += operations(name, *stage.manifests, names)
        renamed += same_under_other_names(*stage.manifests)
        only[0].extend(stage.told(c) for c in stage.first if c not in stage.second)
        only[1].extend(stage.told(c) for c in stage.second if c not in stage.first)
        kept = [c for c in stage.shared if not wanted or c in wanted]
        compared += [_condition(stage, condition) for condition in kept]
        if stage.readout is not None:
            effects += [_effect(stage, *each) for each in _contrasts(stage, kept)]
    shared, only_first, only_second, other_texts = totals.tolist()
    if not shared:
        notes.append(
            f"{names[0]} and {names[1]} share no item, so that nothing is paired and nothing is tested: the "
            "means are those of each run alone."
        )
    if other_texts:
        notes.append(
            f"{plural(other_texts, 'item')} of the same ids have prompts of other tokens in the two runs and "
            "are not paired."
        )
    return Versus(
        *names,
        shared=shared,
        only_first=only_first,
        only_second=only_second,
        other_texts=other_texts,
        conditions=tuple(compared),
        effects=tuple(effects),
        names_first=tuple(only[0]),
        names_second=tuple(only[1]),
        renamed=tuple(renamed),
        operations=tuple(meant),
        differences=tuple(differences(first.manifest, second.manifest)),
        notes=tuple(notes),
    )


def _contrasts(stage: AlignedStage, kept: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The contrasts that either run declares, of conditions that both have."""
    found = dict.fromkeys(
        (each.condition, each.against) for manifest in stage.manifests for each in declared_pairs(manifest)
    )
    shared = set(stage.shared)
    for condition, against in found:
        if condition in kept and {condition, against} <= shared:
            yield condition, against


def _condition(stage: AlignedStage, condition: str) -> Compared:
    rows = [side[condition] for side in (stage.first, stage.second)]
    valid = [each[each["status"] == "ok"] for each in rows]
    merged = _side_by_side(valid, stage)
    readout, test, note = stage.readout, None, ""
    described: list[tuple[int, float | None, float | None]] = [(len(each), None, None) for each in valid]
    if readout is not None:
        described = [_described(each[readout]) for each in valid]
        paired = _across(stage, condition, rows)
        if len(paired.first):
            test, note = paired.test(), paired.dropped
            # The means that the difference is one of; n is that of each run.
            sides = (described[0][0], paired.second), (described[1][0], paired.first)
            described = [(n, *_described(pd.Series(values))[1:]) for n, values in sides]
    return Compared(
        stage=stage.name,
        condition=stage.told(condition),
        readout="" if readout is None else readout,
        n_first=described[0][0],
        mean_first=described[0][1],
        sd_first=described[0][2],
        n_second=described[1][0],
        mean_second=described[1][1],
        sd_second=described[1][2],
        test=test,
        same=_same(merged, stage),
        examples=_examples(merged, readout),
        note="; ".join(filter(None, (note.removesuffix("."), "" if test is None else test.note))),
    )


def _across(stage: AlignedStage, condition: str, rows: Sequence[pd.DataFrame]) -> Paired:
    """A condition of the second run paired with that of the first."""
    assert stage.readout is not None
    labels = [f"{condition} in {name}" for name in stage.names]
    both = pd.concat(
        [each.assign(condition=label) for each, label in zip(rows, labels, strict=True)], ignore_index=True
    )
    known = {
        label: (manifest.get("conditions") or {}).get(condition, {})
        for label, manifest in zip(labels, stage.manifests, strict=True)
    }
    return pair(both, labels[1], labels[0], stage.readout, known)


def _effect(stage: AlignedStage, condition: str, against: str) -> Effect:
    assert stage.readout is not None
    # Prompts have one number in a table: in two, those of one run would be taken for others of the other.
    rows, known = [], {}
    for name, side, manifest in zip(stage.names, (stage.first, stage.second), stage.manifests, strict=True):
        for arm in (condition, against):
            label = f"{arm} in {name}"
            rows.append(side[arm].assign(condition=label))
            known[label] = (manifest.get("conditions") or {}).get(arm, {})
    table = Lookup.of(pd.concat(rows, ignore_index=True))
    within = [
        pair(table, f"{condition} in {name}", f"{against} in {name}", stage.readout, known)
        for name in stage.names
    ]
    gaps = [pd.Series(each.difference, index=each.target.index) for each in within]
    both = gaps[0].to_frame("first").join(gaps[1].rename("second"), how="inner")
    donors: dict[str, pd.Series] = {}
    for paired in within:
        for role, labels in paired.donors.items():
            donors.setdefault(role, labels.loc[both.index])
    test = None
    if len(both):
        read = {role: labels for role, labels in donors.items() if labels.notna().any()}
        test = clustered_mean(
            (both["second"] - both["first"]).to_numpy(dtype=float),
            donor=read or None,
            target=within[0].target.loc[both.index],
        )
    first, second = (float(both[key].mean()) if len(both) else None for key in ("first", "second"))
    return Effect(
        stage=stage.name,
        condition=stage.told(condition),
        against=stage.told(against),
        readout=stage.readout,
        effect_first=first,
        effect_second=second,
        test=test,
        note="no trial is valid in all four" if test is None else test.note,
    )


def _described(values: pd.Series) -> tuple[int, float | None, float | None]:
    """Number, mean and standard deviation (ddof 1) of the values that there are."""
    held = pd.to_numeric(values, errors="coerce").dropna()
    n = len(held)
    return n, float(held.mean()) if n else None, float(held.std(ddof=1)) if n > 1 else None


def _side_by_side(valid: Sequence[pd.DataFrame], stage: AlignedStage) -> pd.DataFrame:
    """Valid trials that both runs have of a condition, columns of the first and the second."""
    wanted = ["item", "repeat", *IDENTITY, "output_ids", "text", "origin"]
    held = [
        each[[c for c in dict.fromkeys((*wanted, *_measured(valid, stage))) if c in each.columns]]
        for each in valid
    ]
    return held[0].merge(held[1], on=["item", "repeat"], suffixes=("|first", "|second"))


def _measured(valid: Sequence[pd.DataFrame], stage: AlignedStage) -> list[str]:
    """The columns of one number that both have, where no text tells whether trials are the same; else the
    readout alone."""
    if stage.what != VALUES:
        return [] if stage.readout is None else [stage.readout]
    columns = [value_columns(each) for each in valid]
    return [column for column in columns[0] if column in columns[1]]


def _origins(merged: pd.DataFrame, side: str, folder: Path) -> pd.Series | None:
    """The folder of the run that computed each trial; None in a table that does not say."""
    column = f"origin|{side}"
    if column not in merged.columns:
        return None
    root = folder.parent.parent  # rows are taken over between versions of one experiment
    return merged[column].fillna(run_name(folder)).map(lambda name: str(root / name))


def _same(merged: pd.DataFrame, stage: AlignedStage) -> Same:
    first, second = (
        _origins(merged, side, folder)
        for side, folder in zip(("first", "second"), stage.folders, strict=True)
    )
    copied = 0 if first is None or second is None else int((first == second).sum())
    column = _HELD.get(stage.what)
    if column is None:
        columns = [c for c in merged.columns if c.partition("|")[0] not in _NOT_MEASURED]
        mine, theirs = (
            merged[[c for c in columns if c.endswith(f"|{side}")]].to_numpy(dtype=float)
            for side in ("first", "second")
        )
        alike = ((mine == theirs) | (np.isnan(mine) & np.isnan(theirs))).all(axis=1)
    elif f"{column}|first" in merged.columns:
        pairs = zip(merged[f"{column}|first"], merged[f"{column}|second"], strict=True)
        alike = np.array([_equal(one, other) for one, other in pairs], dtype=bool)
    else:
        return Same(stage.what, 0, 0, copied)
    return Same(stage.what, int(alike.sum()), len(alike), copied)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, str) or one is None:
        return bool(one == other)
    return len(one) == len(other) and bool(np.array_equal(one, other))


def _examples(merged: pd.DataFrame, readout: str | None) -> tuple[Example, ...]:
    if readout is None or "text|first" not in merged.columns or f"{readout}|first" not in merged.columns:
        return ()
    moved = (merged[f"{readout}|second"] - merged[f"{readout}|first"]).abs()
    order = moved[moved > 0].sort_values(ascending=False, kind="stable").index[:EXAMPLES]
    return tuple(
        Example(
            target=str(row["target|first"]),
            donor=str(row["donor|first"]),
            repeat=int(row["repeat"]),
            first=float(row[f"{readout}|first"]),
            second=float(row[f"{readout}|second"]),
            text_first=str(row["text|first"] or ""),
            text_second=str(row["text|second"] or ""),
        )
        for _, row in merged.loc[order].iterrows()
    )


def _corrected(sides: Sequence[Side], found: Sequence[Versus]) -> Comparison:
    """Everything with its p corrected over all tests, and its sentence."""
    tests = [each for one in found for each in one.tests]
    p_values = holm([None if each.test is None else each.test.p for each in tests])
    corrected = dict(zip(map(id, tests), p_values, strict=True))
    closed = []
    for one in found:
        names = (one.first, one.second)
        conditions = [replace(each, p_holm=corrected.get(id(each))) for each in one.conditions]
        effects = [replace(each, p_holm=corrected.get(id(each))) for each in one.effects]
        whole = replace(
            one,
            conditions=tuple(replace(each, sentence=condition_sentence(each, names)) for each in conditions),
            effects=tuple(replace(each, sentence=effect_sentence(each, names)) for each in effects),
        )
        closed.append(replace(whole, headline=headline(whole)))
    return Comparison(tuple(sides), tuple(closed), len(tests))
