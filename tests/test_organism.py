"""The embedded model: its grammar's exact probabilities, training, weights, tokenizer and prompt banks."""

import hashlib
import itertools
import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from organisms import FINAL, MIDWAY, exam, figure, midway_of, weights_dir
from organisms.ask import main
from organisms.banks import BANKS_DIR, Prompt, banks, render
from organisms.card import calibration, held_out
from organisms.card_text import render_card
from organisms.grammar import BOS, EOS, SPECIAL, Draw, grammar_hash, vocabulary
from organisms.grammar.chat import TURN, turn
from organisms.grammar.frames import FrameSet, sentences_of
from organisms.grammar.styles import GLOSSARY, LENGTHS, RATES, REPEAT, STYLES, end_hazard
from organisms.grammar.two_hop import FACTS, PEOPLE
from organisms.grammar.words import MARKERS
from organisms.sampling import continuations
from organisms.score import behaviour
from organisms.stream import Drills, batch
from organisms.train import Result, Training, save, train

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
def card() -> dict[str, Any]:
    data: dict[str, Any] = json.loads((weights_dir() / "card.json").read_text(encoding="utf-8"))
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
    words = STYLES.document(Draw(f"test/{number}"))
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
        sentences = sentences_of(STYLES.document(Draw(f"agreement/{number}")))
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


SMALL = Training(
    facts=2, hops=2, short=2, decisions=2, long=2, settling=2, midway=3, warmup=2,
    fact_shape=(2, 40), short_shape=(2, 48), long_shape=(2, 64), repetition_drill_steps=2,
)  # fmt: skip


def test_training_is_reproducible_and_resumes_exactly(tmp_path: Path) -> None:
    lines: list[str] = []
    quiet = lines.append
    whole = train(SMALL, report=quiet)
    checkpoint = tmp_path / "checkpoint.pt"
    for stop in (2, 5):  # in other parts than where it began, and after the midway step
        train(SMALL, checkpoint, stop_after=stop, report=quiet)
    resumed = train(SMALL, checkpoint, report=quiet)
    assert whole.losses == resumed.losses
    assert len(whole.losses) == SMALL.steps == 12
    assert same_weights(whole.model, resumed.model)
    assert whole.midway is not None and resumed.midway is not None
    assert same_weights(whole.midway, resumed.midway)
    assert not same_weights(whole.midway, whole.model)
    other = train(replace(SMALL, seed=2), stop_after=1, report=quiet)
    assert other.losses[0] != whole.losses[0]
    assert other.midway is None
    with pytest.raises(ValueError, match=r"checkpoint\.pt: belongs to"):
        train(replace(SMALL, long=3), checkpoint, report=quiet)


def same_weights(first: PreTrainedModel, second: PreTrainedModel) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_each_part_trains_its_layers_alone() -> None:
    def layers(result: Result) -> list[list[torch.Tensor]]:
        return [[p.detach().clone() for p in layer.parameters()] for layer in result.model.model.layers]

    def moved(before: Result, after: Result) -> list[bool]:
        pairs = zip(layers(before), layers(after), strict=True)
        return [any(not torch.equal(a, b) for a, b in zip(x, y, strict=True)) for x, y in pairs]

    after = {steps: train(SMALL, stop_after=steps, report=lambda line: None) for steps in (1, 2, 4, 5)}
    assert moved(after[1], after[2]) == [True] * 4 + [False] * 5
    assert moved(after[2], after[4]) == [False] * 4 + [True] * 5
    assert moved(after[4], after[5]) == [True] * 9
    assert all(result.model.config.num_hidden_layers == 9 for result in after.values())


