"""A plan that holds numbers and makes its trials when they are read; tables that are joined, written and read
a part at a time; the memory of a run of very many trials."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analyses.report.trials import shown_trials
from analyses.summary.summary import summarise
from analyses.tables.light import NOT_READ, light_trials
from analyses.tables.lookup import Lookup
from analyses.tables.run import Run, load_run
from backends.writes import SEMANTICS_VERSION
from benchmarks import many_trials
from runner import run, status
from runner.key_table import KeyTable, hexes, keys_named
from runner.keys import canonical, every_write, nth_key, roles_read
from runner.ledger import ledger_of
from runner.plan import Plan, Trial, Trials
from runner.prepare import Prepared, plan_rows, prepare
from runner.results.resume import Wanted
from runner.results.rows import Rows, below, in_groups
from runner.results.segments import Segments, StoreError
from runner.results.store import RunFolder
from runner.stages.run import concatenated
from tests.configuring import design

# Bytes of the peak for each further trial; of so few a part is what batches, tables and libraries take once.
MOST_OF_A_TRIAL = 2_500
CONTROLS = ("+experiment=n300_controls", "experiment.n=7", "experiment.repeats=2")


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(design(*CONTROLS), None)


@pytest.fixture(scope="module")
def plan(prepared: Prepared) -> Plan:
    return prepared.plan


def plain_key(prepared: Prepared, trial: Trial, occurrence: int) -> str:
    """The key as JSON of everything at once has it."""
    setting, row = prepared.setting, trial.row
    body: dict[str, Any] = {
        "semantics": SEMANTICS_VERSION,
        "setting": {name: part for name, part in asdict(setting).items() if name != "texts"},
        "ids": row.ids,
        "sources": {role: row.sources[role] for role in roles_read(row.writes) & set(row.sources)},
        "spans": {role: list(span) for role, span in row.spans.items()},
        "writes": sorted(canonical(write) for write in row.writes),
        "sampling": asdict(row.sampling),
        "stream": row.stream,
        "value_stream": row.value_stream if any(write.drawn for write in row.writes) else None,
        "draws": sorted({row.draw % w.value.draws for w in every_write(row.writes) if w.drawn}),
        "recompute": row.recompute,
        "replay": row.replay_last_token,
        "tokens": {name: sorted(ids) for name, ids in trial.tokens.items()},
        "continuations": dict(trial.continuations),
        "occurrence": occurrence,
        "repeat": trial.repeat,
    }
    if trial.positions:
        body["positions"] = dict(trial.positions)
    if row.weights is not None:
        body["weights"] = row.weights.digest
    if not setting.texts:
        body["texts"] = False
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


# --- the plan


def test_a_key_put_together_of_shared_parts_is_that_of_everything_at_once(
    prepared: Prepared, plan: Plan
) -> None:
    occurrences = {item.item_id: item.occurrence for item in prepared.items}
    drawn = [trial for trial in plan.trials if any(write.drawn for write in trial.row.writes)]
    assert drawn and len({trial.row.draw for trial in drawn}) == 2
    for trial in plan.trials:
        assert trial.key == plain_key(prepared, trial, occurrences[trial.item])


def test_trials_are_a_sequence_whose_members_are_made_when_they_are_read(plan: Plan) -> None:
    trials = plan.trials
    assert isinstance(trials, Trials)
    every = list(trials)
    assert len(trials) == len(every) == 7 * 2 * len({trial.condition for trial in every})
    assert trials[3] == every[3] and trials[-1] == every[-1] and trials[3] is not trials[3]
    assert list(trials[5:9]) == every[5:9] and list(trials[::-7]) == every[::-7]
    assert list(trials.take(np.array([8, 2]))[1:]) == [every[2]]
    assert trials[4:8].rows.tolist() == [4, 5, 6, 7] and len(trials[:0]) == 0
    for place in (len(trials), -len(trials) - 1):
        with pytest.raises(IndexError):
            trials[place]


def test_the_ledger_of_a_plan_is_that_of_its_trials(plan: Plan) -> None:
    held, read = plan.ledger, ledger_of(list(plan.trials))
    names = ("keys", "condition", "item", "repeat", "prompt", "reason", "words", "kind", "context", "more")
    for name in names:
        assert np.array_equal(getattr(held, name), getattr(read, name)), name
    for name in ("conditions", "items", "prompts", "reasons", "told", "kinds"):
        assert getattr(held, name) == getattr(read, name), name
    # Other numbers, but equal for the same trials.
    together = {*zip(held.pattern.tolist(), read.pattern.tolist(), strict=True)}
    assert len(together) == len({one for one, _ in together})
    assert [held.invalid(row) for row in range(len(plan.trials))] == [t.invalid for t in plan.trials]


def test_a_plan_holds_less_than_a_hundred_bytes_of_a_trial(plan: Plan) -> None:
    held = plan.ledger
    arrays = [value for value in vars(held).values() if isinstance(value, np.ndarray)]
    assert sum(each.nbytes for each in arrays) / len(plan.trials) < 40


def test_a_prompt_whose_texts_are_searched_for_other_words_has_a_result_of_its_own(plan: Plan) -> None:
    first = plan.trials[0]
    words = [{"said": ("a",)}, {"said": ("b",)}, {"said": ("a",)}, {"said": ("c",)}]
    alike = [replace(first, words=each) for each in words]
    assert hexes(ledger_of([plan.trials[1], *alike]).keys) == [
        plan.trials[1].key, first.key, nth_key(first.key, 1), first.key, nth_key(first.key, 2)
    ]  # fmt: skip


def test_the_table_of_a_plan_says_what_its_trials_say(plan: Plan, prepared: Prepared) -> None:
    rows = plan_rows(plan, prepared.design)
    table = rows.table()
    assert table.schema == rows.schema and table.num_rows == len(plan.trials)
    for row, trial in zip(table.to_pylist(), plan.trials, strict=True):
        plain = ("key", "condition", "item", "repeat", "donor", "target", "group", "split")
        assert {name: row[name] for name in plain} == {name: getattr(trial, name) for name in plain}
        assert row["reason"] == trial.invalid and tuple(row["target_ids"]) == trial.row.ids
        assert {role: tuple(ids) for role, ids in row["donor_ids"]} == dict(trial.donor_ids)


# --- keys


def test_keys_are_found_in_a_table_of_keys() -> None:
    names = [hashlib.sha256(str(n % 40).encode()).hexdigest()[:32] for n in range(60)]
    # Two keys that agree in their first half, beside a third.
    names += [f"{'7' * 16}{tail * 16}" for tail in "19"]
    table = KeyTable.of(keys_named(names))
    assert len(table) == 42 and hexes(table.keys) == sorted(set(names))
    assert [names[row] for row in table.rows] == sorted(set(names))
    assert table.rows.tolist() == [names.index(name) for name in sorted(set(names))]
    asked = [*names[:3], f"{'7' * 16}{'9' * 16}", f"{'7' * 16}{'5' * 16}", "f" * 32, "no key"]
    found = table.find(keys_named(asked)).tolist()
    assert found == [sorted(set(names)).index(name) if name in names else -1 for name in asked]
    assert KeyTable.of(keys_named([])).find(keys_named(names)).tolist() == [-1] * len(names)


def test_what_is_looked_for_is_looked_for_once(plan: Plan) -> None:
    wanted = Wanted.of(plan.ledger)
    runnable = {trial.key for trial in plan.trials if trial.invalid is None}
    assert {plan.trials[int(row)].key for row in wanted.left} == runnable
    first, second = plan.trials[0], plan.trials[1]
    keys = keys_named([first.key, second.key, "0" * 32])
    assert wanted.among(keys).tolist() == [True, True, False]
    wanted.found(keys_named([first.key, "0" * 32]))
    assert wanted.among(keys).tolist() == [False, True, False]
    assert len(wanted.left) == len(runnable) - 1 and wanted.words(first.key) == first.words


# --- segments and tables


def result(key: str, status: str = "ok", **more: object) -> dict[str, object]:
    return {"key": key, "status": status, **more}


def test_results_are_read_from_where_they_stand(tmp_path: Path) -> None:
    names = [hashlib.sha256(str(n).encode()).hexdigest()[:32] for n in range(30)]
    with RunFolder.create(tmp_path / "e") as folder:
        folder.append(
            [result(names[0], "failed"), *(result(name, at=n) for n, name in enumerate(names[1:20]))]
        )
    with RunFolder.open(folder.path) as folder:
        folder.append([result(names[0], at=99), result(names[20], "invalid"), result(names[21], "failed")])
    last = sorted((folder.path / "segments").glob("*.jsonl"))[-1]
    last.write_bytes(last.read_bytes() + orjson.dumps(result(names[22]))[:-4])  # torn
    segments = Segments.of(folder.path)
    places = segments.places(keys_named(names))
    assert (places >= 0).tolist() == [n < 22 for n in range(30)]
    wanted = places[[20, 0, 7]]
    found = list(segments.read(wanted))
    assert found == [result(names[7], at=6), result(names[0], at=99), result(names[20], "invalid")]
    assert segments.ok[wanted].tolist() == [False, True, True] and segments.failed[places[21]]
    last.write_bytes(last.read_bytes()[:-4] + b"\n")
    with pytest.raises(StoreError, match="jsonl:4: expected a result as one JSON object"):
        Segments.of(folder.path)


def test_a_table_in_parts_is_written_as_one(tmp_path: Path) -> None:
    table = pa.table({"n": list(range(25)), "text": [f"t{n}" for n in range(25)]})
    parts = Rows(table.schema, [table.slice(first, 4) for first in range(0, 25, 4)])
    sizes = [group.num_rows for group in in_groups(parts, 10)]
    assert sizes == [10, 10, 5] and parts.table() == table
    assert parts.table(but=("text",)).column_names == ["n"]
    with RunFolder.create(tmp_path / "e") as folder:
        folder.write_trials(parts)
        assert pq.read_table(folder.path / "trials.parquet") == table
        folder.write_trials(Rows.of(table.slice(0, 0)))
        assert pq.read_table(folder.path / "trials.parquet") == table.slice(0, 0)
    assert not list(folder.path.glob(".*tmp"))


def test_tables_of_stages_are_put_below_each_other_in_parts() -> None:
    one = pa.table({"a": [1, 2], "grid.x": [1, 2], "p": [0.5, None]})
    other = pa.table({"a": [3], "grid.x": ["late"], "q": [[1]]})
    found = below([Rows(one.schema, [one.slice(0, 1), one.slice(1)]), Rows.of(other)])
    assert found.table().to_pydict() == {
        "a": [1, 2, 3], "grid.x": ["1", "2", "late"], "p": [0.5, None, None], "q": [None, None, [1]]
    }  # fmt: skip
    assert all(part.schema == found.schema for part in found.parts)
    assert concatenated([]).table().num_rows == 0


# --- a whole run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the benchmark's experiment on the organism."""
    root = tmp_path_factory.mktemp("many")
    body: dict[str, Any] = many_trials.experiment(320, "items")
    body["conditions"]["noise"]["grid"] = {"noise.layers": [0, 5], "noise.alpha": [0.1, 2.0]}
    conf = many_trials.write_experiment(root / "conf", body)
    words = ["+experiment=many", "report=false", "quiet=true", "allow_inert=true", f"output_root={root}"]
    ended = run(words, config_dir=conf)
    assert ended.status == status.DONE and ended.folder is not None
    return ended.folder


