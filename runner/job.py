"""One run: its folder, its stages one after the other, the table of all of them, the summary."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from pydantic import BaseModel
from rich.console import Console
from rich.text import Text

from analyses.figures import draw
from analyses.gates.all_gates import blocking, unusable
from analyses.gates.gate import Gate
from analyses.summary.summary import write_summary
from analyses.tables.light import light_trials
from analyses.tables.run import Run
from runner import status as codes
from runner.config.check import Experiment, check_experiment, resolved_mapping
from runner.config.compose import Composed
from runner.config.resolve import config_hash
from runner.failures import crash
from runner.prepare import Prepared
from runner.results.manifest import describe_run, now
from runner.results.resume import CannotResume, Choice, changed_inputs, choose
from runner.results.rows import Rows
from runner.results.store import FINISHED, RunFolder, read_manifest
from runner.speaker import Speaker
from runner.spending import Spending, told
from runner.stages.course import prepare_first, run_stages
from runner.stages.measure import StageInterrupted, join_stage
from runner.stages.run import StagedRun, concatenated


@dataclass(frozen=True)
class RunResult:
    """How a run ended. status: as the process would end; folder: where its results are, if anywhere."""

    status: int
    folder: Path | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)


def run_job(
    composed: Composed,
    console: Console,
    command: Sequence[str],
    config_dir: Path | None,
    checked: Experiment | None = None,
) -> RunResult:
    """Run one composed experiment to its end. checked: the same, where the door has been passed already.

    Raises ConfigurationError and BackendError before anything is computed. KeyboardInterrupt is taken as
    the wish to stop: what is finished is kept, and the status is 130.
    """
    checked = check_experiment(composed) if checked is None else checked
    spec = checked.spec
    if spec.dry_run:
        from runner.dry_run import dry_run

        return RunResult(dry_run(checked, console, config_dir, Path(spec.output_root)))
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
    spending = Spending(spec.profile)
    first = prepare_first(checked, config_dir, spending.clock)
    new = choice.unfinished is None
    opened = RunFolder.create(experiment) if choice.unfinished is None else RunFolder.open(choice.unfinished)
    with opened as folder, Speaker(console, folder.path / "run.log") as speaker:
        job = _Job(composed, checked, config, digest, first, speaker, command, folder, config_dir, spending)
        return job.run(resumed=not new)


@dataclass
class _Job:
    composed: Composed
    checked: Experiment
    config: Mapping[str, Any]
    digest: str
    first: Prepared
    speaker: Speaker
    command: Sequence[str]
    folder: RunFolder
    config_dir: Path | None
    spending: Spending
    manifest: dict[str, Any] = field(default_factory=dict)

    def run(self, resumed: bool) -> RunResult:
        with self.spending.during("store"):
            self.manifest = self._manifest()
        run = StagedRun(
            self.composed,
            self.config_dir,
            self.folder,
            self.speaker,
            self.checked.spec.quiet,
            self.checked.staged,
            resumed,
            lambda: self._write_manifest(run),
            self.spending,
        )
        if resumed:
            refusal = self._changed()
            if refusal is not None:
                self.speaker.say(refusal, "red")
                return RunResult(codes.CONFIGURATION, self.folder.path)
            self._remember_attempts()
        self.folder.write_text("config.yaml", yaml.safe_dump(dict(self.config), sort_keys=False))
        self._write_manifest(run)
        if self.checked.staged:
            question = self.checked_question()
            self.speaker.say(f"{self.folder.name}{f': {question}' if question else ''}", "bold")
        try:
            run_stages(self.checked, run, self.first)
            analysed, summary = self._analyse(run)
        except StageInterrupted as error:
            return self._interrupted(run, error)
        except KeyboardInterrupt:
            return self._interrupted(run, None)
        except Exception as error:
            self.speaker.say(f"stopped: {error}", "red")
            self._close(run, "interrupted", codes.CRASH)
            raise
        return self._finish(run, analysed, summary)

    def checked_question(self) -> str:
        """The question of the whole experiment, which its stages do not repeat."""
        told = self.config.get("experiment", {}).get("question", "")
        return str(told)

    def _manifest(self) -> dict[str, Any]:
        prepared = self.first
        manifest = describe_run(
            prepared.design,
            self.config,
            self.digest,
            self.command,
            prepared.backend.info,
            prepared.tokenizer.fingerprint,
            self.checked.spec.allow_inert,
        )
        manifest["memory"] = asdict(prepared.backend.footprint)
        if self.checked.staged:
            name = self.checked.spec.experiment.name
            manifest["experiment"] = {"name": name, "question": self.checked_question()}
        declared: Mapping[str, Mapping[str, BaseModel]] = {
            "findings": self.checked.findings,
            "figures": self.checked.figures,
            "analyses": self.checked.analyses,
        }
        for part, found in declared.items():
            if found:
                manifest[part] = {
                    key: one.model_dump(mode="json", by_alias=True) for key, one in found.items()
                }
        return manifest

    def _write_manifest(self, run: StagedRun) -> None:
        """Write the manifest with what is known of the stages by now."""
        self._gather(run)
        self.folder.write_json("manifest.json", self.manifest)

    def _gather(self, run: StagedRun) -> None:
        """Take what is known of the stages by now into the manifest."""
        if self.checked.staged:
            self.manifest["stages"] = {
                stage.name: {"kind": stage.kind, "status": "pending", "reason": None, "question": ""}
                | run.sections.get(stage.name, {})
                for stage in self.checked.stages
            }
        else:
            for section in run.sections.values():
                kept = {key: value for key, value in section.items() if key not in _OF_STAGES}
                self.manifest.update(kept)

    def _changed(self) -> str | None:
        old = read_manifest(self.folder.path)
        if old is None:
            return None
        reader = self.composed.reader
        banks = {
            stage.name: {
                name: (str(bank.path), bank.sha256) for name, bank in reader.banks(stage.spec.prompts).items()
            }
            for stage in self.checked.stages
            if stage.spec is not None
        }
        changed = changed_inputs(old, self.manifest["model"], banks)
        if not changed:
            return None
        return (
            f"{self.folder.path} cannot be resumed: {', '.join(changed)} changed since it began. Restore "
            "what changed, or run without resume=true to start a new version."
        )

    def _remember_attempts(self) -> None:
        """A resumed run keeps when it began, and who computed the part that it already has."""
        old = read_manifest(self.folder.path)
        if old is not None:
            told = {key: old.get(key) for key in ("command", "git", "host", "pid", "packages", "times")}
            self.manifest["attempts"] = [*old.get("attempts", []), told]
            self.manifest["times"]["started"] = old["times"]["started"]

    def _interrupted(self, run: StagedRun, error: StageInterrupted | None) -> RunResult:
        again = " ".join([*self.command, *([] if self.checked.spec.resume else ["resume=true"])])
        done = "" if error is None else f"{error} are stored in {self.folder.path}. "
        self.speaker.say(f"interrupted: {done}Go on with:\n  {again}")
        self._close(run, "interrupted", codes.INTERRUPTED)
        return RunResult(codes.INTERRUPTED, self.folder.path)

    def _close(self, run: StagedRun, state: str, status: int) -> None:
        """Bring the manifest of a run that stops early up to date."""
        self.manifest["status"], self.manifest["exit_status"] = state, status
        self.manifest["times"]["finished"] = now()
        tables = [join_stage(run, name) for name in run.plans]
        self.manifest["counts"] = counts(concatenated(tables)) if tables else {}
        self._write_manifest(run)
        self._profile(summarised=False)

    def _profile(self, summarised: bool) -> None:
        """With `profile=true`, write and say where the time went. summarised: whether there is a summary to
        say it too."""
        if not self.checked.spec.profile:
            return
        profile = self.spending.profile()
        lines = told(profile)
        self.folder.write_json("profile.json", profile)
        if summarised:
            summary = (self.folder.path / "summary.md").read_text(encoding="utf-8")
            table = "\n".join(["```text", *lines, "```"])
            self.folder.write_text("summary.md", f"{summary.rstrip()}\n\n## Time\n\n{table}\n")
        for line in lines:
            self.speaker.say(line)

    def _analyse(self, run: StagedRun) -> tuple[Run, dict[str, Any]]:
        """Write the table and the summary. The manifest on disk still says that the run goes on, so that a
        kill here loses nothing: resume=true makes both anew, from the segments."""
        manifest = self.manifest
        during = self.spending.during
        tally = Tally()
        with during("join"):
            self.folder.write_trials(tally.of(concatenated(list(run.tables.values()))))
        manifest["times"]["seconds"] = self.spending.wall
        manifest["counts"] = tally.counts()
        manifest["times"]["finished"] = now()
        # Failed trials leave the run unfinished, so that resume=true tries them again.
        manifest["status"] = "failed" if manifest["counts"]["failed"] else FINISHED
        self._gather(run)
        with during("summarise"):
            analysed = Run(light_trials(self.folder.path), manifest, self.folder.path)
            return analysed, write_summary(analysed)

    def _finish(self, run: StagedRun, analysed: Run, summary: dict[str, Any]) -> RunResult:
        """Say in the manifest how the run ended, and only then let the segments go. What is shown comes
        after that."""
        failed = self.manifest["counts"]["failed"]
        self.manifest["exit_status"] = status = self._status(summary["gates"], self.manifest["counts"])
        with self.spending.during("store"):
            self._write_manifest(run)
            if not failed:
                self.folder.clear()
        with self.spending.during("summarise"):
            self.speaker.show(summary)
        shown = self._picture(analysed, summary)
        self._profile(summarised=True)
        if failed:
            self.speaker.say(f"{failed} trials failed; resume=true tries them again", "red")
        self.speaker.say(f"results: {self.folder.path}")
        return RunResult(status if shown else worst([status, codes.CRASH]), self.folder.path, summary)

    def _picture(self, run: Run, summary: Mapping[str, Any]) -> bool:
        """Draw the figures and write the report; of `report: false` what the experiment declares alone. The
        results are safe by now: what goes wrong here is told and ends no sweep. Returns whether all went
        well."""
        try:
            self._draw(run, summary)
        except Exception as error:
            if not isinstance(error, OSError):
                crash(error)
            told = (error.strerror if isinstance(error, OSError) else None) or error
            again = f"patchbay report {self.folder.path}"
            self.speaker.say(
                f"figures and report are missing ({told}); the results are stored, and this makes them:\n"
                f"  {again}",
                "red",
            )
            return False
        return True

    def _draw(self, run: Run, summary: Mapping[str, Any]) -> None:
        wanted = self.checked.spec.report
        with self.spending.during("figures"):
            drawn = draw(run, summary, automatic=wanted)
        for sentence in drawn.skipped.values():
            self.speaker.say(sentence, "yellow")
        if drawn.captions:
            self.speaker.say(f"figures: {', '.join(drawn.captions)} in {run.folder / 'figures'}")
        if wanted:
            with self.spending.during("report"):
                from analyses.report.report import write_report

                written = write_report(run, summary, drawn)
            self.speaker.say(f"report: {written}")

    def _status(self, gates: Sequence[Mapping[str, str]], counted: Mapping[str, int]) -> int:
        found = [Gate(**{key: value for key, value in gate.items() if key != "stage"}) for gate in gates]
        if counted["failed"] or unusable(found):
            return codes.FAILED_TRIALS
        return codes.INERT if blocking(found, self.checked.spec.allow_inert) else codes.DONE


_OF_STAGES = (
    "kind",
    "status",
    "reason",
    "question",
    "in_sample",
    "needs",
)  # of a section; a flat run has no sections


@dataclass
class Tally:
    """Trials counted as their table goes by."""

    statuses: Counter[str] = field(default_factory=Counter)
    reused: int = 0

    def of(self, rows: Rows) -> Rows:
        """The same table, counted while it is read."""

        def parts() -> Iterator[pa.Table]:
            for part in rows.parts:
                self.statuses.update(part["status"].to_pylist())
                self.reused += part.num_rows - part["origin"].null_count
                yield part

        return Rows(rows.schema, parts())

    def counts(self) -> dict[str, int]:
        """Trials planned, done, reused from earlier versions, failed and invalid."""
        return {
            "planned": self.statuses.total(),
            "done": self.statuses["ok"],
            "reused": self.reused,
            "failed": self.statuses["failed"],
            "invalid": self.statuses["invalid"],
        }


def counts(rows: Rows) -> dict[str, int]:
    """The same of a table that nothing else reads."""
    tally = Tally()
    for _ in tally.of(rows).parts:
        pass
    return tally.counts()


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
