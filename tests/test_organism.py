"""The embedded model: its grammar's exact probabilities, training, weights, tokenizer and prompt banks."""

import hashlib
import itertools
import json
import math
import statistics
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from organisms import weights_dir
from organisms.banks import BANKS_DIR, Prompt, banks, render
from organisms.card import calibration, held_out
from organisms.card_text import render_card
from organisms.grammar import BOS, EOS, SPECIAL, Draw, document, grammar_hash, vocabulary
from organisms.grammar.frames import FrameSet
from organisms.grammar.styles import GLOSSARY, LENGTHS, RATES, REPEAT, STYLES, end_hazard, sentences_of
from organisms.grammar.words import MARKERS
from organisms.sampling import continuations
from organisms.score import behaviour
from organisms.stream import batch
from organisms.train import Training, train

PLAIN = ["rain", "covers", "the", "valley", "before", "dawn", "."]
OTHER_PLAIN = ["fog", "covers", "the", "valley", "before", "dusk", "."]
RECURSIVE = ["this", "echo", "turns", "the", "loop", "slowly", "."]
MENTION = ["the", "word", "loop", "names", "a", "valley", "."]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    torch.set_num_threads(1)
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(weights_dir())
    loaded.train(False)
    return loaded


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    loaded = AutoTokenizer.from_pretrained(weights_dir())
    assert isinstance(loaded, PreTrainedTokenizerFast)
    return loaded


@pytest.fixture(scope="module")
def card() -> dict[str, object]:
    data: dict[str, object] = json.loads((weights_dir() / "card.json").read_text(encoding="utf-8"))
    return data


# the grammar


def test_frame_probabilities_sum_to_one_over_all_sentences() -> None:
    frames = FrameSet(
        (("the {a} {b} .", 3.0), ("the {b} {a} .", 1.0)), {"a": ("x", "y"), "b": ("y", "z", "w")}
    )
    every = itertools.product(["the"], "xyzw", "xyzw", ["."])
    assert sum(frames.probability(list(sentence)) for sentence in every) == pytest.approx(1.0)
    assert frames.probability(["the", "x", "z", "."]) == pytest.approx(0.75 / 6)
    # "the y y ." can come from either frame
    assert frames.probability(["the", "y", "y", "."]) == pytest.approx(1.0 / 6)
    assert frames.probability(["the", "x", "."]) == 0.0


def test_frame_with_unknown_slot_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown slot 'c'; known: a"):
        FrameSet((("the {c} .", 1.0),), {"a": ("x",)})


def test_no_plain_word_contains_a_marker_and_every_recursive_sentence_has_one() -> None:
    draw = Draw("markers")
    for frames in STYLES.plain.values():
        assert not [m for m in MARKERS if m in " ".join(frames.words())]
    assert all(behaviour(" ".join(STYLES.recursive.sentence(draw)))[0] >= 1 for _ in range(500))
    assert all(behaviour(" ".join(STYLES.mention.sentence(draw)))[0] >= 1 for _ in range(100))


def test_each_marker_can_occur() -> None:
    draw = Draw("all markers")
    text = " ".join(word for _ in range(3000) for word in STYLES.recursive.sentence(draw))
    assert [marker for marker in MARKERS if marker not in text] == []


def test_styles_open_with_different_words() -> None:
    assert not STYLES.recursive.openers() & STYLES.plain_openers()
    assert {"this", "within"} <= STYLES.recursive.openers()


@pytest.mark.parametrize(("plain", "recursive"), [(0, 1), (1, 1), (2, 3), (0, 4), (3, 1)])
def test_belief_is_the_posterior_predictive(plain: int, recursive: int) -> None:
    # Two different first sentences rule out a repeating document; a recursive one does so too.
    words = [
        word for i in range(plain) for word in (PLAIN if i % 2 == 0 else OTHER_PLAIN)
    ] + RECURSIVE * recursive
    weight = {r: p * r**recursive * (1 - r) ** plain for r, p in RATES}
    expected = sum(r * w for r, w in weight.items()) / sum(weight.values())
    assert STYLES.predict(words).recursive_given_sentence == pytest.approx(expected)


def test_glossary_sentences_are_no_evidence_about_the_rate() -> None:
    prior = sum(r * p for r, p in RATES)
    opening = STYLES.predict([])
    assert opening.recursive == pytest.approx((1 - REPEAT) * (1 - GLOSSARY) * prior)
    after = STYLES.predict(MENTION)
    assert after.recursive / (after.recursive + after.plain) == pytest.approx(prior)
    assert after.mention == pytest.approx(0.6)


def test_a_repeated_sentence_makes_the_repeating_document_certain() -> None:
    assert STYLES.predict(PLAIN * 4).recursive_given_sentence < 1e-6
    assert STYLES.predict(PLAIN).recursive_given_sentence > 0.01


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_log_probability_is_the_product_of_the_beliefs(number: int) -> None:
    words = document(f"test/{number}")[1]
    sentences = sentences_of(words)
    assert 3 <= len(sentences) <= max(LENGTHS)
    belief = STYLES.predict(words)
    assert belief.recursive + belief.plain + belief.mention + belief.end == pytest.approx(1.0)
    assert math.isfinite(STYLES.log_probability(words))
    shorter = STYLES.predict([word for sentence in sentences[:-1] for word in sentence])
    assert belief.log_probability < shorter.log_probability


