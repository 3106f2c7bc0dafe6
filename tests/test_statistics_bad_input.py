"""Whatever comes in, a figure or None with a sentence comes out: never NaN, never a warning."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analyses.statistics.bootstrap import two_way
from analyses.statistics.bounds import invalid_bounds
from analyses.statistics.clusters import clustered_mean
from analyses.statistics.correlation import pearson, spearman
from analyses.statistics.describe import describe
from analyses.statistics.equivalence import tost
from analyses.statistics.mixed import crossed
from analyses.statistics.permutation import sign_flip
from analyses.statistics.ranks import wilcoxon
from analyses.statistics.t_tests import cohens_d, cohens_d_pooled, paired_t, unpaired_t

Given = Sequence[Any]


def labels(values: Given, clusters: int) -> list[str]:
    return [f"c{i % clusters}" for i in range(len(values))]


TESTS: dict[str, Callable[[Given], Any]] = {
    "clustered": lambda x: clustered_mean(x, donor=labels(x, 4), target=labels(x, 3)),
    "clustered, one cluster": lambda x: clustered_mean(x, donor=labels(x, 1), target=labels(x, 1)),
    "three ways": lambda x: clustered_mean(
        x, donor={"donor": labels(x, 4), "other_donor": labels(x, 3)}, target=labels(x, 5)
    ),
    "t": paired_t,
    "unpaired": lambda x: unpaired_t(x, x[::-1], pooled=True),
    "Welch": lambda x: unpaired_t(x, x[: len(x) // 2], pooled=False),
    "wilcoxon": wilcoxon,
    "sign flip": sign_flip,
    "sign flip by cluster": lambda x: sign_flip(x, labels(x, 4)),
    "sign flip, one cluster": lambda x: sign_flip(x, labels(x, 1)),
    "sign flip, two ways": lambda x: sign_flip(x, {"donor": labels(x, 4), "target": labels(x, 3)}, draws=300),
    "bootstrap": lambda x: two_way(x, {"donor": labels(x, 4)}, labels(x, 3), draws=300),
    "bootstrap of values": lambda x: two_way(x, None, None, draws=300),
    "mixed": lambda x: crossed(x, {"donor": labels(x, 4)}, labels(x, 3)),
    "bounds": lambda x: invalid_bounds(x, [0.0] * len(x), {"donor": labels(x, 4)}, labels(x, 3)),
    "pearson": lambda x: pearson(x, list(range(len(x)))),
    "spearman": lambda x: spearman(x, list(range(len(x)))),
    "equivalence": lambda x: tost(clustered_mean(x, donor=labels(x, 4)), 0.5),
    "description": describe,
}
NOTHING_TO_TEST: dict[str, Given] = {
    "empty": [],
    "one": [1.0],
    "two": [1.0, 2.0],
    "all equal": [2.5] * 12,
    "all zero": [0] * 12,
    "undefined": [math.nan] * 12,
    "infinite": [math.inf, -math.inf] * 6,
    "two of many": [math.nan] * 10 + [1.0, 3.0],
    "beyond counting": [1.7e308, -1.7e308] * 6,
}
SOMETHING: dict[str, Given] = {
    "integers": [0, 1, 5, 3, 8, 0, 2, 4, 11, 3, 2, 1],
    "truths": [True, False, True, True, False, True, False, False, True, True, True, False],
    "holes": [1.0, math.nan, 2.5, 3.0, None, 0.1, -1.0, 4.0, 0.7, 0.2, 5.0, 1.1],
    "huge": [1e300, -2e299, 5e299, 1e299, 3e299, 7e299, -1e299, 2e299, 9e299, 1e298, 4e299, 6e299],
    "tiny": [1e-300, 2e-300, 5e-300] * 4,
    "far from 0": [1e12 + i % 5 for i in range(12)],
}


def undefined(result: object) -> list[str]:
    """The figures that are neither a number nor None, by name."""
    if isinstance(result, dict):
        return [f"{name}.{more}" for name, each in result.items() for more in undefined(each) or ()]
    if isinstance(result, list | tuple):
        return [more for each in result for more in undefined(each)]
    return ["value"] if isinstance(result, float) and not math.isfinite(result) else []


@pytest.mark.parametrize("name", TESTS)
@pytest.mark.parametrize("given", [*NOTHING_TO_TEST, *SOMETHING])
def test_trap_29_no_figure_is_undefined_in_silence(name: str, given: str) -> None:
    values = (NOTHING_TO_TEST | SOMETHING)[given]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = TESTS[name](values)
    assert is_dataclass(found) and not isinstance(found, type)
    assert undefined(asdict(found)) == []
    p = getattr(found, "p", getattr(found, "mean", None))
    if p is None and name != "bounds":
        assert found.note  # type: ignore[attr-defined]
    # Two values in an arm are enough for an unpaired test, and equal signs for a test of signs.
    untested = name not in ("bounds", "description", "unpaired") and "sign flip" not in name
    if given in NOTHING_TO_TEST and (untested or given in ("empty", "one", "undefined", "all zero")):
        assert p is None or name in ("bounds", "description")


@pytest.mark.parametrize("name", [name for name in TESTS if "one cluster" not in name])
def test_integers_and_truths_are_numbers(name: str) -> None:
    for kind in ("integers", "truths"):
        values = SOMETHING[kind]
        given = [float(v) for v in values]
        assert TESTS[name](values) == TESTS[name](given) == TESTS[name](np.array(values))


@pytest.mark.parametrize(
    "name", ["clustered", "t", "wilcoxon", "sign flip, two ways", "bootstrap", "mixed", "unpaired"]
)
def test_huge_values_have_the_tests_of_small_ones(name: str) -> None:
    huge = SOMETHING["huge"]
    found, small = TESTS[name](huge), TESTS[name]([v / 1e299 for v in huge])
    assert found.p == pytest.approx(small.p, rel=1e-6)
    if small.__dict__.get("ci_low") is not None:
        assert found.ci_low == pytest.approx(small.ci_low * 1e299, rel=1e-6)


def test_effect_sizes_are_numbers_or_none() -> None:
    for values in (NOTHING_TO_TEST | SOMETHING).values():
        known = [math.nan if v is None else float(v) for v in values]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for d in (cohens_d(known, ddof=1), cohens_d_pooled(known, known[::-1], ddof=1)):
                assert d is None or math.isfinite(d)


@pytest.mark.parametrize(
    "call",
    [
        lambda: clustered_mean([1.0, 2.0, 3.0], donor=[1, 2]),
        lambda: sign_flip([1.0, 2.0, 3.0], [1, 2]),
        lambda: two_way([1.0, 2.0, 3.0], {"donor": [1, 2]}, None),
        lambda: crossed([1.0, 2.0, 3.0], {"donor": [1, 2]}, None),
        lambda: invalid_bounds([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], {"donor": [1, 2]}),
    ],
)
def test_labels_of_another_length_are_refused_with_their_name(call: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match="expected 3 labels, one per value, got 2"):
        call()


def test_labels_may_be_of_any_kind() -> None:
    x = np.random.default_rng(1).normal(size=12)
    plain = clustered_mean(x, donor=[i % 4 for i in range(12)], target=[i % 3 for i in range(12)])
    for donor in (
        [(i % 4, "tokens") for i in range(12)],
        np.array([f"d{i % 4}" for i in range(12)]),
        pd.Series([f"d{i % 4}" for i in range(12)], index=range(100, 112)),
        pd.Categorical([f"d{i % 4}" for i in range(12)]).astype(object),
        pd.Series([i % 4 for i in range(12)], dtype="Int64"),
        pd.Series([f"d{i % 4}" for i in range(12)], dtype="category"),
    ):
        assert clustered_mean(pd.Series(x), donor=donor, target=[i % 3 for i in range(12)]) == plain
    assert clustered_mean(pd.Series(x, dtype="Float64")).n == 12
    lone = pd.Series([0, 1, None, 0, 1, None] * 2, dtype="Int64")
    assert clustered_mean(x, donor={"a": lone, "b": lone}).clusters == {"a": 6}
    with pytest.raises(ValueError, match="one column"):
        clustered_mean(x.reshape(3, 4))


def test_a_million_values_take_a_moment() -> None:
    rng = np.random.default_rng(2)
    n = 1_000_000
    x = rng.normal(size=n)
    few, many, target = rng.integers(65, size=n), rng.integers(100_000, size=n), rng.integers(99, size=n)
    start = time.process_time()
    of_few = clustered_mean(x, donor=few, target=target)
    of_many = clustered_mean(x, donor=many, target=target)
    took = time.process_time() - start
    assert (of_few.df, of_many.df) == (64, 98)
    # 0.3 s where it was written; a slower machine has its share.
    assert took < 4
    start = time.process_time()
    bootstrapped = two_way(x, {"donor": few}, target)
    flipped = sign_flip(x, {"donor": few, "target": target})
    assert bootstrapped.p is not None and flipped.p is not None and time.process_time() - start < 8
    assert bootstrapped.p == pytest.approx(of_few.p, abs=0.1)
    assert flipped.p == pytest.approx(of_few.p, abs=0.1)
