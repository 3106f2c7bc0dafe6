"""What follows from what in the published transfer experiments (`transfer.yaml`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product

from analyses.published.consistent import checked
from analyses.published.printed import Printed, in_words
from analyses.published.rechecked import Book, Key
from analyses.published.recompute import Sums, from_sums, named, pooled
from analyses.published.single_tests import single_tests
from analyses.statistics.t_tests import TTest

BONUS_MOST = 5  # the repetition bonus of the published score
_FROM_SUMS = "sum, sum of squares and n"
_SETTINGS: Mapping[Key, str] = {
    ("n300", "model"): "a name",
    ("n300", "protocol"): "a setting",
    ("n300", "score"): "a setting",
    ("n300", "what_really_ran"): "what the code did, read from it",
    ("pilot", "temperature"): "a setting",
    ("pilot", "new_tokens"): "a setting",
    ("pilot", "strategies"): "a setting: layers and sites",
    ("aggressive", "temperature"): "a setting",
    ("aggressive", "new_tokens"): "a setting",
    ("true_kv", "temperature"): "a setting",
    ("true_kv", "new_tokens"): "a setting",
    ("true_kv", "markers"): "a setting",
    ("geometry", "definition"): "a definition",
}


def transfer_rules(book: Book) -> None:
    """Every rule of the file, in an order in which the stronger comes first."""
    for name, block in book.data.items():
        if isinstance(block, Mapping) and "deltas" in block:
            _sums(book, name)
            _unpaired(book, name)
            _scores(book, name)
            _counts(book, name)
    _single_texts(book)
    single_tests(book)
    for prefix, what in _SETTINGS.items():
        for key in book.under(prefix):
            book.given(key, what)


def _sums(book: Book, block: str) -> None:
    """Figures of the differences from their integer sums, and the sums from these figures."""
    n = book.whole(block, "n_pairs")
    if n is None:
        return
    book.given((block, "n_pairs"), "an input: the number of pairs")
    tests = _tests(book, block, n)
    known = {name: _candidates(book, block, name, n) for name in tests}
    _narrowed(book, block, known, n)
    for name, test in tests.items():
        at = (block, "deltas", name)
        assert None not in (test.ci_low, test.ci_high)
        for figure, value in from_sums(test).items():
            book.recomputed((*at, figure), value, _FROM_SUMS)
        for place, end in enumerate((test.ci_low, test.ci_high)):
            assert end is not None
            book.recomputed((*at, "ci95", str(place)), end, f"{_FROM_SUMS} (95% interval by t)")
        _of_sums(book, at, known[name])


def _of_sums(book: Book, at: Key, candidates: list[tuple[int, int]]) -> None:
    told = "mean, sd, t, p, d and interval, and the unpaired tests"
    for place, figure in enumerate(("sum", "sum_sq")):
        key = (*at, figure)
        printed = book.figure(*key)
        values = sorted({pair[place] for pair in candidates})
        if printed is None or not values:
            continue
        if len(values) == 1:
            book.recomputed(key, float(values[0]), f"the only whole numbers with the printed {told}")
        else:
            within = any(printed.holds(value) for value in values)
            shown = ", ".join(map(str, values[:5]))
            book.possible(key, within, f"{told} leave {shown}")


def _candidates(book: Book, block: str, name: str, n: int) -> list[tuple[int, int]]:
    """Sums and sums of squares of n whole numbers that give every printed figure of one delta."""
    at = (block, "deltas", name)
    mean, sd = book.figure(*at, "mean"), book.figure(*at, "sd")
    if mean is None or sd is None:
        return []
    printed = {figure: book.figure(*at, figure) for figure in ("mean", "sd", "t", "p", "d_ddof0", "d_ddof1")}
    ends = [book.figure(*at, "ci95", str(place)) for place in (0, 1)]
    found = []
    for total in mean.whole_numbers(n):
        lowest, highest = (value**2 * (n - 1) + total**2 / n for value in (max(0.0, sd.low), sd.high))
        for squares in range(math.ceil(lowest), math.floor(highest) + 1):
            if (squares - total) % 2 or squares * n <= total**2:
                continue
            test = _test(total, squares, n)
            values = from_sums(test)
            fits = all(figure is None or figure.holds(values[key]) for key, figure in printed.items())
            interval = zip(ends, (test.ci_low, test.ci_high), strict=True)
            if fits and all(end is None or (v is not None and end.holds(v)) for end, v in interval):
                found.append((total, squares))
    return found


def _narrowed(book: Book, block: str, known: dict[str, list[tuple[int, int]]], n: int) -> None:
    """Drop candidates that no published unpaired contrast allows."""
    for contrast in (book.data[block].get("contrasts_unpaired") or {}) if known else ():
        first, second = (named(part, known) for part in contrast.split("_vs_"))
        printed = [book.figure(block, "contrasts_unpaired", contrast, figure) for figure in ("t", "p")]
        kept = [
            (a, b)
            for a, b in product(known[first], known[second])
            if all(
                figure is None or figure.holds(value)
                for figure, value in zip(printed, pooled(_test(*a, n), _test(*b, n), n), strict=True)
            )
        ]
        if kept:
            known[first] = list(dict.fromkeys(a for a, _ in kept))
            known[second] = list(dict.fromkeys(b for _, b in kept))


def _unpaired(book: Book, block: str) -> None:
    n = book.whole(block, "n_pairs")
    tests = {} if n is None else _tests(book, block, n)
    for contrast in (book.data[block].get("contrasts_unpaired") or {}) if tests else ():
        first, second = (named(part, tests) for part in contrast.split("_vs_"))
        assert n is not None
        for figure, value in zip(("t", "p"), pooled(tests[first], tests[second], n), strict=True):
            key = (block, "contrasts_unpaired", contrast, figure)
            book.recomputed(key, value, f"{_FROM_SUMS} of both, taken as unpaired")


def _scores(book: Book, block: str) -> None:
    """Means of scores from the sums of the differences; sd, range and median by what they allow each
    other."""
    n = book.whole(block, "n_pairs")
    scores = book.data[block].get("scores") or {}
    if n is None or "baseline" not in scores:
        return
    tests = _tests(book, block, n)
    totals = {name: _total(book, block, name) for name in tests}
    base = book.figure(block, "scores", "baseline", "mean")
    at = (block, "scores")
    starts = [] if base is None else list(base.whole_numbers(n))
    for name, total in totals.items():
        mean = book.figure(*at, name, "mean")
        if mean is None or total is None or not starts:
            continue
        alone = [] if base is None else base.whole_numbers(n)
        if not any(mean.holds((start + total) / n) for start in alone):
            ends = ((alone[0] + total) / n, (alone[-1] + total) / n)
            told = (
                f"the baseline's mean and the sum of the differences give {in_words(ends)}, not {mean.text}"
            )
            book.contradicts((*at, name, "mean"), None, told)
            continue
        starts = [start for start in starts if mean.holds((start + total) / n)]
    if len(starts) == 1:
        told = "the sums of the differences leave one sum for the baseline"
        book.recomputed((*at, "baseline", "mean"), starts[0] / n, f"{told}, {starts[0]}")
    elif base is not None:
        told = "some sum of the baseline agrees with all sums of the differences"
        book.possible((*at, "baseline", "mean"), bool(starts), told)
    for name, total in totals.items():
        if total is not None and len(starts) == 1:
            source = f"the sum of the differences and the baseline's sum of {starts[0]}"
            book.recomputed((*at, name, "mean"), (starts[0] + total) / n, source)
    for name in scores:
        _spread(book, at, name, n)
        _correlation(book, block, name)


def _spread(book: Book, at: Key, name: str, n: int) -> None:
    """sd, least, most and median of n whole scores."""
    figures = {key: book.number(*at, name, key) for key in ("mean", "sd", "min", "max", "median")}
    mean, sd, least, most, median = figures.values()
    if mean is None or sd is None:
        return
    printed = Printed(
        n=n,
        mean=book.printed(*at, name, "mean"),
        sd=book.printed(*at, name, "sd"),
        integer=True,
        least=least,
        most=most,
    )
    wrong = [sentence for found in checked(printed).values() for sentence in found]
    if wrong:
        book.contradicts((*at, name, "sd"), None, "; ".join(wrong))
    told = f"some {n} whole numbers have this mean and sd"
    bounds = "" if least is None or most is None else f", all from {least:g} to {most:g}"
    book.possible((*at, name, "sd"), not wrong, told + bounds)
    if least is not None and most is not None:
        held = least <= mean <= most
        book.possible((*at, name, "min"), held, f"the mean {mean:g} is not below it")
        reach = most <= _marker_limit(book, at[0])
        limit = f"the mean {mean:g} is not above it, nor it above {_marker_limit(book, at[0]):g}"
        book.possible((*at, name, "max"), held and reach, limit)
    if median is not None:
        near = abs(mean - median) <= sd and (2 * median).is_integer()
        told = "it is whole or a half, and no further from the mean than the sd"
        book.possible((*at, name, "median"), near, told)


def _marker_limit(book: Book, block: str) -> float:
    """The highest score that there is: every marker once, and the repetition bonus."""
    markers = book.number(block, "score", "markers")
    bonus = book.number(block, "score", "repetition_bonus")
    return math.inf if markers is None else markers + (BONUS_MOST if bonus is None else bonus)


def _correlation(book: Book, block: str, name: str) -> None:
    """The sd of paired differences lies between the difference and the sum of both sd."""
    key = (block, "deltas", name, "sd")
    paired, own, base = (
        book.figure(*at) for at in (key, (block, "scores", name, "sd"), (block, "scores", "baseline", "sd"))
    )
    if name == "baseline" or paired is None or own is None or base is None:
        return
    least = max(0.0, own.low - base.high, base.low - own.high)
    if not paired.meets(least, own.high + base.high):
        told = f"sd {own.text} and {base.text} leave {least:.3g} to {own.high + base.high:.3g}"
        book.contradicts((block, "scores", name, "sd"), None, f"{told} for that of the differences")
        return
    middle = [figure.value for figure in (own, base, paired)]
    a, b, d = (value for value in middle if value is not None)
    correlation = (a * a + b * b - d * d) / (2 * a * b)
    told = f"with the sd of the differences, scores and baseline correlate by {correlation:.2f}"
    book.possible((block, "scores", name, "sd"), True, told)


def _counts(book: Book, block: str) -> None:
    """Counts of strong scores, and of distinct donors, targets and pairs."""
    n = book.whole(block, "n_pairs")
    at = (block, "strong")
    eight, five, zero = (book.whole(*at, name) for name in ("at_least_8", "at_least_5", "zero"))
    if n is not None and eight is not None and five is not None and zero is not None:
        book.possible((*at, "at_least_8"), 0 <= eight <= five, f"they are among the {five} of 5 or more")
        book.possible(
            (*at, "at_least_5"), five + zero <= n, f"with the {zero} of 0 they are no more than {n}"
        )
        book.possible(
            (*at, "zero"), five + zero <= n, f"with the {five} of 5 or more they are no more than {n}"
        )
        _mean_of_counts(book, block, n, eight, five, zero)
    at = (block, "distinct")
    pairs, donors, targets = (book.whole(*at, name) for name in ("pairs", "donors", "targets"))
    if n is not None and pairs is not None and donors is not None and targets is not None:
        most = min(n, donors * targets)
        told = f"there are no more than {most} and no fewer than {max(donors, targets)}"
        book.possible((*at, "pairs"), max(donors, targets) <= pairs <= most, told)
        for name, number in (("donors", donors), ("targets", targets)):
            book.possible((*at, name), 0 < number <= pairs, f"there are no more than {pairs} pairs")


def _mean_of_counts(book: Book, block: str, n: int, eight: int, five: int, zero: int) -> None:
    """The counts bound the mean of the first treated arm, of which they are."""
    name = next(iter(book.data[block]["deltas"]), None)
    if name is None:
        return
    mean, most = book.figure(block, "scores", name, "mean"), book.number(block, "scores", name, "max")
    if mean is None or most is None:
        return
    rest = n - five - zero
    low = (8 * eight + 5 * (five - eight) + rest) / n
    high = (most * eight + 7 * (five - eight) + 4 * rest) / n
    if not mean.meets(low, high):
        told = f"these counts leave a mean of {low:.3g} to {high:.3g} for {name}, not {mean.text}"
        book.contradicts((block, "strong", "at_least_5"), None, told)


def _single_texts(book: Book) -> None:
    """Scores of single texts: the same figure where it is printed twice, else within the highest score."""
    limit = _marker_limit(book, "n300")
    for block, body in book.data.items():
        if not isinstance(body, Mapping):
            continue
        for key in book.under((block, "one_text")):
            score = book.number(*key)
            within = score is not None and 0 <= score <= limit and score.is_integer()
            book.possible(key, within, f"the score of one text is a whole number up to {limit:g}")
    for figure, twin in (("score", "published_v27"), ("baseline", "published_baseline")):
        value = book.number("pilot", "one_text", twin)
        if value is not None:
            book.recomputed(("pilot", "best", figure), value, f"one_text.{twin}")
    book.given(("pilot", "best", "n"), "an input: the number of texts")
    for key in (("pilot", "best", "score"), ("pilot", "best", "baseline")):
        if key not in book.found:
            book.unknown(key, "the score of one text, which is not published with it")
    _true_kv(book)


def _true_kv(book: Book) -> None:
    texts = book.data.get("true_kv", {}).get("one_text") or {}
    markers = book.number("true_kv", "markers")
    limit = _marker_limit(book, "n300") if markers is None else markers + BONUS_MOST
    for place, row in enumerate(book.data.get("true_kv", {}).get("rows") or ()):
        at = ("true_kv", "rows", str(place))
        for key in (*book.under((*at, "0")), *book.under((*at, "1"))):
            book.given(key, "a setting: window and layers")
        window, layers = row[0], row[1]
        cell = f"kv.positions=last:{window}]"
        name = (
            f"published_pair[{cell}" if len(layers) > 1 else f"published_single[kv.layers={layers[0]},{cell}"
        )
        score = book.number(*at, "2")
        if name in texts:
            book.recomputed((*at, "2"), float(texts[name]), "one_text, the same score by condition")
        else:
            told = f"the score of one text is a whole number up to {limit:g}"
            book.possible((*at, "2"), score is not None and 0 <= score <= limit, told)
    for key in book.under(("true_kv", "geometry_pr")):
        _participation(book, key, 16)


def _participation(book: Book, key: Key, window: int) -> None:
    value = book.number(*key)
    told = f"a participation ratio of {window} rows is from 1 to {window}"
    book.possible(key, value is not None and 1 <= value <= window, told)


def _tests(book: Book, block: str, n: int) -> dict[str, TTest]:
    found = {}
    for name in book.data[block]["deltas"]:
        total, squares = _total(book, block, name), book.whole(block, "deltas", name, "sum_sq")
        if total is not None and squares is not None and squares * n > total**2:
            found[str(name)] = _test(total, squares, n)
    return found


def _total(book: Book, block: str, name: str) -> int | None:
    return book.whole(block, "deltas", name, "sum")


def _test(total: int, squares: int, n: int) -> TTest:
    return Sums(total, squares, n).test()
