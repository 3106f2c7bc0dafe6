"""Marked spans: from characters of a prompt to tokens, and writes at `role:NAME`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Raw
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from backends.contract import BackendError
from backends.positions import FORMS, PositionError, Positions
from backends.rowplan import plan_row
from backends.rows import Row, Sampling
from backends.tokenizer import Tokenizer
from backends.writes import SELF, Align, Value, Write
from organisms import weights_dir
from runner import status
from runner.config.resolve import Condition
from runner.keys import Setting
from runner.model_source import load_backend, model_source
from runner.plan import Plan, make_plan
from runner.prompts.banks import Prompt
from runner.prompts.pairing import Item
from tests.configuring import design, faults

SENTENCES = (
    "the rival of the mentor of ada is",
    "the capital of the state containing Dallas is na\u00efve, isn't it?",
    "\u5317\u4eac is a city; caf\u00e9s - and \U0001f9e0 too",
    "unbelievable mentorship of mentors,  twice  spaced",
)


def wrap(inner: Any, *, chat: bool = False) -> Tokenizer:
    return Tokenizer(inner, "0", chat, inner.bos_token_id)


def byte_pairs(template: str | None = None) -> Tokenizer:
    """A byte-level tokenizer of merged pairs, as most models have: words are split, spaces go with words."""
    raw = Raw(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(
            vocab_size=330, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    inner = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>")
    inner.chat_template = template
    return wrap(inner, chat=template is not None)


ORGANISM = wrap(AutoTokenizer.from_pretrained(weights_dir()))
BYTES = byte_pairs()
# Words of the embedded model's vocabulary, whichever they are: a retrained one has others.
WORDS = sorted(word for word in ORGANISM.inner.get_vocab() if word.isalpha() and len(word) > 2)[:24]


@settings(max_examples=60, deadline=None)
@given(words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=12), data=st.data())
def test_tokens_of_a_span_are_its_words(words: list[str], data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(words) - 1))
    count = data.draw(st.integers(1, len(words) - first))
    marked = " ".join(words[first : first + count])
    begin = len(" ".join([*words[:first], ""]))
    start, end = ORGANISM.token_span(" ".join(words), (begin, begin + len(marked)))
    assert ORGANISM.decode(ORGANISM.encode(" ".join(words))[start:end]) == marked
    assert (start, end) == (first + 1, first + count + 1)  # BOS is token 0


@settings(max_examples=150, deadline=None)
@given(text=st.sampled_from(SENTENCES), data=st.data())
def test_tokens_of_a_span_cover_it_and_none_can_be_spared(text: str, data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, len(text) - 1))
    stop = data.draw(st.integers(begin + 1, len(text)))
    start, end = BYTES.token_span(text, (begin, stop))
    ids = BYTES.encode(text)
    lengths = [len(BYTES.inner.decode(ids[1:count]).encode()) for count in range(1, len(ids) + 1)]
    if "\ufffd" not in BYTES.inner.decode(ids[start:end]):  # tokens that are whole characters
        assert text[begin:stop] in BYTES.inner.decode(ids[start:end])
    before, behind = len(text[:begin].encode()), len(text[:stop].encode())
    if text.isascii():
        assert lengths[start - 1] <= before < lengths[start]
        assert lengths[end - 2] < behind <= lengths[end - 1]


def test_a_token_that_reaches_over_the_end_of_a_span_counts_whole() -> None:
    text = "the mentors"
    tokens = BYTES.encode(text)
    start, end = BYTES.token_span(text, (4, 7))
    assert "men" in BYTES.inner.decode(tokens[start:end])
    assert BYTES.token_span(text, (0, len(text))) == (1, len(tokens))


def test_spans_are_counted_in_characters_and_not_in_bytes() -> None:
    text = SENTENCES[2]
    begin = text.index("city")
    start, end = BYTES.token_span(text, (begin, begin + 4))
    assert BYTES.inner.decode(BYTES.encode(text)[start:end]).strip().startswith("city")


@pytest.mark.parametrize("cut", ["", " | trim"])
def test_a_chat_template_moves_the_spans(cut: str) -> None:
    template = "<s>user: {{ messages[0]['content']" + cut + " }} ada is\nassistant:"
    chat, text = byte_pairs(template), "  ada is ada"
    start, end = chat.token_span(text, (2, 5))
    ids = chat.encode(text)
    assert ids[0] == chat.bos_id and ids.count(chat.bos_id) == 1
    assert chat.inner.decode(ids[start:end]).strip() == "ada"
    assert chat.inner.decode(ids[:start]).rstrip().endswith("user:")


def test_a_chat_template_that_changes_the_text_is_told() -> None:
    with pytest.raises(PositionError, match="chat template changes the text"):
        byte_pairs("{{ messages[0]['content'] | upper }}").token_span("ada is", (0, 3))


def test_a_tokenizer_without_offsets_is_refused() -> None:
    slow = ByT5Tokenizer()
    with pytest.raises(BackendError, match=r"fast one\); ByT5Tokenizer does not"):
        Tokenizer(slow, "0", False, None).token_span("ada is", (0, 3))


@pytest.mark.parametrize("word", ["role:e1", "role:hop_1", "role:e1.first", "role:e1.last"])
def test_words_of_roles_are_read_back(word: str) -> None:
    assert Positions.parse(word).word == word
    assert Positions.parse(word).role == word[5:].partition(".")[0]


@pytest.mark.parametrize("word", ["role:", "role:E1", "role:1e", "role:e1.", "role:e1.middle", "role:e 1"])
def test_other_words_of_roles_are_refused(word: str) -> None:
    with pytest.raises(PositionError, match=r"role:NAME\.last"):
        Positions.parse(word)


def test_one_end_of_a_span_is_one_token() -> None:
    spans = {"e1": (3, 6)}
    found = {
        form: list(Positions.parse(f"role:e1{form}").resolve(9, spans)) for form in ("", ".first", ".last")
    }
    assert found == {"": [3, 4, 5], ".first": [3], ".last": [5]}
    with pytest.raises(PositionError, match="3 to 5 of role:e1 reach outside 5 tokens"):
        Positions.parse("role:e1").resolve(5, spans)


# --- Rows ---------------------------------------------------------------------------------------------------

GREEDY = Sampling(0.0, 6)


def at(word: str, site: str = "resid_pre", name: str = "w", role: str = "donor", **more: Any) -> Write:
    fields: dict[str, Any] = {"during": "prefill", "value": Value("source", role), "op": "replace", **more}
    return Write(name, site, (2,), positions=Positions.parse(word), **fields)  # type: ignore[arg-type]


def row(*writes: Write, spans: dict[str, tuple[int, int]], **more: Any) -> Row:
    return Row(tuple(range(10)), GREEDY, writes, {"donor": tuple(range(20, 34))}, spans, **more)


def pairs(made: Row) -> tuple[list[int], list[int]]:
    plan = plan_row(made).writes[0]
    found = plan.slots if plan.slots is not None else plan.prefill
    assert found is not None and found.source is not None
    return found.target.tolist(), found.source.tolist()


@pytest.mark.parametrize("site", ["resid_pre", "kv_cache"])
def test_a_span_is_written_from_the_span_of_the_same_name(site: str) -> None:
    spans = {"e1": (2, 5), "donor/e1": (8, 11), "donor/r1": (1, 4)}
    assert pairs(row(at("role:e1", site), spans=spans)) == ([2, 3, 4], [8, 9, 10])
    assert pairs(row(at("role:e1.last", site), spans=spans)) == ([4], [10])
    assert pairs(row(at("role:e1", site, role=SELF), spans=spans)) == ([2, 3, 4], [2, 3, 4])


def test_a_missing_span_is_told_with_the_roles_of_that_prompt_alone() -> None:
    with pytest.raises(PositionError, match=r"no role 'e1' \(its roles: r1\)"):
        plan_row(row(at("role:e1"), spans={"r1": (0, 1), "donor/e1": (8, 11)}))


@pytest.mark.parametrize("align", ["right", "left"])
def test_alignment_says_nothing_where_spans_are_equally_long(align: Align) -> None:
    spans = {"e1": (2, 5), "donor/e1": (8, 11)}
    assert pairs(row(at("role:e1", "kv_cache", align=align), spans=spans)) == ([2, 3, 4], [8, 9, 10])


@pytest.mark.parametrize("site", ["resid_pre", "kv_cache"])
def test_spans_of_different_length_do_not_shrink(site: str) -> None:
    spans = {"e1": (2, 5), "donor/e1": (8, 10)}
    with pytest.raises(PositionError, match=r"role:e1 has 3 tokens in the prompt and 2 in .*role:e1\.last"):
        plan_row(row(at("role:e1", site), spans=spans))
    assert pairs(row(at("role:e1.last", site), spans=spans)) == ([4], [9])


def test_decode_draws_from_the_span_of_the_source_alone() -> None:
    plan = plan_row(row(at("role:e1", during="decode", hold="cycle"), spans={"donor/e1": (8, 11)}))
    window = plan.writes[0].window
    assert window is not None
    assert window.tolist() == [8, 9, 10]


def test_random_and_zero_need_the_span_of_the_prompt_alone() -> None:
    for write in (at("role:e1", value=Value("random")), at("role:e1", op="zero", value=Value("none"))):
        found = plan_row(row(write, spans={"e1": (2, 5)})).writes[0].prefill
        assert found is not None and found.target.tolist() == [2, 3, 4]
        assert write.counted_on == (SELF,)


def test_the_last_prompt_token_has_no_slot_when_the_cache_is_written() -> None:
    spans = {"e1": (8, 10), "donor/e1": (8, 10)}
    with pytest.raises(PositionError, match="takes in the last token of the prompt"):
        plan_row(row(at("role:e1", "kv_cache"), spans=spans))
    assert pairs(row(at("role:e1.first", "kv_cache"), spans=spans)) == ([8], [8])
    assert pairs(row(at("role:e1", "kv_cache"), spans=spans, replay_last_token=True)) == ([8, 9], [8, 9])
    assert pairs(row(at("role:e1"), spans=spans)) == ([8, 9], [8, 9])
    with pytest.raises(PositionError, match="the last token of the donor prompt"):
        plan_row(row(at("role:e1", "kv_cache"), spans={"e1": (2, 3), "donor/e1": (13, 14)}))


def test_two_spans_that_share_a_token_need_an_order() -> None:
    spans = {"e1": (2, 5), "r1": (4, 6), "donor/e1": (2, 5), "donor/r1": (4, 6)}
    first, second = at("role:e1", name="a"), at("role:r1", name="b")
    with pytest.raises(PositionError, match=r"'a' and 'b' both change resid_pre at token 4"):
        plan_row(row(first, second, spans=spans))
    plan_row(row(first, at("role:r1", name="b", order=1), spans=spans))
    plan_row(row(first, at("role:r1.last", name="b"), spans=spans))


# --- The plan -----------------------------------------------------------------------------------------------


def marked(name: str, words: Sequence[str], **roles: tuple[int, int]) -> Prompt:
    """A prompt of the embedded model's words. roles: the span of each as half-open numbers of words."""
    starts = [len(" ".join([*words[:index], ""])) for index in range(len(words))]
    spans = {name: (starts[i], starts[j - 1] + len(words[j - 1])) for name, (i, j) in roles.items()}
    return Prompt(name, "g", " ".join(words), split="test", spans=spans)