def test_the_light_table_comes_to_the_same_summary(folder: Path) -> None:
    whole, light = load_run(folder), light_trials(folder)
    assert set(whole.trials.columns) - set(light.columns) == set(NOT_READ)
    assert light["condition"].dtype == "category" and list(light["condition"]) == list(
        whole.trials["condition"]
    )
    assert summarise(Run(light, whole.manifest, folder)) == summarise(whole)


def test_the_report_reads_whole_only_the_rows_that_it_shows(folder: Path, tmp_path: Path) -> None:
    whole = load_run(folder)
    pq.write_table(pq.read_table(folder / "trials.parquet"), tmp_path / "trials.parquet", row_group_size=37)
    shutil.copy(folder / "prompts.parquet", tmp_path)
    light = Run(light_trials(tmp_path), whole.manifest, tmp_path)
    for most in (10_000, 100, 1):
        shown, expected = shown_trials(light, most), shown_trials(whole, most)
        assert json.dumps(shown.data) == json.dumps(expected.data)
        assert shown.sentences == expected.sentences


def test_the_light_table_knows_the_same_donors(folder: Path) -> None:
    whole, light = Lookup.of(load_run(folder).trials), Lookup.of(light_trials(folder))
    for role in whole.roles.codes:
        one, other = whole.donor_label(role), light.donor_label(role)
        assert one.tolist() == other.tolist()
    assert list(whole.roles.codes) == list(light.roles.codes)


