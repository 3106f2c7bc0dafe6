"""The same interventions written as plainly as possible: one prompt at a time, ordinary hooks,
transformers' own cache.

It shares no code with the backend, only the types that describe a row, and serves as its oracle. Random and
shuffled values, and features, are left out. The model is to be loaded with eager attention where edges are
cut: its masks are numbers added to the scores.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import DynamicCache

from backends.rows import Row
from backends.writes import Write

# In the order in which a forward comes to them.
SITES = (
    "embed",
    "resid_pre",
    "q_proj",
    "k_proj",
    "v_proj",
    "attention_edge",
    "head_z",
    "attn_out",
    "attn_out_normed",
    "resid_mid",
    "mlp_out",
    "mlp_out_normed",
    "resid_post",
    "logits",
)
Edit = tuple[str, int, Callable]


class Blind(Exception):
    """The cut edges leave a query nothing to attend to."""


def body(model):
    """The model without its unembedding."""
    kind = model.config.model_type
    return {"gpt2": lambda: model.transformer, "gpt_neox": lambda: model.gpt_neox}.get(
        kind, lambda: model.model
    )()


def blocks(model):
    return body(model).h if model.config.model_type == "gpt2" else body(model).layers


def attention_of(model, layer: int):
    name = {"gpt2": "attn", "gpt_neox": "attention"}.get(model.config.model_type, "self_attn")
    return getattr(blocks(model)[layer], name)


def head_width(model) -> int:
    config = model.config
    stated = getattr(config, "head_dim", None)
    return config.hidden_size // config.num_attention_heads if stated is None else stated


def module_of(model, site: str, layer: int):
    """The module that carries a site, and on which side. Of resid_mid: the one whose output is added to the
    block's input to give it."""
    block, kind = blocks(model)[layer], model.config.model_type
    attention = attention_of(model, layer)
    if site in ("q_proj", "k_proj", "v_proj"):
        fused = {"gpt2": "c_attn", "gpt_neox": "query_key_value", "phi3": "qkv_proj"}
        return getattr(attention, fused.get(kind, site)), "output"
    if site == "head_z":
        return getattr(attention, {"gpt2": "c_proj", "gpt_neox": "dense"}.get(kind, "o_proj")), "input"
    if site == "embed":
        name = {"gpt2": "wte", "gpt_neox": "embed_in"}.get(kind, "embed_tokens")
        return getattr(body(model), name), "output"
    if site == "attn_out_normed" or (site == "resid_mid" and kind.startswith("gemma")):
        return block.post_attention_layernorm, "output"
    if site == "mlp_out_normed":
        return block.post_feedforward_layernorm, "output"
    return {
        "resid_pre": (block, "input"),
        "resid_mid": (attention, "output"),
        "resid_post": (block, "output"),
        "attn_out": (attention, "output"),
        "mlp_out": (block.mlp, "output"),
    }[site]


def columns_of(model, site: str):
    """Which columns of its module's output a site is, one by one; None where it is all of them."""
    kind = model.config.model_type
    if site not in ("q_proj", "k_proj", "v_proj") or kind not in ("gpt2", "gpt_neox", "phi3"):
        return None
    part, width, heads = "qkv".index(site[0]), head_width(model), model.config.num_attention_heads
    if kind == "gpt_neox":  # each head: its query, its key, its value
        return [(3 * head + part) * width + i for head in range(heads) for i in range(width)]
    counts = [heads, heads, heads]
    if kind == "phi3":
        counts[1:] = [model.config.num_key_value_heads] * 2
    first = sum(counts[:part]) * width
    return list(range(first, first + counts[part] * width))


def _hook(model, site: str, layer: int, function):
    """Handles of one edit."""
    if site == "logits":

        def on_logits(module, args, output):
            output.logits = function(output.logits[0].clone())[None]
            return output

        return [model.register_forward_hook(on_logits)]
    if site == "attention_edge":

        def on_mask(module, args, kwargs):
            mask = kwargs["attention_mask"].expand(-1, model.config.num_attention_heads, -1, -1)
            return args, {**kwargs, "attention_mask": function(mask[0].clone())[None]}

        return [attention_of(model, layer).register_forward_pre_hook(on_mask, with_kwargs=True)]
    module, side = module_of(model, site, layer)
    columns = columns_of(model, site)
    handles, stream = [], []
    if site == "resid_mid":

        def keep(block, args):
            stream[:] = [args[0][0]]

        handles.append(blocks(model)[layer].register_forward_pre_hook(keep))

    def changed(hidden):
        hidden = hidden[0].clone()
        if stream:
            return (function(stream[0] + hidden) - stream[0])[None]
        if columns is None:
            return function(hidden)[None]
        hidden[:, columns] = function(hidden[:, columns])
        return hidden[None]

    def before(module, args):
        return (changed(args[0]), *args[1:])

    def after(module, args, output):
        return (changed(output[0]), *output[1:]) if isinstance(output, tuple) else changed(output)

    if side == "input":
        return [*handles, module.register_forward_pre_hook(before)]
    return [*handles, module.register_forward_hook(after)]