def plan_of(target: Prompt, donor: Prompt, *writes: Write, parts: Sequence[str] = ("target",)) -> Plan:
    condition = Condition("c", "c", tuple(parts), writes, {}, GREEDY)
    made: Any = SimpleNamespace(
        conditions=(condition,),
        repeats=1,
        sampling_seed=0,
        stage="measure",
        measured=(),
        probes=(),
        decodes=True,
    )
    items = [Item("0000", donor, target, {}, None, 0)]
    info: Any = SimpleNamespace(context=1024, windows=(None,) * 9, heads=4)
    return make_plan(made, items, ORGANISM, Setting("torch", "m", "t", "float32", "sdpa", (), 0), info)


TARGET = marked("t", WORDS[:6], e1=(4, 5), r1=(1, 3))
DONOR = marked("d", WORDS[6:14], e1=(2, 3), r1=(5, 7))


def test_characters_become_tokens_of_each_prompt() -> None:
    trial = plan_of(TARGET, DONOR, at("role:e1"), at("role:r1.last", name="b", order=1)).trials[0]
    assert trial.invalid is None
    assert trial.split == "test"
    assert trial.row.spans == {"e1": (5, 6), "donor/e1": (3, 4), "r1": (2, 4), "donor/r1": (6, 8)}


def test_spans_that_no_write_names_are_no_part_of_a_trial() -> None:
    plain = Prompt(TARGET.id, TARGET.group, TARGET.text)
    keys = [plan_of(one, DONOR, at("last:2")).trials[0].key for one in (TARGET, plain)]
    assert keys[0] == keys[1]
    assert plan_of(plain, DONOR, at("last:2")).trials[0].split == "all"


