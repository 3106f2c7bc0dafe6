"""Old versions go only where the user says so, and never those that somebody still needs."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from analyses.runs.pruning import plan
from tests.conftest import Said
from tests.made_run import made_trials
from tests.test_runs import NOW, held, keyed, write, write_running


def versions(root: Path, name: str = "made") -> list[str]:
    return sorted(path.name for path in (root / name).iterdir())


def removed(root: Path, name: str | None = None, **options: object) -> list[str]:
    return [row.run for row in plan(root, name, now=NOW, **options).remove]  # type: ignore[arg-type]


def several(root: Path, number: int, name: str = "made") -> None:
    for version in range(1, number + 1):
        ended = (NOW - timedelta(days=10 * (number - version))).isoformat()
        times = {"started": ended, "finished": ended, "seconds": {}}
        write(root / name / f"v{version:04d}", times=times)


def test_the_newest_stay(tmp_path: Path) -> None:
    several(tmp_path, 5)
    several(tmp_path, 2, "other")
    assert removed(tmp_path) == ["made/v0001", "made/v0002"]
    assert removed(tmp_path, keep=1) == [*(f"made/v{n:04d}" for n in (1, 2, 3, 4)), "other/v0001"]
    assert removed(tmp_path, "other", keep=1) == ["other/v0001"]
    assert removed(tmp_path, keep=1, older_than=timedelta(days=25)) == ["made/v0001", "made/v0002"]
    assert removed(tmp_path, keep=9) == []


def test_what_is_still_needed_stays(tmp_path: Path) -> None:
    several(tmp_path, 3)
    for number in (4, 5, 6):
        write(tmp_path / "made" / f"v{number:04d}", status="interrupted")
    running = write_running(tmp_path / "other" / "v0001", 10)
    write_running(tmp_path / "other" / "v0002", 10, host="elsewhere.example", pid=1)
    write(tmp_path / "other" / "v0003")
    (tmp_path / "other" / "v0000").mkdir()
    sweep = tmp_path / "made" / "sweeps" / "s0001"
    sweep.mkdir(parents=True)
    jobs = [{"folder": "outputs/made/v0002", "swept": {}, "status": 0}, {"folder": None}]
    (sweep / "summary.json").write_text(json.dumps({"jobs": jobs}))
    with held(running):
        found = plan(tmp_path, keep=1, now=NOW)
    assert [row.run for row in found.remove] == ["made/v0001", "made/v0004", "made/v0005", "other/v0000"]
    assert found.kept == {
        "made/v0002": "is a job of made/sweeps/s0001",
        "made/v0003": "is the newest finished version",
        "other/v0001": "is running",
        "other/v0002": "is elsewhere",
    }


def test_nothing_goes_without_yes(tmp_path: Path, cli: Callable[..., Said]) -> None:
    root = tmp_path / "outputs"
    several(root, 5)
    before = versions(root)
    for words in ((), ("yes=false",), ("made", "keep=1"), ("older_than=1d",)):
        said = cli("prune", *words)
        assert said.status == 0
        assert "would remove" in said.out
        assert "nothing has been removed" in said.out
    assert versions(root) == before
    said = cli("prune", "made", "keep=2", "yes=true")
    assert "removed 3 versions" in said.out
    assert versions(root) == ["v0004", "v0005"]
    assert "nothing to remove" in cli("prune", "yes=true").out


def test_copies_of_rows_stay_and_that_is_said(tmp_path: Path, cli: Callable[..., Said]) -> None:
    root = tmp_path / "outputs"
    write(root / "made" / "v0001")
    write(root / "made" / "v0002", keyed(made_trials(), origin="made/v0001"))
    said = cli("prune", "keep=1", "yes=true")
    assert "made/v0002 has copies of rows that made/v0001 computed: they stay" in said.out
    counted = cli("query", "SELECT run, count(*) AS n FROM trials GROUP BY ALL", "format=csv")
    assert counted.out == "run,n\nmade/v0002,300\n"


def test_a_version_that_is_taken_up_meanwhile_stays(
    tmp_path: Path, cli: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "outputs"
    several(root, 2)
    with held(root / "made" / "v0001"):  # resumed: its manifest does not say so yet
        said = cli("prune", "keep=1", "yes=true")
    assert said.status == 2
    assert "v0001 stays: another process has begun to write it" in said.out
    assert versions(root) == ["v0001", "v0002"]


def test_links_stay(tmp_path: Path) -> None:
    several(tmp_path, 2)
    elsewhere = tmp_path.parent / f"{tmp_path.name}_elsewhere"
    (tmp_path / "made" / "v0001").rename(elsewhere)
    (tmp_path / "made" / "v0001").symlink_to(elsewhere)
    assert removed(tmp_path, keep=1) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("mad",), "no experiment 'mad': outputs holds made; did you mean 'made'?"),
        (("keep=0",), "keep: expected a whole number of 1 or more, got '0'"),
        (("older_than=month",), "older_than: expected a number with m, h, d or w"),
        (("yes=yes",), "yes: expected true or false, got 'yes'"),
        (("kep=3",), "did you mean 'keep'?"),
    ],
)
def test_mistakes(tmp_path: Path, cli: Callable[..., Said], words: tuple[str, ...], told: str) -> None:
    several(tmp_path / "outputs", 1)
    said = cli("prune", *words)
    assert said.status == 2
    assert told in said.err
