"""What a run comes to: conditions, contrasts, gates and published figures, as one mapping and two files."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analyses.comparisons.as_published import naive_against_baseline, naive_between_arms
from analyses.comparisons.checks import checks
from analyses.comparisons.contrast import HOLM, Contrast
from analyses.comparisons.contrasts import MOST_CHECKED, contrasts
from analyses.comparisons.exploratory import exploratory
from analyses.comparisons.margins import SuggestedMargin, margin_of
from analyses.comparisons.repeats import by_repeat
from analyses.comparisons.trends import trends
from analyses.findings.findings import findings
from analyses.gates.all_gates import all_gates
from analyses.gates.receipts import Receipt, receipts
from analyses.published.recompute import published_rows
from analyses.statistics.describe import describe
from analyses.studies.studies import plain_study, studies
from analyses.summary.markdown import to_markdown
from analyses.summary.staged import of_stages, plain_finding
from analyses.tables.lookup import Lookup
from analyses.tables.run import SCORES, Run, conditions_of, ok_rows, value_columns
from analyses.tables.stages import stage_runs, staged
from analyses.wording import count, plural

Summary = dict[str, Any]
# What earlier versions left out: of a summary, and of each of its contrasts.
_SECTIONS = ("analyses",)
_EXPLORED = ("exploratory", "exploratory_sentence")
_MEASURED = ("correction", *_EXPLORED, "margin", "power", "checks", "trends", "repeats")
_OF_A_CONTRAST = ("role", "cross_checks", "cross_check_sentence", "sensitivity", "p_corrected", "margin")


def summarise(run: Run) -> Summary:
    """Everything that the reports show, as plain JSON values: no NaN, no infinity (both become null).

    `conditions` maps each name to its counts, words and one description per readout; `contrasts`, `checks`,
    `trends`, `repeats`, `gates` and `receipts` are lists; `published` is null or the block with the figures
    of this run computed the same way; `unfinished` is null or one sentence on the trials that have not ended.
    `findings` are there where the experiment declares any; `analyses` lists those that it declares. A run
    with stages has besides what `summary.staged.of_stages` says, with a summary of this form for each stage.
    """
    if not staged(run.manifest):
        summary = _of_one(run)
        if run.manifest.get("findings"):
            summary["findings"] = [plain_finding(each) for each in findings(run)]
    else:
        stages = {name: _of_one(each) for name, each in stage_runs(run).items()}
        summary = _of_the_run(run) | of_stages(run, stages)
    summary["analyses"] = [plain_study(each) for each in studies(run)]
    plain = _plain(summary)
    assert isinstance(plain, dict)
    return plain


def _of_the_run(run: Run) -> Summary:
    """What a summary says of the run as a whole."""
    trials, manifest = run.trials, run.manifest
    return {
        "experiment": dict(manifest.get("experiment", {})),
        "status": manifest.get("status"),
        "unfinished": _unfinished(trials, manifest),
        "model": manifest.get("model"),
        "dtype": manifest.get("dtype"),
        "published": None,
        "prompts": _prompts(Lookup.of(trials), manifest),
        "counts": _counts(trials, manifest),
    }


def _of_one(run: Run) -> Summary:
    """The summary of a flat run, or of one stage."""
    trials, manifest = run.trials, run.manifest
    experiment = manifest.get("experiment", {})
    table = Lookup.of(trials)
    margin = margin_of(table, manifest)
    found = contrasts(table, manifest, control=margin)
    explored, on_explored = exploratory(table, manifest, found, MOST_CHECKED)
    options = manifest.get("contrasts", {})
    return {
        "experiment": dict(experiment),
        "status": manifest.get("status"),
        "unfinished": _unfinished(trials, manifest),
        "model": manifest.get("model"),
        "dtype": manifest.get("dtype"),
        "primary": options.get("primary", "score"),
        "baseline": options.get("baseline", "baseline"),
        "statistics": options.get("statistics", "paired_clustered"),
        "conditions": _conditions(table, manifest),
        "correction": options.get("correction", HOLM),
        "contrasts": [_contrast(each) for each in found],
        "exploratory": [asdict(each) for each in explored],
        "exploratory_sentence": on_explored,
        "margin": None if margin is None else _margin(margin),
        "power": manifest.get("power"),
        "checks": [asdict(each) for each in checks(trials, manifest)],
        "trends": [asdict(each) for each in trends(trials, manifest)],
        "repeats": [asdict(each) for each in by_repeat(trials, manifest)],
        "gates": [asdict(gate) for gate in all_gates(table, manifest)],
        "receipts": [_receipt(each) for each in receipts(table, manifest)],
        "published": _published(trials, manifest),
        "prompts": _prompts(table, manifest),
        "counts": _counts(trials, manifest),
    }


def lacks(summary: Mapping[str, Any]) -> list[str]:
    """The parts that an earlier version of patchbay left out of a stored summary; none of one that this
    version wrote."""
    parts = list((summary.get("stages") or {"": summary}).values())
    missing = [key for key in _SECTIONS if key not in summary]
    missing += [key for key in _MEASURED if any(key not in part for part in parts)]
    contrasts = [each for part in parts for each in part.get("contrasts") or ()]
    return missing + [key for key in _OF_A_CONTRAST if any(key not in each for each in contrasts)]


def write_summary(run: Run) -> Summary:
    """Write `summary.json` and `summary.md` into the run's folder, each whole or not at all; returns the
    summary."""
    summary = summarise(run)
    text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    _write(run.folder / "summary.json", text)
    _write(run.folder / "summary.md", to_markdown(summary))
    return summary


def _conditions(table: Lookup, manifest: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    held = {column: table.numbers(column) for column in value_columns(table.trials)}
    apart = table.by_condition
    for name in table.conditions(manifest):
        declared = manifest.get("conditions", {}).get(name, {})
        valid, statuses = apart.ok(name), apart.statuses(name)
        entry: dict[str, Any] = {
            "label": declared.get("label") or name,
            "words": list(declared.get("words") or ()),
            "n": len(valid),
            **{status: statuses.get(status, 0) for status in ("invalid", "failed", "pending")},
            "readouts": {},
        }
        for column, values in held.items():
            assert values is not None
            described = asdict(describe(values[valid]))
            if column not in SCORES[:1]:
                # The three shares are those of the published score; elsewhere the thresholds mean nothing.
                for share in ("strong", "moderate", "none"):
                    del described[share]
            entry["readouts"][column] = described
        found[name] = entry
    return found


def _contrast(each: Contrast) -> dict[str, Any]:
    test = asdict(each.test) if each.test is not None else {}
    flat = {
        "condition": each.condition,
        "against": each.against,
        "kind": each.kind,
        "readout": each.readout,
        "difference": test.get("mean"),
        **{
            key: test.get(key) for key in ("n", "sd", "se", "df", "t", "p", "ci_low", "ci_high", "confidence")
        },
        "p_holm": each.p_holm,
        "p_corrected": each.p_corrected,
        "correction": each.correction,
        "role": "primary",
        "family": each.family,
        "method": test.get("method"),
        "clusters": test.get("clusters"),
        "effective_n": test.get("effective_n"),
        "d_z_ddof1": each.d_z_ddof1,
        "d_z_ddof0": each.d_z_ddof0,
        "d_pooled_ddof1": each.d_pooled_ddof1,
        "icc": dict(each.icc),
        "detectable_80_percent_power": each.detectable,
        "margin": asdict(each.margin),
        "equivalence": asdict(each.equivalence) if each.equivalence is not None else None,
        "cross_checks": [asdict(check) for check in each.cross_checks],
        "cross_check_sentence": each.cross_check_sentence,
        "sensitivity": None if each.sensitivity is None else asdict(each.sensitivity),
        "exploratory": each.exploratory,
        "dropped": each.dropped,
        "note": each.note,
        "sentence": each.sentence,
    }
    if each.adjusted is not None:
        flat["adjusted"] = _adjusted(each)
    if each.naive is not None:
        flat["as_published"] = asdict(each.naive)
    return flat


def _margin(found: SuggestedMargin) -> dict[str, Any]:
    plain = asdict(found)
    return {"suggested": plain.pop("suggested"), "from": plain.pop("condition"), **plain}


def _adjusted(each: Contrast) -> dict[str, Any]:
    found = each.adjusted
    assert found is not None
    test = asdict(found.test) if found.test is not None else {}
    return {
        "covariates": list(found.covariates),
        "difference": test.get("mean"),
        **{key: test.get(key) for key in ("n", "se", "df", "t", "p", "ci_low", "ci_high", "effective_n")},
        "p_holm": each.adjusted_p_holm,
        "slopes": dict(found.slopes),
        "gaps": dict(found.gaps),
        "note": found.note,
        "sentence": each.adjusted_sentence,
    }


def _receipt(each: Receipt) -> dict[str, Any]:
    keep = ("site", "layers", "op", "value", "positions", "during", "expect")
    return {
        "condition": each.condition,
        "write": each.write,
        "spec": {key: each.spec[key] for key in keep if key in each.spec},
        "trials": each.trials,
        "phases": list(each.phases),
        "asked": dict(each.asked),
        "written": dict(each.written),
        "shadowed": dict(each.shadowed),
        "keys_ahead": each.keys_ahead,
        "relative_change": each.relative_change,
        "logit_change": each.logit_change,
    }


def _published(trials: pd.DataFrame, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    block = manifest.get("published")
    naive = manifest.get("contrasts", {}).get("statistics") == "as_published"
    if block is None and not naive:
        return None
    against = naive_against_baseline(trials, manifest) if naive else {}
    arms = naive_between_arms(trials, manifest) if naive else {}
    primary = manifest.get("contrasts", {}).get("primary", "score")
    return {
        "block": block,
        "rows": [] if block is None else [asdict(row) for row in published_rows(block)],
        "means": {
            name: float(ok_rows(trials, name)[primary].mean())
            for name in conditions_of(trials, manifest)
            if primary in trials.columns and ok_rows(trials, name)[primary].notna().any()
        },
        "this_run": {name: asdict(test) for name, test in against.items()},
        "between_arms": [{"condition": a, "against": b, **asdict(test)} for (a, b), test in arms.items()],
    }


def _unfinished(trials: pd.DataFrame, manifest: Mapping[str, Any]) -> str | None:
    """What a reader of a run with pending trials must know first."""
    pending = int((trials["status"] == "pending").sum())
    if pending == 0:
        return None
    status = manifest.get("status")
    word = (
        "interrupted" if status == "interrupted" else "still running" if status == "running" else "unfinished"
    )
    return f"{word}, {count(pending)} of {plural(len(trials), 'trial')} pending"


def _prompts(table: Lookup, manifest: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = dict(manifest.get("prompts") or {})
    if {"donor", "target"} <= set(table.trials.columns):
        _, donors, targets, pairs = table.distinct(table.items)
        found = {"distinct_donors": donors, "distinct_targets": targets, "distinct_pairs": pairs} | found
    return found


def _counts(trials: pd.DataFrame, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's counts, and those of the table, which stand where both count the same."""
    found: dict[str, Any] = dict(manifest.get("counts") or {})
    found["rows"] = len(trials)
    for status in ("ok", "invalid", "failed", "pending"):
        found[status] = int((trials["status"] == status).sum())
    if "origin" in trials.columns:
        found["reused"] = int(trials["origin"].notna().sum())
    return found


def _plain(value: Any) -> Any:
    """The same value in JSON's own types."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _write(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
