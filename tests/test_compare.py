"""Runs held against each other: pairing on shared items, tests with known answers, what differs, the page."""

from __future__ import annotations

import copy
import io
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from analyses.report.compare_page import comparison_page
from analyses.runs.compare import CompareError, compare
from analyses.runs.compare_terminal import print_comparison
from analyses.runs.comparison import Compared, Comparison, Effect, Versus
from analyses.runs.differences import WHERE, differences
from analyses.statistics.clusters import clustered_mean
from analyses.statistics.corrections import holm
from analyses.tables.run import Run
from runner.config.resolve import NOT_HASHED, NOT_HASHED_BACKEND
from tests.conftest import Said
from tests.made_run import EFFECTS, N, made_manifest, made_trials, save, save_running
from tests.made_stages import staged

CHROMIUM = next(
    (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
)


def run(number: int = 1, trials: pd.DataFrame | None = None, manifest: dict[str, Any] | None = None) -> Run:
    """A made run of version `number`, with tokens for its prompts."""
    found = made_trials() if trials is None else trials
    told = made_manifest() if manifest is None else manifest
    told["model"] = {"name": "organism", "layers": 9, "fingerprint": "w", "tokenizer_fingerprint": "t"} | {
        key: value for key, value in told["model"].items() if key not in ("name", "layers")
    }
    return Run(found, told, Path("/nowhere/made") / f"v{number:04d}")


def moved(by: np.ndarray, condition: str = "kv_only") -> pd.DataFrame:
    """The made trials with the score of one condition moved item by item."""
    trials = made_trials()
    rows = (trials["condition"] == condition).to_numpy()
    trials.loc[rows, "score"] += by
    trials.loc[rows, "output_ids"] = pd.Series(
        [[*ids, 9] for ids in trials.loc[rows, "output_ids"]], index=trials.index[rows]
    )
    return trials


def by_one() -> np.ndarray:
    """Differences of mean exactly 1, which vary from item to item."""
    noise = np.tile([-0.5, 0.0, 0.5], N // 3)
    return 1.0 + noise


def only(found: Comparison) -> Versus:
    (one,) = found.versus
    return one


def condition(one: Versus, name: str) -> Compared:
    return next(each for each in one.conditions if each.condition == name)


def effect(one: Versus, name: str, against: str = "baseline") -> Effect:
    return next(each for each in one.effects if (each.condition, each.against) == (name, against))


def test_a_planted_difference_is_found_in_the_condition_and_in_its_effect() -> None:
    one = only(compare([run(1), run(2, moved(by_one()))]))
    found = condition(one, "kv_only")
    rows = made_trials().query("condition == 'kv_only'")
    expected = clustered_mean(by_one(), donor=list(rows["donor"]), target=list(rows["target"]))
    assert found.test is not None and found.difference == pytest.approx(1.0, abs=1e-12)
    assert (found.test.se, found.test.p) == pytest.approx((expected.se, expected.p), rel=1e-9)
    assert found.test.clusters == expected.clusters and found.shown
    assert found.sentence.startswith(
        "kv_only has score 1.00 higher in made/v0002 than in made/v0001 (1.00, 95% CI"
    )
    interaction = effect(one, "kv_only")
    assert interaction.difference == pytest.approx(1.0, abs=1e-12)
    assert interaction.effect_second - interaction.effect_first == pytest.approx(1.0, abs=1e-12)
    assert "is 1.00 higher in made/v0002" in interaction.sentence
    assert {each.condition for each in one.shown} == {"kv_only"}
    assert found.same.same == 0 and condition(one, "kv_plain").same.same == N


def test_the_sign_follows_the_order_of_the_runs() -> None:
    one = only(compare([run(1, moved(by_one())), run(2)]))
    assert condition(one, "kv_only").difference == pytest.approx(-1.0, abs=1e-12)
    assert "lower in made/v0002" in condition(one, "kv_only").sentence


def test_identical_runs_differ_in_nothing() -> None:
    one = only(compare([run(1), run(2)]))
    assert one.headline == (
        f"Nothing differs: all {N * len(EFFECTS)} shared trials came out the same (output tokens), and so "
        "are the settings."
    )
    assert not one.differences and not one.operations and not one.shown
    assert all(each.p_holm is None and each.difference == 0 for each in one.conditions)


def test_items_are_paired_by_their_prompts_and_not_by_their_numbers() -> None:
    trials = moved(by_one())
    order = np.random.default_rng(1).permutation(N)
    renumbered = trials.assign(item=[f"{order[int(item)]:04d}" for item in trials["item"]])
    # Pairs that occur once cannot be mixed up by another order.
    pairs = trials.query("condition == 'baseline'").groupby(["donor", "target"])["item"].transform("size")
    single = set(trials.query("condition == 'baseline'").loc[pairs == 1, "item"])
    plain = run(1, made_trials().query("item in @single")), run(2, trials.query("item in @single"))
    other = run(2, renumbered[trials["item"].isin(single)].sample(frac=1, random_state=3))
    expected, found = only(compare(plain)), only(compare([plain[0], other]))
    assert found.shared == expected.shared == len(single) < N
    for mine, theirs in zip(expected.conditions, found.conditions, strict=True):
        assert mine.difference == pytest.approx(theirs.difference, abs=1e-12)
        assert mine.same == theirs.same


def test_a_pair_that_recurs_is_paired_occurrence_by_occurrence_and_repeat_by_repeat() -> None:
    rows = [
        {
            "stage": "measure", "condition": "baseline", "item": f"{item:04d}", "repeat": repeat,
            "donor": "d", "target": f"t{item % 2}", "status": "ok", "output_ids": [item, repeat],
            "origin": None, "text": "", "score": 10.0 * (item // 2) + repeat,
        }
        for item in range(8)
        for repeat in range(2)
    ]  # fmt: skip
    manifest = made_manifest(family="none")
    manifest["conditions"] = {"baseline": manifest["conditions"]["baseline"]}
    first = pd.DataFrame(rows)
    # The second run has the same pairs under numbers that begin at 100, in the same order, and no last one.
    second = first.assign(item=[f"{100 + int(item):04d}" for item in first["item"]]).query("item < '0106'")
    one = only(compare([run(1, first, copy.deepcopy(manifest)), run(2, second, copy.deepcopy(manifest))]))
    found = condition(one, "baseline")
    assert (one.shared, one.only_first, one.only_second) == (6, 2, 0)
    assert found.test is not None and found.test.n == 12
    assert found.difference == 0 and found.same.same == found.same.of == 12


def test_prompts_of_the_same_id_but_other_tokens_are_not_paired() -> None:
    trials = made_trials()
    told = {"target_ids": [[1, int(t[1:])] for t in trials["target"]]}
    told["donor_ids"] = [[("donor", [2, int(d[1:])])] for d in trials["donor"]]
    first = trials.assign(**told)
    second = first.assign(
        target_ids=[
            [8, 8] if t == "t3" else ids for t, ids in zip(trials["target"], told["target_ids"], strict=True)
        ]
    )
    one = only(compare([run(1, first), run(2, second)]))
    changed = int((trials.query("condition == 'baseline'")["target"] == "t3").sum())
    assert one.other_texts == changed > 0 and one.shared == N - changed
    assert any("prompts of other tokens" in note for note in one.notes)


def test_runs_of_models_with_other_tokenizers_are_paired_by_ids_and_told_by_their_texts() -> None:
    trials = made_trials()
    rows = len(trials)
    trials = trials.assign(text="the words", target_ids=[[1]] * rows, donor_ids=[[("donor", [1])]] * rows)
    other = trials.assign(target_ids=[[2, 2]] * rows, output_ids=[[7]] * rows)
    manifest = made_manifest()
    manifest["model"] = {"name": "another", "layers": 12, "tokenizer_fingerprint": "u"}
    second = run(2, other, manifest)
    second.manifest["model"].update(name="another", layers=12)
    one = only(compare([run(1, trials), second]))
    assert one.shared == N and one.same.what == "texts" and one.same.same == one.same.of
    assert any("paired by the ids" in note for note in one.notes)
    assert {each.key for each in one.differences if each.of == "model"} == {"name", "layers", "tokenizer"}


def test_runs_without_a_shared_item_are_described_and_not_tested() -> None:
    trials = made_trials()
    one = only(compare([run(1), run(2, trials.assign(target=trials["target"] + "x"))]))
    assert (one.shared, one.only_first, one.only_second) == (0, N, N)
    assert "share no valid trial" in one.headline and any("share no item" in note for note in one.notes)
    found = condition(one, "kv_only")
    assert found.test is None and found.n_first == found.n_second == N
    assert found.mean_first == pytest.approx(trials.query("condition == 'kv_only'")["score"].mean())
    assert "cannot be compared" in found.sentence


def test_means_stand_beside_the_difference_that_is_theirs() -> None:
    trials = made_trials()
    some = trials[trials["item"].isin(sorted(trials["item"].unique())[:20])]
    some = some.assign(score=some["score"] / 2)
    found = condition(only(compare([run(1, trials), run(2, some)])), "kv_only")
    assert found.difference == pytest.approx(found.mean_second - found.mean_first)
    assert (found.n_first, found.n_second, found.test.n) == (N, 20, 20)


def test_what_is_asked_of_finished_trials_is_told_last_of_the_configuration() -> None:
    first, second = made_manifest(), made_manifest()
    first["config"] = {"analyses": {"a": {"kind": "share"}}, "sampling": {"temperature": 0.8}}
    second["config"] = {"sampling": {"temperature": 0.4}}
    one = only(compare([run(1, manifest=first), run(2, manifest=second)]))
    assert [each.key for each in one.differences] == ["sampling.temperature", "analyses.a.kind"]


def test_trap_02_one_name_for_two_operations_is_a_warning() -> None:
    manifest = made_manifest()
    manifest["conditions"]["kv_only"]["writes"] = {
        "kv": manifest["conditions"]["kv_only"]["writes"]["kv"] | {"layers": [3], "min_positions": 16}
    }
    one = only(compare([run(1), run(2, manifest=manifest)]))
    (found,) = one.operations
    assert found.warns and found.condition == "kv_only"
    assert (
        "the same name, another operation: writes.kv.layers 0 in made/v0001, 3 in made/v0002"
        in found.sentence
    )
    assert not one.headline.startswith("Nothing differs")


def test_trap_41_a_run_whose_name_and_configuration_part_is_told_by_the_configuration() -> None:
    manifests = [
        made_manifest() | {"config": {"model": {"name": name}, "experiment": {"n": n}}}
        for name, n in (("instruct", 20), ("base", 50))
    ]
    found = {each.key: (each.first, each.second) for each in differences(*manifests)}
    assert found["model.name"] == ("instruct", "base") and found["experiment.n"] == (20, 50)


def test_other_layers_of_a_model_of_another_depth_are_no_warning() -> None:
    manifest = made_manifest()
    for body in manifest["conditions"].values():
        for write in body["writes"].values():
            write["layers"] = [5]
    second = run(2, manifest=manifest)
    second.manifest["model"]["layers"] = 18
    found = only(compare([run(1), second])).operations
    assert found and not any(each.warns for each in found)


def test_the_same_operation_under_another_name_is_told() -> None:
    manifest = made_manifest()
    manifest["conditions"]["kv_plain"]["writes"]["kv"] = manifest["conditions"]["kv_plain"]["writes"][
        "kv"
    ] | {"layers": [7]}
    renamed = copy.deepcopy(manifest)
    renamed["conditions"]["kv_new"] = renamed["conditions"].pop("kv_plain")
    trials = made_trials()
    other = trials.assign(condition=trials["condition"].replace({"kv_plain": "kv_new"}))
    one = only(compare([run(1, manifest=manifest), run(2, other, renamed)]))
    assert one.renamed == (("kv_plain", "kv_new"),)
    assert one.names_first == ("kv_plain",) and one.names_second == ("kv_new",)


def test_zero_and_absent_are_told_apart_and_where_results_go_is_no_difference() -> None:
    first = made_manifest() | {"config": {"a": {"alpha": 0.0, "on": False}, "output_root": "x"}}
    second = made_manifest() | {
        "config": {"a": {"on": False, "new": None}, "output_root": "y", "backend": {"threads": 3}}
    }
    (found,) = differences(first, second)
    assert (found.of, found.key, found.first, found.second) == ("configuration", "a.alpha", 0.0, "absent")


def test_what_the_configuration_hash_leaves_out_is_left_out_here() -> None:
    assert set(NOT_HASHED) | {f"backend.{key}" for key in NOT_HASHED_BACKEND} <= set(WHERE)


def test_packages_weights_seeds_and_banks_are_told_by_kind() -> None:
    first, second = made_manifest(), made_manifest()
    for manifest, version in ((first, "1"), (second, "2")):
        manifest["packages"] = {"torch": version, "numpy": "2"}
        manifest["model"] = {"fingerprint": version}
        manifest["seeds"] = {"sampling": int(version), "prompts": 0}
        manifest["prompts"] = {"banks": {"targets": {"path": "p", "sha256": version}}}
        manifest["markers"] = {"list": ["self", version], "version": 1}
    found = {(each.of, each.key) for each in differences(first, second)}
    assert found == {
        ("packages", "torch"),
        ("model", "weights"),
        ("seeds", "sampling"),
        ("prompts", "bank targets"),
        ("measurement", "markers"),
    }


def test_rows_that_one_run_took_over_from_the_other_are_no_test() -> None:
    trials = moved(by_one())
    taken = trials["condition"] != "kv_only"
    second = trials.assign(origin=np.where(taken, "made/v0001", None))
    found = compare([run(1), run(2, second)])
    one = only(found)
    assert (
        condition(one, "baseline").copied and "taken over by one run" in condition(one, "baseline").sentence
    )
    # kv_only itself, and its effect against the baseline: nothing else can differ.
    assert found.family == 2
    assert one.same.copied == N * (len(EFFECTS) - 1)


def test_two_runs_that_took_over_from_a_third_have_the_same_rows() -> None:
    taken = made_trials().assign(origin="made/v0001")
    assert compare([run(2, taken), run(3, taken)]).family == 0


def test_runs_of_one_name_under_two_roots_share_no_result() -> None:
    first, second = run(1), run(1)
    second = Run(second.trials, second.manifest, Path("/elsewhere/made/v0001"))
    found = compare([first, second])
    assert [side.name for side in found.sides] == ["/nowhere/made/v0001", "/elsewhere/made/v0001"]
    assert only(found).same.copied == 0 and found.family == 9


def test_holm_runs_over_all_tests_of_all_runs() -> None:
    found = compare([run(1), run(2, moved(by_one())), run(3, moved(by_one() / 4, "kv_plain"))])
    tests = [each for one in found.versus for each in one.tests]
    assert found.family == len(tests) == 2 * (5 + 4)
    assert [each.p_holm for each in tests] == holm([each.test and each.test.p for each in tests])
    alone = only(compare([run(1), run(2, moved(by_one()))]))
    assert condition(found.versus[0], "kv_only").p_holm > condition(alone, "kv_only").p_holm


def test_a_run_that_goes_on_and_failed_trials_are_compared_as_far_as_they_are_and_said() -> None:
    trials = made_trials()
    pending = (trials["condition"] == "kv_only") & (trials["item"] > "0039")
    trials.loc[pending, ["status", "score"]] = ["pending", math.nan]
    trials.loc[(trials["condition"] == "kv_plain") & (trials["item"] < "0003"), "status"] = "failed"
    manifest = made_manifest() | {"status": "running"}
    found = compare([run(1), run(2, trials, manifest)])
    one = only(found)
    assert found.sides[1].warning == (
        "made/v0002 is still running: 20 of 300 trials are pending; 3 trials of made/v0002 failed and are "
        "left out."
    )
    assert condition(one, "kv_only").test.n == 40 and condition(one, "kv_plain").test.n == N - 3
    assert "left out" in condition(one, "kv_only").note


def test_an_older_schema_and_a_missing_readout_are_said() -> None:
    older = made_manifest()
    del older["schema"]
    found = compare([run(1), run(2, made_trials().drop(columns=["score"]), older)])
    assert "earlier version of patchbay" in found.sides[1].warning
    one = only(found)
    assert any("has no readout score" in note and "both have markers" in note for note in one.notes)
    assert all(each.test is None for each in one.conditions) and one.same.same == one.same.of


def test_the_readout_and_the_conditions_are_chosen_and_unknown_ones_are_refused() -> None:
    one = only(compare([run(1), run(2, moved(by_one()))], readout="markers", conditions=["kv_only"]))
    assert [each.condition for each in one.conditions] == ["kv_only"]
    assert [(each.condition, each.against) for each in one.effects] == [("kv_only", "baseline")]
    assert condition(one, "kv_only").readout == "markers" and condition(one, "kv_only").difference == 0
    with pytest.raises(CompareError, match=r"readout 'scor'.*did you mean 'score'"):
        compare([run(1), run(2)], readout="scor")
    with pytest.raises(CompareError, match=r"condition 'kv_onl'.*did you mean 'kv_only'"):
        compare([run(1), run(2)], conditions=["kv_onl"])
    with pytest.raises(CompareError, match="two or more runs"):
        compare([run(1)])


def test_stages_are_compared_one_by_one(tmp_path: Path) -> None:
    first = staged(tmp_path / "one")
    second = staged(tmp_path / "two")
    rows = (second.trials["stage"] == "evaluate") & (second.trials["condition"] == "random")
    second.trials.loc[rows, "refuses"] = 0.0
    one = only(compare([first, second]))
    names = [each.condition for each in one.conditions]
    assert {"candidates.baseline", "evaluate.ablated", "evaluate.random"} <= set(names)
    assert condition(one, "evaluate.random").difference == pytest.approx(-35 / 40)
    assert condition(one, "candidates.baseline").readout == "refusal"
    found = effect(one, "evaluate.random", "evaluate.baseline")
    assert found.difference == pytest.approx(-35 / 40)


def test_the_terminal_shows_every_condition_and_what_differs() -> None:
    manifest = made_manifest() | {"config": {"sampling": {"temperature": 1.0}}}
    first = made_manifest() | {"config": {"sampling": {"temperature": 0.8}}}
    found = compare([run(1, manifest=first), run(2, moved(by_one()), manifest)])
    for width in (80, 140):
        console = Console(width=width, record=True, file=io.StringIO())
        print_comparison(found, console)
        shown = console.export_text()
        assert all(name in shown for name in EFFECTS) and "sampling.temperature" in shown
        assert ("95% CI" in shown.split("what differs")[0].split("kv_only has")[0]) == (width == 140)
        assert max(map(len, shown.splitlines())) <= width


def nasty(trials: pd.DataFrame) -> pd.DataFrame:
    return trials.assign(text="</script><img src=x onerror=alert(1)>\u2028")


def test_the_page_has_every_sentence_and_escapes_texts() -> None:
    found = compare([run(1, nasty(made_trials())), run(2, nasty(moved(by_one())))])
    text = comparison_page(found)
    assert "1.00 higher in made/v0002" in text and "<img" not in text
    assert "&lt;img src=x onerror" in text and "https:" not in text and 'src="' not in text


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 1280, "height": 900}, offline=True)
        browser.close()


def test_the_page_opens_from_disk_without_a_complaint(page: Any, tmp_path: Path) -> None:
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    file = tmp_path / "page.html"
    file.write_text(comparison_page(compare([run(1, nasty(made_trials())), run(2, nasty(moved(by_one())))])))
    page.goto(file.as_uri())
    assert "against" in page.title() and page.locator("h2").count() >= 5
    assert page.locator("#conditions svg").count() == len(EFFECTS) - 4  # one interval that is not a point
    assert not said


def saved(root: Path, number: int, trials: pd.DataFrame) -> Path:
    (root / "made").mkdir(parents=True, exist_ok=True)
    return save(root / "made" / f"v{number:04d}", trials, made_manifest())


def test_the_command_prints_and_writes_the_page(tmp_path: Path, cli: Callable[..., Said]) -> None:
    root = tmp_path / "outputs"
    saved(root, 1, made_trials())
    saved(root, 2, moved(by_one()))
    said = cli("compare", "made/v0001", "made", "conditions=kv_only,kv_plain", "out=my/page.html")
    assert said.status == 0 and "kv_only has score 1.00 higher" in said.out
    assert "page: my/page.html" in said.out and "1.00 higher" in (tmp_path / "my" / "page.html").read_text()
    told = cli("compare", "made/v0001", "made/v0002", "format=json")
    body = json.loads(told.out)
    assert body["page"] == "outputs/comparisons/made-v0001_made-v0002.html" and Path(body["page"]).is_file()
    assert body["family"] == 9 and body["versus"][0]["shared"] == N


def test_the_command_refuses_a_run_against_itself_and_words_that_mean_nothing(
    tmp_path: Path, cli: Callable[..., Said]
) -> None:
    saved(tmp_path / "outputs", 1, made_trials())
    said = cli("compare", "made", "made/v0001")
    assert said.status == 2 and "twice" in said.err
    saved(tmp_path / "outputs", 2, made_trials())
    said = cli("compare", "made/v0001", "made/v0002", "readout=scor")
    assert said.status == 2 and "did you mean 'score'" in said.err
    assert not (tmp_path / "outputs" / "comparisons").exists()
    assert cli("compare", "made/v0001").status == 2


def test_a_running_run_is_read_from_its_segments_and_torch_is_not_imported(tmp_path: Path) -> None:
    root = tmp_path / "outputs"
    saved(root, 1, made_trials())
    folder = root / "made" / "v0002"
    lines = save_running(folder, made_trials(), made_manifest())
    (folder / "segments" / "0000-1.jsonl").write_text("\n".join(lines[:150]) + "\n")
    code = (
        "import sys; from runner.command import dispatch; "
        f"status = dispatch(['compare', 'made/v0001', 'made/v0002', 'output_root={root}']); "
        "sys.exit(50 if 'torch' in sys.modules else status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "made/v0002 is still running: 150 of 300 trials are pending" in " ".join(done.stdout.split())
