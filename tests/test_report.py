"""The report of a run, from its table, manifest and summary: what it says, and what it can never do."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from copy import deepcopy
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from markupsafe import Markup

import runner
from analyses.figures import Drawn
from analyses.report import report as report_module
from analyses.report.opening import apart
from analyses.report.page import Section, embedded, page
from analyses.report.parts import number, paragraph, table
from analyses.report.report import report, write_report
from analyses.report.trials import shown_trials
from analyses.summary.summary import summarise
from analyses.tables.run import Run, load_run
from tests.made_report import DRAWN, HOSTILE, report_manifest, report_run, report_trials
from tests.made_stages import staged

NONE = Drawn((), {}, {})
VOID = {"meta", "input", "link", "br", "hr", "img", "path"}


class Outline(HTMLParser):
    """Sections of a page by id with their visible text, and everything that could load or run something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sections: dict[str, str] = {}
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.handlers: list[str] = []
        self.header = ""
        self._open: list[str] = []
        self._section = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [str(given["id"])] if "id" in given else []
        self.loads += [f"{tag} {key}" for key in ("src", "srcset", "action") if key in given]
        self.handlers += [key for key in given if key.startswith("on")]
        if tag == "section":
            self._section = str(given["id"])
            self.sections[self._section] = ""
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag == "section":
            self._section = ""
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if "script" in self._open or "style" in self._open:
            return
        if self._section:
            self.sections[self._section] += data
        elif "header" in self._open:
            self.header += data


def made(run: Run, summary: dict[str, Any] | None = None) -> Outline:
    return Outline(report(run, summarise(run) if summary is None else summary, NONE))


def data_of(text: str, name: str = "trials") -> Any:
    found = re.search(rf'<script type="application/json" id="data-{name}">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


@pytest.fixture
def summary(whole) -> dict[str, Any]:
    """What the summary of `whole` says, to be changed."""
    return deepcopy(whole[1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Any], str]:
    run = report_run(tmp_path_factory.mktemp("report") / "v0001")
    summary = summarise(run)
    return run, summary, report(run, summary, DRAWN)


def test_a_page_loads_nothing_and_runs_only_its_own_scripts(whole) -> None:
    _, _, text = whole
    outline = Outline(text)
    assert outline.loads == [] and outline.handlers == []
    assert len(outline.ids) == len(set(outline.ids))
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None and policy[1].startswith("default-src 'none'")
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 2
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy[1]
    assert "unsafe-eval" not in policy[1] and "http" not in policy[1]
    links = re.findall(r'href="([^"#][^"]*)"', text)
    assert sorted(links) == sorted(
        f"figures/{name}.{kind}" for name in ("forest", "mine") for kind in ("png", "pdf")
    )


def test_text_of_models_prompts_and_labels_is_never_markup(tmp_path: Path, summary) -> None:
    manifest = report_manifest()
    for known in (manifest, summary):
        known["experiment"]["question"] = HOSTILE
        known["conditions"]["kv_only"] |= {"label": HOSTILE, "words": [HOSTILE]}
    text = report(report_run(tmp_path / "v0001", **manifest), summary, NONE)
    assert "<img" not in text and "<script>window" not in text
    assert Outline(text).sections["conditions"].count(HOSTILE) == 2
    assert HOSTILE in Outline(text).header
    data = data_of(text)
    assert any(HOSTILE in each for each in data["columns"]["text"]["words"])


def test_data_of_a_page_is_json_that_cannot_end_its_element() -> None:
    text = embedded({"a": "</script><!--&\u2028", "b": [1, 2.5, None]})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"a": "</script><!--&\u2028", "b": [1, 2.5, None]}
    for wrong in (float("nan"), {"deep": [float("inf")]}, {1, 2}):
        with pytest.raises(ValueError, match="plain JSON"):
            embedded(wrong)


