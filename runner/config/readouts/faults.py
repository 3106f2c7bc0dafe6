"""What is wrong with the readouts of a configuration: fields, words, facts and layers that do not fit the
kind, the model, the prompts or each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from analyses.tables.columns import GRID, NUMBER, STRUCTURE
from backends.positions import PositionError
from backends.probes import kinds as probe_kinds
from runner.config.errors import listed, suggestion
from runner.config.layers import LayerError
from runner.config.model_faults import lacking
from runner.config.readouts.positions import one_position, position_faults
from runner.config.readouts.readout import (
    DERIVED,
    KINDS,
    RANKS,
    SCORES,
    TARGET,
    Fault,
    Key,
    ReadoutError,
    all_columns,
    columns_of,
    layers_of,
    one_layer,
    read_source,
    resolve_entry,
)
from runner.config.spec import PromptsSpec, ReadoutSpec, Spec
from runner.prompts.banks import Prompt
from runner.prompts.pairing import Banks
from runner.scores.contains import labels_that_count


def readout_faults(spec: Spec) -> Iterator[Fault]:
    """Everything about the readouts that does not fit the model, the prompts or each other."""
    _, _, names = spec.stage
    inside: Key = ("readouts",)
    if not names:
        yield inside, f"expected at least one readout ({listed(spec.readout)}), got an empty list"
    for index, name in enumerate(names):
        if name in names[:index]:
            yield (*inside, index), f"readout '{name}' is listed twice; remove one"
        if name not in spec.readout:
            message = (
                f"expected a readout ({listed(spec.readout)}), got '{name}'{suggestion(name, spec.readout)}"
            )
            yield (*inside, index), message
    for name, body in spec.readout.items():
        for key, message in _body_faults(name, body, spec):
            yield ("readout", name, *key), message
    taken: dict[str, str] = {}
    for name in dict.fromkeys(name for name in names if name in spec.readout):
        for column in columns_of(name, spec.readout[name]):
            other = taken.setdefault(column, name)
            if other != name:
                yield ("readout", name), f"its column {column} is one of readout '{other}' as well; rename it"
    yield from _circles(spec)


def _body_faults(name: str, body: ReadoutSpec, spec: Spec) -> Iterator[Fault]:
    kind = KINDS[body.kind]
    known = ("kind", "version", *kind.needs, *kind.reads)
    if name in (*STRUCTURE, GRID):
        yield (), f"'{name}' is a column of every table already; give the readout another name"
    for key in body.model_fields_set - set(known):
        if getattr(body, key) is not None:
            yield (key,), f"a readout of the kind {body.kind} reads {listed(known)}; nothing reads {key}"
    for key in kind.needs:
        if getattr(body, key) is None:
            yield (key,), f"missing: a readout of the kind {body.kind} needs {key}"
    if name in spec.stage[2]:  # of one that nothing measures, the model and the prompts need not fit
        yield from _unfit(body, known, spec)
        if body.kind in DERIVED:
            yield from _derived_faults(name, body, spec)
    if body.kind == "holds" and (body.above is None) == (body.below is None):
        yield ("above",), "expected one bound: above or below"
    if body.minus is not None and body.minus == body.of and "minus" in known:
        yield ("minus",), f"expected another column than {body.of}: the difference is 0 by construction"
    if body.windows is not None and "windows" in known:
        if not body.windows or len(set(body.windows)) < len(body.windows):
            yield ("windows",), f"expected different numbers of positions, got {list(body.windows)}"
        elif min(body.windows) < 2:
            yield ("windows",), "expected at least 2 positions: the ratio of one row is always 1"
    if body.site in probe_kinds.NO_ROWS and "site" in known:
        yield ("site",), f"expected a site with a row of activations for each position, got {body.site}"


def _unfit(body: ReadoutSpec, known: Sequence[str], spec: Spec) -> Iterator[Fault]:
    for key in ("tokens", "against", "continuation"):
        words = getattr(body, key)
        if words is not None and key in known:
            yield from _word_faults((key,), words, spec)
            if body.kind in SCORES:
                yield from _label_faults((key,), words, spec)
    if body.scope is not None and "scope" in known:
        yield from _word_faults(("scope", "prompt"), body.scope.prompt, spec, facts=False)
        if body.scope.layer is not None:
            try:
                one_layer(body.scope.layer, spec)
            except LayerError as error:
                yield ("scope", "layer"), str(error)
    if body.site is not None and "site" in known:
        sentence = lacking(body.site, spec.model)
        if sentence is not None:
            yield ("site",), sentence
    if "position" in known:
        try:
            one_position(body.position)
        except PositionError as error:
            yield ("position",), str(error)
    if "layers" in known:
        try:
            layers_of(body, spec)
        except LayerError as error:
            yield ("layers",), str(error)


def _word_faults(key: Key, words: object, spec: Spec, *, facts: bool = True) -> Iterator[Fault]:
    try:
        source = read_source(words, spec.model.language)
    except ReadoutError as error:
        yield key, str(error)
        return
    if source.fact and not facts:
        yield key, f"expected a text, the same for every item, got '{source.word}'"
    roles = _roles(spec.prompts)
    if source.fact and source.role not in roles:
        yield (
            key,
            (
                f"expected the fact of a prompt that items have ({listed(roles)}), got '{source.role}'"
                f"{suggestion(source.role, roles)}"
            ),
        )


def _label_faults(key: Key, words: object, spec: Spec) -> Iterator[Fault]:
    """Words that no text can be searched for."""
    try:
        source = read_source(words, spec.model.language)
    except ReadoutError:
        return  # told already
    for word in source.words:
        if not labels_that_count([word]):
            yield key, f"expected texts longer than one character (one is in most), got '{word}'"


def _derived_faults(name: str, body: ReadoutSpec, spec: Spec) -> Iterator[Fault]:
    """What a derived readout reads that no readout of the stage gives, or not as it needs it."""
    columns = all_columns(spec)
    for key in ("of", "minus"):
        word = getattr(body, key)
        if word is None or key not in KINDS[body.kind].needs:
            continue
        column = word.partition("[")[0]
        elsewhere = [other for other, its in spec.readout.items() if column in columns_of(other, its)]
        ranks = [each for each, held in columns.items() if held != NUMBER and each.endswith(RANKS)]
        if column == name:
            yield (key,), "expected another readout's column: this one is what follows from it"
        elif column not in columns and elsewhere:
            yield (
                (key,),
                f"{column} is a column of readout '{elsewhere[0]}', which is not in readouts; list it there",
            )
        elif body.kind == "onset" and word not in ranks:
            yield (
                (key,),
                f"expected ranks by layer of a lens or patchscope with tokens ({listed(ranks)}), got '{word}'"
                f"{suggestion(word, ranks)}",
            )
        elif body.kind != "onset":
            try:
                resolve_entry(word, spec)
            except (ReadoutError, LayerError) as error:
                yield (key,), str(error)


def _circles(spec: Spec) -> Iterator[Fault]:
    """Derived readouts that follow from each other. Each circle is told once."""
    names = [name for name in spec.stage[2] if name in spec.readout]
    owner = {column: name for name in names for column in columns_of(name, spec.readout[name])}
    reads = {
        name: [
            owner[column]
            for word in (spec.readout[name].of, spec.readout[name].minus)
            if word is not None and (column := word.partition("[")[0]) in owner
        ]
        for name in names
        if spec.readout[name].kind in DERIVED
    }
    told: set[frozenset[str]] = set()
    for start in reads:
        ways: list[tuple[str, ...]] = [(start, other) for other in reads[start] if other != start]
        while ways:
            way = ways.pop()
            if way[-1] == start:
                if frozenset(way) not in told:
                    told.add(frozenset(way))
                    yield (
                        ("readout", start, "of"),
                        "expected readouts that do not lead back to themselves, got "
                        + " of ".join(f"'{name}'" for name in way),
                    )
            else:
                ways += [(*way, other) for other in reads.get(way[-1], ()) if other not in way[1:]]


def _roles(prompts: PromptsSpec) -> tuple[str, ...]:
    donors = ("donor", "other_donor") if prompts.pairs else ()
    return (TARGET, *donors, *prompts.roles)


def fact_faults(spec: Spec, banks: Banks) -> Iterator[Fault]:
    """Facts that not one of the prompts states that they are asked of, and marked parts that not one has at
    which they are read."""
    yield from position_faults(spec, banks)
    pools: Mapping[str, Sequence[Prompt]] = {
        TARGET: banks.targets,
        "donor": banks.donors,
        "other_donor": banks.donors,
        **banks.roles,
    }
    for name in spec.stage[2]:
        body = spec.readout.get(name)
        if body is None:
            continue  # told already
        for key in ("tokens", "against", "continuation"):
            if key not in KINDS[body.kind].needs + KINDS[body.kind].reads or getattr(body, key) is None:
                continue
            try:
                source = read_source(getattr(body, key), spec.model.language)
            except ReadoutError:
                continue  # told already
            pool = pools.get(source.role, ())
            known = sorted({fact for prompt in pool for fact in prompt.facts})
            if source.fact and pool and source.fact not in known:
                yield (
                    ("readout", name, key),
                    f"not one of the {len(pool)} prompts of the {source.role} states the fact "
                    f"'{source.fact}'; they state {listed(known)}{suggestion(source.fact, known)}",
                )
