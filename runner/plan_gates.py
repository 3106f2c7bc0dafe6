"""Gates that the plan alone decides, before anything runs: what the readouts cannot see of the writes, and
where they read nothing but what was written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from backends.rowplan import RowPlan, plan_row
from backends.writes import Write
from runner.config.readouts.readout import LAYERED, Readout, leaves
from runner.config.resolve import Condition, Design
from runner.config.writes.features import unreached_values
from runner.plan import Plan, Trial
from runner.reach import flow_of, overwrites, written_positions
from runner.readings import Meeting, layers_in_words, meetings, reached, states_in_words

# Readout -> layer that it reads (None: no layer in particular) -> whether a write gets there in any trial.
Reach = dict[str, dict[int | None, bool]]
_NAMES = "{conditions}"


@dataclass(frozen=True)
class _Case:
    """A condition with the rows of its trials, one for each pattern of positions."""

    condition: Condition
    rows: tuple[tuple[Trial, RowPlan], ...]


@dataclass
class _Gates:
    """Sentences, each once, with the conditions that it holds for, and the write of each that it is about."""

    found: dict[tuple[str, str, str], dict[str, list[str]]] = field(default_factory=dict)

    def add(self, gate: str, verdict: str, sentence: str, condition: str, write: str = "") -> None:
        """sentence: with _NAMES where conditions are to stand, each after its write where one is given."""
        self.found.setdefault((gate, verdict, sentence), {}).setdefault(write, []).append(condition)

    def told(self) -> list[dict[str, str]]:
        """One gate for every sentence, under the first of its conditions."""
        return [
            {
                "condition": next(iter(writes.values()))[0],
                "gate": gate,
                "verdict": verdict,
                "sentence": sentence.replace(_NAMES, _subjects(writes)),
            }
            for (gate, verdict, sentence), writes in self.found.items()
        ]


def _subjects(writes: Mapping[str, Sequence[str]]) -> str:
    """ "a and b" of conditions alone, "v and w in a and b" of writes of the same conditions."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for write, conditions in writes.items():
        alike.setdefault(tuple(conditions), []).append(write)
    return _listed(
        [
            f"{_listed(names)} in {_listed(conditions)}" if names != [""] else _listed(conditions)
            for conditions, names in alike.items()
        ]
    )


def plan_gates(design: Design, plan: Plan) -> list[dict[str, str]]:
    """The gates of a plan, as the manifest keeps them.

    `reach`: a write that acts in no trial on anything that a readout reads (fail; expected, where the write
    is expected to be inert); a readout that no write of a condition gets to (fail where the contrasts are
    about it, else warn); which entries of a readout with one for each layer can differ at all (expected).
    `tautology`: a readout of the very tensor that a write replaces (fail where that is all it reads, else
    warn). `feature_value`: a feature that is set to a value that it never takes on (warn).
    """
    gates, layers = _Gates(), _Gates()
    firsts = _first_of_patterns(plan)
    for condition in design.conditions:
        case = _Case(condition, _patterns(plan, firsts.get(condition.name, ())))
        if condition.writes and case.rows:
            reach = {write.name: _reach(write, case, design) for write in condition.writes}
            _out_of_reach(gates, case, reach, design)
            if condition.weights is None:  # changed weights can show in every entry
                _entries(layers, case, reach, design)
            _tautologies(gates, case, design)
        for write in condition.writes:
            for sentence in unreached_values(write):
                gates.add("feature_value", "warn", f"{_NAMES}: {sentence}", condition.name, write.name)
    return [*gates.told(), *_entries_told(layers)]


def _first_of_patterns(plan: Plan) -> dict[str, list[int]]:
    """Condition -> the first trial that can run of each pattern of what is read and written."""
    held = plan.ledger
    rows = np.flatnonzero(held.runnable & (held.repeat == 0))
    patterns = int(held.pattern.max(initial=0)) + 1
    pairs = held.condition[rows].astype(np.int64) * patterns + held.pattern[rows]
    found: dict[str, list[int]] = {}
    for row in np.sort(rows[np.unique(pairs, return_index=True)[1]]).tolist():
        found.setdefault(held.conditions[int(held.condition[row])], []).append(row)
    return found