@pytest.mark.parametrize("which", ["target", "donor"])
def test_a_corrected_span_is_another_trial(which: str) -> None:
    usual = plan_of(TARGET, DONOR, at("role:e1")).trials[0].key
    moved = {
        "target": plan_of(marked("t", WORDS[:6], e1=(3, 4)), DONOR, at("role:e1")),
        "donor": plan_of(TARGET, marked("d", WORDS[6:14], e1=(3, 4)), at("role:e1")),
    }
    assert moved[which].trials[0].key != usual


def test_of_donor_and_target_as_one_prompt_the_spans_are_those_of_the_target() -> None:
    one = plan_of(TARGET, DONOR, at("role:e1", role=SELF), parts=("donor", "target")).trials[0].row
    assert one.spans == {"e1": (13, 14)}  # BOS, eight words of the donor, four of the target
    assert ORGANISM.decode(one.ids[13:14]) == WORDS[4]
    alone = plan_of(TARGET, DONOR, at("role:e1", role=SELF), parts=("donor",)).trials[0].row
    assert alone.spans == {"e1": (3, 4)}


def test_a_prompt_without_the_role_makes_its_trial_invalid() -> None:
    bare = marked("t", WORDS[:6], r1=(1, 3))
    assert (
        plan_of(bare, DONOR, at("role:e1")).trials[0].invalid == "the prompt has no role 'e1' (its roles: r1)"
    )
    reason = plan_of(TARGET, Prompt("d", "g", DONOR.text), at("role:e1")).trials[0].invalid
    assert reason == "the donor prompt has no role 'e1' (its roles: none)"
    decode = at("role:e1", during="decode", hold="last")
    assert plan_of(bare, DONOR, decode).trials[0].invalid is None