@contextmanager
def hooked(model, edits):
    """edits: list of (site, layer, function on a [tokens, width] tensor; of attention_edge on the mask
    [heads, queries, keys] that is added to the scores). Those of one site are applied in order."""
    handles = []
    for site, layer, function in sorted(edits, key=lambda edit: SITES.index(edit[0])):
        handles += _hook(model, site, layer, function)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _forward(model, ids, edits, **more):
    with hooked(model, edits), torch.no_grad():
        return model(torch.tensor([ids]), **more).logits[0]


def capture(model, ids, site, layer, edits=()):
    """Activations [tokens, width] of a prompt, after the edits."""
    seen = []

    def keep(hidden):
        seen.append(hidden.clone())
        return hidden

    _forward(model, ids, [*edits, (site, layer, keep)], use_cache=False)
    return seen[0]


def cache_of(model, ids, edits=()):
    """Keys and values of a prompt, by layer."""
    cache = DynamicCache()
    _forward(model, ids, edits, past_key_values=cache, use_cache=True)
    return [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]


@dataclass
class Count:
    """What one write did: positions by forward, and the relative changes at each layer and position."""

    prefill: set = field(default_factory=set)
    decode: set = field(default_factory=set)
    changes: list = field(default_factory=list)


@dataclass
class Ran:
    """Tokens of a row, the logits that each was drawn from, and what each write did. margin: the smallest
    between a best logit and the second, of the row and of donors that generate beside it."""

    tokens: list[int] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)
    counts: dict[str, Count] = field(default_factory=dict)
    forwards: int = 0
    margin: float = float("inf")


def heads_columns(model, write: Write, width: int):
    """bool [width]: the columns of a site that a write is limited to."""
    if write.heads is None:
        return torch.ones(width, dtype=torch.bool)
    own = torch.arange(width) // head_width(model)
    return torch.isin(own, torch.tensor(write.heads.indices))


def change(write: Write, old, value):
    """What a write makes of one row, or of the columns that it is limited to."""
    if write.op == "zero":
        return torch.zeros_like(old)
    if write.op == "scale":
        return write.alpha * old
    if write.op == "replace":
        return value
    if write.op == "project_out":
        unit = value / value.norm()
        return old - write.alpha * (old @ unit) * unit
    step = {"direction_norm": value.norm(), "resid_norm": old.norm(), "raw": 1.0}[write.unit]
    return old + write.alpha * step * value / value.norm()


def relative(old, new) -> float:
    moved, size = (new - old).norm(), old.norm()
    return float(moved / size) if size > 0 else float(moved > 0)


