"""The figures of a paper in a file of one's own: each claim with what was printed of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from scipy import stats

from analyses.published.consistent import checked
from analyses.published.printed import Figure, Printed, in_words, span
from analyses.published.rechecked import CONTRADICTORY, NOT_REPRODUCIBLE, NOTHING, REPRODUCED, Rechecked

CLAIMS = "claims"
_ALWAYS = ("what", "expect")  # a remark; `contradictory` where the claim is known to be so
_T = tuple(field.name for field in fields(Printed))
_FORMS: Mapping[str, tuple[str, ...]] = {
    "r": ("r", "n", "p", "ci", "confidence"),
    "mcnemar": ("mcnemar", "p"),
    "fisher": ("fisher", "p"),
    "count": ("count", "of", "percent", "share"),
    "t": _T,
}
_INPUTS = ("n", "arms", "integer", "least", "most", "ddof", "one_sided", "confidence", "clustered", "what")
_FOLLOWS = (
    "df",
    "se",
    "t",
    "p",
    "d",
    "ci",
)  # what is recomputed; of the others it is said whether they can be
Wrong = list[tuple[str, str]]


def recheck_claims(claims: Mapping[str, Any], wrong: Wrong) -> list[Rechecked]:
    """Every figure of every claim. wrong: where mistakes of the file are added, as (key, sentence)."""
    found = []
    for name, claim in claims.items():
        if not isinstance(claim, Mapping):
            wrong.append((f"{CLAIMS}.{name}", f"expected figures by name, got {claim!r}"))
            continue
        found += _claim(str(name), claim, wrong)
    return found


def _claim(name: str, claim: Mapping[str, Any], wrong: Wrong) -> list[Rechecked]:
    form = next((each for each in _FORMS if each in claim), "t")
    at = f"{CLAIMS}.{name}"
    known = (*_FORMS[form], *_ALWAYS)
    unknown = [key for key in claim if key not in known]
    for key in unknown:
        near = get_close_matches(str(key), known, 1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        wrong.append((f"{at}.{key}", f"no such figure (expected some of {', '.join(known)}){hint}"))
    expected = claim.get("expect")
    if expected not in (None, CONTRADICTORY):
        wrong.append((f"{at}.expect", f"expected '{CONTRADICTORY}' or nothing, got {expected!r}"))
    claim = {key: value for key, value in claim.items() if key not in unknown}
    try:
        told = _CHECKS[form](claim)
    except ValueError as error:
        wrong.append((at, str(error)))
        return []
    rows = [
        _row(f"{at}.{key}", key, value, told.get(key), expected is not None)
        for key, value in claim.items()
        if key not in _ALWAYS
    ]
    if expected is not None and not any(told.values()):
        rows[0] = Rechecked(
            at, str(claim.get("what") or ""), CONTRADICTORY, None, "expected to be contradictory, and is not"
        )
    return rows


def _row(key: str, name: str, value: Any, told: list[str] | None, expected: bool) -> Rechecked:
    printed = _text(value)
    if told:
        return Rechecked(key, printed, CONTRADICTORY, None, "; ".join(told), expected)
    if name in (*_INPUTS, "mcnemar", "fisher", "count", "of", "r"):
        return Rechecked(key, printed, NOTHING, None, "an input of the claim")
    if told is None:
        return Rechecked(key, printed, NOT_REPRODUCIBLE, None, "no other figure of the claim bears on it")
    if name in (*_FOLLOWS, "percent", "share"):
        return Rechecked(key, printed, REPRODUCED, None, "it follows from the other figures of the claim")
    return Rechecked(key, printed, NOT_REPRODUCIBLE, None, "possible: it agrees with the other figures")


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    return str(value)


def _of_t(claim: Mapping[str, Any]) -> dict[str, list[str]]:
    given: dict[str, Any] = {}
    wrong = []
    for name, value in claim.items():
        if name in _ALWAYS:
            continue
        try:
            given[name] = _READERS.get(name, _as_printed)(value)
        except ValueError as error:
            wrong.append(f"{name}: {error}")
    if wrong:
        raise ValueError("; ".join(wrong))
    return checked(Printed(**given))


def _as_printed(value: Any) -> Any:
    """A figure, or two of them."""
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return tuple(value)
    if not isinstance(value, str):
        raise ValueError(f"expected a figure as printed, got {value!r}")
    return value


def _sizes(value: Any) -> Any:
    parts = value if isinstance(value, list) else [value]
    found = tuple(_whole(part) for part in parts)
    return found if isinstance(value, list) else found[0]


def _whole(value: Any) -> int:
    if not isinstance(value, str) or not value.isdecimal():
        raise ValueError(f"expected a whole number, got {value!r}")
    return int(value)


def _flag(value: Any) -> bool:
    if value not in ("true", "false"):
        raise ValueError(f"expected true or false, got {value!r}")
    return bool(value == "true")


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected a number, got {value!r}") from error


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "n": _sizes,
    "arms": _whole,
    "ddof": _whole,
    "integer": _flag,
    "one_sided": _flag,
    "clustered": _flag,
    "confidence": _number,
    "least": _number,
    "most": _number,
}


def _of_r(claim: Mapping[str, Any]) -> dict[str, list[str]]:
    """r against p (by t) and its interval (by Fisher's z)."""
    r, n = Figure.of(_as_printed(claim["r"])), _whole(claim["n"]) if "n" in claim else None
    told: dict[str, list[str]] = {}
    if not r.meets(-1.0, 1.0):
        return {"r": [f"r is {r.text}, and none is outside -1 to 1"]}
    if n is None or n < 4:
        raise ValueError(f"n: expected 4 or more beside r, got {claim.get('n', 'none')}")
    low, high = max(-1 + 1e-12, r.low), min(1 - 1e-12, r.high)
    if "p" in claim:
        p = Figure.of(_as_printed(claim["p"]))
        nearest = 0.0 if low <= 0 <= high else min(abs(low), abs(high))
        ends = [_p_of_r(value, n) for value in (nearest, max(abs(low), abs(high)))]
        wrong = f"r = {r.text} with n = {n} has p = {ends[1]:.2g} to {ends[0]:.2g}, not {p.text}"
        told["p"] = [] if p.meets(ends[1], ends[0]) else [wrong]
    if "ci" in claim:
        ci = [Figure.of(each) for each in _two(claim["ci"], "ci")]
        z = float(stats.norm.ppf(0.5 + _number(claim.get("confidence", "0.95")) / 2)) / math.sqrt(n - 3)
        told["ci"] = []
        for end, sign in zip(ci, (-1, 1), strict=True):
            wanted = span(lambda value, sign=sign: math.tanh(math.atanh(value) + sign * z), (low, high))
            if not end.meets(*wanted):
                told["ci"].append(f"r = {r.text} with n = {n} ends at {in_words(wanted)}, not {end.text}")
    return told


def _p_of_r(r: float, n: int) -> float:
    t = abs(r) * math.sqrt((n - 2) / (1 - r * r))
    return float(2 * stats.t.sf(t, n - 2))


def _of_mcnemar(claim: Mapping[str, Any]) -> dict[str, list[str]]:
    one, other = (_whole(each) for each in _two(claim["mcnemar"], "mcnemar"))
    p = 1.0 if one + other == 0 else float(stats.binomtest(one, one + other, 0.5).pvalue)
    return _exact(claim, p, f"McNemar's exact test of {one} and {other}")


def _of_fisher(claim: Mapping[str, Any]) -> dict[str, list[str]]:
    rows = [[_whole(each) for each in _two(row, "fisher")] for row in _two(claim["fisher"], "fisher")]
    return _exact(claim, float(stats.fisher_exact(rows).pvalue), f"Fisher's exact test of {rows}")


def _exact(claim: Mapping[str, Any], p: float, source: str) -> dict[str, list[str]]:
    if "p" not in claim:
        return {}
    printed = Figure.of(_as_printed(claim["p"]))
    return {"p": [] if printed.holds(p) else [f"{source} has p = {p:.4g}, not {printed.text}"]}


def _of_count(claim: Mapping[str, Any]) -> dict[str, list[str]]:
    count = _whole(claim["count"])
    if "of" not in claim:
        raise ValueError("of: expected beside count")
    of, told = _whole(claim["of"]), {}
    if count > of or of == 0:
        return {"count": [f"{count} is not a count of {of}"]}
    for name, unit in (("percent", 100), ("share", 1)):
        if name in claim:
            printed = Figure.of(_as_printed(claim[name]))
            true = unit * count / of
            told[name] = [] if printed.holds(true) else [f"{count} of {of} is {true:.4g}, not {printed.text}"]
    return told


def _two(value: Any, name: str) -> Sequence[Any]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"{name}: expected two, got {value!r}")
    return value


_CHECKS: Mapping[str, Callable[[Mapping[str, Any]], dict[str, list[str]]]] = {
    "r": _of_r,
    "mcnemar": _of_mcnemar,
    "fisher": _of_fisher,
    "count": _of_count,
    "t": _of_t,
}
