"""Which differences a run can find, before it runs: power of every declared contrast, from the pairs that are
really planned."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analyses.comparisons.contrast import correction_name
from analyses.published.recompute import blocks, deltas
from analyses.statistics.clusters import in_words
from analyses.statistics.power import detectable, minimal_detectable_effect
from analyses.tables.pairs import EQUIVALENCE, Declared, declared_pairs, pair, roles_read
from analyses.wording import count, figure, listed, plural, together
from runner.config.resolve import Design
from runner.key_table import Places
from runner.plan import Plan
from runner.results.manifest import contrasts, describe_condition
from runner.results.store import FINISHED

ALPHA, POWER = 0.05, 0.8
ASSUMED_ICC = 0.1  # between donors and between targets, where nothing is known
ENOUGH = 30  # pairs from which a standard deviation is taken
MOST_ROWS = 50  # contrasts that are told one by one
_OUT_OF_REACH = 2.0  # sd: effects as large as this are as good as never seen
_MOST_NAMED = 3
_PLANNED = "_planned"


@dataclass(frozen=True)
class Spread:
    """What is expected of the paired differences of a contrast. sd: ddof 1; None where it is unknown, and
    effects are in units of it; icc: share of variance between the clusters of a dimension, and of `other`
    dimensions."""

    sd: float | None
    icc: Mapping[str, float]

    def of(self, dimension: str) -> float:
        """The correlation of differences that share a prompt of this dimension."""
        kind = dimension.partition(":")[0]
        return self.icc.get(dimension, self.icc.get(kind, ASSUMED_ICC))


@dataclass(frozen=True)
class Source:
    """Where the spreads are from, in words. by_pair: of a contrast by its two conditions; other: of those
    that it does not have."""

    words: str
    by_pair: Mapping[tuple[str, str], Spread]
    other: Spread

    def of(self, declared: Declared) -> Spread:
        """The spread of one contrast."""
        return self.by_pair.get((declared.condition, declared.against), self.other)


@dataclass(frozen=True)
class Planned:
    """The pairs of one contrast: how many, and in which clusters. sizes: pairs of each cluster, by
    dimension."""

    n: int
    sizes: Mapping[str, tuple[int, ...]]

    @property
    def usable(self) -> dict[str, tuple[int, ...]]:
        """The dimensions that say something: of two clusters or more."""
        return {name: sizes for name, sizes in self.sizes.items() if len(sizes) > 1}

    @property
    def units(self) -> int:
        """The fewest clusters, or the pairs where nothing is clustered."""
        return min((len(sizes) for sizes in self.usable.values()), default=self.n if not self.sizes else 1)


@dataclass(frozen=True)
class PowerRow:
    """What one contrast can find. detectable: the smallest difference that is found with 80% power at
    alpha / family; of an equivalence the smallest margin that is shown, were there no difference at all. In
    units of the readout where sd is known, else of the sd."""

    condition: str
    against: str
    kind: str
    n: int
    clusters: Mapping[str, int]
    sd: float | None
    detectable: float | None
    margin: float | None


def power_before(design: Design, plan: Plan, earlier: Sequence[Path]) -> dict[str, Any] | None:
    """The power of every declared contrast in plain data, for the manifest: `sd`, `icc`, `source`, `family`,
    `alpha`, `rows` (of the first 50 contrasts), `sentence` and `warnings`; None where nothing is compared.

    n and clusters are those of the plan, each contrast with the donors that its conditions read. The spread
    comes from `contrasts.expected`; else the newest finished version of this experiment with this model among
    `earlier` (oldest first); else the published figures; else effects are in units of it. Analytic, by
    `analyses.statistics.power`, at alpha / family, the first step of Holm.
    """
    declared_all = contrasts(design)
    conditions = {condition.name: describe_condition(condition) for condition in design.conditions}
    declared = declared_pairs({"contrasts": declared_all, "conditions": conditions})
    if not declared:
        return None
    source = _source(design, earlier)
    planned = _Pairs(plan, conditions)
    level = ALPHA / len(declared)
    rows = []
    warned: dict[str, list[str]] = {}
    known: dict[Any, float | None] = {}
    for each in declared:
        pairs, spread = planned.of(each), source.of(each)
        key = (id(pairs), spread.sd, tuple(spread.icc.items()), each.kind)
        if key not in known:
            known[key] = _detectable(pairs, spread, each.kind, level)
        found = known[key]
        clusters = {name: len(sizes) for name, sizes in pairs.sizes.items()}
        rows.append(PowerRow(*each[:2], each.kind, pairs.n, clusters, spread.sd, found, each.stated))
        for sentence in _warnings(rows[-1], pairs, level):
            warned.setdefault(sentence, []).append(f"{each.condition} - {each.against}")
    return {
        "sd": source.other.sd,
        "icc": dict(source.other.icc),
        "source": source.words,
        "power": POWER,
        "alpha": ALPHA,
        "family": len(declared),
        "correction": declared_all["correction"],
        "rows": [asdict(row) for row in rows[:MOST_ROWS]],
        "sentence": _sentence(rows, source, declared_all["primary"], declared_all["correction"]),
        "warnings": [f"{_named(names)}: {sentence}" for sentence, names in warned.items()],
    }


class _Pairs:
    """The planned pairs of contrasts; those with the same donors and the same invalid trials are counted
    once."""

    def __init__(self, plan: Plan, conditions: Mapping[str, Mapping[str, Any]]) -> None:
        self._conditions, self._plan = conditions, plan
        held = plan.ledger
        self._rows: dict[str, Places] = {}
        self._invalid: dict[str, bytes] = {}
        in_order = np.argsort(held.condition, kind="stable")
        ends = np.searchsorted(held.condition[in_order], np.arange(len(held.conditions) + 1))
        for place, name in enumerate(held.conditions):
            rows = in_order[ends[place] : ends[place + 1]]
            self._rows[name] = rows[held.runnable[rows]]
            lost = rows[~held.runnable[rows]]
            units = np.stack((held.item[lost].astype(np.int64), held.repeat[lost].astype(np.int64)))
            self._invalid[name] = units.tobytes()
        self._known: dict[Any, Planned] = {}

    def of(self, declared: Declared) -> Planned:
        """The pairs of one contrast."""
        names = declared[:2]
        roles = frozenset(role for name in names for role in roles_read(self._conditions.get(name, {})))
        key = (roles, *(self._invalid.get(name, b"") for name in names))
        if key not in self._known:
            self._known[key] = self._counted(*names)
        return self._known[key]

    def _counted(self, first: str, second: str) -> Planned:
        if any(not len(self._rows.get(name, ())) for name in (first, second)):
            return Planned(0, {})
        paired = pair(self._table((first, second)), first, second, _PLANNED, self._conditions)
        sizes: dict[str, tuple[int, ...]] = {}
        seen: list[np.ndarray[Any, Any]] = []
        for name, labels in (*paired.donors.items(), ("target", paired.target)):
            codes = pd.factorize(labels)[0]
            # As the test does: donors with the same prompts in every pair are one dimension.
            again = name != "target" and any(np.array_equal(codes, other) for other in seen)
            if (codes < 0).all() or again:
                continue
            seen.append(codes)
            alone = (1,) * int((codes < 0).sum())
            sizes[name] = (*np.bincount(codes[codes >= 0]).tolist(), *alone)
        return Planned(len(paired.first), sizes)

    def _table(self, names: Sequence[str]) -> pd.DataFrame:
        """The trials of some conditions as analyses read them."""
        rows = np.concatenate([self._rows[name] for name in dict.fromkeys(names)])
        held = self._plan.ledger
        columns = {
            "condition": np.array(held.conditions, dtype=object)[held.condition[rows]],
            "item": np.array(held.items, dtype=object)[held.item[rows]],
            "repeat": held.repeat[rows].astype(np.int64),
            "stage": self._plan.stage,
            "status": "ok",
            _PLANNED: 1.0,
        }
        # Repeats have the prompts of the first.
        units = np.stack((held.condition[rows], held.item[rows]), axis=1)
        _, first, again = np.unique(units, axis=0, return_index=True, return_inverse=True)
        made = map(self._plan.trials.__getitem__, rows[first].tolist())
        prompts = [(trial.donor, trial.target, trial.donor_ids) for trial in made]
        for column, each in zip(("donor", "target", "donor_ids"), zip(*prompts, strict=True), strict=True):
            once = np.empty(len(each), dtype=object)
            once[:] = each
            columns[column] = once[again.ravel()]
        return pd.DataFrame(columns)


def _detectable(pairs: Planned, spread: Spread, kind: str, level: float) -> float | None:
    if pairs.n < 3 or pairs.units < 2:
        return None
    dimensions = pairs.usable
    least = minimal_detectable_effect(
        1.0 if spread.sd is None else spread.sd,
        pairs.n,
        alpha=level,
        power=POWER,
        icc=[spread.of(name) for name in dimensions],
        cluster_sizes=list(dimensions.values()),
    )
    if kind != EQUIVALENCE:
        return least
    df = pairs.units - 1
    se = least / detectable(1.0, df, alpha=level, power=POWER)
    # Without a difference both one-sided tests succeed with 80% power where |t| stays within these ends.
    return se * float(stats.t.ppf(1 - level, df) + stats.t.ppf((1 + POWER) / 2, df))


def _source(design: Design, earlier: Sequence[Path]) -> Source:
    expected, primary = design.contrasts.expected, design.contrasts.primary
    if expected is not None:
        icc = {} if expected.icc is None else dict(zip(("donor", "target"), expected.icc, strict=True))
        return Source("contrasts.expected", {}, Spread(expected.sd, icc))
    for folder in reversed(earlier):
        found = _of_earlier(folder, design)
        if found is not None:
            return found
    block = design.published
    if block is not None and block in blocks() and primary == "score":
        baseline = design.contrasts.baseline
        sds = {name: test.sd for name, test in deltas(block).items() if test.sd is not None}
        by_pair = {(name, baseline): Spread(sd, {}) for name, sd in sds.items()}
        return Source(f"the published {block} experiment", by_pair, Spread(max(sds.values()), {}))
    return Source("", {}, Spread(None, {}))


def _of_earlier(folder: Path, design: Design) -> Source | None:
    """The spreads of a finished version's contrasts; None where it has none of this readout and model."""
    try:
        summary = dict(json.loads((folder / "summary.json").read_bytes()))
        if design.stage in (summary.get("stages") or {}):
            summary = summary["stages"][design.stage]
        same = (summary["status"], summary["primary"], summary["model"]["name"])
        if same != (FINISHED, design.contrasts.primary, design.model.name):
            return None
        found = {
            (each["condition"], each["against"]): Spread(each["sd"], each.get("icc") or {})
            for each in summary["contrasts"]
            if each["sd"] and (each["n"] or 0) >= ENOUGH
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a version that cannot be read is no source; the next older one may be
    if not found:
        return None
    return Source(str(folder), found, max(found.values(), key=lambda each: each.sd or 0.0))


def _warnings(row: PowerRow, pairs: Planned, level: float) -> list[str]:
    """What cannot come out, whatever the model does."""
    if pairs.n < 3 or pairs.units < 2:
        few = plural(pairs.n, "pair") if pairs.n < 3 else "one cluster"
        return [f"with {few} there is no test"]
    found = []
    unit = 1.0 if row.sd is None else row.sd
    if row.detectable is not None and row.detectable > _OUT_OF_REACH * unit:
        size = f"{figure(row.detectable / unit, 1)} standard deviations"
        what = "only a margin" if row.kind == EQUIVALENCE else "only a difference"
        found.append(f"{what} of {size} has 80% power, with {in_words(row.clusters) or 'so few pairs'}")
    if row.kind == EQUIVALENCE:
        if row.margin is not None and row.sd is not None and row.margin < (row.detectable or 0.0):
            ends = together(row.margin, row.detectable)
            found.append(
                f"the margin {ends[0]} has less than 80% power even without any difference; "
                f"the smallest that has is {ends[1]}"
            )
        return found
    least = 2.0 ** (1 - pairs.units)
    if least >= ALPHA:
        found.append(
            f"no exact test (sign flip, McNemar) of {count(pairs.units)} independent units reaches "
            f"p < {ALPHA:g}: the least is {figure(least, 3)}"
        )
    return found


def _sentence(rows: Sequence[PowerRow], source: Source, primary: str, correction: str) -> str:
    differences = [row for row in rows if row.kind != EQUIVALENCE and row.detectable is not None]
    if not differences:
        return f"Power: no declared difference in {primary} can be tested with these pairs."
    ordered = sorted(differences, key=lambda row: row.detectable or 0.0)
    least, most = together(ordered[0].detectable, ordered[-1].detectable)
    found = least if least == most else f"{least} to {most}"
    pairs = sorted({row.n for row in differences})
    n = plural(pairs[0], "pair") if len(pairs) == 1 else f"{count(pairs[0])} to {count(pairs[-1])} pairs"
    at = f"80% power at {ALPHA:g} / {count(len(rows))} ({correction_name(correction)})"
    if ordered[0].sd is None:
        return (
            f"Power: {n} find differences in {primary} of {found} standard deviations with {at}, if "
            f"differences that share a donor or a target correlate by {ASSUMED_ICC:g}. No standard deviation "
            "is known before this run; contrasts.expected states one."
        )
    sds = together(*sorted({row.sd for row in differences if row.sd is not None}))
    sd = sds[0] if len(sds) == 1 else f"{sds[0]} to {sds[-1]}"
    used = [source.by_pair.get((row.condition, row.against), source.other) for row in differences]
    assumed = any("target" not in each.icc or "donor" not in each.icc for each in used)
    tail = f"; correlation in clusters, where not known, {ASSUMED_ICC:g}" if assumed else ""
    return (
        f"Power: {n} find differences in {primary} of {found} with {at}. Standard deviation of the paired "
        f"difference {sd}, from {source.words}{tail}."
    )


def _named(names: Sequence[str]) -> str:
    if len(names) <= _MOST_NAMED:
        return listed(list(names))
    return f"{', '.join(names[:_MOST_NAMED])} and {count(len(names) - _MOST_NAMED)} more"