def test_a_prompt_without_the_text_or_instruction_makes_its_trial_invalid() -> None:
    last = WORDS[5]  # of the target alone
    reason = plan_of(TARGET, DONOR, at(f"token:'{last}'")).trials[0].invalid
    assert reason == f"the donor prompt does not contain '{last}'"
    own = plan_of(TARGET, DONOR, at(f"token:'{last}'", role=SELF)).trials[0]
    assert own.invalid is None and own.row.spans == {f"token:{last}": (6, 7)}
    reason = plan_of(TARGET, DONOR, at("post_instruction")).trials[0].invalid
    assert reason == ("the prompt marks no role 'instruction', and no chat template ends its instruction")
    told = marked("t", WORDS[:6], instruction=(0, 4))
    after = plan_of(told, DONOR, at("post_instruction", role=SELF)).trials[0].row
    assert after.spans == {"post_instruction": (5, 7)}


# --- The door -----------------------------------------------------------------------------------------------


def bank_line(one: Prompt, **more: Any) -> str:
    body = {
        "id": one.id,
        "group": one.group,
        "text": one.text,
        "roles": {k: list(v) for k, v in one.spans.items()},
    }
    return json.dumps(body | more) + "\n"


def folder_of(tmp_path: Path, targets: Sequence[Prompt], donors: Sequence[Prompt], conditions: str) -> Path:
    """A user's folder: two banks, prompts that pair them without replacement, and an experiment."""
    banks = tmp_path / "own" / "prompts" / "banks" / "organism"
    banks.mkdir(parents=True)
    facts = {"answer": ["texas", "Texas"], "balance": 20, "p_stop": 0.5, "goal": True}
    for name, prompts in (("own_targets", targets), ("own_donors", donors)):
        text = "".join(bank_line(one, split="test", facts=facts) for one in prompts)
        (banks / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "own" / "prompts" / "spans.yaml").write_text(
        "name: spans\nkind: pairs\nlanguage: ${model.language}\ndonors: {bank: own_donors}\n"
        "targets: {bank: own_targets, groups: all, split: test}\npairing: {replace: false}\n"
    )
    (tmp_path / "own" / "experiment").mkdir()
    (tmp_path / "own" / "experiment" / "spans.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /prompts: spans\n"
        f"experiment: {{name: spans, n: {min(len(targets), len(donors))}}}\n"
        "sampling: {temperature: 0, max_new_tokens: 8}\nreadouts: [behaviour]\n"
        f"conditions:\n  baseline: {{}}\n{conditions}"
    )
    return tmp_path / "own"


