"""Where the time of a run goes: clocks, what of the time that has passed falls to whom, `profile=true`."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field

import pytest

from backends import clock as clocks
from backends.clock import Clock, merged
from runner import spending
from runner.spending import OTHER, PHASES, Spending, told
from tests.conftest import SMALL

KV_ONLY = "+experiment=n300_kv_only"


@pytest.fixture
def passes(monkeypatch):
    """Time that stands still but where a test lets seconds pass."""
    now = [100.0]
    for module in (clocks, spending):
        monkeypatch.setattr(module, "perf_counter", lambda: now[0])

    def let(seconds: float) -> None:
        now[0] += seconds

    return let


@dataclass
class Worked:
    """As much of a backend as tells of its time."""

    workers: int = 1
    clock: Clock = field(default_factory=Clock)


def test_a_nested_phase_takes_its_time_from_the_outer_one(passes):
    clock = Clock()
    with clock.during("decode"):
        passes(1)
        with clock.during("capture"):
            passes(2)
            with clock.during("decode"):
                passes(4)
        passes(8)
    passes(16)
    assert clock.times == {"decode": 13, "capture": 2}
    assert clock.seconds == 15


def test_time_is_counted_where_something_is_raised(passes):
    clock = Clock()
    with pytest.raises(ValueError, match="told"), clock.during("decode"), clock.during("score"):
        passes(3)
        raise ValueError("told")
    with clock.during("store"):
        passes(1)
    assert clock.times == {"decode": 0, "score": 3, "store": 1}


def test_what_happens_often_is_timed_by_a_close_clock_alone(passes):
    for close, expected in ((False, {"decode": 3}), (True, {"decode": 1, "write": 2})):
        clock = Clock(close)
        with clock.during("decode"):
            passes(1)
            with clock.closely("write"):
                passes(2)
        assert clock.times == expected
        assert clock.beside().close is close


def test_a_close_clock_waits_for_its_device_at_both_ends(passes):
    def settle() -> None:
        passes(1)  # what was still under way

    for close, expected in ((False, 0), (True, 1)):
        clock = Clock(close, settle)
        with clock.during("decode"):
            pass
        assert clock.times == {"decode": expected}


def test_clocks_of_threads_are_added_up():
    one, other = Clock(), Clock()

    def work(clock: Clock) -> None:
        for _ in range(50):
            with clock.during("decode"), clock.during("write"):
                clock.count("forwards", 2)

    threads = [threading.Thread(target=work, args=(clock,)) for clock in (one, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = merged([one, other])
    assert total.counts == {"forwards": 200}
    assert total.times == {phase: one.times[phase] + other.times[phase] for phase in ("decode", "write")}


def test_two_workers_spend_more_seconds_than_pass(passes):
    """10 seconds of two workers, of which one waits for 2: 12 of decode and 6 of score, with 2 before."""
    spent, backend = Spending(close=True), Worked(workers=2)
    with spent.stage("measure"), spent.during("plan"):
        passes(2)
        with spent.work(backend):
            passes(10)
            backend.clock.times = {"decode": 12.0, "score": 6.0}
            backend.clock.count("generated", 600)
    assert backend.clock.close
    assert spent.seconds == {"plan": 2, "decode": 12, "score": 6}
    assert spent.wall == pytest.approx({"plan": 2, "decode": 20 / 3, "score": 10 / 3})
    found = spent.profile()
    assert (found["wall"], found["workers"], found["stages"]) == (12, 2, {"measure": 12})
    assert found["busy"] == pytest.approx(1.8)
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert found["tokens"]["generated"] == {"tokens": 600, "per_second": pytest.approx(90)}
    assert found["tokens"]["scored"] == {"tokens": 0, "per_second": None}


def test_what_is_in_no_phase_is_other(passes):
    """3 of 10 seconds in a phase, 4 with a backend that says what it did in 1 of them."""
    spent, backend = Spending(close=False), Worked()
    passes(3)
    with spent.during("load"):
        passes(3)
    with spent.work(backend), backend.clock.during("decode"):
        passes(1)
    passes(3)
    shares = spent.profile()["shares"]
    assert shares == pytest.approx({"load": 0.3, "decode": 0.1, OTHER: 0.6})
    assert list(shares)[-1] == OTHER
    assert not backend.clock.close


def test_a_backend_that_has_worked_before_is_counted_from_then_on(passes):
    spent, backend = Spending(close=False), Worked()
    for seconds in (2, 3):
        with spent.work(backend), backend.clock.during("decode"):
            passes(seconds)
    with backend.clock.during("decode"):
        passes(7)
    assert spent.seconds == {"decode": 5}


def test_the_table_says_every_share_in_words(passes):
    spent = Spending(close=True)
    for phase in ("figures", "load", "of_my_own"):
        with spent.during(phase):
            passes(2)
    lines = told(spent.profile())
    assert lines[0] == "time: 6.0 s"
    assert [line.split()[0] for line in lines[1:]] == ["load", "figures", "of_my_own", OTHER]
    assert PHASES["load"] in lines[1] and lines[1].endswith("2.00 s   33.3%")


def profile_of(folder):
    return json.loads((folder / "profile.json").read_text())


def test_a_profile_of_a_run_accounts_for_its_time(cli, tmp_path):
    said = cli(KV_ONLY, *SMALL, "profile=true", "backend.workers=1")
    assert said.status == 0, said.err
    folder = tmp_path / "outputs" / "n300_kv_only" / "v0001"
    found = profile_of(folder)
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert found["shares"][OTHER] < 0.05
    assert sum(found["seconds"].values()) == pytest.approx(found["wall"], rel=0.05)
    assert {"load", "plan", "capture", "prefill", "decode", "write", "score", "store"} <= set(
        found["seconds"]
    )
    assert (found["rows"], found["workers"], list(found["stages"])) == (36, 1, ["measure"])
    assert 0 < found["stages"]["measure"] < found["wall"]
    generated = found["tokens"]["generated"]
    assert 36 < generated["tokens"] <= 36 * 20 and generated["per_second"] > 0
    assert 20 < found["forwards"] < generated["tokens"]
    table = [line for line in said.out.splitlines() if line.lstrip().startswith("decode ")]
    assert len(table) == 1
    for name in ("summary.md", "run.log"):
        assert table[0].strip() in (folder / name).read_text()


def test_workers_change_the_seconds_and_no_other_figure(cli, tmp_path):
    """Two workers on batches of their own: what was computed is the same."""
    found = []
    for workers in (1, 2):
        root = tmp_path / str(workers)
        words = ("profile=true", f"backend.workers={workers}", "backend.max_rows=9", f"output_root={root}")
        assert cli(KV_ONLY, *SMALL, *words).status == 0
        found.append(profile_of(root / "n300_kv_only" / "v0001"))
    one, two = found
    assert two["workers"] == 2
    assert two["rows"] == one["rows"]
    for what in ("generated", "scored"):
        assert two["tokens"][what]["tokens"] == one["tokens"][what]["tokens"]
    assert sum(two["shares"].values()) == pytest.approx(1)


def test_without_profile_nothing_is_written_but_the_seconds_of_the_manifest(cli, tmp_path):
    said = cli(KV_ONLY, *SMALL)
    folder = tmp_path / "outputs" / "n300_kv_only" / "v0001"
    assert said.status == 0 and "time:" not in said.out
    assert not (folder / "profile.json").exists()
    assert "## Time" not in (folder / "summary.md").read_text()
    manifest = json.loads((folder / "manifest.json").read_text())
    seconds = manifest["times"]["seconds"]
    assert {"load", "decode", "score", "store"} <= set(seconds) and "write" not in seconds
