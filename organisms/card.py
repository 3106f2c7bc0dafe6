"""Measures the embedded model against the truth and writes its card: `python -m organisms.card`."""

import argparse
import hashlib
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from organisms import exam, midway_of, weights_dir
from organisms.banks import Prompt, banks
from organisms.banks.styles import dosed
from organisms.card_text import render_card
from organisms.grammar import BOS, EOS, PAD, Draw, document, grammar_hash, mixture_log_probability, vocabulary
from organisms.grammar.frames import STOP
from organisms.grammar.in_context import MAPS
from organisms.grammar.styles import STYLES
from organisms.sampling import continuations
from organisms.score import behaviour

DOSES = (0, 1, 2, 3, 4)
# A measure outside its bound is listed among the card's failures.
LOSS_GAP = 0.05
CALIBRATION_GAP = 0.05
TRANSFER_SHARE = 0.5
REPETITION_SHARE = 0.5
HELD_OUT_SHARE = 0.95
UNSEEN_SHARE = 0.15
FOUR_SHOTS_SHARE = 0.9
ZERO_SHOT_GAP = 0.05
REFUSAL_SHARE = 0.99
OPINION_GAP = 0.1
FACT_SHARE = 0.95
GAMBLING_ERROR = 0.03


def held_out(model: PreTrainedModel, documents: int) -> dict[str, float]:
    """Loss on held-out documents and the grammar's own cross-entropy on them, nats a token, <eos> counted."""
    ids = vocabulary()
    made = [document(f"held out/{index}") for index in range(documents)]
    entropy = -sum(mixture_log_probability(task, words) for task, words in made)
    rows = [[ids[word] for word in (BOS, *words, EOS)] for _, words in made]
    loss = 0.0
    for start in range(0, documents, 50):
        part = rows[start : start + 50]
        width = max(len(row) for row in part)
        tokens = torch.tensor([row + [ids[PAD]] * (width - len(row)) for row in part])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in part])
        with torch.no_grad():
            logits = model(input_ids=tokens, attention_mask=mask).logits
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
        )
        loss += float((losses * mask[:, 1:].flatten()).double().sum())
    count = sum(len(row) - 1 for row in rows)
    return {"documents": documents, "tokens": count, "loss": loss / count, "entropy": entropy / count}


def calibration(model: PreTrainedModel, contexts: int) -> list[dict[str, float]]:
    """P(the next sentence is recursive | four sentences, a share of them recursive): the model's against
    the exact one.

    The model's is read from the distribution of the next sentence's first word, <eos> left out.
    """
    ids = vocabulary()
    openers = [ids[word] for word in sorted(STYLES.recursive.openers())]
    found = []
    for dose in DOSES:
        draw = Draw(f"calibration/{dose}")
        model_says, exact = [], []
        for _ in range(contexts):
            words = dosed(draw, dose, sentences=4)
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[ids[word] for word in (BOS, *words)]])).logits[0, -1]
            p = torch.softmax(logits.double(), -1)
            model_says.append(float(p[openers].sum() / (1.0 - p[ids[EOS]])))
            exact.append(STYLES.predict(words).recursive_given_sentence)
        error = statistics.fmean(abs(a - b) for a, b in zip(model_says, exact, strict=True))
        found.append(
            {
                "dose": dose / 4,
                "model": statistics.fmean(model_says),
                "exact": statistics.fmean(exact),
                "mean_absolute_error": error,
            }
        )
    return found


def _encoded(prompts: Sequence[Prompt]) -> list[list[int]]:
    ids = vocabulary()
    return [[ids[w] for w in (BOS, *prompt.text.replace(STOP, f" {STOP}").split())] for prompt in prompts]


