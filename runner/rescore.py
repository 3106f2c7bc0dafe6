"""Stored texts scored again, or with further readouts, as a new version of the run: no model, no torch."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from rich.console import Console

from analyses.runs.folders import run_name
from analyses.summary.summary import write_summary
from analyses.tables.columns import RECEIPTS
from analyses.tables.join import HELD, TAIL_TYPES
from analyses.tables.run import Run, TableError
from analyses.tables.stages import sections, staged
from runner.config.errors import listed
from runner.config.folders import config_folders
from runner.config.resolve import config_hash
from runner.prompts.pools import BankReader
from runner.rescore_readouts import TextStage, TextWords, stages_with, with_readouts
from runner.results.manifest import git_state, now
from runner.results.store import RunFolder
from runner.results.stored import stored_config
from runner.scores import behaviour
from runner.scores.derived import Value
from runner.scores.scoring import Scorer
from runner.speaker import Speaker

ENDED = ("done", "failed")
_COPIED = ("artefacts", "choices")


@dataclass(frozen=True)
class Rescored:
    """A run whose texts were scored again. folder: of the new version; columns: column -> how many values
    are new or others than before, of how many valid trials."""

    folder: Path
    summary: Mapping[str, Any]
    columns: Mapping[str, tuple[int, int]]


def rescore(
    run: Run,
    names: Sequence[str],
    config_dir: Path | None,
    command: Sequence[str],
    console: Console,
    *,
    report: bool = True,
) -> Rescored:
    """Score the stored texts of a run with readouts, as the configuration has them now, into a new version.

    names: readouts of the text alone, or derived ones: those of conf/readout and of the user's own folder,
    else as the run's own configuration has them. Their columns are added, or replaced where the run has them;
    what was measured by the model, perplexity too, and other scores stay as they are. What is derived is
    derived again. The rows name the run that computed them as `origin`; the run itself is not touched.

    Raises TableError for a run that has not ended or has no texts, ConfigurationError for a readout that does
    not exist, needs the model, or asks for facts that cannot be had.
    """
    manifest, folder = run.manifest, run.folder
    if manifest.get("status") not in ENDED or not (folder / "trials.parquet").is_file():
        raise TableError(
            f"{folder} has the status '{manifest.get('status')}': rescore takes a run that has ended; go on "
            "with it by resume=true"
        )
    table = pq.read_table(folder / "trials.parquet")
    config = with_readouts(deepcopy(stored_config(folder, manifest)), names, config_dir)
    stages = stages_with(manifest, config, table, names, folder)
    reader = BankReader(config_folders(config_dir))
    columns: dict[str, tuple[int, int]] = {}
    for stage in stages:
        table = _scored(table, stage, reader, manifest, columns)
    origin = table["origin"].fill_null(run_name(folder.resolve()))
    table = table.set_column(table.column_names.index("origin"), "origin", origin)
    with RunFolder.create(folder.resolve().parent) as new, Speaker(console, new.path / "run.log") as speaker:
        told = _manifest(manifest, config, stages, table, columns, folder, command, names)
        new.write_text("config.yaml", yaml.safe_dump(config, sort_keys=False))
        new.write_json("manifest.json", told | {"status": "running"})
        speaker.say(f"{new.name}: the texts of {run_name(folder.resolve())}, scored again", "bold")
        for part in _COPIED:
            if (folder / part).is_dir():
                shutil.copytree(folder / part, new.path / part)
        new.write_trials(table)
        told["times"]["finished"] = now()
        new.write_json("manifest.json", told)
        new.clear()
        for name, (changed, of) in columns.items():
            speaker.say(f"{name}: {changed:,} of {of:,} values are new or others than before")
        for sentence in _chosen_by(manifest, columns):
            speaker.say(sentence, "yellow")
        return Rescored(new.path, _shown(Run(table.to_pandas(), told, new.path), speaker, report), columns)


def _shown(run: Run, speaker: Speaker, report: bool) -> Mapping[str, Any]:
    """Summary, figures and report of the new version, as of any other."""
    from analyses.figures import draw

    summary = write_summary(run)
    drawn = draw(run, summary, automatic=report)
    speaker.show(summary)
    for sentence in drawn.skipped.values():
        speaker.say(sentence, "yellow")
    if drawn.captions:
        speaker.say(f"figures: {', '.join(drawn.captions)} in {run.folder / 'figures'}")
    if report:
        from analyses.report.report import write_report

        speaker.say(f"report: {write_report(run, summary, drawn)}")
    speaker.say(f"results: {run.folder}")
    return summary


def _scored(
    table: pa.Table,
    stage: TextStage,
    reader: BankReader,
    manifest: Mapping[str, Any],
    told: dict[str, tuple[int, int]],
) -> pa.Table:
    """The table with the columns of a stage's scores taken again in its valid rows."""
    whole = Scorer.of(stage.measured)
    columns = {name: held for readout in stage.again for name, held in readout.columns.items()}
    kept = {c for readout in stage.measured for c in readout.columns if c not in columns}
    scorer = Scorer(stage.texts, whole.derived, frozenset(kept))
    needed = {entry.column for r in whole.derived if r.derivation for entry in r.derivation.entries} & kept
    words = TextWords(stage, reader, manifest)
    rows = table.select(
        [
            "stage",
            "status",
            "text",
            "donor",
            "target",
            *(c for c in sorted(needed) if c in table.column_names),
        ]
    ).to_pylist()
    before = {
        name: table[name].to_pylist() if name in table.column_names else [None] * len(rows)
        for name in columns
    }
    found: dict[str, list[Value]] = {name: list(values) for name, values in before.items()}
    valid = 0
    for place, row in enumerate(rows):
        if row["stage"] != stage.name or row["status"] != "ok":
            continue
        valid += 1
        asked = words.of(row["target"], row["donor"])
        scores: Mapping[str, Value] = {}
        if asked.fault is None:
            scores = scorer.scores(row["text"] or "", asked.words, {name: row.get(name) for name in needed})
        for name in columns:
            found[name][place] = scores.get(name)
    for name, held in columns.items():
        changed = sum(one != other for one, other in zip(found[name], before[name], strict=True))
        earlier = told.get(name, (0, 0))
        told[name] = (earlier[0] + changed, earlier[1] + valid)
        values = pa.array(found[name], HELD[held])
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, values)
        else:
            table = table.add_column(_place(table), name, values)
    return table


