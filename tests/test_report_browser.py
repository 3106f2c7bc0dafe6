"""The report in a headless Chromium, opened from disk without a network: what it shows, and how it reacts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analyses.figures import Drawn
from analyses.report.report import write_report
from analyses.summary.summary import summarise
from analyses.tables.run import Run
from tests.made_report import DRAWN, SHARED, report_manifest, report_run, report_trials

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name)) is not None), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"no Chromium on this machine ({', '.join(NAMES)})")
WIDE, NARROW = {"width": 1440, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = report_run(tmp_path_factory.mktemp("shown") / "v0001")
    return write_report(run, summarise(run), DRAWN)


@pytest.fixture
def show(browser) -> Iterator[Any]:
    """A function that opens a report; afterwards nothing was said on its console, and nothing was asked of a
    network."""
    said: list[str] = []
    contexts = []

    def show(path: Path, at: str = "", size: dict[str, int] = WIDE, **options: Any) -> Any:
        context = browser.new_context(viewport=size, offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(5000)
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("request", lambda request: said.append(request.url) if "file:" not in request.url else None)
        page.goto(path.resolve().as_uri() + at)
        return page

    yield show
    assert said == []
    for context in contexts:
        context.close()


def tally(page) -> str:
    return str(page.locator("#tally").inner_text())


def test_it_opens_and_the_filters_find_what_the_table_has(show, written: Path) -> None:
    page = show(written)
    trials = report_trials()
    assert page.locator("main > section").count() == 11 and page.locator("figure svg").count() == 2
    assert tally(page) == "300 of 300 trials, 60 of 60 items"
    assert page.locator(".rows-body .row").count() < 60  # of 300: only those in sight are drawn
    page.locator("#conditions-picker summary").click()
    page.get_by_label("kv_only").check()
    page.get_by_label("kv_plain").check()
    chosen = trials[trials["condition"].isin(["kv_only", "kv_plain"])]
    assert tally(page) == f"{len(chosen)} of 300 trials, 60 of 60 items"
    page.locator("select[name=group]").select_option("odd")
    page.locator("input[name=least]").fill("2")
    page.locator("input[name=most]").fill("3.5")
    kept = chosen[(chosen["group"] == "odd") & chosen["score"].between(2, 3.5)]
    assert 0 < len(kept) < 60
    assert tally(page) == f"{len(kept)} of 300 trials, {kept['item'].nunique()} of 60 items"
    page.locator("input[name=text]").fill("MIRROR")
    marked = kept[kept["text"].str.contains("mirror")]
    assert tally(page) == f"{len(marked)} of 300 trials, {marked['item'].nunique()} of 60 items"
    page.locator("input[name=text]").fill("no such words")
    assert tally(page).startswith("0 of 300") and page.get_by_text("No trial is like that.").is_visible()
    page.get_by_role("button", name="Reset").click()
    assert tally(page) == "300 of 300 trials, 60 of 60 items"


def test_rows_are_sorted_by_a_readout_and_drawn_as_they_are_scrolled_to(show, written: Path) -> None:
    page = show(written)
    scores = report_trials()["score"]
    page.locator("#rows-head button", has_text="score").click()
    first = page.locator(".rows-body .row").first
    assert first.locator(".number").first.inner_text() == f"{scores.max():g}"
    page.locator("#rows-head button", has_text="score").click()
    assert first.locator(".number").first.inner_text() == f"{scores.min():g}"
    page.locator("#rows-head button", has_text="score").click()
    page.locator("#rows-body").evaluate("body => { body.scrollTop = body.scrollHeight; }")
    page.locator(".rows-body .row", has_text="0059").first.wait_for()


def test_an_item_is_shown_in_all_conditions_side_by_side(show, written: Path) -> None:
    page = show(written)
    page.locator(".rows-body .row", has_text="0003").first.click()
    dialog = page.locator("#item")
    assert "Item 0003" in dialog.locator("#item-title").inner_text()
    cards = dialog.locator(".card")
    names = list(report_manifest()["conditions"])
    assert [cards.nth(i).get_attribute("data-condition") for i in range(cards.count())] == names
    tops = [cards.nth(i).bounding_box()["y"] for i in range(3)]
    assert tops[0] == tops[1] == tops[2]
    trials = report_trials().set_index(["condition", "item"])
    for name in names:
        card = dialog.locator(f".card[data-condition={name}]")
        assert (
            card.locator(".trial > .prose").evaluate("each => each.textContent")
            == trials.loc[(name, "0003"), "text"]
        )
    only = dialog.locator(".card[data-condition=kv_only]")
    difference = int(trials.loc[("kv_only", "0003"), "score"] - trials.loc[("baseline", "0003"), "score"])
    assert f"+{difference}" in only.locator(".figure-main").inner_text()
    assert only.locator("mark.whole").all_inner_texts() == ["mirror"]
    assert only.locator("mark.part").all_inner_texts() == ["meta"]
    assert only.locator(".same").evaluate("each => each.textContent") == f"{SHARED} 3"
    assert "prefill 10 of 10" in only.locator(".receipts").inner_text()
    assert "The same output as baseline." in dialog.locator(".card[data-condition=kv_self]").inner_text()
    assert (
        "target 3" in dialog.locator(".prompts").inner_text()
        and "donor 3" in dialog.locator(".prompts").inner_text()
    )
    dialog.locator("#highlight").select_option("")
    assert dialog.locator("mark").count() == 0


def test_keys_go_through_the_items_that_are_listed(show, written: Path) -> None:
    page = show(written)
    page.locator("select[name=group]").select_option("odd")
    page.locator("#rows-body").focus()
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    page.keyboard.press("Enter")
    title = page.locator("#item-title")
    assert "Item 0001" in title.inner_text() and "#item=0001" in page.url
    page.keyboard.press("j")
    assert "Item 0003" in title.inner_text()
    page.keyboard.press("k")
    page.keyboard.press("k")  # there is none before
    assert "Item 0001" in title.inner_text()
    page.keyboard.press("Escape")
    page.locator("#item").wait_for(state="hidden")
    page.wait_for_function("!location.hash.includes('item=') && location.hash.includes('group=odd')")
    assert page.evaluate("document.activeElement.id") == "rows-body"


def test_an_address_brings_back_what_was_shown(show, written: Path) -> None:
    page = show(written, "#item=0007")
    assert page.locator("#item").is_visible() and "Item 0007" in page.locator("#item-title").inner_text()
    page = show(written, "#condition=kv_only|kv_self&least=1&most=4&readout=markers&sort=-markers")
    trials = report_trials()
    kept = trials[trials["condition"].isin(["kv_only", "kv_self"]) & trials["markers"].between(1, 4)]
    assert tally(page).startswith(f"{len(kept)} of 300")
    assert page.locator("select[name=readout]").input_value() == "markers"
    page = show(written, "#item=9999&group=%3Cimg%3E&least=x&sort=nothing")
    assert tally(page) == "300 of 300 trials, 60 of 60 items. Item 9999 is not among them."


def test_text_of_models_and_prompts_runs_nothing(show, written: Path) -> None:
    page = show(written, "#item=0002")
    assert (
        page.locator("#item .card[data-condition=transfer_l5]").get_by_text("<img src=x").first.is_visible()
    )
    assert page.locator("#item .prompts").get_by_text("<img src=x").first.is_visible()
    page.evaluate("() => new Promise((done) => setTimeout(done, 50))")
    assert page.evaluate("window.hacked") is None and page.locator("img").count() == 0


def test_light_dark_narrow_and_on_paper(show, written: Path) -> None:
    light, dark = (show(written, color_scheme=each) for each in ("light", "dark"))
    ground = "getComputedStyle(document.body).backgroundColor"
    stroke = "getComputedStyle(document.querySelector('figure path')).stroke"
    assert light.evaluate(ground) != dark.evaluate(ground) and light.evaluate(stroke) != dark.evaluate(stroke)
    button = dark.locator("#theme")
    button.click()
    assert button.inner_text() == "Theme: light" and dark.evaluate(ground) == light.evaluate(ground)
    dark.reload()
    assert dark.evaluate(ground) == light.evaluate(ground)
    narrow = show(written, "#item=0001", size=NARROW)
    assert narrow.evaluate("document.documentElement.scrollWidth") == NARROW["width"]
    box = narrow.locator("#item .card").first.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= NARROW["width"]
    light.emulate_media(media="print")
    assert not light.locator(".contents").is_visible() and not light.locator("#browser").is_visible()
    assert light.locator("#verdict").is_visible()


def test_the_list_of_conditions_stays_on_a_narrow_screen(show, written: Path) -> None:
    page = show(written)
    page.set_viewport_size(NARROW)
    # As in a run with stages and with long names: another filter before it, and a wide list.
    stage, name = "document.querySelector('select[name=stage]')", "document.querySelector('.boxes .name')"
    page.evaluate(f"{stage}.style.width = '9rem'; {stage}.closest('label').hidden = false")
    page.evaluate("document.querySelector('label.grow').style.flexBasis = '100%'")
    page.evaluate(f"{name}.textContent = 'a_long_name_of_a_condition'.repeat(3)")
    page.locator("#conditions-picker summary").click()
    box = page.locator(".picked").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= NARROW["width"]


def test_the_manifest_is_searched(show, written: Path) -> None:
    page = show(written)
    found = page.locator("#manifest-groups [data-entry]:visible")
    assert found.count() == 0  # all groups are folded
    page.locator("#manifest input[type=search]").fill("sampling seed")
    assert found.all_inner_texts() != [] and all("seed" in each for each in found.all_inner_texts())


def test_a_run_of_one_condition_and_one_without_texts_can_be_browsed(show, tmp_path: Path) -> None:
    whole = report_run(tmp_path / "v0001")
    one = whole.trials[whole.trials["condition"] == "baseline"].reset_index(drop=True)
    manifest = dict(whole.manifest) | {"conditions": {"baseline": whole.manifest["conditions"]["baseline"]}}
    bare = one.drop(columns=["text", "target_ids", "donor_ids", "output_ids", "finish", "group"])
    for rows in (one, bare):
        run = Run(rows, manifest, whole.folder)
        page = show(write_report(run, summarise(run), Drawn((), {}, {})), "#item=0004")
        assert tally(page) == "60 of 60 trials, 60 of 60 items"
        assert page.locator("#item .card").count() == 1


@pytest.mark.slow
def test_ten_thousand_trials_are_written_and_filtered(show, tmp_path: Path) -> None:
    base = report_trials()
    parts = [base.assign(item=(base["item"].astype(int) + 60 * k).map("{:04d}".format)) for k in range(34)]
    trials = pd.concat(parts, ignore_index=True)
    words = np.array(
        [
            "the",
            "self",
            "river",
            "observe",
            "itself",
            "mirror",
            "valley",
            "metalevel",
            "stone",
            "winter",
            "process",
        ]
    )
    random = np.random.default_rng(0)
    trials["text"] = [" ".join(words[random.integers(0, len(words), 140)]) for _ in range(len(trials))]
    run = Run(trials, report_manifest(), tmp_path)
    summary = summarise(run)
    path = write_report(run, summary, DRAWN)
    assert path.stat().st_size < 15_000_000
    page = show(path)
    assert tally(page).startswith("10,000 of 10,000 trials, 2,000 of 2,000 items")
    shown = trials[trials["item"].isin(trials["item"].unique()[:2000])]
    for text in ("river stone", "zebra", ""):
        page.locator("[name=text]").fill(text)
        found = int(shown["text"].str.contains(text).sum())
        assert tally(page).startswith(f"{found:,} of 10,000 trials")
        assert page.locator(".rows-body .row").count() < 60  # of thousands: only those in sight are drawn