class Plain:
    """One row, to be run."""

    def __init__(self, model, row: Row) -> None:
        self.model, self.row = model, row
        self.ran = Ran(counts={write.name: Count() for write in row.writes})
        self.known: dict = {}  # what has been computed of the sources

    def once(self, what: str, write: Write, layer: int, compute):
        key = (what, write.name, layer)
        if key not in self.known:
            self.known[key] = compute()
        return self.known[key]

    def source_ids(self, write: Write):
        role = write.value.role
        return self.row.ids if role == "self" else self.row.sources[role]

    def under(self, write: Write) -> list[Edit]:
        """What is done to the run of a write's source."""
        if write.value.under is None:
            return []
        inner = Row(self.source_ids(write), self.row.sampling, write.value.under.writes, self.row.sources)
        return Plain(self.model, inner).prompt_edits(0, len(inner.ids), len(inner.ids))

    def window(self, write: Write, layer: int):
        return self.once("window", write, layer, lambda: self._window(write, layer))

    def _window(self, write: Write, layer: int):
        """What stands at a write's positions in the prompt that it draws from."""
        ids = self.source_ids(write)
        at = layer if write.value.layer is None else write.value.layer
        found = capture(self.model, ids, write.site, at, self.under(write))
        return found[list(write.positions.resolve(len(ids), {}))]

    def fixed(self, write: Write, layer: int):
        return self.once("fixed", write, layer, lambda: self._fixed(write, layer))

    def _fixed(self, write: Write, layer: int):
        """The one vector of a write that has one, or None."""
        value = write.value
        if value.constant is not None:
            return torch.from_numpy(value.constant.at(layer))
        if value.prompts is None:
            return None
        means = []
        for ids in value.prompts.prompts:
            found = capture(self.model, ids, write.site, layer)
            means.append(found[list(write.positions.resolve(len(ids), {}))].double().mean(0))
        return torch.stack(means).mean(0).float()

    def put(self, write: Write, hidden, index: int, value, place) -> None:
        """Write into row `index` of `hidden` and count it. place: (phase, layer, forward, position)."""
        columns = heads_columns(self.model, write, hidden.shape[-1])
        old = hidden[index, columns].clone()
        new = change(write, old, None if value is None else value[columns])
        hidden[index, columns] = new
        count = self.ran.counts.get(write.name)
        if place is not None and count is not None:
            phase, _, forward, position = place
            getattr(count, phase).add((forward, position))
            count.changes.append(relative(old, new))

    def prompt_edits(self, offset: int, length: int, outputs: int, *, counted=True) -> list[Edit]:
        """Prefill writes in a forward of the prompt's tokens from `offset` on, `length` of them being the
        prompt's and `outputs` all that come out."""
        edits = []
        for write in sorted(self.row.writes, key=lambda w: w.order):
            if write.site == "kv_cache" or write.during == "decode" or outputs < write.min_positions:
                continue
            target = list(write.positions.resolve(len(self.row.ids), {}))
            for layer in write.layers:
                if write.site == "attention_edge":
                    queries = [(p, p - offset) for p in target if offset <= p < offset + length]
                    edits.append((write.site, layer, self.cut(write, queries, "prefill", 0, counted)))
                    continue
                window, at = [self.fixed(write, layer)] * len(target), target
                if write.value.role:
                    window = list(self.window(write, layer))
                    count = min(len(target), len(window))
                    front = write.positions.kind == "first"
                    at = target[:count] if front else target[len(target) - count :]
                    window = window[:count] if front else window[len(window) - count :]

                def function(hidden, write=write, layer=layer, at=at, window=window):
                    for position, value in zip(at, window, strict=True):
                        if offset <= position < offset + length:
                            place = ("prefill", layer, 0, position) if counted else None
                            self.put(write, hidden, position - offset, value, place)
                    return hidden

                edits.append((write.site, layer, function))
        return edits

    def decode_edits(self, step: int, outputs: int) -> list[Edit]:
        """Decode writes in a decode forward that gives `outputs` positions, the new token being the last."""
        edits = []
        for write in sorted(self.row.writes, key=lambda w: w.order):
            if write.site == "kv_cache" or write.during == "prefill" or outputs < write.min_positions:
                continue
            for layer in write.layers:
                if write.site == "attention_edge":
                    edits.append((write.site, layer, self.cut(write, [(step, -1)], "decode", step, True)))
                    continue
                values = [(-1, self.decode_value(write, layer, step))]
                if write.hold == "sliding":
                    window = self.window(write, layer)
                    values = [(i - len(window), value) for i, value in enumerate(window)][-outputs:]
                elif write.hold == "lockstep" and values[0][1] is None:
                    continue  # the donor has no such token of its own any more

                def function(hidden, write=write, layer=layer, values=values):
                    for index, value in values:
                        self.put(write, hidden, index, value, ("decode", layer, step, index))
                    return hidden

                edits.append((write.site, layer, function))
        return edits

    def decode_value(self, write: Write, layer: int, step: int):
        if not write.value.role:
            return self.fixed(write, layer)
        if write.hold == "lockstep":
            recorded = self.once("recorded", write, layer, lambda: self.recorded(write, layer))
            return recorded[step] if step < len(recorded) else None
        window = self.window(write, layer)
        return {
            "cycle": lambda: window[step % len(window)],
            "last": lambda: window[-1],
            "mean": lambda: window.mean(0),
            "sliding": lambda: None,
        }[write.hold]()

    def recorded(self, write: Write, layer: int):
        """What the donor's own new tokens had."""
        inner = () if write.value.under is None else write.value.under.writes
        donor = Plain(self.model, Row(self.source_ids(write), self.row.sampling, inner, self.row.sources))
        at = layer if write.value.layer is None else write.value.layer
        found = donor.record(write.site, at, self.ends)
        self.ran.margin = min(self.ran.margin, donor.ran.margin)
        return found

    def record(self, site: str, layer: int, eos):
        seen = []

        def keep(hidden):
            seen.append(hidden[-1].clone())
            return hidden

        self.also = [(site, layer, keep)]
        self.run(eos)
        return seen[len(seen) - self.ran.forwards :]

    def cut(self, write: Write, queries, phase: str, forward: int, counted: bool):
        """A change of the added mask. queries: (position, index in the forward)."""
        keys = list(write.keys.resolve(len(self.row.ids), {}))

        def function(mask):
            floor = torch.finfo(mask.dtype).min
            for position, index in queries:
                open_before = mask[:, index] == 0
                for head in range(len(mask)) if write.heads is None else write.heads.indices:
                    for key in keys:
                        if key < mask.shape[-1]:
                            mask[head, index, key] = floor
                left = mask[:, index] == 0
                if not left.any(dim=-1).all():
                    raise Blind
                count = self.ran.counts.get(write.name)
                if counted and count is not None and bool((open_before & ~left).any()):
                    getattr(count, phase).add((forward, position))
            return mask

        return function

    also: tuple | list = ()
    ends: tuple = ()

    @torch.no_grad()
    def run(self, eos) -> Ran:
        """Greedy tokens."""
        assert self.row.sampling.temperature == 0
        self.ends = eos
        return self.anew(eos) if self.row.recompute else self.cached(eos)

    def take(self, logits, eos) -> bool:
        """Note the next token; whether it goes on."""
        best, second = logits.topk(2).values.tolist()
        self.ran.margin = min(self.ran.margin, best - second)
        self.ran.logits.append(logits)
        self.ran.tokens.append(int(logits.argmax()))
        return self.ran.tokens[-1] not in eos and len(self.ran.tokens) < self.row.sampling.max_new_tokens

    def anew(self, eos) -> Ran:
        """Without a cache."""
        row, ids, step = self.row, list(self.row.ids), 0
        while True:
            if step:
                edits = self.ordered(step, len(ids))
                self.ran.forwards += 1
            else:
                edits = self.prompt_edits(0, len(row.ids), len(row.ids))
            if not self.take(_forward(self.model, ids, edits, use_cache=False)[-1], eos):
                return self.ran
            ids.append(self.ran.tokens[-1])
            step += 1

    def ordered(self, step: int, outputs: int) -> list[Edit]:
        """Prefill writes at the prompt and decode writes at the newest token, write by write."""
        edits, every = [], self.row.writes
        for write in sorted(every, key=lambda w: w.order):
            self.row = Row(
                self.row.ids, self.row.sampling, (write,), self.row.sources, recompute=self.row.recompute
            )
            if write.hold != "sliding":
                edits += self.prompt_edits(0, len(self.row.ids), len(self.row.ids), counted=False)
            edits += self.decode_edits(step - 1, outputs)
        self.row = Row(self.row.ids, self.row.sampling, every, self.row.sources, recompute=True)
        return edits

    def cached(self, eos) -> Ran:
        row, model = self.row, self.model
        prefill_ids = list(row.ids) if row.replay_last_token else list(row.ids[:-1])
        layers = [(None, None)] * model.config.num_hidden_layers
        if prefill_ids:
            layers = cache_of(model, prefill_ids, self.prompt_edits(0, len(prefill_ids), len(prefill_ids)))
        layers, slots = self.written_cache(layers, len(prefill_ids))
        cache = DynamicCache()
        for index, (keys, values) in enumerate(layers):
            if keys is not None:
                cache.update(keys, values, index)
        token, position, step = row.ids[-1], slots, 0
        while True:
            if self.ran.tokens or row.replay_last_token:
                edits = self.decode_edits(step, 1)
                step += 1
                self.ran.forwards += 1
            else:
                edits = self.prompt_edits(len(row.ids) - 1, 1, 1)
            logits = _forward(
                model,
                [token],
                [*edits, *self.also],
                position_ids=torch.tensor([[position]]),
                past_key_values=cache,
                use_cache=True,
            )
            if not self.take(logits[-1], eos):
                return self.ran
            token, position = self.ran.tokens[-1], position + 1

    def written_cache(self, layers, slots: int):
        """The cache after the kv_cache writes, and its slots."""
        row, model = self.row, self.model
        for write in sorted((w for w in row.writes if w.site == "kv_cache"), key=lambda w: w.order):
            kept, available = [(None, None)] * len(layers), 0
            if write.value.role:
                donor = self.source_ids(write)
                available = len(donor) if row.replay_last_token else len(donor) - 1
                kept = cache_of(model, donor, self.under(write))
            if write.align in ("whole", "concat"):
                joined = [(k[:, :, :available], v[:, :, :available]) for k, v in kept]
                if write.align == "concat" and slots:
                    joined = [
                        (torch.cat([dk, self.moved(write, k, slots, available, i)], 2), torch.cat([dv, v], 2))
                        for i, ((dk, dv), (k, v)) in enumerate(zip(joined, layers, strict=True))
                    ]
                layers = joined
                self.ran.counts[write.name].prefill |= {(0, slot) for slot in range(available)}
                slots = available + (slots if write.align == "concat" else 0)
                continue
            pairs = [(p, None) for p in write.positions.resolve(slots, {}) if p or not write.keep_sink]
            if write.value.role:
                pairs = pairs_of(write, slots, available)
            for layer in write.layers:
                for target, source in pairs:
                    self.put_slot(write, layer, layers[layer], kept[layer], target, source)
        return layers, slots

    def moved(self, write: Write, keys, slots: int, by: int, layer: int):
        if write.rope == "keep":
            return keys
        return move(self.model, keys, list(range(slots)), list(range(by, by + slots)), layer)

    def put_slot(self, write: Write, layer: int, own, donor, target: int, source: int | None) -> None:
        changes = []
        for part in range(2):
            if write.part not in ("both", ("keys", "values")[part]):
                continue
            value = None
            if source is not None:
                value = donor[part][:, :, source : source + 1]
                if part == 0 and write.rope == "rerotate":
                    value = move(self.model, value, [source], [target], layer)
                value = value[0, :, 0]
            old = own[part][0, :, target].clone()
            new = torch.stack(
                [change(write, row, None if value is None else value[i]) for i, row in enumerate(old)]
            )
            heads = list(range(len(old))) if write.heads is None else list(write.heads.indices)
            own[part][0, heads, target] = new[heads]
            changes.append(relative(old[heads], new[heads]))
        count = self.ran.counts[write.name]
        count.prefill.add((0, target))
        count.changes.append(float(np.mean(changes)))