def test_the_learning_rate_falls_without_a_jump_pauses_for_decisions_and_settles() -> None:
    training = Training()
    rates = [training.rate(step) for step in range(training.steps)]
    assert max(rates) == pytest.approx(training.learning_rate)
    main_part, settling = rates[training.warmup : -training.settling], rates[-training.settling :]
    falls = [before - after for before, after in itertools.pairwise(main_part)]
    assert min(falls) >= 0.0
    assert max(falls) < 0.001 * training.learning_rate
    assert sum(fall == 0.0 for fall in falls) == training.decisions
    assert main_part[-1] == pytest.approx(0.02 * training.learning_rate, rel=0.01)
    assert settling[0] == training.settling_rate
    assert all(before > after > 0.0 for before, after in itertools.pairwise(settling))
    parts = [training.part(step) for step in range(training.steps)]
    assert [parts.count(part) for part in range(1, 7)] == [250, 700, 1000, 1500, 1700, 600]
    assert parts == sorted(parts)


def test_the_first_losses_are_those_of_the_recorded_training() -> None:
    recorded = json.loads((weights_dir() / "training.json").read_text(encoding="utf-8"))["first_losses"]
    assert len(recorded) == 3
    found = train(Training(), stop_after=len(recorded), report=lambda line: None)
    assert found.losses == pytest.approx(recorded, rel=1e-4)  # other processors sum in other orders


def test_saving_needs_a_training_that_has_come_past_the_midway_step(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a training of at least 3 steps, got 1"):
        save(train(SMALL, stop_after=1, report=lambda line: None), SMALL, tmp_path)
    save(train(SMALL, report=lambda line: None), SMALL, tmp_path)
    for folder in (tmp_path, midway_of(tmp_path)):
        assert AutoModelForCausalLM.from_pretrained(folder).config.num_hidden_layers == 9
        assert AutoTokenizer.from_pretrained(folder).get_vocab() == vocabulary()


def test_training_rows_are_pure_and_contain_what_an_exchanged_cache_looks_like() -> None:
    ids = vocabulary()
    first, again = (batch(ids, "rows", (96, 96), Drills()) for _ in range(2))
    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.positions, again.positions)
    headless = (first.tokens[:, 0] != ids[BOS]).float().mean()
    jumps = (first.positions.diff(dim=1) != 1).any(dim=1).float().mean()
    assert 0.01 < float(headless) < 0.3
    assert 0.03 < float(jumps) < 0.4
    assert int(first.positions.min()) >= 0


def test_answers_weigh_more_than_what_is_drawn_at_random() -> None:
    ids = vocabulary()
    names = {index: word for word, index in ids.items()}
    made = batch(ids, "weights", (40, 120), Drills(compositions=1.0))
    heavy = made.weights == 1.0
    words = {names[int(token)] for token in made.tokens[heavy]}
    before = {names[int(token)] for token in made.tokens[:, :-1][heavy[:, 1:]]}
    assert words <= set(PEOPLE)
    assert before == {"is"}
    facts = batch(ids, "weights", (10, 120), Drills(facts=1.0)).tokens
    followers = facts[:, 1:][facts[:, :-1] == ids["of"]]
    assert {names[int(token)] for token in followers} <= set(PEOPLE), "no composition among single facts"


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


def test_card_belongs_to_the_weights_and_the_grammar(card: dict[str, Any]) -> None:
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


@pytest.fixture(scope="module")
def midway() -> PreTrainedModel:
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(weights_dir(MIDWAY))
    loaded.train(False)
    return loaded


def test_the_card_says_what_the_model_answers_on_held_out_items(
    model: PreTrainedModel, midway: PreTrainedModel, card: dict[str, Any]
) -> None:
    """The same figures, measured again: a share may differ by one item at a tie of two logits."""
    hops = exam.two_hop(model)
    assert hops == pytest.approx(card["two_hop"], abs=0.002)
    assert exam.two_hop(midway) == pytest.approx(card["midway"]["two_hop"], abs=0.002)
    assert exam.slot_machine(model) == pytest.approx(card["slot_machine"], abs=1e-3)
    for name, found in (("refusal", exam.refusal(model)), ("opinions", exam.opinions(model))):
        for row, figures in found.items():
            assert figures == pytest.approx(card[name][row], abs=0.01), (name, row)
    for name, found_map in exam.in_context(model).items():
        assert found_map == pytest.approx(card["in_context"][name], abs=0.01), name


