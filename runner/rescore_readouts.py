"""What stored texts are scored with: readouts as they are defined now, and what each searches a text for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from analyses.tables.run import TableError
from analyses.tables.stages import DONE, MEASURE, flat_name, sections, staged
from backends.positions import PositionError
from backends.tokenizer import Tokenizer
from runner.config.complaints import complaint, existing_path
from runner.config.errors import ConfigurationError, Problem, listed, suggestion
from runner.config.folders import config_folders, options
from runner.config.layers import LayerError
from runner.config.provenance import LoadedFile
from runner.config.readouts.faults import readout_faults
from runner.config.readouts.readout import (
    DERIVED,
    SCORES,
    TARGET,
    Readout,
    ReadoutError,
    resolve_readouts,
)
from runner.config.spec import Spec
from runner.config.stages.forms import flat_mapping
from runner.config.stages.known import NOTHING
from runner.config.stages.spec import MeasureStageSpec
from runner.prompts.asked import Asked, Asker
from runner.prompts.banks import Prompt
from runner.prompts.pairing import Item
from runner.prompts.pools import BankReader

_ROLES = (TARGET, "donor")  # of which the table has the ids
_KEPT = (
    "experiment",
    "model",
    "backend",
    "prompts",
    "sampling",
    "readout",
    "readouts",
    "launch",
    "reference_depth",
)


@dataclass(frozen=True)
class TextStage:
    """A stage whose texts are scored. names: the readouts that it has afterwards; texts: those that are taken
    anew; again: these and what is derived."""

    name: str
    names: tuple[str, ...]
    measured: tuple[Readout, ...]
    texts: tuple[Readout, ...]
    again: tuple[Readout, ...]
    spec: Spec


def with_readouts(config: dict[str, Any], names: Sequence[str], config_dir: Path | None) -> dict[str, Any]:
    """The run's configuration with these readouts as they are defined now. Raises ConfigurationError with all
    that do not exist or are not of the text."""
    folders = config_folders(config_dir)
    offered = options("readout", folders)
    own = config.setdefault("readout", {})
    problems = []
    for name in names:
        file = next(
            (f / "readout" / f"{name}.yaml" for f in folders if (f / "readout" / f"{name}.yaml").is_file()),
            None,
        )
        if file is not None:
            own[name] = LoadedFile.read(file, "").content
        elif name not in own:
            known = sorted({*offered, *own})
            message = f"expected a readout ({listed(known)}), got '{name}'{suggestion(name, known)}"
            problems.append(Problem("command line", "readout", message))
            continue
        kind = own[name].get("kind") if isinstance(own[name], dict) else None
        if kind not in (*SCORES, *DERIVED):
            message = (
                f"'{name}' ({kind}) is measured on the model; rescore reads stored texts alone. What the run "
                f"has of it is kept; of a run that lacks it, run the experiment with readouts=[..., {name}]: "
                "finished texts are not taken over, since they were not measured"
            )
            problems.append(Problem("command line", "readout", message))
    if problems:
        raise ConfigurationError(problems)
    return config


def stages_with(
    manifest: Mapping[str, Any], config: dict[str, Any], table: pa.Table, names: Sequence[str], folder: Path
) -> list[TextStage]:
    """The stages that have texts. config: its lists of readouts are completed."""
    parts = sections(manifest, MEASURE) if staged(manifest) else {flat_name(manifest): manifest}
    found, problems = [], []
    for name, section in parts.items():
        rows = table.filter(pc.equal(table["stage"], name))
        if (staged(manifest) and section.get("status") != DONE) or not _has_texts(rows):
            continue
        body = None
        if staged(manifest):
            body = config["stages"][name]
        before = tuple(section.get("readouts") or ())
        after = (*before, *(each for each in names if each not in before))
        (config if body is None else body)["readouts"] = list(after)
        spec = _spec(config, body, after, name, folder)
        for key, message in readout_faults(spec):
            if key[0] == "readouts" or (key[:1] == ("readout",) and key[1] in names):
                problems.append(Problem("readouts", ".".join(map(str, key)), message))
        if problems:
            continue
        try:
            measured = resolve_readouts(spec)
        except (ReadoutError, LayerError, PositionError) as error:
            problems.append(Problem(str(folder / "config.yaml"), "readout", str(error)))
            continue
        texts = tuple(each for each in measured if each.name in names and each.kind in SCORES)
        derived = tuple(each for each in measured if each.derivation is not None)
        found.append(TextStage(name, after, measured, texts, (*texts, *derived), spec))
    if problems:
        raise ConfigurationError(problems)
    if not found:
        raise TableError(f"{folder}: its trials have no generated texts to score")
    return found


def _has_texts(rows: pa.Table) -> bool:
    return bool(pc.any(pc.greater(rows["n_new"].fill_null(0), 0)).as_py())


def _spec(config: Mapping[str, Any], body: Any, names: Sequence[str], stage: str, folder: Path) -> Spec:
    """What of a configuration the readouts of a stage need. Raises ConfigurationError."""
    try:
        flat = dict(config) if body is None else flat_mapping(config, MeasureStageSpec.model_validate(body))
        kept = {key: flat[key] for key in _KEPT if key in flat}
        kept["experiment"] = {"name": kept["experiment"]["name"], "n": 1}
        kept["readouts"] = list(names)
        return Spec.model_validate(kept).of_stage(stage, NOTHING)
    except ValidationError as error:
        by_path: dict[tuple[str | int, ...], list[Any]] = {}
        for detail in error.errors(include_url=False):
            by_path.setdefault(existing_path(kept, detail), []).append(detail)
        where = str(folder / "config.yaml")
        raise ConfigurationError(
            [
                Problem(where, ".".join(map(str, path)), complaint(path, d, kept, Spec))
                for path, d in by_path.items()
            ]
        ) from error


class TextWords:
    """What the texts of items are searched for, each pair of prompts once.

    Raises ConfigurationError where words are facts of a prompt whose id is not in the table, or of a bank
    that has changed since.
    """

    def __init__(self, stage: TextStage, reader: BankReader, manifest: Mapping[str, Any]) -> None:
        # No readout of the text alone asks for tokens, so that the tokenizer's own parts are not needed.
        self._asker = Asker(Tokenizer(None, "", False, None), stage.texts)
        self._known: dict[tuple[str, str], Asked] = {}
        facts = [each for each in stage.texts if each.labels is not None and each.labels.fact]
        self._banks = reader.chosen(stage.spec.prompts) if facts else None
        problems = [
            Problem(
                "readouts",
                f"readout.{each.name}.tokens",
                f"the table does not tell by id who is in the role '{each.labels.role}'",
            )
            for each in facts
            if each.labels is not None and each.labels.role not in _ROLES
        ]
        if facts:
            section = (manifest.get("stages") or {}).get(stage.name, manifest)
            then = (section.get("prompts") or {}).get("banks") or {}
            for name, bank in reader.banks(stage.spec.prompts).items():
                if name in then and then[name]["sha256"] != bank.sha256:
                    message = (
                        f"the bank has changed since the run, and {facts[0].name} reads facts of its prompts"
                    )
                    problems.append(Problem(str(bank.path), "", message))
        if problems:
            raise ConfigurationError(problems)
        if self._banks is not None:
            self._by_id = {each.id: each for each in (*self._banks.donors, *self._banks.targets)}

    def of(self, target: str, donor: str) -> Asked:
        """What the text of an item is searched for."""
        if self._banks is None:
            target = donor = ""
        if (target, donor) not in self._known:
            self._known[target, donor] = self._asked(target, donor)
        return self._known[target, donor]

    def _asked(self, target: str, donor: str) -> Asked:
        if self._banks is None:
            nobody = Prompt("", "", "")
            return self._asker.of(Item("", nobody, nobody, {}, None, 0), "")
        missing = [each for each in (target, donor) if each not in self._by_id]
        if missing:
            return Asked({}, {}, f"the banks have no prompt '{missing[0]}'")
        return self._asker.of(Item("", self._by_id[donor], self._by_id[target], {}, None, 0), "")
