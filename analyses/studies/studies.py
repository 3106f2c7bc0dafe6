"""Every declared analysis of a run: what each kind finds, corrected and in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from analyses.statistics.corrections import holm
from analyses.studies.aligned import Source
from analyses.studies.decomposition import decomposition
from analyses.studies.interaction import interaction
from analyses.studies.localisation import localisation
from analyses.studies.predictors import predictors
from analyses.studies.share import share
from analyses.studies.specificity import specificity
from analyses.studies.study import NoStudy, Outcome, Study
from analyses.studies.variance import variance
from analyses.studies.words import notes
from analyses.tables.lookup import Lookup
from analyses.tables.run import Run
from analyses.tables.stages import MEASURE, flat_name, left_out, sections, stage_runs, staged
from analyses.wording import listed


@dataclass(frozen=True)
class Kind:
    """One kind of analysis. searches: it looks among many things, or describes; its tests are corrected by
    themselves whatever its readout."""

    make: Callable[[Source, Mapping[str, Any], str], Outcome]
    searches: bool


KINDS: Mapping[str, Kind] = {
    "interaction": Kind(interaction, False),
    "share": Kind(share, False),
    "specificity": Kind(specificity, False),
    "decomposition": Kind(decomposition, True),
    "predictors": Kind(predictors, True),
    "variance": Kind(variance, True),
    "localisation": Kind(localisation, True),
}


def studies(run: Run, lookups: Mapping[str, Lookup] | None = None) -> list[Study]:
    """The analyses that the manifest declares, in its order. Empty where there is none.

    All are exploratory, as their sentences say: the declared contrasts alone are the family that has
    verdicts. Tests of the primary readout of what was declared are corrected together by Holm, and one that
    could not be made counts; those of any other analysis are corrected by themselves. An analysis that
    cannot be made has no outcome, and its sentence says why. lookups: of the tables of stages, where they
    are at hand.
    """
    declared: Mapping[str, Mapping[str, Any]] = run.manifest.get("analyses") or {}
    if not declared:
        return []
    known = lookups or {}
    sources = {
        stage: Source(known.get(stage) or Lookup.of(each.trials), each.manifest)
        for stage, each in stage_runs(run).items()
    }
    opened = [_opened(run, sources, name, spec) for name, spec in declared.items()]
    joint = [p for each in opened if each.joint for p in _tests(each)]
    corrected = iter(holm(joint))
    closed = []
    for each in opened:
        own = _tests(each)
        if each.joint:
            p_holm, family = tuple(next(corrected) for _ in own), len(joint)
        else:
            p_holm, family = tuple(holm(own)), len(own)
        closed.append(_closed(each, p_holm, family))
    return closed


def plain_study(study: Study) -> dict[str, Any]:
    """A study in plain data: the fields that every kind has, then those of its own."""
    shared = ("name", "kind", "label", "stage", "readout", "exploratory", "sentence", "note")
    found: dict[str, Any] = {key: getattr(study, key) for key in shared}
    found["table"] = {"columns": list(study.table.columns), "rows": [list(row) for row in study.table.rows]}
    found |= {"p_holm": list(study.p_holm), "family": study.family, "result": None}
    if study.outcome is not None:
        found["result"] = asdict(study.outcome)  # type: ignore[call-overload]
    return found


def _tests(study: Study) -> tuple[float | None, ...]:
    return () if study.outcome is None else study.outcome.p_values


def _opened(run: Run, sources: Mapping[str, Source], name: str, spec: Mapping[str, Any]) -> Study:
    kind = str(spec.get("kind"))
    label = str(spec.get("label") or name)
    stage = _stage(run, spec)
    study = Study(name, kind, label, stage, str(spec.get("readout") or ""))
    if kind not in KINDS:
        return replace(study, note=f"expected one of {listed(list(KINDS))}, got '{kind}'")
    if stage is None or stage not in sources:
        return replace(study, note=_missing(run, stage))
    of = sources[stage]
    primary = str(of.manifest.get("contrasts", {}).get("primary", "score"))
    whole = spec["of"] if kind == "decomposition" else None
    readout = str(spec.get("readout") or whole or primary)
    joint = not KINDS[kind].searches and readout == primary
    study = replace(study, readout=readout, joint=joint)
    try:
        given = {key: value for key, value in spec.items() if value is not None}
        outcome = KINDS[kind].make(of, given, readout)
    except NoStudy as error:
        return replace(study, note=str(error))
    in_sample = str(of.manifest.get("in_sample") or "").rstrip(".")
    note = notes(outcome.note, f"in sample: {in_sample}" if in_sample else "")
    return replace(study, outcome=outcome, note=note)


def _closed(study: Study, p_holm: tuple[float | None, ...], family: int) -> Study:
    if study.outcome is None:
        return replace(study, sentence=f"{study.label}: no figure: {study.note}.")
    told = study.outcome.sentence(p_holm, family)
    sentence = f"{study.label} (exploratory): {told}"
    if "in sample: " in study.note:
        sentence += f" In sample: {study.note.partition('in sample: ')[2]}."
    table = study.outcome.table(p_holm)
    return replace(study, p_holm=p_holm, family=family, sentence=sentence, table=table)


def _stage(run: Run, spec: Mapping[str, Any]) -> str | None:
    """The stage that an analysis is of: the one that it names, or the only one that measures."""
    if spec.get("stage") is not None:
        return str(spec["stage"])
    if not staged(run.manifest):
        return flat_name(run.manifest)
    measuring = list(sections(run.manifest, MEASURE))
    return measuring[0] if len(measuring) == 1 else None


def _missing(run: Run, stage: str | None) -> str:
    if stage is None:
        return f"expected the stage that it is of: {listed(list(sections(run.manifest, MEASURE)))}"
    gone = left_out(run.manifest)
    return f"stage {stage} was left out: {gone[stage]}" if stage in gone else f"stage {stage} has nothing yet"