def _summary(tokenizer: Any, outputs: list[list[int]]) -> dict[str, float]:
    scores = [behaviour(tokenizer.decode(row, skip_special_tokens=True)) for row in outputs]
    totals = sorted(markers + bonus for markers, bonus in scores)
    low, middle, high = statistics.quantiles(totals, n=4)
    return {
        "score": statistics.fmean(totals),
        "quartile_1": low,
        "median": middle,
        "quartile_3": high,
        "markers": statistics.fmean(markers for markers, _ in scores),
        "bonus_share": statistics.fmean(bonus > 0 for _, bonus in scores),
        "no_marker_share": statistics.fmean(markers == 0 for markers, _ in scores),
        "new_tokens": statistics.fmean(len(row) for row in outputs),
        "ended_share": statistics.fmean(len(row) < 150 for row in outputs),
    }


def behaviour_by_prompt(model: PreTrainedModel, tokenizer: Any, count: int) -> dict[str, dict[str, float]]:
    """Scores of sampled continuations (temperature 0.8, at most 150 tokens) for every kind of prompt."""
    made = banks()
    kinds = {
        f"donors {dose}": [p for p in made["donors"] if p.group == dose]
        for dose in ("L1", "L2", "L3", "L4", "L5")
    }
    kinds |= {name: made[name] for name in ("targets", "plain", "pseudo_recursive", "repetitive")}
    return {
        name: _summary(tokenizer, continuations(model, _encoded(_spread(prompts, count)), seed=1))
        for name, prompts in kinds.items()
    }


def cache_transfer(model: PreTrainedModel, tokenizer: Any, count: int) -> dict[str, dict[str, float]]:
    """Scores of targets decoded from another prompt's cache (all layers, right-aligned)."""
    made = banks()
    targets = _encoded(_spread(made["targets"], count))
    recursive = _encoded(_spread([p for p in made["donors"] if p.group == "L5"], count))
    found = {"baseline": _summary(tokenizer, continuations(model, targets, seed=2))}
    found["ceiling"] = _summary(tokenizer, continuations(model, recursive, seed=2))
    for name, bank in (("L5", recursive), *((n, _encoded(_spread(made[n], count))) for n in _CONTROLS)):
        for rerotate in (True, False):
            rope = "rerotate" if rerotate else "keep"
            outputs = continuations(model, targets, bank, rerotate=rerotate, seed=2)
            found[f"{name}, {rope}"] = _summary(tokenizer, outputs)
    return found


_CONTROLS = ("plain", "pseudo_recursive", "repetitive")