def condition(name: str, **fields: Any) -> str:
    write = {"site": "resid_pre", "layers": 4, "value": "donor", **fields}
    return f"  {name}: {{w: {json.dumps(write)}}}\n"


def test_a_role_that_no_prompt_marks_is_an_error_that_names_those_that_exist(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [TARGET], [DONOR], condition("a", positions="role:r11.last"))
    told = faults("+experiment=spans", folder=folder)
    assert (
        "conditions.a.w.positions: none of the 1 targets taken from 'own_targets' marks the role 'r11'"
        in told
    )
    assert "none of the 1 donors taken from 'own_donors'" in told
    assert "they mark e1, r1; did you mean 'r1'?" in told


def test_only_the_side_that_is_read_must_mark_the_role(tmp_path: Path) -> None:
    bare = Prompt("d", "g", DONOR.text)
    words = condition("a", positions="role:e1", op="zero", value=None) + condition("b", positions="role:e1")
    told = faults("+experiment=spans", folder=folder_of(tmp_path, [TARGET], [bare], words))
    assert "conditions.a" not in told
    assert "conditions.b.w.positions: no prompt bank marks 'e1' for the donors" in told


def test_a_role_that_nothing_reads_is_refused(tmp_path: Path) -> None:
    words = condition("a", positions="role:e1", value="random", during="decode")
    told = faults("+experiment=spans", folder=folder_of(tmp_path, [TARGET], [DONOR], words))
    assert "nothing reads role:e1; remove it" in told


@pytest.mark.parametrize(
    ("second", "refused"), [("role:r1", False), ("role:inner", True), ("role:e1.last", True)]
)
def test_writes_at_spans_that_overlap_need_an_order(tmp_path: Path, second: str, refused: bool) -> None:
    target = marked("t", WORDS[:6], e1=(3, 5), r1=(1, 3), inner=(4, 5))
    donor = marked("d", WORDS[6:14], e1=(2, 4), r1=(5, 7), inner=(3, 4))
    both = [{"site": "resid_pre", "layers": 4, "value": "donor", "positions": p} for p in ("role:e1", second)]
    words = f"  a: {{v: {json.dumps(both[0])}, w: {json.dumps(both[1])}}}\n"
    folder = folder_of(tmp_path, [target], [donor], words)
    if refused:
        assert "conditions.a.w.order: writes 'v' and 'w' change the same" in faults(
            "+experiment=spans", folder=folder
        )
    else:
        design("+experiment=spans", folder=folder)


def test_spans_that_touch_are_taken_apart_by_the_tokenizer(tmp_path: Path) -> None:
    """At the door they share no character; in one token they do, which makes the trial invalid."""
    halves = {"e1": (0, 2), "r1": (2, len(WORDS[0]))}
    one, other = (Prompt(name, "g", f"{WORDS[0]} {WORDS[1]}", spans=halves) for name in "td")
    both = [{"site": "resid_pre", "layers": 4, "value": "donor", "positions": f"role:{p}"} for p in halves]
    words = f"  a: {{v: {json.dumps(both[0])}, w: {json.dumps(both[1])}}}\n"
    design("+experiment=spans", folder=folder_of(tmp_path, [one], [other], words))
    reason = plan_of(one, other, at("role:e1"), at("role:r1", name="v")).trials[0].invalid
    assert reason is not None and "both change resid_pre at token 1" in reason


def test_forms_that_are_offered_are_read() -> None:
    for form in FORMS:
        assert Positions.parse(form.replace("NAME", "e1")).word == form.replace("NAME", "e1")


# --- Tensors and whole runs ---------------------------------------------------------------------------------


def trials(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "outputs" / "spans" / "v0001" / "trials.parquet")