def move(model, keys, old, new, layer):
    """Un-rotate keys [1, heads, n, width] from their old positions, rotate them to the new ones."""
    kinds = [model.config.layer_types[layer]] if model.config.model_type == "gemma3_text" else []

    def turn(k, positions, sign):
        cos, sin = body(model).rotary_emb(k, torch.tensor([positions]), *kinds)
        rotated, rest = k[..., : cos.shape[-1]], k[..., cos.shape[-1] :]
        half = cos.shape[-1] // 2
        swapped = torch.cat([-rotated[..., half:], rotated[..., :half]], -1)
        return torch.cat([rotated * cos[:, None] + sign * swapped * sin[:, None], rest], -1)

    return turn(turn(keys, old, -1.0), new, 1.0)


def pairs_of(write: Write, target_count: int, source_count: int):
    wanted = set(write.positions.resolve(target_count, {}))
    count = min(target_count, source_count)
    if write.align == "right":
        pairs = [(target_count - k, source_count - k) for k in range(count, 0, -1)]
    else:
        pairs = [(k, k) for k in range(count)]
    pairs = [(t, s) for t, s in pairs if t in wanted]
    if write.keep_sink:
        pairs = [(t, s) for t, s in pairs if t != 0 and s != 0]
    return pairs


def run(model, row: Row, eos: tuple[int, ...]) -> Ran:
    """One row, with what its writes did. Raises Blind."""
    return Plain(model, row).run(eos)


def generate(model, row: Row, eos: tuple[int, ...]) -> list[int]:
    """Greedy tokens of one row."""
    return run(model, row, eos).tokens
