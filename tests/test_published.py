"""Published figures follow from the sums behind them, to the printed digits, or are said not to."""

from __future__ import annotations

import pytest
from scipy import stats

from analyses.published.recompute import blocks, contradictions, deltas, published_rows, shown
from analyses.statistics.t_tests import from_moments


def test_every_published_n300_figure_follows_from_its_integer_sums() -> None:
    rows = published_rows("n300")
    assert [f"{row.condition} {row.figure}" for row in rows if not row.agrees] == []
    assert len(rows) == 27


def test_recomputed_n300_figures_to_the_printed_digits() -> None:
    found = {(row.condition, row.figure): row.recomputed for row in published_rows("n300")}
    printed = {
        "mean": "1.87",
        "sd": "2.95",
        "t": "10.96",
        "df": "299",
        "d_ddof0": "0.634",
        "d_ddof1": "0.633",
        "ci95 low": "1.53",
        "ci95 high": "2.20",
    }
    for figure, text in printed.items():
        digits = len(text.partition(".")[2])
        assert f"{found['transfer_l27', figure]:.{digits}f}" == text
    assert f"{found['transfer_l27', 'p']:.2e}" == "9.89e-24"
    assert f"{found['wrong_layer_l5', 'p']:.2e}" == "1.54e-24"
    assert f"{found['random', 'p']:.3f}" == "0.722"
    assert f"{found['transfer_l27 vs random', 'p, unpaired']:.2e}" == "4.35e-18"
    assert f"{found['transfer_l27 vs wrong_layer_l5', 'p, unpaired']:.3f}" == "0.944"


def test_published_intervals_are_those_of_t_not_of_the_normal_distribution() -> None:
    test = deltas("n300")["wrong_layer_l5"]
    assert test.difference is not None and test.sd is not None and test.ci_low is not None
    normal = test.difference - stats.norm.ppf(0.975) * test.sd / 300**0.5
    assert (f"{test.ci_low:.2f}", f"{normal:.2f}") == ("1.52", "1.53")


def test_a_block_without_figures_is_refused_with_those_that_have_them() -> None:
    assert blocks() == ("n300",)
    assert shown() == ("n300", "pilot", "aggressive", "true_kv")
    with pytest.raises(KeyError, match=r"transfer\.yaml.*n300, pilot, aggressive, true_kv.*'geometry'"):
        published_rows("geometry")


def test_scores_of_single_texts_are_shown_and_nothing_is_recomputed_from_them() -> None:
    rows = {row.condition: row for row in published_rows("true_kv")}
    assert len(rows) == 9 and {row.figure for row in rows.values()} == {"score of one text"}
    assert all(row.recomputed is None and row.agrees is None for row in rows.values())
    scores = {row.condition: row.published for row in rows.values()}
    best = "published_single[kv.layers=27,kv.positions=last:32]"
    assert [name for name, score in scores.items() if score != "0"] == [best]
    assert {row.published for row in published_rows("pilot")} == {"0", "11"}


def test_the_geometry_t_test_follows_from_mean_and_sd() -> None:
    test = from_moments(-0.17708979, 0.06571979, 45)
    assert test.t == pytest.approx(-18.07605, abs=1e-4)
    assert test.d_ddof1 == pytest.approx(-2.69462, abs=1e-4)
    assert test.p is not None and test.p / 2 == pytest.approx(2.7493e-22, rel=1e-3)


def test_published_figures_that_contradict_themselves_are_said_to() -> None:
    assert contradictions(t=3.47, n=45, p=0.49) == ["t(44) = 3.47 has p = 0.0012, not 0.49"]
    assert contradictions(t=3.47, n=45, p=0.0012) == []
    (d,) = contradictions(t=-13.892, n=20, arms=2, d=-4.507)
    assert d == "t(38) = -13.892 has d = -4.393, not -4.507 (it is that with ddof 0)"
    assert contradictions(t=-13.892, n=20, arms=2, d=-4.393) == []
    with pytest.raises(ValueError, match="arms"):
        contradictions(t=1.0, n=9, arms=3)
