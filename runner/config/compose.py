"""From overrides and YAML files to one resolved mapping. Hydra composes; nothing in a configuration can
run."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from runner.config.errors import ConfigurationError, Problem, listed, suggestion
from runner.config.folders import config_folders, options
from runner.config.plaindata import MISSING_VALUE, Unresolvable, to_plain
from runner.config.provenance import COMMAND_LINE, LoadedFile, Origins, merge_shapes, shape_clash
from runner.config.spellings import misread, suspects
from runner.prompts.pools import BankReader

ROOT_FILE = "config"
# Where keys may be added.
FREE = ("conditions.", "stages.", "readout.", "prompts.roles.", "prompts.templates.", "model.landmarks.")
# What Hydra and the readers beneath it raise for files and overrides that cannot be composed.
_UNREADABLE = (HydraException, OmegaConfBaseException, yaml.YAMLError)
_ALWAYS = ("model", "backend", "prompts", "launch")  # groups that the root file has chosen already
# Groups of Hydra's own that nothing here uses: to read them would take a quarter of the time of composing.
_UNUSED = tuple(
    f"~hydra/{group}"
    for group in ("help", "hydra_help", "job_logging", "hydra_logging", "launcher", "sweeper", "output")
)


@dataclass(frozen=True)
class Composed:
    """A composed configuration. mapping: plain data, interpolations resolved; values that could not be are
    None and told in `problems`. misread: values that YAML reads otherwise than they stand there; the mapping
    has them as read. folders: where files were looked for, the user's own first. reader: of the prompt banks
    in them."""

    mapping: dict[str, Any]
    overrides: tuple[str, ...]
    folders: tuple[Path, ...]
    origins: Origins
    problems: tuple[Problem, ...]
    misread: tuple[Problem, ...]
    reader: BankReader = field(compare=False, repr=False)

    @property
    def files(self) -> tuple[Path, ...]:
        """The YAML files that were read, in the order in which they were merged."""
        return tuple(dict.fromkeys(file.path for file in self.origins.files))

    def origin(self, key: Sequence[str | int]) -> str:
        """The file that set a key, or `command line`."""
        return self.origins.of(key)


def expand_sweep(overrides: Sequence[str]) -> list[list[str]]:
    """The jobs of a sweep: the product of the values of every override that has several (`5,18`,
    `choice(...)`, `range(...)`), the last one varying fastest. Raises ConfigurationError."""
    parsed, problems = _parse(overrides)
    if problems:
        raise ConfigurationError(problems)
    axes: list[list[str]] = []
    for override in parsed:
        line = override.input_line or ""
        if not override.is_sweep_override():
            axes.append([line])
        elif override.is_discrete_sweep():
            axes.append(
                [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
            )
        else:
            message = f"expected values to sweep over (5,18 or range or choice), got an interval: {line}"
            problems.append(Problem(COMMAND_LINE, override.key_or_group, message))
    if problems:
        raise ConfigurationError(problems)
    return [list(job) for job in itertools.product(*axes)]


def compose(overrides: Sequence[str], config_dir: Path | None = None) -> Composed:
    """Compose the configuration of one run.

    overrides: as on the command line. config_dir: a folder of the user's own files, which may extend ours.
    Raises ConfigurationError where no mapping can be had at all; what is wrong within it is in
    `Composed.problems`.
    """
    folders = config_folders(config_dir)
    parsed, problems = _parse(overrides)
    problems += _misused(parsed, folders)
    if problems:
        raise ConfigurationError(problems)
    lines = [str(override.input_line) for override in parsed]
    try:
        config = _load(lines, folders)
    except _UNREADABLE as error:
        return _without_wrong_keys(parsed, folders, error)
    return _composed(parsed, folders, config)


def _composed(parsed: Sequence[Override], folders: tuple[Path, ...], config: DictConfig) -> Composed:
    """What Hydra has composed of these overrides, with what is wrong within it."""
    lines = [str(override.input_line) for override in parsed]
    settings = tuple(override for override in parsed if not _chooses_file(override, folders))
    origins = Origins(partial(_files, lines, folders), settings)
    mapping, faults = to_plain(config)
    problems = [Problem(origins.of(fault.key), _dotted(fault), fault.message) for fault in faults]
    if len(folders) > 1:  # ours hold none
        problems += [problem for file in origins.files for problem in file.forbidden()]
        problems += _left_open(origins, {problem.key for problem in problems})
    misspelt: tuple[Problem, ...] = ()
    doubtful = set(suspects(folders))
    if doubtful:
        chosen = [file for file in origins.files if file.path in doubtful]
        misspelt = tuple(problem for file in chosen for problem in misread(file.path, file.package))
    return Composed(mapping, tuple(lines), folders, origins, tuple(problems), misspelt, BankReader(folders))


def _without_wrong_keys(parsed: Sequence[Override], folders: tuple[Path, ...], error: Exception) -> Composed:
    """The configuration without the overrides whose keys are wrong, which are told with all other mistakes:
    what they would have changed is left as it is. error: what composing with them all raised. Raises
    ConfigurationError where that has another reason, or has one besides."""
    found: list[Problem] = []
    with suppress(*_UNREADABLE):
        config = _load([str(o.input_line) for o in parsed if _chooses_file(o, folders)], folders)
        found = _wrong_keys(parsed, folders, to_plain(config)[0])
    if not found:
        raise ConfigurationError(_told(parsed, folders, error)) from error
    keys = {problem.key for problem in found}
    rest = [override for override in parsed if override.key_or_group not in keys]
    if any(not _chooses_file(override, folders) for override in rest):
        try:
            config = _load([str(override.input_line) for override in rest], folders)
        except _UNREADABLE as other:
            raise ConfigurationError(_told(rest, folders, other)) from other
    composed = _composed(rest, folders, config)
    return replace(composed, problems=(*found, *composed.problems))


def _told(parsed: Sequence[Override], folders: Sequence[Path], error: Exception) -> list[Problem]:
    """What Hydra could not compose, in our words."""
    lines = [str(override.input_line) for override in parsed]
    return _wrong_shapes(lines, folders, error) or [_translated(error, parsed, folders)]


def _left_open(origins: Origins, told: set[str]) -> list[Problem]:
    """Values that a file leaves open and nothing later gives, though there is a default: merging takes the
    default."""
    return [
        Problem(str(file.path), ".".join(key), MISSING_VALUE)
        for file in origins.files
        for key in file.missing()
        if ".".join(key) not in told and origins.of(key) == str(file.path)
    ]


def _dotted(fault: Unresolvable) -> str:
    return ".".join(map(str, fault.key))


def _parse(overrides: Sequence[str]) -> tuple[list[Override], list[Problem]]:
    parser = OverridesParser.create()
    parsed: list[Override] = []
    problems: list[Problem] = []
    for line in map(_with_home_quoted, overrides):
        if line.startswith("-"):
            key, _, value = line.lstrip("-").partition("=")
            setting = f"{key.replace('-', '_')}={value or 'true'}"
            problems.append(Problem(COMMAND_LINE, line, f"expected key=value; did you mean '{setting}'?"))
            continue
        if line.lstrip("+~").split("=")[0].split("/")[0].split(".")[0] == "hydra":
            is_launcher = "launcher" in line.split("=")[0]
            hint = "; did you mean 'launch=local'?" if is_launcher else "; it only composes files here"
            problems.append(Problem(COMMAND_LINE, line, f"Hydra's own settings cannot be changed{hint}"))
            continue
        try:
            parsed += parser.parse_overrides([line])
        except OverrideParseException:
            problems.append(
                Problem(COMMAND_LINE, line, "expected key=value, +key=value or ~key; quote other signs")
            )
    return parsed, problems


def _with_home_quoted(line: str) -> str:
    """`output_root=~/x` with quotes around its value: Hydra has another use for a bare ~."""
    key, equals, value = line.partition("=")
    if not equals or "~" not in value or re.search(r"""['"\[\]{}()]""", value):
        return line
    return f"{key}=" + ",".join(f"'{part}'" if "~" in part else part for part in value.split(","))


def _chooses_file(override: Override, folders: Sequence[Path]) -> bool:
    return any((folder / override.key_or_group).is_dir() for folder in folders) and not isinstance(
        override.value(), dict
    )


def _misused(parsed: Sequence[Override], folders: Sequence[Path]) -> list[Problem]:
    problems = []
    for override in parsed:
        group, line = override.key_or_group, str(override.input_line)
        if override.is_sweep_override():
            message = "several values are swept with -m; a list is written [a,b]"
            problems.append(Problem(COMMAND_LINE, line, message))
            continue
        if override.type == OverrideType.DEL or not _chooses_file(override, folders):
            continue
        known = options(group, folders)
        value = override.value()
        chosen = value if isinstance(value, list) else [value]
        unknown = [
            name for name in chosen if not isinstance(name, str) or name.removesuffix(".yaml") not in known
        ]
        for name in unknown:
            message = f"expected one of {listed(known)}, got '{name}'{suggestion(str(name), known)}"
            problems.append(Problem(COMMAND_LINE, group, message))
        if unknown or override.package is not None:
            continue
        if group == "experiment" and override.type == OverrideType.CHANGE:
            message = f"an experiment is added to the configuration; did you mean '+{line}'?"
            problems.append(Problem(COMMAND_LINE, line, message))
        if group in _ALWAYS and override.type == OverrideType.ADD:
            message = (
                f"a {group} is chosen already and is replaced without a plus; did you mean '{line[1:]}'?"
            )
            problems.append(Problem(COMMAND_LINE, line, message))
    return problems


def _search(folders: Sequence[Path]) -> list[str]:
    paths = ", ".join("'file://" + str(folder).replace("'", "\\'") + "'" for folder in folders[:-1])
    return [*_UNUSED, f"hydra.searchpath=[{paths}]"] if paths else list(_UNUSED)


def _load(lines: list[str], folders: Sequence[Path]) -> DictConfig:
    with initialize_config_dir(str(folders[-1]), job_name="patchbay", version_base=None):
        return hydra_compose(ROOT_FILE, overrides=[*lines, *_search(folders)])


def _files(lines: list[str], folders: Sequence[Path]) -> tuple[LoadedFile, ...]:
    with initialize_config_dir(str(folders[-1]), job_name="patchbay", version_base=None):
        engine = GlobalHydra.instance().hydra
        assert engine is not None
        overrides = [*lines, *_search(folders)]
        chosen = engine.config_loader.compute_defaults_list(ROOT_FILE, overrides, RunMode.RUN)
    files = []
    for default in chosen.defaults:
        name = default.config_path
        if name is None or name == "hydra/config" or default.package is None:
            continue
        found = [folder / f"{name}.yaml" for folder in folders if (folder / f"{name}.yaml").is_file()]
        if found:
            files.append(LoadedFile.read(found[0], default.package))
    return tuple(files)


def _wrong_keys(
    parsed: Sequence[Override], folders: Sequence[Path], mapping: dict[str, Any]
) -> list[Problem]:
    """Overrides of keys that do not exist, or additions of keys that do: all of them, where Hydra names the
    first. mapping: what the files give."""
    problems = []
    for override in parsed:
        if _chooses_file(override, folders):
            continue
        *parents, last = override.key_or_group.split(".")
        level: Any = mapping
        depth = 0
        for part in parents:
            if not isinstance(level, dict) or part not in level:
                last = part
                break
            level = level[part]
            depth += 1
        known = list(level) if isinstance(level, dict) else []
        where = override.key_or_group
        exists = depth == len(parents) and last in known
        if not exists and override.type in (OverrideType.CHANGE, OverrideType.DEL):
            inside = f" of {'.'.join(parents[:depth])}" if depth else ""
            hint = suggestion(last, known)
            if where.startswith(FREE) and override.type is OverrideType.CHANGE:
                hint += f"; a new key is added with '+{where}='"
            elif not hint:
                hint = _elsewhere(mapping, where)
            problems.append(Problem(COMMAND_LINE, where, f"unknown key '{last}'{inside}{hint}"))
        if exists and override.type == OverrideType.CHANGE:
            clash = shape_clash(level[last], override.value())
            if clash is not None:
                problems.append(Problem(COMMAND_LINE, where, clash))
        if exists and override.type == OverrideType.ADD and level[last] is not None:
            line = str(override.input_line)
            message = f"the key exists already and is changed without a plus; did you mean '{line[1:]}'?"
            problems.append(Problem(COMMAND_LINE, where, message))
    return problems


def _elsewhere(mapping: dict[str, Any], where: str) -> str:
    """`; did you mean 'experiment.n'?` for a key that stands deeper, under the same last word."""
    last = where.rpartition(".")[2]
    for group, body in mapping.items():
        if isinstance(body, dict) and last in body:
            return f"; did you mean '{group}.{last}'?"
    return ""


def _wrong_shapes(lines: list[str], folders: Sequence[Path], error: Exception) -> list[Problem]:
    """Where files put a list over a mapping or the reverse: all of them, with their keys, of which Hydra
    names none."""
    if "ConfigTypeError" not in str(error):
        return []
    merged: dict[str, Any] = {}
    problems = []
    for file in _files(lines, folders):
        content = file.content
        if isinstance(content, dict):
            content = {key: value for key, value in content.items() if key != "defaults"}
        for part in reversed(file.package):
            content = {part: content}
        for key, message in merge_shapes(merged, content):
            problems.append(Problem(str(file.path), ".".join(key), message))
    return problems


def _translated(error: Exception, parsed: Sequence[Override], folders: Sequence[Path]) -> Problem:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, yaml.MarkedYAMLError) and cause.problem_mark is not None:
            mark = cause.problem_mark
            message = f"not readable as plain YAML: {cause.problem} at column {mark.column + 1}"
            return Problem(f"{mark.name}:{mark.line + 1}", "", message)
        cause = cause.__cause__ or cause.__context__
    text = str(error)
    refused = re.search(r"Error merging override (.*)", text)
    if refused:
        message = "expected a value that fits what stands there (a mapping, a list or a plain value)"
        return Problem(COMMAND_LINE, refused[1].strip(), message)
    source = _experiment_file(parsed, folders)
    missing = re.search(r"Could not (?:find|load) '([^']*)'", text)
    if missing:
        group, _, name = missing[1].rpartition("/")
        known = options(group, folders) if group else ()
        message = (
            f"expected a file of the group '{group}' ({listed(known)}), got '{name}'{suggestion(name, known)}"
        )
        return Problem(source, "defaults", message)
    twice = re.search(r"(\S+) appears more than once in the final defaults list", text)
    if twice:
        message = f"'{twice[1]}' is chosen twice"
        root = LoadedFile.read(folders[-1] / f"{ROOT_FILE}.yaml", "")
        if any(isinstance(line, dict) and twice[1] in line for line in root.content["defaults"]):
            word = twice[1].partition("@")[0]
            message = (
                f"'{twice[1]}' is chosen by conf/{ROOT_FILE}.yaml already: the line can go; with "
                f"'override /{twice[1]}: NAME' another {word} takes its place"
            )
        return Problem(source, "defaults", message)
    sentences = [line.strip() for line in text.splitlines() if line.strip()]
    return Problem(source, "", " ".join(sentences[:3]))


def _experiment_file(parsed: Sequence[Override], folders: Sequence[Path]) -> str:
    for override in parsed:
        if override.key_or_group == "experiment" and isinstance(override.value(), str):
            for folder in folders:
                path = folder / "experiment" / f"{override.value()}.yaml"
                if path.is_file():
                    return str(path)
    return str(folders[-1] / f"{ROOT_FILE}.yaml")
