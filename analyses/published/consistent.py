"""Whether the figures of one published test can be true together, each within what its rounding leaves
open."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from analyses.published.leeway import (
    ANY,
    CLOSE,
    TINY,
    critical,
    df_in_words,
    listed_sizes,
    meet,
    p_in_words,
    p_of,
    p_of_interval,
    positive,
    some_squares,
)
from analyses.published.printed import Figure, Given, Printed, Span, in_words, sizes, span


def consistent(printed: Printed) -> list[str]:
    """Every contradiction among the figures, a sentence each; empty where they can all be true.

    A figure stands for all values that are printed like it, so that rounding alone is never a contradiction.
    Checked are: df against n; the mean against whole numbers over n; sd against whole numbers and bounds; t
    against mean and its standard error; p against t and df, with the other number of sides tried; d against t
    and n, and against mean and sd, with ddof 0 tried; the interval against its middle, its width (by the t
    and the normal distribution) and against p. Raises ValueError for figures that are no numbers, for arms
    other than 1 and 2, and for n, means or sds that do not fit the arms.

    Source: the mean of whole numbers: Brown and Heathers (2017), "The GRIM test"; their sd: Anaya (2016),
    "The GRIMMER test"; p from t: Nuijten et al. (2016), on statcheck.
    """
    return [sentence for found in checked(printed).values() for sentence in found]


def checked(printed: Printed) -> dict[str, list[str]]:
    """The figures that others bear on, by name (`t`, `p`, `ci`, ...), each with its contradictions: none
    where it is as it must be. A figure that nothing bears on is left out. Raises ValueError as `consistent`
    does."""
    return _Test.of(printed).checked()


@dataclass(frozen=True)
class _Test:
    """A test with its figures as intervals; derived where they are not printed."""

    given: Printed
    n: tuple[int, ...]
    mean: Figure | None
    sd: Figure | None
    se: Figure | None
    means: tuple[Figure, ...]
    sds: tuple[Figure, ...]
    t: Figure | None
    df: Figure | None
    p: Figure | None
    d: Figure | None
    ci: tuple[Figure, ...]

    @staticmethod
    def of(given: Printed) -> _Test:
        """Raises ValueError, with all that is wrong."""
        wrong: list[str] = []

        def one(name: str) -> Figure | None:
            value: Given | None = getattr(given, name)
            return None if value is None else _read(name, value, wrong)

        def two(name: str) -> tuple[Figure, ...]:
            values: Sequence[Given] = getattr(given, name) or ()
            if values and (isinstance(values, str) or len(values) != 2):
                wrong.append(f"{name}: expected two figures, got {values!r}")
                return ()
            found = [_read(name, value, wrong) for value in values]
            return tuple(each for each in found if each is not None)

        if given.arms not in (1, 2):
            wrong.append(f"arms: expected 1 or 2, got {given.arms}")
        if given.ddof not in (0, 1):
            wrong.append(f"ddof: expected 0 or 1, got {given.ddof}")
        if not 0 < given.confidence < 1:
            wrong.append(f"confidence: expected a share such as 0.95, got {given.confidence}")
        n = () if given.n is None else (given.n,) if isinstance(given.n, int) else tuple(given.n)
        if n and (len(n) not in (1, given.arms) or any(each < 2 for each in n)):
            wrong.append(f"n: expected {'one number' if given.arms == 1 else 'one or two'}, got {given.n}")
        if given.arms == 1 and (given.means or given.sds):
            wrong.append("means, sds: expected with arms: 2 only")
        names = ("mean", "sd", "se", "t", "df", "p", "d")
        figures = {name: one(name) for name in names}
        test = _Test(
            given, n * given.arms if len(n) == 1 else n, **figures, means=two("means"), sds=two("sds"),
            ci=two("ci"),
        )  # fmt: skip
        if wrong:
            raise ValueError("; ".join(wrong))
        return test

    def checked(self) -> dict[str, list[str]]:
        checks: Sequence[tuple[str, Callable[[], list[str] | None]]] = (
            ("df", self._of_df),
            ("means" if self.means else "mean", self._of_whole_numbers),
            ("sd", self._of_bounds),
            ("mean", self._of_difference),
            ("se", self._of_se),
            ("t", self._of_t),
            ("p", self._of_p),
            ("d", self._of_d),
            ("ci", self._of_interval),
        )
        found = self._ranges()
        for name, check in checks:
            told = check()
            if told is not None:
                found[name] = [*found.get(name, []), *told]
        return found

    # What can be known of a figure, printed or not.

    def _sd(self) -> Span | None:
        """Of the differences, or pooled over the arms."""
        if self.sd is not None:
            return positive(self.sd)
        if len(self.sds) == 2 and len(self.n) == 2:
            a, b = self.n
            return span(
                lambda x, y: math.sqrt(((a - 1) * x * x + (b - 1) * y * y) / (a + b - 2)),
                *map(positive, self.sds),
            )
        return None

    def _mean(self) -> Span | None:
        if self.mean is not None:
            return self.mean.low, self.mean.high
        if len(self.means) == 2:
            return span(lambda x, y: x - y, *((each.low, each.high) for each in self.means))
        return None

    def _ses(self) -> list[tuple[str, Span]]:
        """The standard error, by each way of computing it: printed, pooled, Welch's."""
        if self.se is not None:
            return [("", positive(self.se))]
        if self.given.clustered or not self.n:
            return []
        found = []
        sd = self._sd()
        if sd is not None:
            scale = math.sqrt(sum(1 / n for n in self.n))
            found.append(("", (sd[0] * scale, sd[1] * scale)))
        if len(self.sds) == 2 and len(self.n) == 2:
            a, b = self.n
            parts = map(positive, self.sds)
            found.append(("Welch's", span(lambda x, y: math.sqrt(x * x / a + y * y / b), *parts)))
        return found

    def _dfs(self) -> Span | None:
        if self.df is not None:
            return max(TINY, self.df.low), self.df.high
        if self.given.clustered or not self.n:
            return None
        most = sum(self.n) - len(self.n)
        # Of two arms Welch's df may be as few as those of the smaller one.
        return (most, most) if len(self.n) == 1 else (min(self.n) - 1, most)

    def _welch(self) -> bool:
        """Whether t and its standard error may be Welch's, which are others than the pooled ones."""
        if len(self.n) < 2 or self.n[0] == self.n[1]:
            return False
        return self.df is None or "." in self.df.text or not self.df.holds(sum(self.n) - 2)

    def _ts(self) -> Span | None:
        """|t|, printed or computed."""
        if self.t is not None:
            return sizes((self.t.low, self.t.high))
        mean, ses = self._mean(), self._ses()
        if mean is None or not ses:
            return None
        every = [span(lambda m, s: m / s, sizes(mean), se) for _, se in ses]
        return min(low for low, _ in every), max(high for _, high in every)

    # The checks.

    def _ranges(self) -> dict[str, list[str]]:
        found = {}
        if self.p is not None and not self.p.meets(0.0, 1.0):
            found["p"] = [f"p is {self.p.text}, and no p is outside 0 to 1"]
        for name, figure in (("sd", self.sd), ("se", self.se), *(("sds", each) for each in self.sds)):
            if figure is not None and figure.high < 0:
                found[name] = [f"{name} is {figure.text}, and none is below 0"]
        if self.df is not None and self.df.high <= 0:
            found["df"] = [f"df is {self.df.text}, and none is 0 or below"]
        return found

    def _of_df(self) -> list[str] | None:
        if self.df is None or not self.n or self.given.clustered:
            return None
        most = sum(self.n) - len(self.n)
        least = most if len(self.n) == 1 else min(self.n) - 1
        if self.df.meets(least, most) if least < most else self.df.holds(most):
            return []
        told = f"{most}" if least == most else f"{most} (Welch's: {least} or more)"
        return [f"n = {listed_sizes(self.n)} leaves {told} degrees of freedom, not {self.df.text}"]

    def _of_whole_numbers(self) -> list[str] | None:
        """GRIM and GRIMMER: the mean and the sd of whole numbers."""
        printed = self.mean if len(self.n) == 1 else self.means
        if not self.given.integer or not self.n or not printed:
            return None
        n = self.n[0]
        parts = [("", self.mean, self.sd, n)] if len(self.n) == 1 else []
        if len(self.means) == len(self.n) == 2:
            sds = self.sds or (None, None)
            names = ("of the first arm ", "of the second arm ")
            parts = list(zip(names, self.means, sds, self.n, strict=True))
        found = []
        for name, mean, sd, many in parts:
            if mean is None:
                continue
            sums = mean.whole_numbers(many)
            if not sums:
                near = round((mean.value or 0.0) * many)
                found.append(
                    f"no {many} whole numbers have the mean {name}{mean.text}: {near}/{many} is "
                    f"{near / many:.6g}"
                )
            elif sd is not None and not any(some_squares(total, many, sd) for total in sums):
                population = any(some_squares(total, many, sd, ddof=0) for total in sums)
                hint = " (with ddof 0 some have)" if population else ""
                told = f"no {many} whole numbers with the mean {name}{mean.text} have the sd {sd.text}"
                found.append(told + hint)
        return found

    def _of_bounds(self) -> list[str] | None:
        """Mean and sd of values that lie between two bounds."""
        least, most = self.given.least, self.given.most
        if least is None or most is None or len(self.n) > 1 or self.mean is None:
            return None
        if not self.mean.meets(least, most):
            return [f"the mean {self.mean.text} is not between the bounds {least:g} and {most:g}"]
        if self.sd is None or not self.n:
            return None
        n, middle = self.n[0], (least + most) / 2
        low, high = max(least, self.mean.low), min(most, self.mean.high)
        widest = min(max(middle, low), high)  # the mean in reach that leaves the most room
        limit = math.sqrt(max(0.0, (most - widest) * (widest - least)) * n / (n - 1))
        if self.sd.low <= limit * (1 + CLOSE):
            return []
        return [
            f"{n} values between {least:g} and {most:g} with the mean {self.mean.text} have an sd of at most "
            f"{limit:.3g}, not {self.sd.text}"
        ]

    def _of_difference(self) -> list[str] | None:
        if self.mean is None or len(self.means) != 2:
            return None
        low, high = span(lambda x, y: x - y, *((each.low, each.high) for each in self.means))
        if self.mean.meets(low, high):
            return []
        first, second = (each.text for each in self.means)
        return [f"the means {first} and {second} differ by {in_words((low, high))}, not {self.mean.text}"]

    def _of_se(self) -> list[str] | None:
        sd = self._sd()
        if self.se is None or sd is None or not self.n or self.given.clustered:
            return None
        scale = math.sqrt(sum(1 / n for n in self.n))
        low, high = sd[0] * scale, sd[1] * scale
        if self.se.meets(low, high) or self._welch():
            return []
        return [f"the sd and n give a standard error of {in_words((low, high))}, not {self.se.text}"]

    def _of_t(self) -> list[str] | None:
        mean, ses = self._mean(), self._ses()
        if self.t is None or mean is None or not ses:
            return None
        printed = sizes((self.t.low, self.t.high))
        every = [span(lambda m, s: m / s, sizes(mean), se) for _, se in ses]
        if any(meet(printed, each) for each in every):
            same = self.t.low * mean[0] >= 0 or self.t.low <= 0 <= self.t.high or mean[0] <= 0 <= mean[1]
            return [] if same else [f"t is {self.t.text}, although the mean has the other sign"]
        return [f"the mean and its standard error give t = {in_words(every[0])}, not {self.t.text}"]

    def _of_p(self) -> list[str] | None:
        t, known = self._ts(), self._dfs()
        if self.p is None or t is None:
            return None
        df = ANY if known is None else known
        sides = 1 if self.given.one_sided else 2
        low, high = p_of(t, df, sides)
        if self.p.meets(low, high):
            return None if known is None else []  # of unknown df it is possible, and does not follow
        name = f"t{df_in_words(known)} = {self.t.text if self.t is not None else in_words(t)}"
        hint = ""
        if self.p.meets(*p_of(t, df, 3 - sides)):
            hint = f" (that is the {'one' if sides == 2 else 'two'}-sided p)"
        elif sides == 1 and self.p.meets(1 - high, 1 - low):
            hint = " (that is the p of the other side)"
        sided = "one-sided " if sides == 1 else ""
        return [f"{name} has {sided}p = {p_in_words((low, high))}, not {self.p.text}{hint}"]

    def _of_d(self) -> list[str] | None:
        if self.d is None:
            return None
        found: list[str] = []
        known = False
        printed = sizes((self.d.low, self.d.high))
        mean, sd = self._mean(), self._sd()
        if mean is not None and sd is not None:
            ratio = span(lambda m, s: m / s, sizes(mean), sd)
            if self.n or self.given.ddof == 1:
                known = True
                found += self._against_d(printed, ratio, "the mean and the sd give")
        if not found and self.t is not None and self.n and not self.given.clustered and not self._welch():
            known = True
            scale = math.sqrt(sum(1 / n for n in self.n))
            low, high = sizes((self.t.low, self.t.high))
            name = f"t({sum(self.n) - len(self.n)}) = {self.t.text} has"
            found += self._against_d(printed, (low * scale, high * scale), name)
        return found if known else None

    def _against_d(self, printed: Span, by_sample: Span, source: str) -> list[str]:
        """by_sample: d with ddof 1."""
        total = sum(self.n)
        population = math.sqrt(total / (total - len(self.n))) if self.n else 1.0
        stated, other = (population, 1.0) if self.given.ddof == 0 else (1.0, population)
        low, high = (value * stated for value in by_sample)
        if meet(printed, (low, high)):
            return []
        hint = ""
        if meet(printed, (by_sample[0] * other, by_sample[1] * other)):
            hint = f" (it is that with ddof {1 - self.given.ddof})"
        assert self.d is not None
        sign = -1.0 if self.d.high <= 0 else 1.0
        told = in_words((sign * low, sign * high))
        return [f"{source} d = {told}, not {self.d.text}{hint}"]

    def _of_interval(self) -> list[str] | None:
        if len(self.ci) != 2:
            return None
        low, high = self.ci
        if low.low > high.high:
            return [f"the interval {low.text} to {high.text} ends before it begins"]
        found: list[str] = []
        middle = ((low.low + high.low) / 2, (low.high + high.high) / 2)
        mean = self._mean()
        if mean is not None and not meet(mean, middle):
            named = self.mean.text if self.mean is not None else in_words(mean)
            found.append(
                f"the interval {low.text} to {high.text} has {in_words(middle)} in its middle, not {named}"
            )
        half = (max(0.0, (high.low - low.high) / 2), max(0.0, (high.high - low.low) / 2))
        df = self._dfs()
        crit = critical(df, self.given.confidence)
        ses = self._ses()
        if ses and not any(meet(half, (crit[0] * se[0], crit[1] * se[1])) for _, se in ses):
            wanted = (crit[0] * ses[0][1][0], crit[1] * ses[0][1][1])
            found.append(
                f"the standard error gives an interval of +-{in_words(wanted)}, and {low.text} to "
                f"{high.text} is one of +-{in_words(half)}"
            )
        elif not ses and mean is not None and self._ts() is None and self.p is not None and half[0] > 0:
            p = p_of_interval(mean, half, df, self.given.confidence, 1 if self.given.one_sided else 2)
            if not self.p.meets(*p):
                found.append(
                    f"the interval {low.text} to {high.text} goes with p = {p_in_words(p)}, not {self.p.text}"
                )
        if not found and df is None:
            return None  # how wide it must be is not known
        return found if ses or mean is not None else None


def _read(name: str, value: Given, wrong: list[str]) -> Figure | None:
    try:
        return Figure.of(value)
    except ValueError as error:
        wrong.append(f"{name}: {error}")
        return None
