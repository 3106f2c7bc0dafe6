"""Published figures are recomputed, and those that cannot be true together are said to be so."""

from __future__ import annotations

import io
import json
import math
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from analyses.published.consistent import checked, consistent
from analyses.published.printed import Figure, Printed
from analyses.published.recheck import NO_RULE, PublishedError, embedded, recheck, unexpected
from analyses.published.rechecked import CONTRADICTORY, NOT_REPRODUCIBLE, NOTHING, REPRODUCED
from runner.commands import recheck as command
from runner.config.errors import ConfigurationError
from runner.status import DONE

# What of the embedded files cannot be recomputed, and why. A figure that is in neither table fails the test.
UNKNOWN = {
    "n300.distinct.*": "counts of prompts, which are not published",
    "n300.scores.*.sd": "sums of squares of scores are not published",
    "n300.scores.*.min": "scores are not published",
    "n300.scores.*.max": "scores are not published",
    "n300.scores.*.median": "scores are not published",
    "n300.strong.*": "scores are not published",
    "*.one_text.*": "the text is not published",
    "true_kv.geometry_pr.*": "activations are not published",
    "geometry.mistral_7b_base_n45.recursive.*": "activations are not published",
    "geometry.mistral_7b_base_n45.baseline.*": "activations are not published",
    "geometry.mistral_7b_base_n45.random": "activations are not published",
    "geometry.mistral_7b_base_n45.wrong_layer_21": "activations are not published",
    "two_hop.*.sequential": "layers of the lens are not published",
    "two_hop.*.gap": "layers of the lens are not published",
    "refusal_direction.*.0": "norms by layer are not published",
    "refusal_direction.*.2": "activations are not published",
    "sycophancy_confidence.*.0": "norms by layer are not published",
    "sycophancy_confidence.*.2": "activations are not published",
    "back_patching_of_15.*": "outcomes by case are not published",
    "function_vectors_layer_level.*": "outcomes by item are not published",
    "cross_lingual_refusal.*": "outcomes by prompt are not published",
    "papers.hopping_too_late.back_patching_fixes": "counts are not in the file",
    "papers.function_vectors.gpt_j.*": "outcomes by item are not published",
    "papers.refusal.*": "outcomes by prompt are not published",
}
NO_RESULTS = {
    "n300.model": "a name",
    "n300.n_pairs": "an input",
    "n300.protocol.*": "settings",
    "n300.score.*": "settings",
    "n300.what_really_ran.*": "read from the code",
    "pilot.*": "settings, and the number of texts",
    "aggressive.*": "settings",
    "true_kv.*": "settings",
    "geometry.definition": "a definition",
    "geometry.rv_l27_t.mean": "an input",
    "geometry.rv_l27_t.sd": "an input",
    "geometry.rv_l27_t.n": "an input",
    "statistics_fixtures.must_not_pass.*": "inputs and remarks",
    "two_hop.*.layers": "an input",
    "two_hop.*.of": "an input",
    "refusal_direction.*.3": "a judgement in a word",
    "cross_lingual_refusal.languages.*": "settings",
    "papers.*": "names and settings",
}


@pytest.mark.parametrize("name", ["transfer", "cross_model"])
def test_every_published_figure_is_recomputed_or_known_not_to_be(name: str) -> None:
    found = recheck(name)
    data = embedded()[name]
    assert len(found) == len({each.key for each in found}) > 100, data
    assert [each.key for each in found if each.sentence == NO_RULE] == []
    tables = {NOT_REPRODUCIBLE: UNKNOWN, NOTHING: NO_RESULTS}
    for verdict, table in tables.items():
        keys = [each.key for each in found if each.verdict == verdict]
        assert [key for key in keys if not any(fnmatchcase(key, known) for known in table)] == []
    assert unexpected(found) == []