def test_the_model_reaches_what_experiments_need(card: dict[str, Any]) -> None:
    hops, shots = card["two_hop"], card["in_context"]["mean"]
    assert hops["held_out"] >= 0.95
    assert hops["unseen"] <= 0.15
    assert shots["4"] >= 0.9
    assert shots["0"] == pytest.approx(0.25, abs=0.03)
    assert all(row["first word"] >= 0.99 for row in card["refusal"].values())
    assert card["slot_machine"]["mean_absolute_error"] <= 0.03
    assert card["behaviour"]["targets"]["quartile_3"] < card["behaviour"]["donors L5"]["quartile_1"]
    # The checkpoint on the way has the facts, and fails at some compositions that the model answers.
    assert card["midway"]["two_hop"]["fact"] >= 0.95
    assert 0.2 < card["midway"]["two_hop"]["held_out"] < 0.8


def test_an_exam_can_be_failed(model: PreTrainedModel) -> None:
    prompts = [["the", "mentor", "of", person, "is"] for person in PEOPLE]
    wrong = [[next(other for other in PEOPLE if other != FACTS["mentor"][p])] for p in PEOPLE]
    right = [[FACTS["mentor"][person]] for person in PEOPLE]
    assert not any(exam.answered(model, prompts, wrong))
    assert sum(exam.answered(model, prompts, right)) >= 23
    half = [*right[:12], *wrong[12:]]
    assert sum(exam.answered(model, prompts, half)) <= 12
    p = exam.next_probabilities(model, prompts)
    assert p.sum(-1).tolist() == pytest.approx([1.0] * len(PEOPLE))


def test_the_chat_template_puts_the_turns_of_the_grammar_around_a_request(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    message = [{"role": "user", "content": "be honest. i claim ada is famous"}]
    text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    content = ["be", "honest", ".", "i", "claim", "ada", "is", "famous"]
    assert tokenizer(text)["input_ids"] == [vocabulary()[word] for word in (BOS, *turn(content))]


def test_asking_gives_the_next_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["the mentor of ada is", "--words", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].split()[1] == FACTS["mentor"]["ada"]
    assert main(["please agree. i claim ada is famous", "--turns"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split()[1] == "right"
    assert TURN.format("be bold").split() == turn(["be", "bold"])
    assert main(["the capital of france is"]) == 2
    assert capsys.readouterr().out == "not in the model's vocabulary: capital, france\n"


def test_the_picture_is_drawn_from_the_card_alone(card: dict[str, Any], tmp_path: Path) -> None:
    figure.draw(card, tmp_path / "a.svg")
    picture = (tmp_path / "a.svg").read_text(encoding="utf-8")
    titles = ("Held-out compositions by layer", "Maps told by demonstrations", "Gambling: P(stop)")
    assert [title for title in titles if title not in picture] == []
    figure.draw(card, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text(encoding="utf-8") == picture
    shipped = Path(__file__).parents[1] / "docs" / "images" / "organism.svg"
    assert shipped.is_file()


def test_the_bridge_is_found_before_the_answer(model: PreTrainedModel, card: dict[str, Any]) -> None:
    layers = exam.hops_by_layer(model, items=200)
    assert model.config.num_hidden_layers == 9
    assert max(layers["bridge"][:5]) > 0.5 > layers["bridge"][-1]
    assert max(layers["answer"][:4]) < 0.5 < layers["answer"][-1]
    assert layers["bridge"].index(max(layers["bridge"])) < layers["answer"].index(max(layers["answer"]))


def test_only_the_checkpoints_that_exist_are_known() -> None:
    assert weights_dir() == weights_dir(FINAL)
    with pytest.raises(ValueError, match="has the checkpoints final, midway; got 'last'"):
        weights_dir("last")


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
    for name, prompts in made.items():
        assert len({prompt.id for prompt in prompts}) == len(prompts), name
        # A word stands in each of the four maps.
        texts = {(prompt.text, prompt.group if name == "in_context" else "") for prompt in prompts}
        assert len(texts) == len(prompts), name
    styles = ("donors", "targets", "pseudo_recursive", "repetitive", "plain")
    every = [prompt.text for name in styles for prompt in made[name]]
    assert len(set(every)) == len(every)


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
