"""Whether conditions that are compared take the same path but for their writes: sampler, order of events, the
round trip through a sparse autoencoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from analyses.gates.gate import Gate
from analyses.tables.measured import generates
from analyses.tables.pairs import declared_pairs
from analyses.wording import listed

_Trip = tuple[str, str, str, str, str]


def path_gates(manifest: Mapping[str, Any]) -> list[Gate]:
    """`sampler`, `path` and `round_trip`: what else than the writes differs between compared conditions."""
    return [*_sampler(manifest), *_path(manifest), *_round_trip(manifest)]


def _sampler(manifest: Mapping[str, Any]) -> list[Gate]:
    """Conditions that sample differently from their baseline: the sampler is then part of the difference.
    Where nothing is generated, no sampler has a part in it."""
    if not generates(manifest):
        return []
    verbs = ("samples differently from", "sample differently from")
    return _differs(manifest, "sampler", verbs, lambda c: c.get("sampling", {}))


def _path(manifest: Mapping[str, Any]) -> list[Gate]:
    """Conditions whose forward path differs from the baseline's by more than their writes."""
    fields = ("replay_last_token", "recompute")
    verbs = ("takes another path than", "take another path than")
    return _differs(manifest, "path", verbs, lambda c: {f: c[f] for f in fields if f in c})


def _round_trip(manifest: Mapping[str, Any]) -> list[Gate]:
    """Comparisons in which one side passes through an SAE's reconstruction and the other does not: the
    reconstruction error is then part of the difference. An arm that passes through and leaves the
    features as they are is there to show that error, and raises no gate."""
    declared = manifest.get("conditions", {})
    trips = {name: _trips(condition) for name, condition in declared.items()}
    through = [name for name, condition in declared.items() if trips[name] and _leaves_features(condition)]
    alike: dict[tuple[str, str], list[str]] = {}
    for first, second, _ in declared_pairs(manifest):
        for arm, other in ((first, second), (second, first)):
            more = trips.get(arm, set()) - trips.get(other, set())
            if more and arm not in through:
                what = listed([f"{site} of layer {layers}" for _, site, layers, *_ in sorted(more)])
                found = alike.setdefault((other, what), [])
                found += [] if arm in found else [arm]
    gates = []
    same = "goes the same way and leaves the features as they are"
    for (other, what), arms in alike.items():
        twins = [name for name in through if all(trips[arm] <= trips[name] for arm in arms)]
        advice = (
            f"Compare with {' or '.join(twins)}, which {same}."
            if twins
            else f"Compare with an arm that {same} (op: scale, alpha: 1)."
        )
        sentence = (
            f"{listed(arms)} {'pass' if len(arms) > 1 else 'passes'} {what} through a sparse autoencoder and "
            f"back, {other} does not: the reconstruction error is part of what is compared, beside the "
            f"features. {advice}"
        )
        gates.append(Gate(arms[0], "round_trip", "warn" if twins else "fail", sentence))
    return gates


def _trips(condition: Mapping[str, Any]) -> set[_Trip]:
    """The round trips of a condition: SAE, site, layers, positions, phase."""
    found = set()
    for write in (condition.get("writes") or {}).values():
        if write.get("round_trip"):
            sae = write.get("features") or {}
            layers = ", ".join(str(layer) for layer in write.get("layers") or ())
            where = (str(write.get("positions")), str(write.get("during")))
            found.add((str(sae.get("fingerprint")), str(sae.get("site")), layers, *where))
    return found


def _leaves_features(condition: Mapping[str, Any]) -> bool:
    """Whether every write of a condition is a round trip that leaves the features as they are."""
    return all(
        write.get("round_trip") and _is_identity(write) for write in (condition.get("writes") or {}).values()
    )


def _is_identity(write: Mapping[str, Any]) -> bool:
    if write.get("op") == "scale":
        return bool(write.get("alpha") == 1)
    value = write.get("value")
    own = isinstance(value, Mapping) and value.get("kind") == "source" and value.get("role") == "self"
    return own and write.get("op") == "set_feature" and not {"layer", "under"} & set(value or ())


def _differs(
    manifest: Mapping[str, Any],
    gate: str,
    verbs: tuple[str, str],
    read: Callable[[Mapping[str, Any]], Mapping[str, Any]],
) -> list[Gate]:
    """One gate for all conditions that differ from the baseline in the same way, under the first of them.
    verbs: of one condition, of several."""
    declared, baseline = (
        manifest.get("conditions", {}),
        str(manifest.get("contrasts", {}).get("baseline", "baseline")),
    )
    if baseline not in declared:
        return []
    reference = read(declared[baseline])
    alike: dict[str, list[str]] = {}
    for condition, spec in declared.items():
        mine = read(spec)
        changed = [k for k in dict.fromkeys([*mine, *reference]) if mine.get(k) != reference.get(k)]
        if changed:
            parts = [
                f"{key} {_word(key, mine.get(key))}, not {_word(key, reference.get(key))}" for key in changed
            ]
            alike.setdefault("; ".join(parts), []).append(condition)
    return [
        Gate(
            names[0],
            gate,
            "warn",
            f"{listed(names)} {verbs[len(names) > 1]} {baseline} ({differences}): that is part of what is "
            "compared, beside the writes.",
        )
        for differences, names in alike.items()
    ]


def _word(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    # A temperature of 0 is greedy decoding; a top_k of 0 is no top-k at all.
    return "off" if value is None or (key == "top_k" and value == 0) else str(value)
