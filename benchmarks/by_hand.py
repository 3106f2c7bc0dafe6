"""An experiment as its script writes it: one pair at a time, plain hooks, transformers' own cache.

Every condition captures its donor by a forward of its own, prefills its target, swaps the cache, and decodes
token by token; the text is scored, and its perplexity is a forward more. Nothing here is ours but the names
of what is to be done, the noise of sampling (so that tokens can be compared), and the rule of the score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from backends import noise
from backends.rows import Row
from backends.tokenizer import Tokenizer
from backends.writes import SELF, Write
from runner.plan import Trial
from runner.scores.behaviour import behaviour

WINDOW = 16  # the last rows of the donor's v_proj output


@dataclass(frozen=True)
class Done:
    """What a script has of a trial."""

    tokens: tuple[int, ...]
    score: float
    perplexity: float | None


@dataclass(frozen=True)
class Task:
    """What a script is told of a trial: prompts, and what of the donor is written. cache: the donor whose
    cache replaces the target's; values: the donor whose v_proj rows are written in decode, at v_layer;
    v_random: noise is written there instead. noise: of sampling, [steps, vocabulary], or None for the
    likeliest token."""

    ids: tuple[int, ...]
    steps: int
    temperature: float
    cache: tuple[int, ...] | None
    values: tuple[int, ...] | None
    v_layer: int | None
    v_random: bool
    noise: torch.Tensor | None

    @staticmethod
    def of(row: Row, vocabulary: int) -> Task:
        """A row of ours as a script has it. Raises ValueError for writes that the script does not know."""
        cache = values = layer = None
        random = False
        for write in row.writes:
            if write.site == "kv_cache" and write.value.kind == "source" and write.align == "right":
                cache = _donor(row, write)
            elif write.site == "v_proj" and write.during == "decode" and len(write.layers) == 1:
                layer, random = write.layers[0], write.value.kind == "random"
                values = None if random else _donor(row, write)
            else:
                raise ValueError(f"the script has no write like '{write.name}' ({write.site}, {write.op})")
        hot = row.sampling.temperature > 0
        drawn = _gumbel(row, vocabulary) if hot else None
        return Task(
            row.ids,
            row.sampling.max_new_tokens,
            row.sampling.temperature,
            cache,
            values,
            layer,
            random,
            drawn,
        )

    def next(self, logits: torch.Tensor, step: int) -> int:
        """The token that is drawn from logits [vocabulary]."""
        if self.noise is None:
            return int(logits.argmax())
        return int((logits / self.temperature + self.noise[step]).argmax())


def tasks_of(trials: Sequence[Trial], vocabulary: int) -> list[Task]:
    """What a script is told of trials."""
    return [Task.of(trial.row, vocabulary) for trial in trials]


def _donor(row: Row, write: Write) -> tuple[int, ...]:
    return row.ids if write.value.role == SELF else row.sources[write.value.role]


def _gumbel(row: Row, vocabulary: int) -> torch.Tensor:
    stream = np.array([row.stream], np.uint64)
    draws = [
        noise.uniform(noise.step_keys(stream, step), vocabulary)[0]
        for step in range(row.sampling.max_new_tokens)
    ]
    return -torch.log(-torch.log(torch.from_numpy(np.stack(draws))))


@dataclass(frozen=True)
class Script:
    """One pair at a time."""

    model: Any
    tokenizer: Tokenizer
    ends: frozenset[int]

    @torch.inference_mode()
    def run(self, tasks: Sequence[Task]) -> list[Done]:
        """One trial after the other."""
        return [self._one(task) for task in tasks]

    def _one(self, task: Task) -> Done:
        cache = DynamicCache()
        before = torch.tensor([task.ids[:-1]])
        if before.shape[1]:
            self.model(before, past_key_values=cache, use_cache=True)
        if task.cache is not None:
            self._swap(cache, task.cache, len(task.ids) - 1)
        window = None if task.values is None else self._window(task)
        tokens: list[int] = []
        logits = self.model(torch.tensor([task.ids[-1:]]), past_key_values=cache, use_cache=True).logits[
            0, -1
        ]
        tokens.append(task.next(logits, 0))
        with self._patched(task, window):
            while tokens[-1] not in self.ends and len(tokens) < task.steps:
                fed = torch.tensor([tokens[-1:]])
                logits = self.model(fed, past_key_values=cache, use_cache=True).logits[0, -1]
                tokens.append(task.next(logits, len(tokens)))
        text = self.tokenizer.decode(tuple(tokens))
        return Done(tuple(tokens), behaviour(text).score, self._perplexity(task.ids, tokens))

    def _swap(self, cache: Any, donor: tuple[int, ...], slots: int) -> None:
        """The donor's last keys, turned to the positions that they come to, and values over the target's."""
        theirs: Any = DynamicCache()
        self.model(torch.tensor([donor]), past_key_values=theirs, use_cache=True)
        last = len(donor) - 1
        count = min(slots, last)
        if count == 0:
            return
        turn = rotation(self.model, torch.tensor(slots - last))
        for own, other in zip(cache.layers, theirs.layers, strict=True):
            own.keys[:, :, slots - count : slots] = turn(other.keys[:, :, last - count : last])
            own.values[:, :, slots - count : slots] = other.values[:, :, last - count : last]

    def _window(self, task: Task) -> torch.Tensor:
        assert task.values is not None and task.v_layer is not None
        seen: list[torch.Tensor] = []
        module = v_proj(self.model, task.v_layer)
        handle = module.register_forward_hook(lambda _, __, output: seen.append(output.clone()))
        self.model(torch.tensor([task.values]), use_cache=False)
        handle.remove()
        return seen[0][0, -WINDOW:]

    @contextmanager
    def _patched(self, task: Task, window: torch.Tensor | None) -> Iterator[None]:
        """What is written at each decode step: the donor's rows in turn, or noise of the row's own size."""
        if task.v_layer is None:
            yield
            return
        step = 0

        def hook(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            nonlocal step
            new = (
                noise_like(self.model, output)
                if window is None
                else window[step % len(window)].expand_as(output)
            )
            step += 1
            return new

        handle = v_proj(self.model, task.v_layer).register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def _perplexity(self, ids: tuple[int, ...], tokens: Sequence[int]) -> float:
        whole = torch.tensor([[*ids, *tokens]])
        logits = self.model(whole, use_cache=False).logits[0, len(ids) - 1 : -1]
        return float(torch.nn.functional.cross_entropy(logits, whole[0, len(ids) :]).exp())


def v_proj(model: Any, layer: int) -> torch.nn.Module:
    """The module whose output is a layer's values."""
    module: torch.nn.Module = model.model.layers[layer].self_attn.v_proj
    return module


def noise_like(model: Any, output: torch.Tensor) -> torch.Tensor:
    """Gaussian noise with the mean and the standard deviation of each KV head of each row."""
    heads = output.view(*output.shape[:-1], model.config.num_key_value_heads, -1)
    drawn = torch.randn_like(heads) * heads.std(-1, keepdim=True, correction=0) + heads.mean(-1, keepdim=True)
    return drawn.view_as(output)


def rotation(model: Any, shift: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Turns rotary keys [rows, heads, slots, width] by so many positions [] or [rows]."""
    angle = shift.reshape(-1, 1).float() * model.model.rotary_emb.inv_freq
    angle = torch.cat([angle, angle], -1)[:, None, None]
    cosine, sine = angle.cos(), angle.sin()

    def turn(keys: torch.Tensor) -> torch.Tensor:
        first, second = keys.chunk(2, -1)
        return keys * cosine + torch.cat([-second, first], -1) * sine

    return turn
