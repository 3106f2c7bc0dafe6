"""What stands first: the question, the facts of the run in one line, what to know before reading on, and what
was found, in sentences."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from analyses.findings.tables import interval_told, left_out_sentences, value_told
from analyses.report.evidence import worst
from analyses.report.page import Section
from analyses.report.parts import Banner, Sentence, folded, head, heading, paragraph, sentences, together
from analyses.summary.folding import fold_contrasts
from analyses.summary.markdown_contrasts import with_note
from analyses.tables.run import Run, older_schema
from analyses.wording import count, listed, plural

ALPHA = 0.05
_AT_ONCE = 12  # sentences that are shown before the rest is folded
# Where the figures behind a claim begin: the first bracket that has an interval or a number of pairs in it.
_BASIS = re.compile(r" \((?=[^()]*(?:CI |pairs?\b))")
_VERSION = re.compile(r"v\d{4,}")
_DONE = ("done", "finished", "complete")


def opening(run: Run, summary: Mapping[str, Any]) -> Markup:
    """The head of the report."""
    experiment = summary["experiment"]
    name = str(experiment.get("name") or "experiment")
    folder = run.folder.resolve().name
    eyebrow = f"{name}/{folder}" if _VERSION.fullmatch(folder) else name
    return head(eyebrow, str(experiment.get("question") or name), facts(run, summary), banners(run, summary))


def facts(run: Run, summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The run in one line: model, precision, size, date, how it ended."""
    manifest, counts, prompts = run.manifest, summary["counts"], summary["prompts"]
    model = summary["model"] or {}
    told = [("model", str(model.get("name") or "not recorded"))]
    if summary["dtype"]:
        told.append(("dtype", str(summary["dtype"])))
    items = prompts.get("items") or len(run.trials.drop_duplicates(["stage", "item"]))
    told.append(("items", count(items)))
    told.append(("trials", count(counts["rows"])))
    if "stages" not in summary and prompts.get("distinct_donors") and prompts.get("distinct_targets"):
        distinct = f"{count(prompts['distinct_donors'])} \u00d7 {count(prompts['distinct_targets'])}"
        told.append(("donors \u00d7 targets", distinct))
    times = manifest.get("times") or {}
    started = str(times.get("finished") or times.get("started") or "")
    if started:
        told.append(("date", started[:10]))
    told.append(("status", str(summary["status"] or "not recorded")))
    version = (manifest.get("packages") or {}).get("patchbay")
    commit = str((manifest.get("git") or {}).get("commit") or "")[:7]
    if version or commit:
        told.append(("patchbay", f"{version} ({commit})" if version and commit else str(version or commit)))
    told.append(("gates", worst(summary) or "none"))
    return told


def banners(run: Run, summary: Mapping[str, Any]) -> list[Banner]:
    """What a reader must know before any figure: an unfinished run, failed trials, failed gates, an older
    form of the folder."""
    manifest, counts = run.manifest, summary["counts"]
    found = []
    if summary["unfinished"]:
        word = str(summary["unfinished"])
        again = "; resume=true goes on with it" if summary["status"] == "interrupted" else ""
        told = f"This page shows what had ended when it was made, and its figures will change{again}."
        found.append(Banner("warn", f"{word[:1].upper()}{word[1:]}.", told))
    elif summary["status"] not in (None, "failed", *_DONE):
        told = "All trials have ended, but the run was not closed; resume=true closes it."
        found.append(Banner("warn", f"Status: {summary['status']}.", told))
    if counts["failed"]:
        reasons = run.trials.loc[run.trials["status"] == "failed", "reason"].dropna()
        first = f"The first reason: {reasons.iloc[0]}. " if len(reasons) else ""
        word = f"{plural(counts['failed'], 'trial')} failed."
        told = f"{first}They are in no figure here; resume=true tries them again."
        found.append(Banner("fail", word, told))
    fails = [gate for gate in summary["gates"] if gate["verdict"] == "fail"]
    if fails:
        kinds = listed(sorted({str(gate["gate"]) for gate in fails}))
        link = Markup('<a href="#gates">Read them</a> before any figure.')
        word = f"{plural(len(fails), 'gate')} {'fails' if len(fails) == 1 else 'fail'}."
        found.append(Banner("fail", word, Markup("Of kind {}. {}").format(kinds, link)))
    for sentence in left_out_sentences(summary) if summary.get("left_out") else []:
        found.append(Banner("warn", "Left out.", sentence))
    older = older_schema(manifest)
    if older is not None:
        found.append(Banner("note", "Older form.", older))
    return found