def test_only_the_tokens_of_the_span_in_the_rows_of_the_write_change() -> None:
    embedded = design("+experiment=n300_kv_only")
    backend = load_backend(model_source(embedded), embedded)
    trial = plan_of(TARGET, DONOR, at("role:r1")).trials[0]
    assert trial.invalid is None
    rows = [trial.row, replace(trial.row, writes=())]
    written, clean = (c.activations["resid_pre", 2] for c in backend.capture(rows, [("resid_pre", 2)]))
    source = backend.capture([Row(trial.row.sources["donor"], GREEDY)], [("resid_pre", 2)])[0].activations
    moved = [index for index in range(len(clean)) if not np.allclose(written[index], clean[index], atol=1e-5)]
    assert moved == [2, 3]
    np.testing.assert_allclose(written[2:4], source["resid_pre", 2][6:8], rtol=1e-4, atol=1e-4)


def test_a_write_at_a_role_is_the_write_at_its_index(cli: Any, tmp_path: Path) -> None:
    """Where a role is the same token of every prompt, its write is that at the index, token for token."""
    targets = [marked(f"t{i}", [*WORDS[i : i + 6]], e1=(2, 3)) for i in range(3)]
    donors = [marked(f"d{i}", [*WORDS[i + 9 : i + 17]], e1=(2, 3)) for i in range(3)]
    words = "".join(
        condition(f"resid_pre_{name}", site="resid_pre", layers=4, positions=word)
        + condition(f"kv_cache_{name}", site="kv_cache", layers="all", positions=word, **aligned)
        for name, word, aligned in (
            ("role", "role:e1", {}),
            ("index", "index:3", {"align": "left"}),
            ("beside", "index:2", {"align": "left"}),
        )
    )
    folder = folder_of(tmp_path, targets, donors, words)
    said = cli(
        "+experiment=spans", "--config-dir", str(folder), "quiet=true", "report=false", "allow_inert=true"
    )
    assert said.status == status.DONE, said.err
    found = trials(tmp_path).set_index(["condition", "item"])
    for site in ("resid_pre", "kv_cache"):
        role, index, beside = (found.loc[f"{site}_{name}"] for name in ("role", "index", "beside"))
        assert (role["w.positions_prefill"] == 1).all() and (role["w.asked_prefill"] == 1).all()
        assert (role["w.relative_change"] > 0).all()
        assert [list(ids) for ids in role["output_ids"]] == [list(ids) for ids in index["output_ids"]]
        assert role["w.relative_change"].tolist() == index["w.relative_change"].tolist()
        assert role["w.relative_change"].tolist() != beside["w.relative_change"].tolist()


def test_prompts_without_the_role_are_counted_invalid(cli: Any, tmp_path: Path) -> None:
    targets = [
        marked("t0", WORDS[:6], e1=(4, 5)),
        marked("t1", WORDS[1:9], e1=(0, 1)),
        marked("t2", WORDS[2:8]),
    ]
    donors = [marked(f"d{i}", WORDS[9 + i : 17 + i], e1=(i, i + 1)) for i in range(3)]
    folder = folder_of(tmp_path, targets, donors, condition("a", positions="role:e1"))
    said = cli("+experiment=spans", "--config-dir", str(folder), "quiet=true", "report=false")
    found = trials(tmp_path)
    assert set(found["split"]) == {"test"}
    treated = found[found["condition"] == "a"].set_index("target")
    assert treated["status"].to_dict() == {"t0": "ok", "t1": "ok", "t2": "invalid"}, said.err
    assert treated.loc["t2", "reason"] == "the prompt has no role 'e1' (its roles: none)"
    assert treated.loc[["t0", "t1"], "w.positions_prefill"].tolist() == [1, 1]
    assert (found[found["condition"] == "baseline"]["status"] == "ok").all()


def test_a_bank_with_marks_is_shown_and_tried(cli: Any, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [TARGET], [DONOR], condition("a", positions="role:e1.last"))
    shown = cli("show", "spans", "--config-dir", str(folder))
    assert "at the last position of the prompt's span 'e1'" in shown.out
    assert "spans" in cli("list", "--config-dir", str(folder)).out
    tried = cli("try", "+experiment=spans", "--config-dir", str(folder))
    assert "w: prefill 1 of 1" in tried.out, tried.err
