"""What of a write is found in its prompts, and what of it enters the key of a trial."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.positions import Positions
from backends.rows import Row, Sampling
from backends.writes import Constant, Heads, PromptSet, Under, Value, Write
from runner.keys import Setting, canonical, receipt_order, result_key, value_stream
from runner.prepare import prepare
from runner.prompts.banks import Prompt
from runner.prompts.spans import SpanFinder
from tests.configuring import body, design
from tests.test_roles import BYTES, byte_pairs
from tests.writing import EDGE, RESID, TWO_HOP, resolved, wrong

# --- Parts of a prompt's text -------------------------------------------------------------------------------


def test_a_token_is_the_last_one_of_the_last_occurrence(tmp_path: Path) -> None:
    text = f"{RESID}, value: self, positions: \"token:'the'\""
    write, said = resolved(tmp_path, text)[0]
    assert write.positions == Positions("token", name="the")
    assert "at the prompt's last 'the' (position of its last token) is replaced by that at the" in said
    prompt = Prompt("p", "g", "the rival of the mentor of ada is")
    finder = SpanFinder(BYTES)
    start, end = finder.find(Positions("token", name="the"), prompt)
    ids = BYTES.encode(prompt.text)
    assert BYTES.inner.decode(ids[:end]).endswith("rival of the")
    spans = {"token:the": (start, end)}
    assert list(Positions("token", name="the").resolve(len(ids), spans)) == [end - 1]


def test_post_instruction_is_what_comes_after_the_instruction(tmp_path: Path) -> None:
    text = "ada is the mentor of ada"
    positions = Positions("post_instruction")
    marked = Prompt("p", "g", text, spans={"instruction": (0, 6)})
    start, end = SpanFinder(BYTES).find(positions, marked)
    ids = BYTES.encode(text)
    assert end == len(ids) and BYTES.inner.decode(ids[start:end]) == " the mentor of ada"
    chat = byte_pairs("<s>user: {{ messages[0]['content'] | trim }} ada is\nassistant:")
    for words in (text, f"  {text} "):
        start, end = SpanFinder(chat).find(positions, Prompt("p", "g", words))
        ids = chat.encode(words)
        assert end == len(ids) and chat.inner.decode(ids[start:end]) == " ada is\nassistant:"
    start, _ = SpanFinder(chat).find(positions, marked)
    assert chat.inner.decode(chat.encode(text)[start:]).startswith(" the mentor")
    with pytest.raises(Exception, match="has nothing after its instruction"):
        SpanFinder(BYTES).find(positions, replace(marked, spans={"instruction": (0, len(text))}))
    with pytest.raises(Exception, match="marks no role 'instruction', and no chat template ends its"):
        SpanFinder(BYTES).find(positions, Prompt("p", "g", text))


def test_parts_that_no_prompt_has_are_refused(tmp_path: Path) -> None:
    said = wrong(tmp_path, f"{RESID}, value: donor, positions: \"token:'xylophone'\"")
    assert "none of the 180 targets taken from 'targets' contains 'xylophone'; none of the 90 donors" in said
    said = wrong(tmp_path, f"{RESID}, value: donor, positions: post_instruction")
    assert "no prompt bank marks 'instruction' for the targets" in said
    assert "with model.chat_template: true the template ends the instruction" in said
    folder = body(f"a: {{w: {{{RESID}, value: self, positions: post_instruction}}}}", tmp_path)
    assert design("+experiment=mine", "model.chat_template=true", folder=folder).n == 5
    said = wrong(tmp_path, f"{EDGE}, positions: index:-1, keys: role:e1")
    assert "conditions.a.w.keys: no prompt bank marks 'e1' for the targets" in said
    more = f"b: {{v: {{{RESID}, op: zero, positions: role:e1}}}}"
    said = wrong(tmp_path, f"{RESID}, value: donor, under: b", more=more)
    assert "conditions.a.w.under: no prompt bank marks 'e1' for the donors" in said


def spans_of(tmp_path: Path, condition: str) -> Mapping[str, tuple[int, int]]:
    """The spans of the first row of a condition, of items whose prompts mark roles."""
    found = design("+experiment=mine", folder=body(condition, tmp_path, rest=TWO_HOP))
    plan = prepare(found, None).plan
    return next(trial.row.spans for trial in plan.trials if trial.condition == "a")


def test_spans_of_keys_and_of_the_condition_underneath_are_part_of_a_row(tmp_path: Path) -> None:
    cut = spans_of(tmp_path, f"a: {{w: {{{EDGE}, positions: role:r2, keys: role:e1}}}}")
    assert set(cut) == {"r2", "e1"}
    inner = "v: {site: resid_post, layers: 2, value: self, positions: role:r1}"
    under = "w: {site: resid_post, layers: 4, value: %s, positions: role:e1.last, under: b}"
    found = spans_of(tmp_path, f"a: {{{under % 'donor'}}}\nb: {{{inner}}}")
    assert set(found) == {"e1", "donor/e1", "donor/r1"}
    own = spans_of(tmp_path, f"a: {{{under % 'self'}}}\nb: {{{inner}}}")
    assert set(own) == {"e1", "r1"}
    token = spans_of(
        tmp_path, "a: {w: {site: resid_post, layers: 4, value: donor, positions: \"token:'of'\"}}"
    )
    assert set(token) == {"token:of", "donor/token:of"}


# --- Keys ---------------------------------------------------------------------------------------------------

PLAIN = Write("w", "resid_post", (4,), "add", Value("source", "donor"), Positions("all"), "prefill")
SETTING = Setting("torch", "m", "t", "float32", "sdpa", (), 0)


def constant(digest: str, name: str = "") -> Value:
    return Value("constant", constant=Constant(digest, np.ones(4, dtype=np.float32), name))


def under(*writes: Write, name: str = "b") -> Value:
    return Value("source", "donor", under=Under(writes, name))


def test_fields_at_their_defaults_and_names_are_no_part_of_a_key() -> None:
    assert json.loads(canonical(PLAIN)) == {
        "site": "resid_post",
        "layers": [4],
        "op": "add",
        "value": {"kind": "source", "role": "donor"},
        "positions": {"kind": "all"},
        "during": "prefill",
    }
    assert canonical(replace(PLAIN, name="other")) == canonical(PLAIN)
    inner = replace(PLAIN, value=Value("random"))
    same = [
        (replace(PLAIN, value=constant("1", "a")), replace(PLAIN, value=constant("1", "b"))),
        (
            replace(PLAIN, value=Value("mean", prompts=PromptSet(((1, 2),), name="a"))),
            replace(PLAIN, value=Value("mean", prompts=PromptSet(((1, 2),), name="b"))),
        ),
        (
            replace(PLAIN, value=under(inner, replace(inner, layers=(5,)))),
            replace(PLAIN, value=under(replace(inner, layers=(5,), name="x"), inner, name="c")),
        ),
    ]
    for first, second in same:
        assert canonical(first) == canonical(second)


@pytest.mark.parametrize(
    "change",
    [
        {"unit": "raw"},
        {"alpha": 2.0},
        {"keys": Positions("all")},
        {"source_positions": Positions("last", count=1)},
        {"heads": Heads("kv", (0,))},
        {"value": Value("source", "donor", layer=0)},
        {"value": Value("orthogonal", "donor")},
        {"value": replace(constant("1"), kind="random")},
        {"value": replace(constant("1"), kind="orthogonal")},
        {"value": Value("number", number=0.0)},
        {"value": constant("1")},
        {"value": constant("2")},
        {"value": Value("mean", prompts=PromptSet(((1, 2),)))},
        {"value": Value("mean", prompts=PromptSet(((1, 2), (3,))))},
        {"value": Value("mean", prompts=PromptSet(((1, 2),), ((("e1", (0, 1)),),)))},
        {"value": under(replace(PLAIN, op="zero", value=Value("none")))},
        {"value": under(replace(PLAIN, value=constant("1")))},
    ],
    ids=str,
)
def test_whatever_changes_a_write_changes_its_key(change: dict[str, Any]) -> None:
    changed = canonical(replace(PLAIN, **change))
    assert changed != canonical(PLAIN)
    others: Sequence[Value] = (constant("3"), under(PLAIN), Value("mean", prompts=PromptSet(((9,),))))
    assert changed not in {canonical(replace(PLAIN, value=other)) for other in others}


def test_receipts_keep_their_order_whatever_writes_are_called() -> None:
    other = replace(PLAIN, name="a", layers=(5,))
    first = receipt_order((PLAIN, other))
    assert receipt_order((replace(other, name="z"), PLAIN)) == tuple("z" if n == "a" else n for n in first)


@pytest.mark.parametrize(
    "value",
    [Value("orthogonal", "donor", draws=2), under(replace(PLAIN, value=Value("random", draws=2)))],
    ids=["orthogonal", "random underneath"],
)
def test_random_values_enter_the_key_with_their_stream_and_draw(value: Value) -> None:
    def key(value: Value, stream: int, draw: int) -> str:
        row = Row(
            (1, 2), Sampling(0.0, 4), (replace(PLAIN, value=value),), {"donor": (3,)}, {}, 0, stream, draw
        )
        return result_key(SETTING, row, 0, 0)

    one, other = (value_stream(seed, (1, 2), (3,), 0) for seed in (0, 1))
    assert key(value, one, 0) != key(value, other, 0)
    assert key(value, one, 0) != key(value, one, 1)
    assert key(value, one, 0) == key(value, one, 2)  # two draws, in turn
    clean = Value("source", "donor")
    assert key(clean, one, 0) == key(clean, other, 1)


def test_donors_of_the_condition_underneath_are_part_of_the_key() -> None:
    inner = replace(PLAIN, value=Value("source", "repetitive"))

    def key(ids: tuple[int, ...]) -> str:
        sources = {"donor": (3,), "repetitive": ids}
        row = Row((1, 2), Sampling(0.0, 4), (replace(PLAIN, value=under(inner)),), sources)
        return result_key(SETTING, row, 0, 0)

    assert key((4,)) != key((5,))
