"""One run: prepare, choose its folder, take over what is known, compute the rest, join, summarise."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from rich.console import Console
from rich.text import Text

from analyses.gate import Gate
from analyses.gates import blocking, unusable
from analyses.join import join
from analyses.summary import write_summary
from analyses.tables import Run
from runner import status as codes
from runner.config.check import check, resolved_mapping
from runner.config.compose import Composed
from runner.config.resolve import config_hash, resolve
from runner.config.spec import Spec
from runner.execute import Executor
from runner.plan_gates import plan_gates
from runner.prepare import Prepared, plan_table, prepare
from runner.progress import ProgressWatcher
from runner.results.manifest import build, now
from runner.results.resume import CannotResume, Choice, changed_inputs, choose, earlier_results, own_results
from runner.results.store import FINISHED, RunFolder, read_manifest, read_segments
from runner.speaker import Speaker


@dataclass(frozen=True)
class RunResult:
    """How a run ended. status: as the process would end; folder: where its results are, if anywhere."""

    status: int
    folder: Path | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)


def run_job(
    composed: Composed, console: Console, command: Sequence[str], config_dir: Path | None
) -> RunResult:
    """Run one composed experiment to its end.

    Raises ConfigurationError and BackendError before anything is computed. KeyboardInterrupt is taken as
    the wish to stop: what is finished is kept, and the status is 130.
    """
    spec = check(composed)
    if spec.dry_run:
        from runner.dry_run import dry_run

        return RunResult(dry_run(resolve(spec), console, config_dir, Path(spec.output_root)))
    config = resolved_mapping(composed)
    digest = config_hash(config)
    experiment = Path(spec.output_root) / spec.experiment.name
    try:
        choice = Choice()
        if spec.resume:
            choice = choose(experiment, digest, config, lambda note: console.print(Text(note, "yellow")))
    except CannotResume as error:
        console.print(Text(str(error), style="red"))
        return RunResult(codes.CONFIGURATION)
    if choice.finished is not None:
        console.print(Text(f"{choice.finished} is finished: nothing to do."))
        return RunResult(codes.DONE, choice.finished, read_summary(choice.finished))
    started = time.perf_counter()
    prepared = prepare(resolve(spec), config_dir)
    load_seconds = time.perf_counter() - started
    new = choice.unfinished is None
    opened = RunFolder.create(experiment) if choice.unfinished is None else RunFolder.open(choice.unfinished)
    with opened as folder, Speaker(console, folder.path / "run.log") as speaker:
        return _Job(spec, config, digest, prepared, speaker, command, folder, load_seconds).run(
            resumed=not new
        )


@dataclass
class _Job:
    spec: Spec
    config: Mapping[str, Any]
    digest: str
    prepared: Prepared
    speaker: Speaker
    command: Sequence[str]
    folder: RunFolder
    load_seconds: float

    def run(self, resumed: bool) -> RunResult:
        prepared = self.prepared
        manifest = self._manifest(prepared)
        if resumed:
            refusal = self._changed(manifest)
            if refusal is not None:
                self.speaker.say(refusal, "red")
                return RunResult(codes.CONFIGURATION, self.folder.path)
            self._remember_attempts(manifest)
        self.folder.write_text("config.yaml", yaml.safe_dump(dict(self.config), sort_keys=False))
        self.folder.write_json("manifest.json", manifest)
        plan = plan_table(prepared.plan, prepared.design)
        self.folder.write_plan(plan)
        self._introduce(prepared)
        done = self._known(prepared)
        todo = {t.key: t for t in prepared.plan.trials if t.invalid is None and t.key not in done}
        watcher = ProgressWatcher(self.speaker, len(todo), self.spec.quiet)
        executor = Executor(
            prepared.backend,
            prepared.tokenizer,
            prepared.design.measured,
            self.folder.append,
            watcher,
            prepared.design.backend.max_rows,
        )
        try:
            with watcher.showing():
                executor.run(list(todo.values()))
        except KeyboardInterrupt:
            return self._interrupted(manifest, plan, watcher)
        except Exception as error:
            self.speaker.say(f"stopped: {error}", "red")
            self._close(manifest, plan, "interrupted", codes.CRASH)
            raise
        manifest["times"]["seconds"] = {"load": self.load_seconds, **executor.times}
        if todo:
            told = [f"{len(todo):,} trials in {watcher.seconds:.1f} s", watcher.speed]
            self.speaker.say(", ".join(filter(None, told)))
        if self.spec.profile:
            self._profile(manifest["times"]["seconds"])
        return self._finish(prepared, manifest, plan)

    def _manifest(self, prepared: Prepared) -> dict[str, Any]:
        return build(
            prepared.design,
            self.config,
            self.digest,
            self.command,
            prepared.backend.info,
            prepared.tokenizer.fingerprint,
            prepared.banks,
            prepared.pairing,
            self.spec.allow_inert,
            plan_gates(prepared.design, prepared.plan),
        )

    def _changed(self, manifest: Mapping[str, Any]) -> str | None:
        old = read_manifest(self.folder.path)
        changed = [] if old is None else changed_inputs(old, manifest)
        if not changed:
            return None
        return (
            f"{self.folder.path} cannot be resumed: {', '.join(changed)} changed since it began. Restore "
            "what changed, or run without resume=true to start a new version."
        )

    def _introduce(self, prepared: Prepared) -> None:
        pairing, design = prepared.pairing, prepared.design
        question = f": {design.question}" if design.question else ""
        self.speaker.say(f"{self.folder.name}{question}", "bold")
        distinct = (
            f"{pairing.distinct_donors} donors, {pairing.distinct_targets} targets, "
            f"{pairing.distinct_pairs} pairs"
        )
        self.speaker.say(
            f"{len(prepared.plan.trials):,} trials: {len(design.conditions)} conditions, "
            f"{pairing.items} items ({distinct}), "
            f"{design.repeats} repeat{'s' if design.repeats > 1 else ''}; "
            f"{design.model.name} on {design.backend.name}"
        )
        for note in design.layer_notes:
            self.speaker.say(note, "dim")

    def _known(self, prepared: Prepared) -> dict[str, dict[str, Any]]:
        """Results that this version has, or that earlier versions have and this one now takes over."""
        wanted = {t.key for t in prepared.plan.trials if t.invalid is None}
        stored = read_segments(self.folder.path)
        own = own_results(self.folder.path, wanted, prepared.design.columns, prepared.design.text_kinds)
        taken = earlier_results(
            self.folder.path.parent,
            wanted - own.keys(),
            self.folder.path,
            prepared.design.columns,
            prepared.design.text_kinds,
            lambda sentence: self.speaker.say(sentence, "yellow"),
        )
        unstored = [*(r for key, r in own.items() if key not in stored), *taken.values()]
        if unstored:
            self.folder.append(unstored)
        if taken:
            origins = sorted({result["origin"] for result in taken.values()})
            self.speaker.say(f"{len(taken):,} results taken over from {', '.join(origins)}")
        if own:
            self.speaker.say(f"{len(own):,} results were already here")
        return own | taken

    def _remember_attempts(self, manifest: dict[str, Any]) -> None:
        """A resumed run keeps when it began, and who computed the part that it already has."""
        old = read_manifest(self.folder.path)
        if old is not None:
            told = {key: old.get(key) for key in ("command", "git", "host", "pid", "packages", "times")}
            manifest["attempts"] = [*old.get("attempts", []), told]
            manifest["times"]["started"] = old["times"]["started"]

    def _interrupted(self, manifest: dict[str, Any], plan: pa.Table, watcher: ProgressWatcher) -> RunResult:
        again = " ".join([*self.command, *([] if self.spec.resume else ["resume=true"])])
        self.speaker.say(
            f"interrupted: {watcher.done} of {watcher.total} trials are stored in {self.folder.path}. "
            f"Go on with:\n  {again}"
        )
        self._close(manifest, plan, "interrupted", codes.INTERRUPTED)
        return RunResult(codes.INTERRUPTED, self.folder.path)

    def _close(self, manifest: dict[str, Any], plan: pa.Table, state: str, status: int) -> None:
        """Bring the manifest of a run that stops early up to date."""
        manifest["status"], manifest["exit_status"] = state, status
        manifest["times"]["finished"] = now()
        results = read_segments(self.folder.path).values()
        manifest["counts"] = counts(join(plan, results, *self._columns(manifest)))
        self.folder.write_json("manifest.json", manifest)

    def _columns(self, manifest: Mapping[str, Any]) -> tuple[dict[str, list[str]], dict[str, str]]:
        orders = {name: body["receipt_order"] for name, body in manifest["conditions"].items()}
        return orders, self.prepared.design.columns

    def _profile(self, seconds: Mapping[str, float]) -> None:
        self.folder.write_json("profile.json", seconds)
        told = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
        self.speaker.say(f"time: {told}")

    def _finish(self, prepared: Prepared, manifest: dict[str, Any], plan: pa.Table) -> RunResult:
        """Table, summary, manifest, and only then the segments go: a kill at any point in between loses
        nothing."""
        results = read_segments(self.folder.path).values()
        table = join(plan, results, *self._columns(manifest))
        manifest["counts"] = counts(table)
        manifest["times"]["finished"] = now()
        self.folder.write_trials(table)
        # Failed trials leave the run unfinished, so that resume=true tries them again.
        failed = manifest["counts"]["failed"]
        manifest["status"] = "failed" if failed else FINISHED
        summary = write_summary(Run(table.to_pandas(), manifest, self.folder.path))
        manifest["exit_status"] = status = self._status(summary["gates"], manifest["counts"])
        self.folder.write_json("manifest.json", manifest)
        if not failed:
            self.folder.clear()
        self.speaker.show(summary)
        if failed:
            self.speaker.say(f"{failed} trials failed; resume=true tries them again", "red")
        self.speaker.say(f"results: {self.folder.path}")
        return RunResult(status, self.folder.path, summary)

    def _status(self, gates: Sequence[Mapping[str, str]], counted: Mapping[str, int]) -> int:
        found = [Gate(**gate) for gate in gates]
        if counted["failed"] or unusable(found):
            return codes.FAILED_TRIALS
        return codes.INERT if blocking(found, self.spec.allow_inert) else codes.DONE


def counts(table: pa.Table) -> dict[str, int]:
    """Trials planned, done, reused from earlier versions, failed and invalid."""
    statuses = table["status"].to_pylist()
    return {
        "planned": len(statuses),
        "done": statuses.count("ok"),
        "reused": sum(origin is not None for origin in table["origin"].to_pylist()),
        "failed": statuses.count("failed"),
        "invalid": statuses.count("invalid"),
    }


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary of a finished run; empty where it cannot be read."""
    try:
        found = json.loads((folder / "summary.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def worst(statuses: Iterable[int]) -> int:
    """The status that a sweep ends with."""
    return max(statuses, key=codes.SEVERITY.index, default=codes.DONE)