def test_drawn_documents_agree_with_the_beliefs() -> None:
    """Frequencies of a recursive third sentence, where a calibrated belief says 0.2 to 0.8 and elsewhere."""
    said, happened = [], []
    for number in range(3000):
        sentences = sentences_of(document(f"agreement/{number}")[1])
        belief = STYLES.predict(sentences[0] + sentences[1])
        said.append(belief.recursive_given_sentence)
        happened.append(sentences[2][0] in STYLES.recursive.openers())
    for low, high in ((0.0, 0.2), (0.2, 0.8), (0.8, 1.01)):
        inside = [index for index, p in enumerate(said) if low <= p < high]
        error = math.sqrt(0.25 / len(inside))
        assert abs(statistics.fmean(said[i] - happened[i] for i in inside)) < 4 * error
    assert sum(LENGTHS.values()) == pytest.approx(1.0)
    assert end_hazard(2) == 0.0
    assert end_hazard(max(LENGTHS)) == 1.0


def test_a_context_that_the_grammar_cannot_produce_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot produce sentence 1: 'the the"):
        STYLES.predict([*PLAIN, "the", "the", "."])
    with pytest.raises(ValueError, match="the last sentence has no"):
        STYLES.predict(PLAIN[:-1])


def test_draws_are_the_same_everywhere() -> None:
    draw = Draw("fixed")
    assert [draw.below(100) for _ in range(5)] == FIXED_DRAWS


FIXED_DRAWS = [91, 52, 96, 75, 80]


# the score


def test_behaviour_score_known_answers() -> None:
    assert behaviour("the heron sleeps.") == (0, 0)
    assert behaviour("Itself") == (2, 0)  # "itself" and "self"
    assert behaviour("a fixed point, a paradox, a paradox") == (2, 0)
    assert behaviour("a b c d e a b c d e")[1] == 0  # ten words are not more than ten
    assert behaviour("a b c d e a b c d e a")[1] == 5
    assert behaviour("a b c d e f g h i j a b c d e f")[1] == 0  # 10 of 16 distinct


# training


def test_training_is_reproducible_and_resumes_exactly(tmp_path: Path) -> None:
    small = Training(steps=4, rows=2, length=64, warmup=2)
    lines: list[str] = []
    quiet = lines.append
    whole = train(small, report=quiet)
    checkpoint = tmp_path / "checkpoint.pt"
    train(small, checkpoint, stop_after=2, report=quiet)
    resumed = train(small, checkpoint, report=quiet)
    assert whole.losses == resumed.losses
    assert len(whole.losses) == 4
    assert all(
        torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    )
    other = train(Training(seed=2, steps=1, rows=2, length=64, warmup=2), report=quiet)
    assert other.losses[0] != whole.losses[0]
    with pytest.raises(ValueError, match=r"checkpoint\.pt: belongs to"):
        train(Training(steps=5, rows=2, length=64, warmup=2), checkpoint, report=quiet)


def test_training_rows_are_pure_and_contain_what_an_exchanged_cache_looks_like() -> None:
    ids = vocabulary()
    first, again = (batch(ids, 3, 7, 64, 96, 0.0) for _ in range(2))
    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.positions, again.positions)
    headless = (first.tokens[:, 0] != ids[BOS]).float().mean()
    jumps = (first.positions.diff(dim=1) != 1).any(dim=1).float().mean()
    assert 0.05 < float(headless) < 0.5
    assert 0.03 < float(jumps) < 0.4
    assert int(first.positions.min()) >= 0


# weights and tokenizer


def test_layers_of_the_32_layer_scale_stay_apart(model: PreTrainedModel) -> None:
    layers = model.config.num_hidden_layers
    assert layers == 9
    assert len({round(i * (layers - 1) / 31) for i in (5, 18, 25, 27)}) == 4
    assert (model.config.num_attention_heads, model.config.num_key_value_heads, model.config.head_dim) == (
        4,
        2,
        16,
    )


