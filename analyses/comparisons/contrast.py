"""What is known of one declared comparison: the types that a family of contrasts is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from analyses.comparisons.covariates import Adjusted
from analyses.comparisons.cross_checks import CrossCheck
from analyses.comparisons.sensitivity import Sensitivity
from analyses.statistics.clusters import ClusteredMean
from analyses.statistics.equivalence import Equivalence
from analyses.statistics.t_tests import TTest
from analyses.tables.pairs import EQUIVALENCE, Declared, Paired

ALPHA = 0.05
POWER = 0.8
HOLM = "holm"
_CORRECTIONS = {HOLM: "Holm", "bonferroni": "Bonferroni", "benjamini_hochberg": "Benjamini-Hochberg"}


@dataclass(frozen=True)
class Margin:
    """Up to which difference two conditions count as the same. stated: in the experiment, before the run;
    suggested: a third of the positive control's effect in this run. The stated one stands where both are
    there; without either nothing is claimed to be equal."""

    stated: float | None = None
    suggested: float | None = None

    @property
    def used(self) -> float | None:
        """The margin that the equivalence is tested with."""
        return self.suggested if self.stated is None else self.stated


@dataclass(frozen=True)
class Opened:
    """A comparison before its p is corrected over the family."""

    declared: Declared
    margin: Margin
    paired: Paired | None
    test: ClusteredMean | None
    equivalence: Equivalence | None
    note: str
    adjusted: Adjusted | None = None

    @property
    def p(self) -> float | None:
        """The p that counts in the family: that of the difference, or of the equivalence."""
        if self.declared.kind == EQUIVALENCE:
            return None if self.equivalence is None else self.equivalence.p
        return None if self.test is None else self.test.p


@dataclass(frozen=True)
class Contrast:
    """One declared comparison, `condition` minus `against`, on the primary readout.

    `kind` is "difference" (its p is in the family) or "equivalence" (its TOST p is). `test` holds the
    difference, clustered by target and by the donors that either condition reads. `p_corrected` is corrected
    over all `family` declared comparisons by `correction`, and decides the sentence; `p_holm` is that by Holm
    in any case. Cohen's d: d_z of the paired differences, under both conventions, and the mean difference in
    units of the pooled sd of both conditions. `icc` is the correlation of differences that share a donor or a
    target. `detectable` is the difference that this standard error would have found with 80% power at
    alpha / family, the first step of Holm. `exploratory` has means only. `naive` is there only for
    "as_published". `adjusted` is the difference at equal covariates, where any are declared;
    `adjusted_p_holm` is corrected over those of all comparisons. `cross_checks` test the same difference in
    other ways, and `sensitivity` says what invalid trials could do to it, where there are any.
    """

    condition: str
    against: str
    kind: str
    readout: str
    test: ClusteredMean | None
    p_holm: float | None
    p_corrected: float | None
    correction: str
    family: int
    d_z_ddof1: float | None
    d_z_ddof0: float | None
    d_pooled_ddof1: float | None
    icc: Mapping[str, float]
    detectable: float | None
    margin: Margin
    equivalence: Equivalence | None
    cross_checks: tuple[CrossCheck, ...]
    cross_check_sentence: str
    sensitivity: Sensitivity | None
    exploratory: Mapping[str, Mapping[str, float | None]]
    naive: TTest | None
    dropped: str
    note: str
    sentence: str
    adjusted: Adjusted | None = None
    adjusted_p_holm: float | None = None
    adjusted_sentence: str = ""


def correction_name(word: object) -> str:
    """A correction as sentences name it: "benjamini_hochberg" -> "Benjamini-Hochberg"."""
    return _CORRECTIONS.get(str(word), str(word))


def corrected(contrast: Mapping[str, Any]) -> float | None:
    """The p that decides of a contrast in a summary; summaries of older versions have only that by Holm."""
    p: float | None = contrast.get("p_corrected", contrast["p_holm"])
    return p