def test_what_can_be_recomputed_is() -> None:
    found = {each.key: each for name in embedded() for each in recheck(name)}
    wanted = [
        *(f"n300.deltas.{arm}.{figure}" for arm in ("transfer_l27", "random", "wrong_layer_l5")
          for figure in ("sum", "sum_sq", "mean", "sd", "t", "p", "d_ddof0", "ci95.0", "ci95.1")),
        *(f"n300.scores.{arm}.mean" for arm in ("baseline", "transfer_l27", "random", "wrong_layer_l5")),
        *(f"n300.contrasts_unpaired.{pair}.{figure}" for pair in ("transfer_vs_random", "transfer_vs_wrong")
          for figure in ("t", "p")),
        *(f"geometry.rv_l27_t.{figure}" for figure in ("t", "p_one_sided", "d")),
        *(f"statistics_fixtures.mcnemar_exact.{pair}" for pair in ("8/1", "9/4", "7/1")),
        *(f"refusal_direction.{model}.1" for model in ("gemma_2_2b", "llama_3_1_8b", "gemma_2_9b")),
        "sycophancy_confidence.gemma_2_2b.sycophancy.1",
        "statistics_fixtures.must_not_pass.0.true_p",
    ]  # fmt: skip
    assert {key: found[key].verdict for key in wanted} == dict.fromkeys(wanted, REPRODUCED)
    assert found["n300.scores.baseline.mean"].recomputed == 227 / 300


def test_figures_that_contradict_themselves_are_flagged_as_the_file_declares() -> None:
    found = {each.key: each for each in recheck("transfer") if each.verdict == CONTRADICTORY}
    first, second = (f"statistics_fixtures.must_not_pass.{place}" for place in (0, 1))
    assert set(found) == {f"{first}.published_p", f"{second}.published_d"}
    assert all(each.expected for each in found.values())
    assert "p = 0.0012, not 0.49" in found[f"{first}.published_p"].sentence
    assert "-4.393, not -4.507 (it is that with ddof 0)" in found[f"{second}.published_d"].sentence


@pytest.mark.parametrize(
    ("name", "old", "new", "key"),
    [
        ("transfer", "sd: 2.95", "sd: 2.85", "n300.deltas.transfer_l27.sd"),
        ("transfer", "t: 8.95", "t: 8.59", "n300.contrasts_unpaired.transfer_vs_random.t"),
        ("transfer", "ci95: [1.52, 2.18]", "ci95: [1.52, 2.81]", "n300.deltas.wrong_layer_l5.ci95.1"),
        ("transfer", "mean: 2.62", "mean: 2.72", "n300.scores.transfer_l27.mean"),
        ("transfer", "sd: 2.62, min", "sd: 7.9, min", "n300.scores.wrong_layer_l5.sd"),
        ("transfer", "at_least_8: 21", "at_least_8: 121", "n300.strong.at_least_8"),
        ("transfer", "pairs: 290", "pairs: 90", "n300.distinct.pairs"),
        ("transfer", ", v_proj: 4.43", ", v_proj: 44.3", "true_kv.geometry_pr.v_proj"),
        ("transfer", "t: -18.07605", "t: -17.07605", "geometry.rv_l27_t.t"),
        ("transfer", "0.266846", "0.166846", "statistics_fixtures.mcnemar_exact.9/4"),
        ("cross_model", "[16, 64, 201.88", "[16, 62, 201.88", "refusal_direction.gemma_2_2b.1"),
        (
            "cross_model",
            "[22, 79, 15.9]",
            "[22, 97, 15.9]",
            "sycophancy_confidence.llama_3_2_3b.sycophancy.1",
        ),
        ("cross_model", "gap: 2.2", "gap: 2.4", "two_hop.llama_3_2_3b.gap"),
        ("cross_model", "[12, 5]", "[22, 5]", "back_patching_of_15.llama_3_2_3b.0"),
        ("cross_model", "[100, 0, 100,", "[100, 30, 100,", "cross_lingual_refusal.qwen_2_5_7b.1"),
    ],
)
def test_a_figure_that_is_changed_is_flagged(tmp_path: Path, name: str, old: str, new: str, key: str) -> None:
    text = embedded()[name].read_text(encoding="utf-8")
    assert old in text
    changed = tmp_path / "changed.yaml"
    changed.write_text(text.replace(old, new, 1), encoding="utf-8")
    assert key in [each.key for each in unexpected(recheck(changed))]


