"""Trains the embedded model: `python -m organisms.train`.

Deterministic for a seed on one machine, and resumable.
"""

import argparse
import hashlib
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from organisms import midway_of, weights_dir
from organisms.grammar import BOS, EOS, PAD, grammar_hash, vocabulary
from organisms.stream import Drills, batch
from organisms.tokenizer import build_tokenizer

LAYERS = 9


@dataclass(frozen=True)
class Training:
    """What fixes the result of a training run, besides the grammar.

    Six parts, one after the other, each of so many steps:

    1. facts: single facts, with the lower layers alone.
    2. hops: compositions, while only the upper layers learn: they find the first hop done below them.
       Trained all at once, the layers settle on facts alone and come to compositions far later.
    3. short: the whole mixture in short rows, where a word has few others to attend to.
    4. decisions: as before, but most documents are those that need the most: claims and gambling. The
       learning rate stays as it is.
    5. long: the whole mixture in long rows, with drills in repetition that fade out.
    6. settling: as part 4, from a small learning rate down: a probability such as P(stop) is an average over
       many documents, which the steps before follow too closely one by one.
    """

    seed: int = 1
    facts: int = 250
    hops: int = 700
    short: int = 1000
    decisions: int = 1500
    long: int = 1700
    settling: int = 600
    # The model of this step is kept too: it has the facts, and fails at some compositions.
    midway: int = 700
    lower_layers: int = 4
    fact_shape: tuple[int, int] = (112, 25)
    short_shape: tuple[int, int] = (88, 32)
    long_shape: tuple[int, int] = (16, 176)
    learning_rate: float = 3e-3
    settling_rate: float = 5e-4
    warmup: int = 80
    weight_decay: float = 0.05
    initial_scale: float = 0.08
    decision_drills: float = 0.6
    repetition_drills: float = 0.25
    repetition_drill_steps: int = 600

    @property
    def steps(self) -> int:
        return self.facts + self.hops + self.short + self.decisions + self.long + self.settling

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then a cosine down to 2% that pauses in part 4; in part 6
        linear to zero."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        if self.part(step) == 6:
            return self.settling_rate * (self.steps - step) / self.settling
        paused = min(self.decisions, max(0, step - self.facts - self.hops - self.short))
        done = (step - paused - self.warmup) / max(
            1, self.steps - self.settling - self.decisions - self.warmup
        )
        return self.learning_rate * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * done)))

    def part(self, step: int) -> int:
        """Which of the six parts a step is in, 1 to 6."""
        ends = itertools.accumulate((self.facts, self.hops, self.short, self.decisions, self.long))
        return 1 + sum(step >= end for end in ends)

    def layers(self, step: int) -> int:
        """How many layers, from the first, are run."""
        return self.lower_layers if self.part(step) == 1 else LAYERS

    def frozen(self, step: int) -> int:
        """How many layers, from the first, do not learn."""
        return self.lower_layers if self.part(step) == 2 else 0

    def shape(self, step: int) -> tuple[int, int]:
        """Rows and tokens of a row."""
        fact, short, long = self.fact_shape, self.short_shape, self.long_shape
        return (fact, fact, short, short, long, short)[self.part(step) - 1]

    def drills(self, step: int) -> Drills:
        """What stands in for the mixture. What a drill has taught stays."""
        since = step - (self.steps - self.settling - self.long)
        faded = max(0.0, self.repetition_drills * (1.0 - since / self.repetition_drill_steps))
        return (
            Drills(facts=1.0), Drills(compositions=1.0), Drills(), Drills(decisions=self.decision_drills),
            Drills(repetition=faded), Drills(decisions=self.decision_drills),
        )[self.part(step) - 1]  # fmt: skip


@dataclass(frozen=True)
class Result:
    """The trained model, the one on the way (None before that step), every step's loss (nats a token,
    weighted) and the seconds spent, resumed parts included."""

    model: LlamaForCausalLM
    midway: LlamaForCausalLM | None
    losses: tuple[float, ...]
    seconds: float