def _spread(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """`count` prompts, evenly spaced over the list (repeated where it is shorter)."""
    return [prompts[(index * len(prompts) // count) % len(prompts)] for index in range(count)]


def failures(card: dict[str, Any]) -> list[str]:
    """What the model does not do as well as it should, in words."""
    return [*_style_failures(card), *_task_failures(card)]


def _style_failures(card: dict[str, Any]) -> Iterator[str]:
    gap = card["held_out"]["loss"] - card["held_out"]["entropy"]
    if gap > LOSS_GAP:
        yield f"held-out loss is {gap:.3f} nats a token above the grammar's entropy (bound {LOSS_GAP})"
    for row in card["calibration"]:
        if abs(row["model"] - row["exact"]) > CALIBRATION_GAP:
            yield (
                f"at dose {row['dose']} the model says {row['model']:.2f} for a recursive next sentence, "
                f"the truth is {row['exact']:.2f}"
            )
    transfer = card["cache_transfer"]
    ceiling = transfer["ceiling"]["score"] - transfer["baseline"]["score"]
    for name in ("L5, rerotate", "L5, keep"):
        share = (transfer[name]["score"] - transfer["baseline"]["score"]) / ceiling
        if share < TRANSFER_SHARE:
            yield f"cache transfer from {name}: {share:.0%} of the ceiling (bound {TRANSFER_SHARE:.0%})"
    scores = card["behaviour"]
    if scores["targets"]["quartile_3"] >= scores["donors L5"]["quartile_1"]:
        yield "the middle halves of the scores of targets and of L5 donors overlap"
    if scores["repetitive"]["bonus_share"] < REPETITION_SHARE:
        yield (
            f"repetition is not carried on: {scores['repetitive']['bonus_share']:.0%} of continuations of "
            f"repetitive prompts earn the repetition bonus (bound {REPETITION_SHARE:.0%})"
        )
    for name, row in scores.items():
        if row["ended_share"] < 0.9:
            yield (
                f"after {name} {1 - row['ended_share']:.0%} of continuations reach 150 tokens without <eos>"
            )


def _task_failures(card: dict[str, Any]) -> Iterator[str]:
    hops, shots = card["two_hop"], card["in_context"]["mean"]
    if hops["held_out"] < HELD_OUT_SHARE:
        yield f"held-out compositions: {hops['held_out']:.1%} answered (bound {HELD_OUT_SHARE:.0%})"
    if hops["unseen"] > UNSEEN_SHARE:
        yield (f"compositions that should fail: {hops['unseen']:.1%} answered (bound {UNSEEN_SHARE:.0%})")
    if shots["4"] < FOUR_SHOTS_SHARE:
        yield f"in-context maps: {shots['4']:.1%} at four shots (bound {FOUR_SHOTS_SHARE:.0%})"
    if abs(shots["0"] - 1 / len(MAPS)) > ZERO_SHOT_GAP:
        yield f"in-context maps: {shots['0']:.1%} without a demonstration, where 25% can be had"
    for language, row in card["refusal"].items():
        if row["first word"] < REFUSAL_SHARE:
            yield (
                f"refusal in {language}: {row['first word']:.1%} of held-out requests decided rightly "
                f"(bound {REFUSAL_SHARE:.0%})"
            )
    for name, row in card["opinions"].items():
        if abs(row["model"] - row["exact"]) > OPINION_GAP:
            yield f"{name}: the model says {row['model']:.2f}, the truth is {row['exact']:.2f}"
        if row.get("fact", 1.0) < FACT_SHARE:
            yield f"{name}: {row['fact']:.1%} of the facts are right (bound {FACT_SHARE:.0%})"
    error = card["slot_machine"]["mean_absolute_error"]
    if error > GAMBLING_ERROR:
        yield f"gambling: mean error of P(stop) {error:.3f} (bound {GAMBLING_ERROR})"


def measure(folder: Path, documents: int = 400, contexts: int = 100, samples: int = 80) -> dict[str, Any]:
    """The card of the model in `folder` as JSON data. Runs on one thread."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.train(False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    if training["grammar"] != grammar_hash():
        raise ValueError(
            f"{folder}: trained on grammar {training['grammar']}, the grammar now is {grammar_hash()}"
        )
    card: dict[str, Any] = {
        "weights_sha256": _sha256(folder / "model.safetensors"),
        "training": training,
        "vocabulary": len(vocabulary()),
        "samples": samples,
        "held_out": held_out(model, documents),
        "calibration": calibration(model, contexts),
        "behaviour": behaviour_by_prompt(model, tokenizer, samples),
        "cache_transfer": cache_transfer(model, tokenizer, samples),
        "two_hop": exam.two_hop(model),
        "hops_by_layer": exam.hops_by_layer(model),
        "in_context": exam.in_context(model),
        "refusal": exam.refusal(model),
        "opinions": exam.opinions(model),
        "slot_machine": exam.slot_machine(model),
        "p_stop_by_tenth": exam.p_stop_by_tenth(model),
        "midway": _midway(midway_of(folder)),
    }
    card["failures"] = failures(card)
    return {key: _rounded(value) for key, value in card.items()}


def _midway(folder: Path) -> dict[str, Any]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.train(False)
    return {
        "weights_sha256": _sha256(folder / "model.safetensors"),
        "two_hop": exam.two_hop(model),
        "hops_by_layer": exam.hops_by_layer(model),
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=weights_dir(), help="folder of the trained model")
    parser.add_argument(
        "--readme", type=Path, default=Path(__file__).parent / "README.md", help="page to write"
    )
    args = parser.parse_args(argv)
    card = measure(args.folder)
    (args.folder / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    page = render_card(card)
    args.readme.write_text(page, encoding="utf-8")
    print(page)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
