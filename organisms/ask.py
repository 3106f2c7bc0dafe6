"""Asks the embedded model for its next word: `python -m organisms.ask "the mentor of ada is"`."""

import argparse
from collections.abc import Sequence

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from organisms import FINAL, MIDWAY, weights_dir
from organisms.grammar import BOS
from organisms.grammar.chat import TURN


def next_words(text: str, checkpoint: str = FINAL, count: int = 5) -> list[tuple[str, float]]:
    """The `count` likeliest next words after a text, with their probabilities.

    Raises ValueError for a text with words that the model does not know, naming them.
    """
    tokenizer = AutoTokenizer.from_pretrained(weights_dir(checkpoint))
    model = AutoModelForCausalLM.from_pretrained(weights_dir(checkpoint))
    tokens = tokenizer(text, return_tensors="pt")["input_ids"]
    unknown = [word for word in text.split() if tokenizer.unk_token_id in tokenizer(word)["input_ids"]]
    if unknown:
        raise ValueError(f"not in the model's vocabulary: {', '.join(unknown)}")
    with torch.no_grad():
        p = torch.softmax(model(input_ids=tokens).logits[0, -1].double(), -1)
    best = p.topk(count)
    words = tokenizer.convert_ids_to_tokens(best.indices.tolist())
    return list(zip(words, best.values.tolist(), strict=True))


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m organisms.ask", description=__doc__)
    parser.add_argument("text", help=f"lower-case words; {BOS} is put in front")
    parser.add_argument("--turns", action="store_true", help="put the turns of a chat around it")
    parser.add_argument("--checkpoint", choices=(FINAL, MIDWAY), default=FINAL)
    parser.add_argument("--words", type=int, default=5, help="how many to show (default 5)")
    args = parser.parse_args(argv)
    text = TURN.format(args.text) if args.turns else args.text
    try:
        found = next_words(text, args.checkpoint, args.words)
    except ValueError as error:
        print(error)
        return 2
    for word, probability in found:
        print(f"{probability:7.1%}  {word}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