def model_config(initial_scale: float) -> LlamaConfig:
    """The architecture: 9 layers, so that layers 5, 18, 25 and 27 of 32 fall on four different ones."""
    ids = vocabulary()
    return LlamaConfig(
        vocab_size=len(ids), hidden_size=64, intermediate_size=192, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        max_position_embeddings=1024, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        initializer_range=initial_scale, bos_token_id=ids[BOS], eos_token_id=ids[EOS], pad_token_id=ids[PAD],
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
        model = LlamaForCausalLM(model_config(training.initial_scale))
    for layer in model.model.layers[training.lower_layers :]:
        # An upper layer starts as the identity, so that adding it changes nothing.
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": training.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=training.learning_rate, betas=(0.9, 0.98))
    identity = json.dumps([asdict(training), grammar_hash()])
    losses: list[float] = []
    midway: dict[str, torch.Tensor] = {}
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
        losses, midway, before = list(saved["losses"]), saved["midway"], saved["seconds"]
        report(f"resumed at step {len(losses)}")
    started = time.monotonic()
    last = training.steps if stop_after is None else min(stop_after, training.steps)
    model.train()
    for step in range(len(losses), last):
        shape = training.shape(step)
        rows = batch(ids, f"train/{training.seed}/{step}", shape, training.drills(step))
        model.config.num_hidden_layers = training.layers(step)
        # Without a mask, transformers takes a jump of positions for the boundary of a document.
        logits = model(
            input_ids=rows.tokens,
            attention_mask=torch.ones_like(rows.tokens),
            position_ids=rows.positions,
            use_cache=False,
        ).logits
        losses_of = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), rows.tokens[:, 1:].flatten(), reduction="none"
        )
        weights = rows.weights[:, 1:].flatten()
        loss = (losses_of * weights).sum() / weights.sum()
        for group in optimiser.param_groups:
            group["lr"] = training.rate(step)
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        for parameter in model.model.layers[: training.frozen(step)].parameters():
            parameter.grad = None
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
        if len(losses) == training.midway:
            midway = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        if (step + 1) % 50 == 0:
            seconds = before + time.monotonic() - started
            recent = sum(losses[-50:]) / 50
            report(f"step {step + 1}/{training.steps}  loss {recent:.4f}  {seconds:.0f} s")
        if checkpoint is not None and ((step + 1) % every == 0 or step + 1 == last):
            state = {
                "identity": identity, "model": model.state_dict(), "optimiser": optimiser.state_dict(),
                "losses": losses, "midway": midway, "seconds": before + time.monotonic() - started,
            }  # fmt: skip
            aside = checkpoint.with_suffix(".tmp")
            torch.save(state, aside)
            os.replace(aside, checkpoint)
    model.train(False)
    model.config.num_hidden_layers = LAYERS
    return Result(model, _with(midway, training), tuple(losses), before + time.monotonic() - started)


def _with(weights: dict[str, torch.Tensor], training: Training) -> LlamaForCausalLM | None:
    if not weights:
        return None
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(model_config(training.initial_scale))
    model.load_state_dict(weights)
    model.train(False)
    return model


def save(result: Result, training: Training, folder: Path) -> None:
    """Writes model, tokenizer and `training.json`: settings, grammar and weights hash, loss, seconds.

    The model on the way goes to the folder `midway` within. Raises ValueError for a training that has not
    come that far.
    """
    if result.midway is None:
        raise ValueError(f"expected a training of at least {training.midway} steps, got {len(result.losses)}")
    _save_model(result.midway, midway_of(folder))
    _save_model(result.model, folder)
    recent = result.losses[-50:]
    facts = {
        "command": "python -m organisms.train", **asdict(training), "steps": training.steps,
        "grammar": grammar_hash(),
        "parameters": sum(p.numel() for p in result.model.parameters()),
        "first_losses": [round(loss, 6) for loss in result.losses[:3]],
        "training_loss": round(sum(recent) / len(recent), 4), "seconds": round(result.seconds),
        "weights_sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "torch": torch.__version__,
    }  # fmt: skip
    (folder / "training.json").write_text(json.dumps(facts, indent=1) + "\n")


def _save_model(model: LlamaForCausalLM, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    build_tokenizer().save_pretrained(folder)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="train-organism", description=__doc__)
    parser.add_argument("--out", type=Path, default=weights_dir(), help="folder of the trained model")
    parser.add_argument(
        "--checkpoint", type=Path, help="file to resume from and to save to (default: OUT/checkpoint.pt)"
    )
    parser.add_argument("--seed", type=int, default=Training.seed)
    args = parser.parse_args(argv)
    training = Training(seed=args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint = args.out / "checkpoint.pt" if args.checkpoint is None else args.checkpoint
    result = train(training, checkpoint, report=lambda line: print(line, flush=True))
    save(result, training, args.out)
    checkpoint.unlink(missing_ok=True)
    print(f"saved to {args.out}; measure it with: python -m organisms.card")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
