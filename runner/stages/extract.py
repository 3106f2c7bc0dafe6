"""An extract stage: mean activations of prompts, or what chosen heads of another artefact write together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from analyses.runs.folders import versions
from backends.contract import Backend, OutOfMemory
from backends.rows import Row
from backends.writes import LAYERLESS, SELF, SEMANTICS_VERSION, Site
from runner.config.layers import resolve_layer
from runner.config.spec import Spec
from runner.config.stages.artefact_files import ArtefactError, as_bytes, described, read_artefact
from runner.config.stages.forms import MINUS, OF
from runner.config.stages.known import Artefact, Chosen, Plain
from runner.config.stages.spec import ExtractStageSpec
from runner.prepare import Prepared
from runner.results.store import atomic_write
from runner.stages.artefact_table import Sample, summary_table
from runner.stages.run import StagedRun

FOLDER = "artefacts"
_OF_PROMPTS = ("of", "minus", "items", "prompts", "banks")  # what an artefact made of another keeps of it
BATCH = 64  # prompts whose activations are held at once
BATCH_TOKENS = 8192


class NothingToExtract(Exception):
    """No item is left to take a mean over, which is a result; the message says why."""


@dataclass(frozen=True)
class _Read:
    """Activations of one prompt (its ids) of one item: [positions, layers, width], float32."""

    item: str
    group: str
    side: str
    prompt: tuple[int, ...]
    values: np.ndarray


def extract_stage(run: StagedRun, name: str, body: ExtractStageSpec, prepared: Prepared) -> Artefact:
    """Read the prompts of a stage, take the means, and write artefacts/NAME.safetensors and NAME.json.

    What an earlier version of the experiment extracted from the same inputs is taken over. Prompts that
    cannot be read are left out with their item, and counted. Raises NothingToExtract, and ArtefactError where
    prompts differ in the number of positions that are to be kept apart.
    """
    spec, info = prepared.design, prepared.backend.info
    kept, left_out = _items(prepared)
    if not kept:
        raise NothingToExtract(f"no item is left to extract '{name}' from{_why(left_out)}")
    layers = (0,) if body.site in LAYERLESS else _layers(prepared)
    sources = {
        "of": body.of,
        "minus": body.minus,
        "positions": body.positions,
        "each_position": body.each_position,
        "by": body.by,
        "norm": body.norm,
        "items": len(kept),
        "left_out": left_out,
        "prompts": [_identity(trials) for trials in kept.values()],
        "banks": {bank.name: bank.sha256 for bank in prepared.banks.values()},
    }
    key = _key(
        {
            "semantics": SEMANTICS_VERSION,
            "model": info.fingerprint,
            "tokenizer": prepared.tokenizer.fingerprint,
            "dtype": info.dtype,
            "attention": info.attention,
            "backend": spec.backend.name,
            "site": body.site,
            "layers": layers,
            **{key: value for key, value in sources.items() if key not in ("left_out", "banks")},
            "groups": [trials[0].group for trials in kept.values()] if body.by == "group" else [],
            "rows": [
                [(side, row.ids, sorted(row.spans.items())) for side, row in _rows(t)] for t in kept.values()
            ],
        }
    )
    taken = _known(run, name, key)
    if taken is not None:
        return taken
    reads = list(_activations(prepared.backend, kept, body, layers))
    groups = tuple(dict.fromkeys(read.group for read in reads)) if body.by == "group" else ("",)
    shapes = {read.values.shape[0] for read in reads}
    if len(shapes) > 1:
        raise ArtefactError(
            f"stage '{name}': {body.positions} has {min(shapes)} positions in one prompt and {max(shapes)} "
            "in "
            "another; each_position: true needs as many in all"
        )
    count = shapes.pop()
    positions = tuple(range(-count, 0)) if body.positions != "index:-1" else (-1,)
    if body.each_position:
        positions = _from_the_end(kept, body, count)
    samples = [
        Sample.of_reads([r for r in reads if group in ("", r.group)], OF, MINUS if body.minus else None)
        for group in groups
    ]
    vectors = np.stack([sample.vector() for sample in samples])  # [group, position, layer, width]
    table = summary_table(samples, groups, positions if body.each_position else (0,), layers)
    if body.norm == "unit":
        vectors = _unit(vectors, name)
    array, dims = _squeezed(vectors, body)
    artefact = Artefact(
        name=name,
        vectors=array.astype(np.float32),
        dims=dims,
        site=body.site,
        layers=() if body.site in LAYERLESS else layers,
        groups=groups if body.by == "group" else (),
        positions=positions if body.each_position else (),
        units="unit" if body.norm == "unit" else "activation",
        dtype=spec.dtype,
        model=info.name,
        model_fingerprint=info.fingerprint,
        tokenizer_fingerprint=prepared.tokenizer.fingerprint,
        sources=sources,
        key=key,
        table=tuple(_without_axes(row, dims) for row in table),
    )
    _write(run, artefact)
    told = f"{len(kept)} items" + (f", {sum(left_out.values())} left out" if left_out else "")
    run.speaker.say(f"{name}: {body.site} of {told}; {' x '.join(map(str, array.shape))} ({', '.join(dims)})")
    return artefact


def combine_stage(
    run: StagedRun,
    name: str,
    body: ExtractStageSpec,
    source: Artefact,
    heads: Chosen,
    spec: Spec,
    backend: Backend,
) -> Artefact:
    """The sum over chosen heads of what each writes to the residual stream when its output is the mean in an
    artefact of head_z: sum of z_h W_O[h] (Todd et al. 2023, section 2.3), [width] or [group, width].

    Raises ArtefactError for an artefact of another site, or a choice that names no heads or layers that the
    artefact does not have.
    """
    if source.site != "head_z" or "layer" not in source.dims or "position" in source.dims:
        raise ArtefactError(
            f"stage '{name}': expected an artefact of head_z at one position, '{source.name}' is of "
            f"{source.site}"
            f" ({', '.join(source.dims)})"
        )
    info = backend.info
    chosen = _heads_of(name, heads, spec)
    key = _key({"from": source.key, "heads": chosen, "through": body.through, "norm": body.norm})
    taken = _known(run, name, key)
    if taken is not None:
        return taken
    grouped = "group" in source.dims
    means = source.vectors if grouped else source.vectors[None]  # [group, layer, heads * head width]
    total = np.zeros((len(means), info.width), dtype=np.float64)
    for layer, head in chosen:
        if layer not in source.layers:
            raise ArtefactError(f"stage '{name}': '{source.name}' was not extracted at layer {layer}")
        columns = slice(head * info.head_width, (head + 1) * info.head_width)
        weight = backend.weight("o_proj", layer)[columns].astype(np.float64)
        total += means[:, source.layers.index(layer), columns].astype(np.float64) @ weight
    if body.norm == "unit":
        total = _unit(total, name)
    groups = source.groups if grouped else ("",)
    table = tuple(
        ({"group": group} if grouped else {})
        | {"norm": float(np.linalg.norm(row)), "resid_norm": None, "separation": None, "consistency": None}
        for group, row in zip(groups, total, strict=True)
    )
    artefact = replace(
        source,
        name=name,
        vectors=(total if grouped else total[0]).astype(np.float32),
        dims=("group", "width") if grouped else ("width",),
        site="attn_out",
        layers=(),
        positions=(),
        units="unit" if body.norm == "unit" else "activation",
        sources={
            **{name: told for name, told in source.sources.items() if name in _OF_PROMPTS},
            "from": source.name,
            "heads": [list(one) for one in chosen],
            "through": body.through,
        },
        key=key,
        table=table,
    )
    _write(run, artefact)
    run.speaker.say(f"{name}: the sum of {len(chosen)} heads of {source.name} through {body.through}")
    return artefact


def _heads_of(name: str, heads: Chosen, spec: Spec) -> list[tuple[int, int]]:
    found = []
    for cell in heads.cells:
        by_part = {axis.rpartition(".")[2]: value for axis, value in cell.items()}
        layer = by_part.get("layers", by_part.get("layer"))
        head = by_part.get("heads", by_part.get("head"))
        if layer is None or head is None:
            raise ArtefactError(
                f"stage '{name}': expected a choice over layers and heads, '{heads.name}' has {sorted(cell)}"
            )
        depth = resolve_layer(str(layer), spec.model.layers, spec.reference_depth, spec.model.landmarks)
        found.append((depth, int(str(head).removeprefix("q"))))
    return found


def _items(prepared: Prepared) -> tuple[dict[str, list[Any]], dict[str, int]]:
    """The trials of every item of which all prompts can be read, and how many items cannot, by reason."""
    by_item: dict[str, list[Any]] = {}
    for trial in prepared.plan.trials:
        by_item.setdefault(trial.item, []).append(trial)
    left_out: dict[str, int] = {}
    kept = {}
    for item, trials in by_item.items():
        reason = next((t.invalid for t in trials if t.invalid is not None), None)
        if reason is None:
            kept[item] = trials
        else:
            left_out[reason] = left_out.get(reason, 0) + 1
    return kept, left_out


def _rows(trials: Sequence[Any]) -> Iterator[tuple[str, Row]]:
    for trial in trials:
        yield trial.condition, replace(trial.row, writes=())


def _identity(trials: Sequence[Any]) -> list[str]:
    return [trials[0].donor, trials[0].target]


def _layers(prepared: Prepared) -> tuple[int, ...]:
    write = prepared.design.conditions[0].writes[0]
    return write.layers


def _activations(
    backend: Backend, kept: Mapping[str, Sequence[Any]], body: ExtractStageSpec, layers: tuple[int, ...]
) -> Iterator[_Read]:
    sites: list[tuple[Site, int]] = [(body.site, layer) for layer in layers]
    every = [(item, trial) for item, trials in kept.items() for trial in trials]
    every.sort(key=lambda pair: len(pair[1].row.ids))
    for batch in _batches(every):
        yield from _batch(backend, batch, sites, body)


def _batches(every: Sequence[tuple[str, Any]]) -> Iterator[list[tuple[str, Any]]]:
    batch: list[tuple[str, Any]] = []
    for pair in every:
        longest = len(pair[1].row.ids)
        if batch and (len(batch) >= BATCH or (len(batch) + 1) * longest > BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(pair)
    if batch:
        yield batch


def _batch(
    backend: Backend, batch: list[tuple[str, Any]], sites: Sequence[tuple[Site, int]], body: ExtractStageSpec
) -> Iterator[_Read]:
    rows = [replace(trial.row, writes=()) for _, trial in batch]
    try:
        captured = backend.capture(rows, sites)
    except OutOfMemory:
        if len(batch) == 1:
            raise
        half = len(batch) // 2
        yield from _batch(backend, batch[:half], sites, body)
        yield from _batch(backend, batch[half:], sites, body)
        return
    for (item, trial), found in zip(batch, captured, strict=True):
        at = list(_positions(trial))
        values = np.stack([found.activations[site][at] for site in sites], axis=1)
        if not body.each_position:
            values = values.mean(axis=0, dtype=np.float64, keepdims=True)
        group = trial.group if body.by == "group" else ""
        yield _Read(item, group, trial.condition, trial.row.ids, values.astype(np.float32))


def _positions(trial: Any) -> range:
    positions = trial.row.writes[0].positions
    found: range = positions.resolve(len(trial.row.ids), trial.row.spans_of(SELF))
    return found


def _from_the_end(kept: Mapping[str, Sequence[Any]], body: ExtractStageSpec, count: int) -> tuple[int, ...]:
    """Positions from the last token, where they are the same in every prompt; else the places in the span,
    from its end."""
    found = {
        tuple(at - len(trial.row.ids) for at in _positions(trial))
        for trials in kept.values()
        for trial in trials
    }
    return found.pop() if len(found) == 1 else tuple(range(-count, 0))


def _squeezed(vectors: np.ndarray, body: ExtractStageSpec) -> tuple[np.ndarray, tuple[str, ...]]:
    """Without the axes that the stage does not keep apart."""
    kept = {
        "group": body.by == "group",
        "position": body.each_position,
        "layer": body.site not in LAYERLESS,
        "width": True,
    }
    array = vectors
    for axis, dim in reversed(list(enumerate(kept))):
        if not kept[dim]:
            array = array.take(0, axis=axis)
    return array, tuple(dim for dim, there in kept.items() if there)


def _without_axes(row: Mapping[str, Plain | None], dims: Sequence[str]) -> dict[str, Plain | None]:
    return {
        name: value
        for name, value in row.items()
        if name not in ("group", "position", "layer") or name in dims
    }


def _unit(vectors: np.ndarray, name: str) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if not np.isfinite(norms).all() or (norms == 0).any():
        raise ArtefactError(f"'{name}' has a vector that is zero or not finite, which has no direction")
    scaled: np.ndarray = vectors / norms
    return scaled


def _key(parts: Mapping[str, Any]) -> str:
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _known(run: StagedRun, name: str, key: str) -> Artefact | None:
    """The artefact of the same key that this version or an earlier one has; None where there is none."""
    own = run.folder.path
    for folder in (own, *(path for path in reversed(versions(own.parent)) if path != own)):
        path = folder / FOLDER / f"{name}.safetensors"
        try:
            found = read_artefact(path)
            told = json.loads(path.with_suffix(".json").read_bytes())
        except (ArtefactError, OSError, ValueError):
            continue
        if found.key == key:
            found = replace(found, table=tuple(told.get("table", ())))
            where = (
                "was already here" if folder == own else f"is taken over from {own.parent.name}/{folder.name}"
            )
            run.speaker.say(f"{name} {where}")
            if folder != own:
                _write(run, found)
            return found
    return None


def _write(run: StagedRun, artefact: Artefact) -> None:
    folder: Path = run.folder.path / FOLDER
    folder.mkdir(exist_ok=True)
    body = described(artefact) | {"table": [dict(row) for row in artefact.table]}
    atomic_write(folder / f"{artefact.name}.safetensors", as_bytes(artefact))
    atomic_write(folder / f"{artefact.name}.json", json.dumps(body, indent=2, ensure_ascii=False).encode())


def _why(left_out: Mapping[str, int]) -> str:
    if not left_out:
        return ""
    told = "; ".join(f"{count}: {reason}" for reason, count in left_out.items())
    return f" ({told})"