def test_parts_escape_what_is_plain_text() -> None:
    body = table(["a<b"], [["<i>", number("1")]], "c<d")
    assert "&lt;i&gt;" in body and "a&lt;b" in body and "c&lt;d" in body and "<i>" not in body
    text = page("T<", [Section("s", "S<", paragraph(Markup("<b>x</b>")))])
    assert "<title>T&lt;</title>" in text and "S&lt;" in text and "<b>x</b>" in text


def test_everything_that_the_summary_says_is_there_in_its_order(whole) -> None:
    _, summary, text = whole
    outline = Outline(text)
    assert list(outline.sections) == [
        "verdict", "gates", "conditions", "results", "contrasts", "exploratory", "figures", "confounds",
        "trials", "manifest", "reproduce",
    ]  # fmt: skip
    assert "Does it carry over?" in outline.header and "organism" in outline.header
    for each in summary["contrasts"]:
        claim, basis = apart(each["sentence"])
        assert claim in outline.sections["verdict"] and basis in outline.sections["verdict"]
        assert f"{each['condition']} \u2212 {each['against']}" in outline.sections["contrasts"]
    for gate in summary["gates"]:
        assert gate["sentence"] in outline.sections["gates"]
    for name, condition in summary["conditions"].items():
        assert name in outline.sections["conditions"]
        assert " ".join(condition["words"]) in outline.sections["conditions"]
    assert summary["exploratory_sentence"] in outline.sections["exploratory"]
    assert "kv_only - baseline".replace("-", "\u2212") in outline.sections["exploratory"]
    assert (
        "My figure" in outline.sections["figures"]
        and "Figure lost is not drawn" in outline.sections["figures"]
    )
    assert "Forest" in outline.sections["contrasts"]
    assert "config_hash" in outline.sections["manifest"] and "+ new" in outline.sections["manifest"]


def test_how_to_reproduce_names_the_command_the_commit_and_the_hashes(whole) -> None:
    told = Outline(whole[2]).sections["reproduce"]
    assert "git checkout 0123456789abcdef" in told
    assert "python -m runner +experiment=made 'output_root=/tmp/with space'" in told
    assert "changes that are in no commit" in told and "c0ffee" in told and "resume=true" not in told


def test_a_sentence_is_told_as_its_claim_and_its_figures() -> None:
    told = "kv raises score by 3 (95% CI 2 to 4, p < 0.0001 after Holm; 60 pairs). It is large."
    assert apart(told) == (
        "kv raises score by 3.",
        "95% CI 2 to 4, p < 0.0001 after Holm; 60 pairs. It is large.",
    )
    assert apart("all 60 (of 60) differences are 0.") == ("all 60 (of 60) differences are 0.", "")


def test_signs_are_words_too(whole, summary) -> None:
    summary["gates"] = [
        {"condition": "kv_only", "gate": "inert", "verdict": verdict, "sentence": f"It is {verdict}."}
        for verdict in ("pass", "expected", "warn", "fail")
    ]
    outline = made(whole[0], summary)
    told = outline.sections["gates"]
    assert [told.index(f"It is {each}.") for each in ("fail", "warn", "expected", "pass")] == sorted(
        told.index(f"It is {each}.") for each in ("fail", "warn", "expected", "pass")
    )
    assert all(word in told for word in ("1 fails", "1 warning", "1 expected", "1 passes"))
    assert "1 gate fails" in outline.header
    assert outline.sections["verdict"].count("kv_only fails a gate: inert.") == 1
    assert outline.sections["verdict"].count("Inert: It is expected.") == 1


def test_a_write_that_never_fired_is_marked_in_the_receipts(whole, summary) -> None:
    assert "never fired" not in made(whole[0], summary).sections["gates"]
    of_plain = next(each for each in summary["receipts"] if each["condition"] == "kv_plain")
    of_plain |= {"written": {"prefill": 0, "decode": 0}, "relative_change": None}
    assert "0 of 600 \u2715 never fired" in made(whole[0], summary).sections["gates"]
    of_plain["spec"]["expect"] = "inert"
    assert "0 of 600 never fired, as expected" in made(whole[0], summary).sections["gates"]


