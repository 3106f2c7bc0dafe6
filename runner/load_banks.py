"""The banks that an experiment's prompts draw from, each read once."""

from __future__ import annotations

from pathlib import Path

from runner.banks import Bank, find_bank, read_bank
from runner.compose import conf_dir
from runner.spec import PromptsSpec


def load_banks(prompts: PromptsSpec, config_dir: Path | None) -> dict[str, Bank]:
    """Banks by the name that the YAML uses. A user's folder is searched before ours. Raises ConfigurationError."""
    folders = [*([] if config_dir is None else [config_dir]), conf_dir()]
    names = {prompts.donors.bank, prompts.targets.bank, *(role.bank for role in prompts.roles.values())}
    return {name: read_bank(name, find_bank(name, prompts.language, folders)) for name in sorted(names)}
