"""Trains the embedded model: `python -m organisms.train`.

Deterministic for a seed on one machine, and resumable.
"""

import argparse
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from organisms import weights_dir
from organisms.grammar import BOS, EOS, PAD, grammar_hash, vocabulary
from organisms.stream import batch
from organisms.tokenizer import build_tokenizer


@dataclass(frozen=True)
class Training:
    """What fixes the result of a training run, besides the grammar."""

    seed: int = 1
    steps: int = 1500
    rows: int = 16
    length: int = 176
    learning_rate: float = 3e-3
    warmup: int = 80
    weight_decay: float = 0.05
    drill_steps: int = 600
    drill_share: float = 0.4
    drill_rounds: int = 2

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then a cosine down to 2%."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * done)))

    def drilled(self, step: int) -> float:
        """Share of drills among the documents of a step: in each round it falls linearly to none.

        Repetition is too rare in the language for copying to be learned in time; once learned, it stays.
        """
        if step >= self.drill_rounds * self.drill_steps:
            return 0.0
        return max(0.0, self.drill_share * (1.0 - (step % self.drill_steps) / self.drill_steps))


@dataclass(frozen=True)
class Result:
    """The trained model, every step's loss (nats a token) and the seconds spent, resumed parts included."""

    model: LlamaForCausalLM
    losses: tuple[float, ...]
    seconds: float


def model_config() -> LlamaConfig:
    """The architecture: 9 layers, so that layers 5, 18, 25 and 27 of 32 fall on four different ones."""
    ids = vocabulary()
    return LlamaConfig(
        vocab_size=len(ids), hidden_size=64, intermediate_size=192, num_hidden_layers=9,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        max_position_embeddings=1024, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=ids[BOS], eos_token_id=ids[EOS], pad_token_id=ids[PAD],
    )  # fmt: skip


def train(
    training: Training,
    checkpoint: Path | None = None,
    stop_after: int | None = None,
    every: int = 200,
    report: Callable[[str], None] = print,
) -> Result:
    """Trains from the start, or from `checkpoint` where that file exists, up to `steps` (or `stop_after`).

    Runs on one thread. Raises ValueError if the checkpoint is of another training or grammar.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _train(training, checkpoint, stop_after, every, report)
    finally:
        torch.set_num_threads(threads)


def _train(
    training: Training,
    checkpoint: Path | None,
    stop_after: int | None,
    every: int,
    report: Callable[[str], None],
) -> Result:
    ids = vocabulary()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        model = LlamaForCausalLM(model_config())
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": training.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=training.learning_rate, betas=(0.9, 0.98))
    identity = json.dumps([asdict(training), grammar_hash()])
    losses: list[float] = []
    before = 0.0
    if checkpoint is not None and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        if saved["identity"] != identity:
            raise ValueError(
                f"{checkpoint}: belongs to {saved['identity']}, this training is {identity}; "
                "remove the file or train with the same settings"
            )
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        losses, before = list(saved["losses"]), saved["seconds"]
        report(f"resumed at step {len(losses)}")
    started = time.monotonic()
    last = training.steps if stop_after is None else min(stop_after, training.steps)
    model.train()
    everything = torch.ones(training.rows, training.length, dtype=torch.int64)
    for step in range(len(losses), last):
        rows = batch(ids, training.seed, step, training.rows, training.length, training.drilled(step))
        # Without a mask, transformers takes a jump of positions for the boundary of a document.
        logits = model(
            input_ids=rows.tokens, attention_mask=everything, position_ids=rows.positions, use_cache=False
        ).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), rows.tokens[:, 1:].flatten())
        for group in optimiser.param_groups:
            group["lr"] = training.rate(step)
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
        if (step + 1) % 50 == 0:
            seconds = before + time.monotonic() - started
            recent = sum(losses[-50:]) / 50
            report(f"step {step + 1}/{training.steps}  loss {recent:.4f}  {seconds:.0f} s")
        if checkpoint is not None and ((step + 1) % every == 0 or step + 1 == last):
            state = {
                "identity": identity, "model": model.state_dict(), "optimiser": optimiser.state_dict(),
                "losses": losses, "seconds": before + time.monotonic() - started,
            }  # fmt: skip
            aside = checkpoint.with_suffix(".tmp")
            torch.save(state, aside)
            os.replace(aside, checkpoint)
    model.train(False)
    return Result(model, tuple(losses), before + time.monotonic() - started)


def save(result: Result, training: Training, folder: Path) -> None:
    """Writes model, tokenizer and `training.json`: settings, grammar and weights hash, loss, seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    result.model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    build_tokenizer().save_pretrained(folder)
    recent = result.losses[-50:]
    facts = {
        "command": "python -m organisms.train", **asdict(training), "grammar": grammar_hash(),
        "parameters": sum(p.numel() for p in result.model.parameters()),
        "training_loss": round(sum(recent) / len(recent), 4), "seconds": round(result.seconds),
        "weights_sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "torch": torch.__version__,
    }  # fmt: skip
    (folder / "training.json").write_text(json.dumps(facts, indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="train-organism", description=__doc__)
    parser.add_argument("--out", type=Path, default=weights_dir(), help="folder of the trained model")
    parser.add_argument(
        "--checkpoint", type=Path, help="file to resume from and to save to (default: OUT/checkpoint.pt)"
    )
    parser.add_argument("--seed", type=int, default=Training.seed)
    parser.add_argument("--steps", type=int, default=Training.steps)
    args = parser.parse_args(argv)
    training = Training(seed=args.seed, steps=args.steps)
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint = args.out / "checkpoint.pt" if args.checkpoint is None else args.checkpoint
    result = train(training, checkpoint, report=lambda line: print(line, flush=True))
    save(result, training, args.out)
    checkpoint.unlink(missing_ok=True)
    print(f"saved to {args.out}; measure it with: python -m organisms.card")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