def test_trap_33_the_report_lists_the_factors_in_which_compared_prompts_differ(
    tmp_path: Path, whole, summary
) -> None:
    factors = {"kv_only|baseline": ["balance", "history", "betting"], "kv_plain|baseline": ["goal"]}
    told = made(report_run(tmp_path / "a", factors=factors), summary).sections["confounds"]
    assert (
        "balance, history and betting" in told and "3 facts at once" in told and "cannot be put down" in told
    )
    assert "goal" in told and "one fact: what is compared" in told
    told = made(whole[0], summary).sections["confounds"]
    assert "same prompts" in told and "facts at once" not in told


def test_trap_03_a_condition_is_told_by_what_was_resolved_not_by_its_name(whole, summary) -> None:
    words = "kv_cache: the prompt's own KV cache replaces what is there."
    summary["conditions"]["kv_plain"] |= {"label": "random KV", "words": ["The prompt is the target.", words]}
    assert words in made(whole[0], summary).sections["conditions"]


def test_published_figures_stand_beside_those_of_the_run(tmp_path: Path) -> None:
    manifest = report_manifest(published="n300")
    manifest["contrasts"]["statistics"] = "as_published"
    run = report_run(tmp_path / "v0001", **manifest)
    run.trials["condition"] = run.trials["condition"].replace({"kv_only": "transfer_l27"})
    manifest["conditions"]["transfer_l27"] = manifest["conditions"].pop("kv_only")
    outline = made(run)
    assert "27 of 27 published figures agree with their own sums." in outline.sections["published"]
    assert (
        "1.87" in outline.sections["published"]
        and "for comparison, not for conclusions" in outline.sections["published"]
    )
    assert "published" in outline.sections["contrasts"] and "1.87" in outline.sections["contrasts"]


def test_declared_analyses_are_shown_whatever_their_kind(whole, summary) -> None:
    summary["analyses"] = [
        {
            "name": "odd", "kind": "unheard_of", "label": "An odd one", "stage": "measure",
            "exploratory": True, "sentence": "Nothing <much>.", "note": "Few items.",
            "table": {"columns": ["feature", "weight"], "rows": [["length", 0.25], ["group", None]]},
        }
    ]  # fmt: skip
    told = made(whole[0], summary).sections["analyses"]
    assert "An odd one" in told and "exploratory" in told and "Nothing <much>." in told and "0.25" in told


def test_a_cross_check_that_disagrees_stands_outside_of_the_fold(whole, summary) -> None:
    one = summary["contrasts"][0]
    check = {
        "name": "Wilcoxon",
        "estimate": 1.0,
        "p": 0.2,
        "ci_low": None,
        "ci_high": None,
        "note": "by hand",
    }
    for each in summary["contrasts"]:
        each["cross_checks"] = []
    one |= {"cross_checks": [check | {"agrees": False}], "cross_check_sentence": "Wilcoxon says otherwise."}
    text = report(whole[0], summary, NONE)
    before_the_fold = text[text.index("<h3>Cross-checks</h3>") :].split("<details>")[0]
    assert "Wilcoxon says otherwise." in before_the_fold
    assert "disagrees" in Outline(text).sections["contrasts"]


def test_a_run_that_goes_on_says_so_first(tmp_path: Path) -> None:
    run = report_run(tmp_path / "v0001", status="running")
    pending = run.trials["item"] >= "0040"
    run.trials.loc[pending, "status"] = "pending"
    run.trials.loc[pending, ["text", "score", "markers", "strict", "bonus", "perplexity"]] = [
        None,
        *[np.nan] * 5,
    ]
    summary = summarise(run)
    outline = made(run, summary)
    assert "Still running, 100 of 300 trials pending." in outline.header
    assert "40 of 60" in outline.sections["results"] and "resume=true" in outline.sections["reproduce"]
    halted = Run(run.trials, {**run.manifest, "status": "interrupted"}, run.folder)
    summary |= {"status": "interrupted", "unfinished": "interrupted, 100 of 300 trials pending"}
    assert "resume=true goes on with it" in made(halted, summary).header


