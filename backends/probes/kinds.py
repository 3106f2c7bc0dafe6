"""Which probes there are: version, columns, what each needs, and what is wrong with one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from backends.contract import ModelInfo
from backends.measures import Probe, ProbeKind

# The version of each definition: raised whenever its values change. It is part of every result key.
VERSIONS: dict[ProbeKind, int] = {
    "next_token": 1,
    "log_odds": 1,
    "rank": 1,
    "accuracy": 1,
    "top_k": 1,
    "kl": 1,
    "lens": 1,
    "patchscope": 1,
    "cross_entropy": 1,
    "logprob": 1,
    "perplexity": 1,
    "geometry": 1,
}
ONE_TOKEN_SET: tuple[ProbeKind, ...] = (
    "next_token",
    "log_odds",
    "rank",
    "accuracy",
)  # undefined without tokens
AT_POSITION: tuple[ProbeKind, ...] = (
    "next_token",
    "log_odds",
    "rank",
    "accuracy",
    "top_k",
    "kl",
    "lens",
    "patchscope",
)  # read at `position`, or `at` a named one
PER_LAYER: tuple[ProbeKind, ...] = ("lens", "patchscope")
UNWRITTEN: tuple[ProbeKind, ...] = ("perplexity",)  # of the unpatched model: they have no receipts
# Sites whose rows geometry cannot compare: they are not rows of activations, one to a position and layer.
NO_ROWS = ("embed", "kv_cache", "attention_edge", "sae", "logits")


def columns(probe: Probe) -> tuple[str, ...]:
    """Names of the columns that a probe gives, in the order in which a table shows them."""
    name = probe.name
    if probe.kind == "top_k":
        return (f"{name}.ids", f"{name}.probs")
    if probe.kind in PER_LAYER:
        sets = (f"{name}.rank", f"{name}.prob") if probe.tokens else ()
        return (*sets, f"{name}.top")
    if probe.kind == "logprob":
        return (name, f"{name}.tokens")
    if probe.kind == "geometry":
        return (name, f"{name}.early", f"{name}.late", *(f"{name}.w{w}" for w in probe.windows[1:]))
    return (name,)


def faults(probes: Sequence[Probe], info: ModelInfo) -> list[str]:
    """Everything that keeps these probes from being measured in this model, a sentence each."""
    found = [
        f"probe '{probe.name}' ({probe.kind}): {fault}" for probe in probes for fault in _of(probe, info)
    ]
    counted = Counter(column for probe in probes for column in columns(probe))
    twice = sorted(column for column, count in counted.items() if count > 1)
    return found + [f"column '{column}' is given by more than one probe" for column in twice]


def _of(probe: Probe, info: ModelInfo) -> Iterator[str]:
    if not probe.name:
        yield "expected a name, which its column takes"
    known = VERSIONS[probe.kind]
    if probe.version != known:
        yield f"expected version {known}, got {probe.version}"
    if probe.kind in ONE_TOKEN_SET and not probe.tokens:
        yield "expected the name of a token set in `tokens`"
    if probe.at and probe.kind not in AT_POSITION:
        yield f"at: expected a probe of one position ({', '.join(AT_POSITION)})"
    elif probe.at and probe.position != -1:
        yield f"expected position or at, got {probe.position} and '{probe.at}'"
    if probe.kind == "top_k" and not 1 <= probe.top <= info.vocabulary:
        yield f"top: expected 1 to {info.vocabulary}, got {probe.top}"
    outside = [layer for layer in probe.layers if not 0 <= layer < info.layers]
    if outside:
        yield f"layers: expected 0 to {info.layers - 1}, got {', '.join(map(str, outside))}"
    if probe.kind in PER_LAYER and not probe.layers:
        yield "layers: expected at least one"
    if probe.kind in PER_LAYER and len(set(probe.layers)) < len(probe.layers):
        yield "layers: one is listed twice"
    if probe.kind == "patchscope":
        yield from _of_scope(probe, info)
    if probe.kind == "geometry":
        yield from _of_geometry(probe, info)


def _of_scope(probe: Probe, info: ModelInfo) -> Iterator[str]:
    scope = probe.scope
    if scope is None or not scope.ids:
        yield "scope: expected a prompt to write the state into"
        return
    length = len(scope.ids)
    if not -length <= scope.position < length:
        yield f"scope.position: expected {-length} to {length - 1}, got {scope.position}"
    if scope.layer is not None and not 0 <= scope.layer < info.layers:
        yield f"scope.layer: expected 0 to {info.layers - 1}, got {scope.layer}"
    strange = sorted({t for t in scope.ids if not 0 <= t < info.vocabulary})
    if strange:
        yield f"scope.ids: {', '.join(map(str, strange))} not in the vocabulary of {info.vocabulary}"


def _of_geometry(probe: Probe, info: ModelInfo) -> Iterator[str]:
    if len(set(probe.layers)) != 2 or len(probe.layers) != 2:
        yield f"layers: expected two different ones (early, late), got {list(probe.layers)}"
    if not probe.windows or min(probe.windows) < 2:
        yield f"windows: expected at least one, of 2 positions or more, got {list(probe.windows)}"
    elif len(set(probe.windows)) < len(probe.windows):
        yield f"windows: one is listed twice in {list(probe.windows)}"
    if probe.site in NO_ROWS or (info.sites and probe.site not in info.sites):
        has = ", ".join(site for site in info.sites if site not in NO_ROWS)
        yield f"site: expected one with a row to each position and layer ({has}), got {probe.site}"
