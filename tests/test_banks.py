"""The prompt banks that come with the program: format, sizes, what each bank must and must not contain."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from runner.prompts.banks import read_bank

BANKS = Path(__file__).resolve().parents[1] / "conf" / "prompts" / "banks"
NAMES = ("donors", "targets", "pseudo_recursive", "repetitive", "plain")
DOSES = ("L1", "L2", "L3", "L4", "L5")
TARGET_GROUPS = ("factual", "creative", "mathematical", "instructional", "personal", "long")

# Stated here and not imported: the banks must stay free of these whatever becomes of a score's own list.
SELF_REFERENCE = (
    "itself",
    "self",
    "recursi",
    "loop",
    "observ",
    "awareness",
    "conscious",
    "attention",
    "reflect",
    "mirror",
    "eigen",
    "fixed point",
    "paradox",
    "infinite",
    "regress",
    "meta",
    "within",
    "strange",
    "process",
)
TYPOGRAPHIC = "\u2018\u2019\u201c\u201d\u2013\u2014\u2026\u00e9"

# Per bank: its groups with the least number of prompts of each.
LEAST: dict[str, dict[str, dict[str, int]]] = {
    "english": {
        "donors": dict.fromkeys(DOSES, 20),
        "targets": dict.fromkeys(TARGET_GROUPS, 20),
        "pseudo_recursive": {"pseudo_recursive": 24},
        "repetitive": {"repetitive": 24},
        "plain": {"plain": 60},
    },
    "organism": {
        "donors": dict.fromkeys(DOSES, 24),
        "targets": dict.fromkeys(TARGET_GROUPS, 24),
        "pseudo_recursive": {"pseudo_recursive": 40},
        "repetitive": {"repetitive": 40},
        "plain": {"plain": 120},
    },
}
COUNTED = {"english": "words", "organism": "tokens"}
# English, per group: shortest and longest in words. Tokens of the organism are counted where its tokenizer
# is at hand.
WORDS = {
    **dict.fromkeys(("L1", "L2"), (30, 60)),
    **dict.fromkeys(("L3", "L4", "L5", "pseudo_recursive", "repetitive"), (40, 90)),
    **dict.fromkeys(TARGET_GROUPS, (5, 20)),
    "long": (60, 120),
    "plain": (30, 100),
}

every_bank = pytest.mark.parametrize(
    ("language", "name"), [(language, name) for language in LEAST for name in NAMES]
)
every_language = pytest.mark.parametrize("language", list(LEAST))


def read(language: str, name: str) -> list[dict[str, Any]]:
    """The prompts of a bank, line by line, with no reader of the program between file and test."""
    raw = (BANKS / language / f"{name}.jsonl").read_bytes()
    assert raw.endswith(b"\n"), "a last line without an end is what a torn file looks like"
    return [json.loads(line) for line in raw.decode("utf-8").splitlines()]


def found(text: str) -> list[str]:
    """The words of self-reference that a text contains, as case-folded substrings."""
    folded = text.casefold()
    return [marker for marker in SELF_REFERENCE if marker in folded]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def distinct_share(text: str) -> float:
    """Distinct words over all words, case-folded: what a bonus for repetition looks at."""
    words = text.casefold().split()
    return len(set(words)) / len(words)


@every_bank
def test_a_line_holds_id_group_text_and_the_length(language: str, name: str) -> None:
    for prompt in read(language, name):
        assert set(prompt) == {"id", "group", "text", COUNTED[language]}, prompt
        assert re.fullmatch(re.escape(prompt["group"]) + r"_\d{2,3}", prompt["id"]), prompt["id"]


@every_bank
def test_the_reader_of_the_program_takes_every_prompt(language: str, name: str) -> None:
    bank = read_bank(name, BANKS / language / f"{name}.jsonl")
    assert [(p.id, p.group, p.text) for p in bank.prompts] == [
        (p["id"], p["group"], p["text"]) for p in read(language, name)
    ]


@every_bank
def test_groups_are_those_announced_and_large_enough(language: str, name: str) -> None:
    counts = Counter(prompt["group"] for prompt in read(language, name))
    least = LEAST[language][name]
    assert set(counts) == set(least)
    assert {group: n for group, n in counts.items() if n < least[group]} == {}


@every_bank
def test_ids_are_unique(language: str, name: str) -> None:
    ids = Counter(prompt["id"] for prompt in read(language, name))
    assert [key for key, n in ids.items() if n > 1] == []


def test_no_text_occurs_twice_in_any_banks() -> None:
    texts = Counter(
        " ".join(prompt["text"].casefold().split())
        for language in LEAST
        for name in NAMES
        for prompt in read(language, name)
    )
    assert [text for text, n in texts.items() if n > 1] == []


@every_bank
def test_texts_are_tidy(language: str, name: str) -> None:
    for prompt in read(language, name):
        text = prompt["text"]
        assert text, prompt["id"]
        assert text == " ".join(text.split()), f"{prompt['id']}: spaces at an end, doubled, or a line break"
        odd = {c for c in text if not (c.isascii() and c.isprintable()) and c not in TYPOGRAPHIC}
        assert odd == set(), f"{prompt['id']}: {odd}"


@pytest.mark.parametrize("name", NAMES)
def test_english_word_counts_are_right_and_in_range(name: str) -> None:
    for prompt in read("english", name):
        assert prompt["words"] == len(prompt["text"].split()), prompt["id"]
        shortest, longest = WORDS[prompt["group"]]
        assert shortest <= prompt["words"] <= longest, prompt["id"]


@every_language
@pytest.mark.parametrize("name", ["targets", "plain", "repetitive"])
def test_plain_banks_have_no_word_of_self_reference(language: str, name: str) -> None:
    hits = {prompt["id"]: found(prompt["text"]) for prompt in read(language, name)}
    assert {key: markers for key, markers in hits.items() if markers} == {}


@every_language
def test_pseudo_recursive_prompts_carry_the_vocabulary(language: str) -> None:
    prompts = read(language, "pseudo_recursive")
    assert [prompt["id"] for prompt in prompts if not found(prompt["text"])] == []
    used = {marker for prompt in prompts for marker in found(prompt["text"])}
    assert len(used) >= 15, f"a control for vocabulary must cover it, has only {sorted(used)}"


def test_english_pseudo_recursive_prompts_mention_and_do_not_ask() -> None:
    """They speak about things and to nobody: no first or second person, no request to look at oneself."""
    asks = re.compile(r"\b(you|your|yours|yourself|i|me|my|myself|we|us|our|notice|this sentence)\b")
    for prompt in read("english", "pseudo_recursive"):
        folded = prompt["text"].casefold()
        assert asks.findall(folded) == [], prompt["id"]
        assert sum(folded.count(marker) for marker in found(folded)) >= 2, prompt["id"]


@every_language
def test_more_dose_means_more_markers(language: str) -> None:
    """From each dose level to the next, markers per prompt do not become fewer, and L5 has several times as
    many as L1."""
    donors = read(language, "donors")
    per_level = [mean([float(len(found(p["text"]))) for p in donors if p["group"] == dose]) for dose in DOSES]
    assert per_level == sorted(per_level)
    assert per_level[-1] >= 3 * max(per_level[0], 0.5)


@every_language
def test_repetition_is_in_the_repetitive_bank_alone(language: str) -> None:
    """The control for a repetition bonus: its prompts repeat heavily, donors and plain prompts hardly."""
    repetitive = [distinct_share(prompt["text"]) for prompt in read(language, "repetitive")]
    assert max(repetitive) < 0.5
    for name in ("donors", "plain"):
        assert mean([distinct_share(prompt["text"]) for prompt in read(language, name)]) > 0.55, name


@pytest.mark.parametrize("start", range(30, 100, 5))
def test_english_plain_prompts_come_in_every_length(start: int) -> None:
    lengths = [prompt["words"] for prompt in read("english", "plain")]
    assert sum(start <= n < start + 5 for n in lengths) >= 2


@every_language
@pytest.mark.parametrize("name", ["donors", "pseudo_recursive", "repetitive"])
def test_a_plain_prompt_of_nearly_the_same_length_exists(language: str, name: str) -> None:
    count = COUNTED[language]
    lengths = [prompt[count] for prompt in read(language, "plain")]
    for prompt in read(language, name):
        assert min(abs(prompt[count] - n) for n in lengths) <= 3, prompt["id"]


def test_english_prompts_are_not_filled_templates() -> None:
    """No two prompts (repetitive ones apart) share a sentence, or an opening of five words."""
    sentences: Counter[str] = Counter()
    openings: Counter[str] = Counter()
    for name in ("donors", "targets", "pseudo_recursive", "plain"):
        for prompt in read("english", name):
            text = prompt["text"].casefold()
            sentences.update({s.strip() for s in re.split(r"(?<=[.?!:;])\s", text) if len(s.split()) > 3})
            openings[" ".join(text.split()[:5])] += 1
    assert [text for text, n in sentences.items() if n > 1] == []
    assert [text for text, n in openings.items() if n > 1] == []


def test_english_targets_are_left_open() -> None:
    """A target is to be continued: a full stop at its end would invite a base model to stop or to change
    the subject."""
    for prompt in read("english", "targets"):
        assert prompt["text"][-1] not in ".?!", prompt["id"]