def _patterns(plan: Plan, rows: Sequence[int]) -> tuple[tuple[Trial, RowPlan], ...]:
    """Of trials those that differ in which positions are read or written."""
    found: dict[tuple[object, ...], tuple[Trial, RowPlan]] = {}
    for place in rows:
        trial = plan.trials[int(place)]
        row = plan_row(trial.row)
        writes = tuple(
            (
                None if item.prefill is None else item.prefill.target.tobytes(),
                None if item.keys is None else item.keys.tobytes(),
                None if item.slots is None else len(item.slots.target) > 0,
            )
            for item in row.writes
        )
        fixed = tuple(sorted((name, len(ids)) for name, ids in trial.continuations.items()))
        places = tuple(sorted(trial.positions.items()))
        key = (len(trial.row.ids), len(row.prefill_ids), row.slots, fixed, places, writes)
        found.setdefault(key, (trial, row))
    return tuple(found.values())


def _steps(readout: Readout, trial: Trial) -> int:
    """Decode forwards that a readout takes: one for each new token but the first, and the replayed token."""
    fixed = trial.continuations.get(readout.name, ())
    tokens = trial.row.sampling.max_new_tokens if readout.of_output else len(fixed)
    return tokens - 1 + trial.row.replay_last_token


def _reach(
    write: Write, case: _Case, design: Design, *, others: bool = True, everywhere: bool = False
) -> Reach:
    """What a write gets to, over all rows; a derived readout by way of those that it comes from. everywhere:
    as if it were at every position of the prompt."""
    found: Reach = {readout.name: {} for readout in design.measured}
    for trial, row in case.rows:
        flow = flow_of(row, write, design.model.layers, others=others, everywhere=everywhere)
        gets = {
            readout.name: reached(readout, row, trial.positions, flow, _steps(readout, trial))
            for readout in design.measured
            if readout.derivation is None
        }
        for readout in design.measured:
            for leaf, only in leaves(readout, design.measured):
                for layer, there in gets[leaf.name].items():
                    if only in (None, layer):
                        found[readout.name][layer] = found[readout.name].get(layer, False) or there
    return found


def _seen(reach: Mapping[int | None, bool]) -> bool:
    return any(reach.values())


def _out_of_reach(gates: _Gates, case: _Case, reach: Mapping[str, Reach], design: Design) -> None:
    """Writes that no readout sees, then readouts that see none of the others."""
    condition = case.condition
    live = []
    for write in condition.writes:
        if any(_seen(layers) for layers in reach[write.name].values()):
            live.append(write)
            continue
        verdict = "expected" if condition.expects.get(write.name) == "inert" else "fail"
        gates.add("reach", verdict, _dead_write(write, case, design), condition.name)
    # Changed weights can show in every readout.
    for readout in design.measured if live and condition.weights is None else ():
        if any(_seen(reach[write.name][readout.name]) for write in live):
            continue
        verdict = "fail" if design.contrasts.primary in readout.columns else "warn"
        causes = dict.fromkeys(_cause(write, readout, case, design) for write in live)
        sentence = (
            f"{readout.name} cannot show what the writes of {_NAMES} do: {'; '.join(causes)}. Its difference "
            "from the same prompt without them is 0 by construction."
        )
        gates.add("reach", verdict, sentence, condition.name)


def _dead_write(write: Write, case: _Case, design: Design) -> str:
    """The sentence on a write that no readout can show."""
    subject = f"{write.name} in {_NAMES}"
    if write.during == "decode":
        if design.decodes:
            return (
                f"{subject} acts in decode only, but the one new token is drawn from the last prompt token's "
                "logits, before any decode step: nothing measured can show it."
            )
        return (
            f"{subject} acts in decode only, and no readout takes a decode step "
            f"({_listed([readout.name for readout in design.measured])}): nothing measured can show it."
        )
    top = write.site != "kv_cache" and min(write.layers) == design.model.layers - 1
    causes = dict.fromkeys(_cause(write, readout, case, design) for readout in design.measured)
    if top and list(causes) == [_POSITIONS]:
        return (
            f"{subject} writes {write.tensor} of the last layer at positions before the last prompt token: "
            "no later position reads it, so that no readout can show it."
        )
    return f"No readout can show what {subject} does: {'; '.join(causes)}."


def _states(readout: Readout, design: Design) -> str:
    """What a readout reads, a derived one by way of others."""
    if readout.derivation is None:
        return states_in_words(readout)
    found = tuple(leaves(readout, design.measured))
    states = dict.fromkeys(states_in_words(_at_layer(leaf, layer)) for leaf, layer in found)
    names = dict.fromkeys(leaf.name for leaf, _ in found)
    return f"{_listed(list(states))} (by way of {_listed(list(names))})"


def _at_layer(readout: Readout, layer: int | None) -> Readout:
    if layer is None or readout.probe is None:
        return readout
    return replace(readout, probe=replace(readout.probe, layers=(layer,)))


