"""Which states each readout reads, and whether a write can change them or has put them there itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from backends.measures import Probe
from backends.rowplan import RowPlan
from backends.writes import Write
from runner.config.readouts.readout import LAYERED, Readout
from runner.reach import Flow, written_positions

# Read one next-token distribution, that of `position` or `at`.
_DISTRIBUTION = ("next_token", "log_odds", "rank", "accuracy", "top_k", "kl")
_LOGITS = "logits"


@dataclass(frozen=True)
class Meeting:
    """Where a readout reads the tensor that a write changes: its site and layer, how many positions it reads
    there, and how many of them the write changes."""

    site: str
    layer: int
    read: int
    written: int


def reached(
    readout: Readout, plan: RowPlan, places: Mapping[str, int], flow: Flow, steps: int
) -> dict[int | None, bool]:
    """Per layer that a readout reads (None where it reads none in particular), whether a write's flow gets
    there. places: the positions that the trial's words name; steps: decode forwards that the readout takes.

    Perplexity is the unpatched model's, of the text that came out: it is reached where the text is. A
    position outside the prompt counts as reached: such a row is invalid, and nothing is said of it.
    """
    prompt = len(plan.row.ids)
    probe = readout.probe
    if readout.of_output or probe is None or probe.kind == "logprob":
        return {None: bool(flow.logits[-1]) or (steps > 0 and flow.onward)}
    if probe.kind == "cross_entropy":
        return {None: bool(flow.logits[:-1].any())}
    found: dict[int | None, bool] = {}
    for site, layer, positions in _read(probe, places, prompt):
        inside = [p for p in positions if 0 <= p < prompt]
        state = flow.logits if site == _LOGITS else flow.at[site, layer]
        found[None if site == _LOGITS else layer] = len(inside) < len(positions) or bool(state[inside].any())
    return found


def meetings(readout: Readout, plan: RowPlan, places: Mapping[str, int], write: Write) -> list[Meeting]:
    """Where a readout reads the very tensor that a write changes in the prompt's forwards. places: the
    positions that the trial's words name.

    The output of a block is the input of the next: resid_post written at layer l is resid_pre read at l + 1.
    Read at the output of l, a write at the input of l + 1 is not there yet.
    """
    probe = readout.probe
    if readout.of_output or probe is None:
        return []
    written = written_positions(plan, write)
    spots = {(write.tensor, layer) for layer in write.layers}
    found = []
    for site, layer, positions in _read(probe, places, len(written)):
        same = {(site, layer)} | ({("resid_post", layer - 1)} if site == "resid_pre" else set())
        if (write.tensor == _LOGITS) if site == _LOGITS else (same & spots):
            inside = [p for p in positions if 0 <= p < len(written)]
            count = int(written[inside].sum())
            if count > 0:
                found.append(Meeting(site, layer, len(inside), count))
    return found


def states_in_words(readout: Readout) -> str:
    """What a readout reads: "v_proj at layers 1 and 7", "the next-token distribution"."""
    probe = readout.probe
    if probe is None:
        return "the generated text"
    if probe.kind == "perplexity":
        return "the generated text, under the model without any write"
    if probe.kind == "cross_entropy":
        return "the prompt's own next-token distributions"
    if probe.kind == "logprob":
        return "the distributions over its continuation"
    where = "" if probe.position == -1 else f" at the prompt's position {probe.position}"
    if probe.at:
        where = f" at {probe.at} of the prompt"
    if probe.kind in _DISTRIBUTION:
        return f"the next-token distribution{where}"
    site = probe.site if probe.kind == "geometry" else "resid_post"
    return f"{site} of {layers_in_words(probe.layers)}{where}"


def layers_in_words(layers: tuple[int, ...]) -> str:
    """ "layer 5", "layers 0 to 8", "layers 1, 4 and 7"."""
    found = [str(layer) for layer in sorted(layers)]
    if len(found) == 1:
        return f"layer {found[0]}"
    if len(found) > 2 and max(layers) - min(layers) == len(layers) - 1:
        return f"layers {found[0]} to {found[-1]}"
    return f"layers {', '.join(found[:-1])} and {found[-1]}"


def _read(probe: Probe, places: Mapping[str, int], prompt: int) -> Iterator[tuple[str, int, list[int]]]:
    """Every state that a probe of the prompt's forwards reads: site, layer (-1 of logits), positions."""
    at = probe.position if probe.position >= 0 else prompt + probe.position
    if probe.at:
        at = places[probe.at]
    if probe.kind in LAYERED:
        yield from (("resid_post", layer, [at]) for layer in probe.layers)
    elif probe.kind == "geometry":
        window = list(range(prompt - max(probe.windows), prompt))
        yield from ((probe.site, layer, window) for layer in probe.layers)
    elif probe.kind in _DISTRIBUTION:
        yield _LOGITS, -1, [at]