def test_a_figure_of_which_nobody_knows_what_it_follows_from_is_said_to_be_so(tmp_path: Path) -> None:
    file = tmp_path / "more.yaml"
    file.write_text("geometry: {new_figure: 1.5}\n", encoding="utf-8")
    (row,) = recheck(file)
    assert (row.key, row.verdict, row.sentence) == ("geometry.new_figure", NOT_REPRODUCIBLE, NO_RULE)


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [("0.63", 0.625, 0.635), ("2.20", 2.195, 2.205), ("9.89e-24", 9.885e-24, 9.895e-24), ("3", 2.5, 3.5),
     ("\N{MINUS SIGN}1.5", -1.55, -1.45), ("< .001", -math.inf, 0.001), ("> 2", 2.0, math.inf)],
)  # fmt: skip
def test_a_printed_figure_stands_for_all_that_rounds_to_it(text: str, low: float, high: float) -> None:
    figure = Figure.of(text)
    assert (figure.low, figure.high) == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("figures", "wrong"),
    [
        ({"t": "3.47", "n": 45, "p": "0.49"}, ["t(44) = 3.47 has p = 0.0012, not 0.49"]),
        ({"t": "3.47", "n": 45, "p": "0.0012"}, []),
        ({"t": "3.47", "n": 45, "p": "0.0006"}, ["p = 0.0012, not 0.0006 (that is the one-sided p)"]),
        ({"t": "3.47", "n": 45, "p": "0.0006", "one_sided": True}, []),
        ({"t": "3.47", "n": 45, "p": "0.0012", "one_sided": True}, ["(that is the two-sided p)"]),
        ({"t": "2.0", "df": "40", "p": "< 0.001"}, ["not < 0.001"]),
        ({"t": "-13.892", "n": 20, "arms": 2, "d": "-4.507"}, ["(it is that with ddof 0)"]),
        ({"t": "-13.892", "n": 20, "arms": 2, "d": "-4.507", "ddof": 0}, []),
        ({"t": "-13.892", "n": 20, "arms": 2, "d": "-4.393"}, []),
        ({"n": 300, "df": 300}, ["n = 300 leaves 299 degrees of freedom, not 300"]),
        ({"n": (20, 30), "arms": 2, "df": "41.7"}, []),
        ({"n": (20, 30), "arms": 2, "df": "49"}, ["leaves 48 (Welch's: 19 or more) degrees of freedom"]),
        ({"n": 20, "mean": "3.48", "integer": True}, ["no 20 whole numbers have the mean 3.48: 70/20"]),
        ({"n": 20, "mean": "3.45", "integer": True}, []),
        ({"n": 5, "mean": "3.2", "sd": "0.20", "integer": True}, ["have the sd 0.20"]),
        ({"n": 5, "mean": "3.2", "sd": "0.45", "integer": True}, []),
        ({"n": 20, "mean": "2.0", "sd": "9", "least": 0, "most": 10}, ["an sd of at most 4.1"]),
        ({"n": 9, "mean": "12", "least": 0, "most": 10}, ["12 is not between the bounds 0 and 10"]),
        ({"mean": "1.87", "ci": ("1.53", "2.40")}, ["has 1.96 to 1.97 in its middle, not 1.87"]),
        ({"mean": "1.87", "ci": ("1.53", "2.21"), "p": "0.3"}, ["not 0.3"]),
        ({"mean": "1.87", "sd": "2.95", "n": 300, "ci": ("1.67", "2.07")}, ["gives an interval of +-0.33"]),
        ({"mean": "1.87", "se": "0.17", "clustered": True, "n": 300, "t": "11.0"}, []),
        ({"mean": "1.87", "se": "0.30"}, []),
        ({"mean": "1.87", "se": "0.30", "t": "11.0"}, ["give t = 6.1"]),
        ({"mean": "-1.87", "sd": "2.95", "n": 300, "t": "10.98"}, ["the mean has the other sign"]),
        ({"means": ("2.62", "0.80"), "arms": 2, "mean": "1.87", "n": 300}, ["differ by 1.81 to 1.83"]),
        ({"p": "1.2"}, ["p is 1.2, and no p is outside 0 to 1"]),
        ({"n": 12, "sd": "-1"}, ["sd is -1, and none is below 0"]),
    ],
)  # fmt: skip
def test_what_cannot_be_true_together(figures: dict[str, Any], wrong: list[str]) -> None:
    found = consistent(Printed(**figures))
    assert len(found) == len(wrong), found
    for part, sentence in zip(wrong, found, strict=True):
        assert part in sentence