def test_a_version_takes_over_what_an_earlier_one_has_in_its_table_or_its_segments(folder: Path) -> None:
    conf = folder.parents[1] / "conf"
    words = ["+experiment=many", "report=false", "quiet=true", "allow_inert=true"]
    again = run([*words, f"output_root={folder.parents[1]}"], config_dir=conf)
    assert again.folder is not None
    old, new = pq.read_table(folder / "trials.parquet"), pq.read_table(again.folder / "trials.parquet")
    assert set(new["origin"].to_pylist()) == {f"{folder.parent.name}/{folder.name}"}
    assert new.drop_columns("origin") == old.drop_columns("origin")
    manifest = json.loads((again.folder / "manifest.json").read_bytes())
    assert manifest["counts"]["reused"] == old.num_rows == manifest["counts"]["planned"]


@pytest.mark.slow
def test_the_memory_of_a_run_hardly_grows_with_its_trials(tmp_path: Path) -> None:
    """Before plans were numbers and tables came in parts, each further trial took 4,700 bytes."""
    many_trials.make_model(tmp_path / "model")
    few, many = (many_trials.measure(tmp_path, many_trials.Options(), n) for n in (2_000, 40_000))
    assert few.status == many.status == status.DONE
    further = (many.peak - few.peak) * 1e6 / (many.trials - few.trials)
    assert further < MOST_OF_A_TRIAL