def verdict_section(summary: Mapping[str, Any]) -> Section:
    """What was found: the findings that the experiment is for, else its comparisons, in the order in which
    they were declared. None is put first because of how it came out."""
    found = [_finding(each) for each in summary.get("findings") or []]
    bodies: list[Markup] = []
    if found:
        bodies.append(_shown(found))
    elif summary["contrasts"]:
        by_stage = summary.get("stages") or {"": summary}
        for name, stage in by_stage.items():
            if stage["contrasts"]:
                bodies += [heading(f"Stage {name}")] if name else []
                bodies.append(_shown(contrast_sentences(stage)))
    else:
        conditions = len(summary["conditions"])
        why = "there is one condition" if conditions == 1 else "no comparison was declared"
        bodies.append(paragraph(f"Nothing is compared: {why}."))
    for each in summary["checks"]:
        if each["verdict"] != "met":
            bodies.append(paragraph(f"Check {each['verdict']}: {each['sentence']}"))
    return Section("verdict", "What was found", together(*bodies))


def contrast_sentences(summary: Mapping[str, Any]) -> list[Sentence]:
    """The sentences of a summary's contrasts; a large grid has one for all of its cells."""
    single, of_grids = fold_contrasts(summary)
    warned = _warnings(summary["gates"])
    return [*(_contrast(each, warned) for each in single), *(Sentence(sentence) for sentence in of_grids)]


def _warnings(gates: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What a reader of a comparison must know of each condition: the gates that it fails, and writes that
    never acted although that was expected."""
    failing: dict[str, set[str]] = {}
    inert: dict[str, list[str]] = {}
    for gate in gates:
        condition = str(gate["condition"])
        if gate["verdict"] == "fail":
            failing.setdefault(condition, set()).add(str(gate["gate"]))
        elif gate["gate"] == "inert" and gate["verdict"] == "expected":
            inert.setdefault(condition, []).append(str(gate["sentence"]).partition(". ")[0])
    told = {name: f"\u2715 {name} fails a gate: {listed(sorted(found))}." for name, found in failing.items()}
    for name, inactive in inert.items():
        told[name] = " ".join(
            [*([told[name]] if name in told else []), *(f"Inert: {each}." for each in inactive)]
        )
    return told


def apart(sentence: str) -> tuple[str, str]:
    """A sentence as the clause that says what came out, and the figures that this rests on."""
    found = _BASIS.search(sentence)
    if found is None:
        return sentence, ""
    claim, rest = sentence[: found.start()], sentence[found.end() :]
    inside, _, after = rest.partition(")")
    basis = f"{inside}. {after.strip(' .')}".strip(" .") + "."
    return f"{claim.rstrip('.:')}.", f"{basis[:1].upper()}{basis[1:]}"


def _contrast(each: Mapping[str, Any], warned: Mapping[str, str]) -> Sentence:
    """warned: by condition, what a comparison with it has to say."""
    claim, basis = apart(with_note(each))
    for side in (each["condition"], each["against"]):
        if side in warned:
            basis = f"{warned[side]} {basis}".strip()
    p = each["p_corrected"] if each.get("p_corrected") is not None else each["p_holm"]
    if p is None:
        return Sentence(claim, basis)
    if p >= ALPHA:
        return Sentence(claim, basis, "\u25cb")
    if each["kind"] == "equivalence":
        return Sentence(claim, basis, "=")
    up = each["difference"] > 0
    return Sentence(claim, basis, "\u25b2" if up else "\u25bc", "up" if up else "down")


def _finding(each: Mapping[str, Any]) -> Sentence:
    label, sentence = str(each["label"]), str(each["sentence"])
    basis = sentence.removeprefix(f"{label}: ")
    if each["kind"] in ("choice", "artefact") and each["value"] is not None:
        basis = basis.partition(". ")[2]  # the value, which the claim has
    if each["value"] is None:
        return Sentence(f"{label}: none", basis)
    interval = interval_told(each)
    told = "" if interval == "-" else f", 95% CI {interval}"
    if each["note"] and str(each["note"]) not in sentence:
        basis = f"{basis} {each['note']}"
    return Sentence(f"{label}: {value_told(each)}{told}", basis.strip(), "\u2022")


def _shown(found: Sequence[Sentence]) -> Markup:
    """Sentences, those beyond the first ones folded."""
    if len(found) <= _AT_ONCE + 2:
        return sentences(found)
    rest = folded(f"{count(len(found) - _AT_ONCE)} more", sentences(found[_AT_ONCE:]))
    return together(sentences(found[:_AT_ONCE]), rest)
