"""Whether a write did what it was asked to do: inert, shadowed, partial, expectation, keys ahead of the
query, a donor that ended first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analyses.gates.gate import Gate
from analyses.gates.identical import Outcomes
from analyses.gates.partial import partial_gates
from analyses.gates.receipts import Receipt, full_precision, inert_limit
from analyses.tables.lookup import Lookup
from analyses.wording import count, listed, plural, small

NOOP_FULL, NOOP_LOW = 1e-4, 1e-2
_LOGITS = "first logits that it acts on"


def write_gates(
    found: Sequence[Receipt], trials: pd.DataFrame | Lookup, manifest: Mapping[str, Any]
) -> list[Gate]:
    """The gates of every write. A condition without a valid trial is left to the gates of the design."""
    full = full_precision(manifest)
    gates: list[Gate] = []
    idle = any(receipt.spec.get("expect") == "noop" for receipt in found)
    outcomes = Outcomes.of(trials, manifest) if idle else None
    for receipt in found:
        if receipt.trials == 0:
            continue
        expected = receipt.spec.get("expect")
        if expected == "noop":
            gates += _noop(receipt, full, _same_outcomes(receipt.condition, outcomes, manifest))
        else:
            gates += _inert(receipt, inert_limit(manifest), expected == "inert")
        gates += _keys_ahead(receipt)
    # A write that is expected to be inert explains its own gaps.
    return gates + partial_gates([each for each in found if each.spec.get("expect") != "inert"])


def _inert(receipt: Receipt, limit: float, expected: bool) -> list[Gate]:
    dead = [sentence for phase in receipt.phases if (sentence := _never_fired(receipt, phase))]
    hidden = _shadowed(receipt)
    unchanged = _unchanged(receipt, limit)
    lost = all(receipt.live(phase) == 0 for phase in receipt.phases)
    if expected:
        if not lost and not unchanged:
            fired = f"{_written(receipt)}, relative change {small(receipt.change)}"
            sentence = f"{receipt.name} was expected to be inert and is not: {fired}."
            return [Gate(receipt.condition, "expect", "fail", sentence)]
        sentences = [*dead, *hidden.values(), *unchanged] or [f"{receipt.name} was asked nothing."]
        # Which phase fired does not matter to a write that is inert as a whole.
        name = "shadowed" if hidden and not dead else "inert"
        return [Gate(receipt.condition, name, "expected", _as_expected(sentences[0]))]
    gates = [Gate(receipt.condition, "inert", "fail", sentence) for sentence in dead]
    for phase, sentence in hidden.items():
        verdict = "warn" if receipt.live(phase) else "fail"
        gates.append(Gate(receipt.condition, "shadowed", verdict, sentence))
    if receipt.total > 0 and not lost:
        gates += [Gate(receipt.condition, "inert", "fail", sentence) for sentence in unchanged]
        if receipt.change is None:
            why = (
                "its relative change" if receipt.spec.get("has_old", True) else f"the change of the {_LOGITS}"
            )
            sentence = f"{receipt.name} wrote {_written(receipt)}, but {why} was not measured: not judged."
            gates.append(Gate(receipt.condition, "inert", "warn", sentence))
    return gates


def _noop(receipt: Receipt, full: bool, same: str) -> list[Gate]:
    """same: how often the outcomes equal the baseline's, for the sentence."""
    dead = [sentence for phase in receipt.phases if (sentence := _never_fired(receipt, phase))]
    if dead:
        more = " It was expected to fire and to change nothing."
        return [Gate(receipt.condition, "inert", "fail", sentence + more) for sentence in dead]
    hidden = {p: sentence for p, sentence in _shadowed(receipt).items() if receipt.live(p) == 0}
    if hidden:
        more = " A write of which nothing remains cannot show that it changes nothing."
        return [Gate(receipt.condition, "shadowed", "fail", sentence + more) for sentence in hidden.values()]
    if receipt.change is None:
        sentence = f"{receipt.name} was expected to change nothing, but its change was not measured."
        return [Gate(receipt.condition, "expect", "warn", sentence)]
    limit = NOOP_FULL if full else NOOP_LOW
    what = "relative change" if receipt.spec.get("has_old", True) else f"relative change of the {_LOGITS}"
    measured = f"{_written(receipt)}, {what} {small(receipt.change)}"
    if receipt.change > limit:
        sentence = (
            f"{receipt.name} was expected to change nothing and does: {measured} (at most {limit:g} allowed)."
        )
        return [Gate(receipt.condition, "expect", "fail", sentence)]
    sentence = f"{receipt.name} fired and changed nothing, as expected: {measured}{same}."
    return [Gate(receipt.condition, "expect", "expected", sentence)]


