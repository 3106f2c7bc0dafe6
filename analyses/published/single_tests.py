"""What follows from what in published tests that stand alone (`transfer.yaml`): geometry, McNemar's, and the
figures that contradict themselves."""

from __future__ import annotations

import math

from scipy import stats

from analyses.published.consistent import checked
from analyses.published.printed import Figure, Printed
from analyses.published.rechecked import Book
from analyses.statistics.t_tests import from_moments


def single_tests(book: Book) -> None:
    """Every rule of these blocks."""
    _geometry(book)
    _mcnemar(book)
    _must_not_pass(book)


def _geometry(book: Book) -> None:
    """R_V and its t test. R_V is a ratio of two participation ratios of 16 rows."""
    at = ("geometry", "mistral_7b_base_n45")
    for name in ("recursive", "baseline"):
        mean, sd = book.number(*at, name, "0"), book.number(*at, name, "1")
        told = "a ratio of two participation ratios of 16 rows is from 1/16 to 16"
        book.possible((*at, name, "0"), mean is not None and 1 / 16 <= mean <= 16, told)
        if mean is not None and sd is not None:
            limit = math.sqrt((16 - mean) * (mean - 1 / 16))
            told = f"values from 1/16 to 16 with the mean {mean:g} have an sd of at most {limit:.2f}"
            book.possible((*at, name, "1"), 0 <= sd <= limit, told)
    test = ("geometry", "rv_l27_t")
    mean = book.number(*test, "mean")
    if mean is not None:
        book.recomputed((*at, "patch"), mean, "rv_l27_t.mean, the same with more digits")
    for name in ("random", "wrong_layer_21"):
        book.unknown((*at, name), "no sd and no n stand beside it")
    n, sd = book.whole(*test, "n"), book.number(*test, "sd")
    book.given((*test, "n"), "an input: the number of pairs")
    for name in ("mean", "sd"):
        book.given((*test, name), "an input: t, p and d are computed from it")
    if n is None or mean is None or sd is None:
        return
    found = from_moments(mean, sd, n)
    assert found.t is not None and found.p is not None and found.d_ddof1 is not None
    # These are printed with more digits than the mean and sd behind them give.
    printed = Printed(
        n=n,
        mean=book.printed(*test, "mean"),
        sd=book.printed(*test, "sd"),
        t=book.printed(*test, "t"),
        p=book.printed(*test, "p_one_sided"),
        d=book.printed(*test, "d"),
        one_sided=True,
    )
    wrong = checked(printed)
    values = {"t": (("t",), found.t), "p": (("p_one_sided",), found.p / 2), "d": (("d",), found.d_ddof1)}
    for name, (where, value) in values.items():
        key = (*test, *where)
        if wrong.get(name):
            book.contradicts(key, value, "; ".join(wrong[name]))
        elif name in wrong:
            book.agrees(key, value, "mean, sd and n, within their rounding")


def _mcnemar(book: Book) -> None:
    for pair in book.data.get("statistics_fixtures", {}).get("mcnemar_exact") or {}:
        one, _, other = pair.partition("/")
        if one.isdecimal() and other.isdecimal() and int(one) + int(other) > 0:
            p = float(stats.binomtest(int(one), int(one) + int(other), 0.5).pvalue)
            key = ("statistics_fixtures", "mcnemar_exact", pair)
            book.recomputed(key, p, "the exact binomial test of the discordant pairs")


def _must_not_pass(book: Book) -> None:
    """Figures that are printed because they contradict themselves: the contradiction is expected."""
    for place, row in enumerate(book.data.get("statistics_fixtures", {}).get("must_not_pass") or ()):
        at = ("statistics_fixtures", "must_not_pass", str(place))
        n, arms = book.whole(*at, "n"), book.whole(*at, "arms")
        for name in ("t", "n", "arms"):
            book.given((*at, name), "an input of the contradiction")
        book.given((*at, "note"), "a remark")
        if n is None and "published_d" in row:
            n, arms = _where_ddof0_gives(book.figure(*at, "t"), book.figure(*at, "published_d"))
        if n is None:
            continue
        t = row.get("t")
        for figure, name in (("p", "published_p"), ("d", "published_d")):
            value = row.get(name)
            if value is None:
                continue
            test = Printed(n=n, arms=arms or 1, t=t, **{figure: value})
            wrong = checked(test).get(figure) or []
            if wrong:
                book.contradicts((*at, name), None, "; ".join(wrong), expected=True)
            else:
                told = f"it was to contradict t = {t} with n = {n}, and does not"
                book.contradicts((*at, name), None, told)
        true = book.printed(*at, "true_p")
        if true is not None and t is not None:
            held = not checked(Printed(n=n, arms=arms or 1, t=t, p=true)).get("p")
            p = float(2 * stats.t.sf(abs(float(t)), (arms or 1) * (n - 1)))
            if held:
                book.agrees((*at, "true_p"), p, "t and n, within the rounding of t")
            else:
                book.contradicts((*at, "true_p"), p, f"t and n give {p:.2g}")


def _where_ddof0_gives(t: Figure | None, d: Figure | None) -> tuple[int | None, int | None]:
    """n and arms for which a printed d is that of t with ddof 0."""
    if t is None or d is None or t.value is None:
        return None, None
    for arms in (1, 2):
        for n in range(3, 10_000):
            if d.holds(t.value * (arms / (n - 1)) ** 0.5):
                return n, arms
    return None, None
