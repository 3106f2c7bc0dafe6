"""Contrasts, summary files and terminal table of a run made from known figures."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from scipy import stats

from analyses.contrasts import contrasts
from analyses.join import PLAN_SCHEMA
from analyses.pairs import pair
from analyses.summary import summarise, write_summary
from analyses.tables import SCORES, Run, TableError, load_run, value_columns
from analyses.terminal import print_summary
from analyses.wording import figure, p_value, share

N = 60
EFFECTS = {"baseline": 0.0, "kv_only": 3.0, "transfer_l5": 3.0, "kv_plain": 0.0, "kv_self": 0.0}


def made_manifest(**contrast_options: Any) -> dict[str, Any]:
    write = {"site": "kv_cache", "layers": [0], "op": "replace", "value": "donor", "positions": "all"}
    kv = {"kv": write | {"during": "prefill", "expect": None, "min_positions": None, "has_old": True}}
    sampling = {"temperature": 0.8, "top_k": None, "top_p": None, "max_new_tokens": 20}
    options = {
        "family": "each_against_baseline",
        "baseline": "baseline",
        "primary": "score",
        "extra": [],
        "same": [],
    }
    conditions = {
        name: {
            "label": f"label of {name}",
            "words": [f"What {name} does."],
            "writes": {} if name == "baseline" else kv,
            "sampling": sampling,
            "same_as": None,
        }
        for name in EFFECTS
    }
    conditions["kv_self"]["writes"] = {"kv": kv["kv"] | {"value": "self", "expect": "noop"}}
    return {
        "schema": 1,
        "status": "done",
        "experiment": {"name": "made", "question": "Does it carry over?", "n": N, "repeats": 1},
        "dtype": "float32",
        "model": {"name": "organism", "layers": 9},
        "conditions": conditions,
        "contrasts": options | {"statistics": "paired_clustered"} | contrast_options,
        "readouts": ["behaviour"],
        "plan_gates": [],
        "counts": {"planned": N * len(EFFECTS)},
        "published": None,
        "prompts": {"asked": N},
    }


def made_trials(seed: int = 0) -> pd.DataFrame:
    """Five conditions over the same items: 12 donors, 15 targets; kv_self repeats the baseline exactly."""
    rng = np.random.default_rng(seed)
    donor, target = rng.integers(12, size=N), rng.integers(15, size=N)
    base = rng.poisson(0.8, N) + rng.integers(0, 2, 15)[target]
    rows = []
    for number, (name, effect) in enumerate(EFFECTS.items()):
        gain = rng.poisson(effect, N) if effect else rng.integers(-1, 2, N) * (name == "kv_plain")
        score = np.maximum(base + gain, 0)
        for i in range(N):
            acts = name != "baseline"
            rows.append(
                {
                    "stage": "measure",
                    "condition": name,
                    "item": f"{i:04d}",
                    "repeat": 0,
                    "donor": f"d{donor[i]}",
                    "target": f"t{target[i]}",
                    "status": "ok",
                    "reason": None,
                    "output_ids": [i, 0 if name == "kv_self" else number],
                    "n_new": 2,
                    "score": float(score[i]),
                    "markers": float(score[i]),
                    "bonus": 0.0,
                    "strict": float(score[i] // 2),
                    "perplexity": math.nan if i == 0 else 20.0 + number,
                    "kv.asked_prefill": 10.0 if acts else math.nan,
                    "kv.positions_prefill": 10.0 if acts else math.nan,
                    "kv.asked_decode": 0.0 if acts else math.nan,
                    "kv.positions_decode": 0.0 if acts else math.nan,
                    "kv.relative_change": math.nan if not acts else 0.0 if name == "kv_self" else 0.7,
                    "origin": None,
                }
            )
    return pd.DataFrame(rows)


def made_run(folder: Path = Path("."), **contrast_options: Any) -> Run:
    return Run(made_trials(), made_manifest(**contrast_options), folder)


def save(folder: Path, trials: pd.DataFrame, manifest: dict[str, Any]) -> Path:
    folder.mkdir()
    trials.to_parquet(folder / "trials.parquet")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


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


RECEIPT = {
    "positions_decode": 0,
    "asked_decode": 0,
    "positions_shadowed": 0,
    "keys_ahead": 0,
    "logit_change": None,
}


def save_running(folder: Path, trials: pd.DataFrame, manifest: dict[str, Any]) -> list[str]:
    """Write a run that is still going, without results; returns the lines of its segments."""
    (folder / "segments").mkdir(parents=True)
    for condition in manifest["conditions"].values():
        condition["receipt_order"] = list(condition["writes"])
    (folder / "manifest.json").write_text(json.dumps(manifest | {"status": "running"}))
    rows = trials.to_dict(orient="records")
    for number, row in enumerate(rows):
        row |= {"key": f"k{number}", "experiment": "made", "group": "", "split": "", "seed": 42}
        row |= {"target_ids": [1], "donor_ids": [("donor", [1])]}
    names = PLAN_SCHEMA.names
    plan = pa.Table.from_pylist([{name: row[name] for name in names} for row in rows], schema=PLAN_SCHEMA)
    pq.write_table(plan, folder / "plan.parquet")
    lines = []
    for row in rows:
        kv = {k: row[f"kv.{k}"] for k in ("asked_prefill", "positions_prefill", "relative_change")}
        scores = {k: None if math.isnan(row[k]) else row[k] for k in SCORES}
        result = {k: row[k] for k in ("key", "status", "reason", "output_ids", "n_new", "origin")}
        result |= {"text": "", "finish": "eos", "batch_rows": 1, "batch_length": 9, "min_margin": 1.0}
        receipts = [] if row["condition"] == "baseline" else [kv | RECEIPT]
        lines.append(json.dumps(result | {"scores": scores, "receipts": receipts}))
    return lines


def test_finished_and_running_runs_give_the_same_figures(tmp_path: Path) -> None:
    trials, manifest = made_trials(), made_manifest()
    finished = load_run(save(tmp_path / "v0001", trials, manifest))
    running = tmp_path / "v0002"
    lines = save_running(running, trials, manifest)
    segments = running / "segments"
    (segments / "0000-1.jsonl").write_text("\n".join(lines[:100]) + "\n")
    (segments / "0001-2.jsonl").write_text("\n".join(lines[100:]) + '\n{"key": "k')
    first, second = summarise(finished), summarise(load_run(running))
    assert first["contrasts"] == second["contrasts"] and first["gates"] == second["gates"]
    (segments / "0001-2.jsonl").unlink()
    assert summarise(load_run(running))["counts"]["pending"] == 200
    (segments / "0000-1.jsonl").write_text(lines[0] + "\n{torn\n" + lines[1] + "\n")
    with pytest.raises(TableError, match=r"0000-1\.jsonl:2: expected one JSON object a line"):
        load_run(running)


def test_a_failed_trial_gives_way_to_a_later_result(tmp_path: Path) -> None:
    lines = save_running(tmp_path / "v0001", made_trials(), made_manifest())
    failed = json.loads(lines[0]) | {"status": "failed", "reason": "out of memory"}
    (tmp_path / "v0001" / "segments" / "0000-1.jsonl").write_text(json.dumps(failed) + "\n")
    assert load_run(tmp_path / "v0001").trials["status"].to_list().count("failed") == 1
    (tmp_path / "v0001" / "segments" / "0001-1.jsonl").write_text(lines[0] + "\n")
    assert load_run(tmp_path / "v0001").trials["status"].to_list().count("failed") == 0


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="expected the folder of a run"):
        load_run(tmp_path / "none")
    folder = tmp_path / "v0001"
    folder.mkdir()
    with pytest.raises(TableError, match=r"manifest\.json"):
        load_run(folder)
    (folder / "manifest.json").write_text('{"schema": 2}')
    with pytest.raises(TableError, match="schema: expected 1, got 2"):
        load_run(folder)
    (folder / "manifest.json").write_text('{"schema": 1}')
    with pytest.raises(TableError, match="found neither"):
        load_run(folder)
    pd.DataFrame({"item": ["0000"]}).to_parquet(folder / "trials.parquet")
    with pytest.raises(TableError, match="missing: stage, condition, repeat, status"):
        load_run(folder)


def test_receipts_and_axes_are_no_readouts() -> None:
    frame = made_trials().assign(rank=2, text="words", seed=42)
    frame["grid.layer"] = 3
    assert value_columns(frame) == ("score", "markers", "bonus", "strict", "perplexity", "rank")


def test_figures_in_words() -> None:
    assert (figure(-0.001), figure(math.nan), figure(math.inf)) == ("0.00", "undefined", "infinite")
    assert (p_value(0.00005), p_value(0.0003), p_value(0.944), p_value(None)) == (
        "p < 0.0001",
        "p = 0.0003",
        "p = 0.944",
        "p undefined",
    )
    assert (share(299, 300), share(300, 300), share(0, 0)) == ("99.7%", "100%", "undefined")