def test_failed_trials_and_an_older_form_are_said_first(tmp_path: Path, whole, summary) -> None:
    run = report_run(tmp_path / "v0001", status="failed")
    run.trials.loc[run.trials["item"] == "0003", ["status", "reason"]] = ["failed", "out of <memory>"]
    summary["counts"]["failed"], summary["status"] = 5, "failed"
    header = made(run, summary).header
    assert "5 trials failed." in header and "out of <memory>" in header
    manifest = {
        key: value for key, value in whole[0].manifest.items() if key not in ("schema", "readout", "times")
    }
    assert (
        "earlier version of patchbay"
        in made(Run(whole[0].trials, manifest, whole[0].folder), whole[1]).header
    )
    assert "earlier version of patchbay" not in made(whole[0], whole[1]).header


def test_little_to_say_is_said_and_never_nan(tmp_path: Path) -> None:
    trials = report_trials()
    base = trials[trials["condition"] == "baseline"].reset_index(drop=True)
    equal = trials.assign(score=1.0)
    two = trials[trials["item"] < "0002"].reset_index(drop=True)
    bare = trials[["stage", "condition", "item", "repeat", "status", "score"]]
    none = trials.iloc[:0]
    for number_of, rows in enumerate((base, equal, two, bare, none)):
        manifest = report_manifest()
        if rows is base:
            manifest["conditions"] = {"baseline": manifest["conditions"]["baseline"]}
        folder = tmp_path / f"v{number_of:04d}"
        folder.mkdir()
        run = Run(rows, manifest, folder)
        outline = made(run)
        seen = " ".join(outline.sections.values())
        assert not re.search(r"\b(nan|NaN|inf|None)\b", seen)
        if rows is base:
            assert "Nothing is compared: there is one condition." in outline.sections["verdict"]
        if rows is bare:
            assert "no texts of prompts" in outline.sections["trials"]
        if rows is none:
            assert "There is no trial yet." in outline.sections["trials"]


def test_a_run_with_stages_shows_findings_choices_and_every_stage(tmp_path: Path) -> None:
    findings = {
        "ablated": {
            "mean": "refuses",
            "of": "ablated",
            "stage": "evaluate",
            "label": "refused, ablated",
            "by": None,
        }
    }
    run = staged(tmp_path / "v0001", findings=findings)
    summary = summarise(run)
    outline = Outline(report(run, summary, NONE))
    assert {"findings", "choices", "stage-candidates", "stage-evaluate"} <= set(outline.sections)
    assert (
        "refused, ablated" in outline.sections["verdict"]
        and "refused, ablated" in outline.sections["findings"]
    )
    assert "Left out." in outline.header and "has chosen nothing" in outline.header
    assert summary["choices"]["best"]["sentence"] in outline.sections["choices"]
    assert "18 cells" in outline.sections["stage-candidates"]
    for each in summary["stages"]["evaluate"]["contrasts"]:
        assert f"{each['condition']} \u2212 {each['against']}" in outline.sections["stage-evaluate"]
    shown = shown_trials(run, most=60)
    assert set(shown.data["columns"]["stage"]["words"]) == {"candidates", "evaluate"}


def test_the_browser_gets_whole_items_and_says_what_is_left_out(tmp_path: Path) -> None:
    run = report_run(tmp_path / "v0001")
    every = shown_trials(run)
    assert (every.trials, every.items, every.sentences) == (300, 60, ())
    few = shown_trials(run, most=52)
    assert (few.trials, few.items) == (50, 10)
    assert few.data["columns"]["item"]["words"] == [f"{i:04d}" for i in range(10)]
    assert "the first 50 are here: 10 of 60 items, each in all conditions" in few.sentences[0]
    size = run.trials.loc[run.trials["item"] < "0003", "text"].map(lambda text: len(text.encode())).sum()
    assert shown_trials(run, most_bytes=int(size)).items == 3
    assert shown_trials(run, most=3).trials == 3 and shown_trials(run, most_bytes=1).items == 1


