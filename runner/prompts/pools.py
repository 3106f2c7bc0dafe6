"""The prompts that items are drawn from: banks, the groups and splits taken from them, as they are
written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from runner.config.errors import ConfigurationError, Problem
from runner.config.prompts.spec import BankChoice, PromptsSpec
from runner.prompts.banks import Bank, Prompt, find_bank, read_bank
from runner.prompts.templates import Writer, template_of

_T = TypeVar("_T")


@dataclass(frozen=True)
class Banks:
    """The prompts that a pairing draws from: groups and splits chosen, written by their templates. donors:
    empty where items have none. Those of a role that is the target or the donor otherwise written stand for
    all targets or donors."""

    donors: tuple[Prompt, ...]
    targets: tuple[Prompt, ...]
    roles: Mapping[str, tuple[Prompt, ...]]


def read_banks(prompts: PromptsSpec, folders: Sequence[Path]) -> dict[str, Bank]:
    """Every bank that the prompts need, by the name that the YAML uses, searched in the configuration
    folders.

    Raises ConfigurationError with every fault of every bank.
    """
    banks: dict[str, Bank] = {}
    problems: list[Problem] = []
    for name in dict.fromkeys(choice.bank for choice in _choices(prompts).values()):
        try:
            banks[name] = read_bank(name, find_bank(name, prompts.language, folders))
        except ConfigurationError as error:
            problems += error.problems
    if problems:
        raise ConfigurationError(problems)
    return banks


def choose(prompts: PromptsSpec, banks: Mapping[str, Bank]) -> Banks:
    """The groups and splits that a YAML asks for, as they are written. banks: by the name that the YAML uses.

    Raises ConfigurationError with every group that a bank does not have, split of which nothing is there, and
    template for which a bank does not have the facts or the shots.
    """
    pools: dict[str, tuple[Prompt, ...]] = {}
    problems: list[Problem] = []
    for name, choice in _choices(prompts).items():
        bank = banks[choice.bank]
        try:
            pool = bank.only(choice.groups, choice.split)
        except ConfigurationError as error:
            problems += error.problems
            continue
        template = template_of(prompts, choice.template)
        if template is not None:
            writer = Writer(template, bank, prompts.seed)
            pool = writer.write_all(pool)
            problems += writer.problems
        pools[name] = pool
    if problems:
        raise ConfigurationError(problems)
    return Banks(
        pools.get(_DONORS, ()), pools[_TARGETS], {name: pools.get(name, ()) for name in prompts.roles}
    )


@dataclass(frozen=True)
class BankReader:
    """Banks and choices of prompts, each read and written once, however many stages take it. folders: where
    banks are looked for."""

    folders: Sequence[Path]
    _read: dict[str, Mapping[str, Bank] | ConfigurationError] = field(default_factory=dict)
    _chosen: dict[str, Banks | ConfigurationError] = field(default_factory=dict)

    def banks(self, prompts: PromptsSpec) -> Mapping[str, Bank]:
        """As `read_banks`."""
        names = [prompts.language, *(choice.bank for choice in _choices(prompts).values())]
        return _once(self._read, "\n".join(names), lambda: read_banks(prompts, self.folders))

    def chosen(self, prompts: PromptsSpec) -> Banks:
        """As `choose`. Raises ConfigurationError also for banks that cannot be read."""
        return _once(self._chosen, prompts.model_dump_json(), lambda: choose(prompts, self.banks(prompts)))


def _once(known: dict[str, _T | ConfigurationError], key: str, read: Callable[[], _T]) -> _T:
    """What was read under a key, or the error that it raised."""
    if key not in known:
        try:
            known[key] = read()
        except ConfigurationError as error:
            known[key] = error
    found = known[key]
    if isinstance(found, ConfigurationError):
        raise found
    return found


_DONORS, _TARGETS = "/donors", "/targets"  # no names of roles


def _choices(prompts: PromptsSpec) -> dict[str, BankChoice]:
    """What is taken from which bank, in the order in which the YAML says so."""
    donors = {} if prompts.donors is None or not prompts.pairs else {_DONORS: prompts.donors}
    roles = {name: choice for name in prompts.roles if (choice := prompts.choice(name)) is not None}
    return {**donors, _TARGETS: prompts.targets, **roles}