def _never_fired(receipt: Receipt, phase: str) -> str:
    if receipt.written[phase] > 0:
        return ""
    asked = receipt.asked[phase]
    if asked == 0:
        what = f"no position was asked of it in {plural(receipt.trials, 'trial')}"
    elif receipt.spec.get("site") == "attention_edge":
        what = f"none of the {plural(asked, 'query position')} asked had such an edge"
    else:
        what = f"0 of {plural(asked, 'position')} asked were written"
    return f"{receipt.name} never fired in {phase}: {what}.{_guard(receipt, phase)}"


def _guard(receipt: Receipt, phase: str) -> str:
    minimum = receipt.guard
    if minimum is None:
        return ""
    has = "decode has 1" if phase == "decode" else "prefill has as many as the prompt"
    return f" It fires only on outputs of >= {minimum} positions; {has}."


def _unchanged(receipt: Receipt, limit: float) -> list[str]:
    if receipt.total == 0 or receipt.change is None or receipt.change > limit:
        return []
    what = "values" if receipt.spec.get("has_old", True) else _LOGITS
    return [
        f"{receipt.name} wrote {_written(receipt)} and changed nothing: relative change of the {what} "
        f"{small(receipt.change)}, where more than {limit:g} counts as a change."
    ]


def _shadowed(receipt: Receipt) -> dict[str, str]:
    """Per phase in which positions were overwritten, the sentence."""
    rest = {phase: receipt.live(phase) for phase in receipt.phases}
    found = {}
    for phase in receipt.phases:
        lost, whole = receipt.shadowed[phase], receipt.written[phase]
        if lost == 0 or whole == 0:
            continue
        which = f"{count(lost)} of {count(whole)}" if rest[phase] else f"all {count(whole)}"
        how = "later" if phase == "prefill" else "by a later write of the same step"
        end = ""
        if not any(rest.values()):
            end = " Nothing that it wrote remained, so it counts as inert."
        elif not rest[phase]:
            end = f" It counts as inert in {phase}."
        found[phase] = (
            f"{receipt.name} is shadowed: {which} positions written in {phase} were overwritten {how}.{end}"
        )
    return found


def _keys_ahead(receipt: Receipt) -> list[Gate]:
    if receipt.keys_ahead == 0:
        return []
    sentence = (
        f"{receipt.name} leaves {plural(receipt.keys_ahead, 'key')} whose rotary position is ahead of the "
        f"query, in {count(receipt.trials_ahead)} of {plural(receipt.trials, 'trial')} "
        f"(rope: {receipt.spec.get('rope', 'keep')})."
    )
    return [Gate(receipt.condition, "keys_ahead", "warn", sentence)]


def _written(receipt: Receipt) -> str:
    parts = [f"{plural(receipt.written[phase], 'position')} in {phase}" for phase in receipt.phases]
    return listed(parts) if parts else plural(receipt.total, "position")


def _as_expected(sentence: str) -> str:
    return f"{sentence} This was expected."


def _same_outcomes(condition: str, outcomes: Outcomes | None, manifest: Mapping[str, Any]) -> str:
    """How often the outcomes equal the baseline's, where nothing but no-ops tells the two apart."""
    declared = manifest.get("conditions", {})
    baseline = manifest.get("contrasts", {}).get("baseline", "baseline")
    if outcomes is None or condition == baseline or not {condition, baseline} <= set(outcomes.conditions):
        return ""
    here, there = declared[condition], declared.get(baseline, {})
    idle = all(write.get("expect") in ("noop", "inert") for write in here.get("writes", {}).values())
    if (
        not idle
        or there.get("writes")
        or any(here.get(k) != there.get(k) for k in ("sampling", "prompt", "weights"))
    ):
        return ""
    shared, equal = outcomes.agreement(condition, baseline)
    what = outcomes.what.replace("output tokens", "outputs")
    return f"; its {what} equal those of {baseline} in {count(equal)} of {plural(shared, 'trial')}"