def _place(table: pa.Table) -> int:
    """Where a further readout comes in: before receipts, and before what ends every row."""
    for place, name in enumerate(table.column_names):
        if name.rpartition(".")[2] in RECEIPTS or name in TAIL_TYPES:
            return place
    return len(table.column_names)


def _manifest(
    manifest: Mapping[str, Any],
    config: Mapping[str, Any],
    stages: Sequence[TextStage],
    table: pa.Table,
    columns: Mapping[str, tuple[int, int]],
    folder: Path,
    command: Sequence[str],
    names: Sequence[str],
) -> dict[str, Any]:
    """The manifest of the new version: what the run's has of how the texts came about, and who scored them
    now."""
    told = deepcopy(dict(manifest))
    told |= {
        "command": list(command),
        "config": dict(config),
        "config_hash": config_hash(config),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "times": {"started": now(), "finished": None, "seconds": {}},
        "rescored_from": {
            "run": run_name(folder.resolve()),
            "readouts": list(names),
            "changed": {name: {"changed": changed, "of": of} for name, (changed, of) in columns.items()},
            "command": manifest.get("command"),
            "times": manifest.get("times"),
            "host": manifest.get("host"),
            "markers": manifest.get("markers"),
            "git_now": git_state(Path(__file__).resolve().parent),
        },
    }
    if any(each.kind == "behaviour" for stage in stages for each in stage.texts):
        told["markers"] = {"list": list(behaviour.MARKERS), "version": behaviour.VERSION}
    for stage in stages:
        section = told["stages"][stage.name] if staged(manifest) else told
        described = dict(section.get("readout") or {})
        for readout in stage.again:
            described[readout.name] = readout.described()
        section["readouts"], section["readout"] = list(stage.names), described
    counted = dict(told.get("counts") or {})
    counted["reused"] = table.num_rows - table["origin"].null_count
    told["counts"] = counted
    return told


def _chosen_by(manifest: Mapping[str, Any], columns: Mapping[str, tuple[int, int]]) -> Iterator[str]:
    """Choices whose rule reads a score that is another one now: they stand as they were made."""
    for name, section in sections(manifest).items():
        rule = (manifest.get("config") or {}).get("stages", {}).get(name)
        read = [
            c
            for c, (changed, _) in columns.items()
            if changed and section.get("kind") == "select" and _names(rule, c)
        ]
        if read:
            yield f"The choice {name} was made by {listed(read)} as it was before; it stands as it was made."


def _names(rule: object, column: str) -> bool:
    if isinstance(rule, Mapping):
        return any(_names(value, column) for value in rule.values())
    if isinstance(rule, list):
        return any(_names(value, column) for value in rule)
    return rule == column
