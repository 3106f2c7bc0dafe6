"""A stored run as an experiment again: its configuration, and the choices and artefacts that it made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analyses.tables.run import TableError
from runner.config.compose import Composed
from runner.config.errors import ConfigurationError, Problem
from runner.config.folders import config_folders
from runner.config.provenance import LoadedFile, Origins
from runner.config.stages.artefact_files import ArtefactError, read_artefact
from runner.config.stages.known import NOTHING, Chosen, Known
from runner.prompts.pools import BankReader

_OPTION = "--config-dir"


def own_config_dir(manifest: Mapping[str, Any], given: Path | None) -> Path | None:
    """The folder of the user's own files that a run was made with: the one given, else that of its command.
    Raises ConfigurationError where that is not there any more."""
    if given is not None:
        return given
    words = list(manifest.get("command") or ())
    for place, word in enumerate(words):
        if word == _OPTION and place + 1 < len(words):
            return _there(Path(words[place + 1]))
        if word.startswith(f"{_OPTION}="):
            return _there(Path(word.partition("=")[2]))
    return None


def _there(folder: Path) -> Path:
    if folder.is_dir():
        return folder
    message = f"the run was made with {folder}, which is not there; say where it is now with config_dir=DIR"
    raise ConfigurationError([Problem("manifest.json", "command", message)])


def stored_config(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that a run recorded. Raises TableError where its manifest has none."""
    config = manifest.get("config")
    if not isinstance(config, dict) or not isinstance(config.get("experiment"), dict):
        raise TableError(f"{folder / 'manifest.json'}: expected the run's configuration under config")
    return config


def composed_of(folder: Path, config: dict[str, Any], config_dir: Path | None) -> Composed:
    """The configuration of a stored run as if it had been composed now. Mistakes are told of its
    config.yaml."""
    folders = config_folders(config_dir)
    file = LoadedFile(folder / "config.yaml", (), config)
    return Composed(config, (), folders, Origins(lambda: (file,), ()), (), (), BankReader(folders))


def stored_known(folder: Path, stages: Sequence[str]) -> Known:
    """The choices and artefacts that a run has of the stages named. Raises TableError for one that cannot be
    read."""
    known = NOTHING
    for name in stages:
        choice, artefact = folder / "choices" / f"{name}.json", folder / "artefacts" / f"{name}.safetensors"
        if choice.is_file():
            known = known.and_choice(_chosen(choice))
        if artefact.is_file():
            try:
                known = known.and_artefact(read_artefact(artefact))
            except ArtefactError as error:
                raise TableError(f"{artefact}: {error}") from error
    return known


def _chosen(path: Path) -> Chosen:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        items = told["items"]
        return Chosen(
            told["name"],
            tuple(told["chosen"]),
            None if items is None else frozenset((donor, target) for donor, target in items),
            told["sentence"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TableError(f"{path}: expected a choice as a select stage writes it: {error!r}") from error
