"""Whether a stage evaluates on prompts that went into what it evaluates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from analyses.tables.columns import NUMBER
from runner.config.errors import ConfigurationError
from runner.config.readouts.readout import all_columns
from runner.config.spec import ReadoutSpec, Spec
from runner.config.stages.artefact_files import ArtefactError, read_artefact
from runner.config.stages.choice_words import choice_named
from runner.config.stages.spec import ExtractStageSpec, SelectStageSpec
from runner.config.stages.stand_ins import Given, artefact_files, names_read
from runner.prompts.banks import Bank
from runner.prompts.pools import BankReader, Banks

_SHOWN = 3
_OF_PROMPTS = ("donor", "target")  # what the items of an artefact are told by, in this order

PromptId = tuple[str, str]  # bank and id


@dataclass(frozen=True)
class PromptsRead:
    """The prompts that a stage may read, with the texts that their banks have. asked: those that its
    conditions run or draw from; told: those that it shows or takes means of besides, as demonstrations and
    sets of prompts."""

    asked: Mapping[PromptId, str]
    told: Mapping[PromptId, str]

    def shared_with(self, fitted: PromptsRead) -> list[str]:
        """Ids of those asked here that another stage has read in any way, under whatever id."""
        known = {**fitted.asked, **fitted.told}
        texts = set(known.values())
        return sorted(
            name for (bank, name), text in self.asked.items() if (bank, name) in known or text in texts
        )


def in_sample(stage: Given, before: Sequence[Given], reader: BankReader) -> str | None:
    """The sentence on prompts that a measuring stage shares with those that its choices and artefacts come
    from, of other runs too; None where it shares none."""
    if stage.spec is None:
        return None
    mine = prompts_read(stage.spec, reader)
    rests_on = _rests_on(stage, before)
    for other in rests_on:
        if other.spec is None or getattr(other.body, "from_", None) is not None:
            continue  # a choice, or an artefact made of another: neither reads prompts
        shared = mine.shared_with(prompts_read(other.spec, reader))
        if shared:
            what = "extracted from" if isinstance(other.body, ExtractStageSpec) else "chosen on"
            return _sentence(shared, f"{what} (stage '{other.name}')")
    for path in dict.fromkeys(path for one in (stage, *rests_on) for path in artefact_files(one.body)):
        shared = sorted(name for bank, name in mine.asked if (bank, name) in _extracted_from(path))
        if shared:
            return _sentence(shared, f"extracted from ({path})")
    return None


def _sentence(shared: Sequence[str], how: str) -> str:
    named = ", ".join(f"'{name}'" for name in shared[:_SHOWN])
    more = ", ..." if len(shared) > _SHOWN else ""
    return f"it reads {len(shared)} prompts ({named}{more}) that what it uses was {how}"


def _extracted_from(path: Path) -> set[PromptId]:
    """The prompts that an artefact of another run is a mean of, as its file says. Empty where it cannot be
    read, which is told by itself."""
    try:
        sources = read_artefact(path).sources
    except ArtefactError:
        return set()
    words = "+".join(str(sources.get(side) or "") for side in ("of", "minus")).split("+")
    roles = any(word.startswith("donor:") for word in words)  # of which the file does not say the prompts
    read = [side for side, word in enumerate(_OF_PROMPTS) if roles or word in words]
    banks, items = sources.get("banks"), sources.get("prompts")
    return {
        (str(bank), str(item[side]))
        for bank in (banks if isinstance(banks, Mapping) else ())
        for item in (items if isinstance(items, list) else ())
        for side in read
    }


def _rests_on(stage: Given, before: Sequence[Given]) -> list[Given]:
    """The earlier stages whose prompts went into what a stage uses: those of its choices and artefacts, and
    of theirs. A choice of items counts only where it looked at what the stage is about."""
    by_name = {one.name: one for one in before}
    kept = getattr(stage.body, "items", None)
    found: dict[str, Given] = {}
    queue = [name for name in names_read(stage.body) if choice_named(kept) != name]
    chosen = by_name.get(choice_named(kept) or "")
    if chosen is not None and stage.spec is not None:
        looked_at = {one.readout for one in chosen.body.items if one.readout is not None}
        about = set(_about(stage.spec))
        queue += [chosen.name] if any(_owner(word) in about for word in looked_at) else []
    while queue:
        one = by_name.get(queue.pop())
        if one is None or one.name in found:
            continue
        found[one.name] = one
        items = None if isinstance(one.body, SelectStageSpec) else choice_named(one.body.items)
        queue += [name for name in names_read(one.body) if name != items]
    return list(found.values())


def _about(spec: Spec) -> Iterator[str]:
    """The primary readout of a stage - where it names none that it has, its first of one number - and those
    that it is derived from."""
    columns = all_columns(spec)
    first = [column for column, kind in columns.items() if kind == NUMBER][:1]
    queue = [spec.contrasts.primary] if spec.contrasts.primary in columns else first
    seen: set[str] = set()
    while queue:
        name = _owner(queue.pop())
        if name in seen:
            continue
        seen.add(name)
        yield name
        readout = spec.readout.get(name)
        if isinstance(readout, ReadoutSpec):
            queue += [word for word in (readout.of, readout.minus) if word is not None]


def _owner(word: str) -> str:
    """The readout that a column or an entry of it belongs to: `lens.rank[last]` to `lens`."""
    return word.partition("[")[0].partition(".")[0]


def prompts_read(spec: Spec, reader: BankReader) -> PromptsRead:
    """Every prompt that the conditions of a stage may read. None where the banks cannot be read, which is
    told by itself."""
    try:
        banks = reader.banks(spec.prompts)
        pools = reader.chosen(spec.prompts)
    except ConfigurationError:
        return PromptsRead({}, {})
    asked: dict[PromptId, str] = {}
    told: dict[PromptId, str] = {}
    for body in spec.conditions.values():
        for part in body.prompt.split("+"):
            _take(part, spec, banks, pools, asked, told)
        for write in body.writes.values():
            word = write.value if isinstance(write.value, str) else ""
            if word == "other_donor" or word.partition(":")[0] == "donor":
                _take("donor" if word == "other_donor" else word, spec, banks, pools, asked, told)
            elif word.startswith("mean:"):
                name = word.removeprefix("mean:").partition("/")[0]
                single = {"donors": "donor", "targets": "target"}.get(name, f"donor:{name}")
                _take(single, spec, banks, pools, told, told)
    return PromptsRead(asked, told)


def _take(
    part: str,
    spec: Spec,
    banks: Mapping[str, Bank],
    pools: Banks,
    asked: dict[PromptId, str],
    told: dict[PromptId, str],
) -> None:
    """Take up the prompts of one side of the items, and those that are shown in front of them."""
    prompts = spec.prompts
    name = part.removeprefix("donor:")
    role = prompts.roles.get(name)
    side = getattr(role, "of", None) or name
    template = None if role is None else role.template
    if side == "target" or (side == "donor" and not prompts.pairs):
        bank, pool = prompts.targets.bank, pools.targets
        template = prompts.targets.template if role is None else template
    elif side == "donor":
        bank, pool = getattr(prompts.donors, "bank", ""), pools.donors
        template = getattr(prompts.donors, "template", None) if role is None else template
    else:
        bank, pool = getattr(role, "bank", None) or "", pools.roles.get(name, ())
    asked.update({(bank, prompt.id): prompt.source for prompt in pool})
    written = prompts.templates.get(template or "")
    if written is None or not written.shots or bank not in banks:
        return
    groups = {prompt.group for prompt in pool}
    told.update(
        {
            (bank, prompt.id): prompt.text
            for prompt in banks[bank].prompts
            if (written.groups == "all" or prompt.group in groups) and written.split in ("all", prompt.split)
        }
    )