_POSITIONS = "no position that is read depends on those written"


def _cause(write: Write, readout: Readout, case: _Case, design: Design) -> str:
    """Why a readout does not see a write, as a clause."""
    reads = f"{readout.name} reads {_states(readout, design)}"
    if write.during == "decode":
        return f"{write.name} acts in decode only, and {reads}, before any decode step"
    if write.site == "kv_cache":
        return f"{write.name} changes the cache after the prompt has been run, and {reads}, computed before"
    if not any(written_positions(row, write).any() for _, row in case.rows):
        if write.site == "attention_edge":
            return f"{write.name} cuts edges that do not exist, since no token sees a later one"
        return f"{write.name} is asked for no position of the prompt"
    if _seen(_reach(write, case, design, others=False)[readout.name]):
        rest = [other.name for other in case.condition.writes if other != write and overwrites(other)]
        return f"what {write.name} changes is overwritten by {_listed(rest)} before it is read"
    if _seen(_reach(write, case, design, others=False, everywhere=True)[readout.name]):
        return _POSITIONS
    where = layers_in_words(write.layers)
    return f"{reads}, which is computed before {write.name} ({write.tensor} of {where})"


def _entries(gates: _Gates, case: _Case, reach: Mapping[str, Reach], design: Design) -> None:
    """Of readouts with one entry for each layer, those of which some entries can differ and some cannot."""
    for readout in design.measured:
        if readout.kind not in LAYERED:
            continue
        found: dict[int, bool] = {}
        for write in case.condition.writes:
            for layer, gets in reach[write.name][readout.name].items():
                if layer is not None:
                    found[layer] = found.get(layer, False) or gets
        can = tuple(layer for layer, gets in found.items() if gets)
        if can and len(can) < len(found):
            gates.add(readout.name, layers_in_words(tuple(found)), layers_in_words(can), case.condition.name)


def _entries_told(gates: _Gates) -> Iterable[dict[str, str]]:
    """One gate for each readout, under the first condition that it is about."""
    by_readout: dict[tuple[str, str], list[tuple[str, list[str]]]] = {}
    for (readout, read, can), writes in gates.found.items():
        by_readout.setdefault((readout, read), []).append((can, writes[""]))
    for (readout, read), parts in by_readout.items():
        told = _listed([f"{can} in {_listed(names)}" for can, names in parts])
        yield {
            "condition": parts[0][1][0],
            "gate": "reach",
            "verdict": "expected",
            "sentence": (
                f"{readout} has entries for {read}, of which the writes can change those of {told}. The "
                "others equal those without the writes, by construction."
            ),
        }


def _tautologies(gates: _Gates, case: _Case, design: Design) -> None:
    for write in case.condition.writes:
        if write.name in case.condition.expects:
            continue
        for readout in design.measured:
            found = [
                meeting
                for trial, row in case.rows
                for meeting in meetings(readout, row, trial.positions, write)
            ]
            if found:
                gates.add("tautology", *_tautology(write, readout, found), case.condition.name, write.name)


def _tautology(write: Write, readout: Readout, found: Sequence[Meeting]) -> tuple[str, str]:
    """Verdict and sentence on a readout of the tensor that a write changes. found: over all rows, not
    empty."""
    layers = tuple(sorted({meeting.layer for meeting in found}))
    tensor = (
        "the vector of logits"
        if write.tensor == "logits"
        else f"{found[0].site} of {layers_in_words(layers)}"
    )
    reads = f"{readout.name} reads {tensor}, which"
    every = () if readout.probe is None else readout.probe.layers
    # Of a readout with one entry for each layer, the other entries are none the worse.
    one_of_many = readout.kind in LAYERED and len(layers) < len(every)
    if not overwrites(write):
        how = "changed in place" if write.heads is None else "changed for some heads"
        return "expected" if one_of_many else "warn", (
            f"{reads} is {how} by {_NAMES}: what is measured there is the write's own arithmetic beside the "
            "model's answer to it."
        )
    done = "set to zero" if write.op == "zero" else "replaced"
    lost = [meeting for meeting in found if meeting.written < meeting.read]
    if lost:
        least = min(lost, key=lambda meeting: meeting.written / meeting.read)
        return "warn", (
            f"{reads} is {done} by {_NAMES} at {least.written} of the {least.read} positions read: part of "
            "what is measured there is what was written."
        )
    return "warn" if one_of_many else "fail", (
        f"{reads} is {done} by {_NAMES}: what is measured there is what was written, whatever the model does "
        "with it (a tautology)."
    )


def _listed(names: Sequence[str]) -> str:
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"
