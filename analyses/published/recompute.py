"""What was published, and whether it follows from the sums behind it: figures shown beside a new run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import yaml
from scipy import stats

from analyses.statistics.t_tests import TTest, from_moments

ONE_TEXT = "score of one text"
_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class PublishedRow:
    """One printed figure, as printed, beside the same figure recomputed; `agrees` to the printed digits. The
    score of a single text has no sums behind it: nothing can be recomputed, and both are None."""

    block: str
    condition: str
    figure: str
    published: str
    recomputed: float | None
    agrees: bool | None


def blocks() -> tuple[str, ...]:
    """Names of the blocks of transfer.yaml that carry recoverable sums."""
    return tuple(name for name, block in _load().items() if "deltas" in block)


def shown() -> tuple[str, ...]:
    """Names of the blocks that can stand beside a run: those with sums, and those with scores of single
    texts."""
    return tuple(name for name, block in _load().items() if "deltas" in block or "one_text" in block)


def published_rows(block: str) -> list[PublishedRow]:
    """Every published delta and unpaired contrast of a block, recomputed from its integer sums; or, of a
    block without sums, the published score of each single text.

    Raises KeyError for a block that is not there or has neither.
    """
    found = _load().get(block)
    if found is not None and "one_text" in found:
        return [
            PublishedRow(block, condition, ONE_TEXT, printed, None, None)
            for condition, printed in found["one_text"].items()
        ]
    data = _block(block)
    n = int(data["n_pairs"])
    tests = deltas(block)
    rows = []
    for condition, printed in data["deltas"].items():
        test = tests[condition]
        for name, value in from_sums(test).items():
            if name in printed:
                rows.append(_row(block, condition, name, printed[name], value))
        assert test.ci_low is not None and test.ci_high is not None
        low, high = printed["ci95"]
        rows.append(_row(block, condition, "ci95 low", low, test.ci_low))
        rows.append(_row(block, condition, "ci95 high", high, test.ci_high))
    for name, printed in data.get("contrasts_unpaired", {}).items():
        first, second = (named(part, tests) for part in name.split("_vs_"))
        t, p = pooled(tests[first], tests[second], n)
        rows.append(_row(block, f"{first} vs {second}", "t, unpaired", printed["t"], t))
        rows.append(_row(block, f"{first} vs {second}", "p, unpaired", printed["p"], p))
    return rows


def deltas(block: str) -> dict[str, TTest]:
    """The naive one-sample t test of each condition's differences from baseline, from sum and sum of
    squares."""
    data = _block(block)
    n = int(data["n_pairs"])
    found = {}
    for condition, printed in data["deltas"].items():
        found[condition] = Sums(int(printed["sum"]), int(printed["sum_sq"]), n).test()
    return found


@dataclass(frozen=True)
class Sums:
    """Sum and sum of squares of n whole numbers, which give every figure of their t test."""

    total: int
    squares: int
    n: int

    def test(self) -> TTest:
        """The naive one-sample t test. Raises ValueError where the numbers do not differ."""
        variance = (self.squares - self.total**2 / self.n) / (self.n - 1)
        if not variance > 0:
            raise ValueError(f"expected squares that sum to more than {self.total}^2 / {self.n}")
        return from_moments(self.total / self.n, variance**0.5, self.n)


def contradictions(
    *, t: float, n: int, arms: int = 1, p: float | None = None, d: float | None = None
) -> list[str]:
    """What a published t contradicts: its two-sided p (off by more than a tenth) or its Cohen's d (by 0.05%).

    `arms` is 1 for a one-sample or paired test of n, 2 for an unpaired one of n in each arm. A d that holds
    only with the population sd (ddof 0) is said to be that. Empty where all agrees. Raises ValueError for
    other arms.
    """
    if arms not in (1, 2):
        raise ValueError(f"arms: expected 1 or 2, got {arms}")
    found = []
    df = arms * (n - 1)
    true_p = float(2 * stats.t.sf(abs(t), df))
    if p is not None and abs(p - true_p) > 0.1 * true_p:
        found.append(f"t({df}) = {t:g} has p = {true_p:.2g}, not {p:g}")
    if d is not None:
        sample = t * (arms / n) ** 0.5
        population = sample * (n / (n - 1)) ** 0.5
        if abs(d - sample) > 5e-4 * abs(sample):
            only = " (it is that with ddof 0)" if abs(d - population) <= 5e-4 * abs(population) else ""
            found.append(f"t({df}) = {t:g} has d = {sample:.3f}, not {d:g}{only}")
    return found


def from_sums(test: TTest) -> dict[str, float]:
    """The figures of a naive test, under the names that transfer.yaml has for them."""
    assert test.difference is not None and test.d_ddof1 is not None and test.d_ddof0 is not None
    assert test.sd is not None and test.t is not None and test.df is not None and test.p is not None
    return {
        "mean": test.difference,
        "sd": test.sd,
        "t": test.t,
        "df": test.df,
        "p": test.p,
        "d_ddof0": test.d_ddof0,
        "d_ddof1": test.d_ddof1,
    }


def pooled(first: TTest, second: TTest, n: int) -> tuple[float, float]:
    """(t, p) of the unpaired test between two arms of n, by the pooled variance."""
    a, b = from_sums(first), from_sums(second)
    t = (a["mean"] - b["mean"]) / ((a["sd"] ** 2 + b["sd"] ** 2) / n) ** 0.5
    return t, float(2 * stats.t.sf(abs(t), 2 * n - 2))


def named(short: str, names: Iterable[str]) -> str:
    """The condition that a contrast's shortened name stands for: "transfer" is transfer_l27. Raises
    ValueError where that is none of the names, or several."""
    found = [name for name in names if name.startswith(short)]
    if len(found) != 1:
        raise ValueError(
            f"{short}: expected the start of one condition's name, got that of {found or 'none'}"
        )
    return found[0]


def _row(block: str, condition: str, name: str, printed: str, value: float) -> PublishedRow:
    try:
        exponent = Decimal(printed).as_tuple().exponent
    except InvalidOperation as error:
        raise ValueError(
            f"{_path()}: {block}.{condition}.{name}: expected a number, got {printed!r}"
        ) from error
    assert isinstance(exponent, int)
    agrees = abs(float(printed) - value) <= 0.5 * 10.0**exponent
    return PublishedRow(block, condition, name, printed, value, agrees)


def _path() -> Path:
    return _FOLDER / "transfer.yaml"


def _load() -> dict[str, Any]:
    # Scalars stay text, so that "2.20" keeps the digits that it was printed with.
    loaded = yaml.load(_path().read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    assert isinstance(loaded, dict)
    return loaded


def _block(block: str) -> dict[str, Any]:
    if block not in blocks():
        raise KeyError(f"{_path()}: expected one of the blocks {', '.join(shown())}, got {block!r}")
    found: dict[str, Any] = _load()[block]
    return found