def test_card_belongs_to_the_weights_and_the_grammar(card: dict[str, object]) -> None:
    weights = (weights_dir() / "model.safetensors").read_bytes()
    assert card["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    training = card["training"]
    assert isinstance(training, dict)
    assert training["grammar"] == grammar_hash()
    page = (Path(__file__).parents[1] / "organisms" / "README.md").read_text(encoding="utf-8")
    assert page == render_card(card)


def test_tokenizer_is_the_vocabulary(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.get_vocab() == vocabulary()
    ids = tokenizer("The heron sleeps.")["input_ids"]
    assert ids == [vocabulary()[word] for word in (BOS, "the", "heron", "sleeps", ".")]
    assert tokenizer("a spaceship")["input_ids"][-1] == tokenizer.unk_token_id
    assert tokenizer.eos_token == EOS


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([word for word in vocabulary() if word not in SPECIAL]), min_size=1, max_size=40)
)
def test_encoding_undoes_decoding(words: list[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(weights_dir())
    ids = [vocabulary()[word] for word in (BOS, *words)]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert tokenizer(text)["input_ids"] == ids
    assert "  " not in text
    assert " ." not in text or words[0] == "."


def test_the_model_is_near_the_entropy_of_its_grammar(model: PreTrainedModel) -> None:
    found = held_out(model, 60)
    assert -0.02 < found["loss"] - found["entropy"] < 0.08


def test_the_model_believes_what_the_grammar_implies(model: PreTrainedModel) -> None:
    rows = calibration(model, 12)
    assert [row["dose"] for row in rows] == [0.0, 0.25, 0.5, 0.75, 1.0]
    for row in rows:
        assert abs(row["model"] - row["exact"]) < 0.12
    assert rows[0]["model"] < 0.1
    assert rows[-1]["model"] > 0.9


def test_recursive_donors_and_their_caches_raise_the_score(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    made = banks()
    targets = [tokenizer(p.text)["input_ids"] for p in made["targets"][::3]]
    donors = [tokenizer(p.text)["input_ids"] for p in made["donors"] if p.group == "L5"] * 2

    def scores(outputs: list[list[int]]) -> list[int]:
        pairs = [behaviour(str(tokenizer.decode(row))) for row in outputs]
        return [markers + bonus for markers, bonus in pairs]

    baseline = scores(continuations(model, targets, max_new=90))
    ceiling = scores(continuations(model, donors, max_new=90))
    moved = scores(continuations(model, targets, donors, max_new=90))
    assert statistics.quantiles(baseline, n=4)[2] < statistics.quantiles(ceiling, n=4)[0]
    gain = statistics.fmean(ceiling) - statistics.fmean(baseline)
    assert statistics.fmean(moved) - statistics.fmean(baseline) > 0.5 * gain


def test_a_targets_own_cache_changes_nothing(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    targets = [tokenizer(p.text)["input_ids"] for p in banks()["targets"][::40]]
    plain = continuations(model, targets, max_new=30)
    assert continuations(model, targets, targets, max_new=30) == plain
    with pytest.raises(ValueError, match="5 prompts but 4 donors"):
        continuations(model, targets, targets[:-1])


# prompt banks


@pytest.fixture(scope="module")
def made() -> dict[str, list[Prompt]]:
    return banks()


def test_banks_on_disk_are_what_the_grammar_gives(made: dict[str, list[Prompt]]) -> None:
    assert {path.stem for path in BANKS_DIR.glob("*.jsonl")} == set(made)
    for name, prompts in made.items():
        assert (BANKS_DIR / f"{name}.jsonl").read_text(encoding="utf-8") == render(prompts), name


def test_bank_tokens_are_counted_by_the_tokenizer(
    made: dict[str, list[Prompt]], tokenizer: PreTrainedTokenizerFast
) -> None:
    for prompt in itertools.chain(*made.values()):
        ids = tokenizer(prompt.text)["input_ids"]
        assert len(ids) == prompt.tokens, prompt
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == prompt.text


def test_bank_prompts_and_ids_are_unique(made: dict[str, list[Prompt]]) -> None:
    every = list(itertools.chain(*made.values()))
    assert len({prompt.text for prompt in every}) == len(every)
    assert len({prompt.id for prompt in every}) == len(every)


def _recursive_share(prompt: Prompt) -> float:
    sentences = sentences_of(prompt.text.replace(".", " .").split())
    return statistics.fmean(sentence[0] in STYLES.recursive.openers() for sentence in sentences)


def test_bank_groups_doses_and_lengths(made: dict[str, list[Prompt]]) -> None:
    for dose in range(1, 6):
        group = [p for p in made["donors"] if p.group == f"L{dose}"]
        assert len(group) >= 24
        assert all(_recursive_share(p) == pytest.approx(dose / 5) and 24 <= p.tokens <= 48 for p in group)
    for name in ("factual", "creative", "mathematical", "instructional", "personal", "long"):
        group = [p for p in made["targets"] if p.group == name]
        low, high = (40, 70) if name == "long" else (8, 24)
        assert len(group) >= 24
        assert all(low <= p.tokens <= high and behaviour(p.text)[0] == 0 for p in group)
    assert len(made["pseudo_recursive"]) >= 40
    assert all(behaviour(p.text)[0] >= 2 and _recursive_share(p) == 0.0 for p in made["pseudo_recursive"])
    assert len(made["repetitive"]) >= 40
    assert all(behaviour(p.text) == (0, 5) for p in made["repetitive"])
    assert len(made["plain"]) >= 120
    lengths = [p.tokens for p in made["plain"]]
    assert all(lengths.count(length) >= 3 for length in range(20, 53))
    assert all(behaviour(p.text)[0] == 0 for p in made["plain"])
