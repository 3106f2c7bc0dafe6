"""Run folders: nothing is overwritten, lost or doubled."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from analyses.runs.folders import versions
from runner.execute import blank
from runner.results.store import RunFolder, StoreError, atomic_write, read_segments


def result(key: str, status: str = "ok") -> dict[str, object]:
    return {**blank(key, status, ""), "text": f"text of {key}"}


def test_versions_are_created_exclusively_and_counted_up(tmp_path: Path):
    with RunFolder.create(tmp_path / "e") as one, RunFolder.create(tmp_path / "e") as two:
        assert (one.path.name, two.path.name, two.name) == ("v0001", "v0002", "e/v0002")
    (tmp_path / "e" / "v0009").mkdir()
    (tmp_path / "e" / "sweeps").mkdir()
    with RunFolder.create(tmp_path / "e") as ten:
        assert ten.path.name == "v0010"
    assert [p.name for p in versions(tmp_path / "e")] == ["v0001", "v0002", "v0009", "v0010"]


def _create(root: str, barrier, out) -> None:
    barrier.wait()
    with RunFolder.create(Path(root)) as folder:
        folder.append([result(str(os.getpid()))])
        out.put(folder.path.name)


def test_trap_42_two_runs_of_the_same_moment_get_two_folders(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    barrier, out = context.Barrier(4), context.Queue()
    workers = [context.Process(target=_create, args=(str(tmp_path / "e"), barrier, out)) for _ in range(4)]
    for worker in workers:
        worker.start()
    names = {out.get(timeout=30) for _ in workers}
    for worker in workers:
        worker.join()
    assert names == {"v0001", "v0002", "v0003", "v0004"}


def test_a_version_has_one_writer(tmp_path: Path):
    with (
        RunFolder.create(tmp_path / "e") as folder,
        pytest.raises(StoreError, match="another process is writing"),
    ):
        RunFolder.open(folder.path)
    with RunFolder.open(folder.path):
        pass


def test_trap_39_segments_keep_everything_one_per_attempt_and_refuse_copies(tmp_path: Path):
    with RunFolder.create(tmp_path / "e") as folder:
        for start in range(0, 1000, 100):
            folder.append(result(f"k{i}") for i in range(start, start + 100))
    with RunFolder.open(folder.path) as again:
        again.append([result("later")])
    segments = sorted((folder.path / "segments").glob("*.jsonl"))
    assert len(segments) == 2
    assert len(read_segments(folder.path)) == 1001
    (folder.path / "segments" / "9999-copy.jsonl").write_bytes(segments[0].read_bytes())
    with pytest.raises(StoreError, match="a second result for trial k0"):
        read_segments(folder.path)


def test_a_torn_last_line_is_dropped_and_a_broken_line_is_named(tmp_path: Path):
    with RunFolder.create(tmp_path / "e") as folder:
        folder.append([result("a"), result("b")])
    segment = next((folder.path / "segments").glob("*.jsonl"))
    whole = segment.read_bytes()
    for cut in range(len(whole.splitlines()[0]) + 2, len(whole)):
        segment.write_bytes(whole[:cut])
        assert set(read_segments(folder.path)) == {"a"}
    segment.write_bytes(b"garbage\n" + whole)
    with pytest.raises(StoreError, match=r"jsonl:1: expected a result"):
        read_segments(folder.path)


def test_a_failed_trial_gives_way_to_a_later_result(tmp_path: Path):
    with RunFolder.create(tmp_path / "e") as folder:
        folder.append([result("a", "failed")])
        folder.append([result("a")])
    assert read_segments(folder.path)["a"]["status"] == "ok"


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="choose another folder with output_root"):
        RunFolder.create(tmp_path / "file" / "e")


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path: Path, monkeypatch):
    path = tmp_path / "manifest.json"
    atomic_write(path, b"old")
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert json.loads('"' + path.read_text() + '"') == "old"