def test_the_browser_gets_what_the_table_and_the_prompts_hold(tmp_path: Path) -> None:
    run = report_run(tmp_path / "v0001")
    data = shown_trials(run).data
    table_ = run.trials
    for name in ("condition", "item", "group", "text"):
        held = data["columns"][name]
        order = [held["words"][at] for at in held["at"]]
        assert sorted(order) == sorted(table_[name])
    rows = pd.DataFrame({name: [data["columns"][name]["words"][at] for at in data["columns"][name]["at"]]
                         for name in ("condition", "item")})  # fmt: skip
    rows["score"] = data["readouts"]["score"]
    joined = rows.merge(table_, on=["condition", "item"], suffixes=("", "_table"))
    assert (joined["score"] == joined["score_table"]).all() and len(joined) == 300
    assert data["readouts"]["perplexity"][rows.index[rows["item"] == "0000"][0]] is None
    prompts = data["prompts"]
    at = rows.index[(rows["condition"] == "kv_only") & (rows["item"] == "0007")][0]
    assert prompts["texts"][prompts["fed"][at]] == f"target 7 {HOSTILE}"
    read = prompts["read"]["words"][prompts["read"]["at"][at]]
    assert [(role, prompts["texts"][place]) for role, place in read] == [("donor", "donor 7")]
    kv = data["receipts"]["kv"]
    assert len(kv["rows"]) == 240 and set(kv["fields"]["asked_prefill"]) == {10}
    assert data["highlights"] == [{"name": "markers", "words": ["self", "mirror", "meta"]}]


def test_a_report_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, summary
) -> None:
    run = report_run(tmp_path / "v0001")
    path = write_report(run, summary, NONE)
    assert path == run.folder / "report.html"
    before = path.read_bytes()
    assert before == write_report(run, summary, NONE).read_bytes()

    def torn(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report_module, "page", torn)
    with pytest.raises(OSError, match="No space left"):
        write_report(run, summary, NONE)
    assert path.read_bytes() == before
    assert {each.name for each in run.folder.iterdir()} == {"report.html", "prompts.parquet"}


def test_a_run_leaves_its_report_and_the_texts_of_its_prompts(tmp_path: Path) -> None:
    words = ["+experiment=n300_kv_only", "limit=2", "sampling.max_new_tokens=6", "quiet=true"]
    words.append("backend.threads=1")
    done = runner.run([*words, f"output_root={tmp_path}"])
    assert done.folder is not None
    text = (done.folder / "report.html").read_text(encoding="utf-8")
    data = data_of(text)
    assert data["n"] == 12 and None not in data["prompts"]["texts"]
    assert "n300_kv_only/v0001" in Outline(text).header and (done.folder / "figures").is_dir()
    banks = Path(load_run(done.folder).manifest["prompts"]["banks"]["targets"]["path"])
    known = [json.loads(line)["text"] for line in banks.read_text().splitlines() if line.strip()]
    assert data["prompts"]["texts"][data["prompts"]["fed"][0]] in known
    again = runner.run([*words, "report=false", f"output_root={tmp_path}"])
    assert again.folder is not None and again.folder != done.folder
    assert not {"report.html", "figures"} & {each.name for each in again.folder.iterdir()}
    manifests = [load_run(folder).manifest for folder in (done.folder, again.folder)]
    assert manifests[0]["config_hash"] == manifests[1]["config_hash"]


def test_a_report_needs_neither_torch_nor_the_runner() -> None:
    code = (
        "import sys, analyses.report.report; "
        "assert not {'torch', 'runner', 'backends', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