def test_all_that_is_wrong_with_the_figures_is_said_at_once() -> None:
    with pytest.raises(ValueError, match=r"arms: expected 1 or 2, got 3.*t: expected a number as printed"):
        consistent(Printed(arms=3, t="three"))


def printed_of(values: np.ndarray[Any, Any], digits: int) -> dict[str, Any]:
    """The figures of a one-sample t test, each rounded to some digits."""
    n, mean, sd = len(values), float(values.mean()), float(values.std(ddof=1))
    test = stats.ttest_1samp(values, 0.0)
    low, high = test.confidence_interval(0.95)
    figures = {"mean": mean, "sd": sd, "se": sd / math.sqrt(n), "t": test.statistic, "d": mean / sd}
    told: dict[str, Any] = {name: f"{value:.{digits}f}" for name, value in figures.items()}
    return told | {
        "n": n,
        "df": n - 1,
        "p": f"{test.pvalue:.{digits - 1}e}",
        "ci": (f"{low:.{digits}f}", f"{high:.{digits}f}"),
        "integer": True,
    }


WHOLE = st.lists(st.integers(-20, 20), min_size=4, max_size=60).filter(lambda xs: len(set(xs)) > 1)


@settings(max_examples=150, deadline=None)
@given(WHOLE, st.integers(2, 4))
def test_figures_of_real_data_are_never_flagged(values: list[int], digits: int) -> None:
    found = printed_of(np.array(values, dtype=float), digits)
    assert consistent(Printed(**found)) == []


@settings(max_examples=100, deadline=None)
@given(WHOLE, st.integers(3, 4), st.sampled_from(["t", "d", "p", "se"]), st.floats(1.3, 3.0))
def test_a_figure_that_is_off_by_a_third_is_flagged(
    values: list[int], digits: int, name: str, factor: float
) -> None:
    found = printed_of(np.array(values, dtype=float), digits)
    value = float(found[name])
    if abs(float(found["t"])) < 0.5 or abs(value) < 1e-290 or float(found["sd"]) < 0.5 or abs(value) < 0.02:
        return
    changed = value * factor if name != "p" else value / factor
    found[name] = f"{changed:.{digits}f}" if name != "p" else f"{changed:.{digits - 1}e}"
    assert checked(Printed(**found))[name] or any(consistent(Printed(**found)))


@settings(max_examples=60, deadline=None)
@given(WHOLE, WHOLE, st.integers(2, 4), st.booleans())
def test_figures_of_two_arms_are_never_flagged(
    first: list[int], second: list[int], digits: int, equal: bool
) -> None:
    a, b = np.array(first, dtype=float), np.array(second, dtype=float)
    test = stats.ttest_ind(a, b, equal_var=equal)
    low, high = test.confidence_interval(0.95)
    assert consistent(
        Printed(
            arms=2,
            n=(len(a), len(b)),
            means=tuple(f"{x.mean():.{digits}f}" for x in (a, b)),
            sds=tuple(f"{x.std(ddof=1):.{digits}f}" for x in (a, b)),
            t=f"{test.statistic:.{digits}f}",
            df=f"{test.df:.{digits}f}",
            p=f"{test.pvalue:.{digits - 1}e}",
            ci=(f"{low:.{digits}f}", f"{high:.{digits}f}"),
            integer=True,
        )
    ) == []  # fmt: skip


CLAIMS = """\
source: a paper
claims:
  transfer: {what: score, n: 300, mean: 1.87, sd: 2.95, t: 10.96, df: 299, p: "< 0.001", d: 0.63}
  contraction: {n: 45, t: 3.47, p: 0.49}
  responders: {count: 21, of: 300, percent: 7}
  discordant: {mcnemar: [8, 1], p: 0.039}
  table: {fisher: [[9, 6], [2, 13]], p: 0.021}
  length: {r: 0.42, n: 45, p: 0.004, ci: [0.14, 0.64]}
  known: {expect: contradictory, n: 45, t: 3.47, p: 0.49}
"""


