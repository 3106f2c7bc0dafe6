"""Prompts written by a template: other prompts of their group as demonstrations, then themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from string import Formatter
from types import MappingProxyType

from runner.config.errors import Problem, listed, suggestion
from runner.config.prompts.spec import PromptsSpec, SplitWord, TemplateSpec
from runner.config.strict import ByLanguage
from runner.prompts.banks import Bank, Prompt
from runner.prompts.draws import hashed

TEXT = "text"  # the placeholder of a prompt's own text
ANSWER = "answer"  # the fact that `permute` deals out anew
_NAME = re.compile(r"[a-z][a-z0-9_]*")

Span = tuple[int, int]
Fault = tuple[tuple[str | int, ...], str]


class TemplateError(ValueError):
    """A text of a template that cannot be filled in."""


@dataclass(frozen=True)
class Form:
    """A text with placeholders, in parts: (text before it, placeholder), of the last part maybe none."""

    parts: tuple[tuple[str, str | None], ...]

    @staticmethod
    def read(text: str) -> Form:
        """Raises TemplateError for braces that are not in pairs, a placeholder that is no name, and a text
        without any."""
        try:
            found = list(Formatter().parse(text))
        except ValueError as error:
            raise TemplateError(
                f"expected {{text}} or {{FACT}}, and {{{{ or }}}} for a brace itself: {str(error).lower()}"
            ) from error
        parts: list[tuple[str, str | None]] = []
        for before, name, form, conversion in found:
            if name is not None and (form or conversion or not _NAME.fullmatch(name)):
                written = name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
                raise TemplateError(f"expected {{text}} or {{FACT}}, the name of a fact, got {{{written}}}")
            parts.append((before, name))
        if not any(name for _, name in parts):
            raise TemplateError(
                f"expected {{text}} or {{FACT}} in it, got '{text}', the same for every prompt"
            )
        return Form(tuple(parts))

    @property
    def names(self) -> tuple[str, ...]:
        """Its placeholders."""
        return tuple(dict.fromkeys(name for _, name in self.parts if name is not None))

    def fill(self, words: Mapping[str, str]) -> tuple[str, int | None]:
        """The text, and where the last {text} begins in it; None where there is none."""
        written, start = "", None
        for before, name in self.parts:
            written += before
            if name is not None:
                start = len(written) if name == TEXT else start
                written += words[name]
        return written, start


@dataclass(frozen=True)
class Template:
    """A template, read. shot: None where there are no shots. mixed: whether they are of every group."""

    name: str
    query: Form
    shot: Form | None
    shots: int
    permute: bool
    split: SplitWord
    mixed: bool


def template_of(prompts: PromptsSpec, name: str | None) -> Template | None:
    """The template of that name, in the language of the prompts; None where there is none or something is
    wrong with it, which `template_faults` says."""
    spec = prompts.templates.get(name) if name is not None else None
    if name is None or spec is None or any(_faults(prompts, name, spec)):
        return None
    query, shot = (_worded(text, prompts) for text in (spec.query, spec.shot))
    assert query is not None and shot is not None
    return Template(
        name,
        Form.read(query),
        Form.read(shot) if spec.shots else None,
        spec.shots,
        spec.permute,
        spec.split,
        spec.groups == "all",
    )


def template_faults(prompts: PromptsSpec) -> Iterator[Fault]:
    """What is wrong with the templates themselves; whether prompts state their facts is found as they are
    written."""
    for name, spec in prompts.templates.items():
        for field_name, message in _faults(prompts, name, spec):
            yield ("prompts", "templates", name, field_name), message


def _faults(prompts: PromptsSpec, name: str, spec: TemplateSpec) -> Iterator[tuple[str, str]]:
    for key, given in (("query", spec.query), ("shot", spec.shot)):
        text = _worded(given, prompts)
        if text is None:
            assert isinstance(given, dict)
            yield key, f"expected a text for the language '{prompts.language}', got those of {listed(given)}"
            continue
        if key == "shot" and (spec.shots == 0 or not text):
            if text:
                yield "shot", "expected shots: 10 or another number of them; with none, nothing reads shot"
            elif spec.shots:
                yield "shot", "expected how one of the shots is written, such as 'Q: {text} A: {answer}'"
            continue
        try:
            form = Form.read(text)
        except TemplateError as error:
            yield key, str(error)
            continue
        if key == "shot" and spec.permute and ANSWER not in form.names:
            yield "permute", f"expected {{{ANSWER}}} in the shot, which is what is dealt out anew"
    if spec.shots == 0:
        for key in sorted({"permute", "split", "groups"} & spec.model_fields_set):
            yield key, f"expected shots: 10 or another number of them; with none, nothing reads {key}"
    if spec.permute and spec.shots == 1:
        yield "shots", "expected two shots at least, between which answers can be dealt out anew, got 1"


def _worded(text: ByLanguage, prompts: PromptsSpec) -> str | None:
    return text if isinstance(text, str) else text.get(prompts.language)


@dataclass
class Writer:
    """Writes the prompts of a bank by a template.

    Of a prompt's group (or of all), those of the template's split are put in an order drawn by `prompts.seed`
    and the prompt's id; the first `shots` of them, itself and equal texts left out, are its shots. So every
    template that draws from the same ones shows a prompt the same shots, fewer of them being the first of
    more. problems: what the bank does not give.
    """

    template: Template
    bank: Bank
    seed: int
    problems: list[Problem] = field(default_factory=list)
    _lacking: dict[tuple[str, str], list[Prompt]] = field(default_factory=dict)

    def write_all(self, prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
        """The prompts as written. Those that cannot be are left out, and `problems` say why."""
        found = [self._write(prompt) for prompt in prompts]
        for (part, name), without in self._lacking.items():
            self.problems.append(self._problem(part, _lack(name, without)))
        self._lacking.clear()
        return tuple(prompt for prompt in found if prompt is not None)

    def _write(self, prompt: Prompt) -> Prompt | None:
        words = self._words(prompt, self.template.query, "query")
        front = self._shots(prompt)
        if words is None or front is None:
            return None
        query, start = self.template.query.fill(words)
        spans = _found_in(query, prompt) if start is None else _moved(prompt.spans, start)
        return replace(
            prompt,
            text=front + query,
            tokens=None,
            spans=MappingProxyType(_moved(spans, len(front))),
            bank_text=prompt.source,
        )

    def _shots(self, prompt: Prompt) -> str | None:
        template = self.template
        if template.shot is None:
            return ""
        drawn = self._drawn(prompt)
        if len(drawn) < template.shots:
            where = "" if template.split == "all" else f" in split {template.split}"
            bank = f"'{self.bank.name}'"
            whose = bank if template.mixed else f"the group '{prompt.group}' of {bank}"
            message = (
                f"expected at most {len(drawn)} shots, which is how many prompts {whose} has{where} beside "
                f"'{prompt.id}', got {template.shots}"
            )
            if not any(problem.key.endswith(f"{template.name}.shots") for problem in self.problems):
                self.problems.append(self._problem("shots", message))
            return None
        read = [self._words(one, template.shot, "shot") for one in drawn]
        shots = [words for words in read if words is not None]
        if len(shots) < len(drawn):
            return None
        if template.permute:
            rank = [hashed(self.seed, "permute", prompt.id, one.id) for one in drawn]
            dealt = dealt_anew([words[ANSWER] for words in shots], rank)
            shots = [{**words, ANSWER: answer} for words, answer in zip(shots, dealt, strict=True)]
        return "".join(template.shot.fill(words)[0] for words in shots)

    def _drawn(self, prompt: Prompt) -> list[Prompt]:
        template = self.template
        others = [
            one
            for one in self.bank.prompts
            if (template.mixed or one.group == prompt.group)
            and template.split in ("all", one.split)
            and one.id != prompt.id
            and one.text != prompt.source
        ]
        others.sort(key=lambda one: hashed(self.seed, "shot", prompt.id, one.id))
        distinct: dict[str, Prompt] = {}
        for one in others:
            distinct.setdefault(one.text, one)
        return list(distinct.values())[: template.shots]

    def _words(self, prompt: Prompt, form: Form, part: str) -> dict[str, str] | None:
        words: dict[str, str] = {}
        for name in form.names:
            word = _word(prompt, name)
            if word is None:
                without = self._lacking.setdefault((part, name), [])
                if prompt not in without:
                    without.append(prompt)
            else:
                words[name] = word
        return words if len(words) == len(form.names) else None

    def _problem(self, part: str, message: str) -> Problem:
        return Problem(str(self.bank.path), f"prompts.templates.{self.template.name}.{part}", message)


def dealt_anew(answers: Sequence[str], rank: Sequence[int]) -> list[str]:
    """The answers in another order, decided by `rank` (one number for each place), in which no place keeps
    its answer; where more than half of them are one text, as few keep it as can be.

    Places are sorted so that equal answers stand together, and each takes the answer that stands as many
    places on as the most frequent answer has.
    """
    first = {answer: min(r for a, r in zip(answers, rank, strict=True) if a == answer) for answer in answers}
    order = sorted(
        range(len(answers)), key=lambda place: (first[answers[place]], answers[place], rank[place])
    )
    most = max(answers.count(answer) for answer in answers)
    dealt = list(answers)
    for position, place in enumerate(order):
        dealt[place] = answers[order[(position + most) % len(order)]]
    return dealt


def _word(prompt: Prompt, name: str) -> str | None:
    """What a placeholder stands for; None where the prompt states no such fact, or one that is no word."""
    if name == TEXT:
        return prompt.source
    fact = prompt.facts.get(name)
    if fact is None or isinstance(fact, bool):
        return None
    return fact[0] if isinstance(fact, tuple) else str(fact)


def _lack(name: str, without: Sequence[Prompt]) -> str:
    """The sentence for prompts that do not state a fact."""
    first = without[0]
    more = f" (and {len(without) - 1} more)" if len(without) > 1 else ""
    if isinstance(first.facts.get(name), bool):
        return f"the fact '{name}' of prompt '{first.id}'{more} is true or false, not a word"
    known = (TEXT, *sorted(first.facts))
    return (
        f"prompt '{first.id}'{more} states no fact '{name}'; expected one of {listed(known)}"
        f"{suggestion(name, known)}"
    )


def _moved(spans: Mapping[str, Span], by: int) -> dict[str, Span]:
    return {name: (start + by, end + by) for name, (start, end) in spans.items()}


def _found_in(query: str, prompt: Prompt) -> dict[str, Span]:
    """Marked parts of a query that is made of facts: what the bank marks in the prompt's own text, and else
    its facts that are texts, by name, each where it stands in the query exactly once - as whole words, with a
    small or a capital letter in front."""
    facts = {name: fact[0] if isinstance(fact, tuple) else fact for name, fact in prompt.facts.items()}
    marked = {name: prompt.source[start:end] for name, (start, end) in prompt.spans.items()}
    sought = {**{name: fact for name, fact in facts.items() if isinstance(fact, str)}, **marked}
    spans = {}
    for name, text in sought.items():
        head, tail = text.strip()[:1], text.strip()[1:]
        if tail not in query:
            continue  # which spares nearly all of them a pattern
        whole = rf"(?<!\w)(?i:{re.escape(head)}){re.escape(tail)}(?!\w)"
        places = [found.span() for found in re.finditer(whole, query)]
        if len(places) == 1:
            spans[name] = places[0]
    return spans
