"""Contrasts, summary files and terminal table of a run made from known figures."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console
from scipy import stats

from analyses.comparisons.contrasts import contrasts
from analyses.summary.markdown import to_markdown
from analyses.summary.summary import summarise, write_summary
from analyses.summary.terminal import print_summary
from analyses.tables.pairs import pair
from analyses.tables.run import Run, load_run, value_columns
from analyses.wording import figure, in_column, p_value, share, together
from tests.made_run import EFFECTS, N, made_manifest, made_run, made_trials, save


def test_the_family_is_each_condition_against_the_baseline_with_holm_over_all() -> None:
    found = contrasts(made_trials(), made_manifest(extra=[["kv_only", "kv_plain"]]))
    assert [(c.condition, c.against) for c in found] == [
        ("kv_only", "baseline"),
        ("transfer_l5", "baseline"),
        ("kv_plain", "baseline"),
        ("kv_self", "baseline"),
        ("kv_only", "kv_plain"),
    ]
    assert {c.family for c in found} == {5}
    smallest = min(c.test.p for c in found if c.test is not None and c.test.p is not None)
    assert min(c.p_holm for c in found if c.p_holm is not None) == pytest.approx(5 * smallest)


def test_a_difference_is_one_plain_sentence_with_its_figures() -> None:
    (first, *_) = contrasts(made_trials(), made_manifest())
    test = first.test
    assert test is not None
    expected = pair(made_trials(), "kv_only", "baseline", "score").difference.mean()
    assert first.sentence == (
        f"kv_only raises score by {expected:.2f} (95% CI {figure(test.ci_low)} to {figure(test.ci_high)}, "
        f"{p_value(first.p_holm)} after Holm; 60 pairs, 12 donors x 15 targets, "
        f"effective n {round(test.effective_n or 0)})."
    )


def test_trap_32_no_difference_shown_is_not_called_equal() -> None:
    (plain,) = [c for c in contrasts(made_trials(), made_manifest()) if c.condition == "kv_plain"]
    assert plain.sentence.startswith("No difference in score shown between kv_plain and baseline")
    assert "This does not show that they are equal." in plain.sentence
    assert "would have been found with 80% power" in plain.sentence


def test_an_interval_that_only_the_correction_undoes_is_explained() -> None:
    trials = made_trials()
    # Repeating one comparison in the family makes the correction stricter, the interval stays.
    weak = trials["condition"].eq("kv_plain") & trials["item"].lt("0010")
    trials.loc[weak, "score"] += 1
    (alone,) = contrasts(trials, made_manifest(family="none", extra=[["kv_plain", "baseline"]]))
    assert alone.sentence.startswith("kv_plain raises score") and alone.p_holm is not None
    others = [["kv_self", "baseline"]] * 60
    many = contrasts(trials, made_manifest(family="none", extra=[["kv_plain", "baseline"], *others]))
    assert "The interval leaves 0 out, but it is not corrected" in many[0].sentence
    assert (many[0].detectable or 0) > (alone.detectable or math.inf)


def test_trap_32_equality_is_claimed_only_within_a_declared_margin_that_holds() -> None:
    def last(margin: float) -> str:
        same = [["transfer_l5", "kv_only", {"margin": margin}]]
        contrast = contrasts(made_trials(), made_manifest(same=same))[-1]
        assert contrast.kind == "equivalence" and contrast.equivalence is not None
        return contrast.sentence

    assert last(3).startswith("transfer_l5 and kv_only are equal in score within a margin of 3")
    assert last(0.1).startswith(
        "transfer_l5 and kv_only are not shown to be equal in score within a margin of 0.1"
    )


def test_trap_20_arms_without_any_difference_are_not_tested() -> None:
    (same,) = [c for c in contrasts(made_trials(), made_manifest()) if c.condition == "kv_self"]
    assert same.p_holm is None and same.test is not None and same.test.p is None
    assert same.sentence == (
        "kv_self and baseline: all 60 paired differences in score are 0.00; nothing to test."
    )


def test_trap_29_naive_figures_stand_under_as_published_only() -> None:
    assert all(c.naive is None for c in contrasts(made_trials(), made_manifest()))
    assert summarise(made_run())["published"] is None
    trials = made_trials()
    summary = summarise(made_run(statistics="as_published", extra=[["kv_only", "kv_plain"]]))
    first, between = summary["contrasts"][0], summary["contrasts"][-1]
    delta = pair(trials, "kv_only", "baseline", "score").difference
    other = pair(trials, "kv_plain", "baseline", "score").difference
    assert first["as_published"]["t"] == pytest.approx(stats.ttest_1samp(delta, 0).statistic)
    assert first["as_published"]["d_ddof0"] == pytest.approx(delta.mean() / delta.std())
    assert between["as_published"]["t"] == pytest.approx(stats.ttest_ind(delta, other).statistic)
    # The corrected figures stay what they are.
    assert first["t"] == pytest.approx(contrasts(trials, made_manifest())[0].test.t)  # type: ignore[union-attr]
    assert set(summary["published"]["this_run"]) == set(EFFECTS) - {"baseline"}
    assert len(summary["published"]["between_arms"]) == 6


def test_other_readouts_are_means_without_a_test() -> None:
    (first, *_) = summarise(made_run())["contrasts"]
    assert set(first["exploratory"]) == {"markers", "bonus", "strict", "perplexity"}
    perplexity = first["exploratory"]["perplexity"]
    assert perplexity == {"condition": 21.0, "against": 20.0, "difference": 1.0}


def test_a_missing_readout_or_condition_is_said() -> None:
    trials = made_trials()
    without = contrasts(trials.drop(columns="score"), made_manifest())
    assert "the table has no column score" in without[0].sentence
    partial = contrasts(trials[trials["condition"] != "kv_only"], made_manifest())
    assert "cannot be compared" in partial[0].sentence and partial[0].p_holm is None


def test_the_summary_holds_descriptions_receipts_and_counts() -> None:
    trials = made_trials()
    summary = summarise(made_run())
    assert {"conditions", "contrasts", "gates", "published", "counts"} <= set(summary)
    score = trials.loc[trials["condition"] == "kv_only", "score"]
    found = summary["conditions"]["kv_only"]
    assert found["n"] == N and found["words"] == ["What kv_only does."]
    assert found["readouts"]["score"]["mean"] == pytest.approx(score.mean())
    assert found["readouts"]["score"]["sd"] == pytest.approx(score.std())
    assert found["readouts"]["score"]["moderate"] == pytest.approx((score >= 5).mean())
    assert found["readouts"]["perplexity"]["missing"] == 1
    assert "strong" not in found["readouts"]["perplexity"]
    (receipt,) = [r for r in summary["receipts"] if r["condition"] == "kv_only"]
    assert receipt["written"] == {"prefill": 600, "decode": 0} and receipt[
        "relative_change"
    ] == pytest.approx(0.7)
    assert summary["counts"]["ok"] == 300 and summary["counts"]["planned"] == 300
    assert summary["prompts"]["distinct_donors"] == trials["donor"].nunique()
    assert {"condition", "gate", "verdict", "sentence"} == set(summary["gates"][0])


def test_summary_files_are_whole_strict_json_and_leave_nothing_beside(tmp_path: Path) -> None:
    manifest = made_manifest(statistics="as_published") | {"published": "n300"}
    run = load_run(save(tmp_path / "v0001", made_trials(), manifest))
    summary = write_summary(run)

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    stored = json.loads((run.folder / "summary.json").read_text(), parse_constant=refuse)
    assert stored == summary
    names = {path.name for path in run.folder.iterdir()}
    assert names == {"manifest.json", "trials.parquet", "summary.json", "summary.md"}
    text = (run.folder / "summary.md").read_text()
    order = [
        "Does it carry over?",
        "## Gates",
        "## What each condition does",
        "## Results",
        "## Contrasts",
        "## Receipts",
    ]
    assert sorted(order, key=text.index) == order
    assert "12 distinct donors, 15 distinct targets" in text
    assert "| `transfer_l27` | t | 10.96 | 10.96 | yes |" in text
    assert "600 / 600" in text


def test_trap_24_and_46_markers_bonus_strict_and_perplexity_stand_beside_every_score() -> None:
    for condition in summarise(made_run())["conditions"].values():
        assert list(condition["readouts"]) == ["score", "markers", "bonus", "strict", "perplexity"]
        assert all(found["mean"] is not None for found in condition["readouts"].values())


def test_trap_03_the_report_prints_conditions_from_their_spec() -> None:
    summary = summarise(made_run())
    assert [c["words"] for c in summary["conditions"].values()] == [
        [f"What {name} does."] for name in EFFECTS
    ]


@pytest.mark.parametrize("width", [80, 110, 200])
def test_the_terminal_summary_fits_and_ends_with_its_sentences(width: int) -> None:
    summary = summarise(made_run(extra=[["kv_only", "kv_plain"]]))
    stream = io.StringIO()
    print_summary(Console(file=stream, width=width, color_system=None), summary)
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= min(width, 110)
    flowing = " ".join(text.split())
    for sentence in [each["sentence"] for each in (*summary["contrasts"], *summary["gates"])]:
        assert sentence in flowing
    for name in EFFECTS:
        assert f"{name}:" in text
    for head in ("mean", "range", ">=8", "mark", "bonus", "strict", "ppl", "p (Holm)"):
        assert head in text


def test_many_conditions_keep_the_terminal_readable() -> None:
    trials, manifest = made_trials(), made_manifest()
    for i in range(14):
        name = f"kv_only_in_layers_{i:02d}_to_{i + 4:02d}"
        trials = pd.concat(
            [trials, made_trials(i + 1).query("condition == 'kv_only'").assign(condition=name)]
        )
        manifest["conditions"][name] = manifest["conditions"]["kv_only"] | {
            "label": f"cache of {i} to {i + 4}"
        }
    summary = summarise(Run(trials.reset_index(drop=True), manifest, Path(".")))
    stream = io.StringIO()
    print_summary(Console(file=stream, width=110, color_system=None), summary)
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 110
    for name, found in summary["conditions"].items():
        row = next(line for line in lines if line.startswith(f" {name}:") or line.startswith(f"{name}:"))
        cells = row.split()
        assert "60" in cells and figure(found["readouts"]["score"]["mean"]) in cells
    flowing = " ".join(" ".join(lines).split())
    contrasts = summary["contrasts"]
    stand = sum(each["p_holm"] is not None and each["p_holm"] < 0.05 for each in contrasts)
    tested = sum(each["p_holm"] is not None for each in contrasts)
    assert stand < tested < len(contrasts)
    assert (
        f"score: {stand} of {tested} comparisons show a difference after Holm; that the others show"
        in flowing
    )
    assert "1 could not be tested. summary.md has a sentence for each." in flowing
    assert not any(each["sentence"] in flowing for each in contrasts)


def printed(summary: dict[str, Any], width: int = 100) -> list[str]:
    stream = io.StringIO()
    print_summary(Console(file=stream, width=width, color_system=None), summary)
    assert max(map(len, stream.getvalue().splitlines())) <= width
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def test_gates_that_say_what_was_announced_are_counted_where_they_are_many() -> None:
    def gate(name: str, verdict: str, n: int) -> dict[str, str]:
        return {"condition": f"c{n}", "gate": name, "verdict": verdict, "sentence": f"{name} {n}."}

    told = [gate("one_sided", "warn", 0), gate("reach", "expected", 1), gate("expect", "expected", 2)]
    two = printed(summarise(made_run()) | {"gates": told})
    assert two[-3:] == ["warn: one_sided 0.", "expected: reach 1.", "expected: expect 2."]
    many = printed(summarise(made_run()) | {"gates": [*told, gate("reach", "expected", 3)]}, 110)
    assert many[-2] == "warn: one_sided 0." and many[-1].startswith("expected: 3 findings")
    assert "(2 reach, 1 expect)" in many[-1] and "summary.md" in many[-1]
    assert "expected: reach 1." not in many


def test_warnings_of_one_kind_are_told_once_and_those_of_each_kind_always() -> None:
    def gate(name: str, n: int, **more: str) -> dict[str, str]:
        return {"condition": f"c{n}", "gate": name, "verdict": "warn", "sentence": f"{name} {n}."} | more

    gates = [*(gate("partial", n) for n in range(4)), gate("reach", 9), gate("partial", 5, stage="later")]
    told = printed(summarise(made_run()) | {"gates": gates}, 110)
    assert told[-3] == ("warn: partial 0. 3 more of this kind (partial: c1, c2 and c3); summary.md has each.")
    assert told[-2:] == ["warn: reach 9.", "warn: later: partial 5."]


def test_where_cross_checks_disagree_the_terminal_names_the_contrasts() -> None:
    summary = summarise(made_run())
    first = summary["contrasts"][0]
    first["cross_checks"][0]["agrees"] = False
    told = " ".join(" ".join(printed(summary)).split())
    assert f"They do not in {first['condition']} - {first['against']}: summary.md has each." in told
    assert f"summary.md has each. {first['cross_check_sentence']}" not in told


@pytest.mark.parametrize("width", [80, 100, 110])
def test_checks_are_a_table_and_only_what_is_not_met_a_sentence(width: int) -> None:
    shared = {"n": 60, "p_holm": None, "share": None, "first": 8.29, "second": -9.5}
    checks = [
        shared | {"name": "higher_it_is", "expect": "higher", "verdict": "met", "p_holm": 1e-9,
                  "sides": ("kl of a", "that of b"), "sentence": "all is well."},
        shared | {"name": "the_same", "expect": "same", "verdict": "not met", "share": 0.05,
                  "sides": ("kl of a", "0"), "sentence": "the_same: differs."},
        shared | {"name": "no_trial", "expect": "lower", "verdict": "undecided", "n": 0,
                  "sides": ("kl of a", "0"), "sentence": "no_trial: cannot be held."},
    ]  # fmt: skip
    lines = printed(summarise(made_run()) | {"checks": checks}, width)
    flat = [" ".join(line.split()) for line in lines]
    what = " kl of a" if width == 110 else ""
    assert "checks: 1 of 3 met" in flat
    assert f"higher_it_is{what} higher 8.29 vs -9.5 < 0.0001 met" in flat
    assert f"the_same{what} same 3 of 60 differ - not met" in flat
    assert "not met: the_same: differs." in flat and "undecided: no_trial: cannot be held." in flat
    assert not any("all is well" in line for line in flat)


def test_small_readouts_are_told_apart() -> None:
    trials = made_trials()
    trials["kl"] = trials["score"] * 1e-5
    summary = summarise(Run(trials, made_manifest(primary="kl"), Path(".")))
    mean = summary["conditions"]["kv_only"]["readouts"]["kl"]["mean"]
    assert f"{mean:.3g}" in to_markdown(summary)
    row = next(line for line in printed(summary) if line.startswith(" kv_only"))
    assert f"{mean:.3g}" in row and "1e-05 to 0.00011" in row
    (first, *_) = summary["contrasts"]
    assert f"raises kl by {first['difference']:.3g} (95% CI {first['ci_low']:.3g} to" in first["sentence"]


def test_receipts_and_axes_are_no_readouts() -> None:
    frame = made_trials().assign(rank=2, text="words", seed=42)
    frame["grid.layer"] = 3
    assert value_columns(frame) == ("score", "markers", "bonus", "strict", "perplexity", "rank")


def test_figures_in_words() -> None:
    assert (figure(-1e-17), figure(math.nan), figure(math.inf)) == ("0.00", "undefined", "infinite")
    # Two decimals, unless they hide a number, or hide how numbers that are read together differ.
    assert (figure(0.06), figure(0.005), figure(-0.0012345), figure(4e-7)) == (
        "0.06",
        "0.01",
        "-0.00123",
        "4e-07",
    )
    assert together(-0.35, -0.65, 0.001) == ["-0.35", "-0.65", "0.00"]
    assert together(0.0056, 0.0012, 0.0991) == ["0.0056", "0.0012", "0.0991"]
    assert together(0.0, None, 0.02) == ["0.00", "undefined", "0.02"]
    assert in_column([0.0, 0.0004, 6.13, 0.05]) == ["0.00", "0.0004", "6.13", "0.05"]
    assert in_column([0.0, 0.0514, 0.00103]) == ["0.00", "0.0514", "0.00103"]
    assert in_column([]) == []
    assert (p_value(0.00005), p_value(0.0003), p_value(0.944), p_value(None)) == (
        "p < 0.0001",
        "p = 0.0003",
        "p = 0.944",
        "p undefined",
    )
    assert (share(299, 300), share(300, 300), share(0, 0)) == ("99.7%", "100%", "undefined")