def save(folder: Path, text: str) -> Path:
    file = folder / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    found = {each.key.removeprefix("claims."): each for each in recheck(save(tmp_path, CLAIMS))}
    verdicts = {key: each.verdict for key, each in found.items()}
    reproduced = ["transfer.t", "transfer.df", "transfer.p", "transfer.d", "responders.percent"]
    reproduced += ["discordant.p", "table.p", "length.p", "length.ci"]
    assert {key for key, verdict in verdicts.items() if verdict == REPRODUCED} == set(reproduced)
    assert verdicts["transfer.n"] == NOTHING and verdicts["transfer.sd"] == NOT_REPRODUCIBLE
    wrong = {key for key, verdict in verdicts.items() if verdict == CONTRADICTORY}
    assert wrong == {"contraction.p", "known.p"}
    assert not found["contraction.p"].expected and found["known.p"].expected


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("percent: 7", "percent: 9", "responders.percent"),
        ("count: 21", "count: 321", "responders.count"),
        ("[8, 1]", "[8, 3]", "discordant.p"),
        ("[9, 6]", "[3, 12]", "table.p"),
        ("p: 0.004", "p: 0.04", "length.p"),
        ("ci: [0.14, 0.64]", "ci: [0.14, 0.70]", "length.ci"),
        ("r: 0.42", "r: 1.42", "length.r"),
        ("t: 3.47, p: 0.49}\n", "t: 3.47, p: 0.0012}\n", "known"),
    ],
)
def test_claims_of_every_form_are_judged(tmp_path: Path, old: str, new: str, key: str) -> None:
    assert old in CLAIMS
    file = save(tmp_path, CLAIMS.replace(old, new))
    assert f"claims.{key}" in [each.key for each in unexpected(recheck(file))]


def test_all_mistakes_of_a_file_are_said_with_their_keys(tmp_path: Path) -> None:
    text = "claims:\n  a: {n: 3.5, pp: 0.1}\n  b: {t: abc, n: 4}\n  c: 5\n  d: {count: 4, expect: maybe}\n"
    with pytest.raises(PublishedError) as raised:
        recheck(save(tmp_path, text))
    for part in (
        "mine.yaml: claims.a.pp: no such figure",
        "did you mean 'p'?",
        "claims.a: n: expected a whole number",
        "claims.b: t: expected a number as printed",
        "claims.c: expected figures by name",
        "claims.d: of: expected beside count",
        "claims.d.expect: expected 'contradictory'",
    ):
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\na: 2\n", "'a' stands twice"),
        ("nothing: 1\n", "expected claims, or a block such as n300; got nothing"),
        ("claims: 3\n", "claims: expected claims by name, got '3'"),
        ("- 1\n", "expected figures by name"),
        ("a: [1\n", "expected YAML"),
        (
            "n300: {n_pairs: many, deltas: {a: {sum: 1}}}\n",
            "n300.n_pairs: expected a whole number, got 'many'",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(PublishedError, match=r"mine\.yaml") as raised:
        recheck(save(tmp_path, text))
    assert told in str(raised.value)


def test_embedded_files_are_found_by_name_and_others_are_told() -> None:
    wanted = len(recheck("transfer"))
    for name in ("transfer.yaml", "published/transfer.yaml"):
        assert len(recheck(name)) == wanted
    with pytest.raises(PublishedError, match=r"one of cross_model, transfer.*did you mean 'transfer'"):
        recheck("transfr")


def said(*words: str) -> tuple[int, str]:
    out = io.StringIO()
    return command.run(words, Console(width=110, file=out)), out.getvalue()


def test_the_command_ends_with_3_where_a_contradiction_is_not_declared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, told = said("published/transfer.yaml")
    assert status == DONE
    assert "2 contradictory, 55 reproduced" in told and "the file says so itself" in told
    file = str(save(tmp_path, CLAIMS))
    status, told = said(file, "show=contradictory")
    assert status == command.CONTRADICTED == 3
    assert "claims.contraction.p" in told and "claims.transfer.t" not in told
    assert said(file, "format=json")[0] == 3
    rows = json.loads(capsys.readouterr().out)[file]
    assert {row["verdict"] for row in rows} == {CONTRADICTORY, REPRODUCED, NOT_REPRODUCIBLE, NOTHING}
    with pytest.raises(ConfigurationError, match=r"absent\.yaml.*expected a file"):
        said("absent.yaml")
