"""The benchmarks run, what they hold against each other agrees, and RESULTS.md keeps what it has. Nothing is
timed here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as listing
from benchmarks import cells, cuda, decode, generate, machine, oracle, start_up, writes
from benchmarks.arithmetic import forward, of_rows
from benchmarks.made_models import TINY, make_random, overrides, plain_model
from benchmarks.results_file import Goal, Section, keep, section_of, with_section
from benchmarks.rounds import Rounds
from benchmarks.sizes import Size

SIZE = Size("tiny")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Threads that wait for each other are slow where the machine is busy; nothing is timed here."""
    before = torch.get_num_threads()
    for module in (machine, decode, generate, cells, oracle):
        monkeypatch.setattr(module, "cores", lambda: 1)
    monkeypatch.setattr(machine, "_SECONDS", 0.0)
    monkeypatch.setattr(machine, "_COPIED", 1)
    monkeypatch.setattr(machine, "_ROUNDS", 1)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def section(name: str = "first", text: str = "one", goals: tuple[Goal, ...] = ()) -> Section:
    return Section(name, name, "python", "a machine", goals, (text,))


ARMS = {
    "baseline": "",
    "kv_repetitive": "kv_repetitive",
    "kv_self": "kv_self",
    "kv_v_l5": "kv_plus_v 5",
    "v_only_l27": "v_proj_only",
    "own_kv_random_v": "own_kv_random_v",
}


def test_scripts_and_the_runner_agree_on_tokens_scores_and_perplexities(tmp_path, monkeypatch):
    words = overrides(make_random(tmp_path / "made", TINY))
    found = decode.compare("mixed", ARMS, SIZE, tmp_path, 1, words)  # its assertions hold texts and scores
    assert "the same in 5 of 5 trials" in found.agreement  # noise of a script is its own
    text = decode.section(found, found, machine.Machine.measured(8), ("a command", 1.0)).text()
    assert "patchbay, to the end of its summary" in text and "| decode |" in text
    monkeypatch.setattr(decode.Script, "_swap", lambda *_: None)
    with pytest.raises(AssertionError, match="greedy tokens differ"):
        decode.compare("mixed", ARMS, SIZE, tmp_path, 1, words)


def test_a_grid_by_hand_predicts_what_the_runner_predicts(monkeypatch):
    same = cells._same
    held: list = []
    monkeypatch.setattr(cells, "_same", lambda *given: held.append(given) or same(*given))
    assert "the same in 6 cells" in cells.measure(SIZE).text()
    stored, trials, predicted = held[0]
    with pytest.raises(AssertionError):
        same(stored, trials, predicted[::-1])


@pytest.mark.parametrize("module", [writes, generate])
def test_the_others_run(module):
    assert all(goal.value is not None for goal in module.measure(SIZE).goals)


@pytest.mark.slow
def test_large_shapes_run_in_small():
    assert all(goal.value is not None for goal in cuda.measure(cuda.Roof(), SIZE).goals)


def test_without_nnsight_or_a_gpu_they_say_so_and_give_the_command(monkeypatch):
    monkeypatch.setattr(oracle, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for found in (oracle.measure(SIZE), cuda.measure(cuda.Roof(), Size("full"))):
        assert "Not measured" in found.text() and "`python -m benchmarks." in found.text()
        assert found.goals and all(goal.value is None for goal in found.goals)


@pytest.mark.slow
def test_start_up_runs():
    assert [goal.name for goal in start_up.measure(SIZE).goals] == ["--help", "list", "a configuration error"]


def test_operations_are_those_of_the_modules(tmp_path):
    """Against torch's own count of the products of a forward."""
    from torch.utils.flop_counter import FlopCounterMode

    model = plain_model(make_random(tmp_path, TINY))
    model.config._attn_implementation = "eager"
    tokens = 5
    with FlopCounterMode(display=False) as counter:
        model(torch.arange(10, 10 + tokens)[None], use_cache=False)
    rectangle = 4 * TINY.layers * TINY.heads * TINY.head_width * tokens * tokens
    triangle = rectangle * (tokens + 1) / 2 / tokens
    assert forward(TINY, tokens) - triangle + rectangle == counter.get_total_flops()


def test_a_decode_step_costs_what_the_forward_has_more(tmp_path):
    assert forward(TINY, 1, past=7) == pytest.approx(forward(TINY, 8) - forward(TINY, 7))
    work = of_rows(TINY, [((2, 3, 4), 2), ((2, 3, 4), 2)], [(5, 6)] * 3)
    assert work.prefill == forward(TINY, 2, heads=0)  # equal prompts are run once
    assert work.capture == forward(TINY, 2, heads=0)  # and so are equal donors
    assert work.decode == 2 * (forward(TINY, 1, 2) + forward(TINY, 1, 3))


def test_a_ratio_is_the_median_over_rounds():
    rounds = Rounds({"slow": (10.0, 30.0, 8.0), "fast": (1.0, 1.0, 4.0)})
    assert rounds.ratio("slow", "fast") == 10.0
    assert rounds.median("slow") == 10.0


def test_a_section_is_replaced_and_the_others_stay(tmp_path):
    path = tmp_path / "RESULTS.md"
    path.write_text("# Last results\n\nWords of our own.\n", encoding="utf-8")
    keep(section("first", "one"), path)
    keep(section("second", r"two \1"), path)
    keep(section("first", "three"), path)
    document = path.read_text(encoding="utf-8")
    assert "Words of our own." in document and r"two \1" in document and "three" in document
    assert "one" not in section_of(document, "first")
    assert document.index("three") < document.index("two")


def test_what_could_not_be_measured_does_not_replace_what_was(tmp_path):
    path = tmp_path / "RESULTS.md"
    keep(section("first", "Not measured: no GPU."), path)
    assert "Not measured" in path.read_text(encoding="utf-8")
    keep(section("first", "30 s"), path)
    keep(section("first", "Not measured: no GPU."), path)
    assert section_of(path.read_text(encoding="utf-8"), "first").endswith("30 s")


@pytest.mark.parametrize("document", ["<!-- a: begin -->", "<!-- a: begin --><!-- a: end -->" * 2])
def test_broken_marks_are_refused(document):
    with pytest.raises(ValueError, match="once each"):
        with_section(document, "a", "text")


def test_a_goal_says_whether_it_is_met():
    assert Goal("a", 61.0, 60).row() == ("a", "61.0 x", ">= 60 x", "met")
    assert Goal("a", 0.8, 0.7, "s", most=True).row()[-1] == "**missed**"
    assert Goal("a", None, 0.7).row()[1:] == ("not measured", ">= 0.7 x", "")


def test_the_listing_names_every_benchmark(capsys):
    assert listing.main([]) == 0
    told = capsys.readouterr().out
    modules = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "def main(" in path.read_text()}
    assert all(f"benchmarks.{name}" in told for name in modules - {"__main__"})
    assert listing.main(["decod"]) == 2
    assert "expected all, decode" in capsys.readouterr().err


def test_unknown_words_end_with_status_2():
    command = [sys.executable, "-m", "benchmarks.generate", "--fast"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--quick, --tiny" in done.stderr
