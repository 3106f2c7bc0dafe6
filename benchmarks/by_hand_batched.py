"""The same experiment by the same hooks, sixteen trials of a condition at a time, padded on the left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from backends.tokenizer import Tokenizer
from benchmarks.by_hand import WINDOW, Done, Task, noise_like, rotation, v_proj
from benchmarks.padded import Padded
from runner.scores.behaviour import behaviour


@dataclass(frozen=True)
class BatchedScript:
    """So many trials at a time, in the order in which they come."""

    model: Any
    tokenizer: Tokenizer
    ends: frozenset[int]
    rows: int = 16

    @torch.inference_mode()
    def run(self, tasks: Sequence[Task]) -> list[Done]:
        """Trials of one batch have writes at the same sites: conditions come one after the other."""
        done: list[Done] = []
        batch: list[Task] = []
        for task in tasks:
            if batch and (len(batch) == self.rows or _kind(task) != _kind(batch[0])):
                done += self._batch(batch)
                batch = []
            batch.append(task)
        return done + (self._batch(batch) if batch else [])

    def _batch(self, tasks: Sequence[Task]) -> list[Done]:
        prompts = Padded.of([task.ids for task in tasks])
        cache = self._forward(Padded(prompts.ids[:, :-1], prompts.mask[:, :-1]))
        if tasks[0].cache is not None:
            self._swap(cache, tasks, prompts.ids.shape[1] - 1)
        window = self._windows(tasks) if tasks[0].values is not None else None
        tokens = self._generate(tasks, prompts, cache, window)
        perplexities = self._perplexities(tasks, tokens)
        texts = [self.tokenizer.decode(each) for each in tokens]
        return [
            Done(each, behaviour(text).score, value)
            for each, text, value in zip(tokens, texts, perplexities, strict=True)
        ]

    def _forward(self, padded: Padded) -> DynamicCache:
        cache = DynamicCache()
        self.model(
            padded.ids,
            attention_mask=padded.mask,
            position_ids=padded.positions,
            past_key_values=cache,
            use_cache=True,
        )
        return cache

    def _swap(self, cache: Any, tasks: Sequence[Task], slots: int) -> None:
        donors = [task.cache for task in tasks if task.cache is not None]
        theirs: Any = self._forward(Padded.of(donors))
        last = max(map(len, donors)) - 1
        counts = [min(len(task.ids), len(donor)) - 1 for task, donor in zip(tasks, donors, strict=True)]
        shifts = [len(task.ids) - len(donor) for task, donor in zip(tasks, donors, strict=True)]
        turn = rotation(self.model, torch.tensor(shifts))
        for own, other in zip(cache.layers, theirs.layers, strict=True):
            turned = turn(other.keys)
            for row, count in enumerate(counts):
                own.keys[row, :, slots - count : slots] = turned[row, :, last - count : last]
                own.values[row, :, slots - count : slots] = other.values[row, :, last - count : last]

    def _windows(self, tasks: Sequence[Task]) -> torch.Tensor:
        """[rows, WINDOW, width]."""
        layer = tasks[0].v_layer
        assert layer is not None
        padded = Padded.of([task.values for task in tasks if task.values is not None])
        seen: list[torch.Tensor] = []
        handle = v_proj(self.model, layer).register_forward_hook(
            lambda _, __, output: seen.append(output.clone())
        )
        self._forward(padded)
        handle.remove()
        return seen[0][:, -WINDOW:]

    def _generate(
        self, tasks: Sequence[Task], prompts: Padded, cache: DynamicCache, window: torch.Tensor | None
    ) -> list[tuple[int, ...]]:
        steps = max(task.steps for task in tasks)
        temperature = torch.tensor([[task.temperature if task.temperature > 0 else 1.0] for task in tasks])
        drawn = [task.noise for task in tasks if task.noise is not None]
        noise = torch.stack(drawn, 1) if drawn else None
        ends = torch.tensor(sorted(self.ends))
        running = torch.ones(len(tasks), dtype=torch.bool)
        found: list[torch.Tensor] = []
        fed, mask = prompts.ids[:, -1:], prompts.mask
        position = prompts.mask.sum(-1, keepdim=True) - 1
        with self._patched(tasks[0], window):
            for step in range(steps):
                logits = self.model(
                    fed, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True
                ).logits[:, -1]
                scores = logits if noise is None else logits / temperature + noise[step]
                token = scores.argmax(-1)
                found.append(torch.where(running, token, -1))
                running = running & ~torch.isin(token, ends)
                if not running.any():
                    break
                fed, position = token[:, None], position + 1
                mask = torch.cat([mask, mask.new_ones(len(tasks), 1)], -1)
        rows = torch.stack(found, 1).tolist()
        return [
            tuple(token for token in row if token >= 0)[: task.steps]
            for row, task in zip(rows, tasks, strict=True)
        ]

    @contextmanager
    def _patched(self, task: Task, window: torch.Tensor | None) -> Iterator[None]:
        """What is written at each decode step; the forward of the last prompt token is none."""
        if task.v_layer is None:
            yield
            return
        step = -1

        def hook(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
            nonlocal step
            step += 1
            if step == 0:
                return None
            if window is None:
                return noise_like(self.model, output)
            return window[:, (step - 1) % window.shape[1], None]

        handle = v_proj(self.model, task.v_layer).register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def _perplexities(self, tasks: Sequence[Task], tokens: Sequence[tuple[int, ...]]) -> list[float | None]:
        whole = Padded.of([(*task.ids, *new) for task, new in zip(tasks, tokens, strict=True)])
        logits = self.model(
            whole.ids, attention_mask=whole.mask, position_ids=whole.positions, use_cache=False
        ).logits
        values: list[float | None] = []
        for row, new in enumerate(tokens):
            target = torch.tensor(new)
            loss = torch.nn.functional.cross_entropy(logits[row, -len(new) - 1 : -1], target)
            values.append(float(loss.exp()))
        return values


def _kind(task: Task) -> tuple[bool, bool, int | None]:
    return task.cache is not None, task.values is not None, task.v_layer
